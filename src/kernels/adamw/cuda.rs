//! The launch of `adamw.cu`.

use candle_core::Result;

use super::AdamWUpdate;
use crate::kernels::clip::cuda::Gate;
use crate::kernels::cuda::{Address, Argument, Grid, Table};

const THREADS: u32 = 256;

// SAFETY: eight floats, `repr(C)`.
unsafe impl Argument for AdamWUpdate {}

/// Updates every (value, gradient, first moment, second moment) of the table. Of its two words the first says whether
/// it decays, the second is the address of a copy of the value in bf16 that is written along, or 0. What a gate says
/// takes the place of the update's own scale.
///
/// # Errors
/// If the driver refuses.
pub fn adamw(table: &Table, update: AdamWUpdate, gate: Option<&Gate>) -> Result<()> {
    let launch = table
        .gpu()
        .launch("adamw")
        .arg(table.entries())
        .arg(table.blocks())
        .arg(update)
        .arg(gate.map_or(Address::NULL, Gate::scale_address));
    // SAFETY: the table's tensors live as long as it does, and are four of one size each.
    unsafe { launch.run(Grid::line(table.block_count(), THREADS)) }
}

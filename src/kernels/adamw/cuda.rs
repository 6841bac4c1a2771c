//! The launch of `adamw.cu`.

use candle_core::Result;

use super::AdamWUpdate;
use crate::kernels::cuda::{Argument, Grid, Table};

const THREADS: u32 = 256;

// SAFETY: eight floats, `repr(C)`.
unsafe impl Argument for AdamWUpdate {}

/// Updates every (value, gradient, first moment, second moment) of the table; those that are flagged decay.
///
/// # Errors
/// If the driver refuses.
pub fn adamw(table: &Table, update: AdamWUpdate) -> Result<()> {
    let launch = table
        .gpu()
        .launch("adamw")
        .arg(table.entries())
        .arg(table.blocks())
        .arg(update);
    // SAFETY: the table's tensors live as long as it does, and are four of one size each.
    unsafe { launch.run(Grid::line(table.block_count(), THREADS)) }
}

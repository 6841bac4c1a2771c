//! Launches of `gradient.cu`.

use candle_core::Result;

use crate::kernels::cuda::{Grid, Memory, Table};

const THREADS: u32 = 256;

/// Sets every tensor of the table to zero.
///
/// # Errors
/// If the driver refuses.
pub fn zero(table: &Table) -> Result<()> {
    let launch = table
        .gpu()
        .launch("zero_gradients")
        .arg(table.entries())
        .arg(table.blocks());
    // SAFETY: the table's tensors live as long as it does.
    unsafe { launch.run(Grid::line(table.block_count(), THREADS)) }
}

/// The sum of the squares of each tensor of the table; waits for it.
///
/// # Errors
/// If the driver refuses, or any work before went wrong.
pub fn sums_of_squares(table: &Table) -> Result<Vec<f64>> {
    let memory = block_sums_of_squares(table)?;
    let mut sums = vec![0f64; table.block_count()];
    memory.read(0, &mut sums)?;
    Ok(table
        .ranges()
        .map(|range| sums[range].iter().sum())
        .collect())
}

/// The sum of the squares of each block of the table, f64 each, on the GPU.
///
/// # Errors
/// If memory is short or the driver refuses.
pub fn block_sums_of_squares(table: &Table) -> Result<Memory> {
    let memory = Memory::new(table.gpu(), 8 * table.block_count())?;
    let launch = table
        .gpu()
        .launch("sums_of_squares")
        .arg(table.entries())
        .arg(table.blocks());
    // SAFETY: the table's tensors live as long as it does; there is a sum for each block.
    unsafe {
        launch
            .arg(memory.address())
            .run(Grid::line(table.block_count(), THREADS))
    }?;
    Ok(memory)
}

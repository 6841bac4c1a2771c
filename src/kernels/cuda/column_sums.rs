//! Sums of the columns of a matrix: gradients of biases, and of normalisations.

use std::sync::Arc;

use candle_core::{DType, Result};

use super::{Address, Gpu, Grid, of_dtype};

/// Rows of one chunk. Changing it changes the bits of results.
const CHUNK_ROWS: usize = 512;
const THREADS: u32 = 256;
/// Columns of one block.
const COLUMNS: usize = 32;

/// A matrix whose columns are summed.
#[derive(Clone, Copy, Debug)]
pub struct ColumnSums {
    pub dtype: DType,
    /// Elements from one row to the next.
    pub stride: usize,
    pub rows: usize,
    /// Columns that are summed.
    pub width: usize,
}

impl ColumnSums {
    fn chunks(&self) -> usize {
        self.rows.div_ceil(CHUNK_ROWS)
    }

    /// What [`Self::add`] needs for partial sums.
    pub fn scratch_bytes(&self) -> usize {
        4 * self.chunks() * self.width
    }

    /// Adds the sums of the columns of `x` to `out`, f32 [width].
    ///
    /// # Safety
    /// `x` is such a matrix, and `scratch` and `out` are large enough.
    ///
    /// # Errors
    /// If the driver refuses.
    pub unsafe fn add(
        &self,
        gpu: &Arc<Gpu>,
        x: Address,
        scratch: Address,
        out: Address,
    ) -> Result<()> {
        let kernel = of_dtype(self.dtype, "column_sums_f32", "column_sums_bf16")?;
        let chunks = self.chunks();
        let pass = |kernel, x, stride, rows, chunk_rows, out, accumulate: bool| {
            let launch = gpu
                .launch(kernel)
                .arg(x)
                .size(stride)
                .size(rows)
                .size(self.width);
            let launch = launch.size(chunk_rows).arg(out).arg(u32::from(accumulate));
            let blocks = [self.width.div_ceil(COLUMNS), rows.div_ceil(chunk_rows), 1];
            // SAFETY: the caller's.
            unsafe { launch.run(Grid::of(blocks, THREADS)) }
        };
        match chunks {
            0 => Ok(()),
            1 => pass(kernel, x, self.stride, self.rows, CHUNK_ROWS, out, true),
            _ => {
                pass(
                    kernel,
                    x,
                    self.stride,
                    self.rows,
                    CHUNK_ROWS,
                    scratch,
                    false,
                )?;
                pass(
                    "column_sums_f32",
                    scratch,
                    self.width,
                    chunks,
                    chunks,
                    out,
                    true,
                )
            }
        }
    }
}

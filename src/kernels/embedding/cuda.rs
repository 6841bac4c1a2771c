//! Launches of `embedding.cu`.

use std::sync::Arc;

use candle_core::{DType, Result, bail};

use super::Scatter;
use crate::kernels::cuda::{Address, Gpu, Grid};
use crate::kernels::device::Device;
use crate::kernels::numbers::{Array, Numbers};
use crate::kernels::tensor::Tensor;

const THREADS: u32 = 128;
/// Tokens of one chunk. Changing it changes the bits of results.
const CHUNK: usize = 64;
/// What the kernel takes for "the only chunk of its id".
const WHOLE: u32 = u32::MAX;

/// What the kernel takes; those that are not there are null.
const MOST_TABLES: usize = 3;

/// Ids and shapes are checked.
pub fn gather_sum<const N: usize>(
    gpu: &Arc<Gpu>,
    tables: [&Tensor; N],
    ids: [Numbers<'_, u32>; N],
    out: &Tensor,
) -> Result<()> {
    let (rows, width) = out.dims2()?;
    let out = gpu.address(out, DType::F32)?;
    if N == 0 || N > MOST_TABLES {
        bail!("embedding: GPUs sum 1 to {MOST_TABLES} tables, not {N}")
    }
    let ids: Vec<_> = ids.iter().map(|ids| ids.on(gpu)).collect::<Result<_>>()?;
    let mut launch = gpu.launch("embedding_gather");
    for (table, ids) in tables.into_iter().zip(&ids) {
        let table = gpu.address(table, DType::F32)?;
        launch = launch.arg(table).arg(ids.address());
    }
    for _ in N..MOST_TABLES {
        launch = launch.arg(Address::NULL).arg(Address::NULL);
    }
    // SAFETY: every id is a row of its table; `out` has `rows` rows.
    unsafe { launch.arg(out).size(width).run(Grid::line(rows, THREADS)) }
}

/// Device copies of how tokens are sorted.
#[derive(Debug, Default)]
pub struct Plan {
    tokens: Array<u32>,
    chunks: Array<u32>,
    sums: Array<u32>,
}

/// Ids are checked and sorted, shapes checked.
pub fn scatter_add(
    gpu: &Arc<Gpu>,
    d: &Tensor,
    scatter: &mut Scatter,
    d_table: &Tensor,
) -> Result<()> {
    let (_, width) = d.dims2()?;
    let [d, d_table] = gpu.addresses([d, d_table], DType::F32)?;
    let (mut chunks, mut sums, mut partials) = (Vec::new(), Vec::new(), 0u32);
    for (i, &id) in scatter.ids.iter().enumerate() {
        let (start, end) = (scatter.starts[i], scatter.starts[i + 1]);
        if end - start <= CHUNK {
            chunks.extend([id, short(start)?, short(end)?, WHOLE]);
            continue;
        }
        let first = partials;
        for from in (start..end).step_by(CHUNK) {
            chunks.extend([id, short(from)?, short((from + CHUNK).min(end))?, partials]);
            partials += 1;
        }
        sums.extend([id, first, partials, 0]);
    }
    let device = Device::Gpu(gpu.clone());
    let plan = &mut scatter.plan;
    plan.tokens
        .set(scatter.order.iter().map(|&(_, token)| token), &device)?;
    plan.chunks.set(chunks, &device)?;
    plan.sums.set(sums, &device)?;
    let (tokens, chunks) = (plan.tokens.all().on(gpu)?, plan.chunks.all().on(gpu)?);
    let sums = plan.sums.all().on(gpu)?;
    gpu.with_scratch(4 * partials as usize * width, |partials| {
        let launch = gpu.launch("embedding_scatter").arg(d).arg(tokens.address());
        let launch = launch.arg(chunks.address()).arg(d_table);
        let launch = launch.arg(partials).size(width);
        // SAFETY: chunks name rows of `d` and of the table, and partial sums that there is room for.
        unsafe { launch.run(Grid::line(plan.chunks.len() / 4, THREADS)) }?;
        let launch = gpu.launch("embedding_scatter_partials").arg(partials);
        let launch = launch.arg(sums.address()).arg(d_table).size(width);
        // SAFETY: as above.
        unsafe { launch.run(Grid::line(plan.sums.len() / 4, THREADS)) }
    })
}

fn short(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(candle_core::Error::wrap)
}

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

/// Tables, each with where its ids are.
type Pairs = [(Address, Address); 3];

/// Ids and shapes are checked.
pub fn gather_sum<const N: usize>(
    gpu: &Arc<Gpu>,
    tables: [&Tensor; N],
    ids: [Numbers<'_, u32>; N],
    out: &Tensor,
) -> Result<()> {
    let (rows, width) = out.dims2()?;
    let out = gpu.address(out, DType::F32)?;
    let mut pairs: Pairs = [(Address::NULL, Address::NULL); 3];
    if N == 0 || N > pairs.len() {
        bail!("embedding: GPUs sum 1 to {} tables, not {N}", pairs.len())
    }
    for (pair, table) in pairs.iter_mut().zip(tables) {
        pair.0 = gpu.address(table, DType::F32)?;
    }
    with_addresses(gpu, &ids, &mut pairs, 0, &mut |pairs| {
        let mut launch = gpu.launch("embedding_gather");
        for &(table, ids) in pairs {
            launch = launch.arg(table).arg(ids);
        }
        // SAFETY: every id is a row of its table; `out` has `rows` rows.
        unsafe { launch.arg(out).size(width).run(Grid::line(rows, THREADS)) }
    })
}

/// Fills in where each list of ids is, one inside of the other, as temporary copies live that long.
fn with_addresses(
    gpu: &Arc<Gpu>,
    ids: &[Numbers<'_, u32>],
    pairs: &mut Pairs,
    at: usize,
    f: &mut dyn FnMut(&Pairs) -> Result<()>,
) -> Result<()> {
    match ids.get(at) {
        None => f(pairs),
        Some(list) => list.on(gpu, |address| {
            pairs[at].1 = address;
            with_addresses(gpu, ids, pairs, at + 1, f)
        }),
    }
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
    let Plan {
        tokens,
        chunks: on_gpu,
        sums: sums_on_gpu,
    } = &mut scatter.plan;
    tokens.set(scatter.order.iter().map(|&(_, token)| token), &device)?;
    on_gpu.set(chunks, &device)?;
    sums_on_gpu.set(sums, &device)?;
    gpu.with_scratch(4 * partials as usize * width, |partials| {
        tokens.all().on(gpu, |tokens| {
            on_gpu.all().on(gpu, |chunks| {
                let launch = gpu
                    .launch("embedding_scatter")
                    .arg(d)
                    .arg(tokens)
                    .arg(chunks);
                let launch = launch.arg(d_table).arg(partials).size(width);
                // SAFETY: chunks name rows of `d` and of the table, and partial sums that there is room for.
                unsafe { launch.run(Grid::line(on_gpu.len() / 4, THREADS)) }
            })
        })?;
        sums_on_gpu.all().on(gpu, |sums| {
            let launch = gpu
                .launch("embedding_scatter_partials")
                .arg(partials)
                .arg(sums);
            let launch = launch.arg(d_table).size(width);
            // SAFETY: as above.
            unsafe { launch.run(Grid::line(sums_on_gpu.len() / 4, THREADS)) }
        })
    })
}

fn short(n: usize) -> Result<u32> {
    u32::try_from(n).map_err(candle_core::Error::wrap)
}

//! Embedding look-up: rows of several tables gathered and summed, and the gradient scattered back.

mod cuda;

use candle_core::{Result, bail};

use super::cpu::Cpu;
use super::numbers::Numbers;
use super::rows::{add, check_lens, for_blocks, for_listed_rows};
use super::{profile, view};
use crate::kernels::tensor::Tensor;

/// Rows of one task.
const ROWS: usize = 16;

/// `out[t] = Σ tables[n][ids[n][t]]`, [T, D].
///
/// # Errors
/// If an id is not a row of its table, or shapes do not fit.
pub fn gather_sum<const N: usize>(
    tables: [&Tensor; N],
    ids: [Numbers<'_, u32>; N],
    out: &Tensor,
) -> Result<()> {
    let (rows, width) = out.dims2()?;
    let _op = profile::op("embedding", 0, 4 * (N + 1) * rows * width);
    for (table, ids) in tables.iter().zip(ids) {
        let (entries, table_width) = table.dims2()?;
        check_lens("embedding", width, &[table_width])?;
        check_lens("embedding", rows, &[ids.len()])?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= entries) {
            bail!("embedding: id {id} is not below {entries}")
        }
    }
    if let Some(gpu) = out.gpu() {
        return cuda::gather_sum(gpu, tables, ids, out);
    }
    let cpu = Cpu::best();
    view::read_list(&tables, |tables: &[&[f32]]| {
        view::write(out, |out| {
            for_blocks(rows.div_ceil(ROWS), [(out, ROWS * width)], |i, [out]| {
                for (r, out) in out.chunks_exact_mut(width).enumerate() {
                    for n in 0..N {
                        let id = ids[n][i * ROWS + r] as usize;
                        let row = &tables[n][id * width..][..width];
                        if n == 0 {
                            out.copy_from_slice(row);
                        } else {
                            add(cpu, out, row);
                        }
                    }
                }
            });
            Ok(())
        })
    })?
}

/// Scratch of [`scatter_add`], kept between calls.
#[derive(Debug, Default)]
pub struct Scatter {
    /// (id, token), sorted.
    order: Vec<(u32, u32)>,
    /// Distinct ids, rising.
    ids: Vec<u32>,
    /// Where each id's run starts in `order`, and its end.
    starts: Vec<usize>,
    plan: cuda::Plan,
}

impl Scatter {
    fn sort(&mut self, ids: &[u32]) {
        self.order.clear();
        self.order.extend(ids.iter().copied().zip(0..));
        self.order.sort_unstable();
        self.ids.clear();
        self.starts.clear();
        for (at, &(id, _)) in self.order.iter().enumerate() {
            if self.ids.last() != Some(&id) {
                self.ids.push(id);
                self.starts.push(at);
            }
        }
        self.starts.push(self.order.len());
    }
}

/// `d_table[ids[t]] += d[t]`: sorted by id, one owner per row, tokens in order, so the sum is the same
/// however many threads there are.
///
/// # Errors
/// If an id is not a row of the table, or shapes do not fit.
pub fn scatter_add(d: &Tensor, ids: &[u32], scatter: &mut Scatter, d_table: &Tensor) -> Result<()> {
    let (rows, width) = d.dims2()?;
    let _op = profile::op("embedding backward", 0, 4 * 3 * rows * width);
    check_lens("embedding backward", rows, &[ids.len()])?;
    let (entries, table_width) = d_table.dims2()?;
    check_lens("embedding backward", width, &[table_width])?;
    scatter.sort(ids);
    if scatter.ids.last().is_some_and(|&id| id as usize >= entries) {
        bail!("embedding backward: an id is not below {entries}")
    }
    if let Some(gpu) = d.gpu() {
        return cuda::scatter_add(gpu, d, scatter, d_table);
    }
    let Scatter {
        order, ids, starts, ..
    } = scatter;
    let cpu = Cpu::best();
    view::read(d, |d| {
        view::write(d_table, |d_table| {
            for_listed_rows(d_table, width, ids, |i, row| {
                for &(_, token) in &order[starts[i]..starts[i + 1]] {
                    add(cpu, row, &d[token as usize * width..][..width]);
                }
            })
        })
    })?
}

#[cfg(test)]
mod tests {
    use crate::kernels::cuda::emulated::devices;
    use candle_core::DType;

    use super::*;
    use crate::kernels::device::Device;

    fn rows(device: &Device, x: &[[f32; 2]]) -> Tensor {
        Tensor::from_vec(x.concat(), (x.len(), 2), device).unwrap()
    }

    #[test]
    fn rows_are_gathered_and_summed() {
        devices().iter().for_each(check_gather);
    }

    fn check_gather(device: &Device) {
        let (a, b) = (
            rows(device, &[[1., 2.], [3., 4.]]),
            rows(device, &[[10., 20.]]),
        );
        let out = Tensor::zeros((3, 2), DType::F32, device).unwrap();
        gather_sum([&a, &b], [(&[1, 0, 1]).into(), (&[0, 0, 0]).into()], &out).unwrap();
        assert_eq!(
            out.to_vec2::<f32>().unwrap(),
            [[13., 24.], [11., 22.], [13., 24.]]
        );
        assert!(gather_sum([&a, &b], [(&[2, 0, 1]).into(), (&[0, 0, 0]).into()], &out).is_err());
        assert!(gather_sum([&a, &b], [(&[1, 0]).into(), (&[0, 0, 0]).into()], &out).is_err());
    }

    #[test]
    fn repeated_ids_add_up_on_top_of_what_was_there() {
        devices().iter().for_each(check_scatter);
    }

    fn check_scatter(device: &Device) {
        let table = rows(device, &[[1., 1.], [0., 0.], [5., 5.]]);
        let d = rows(device, &[[1., 2.], [3., 4.], [5., 6.]]);
        let mut scatter = Scatter::default();
        scatter_add(&d, &[1, 0, 1], &mut scatter, &table).unwrap();
        assert_eq!(
            table.to_vec2::<f32>().unwrap(),
            [[4., 5.], [6., 8.], [5., 5.]]
        );
        assert!(scatter_add(&d, &[1, 0, 3], &mut scatter, &table).is_err());
    }

    /// One id has more tokens than a chunk, others a few: partial sums and whole ones side by side, twice, as
    /// the plan's memory is used again.
    #[test]
    fn long_runs_of_one_id_add_up_on_every_device() {
        for device in devices() {
            let mut scatter = Scatter::default();
            let table = Tensor::zeros((5, 3), DType::F32, &device).unwrap();
            let mut expected = [[0f64; 3]; 5];
            for tokens in [300u32, 150] {
                let ids: Vec<u32> = (0..tokens)
                    .map(|t| if t % 7 == 0 { t % 5 } else { 2 })
                    .collect();
                let values: Vec<f32> = (0..tokens * 3).map(|i| (i as f32 * 0.7).sin()).collect();
                for (row, &id) in values.chunks(3).zip(&ids) {
                    for (sum, &x) in expected[id as usize].iter_mut().zip(row) {
                        *sum += f64::from(x);
                    }
                }
                let d = Tensor::from_vec(values, (tokens as usize, 3), &device).unwrap();
                scatter_add(&d, &ids, &mut scatter, &table).unwrap();
            }
            for (row, expected) in table.to_vec2::<f32>().unwrap().iter().zip(expected) {
                for (x, e) in row.iter().zip(expected) {
                    assert!((f64::from(*x) - e).abs() < 1e-5, "{x} {e} on {device:?}");
                }
            }
        }
    }
}

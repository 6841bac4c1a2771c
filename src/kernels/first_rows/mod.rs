//! The first token's row of every sequence, for heads that pool it; row-wise dropout; other types.

mod cuda;

use candle_core::{Result, bail};

use super::cpu::Cpu;
use super::dropout::Dropout;
use super::element::{Element, for_dtype};
use super::numbers::Numbers;
use super::rows::{add_narrow, check_lens, for_blocks, narrow, widen};
use super::view;
use crate::kernels::tensor::Tensor;

/// `out[b] = x[cu_seqlens[b]]`: [T, D] to [B, D].
///
/// # Errors
/// If shapes or types do not fit.
pub fn gather<'a>(x: &Tensor, cu_seqlens: impl Into<Numbers<'a, u32>>, out: &Tensor) -> Result<()> {
    let cu_seqlens = cu_seqlens.into();
    let (firsts, width) = check(x, cu_seqlens, out)?;
    if let Some(gpu) = x.gpu() {
        return cuda::gather(gpu, x, cu_seqlens, out);
    }
    for_dtype!(x, gather_of(x, firsts, width, out))
}

fn gather_of<T: Element>(x: &Tensor, firsts: &[u32], width: usize, out: &Tensor) -> Result<()> {
    view::read_as(x, |x: &[T]| {
        view::write_as(out, |out: &mut [T]| {
            for (out, &first) in out.chunks_exact_mut(width).zip(firsts) {
                out.copy_from_slice(&x[first as usize * width..][..width]);
            }
            Ok(())
        })
    })?
}

/// `d_x[cu_seqlens[b]] += d[b]`.
///
/// # Errors
/// If shapes or types do not fit.
pub fn scatter_add<'a>(
    d: &Tensor,
    cu_seqlens: impl Into<Numbers<'a, u32>>,
    d_x: &Tensor,
) -> Result<()> {
    let cu_seqlens = cu_seqlens.into();
    let (firsts, width) = check(d_x, cu_seqlens, d)?;
    if let Some(gpu) = d.gpu() {
        return cuda::scatter_add(gpu, d, cu_seqlens, d_x);
    }
    for_dtype!(d, scatter_add_of(d, firsts, width, d_x))
}

fn scatter_add_of<T: Element>(
    d: &Tensor,
    firsts: &[u32],
    width: usize,
    d_x: &Tensor,
) -> Result<()> {
    let (cpu, mut row) = (Cpu::best(), vec![0.0; width]);
    view::read_as(d, |d: &[T]| {
        view::write_as(d_x, |d_x: &mut [T]| {
            for (d, &first) in d.chunks_exact(width).zip(firsts) {
                widen(cpu, d, &mut row);
                add_narrow(cpu, &row, &mut d_x[first as usize * width..][..width]);
            }
            Ok(())
        })
    })?
}

/// Multiplies every row of `x` [T, D] by its dropout factors: forward and backward alike.
///
/// # Errors
/// If there is not one key per row.
pub fn drop_out<'a>(x: &Tensor, dropout: Dropout, keys: impl Into<Numbers<'a, u64>>) -> Result<()> {
    let keys = keys.into();
    if dropout.is_none() {
        return Ok(());
    }
    check_lens("dropout", x.dim(0)?, &[keys.len()])?;
    if let Some(gpu) = x.gpu() {
        return cuda::drop_out(gpu, x, dropout, keys);
    }
    for_dtype!(x, drop_out_of(x, dropout, keys.host()))
}

fn drop_out_of<T: Element>(x: &Tensor, dropout: Dropout, keys: &[u64]) -> Result<()> {
    /// Rows of one task.
    const ROWS: usize = 16;
    let (rows, width) = x.dims2()?;
    let cpu = Cpu::best();
    view::write_as(x, |x: &mut [T]| {
        for_blocks(rows.div_ceil(ROWS), [(x, ROWS * width)], |i, [x]| {
            let mut wide = vec![0.0; width];
            for (row, &key) in x.chunks_exact_mut(width).zip(&keys[i * ROWS..]) {
                widen(cpu, row, &mut wide);
                dropout.apply(key, &mut wide);
                narrow(cpu, &wide, row);
            }
        });
        Ok(())
    })
}

/// `out = x`, of another type of element.
///
/// # Errors
/// If shapes do not fit.
pub fn cast(x: &Tensor, out: &Tensor) -> Result<()> {
    check_lens("cast", x.elem_count(), &[out.elem_count()])?;
    if let Some(gpu) = x.gpu() {
        return cuda::cast(gpu, x, out);
    }
    let cpu = Cpu::best();
    let mut wide = vec![0.0; x.elem_count()];
    for_dtype!(x, widen_tensor(cpu, x, &mut wide))?;
    for_dtype!(out, narrow_tensor(cpu, &wide, out))
}

fn widen_tensor<T: Element>(cpu: Cpu, x: &Tensor, out: &mut [f32]) -> Result<()> {
    view::read_as(x, |x: &[T]| widen(cpu, x, out))
}

fn narrow_tensor<T: Element>(cpu: Cpu, x: &[f32], out: &Tensor) -> Result<()> {
    view::write_as(out, |out: &mut [T]| {
        narrow(cpu, x, out);
        Ok(())
    })
}

fn check<'a>(
    all: &Tensor,
    cu_seqlens: Numbers<'a, u32>,
    first: &Tensor,
) -> Result<(&'a [u32], usize)> {
    let ((rows, width), (sequences, first_width)) = (all.dims2()?, first.dims2()?);
    let firsts = &cu_seqlens.host()[..cu_seqlens.len().saturating_sub(1)];
    check_lens("first rows", width, &[first_width])?;
    check_lens("first rows", firsts.len(), &[sequences])?;
    if firsts.iter().any(|&first| first as usize >= rows) {
        bail!("first rows: a sequence starts behind the last row")
    }
    Ok((firsts, width))
}

#[cfg(test)]
mod tests {
    use crate::kernels::cuda::emulated::devices;
    use candle_core::DType;

    use super::*;
    use crate::kernels::device::Device;

    #[test]
    fn gathered_rows_scatter_back_to_where_they_came_from() {
        devices().iter().for_each(check_rows);
    }

    fn check_rows(device: &Device) {
        let numbers = (0u8..10).map(f32::from).collect();
        let x = Tensor::from_vec(numbers, (5, 2), device).unwrap();
        let first = Tensor::zeros((2, 2), DType::F32, device).unwrap();
        gather(&x, &[0, 3, 5], &first).unwrap();
        assert_eq!(first.to_vec2::<f32>().unwrap(), [[0., 1.], [6., 7.]]);
        scatter_add(&first, &[0, 3, 5], &x).unwrap();
        assert_eq!(
            x.to_vec2::<f32>().unwrap(),
            [[0., 2.], [2., 3.], [4., 5.], [12., 14.], [8., 9.]]
        );
        assert!(gather(&x, &[0, 5, 6], &first).is_err());
        assert!(gather(&x, &[0, 5], &first).is_err());
    }

    #[test]
    fn rows_are_multiplied_by_their_own_factors() {
        devices().iter().for_each(check_factors);
    }

    fn check_factors(device: &Device) {
        let dropout = Dropout::new(0.4, 1, 2, 3);
        let x = Tensor::ones((20, 150), DType::F32, device).unwrap();
        let keys: Vec<u64> = (100..120).collect();
        drop_out(&x, dropout, &keys).unwrap();
        for (row, key) in x.to_vec2::<f32>().unwrap().iter().zip(keys) {
            let mut factors = vec![0f32; 150];
            dropout.factors(key, &mut factors);
            assert_eq!(*row, factors);
        }
        assert!(drop_out(&x, dropout, &[1]).is_err());
    }

    #[test]
    fn casts_round_to_the_nearest_and_back() {
        for device in devices() {
            let long: Vec<f32> = (0..1003).map(|i| (i as f32 * 0.37).sin()).collect();
            let x = Tensor::from_slice(&long, 1003, &device).unwrap();
            let short = Tensor::zeros(1003, DType::BF16, &device).unwrap();
            let back = x.zeros_like().unwrap();
            cast(&x, &short).unwrap();
            cast(&short, &back).unwrap();
            let expected = long.iter().map(|&x| half::bf16::from_f32(x).to_f32());
            assert!(back.to_vec1::<f32>().unwrap().into_iter().eq(expected));
            assert!(cast(&x, &Tensor::zeros(3, DType::BF16, &device).unwrap()).is_err());
        }
    }
}

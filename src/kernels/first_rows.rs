//! The first token's row of every sequence, for heads that pool it, and row-wise dropout.

use candle_core::{Result, Tensor, bail};

use super::dropout::Dropout;
use super::rows::{check_lens, for_blocks};
use super::view;

/// `out[b] = x[cu_seqlens[b]]`: [T, D] to [B, D].
///
/// # Errors
/// If shapes do not fit.
pub fn gather(x: &Tensor, cu_seqlens: &[u32], out: &Tensor) -> Result<()> {
    let (firsts, width) = check(x, cu_seqlens, out)?;
    view::read(x, |x| {
        view::write(out, |out| {
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
/// If shapes do not fit.
pub fn scatter_add(d: &Tensor, cu_seqlens: &[u32], d_x: &Tensor) -> Result<()> {
    let (firsts, width) = check(d_x, cu_seqlens, d)?;
    view::read(d, |d| {
        view::write(d_x, |d_x| {
            for (d, &first) in d.chunks_exact(width).zip(firsts) {
                let row = &mut d_x[first as usize * width..][..width];
                row.iter_mut().zip(d).for_each(|(x, d)| *x += d);
            }
            Ok(())
        })
    })?
}

/// Multiplies every row of `x` [T, D] by its dropout factors: forward and backward alike.
///
/// # Errors
/// If there is not one key per row.
pub fn drop_out(x: &Tensor, dropout: Dropout, keys: &[u64]) -> Result<()> {
    /// Rows of one task.
    const ROWS: usize = 16;
    if dropout.is_none() {
        return Ok(());
    }
    let (rows, width) = x.dims2()?;
    check_lens("dropout", rows, &[keys.len()])?;
    view::write(x, |x| {
        for_blocks(rows.div_ceil(ROWS), [(x, ROWS * width)], |i, [x]| {
            for (row, &key) in x.chunks_exact_mut(width).zip(&keys[i * ROWS..]) {
                dropout.apply(key, row);
            }
        });
        Ok(())
    })
}

fn check<'a>(all: &Tensor, cu_seqlens: &'a [u32], first: &Tensor) -> Result<(&'a [u32], usize)> {
    let ((rows, width), (sequences, first_width)) = (all.dims2()?, first.dims2()?);
    let firsts = &cu_seqlens[..cu_seqlens.len().saturating_sub(1)];
    check_lens("first rows", width, &[first_width])?;
    check_lens("first rows", firsts.len(), &[sequences])?;
    if firsts.iter().any(|&first| first as usize >= rows) {
        bail!("first rows: a sequence starts behind the last row")
    }
    Ok((firsts, width))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn gathered_rows_scatter_back_to_where_they_came_from() {
        let x = Tensor::arange(0f32, 10.0, &Device::Cpu)
            .unwrap()
            .reshape((5, 2))
            .unwrap();
        let first = Tensor::zeros((2, 2), DType::F32, &Device::Cpu).unwrap();
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
        let dropout = Dropout::new(0.4, 1, 2, 3);
        let x = Tensor::ones((20, 50), DType::F32, &Device::Cpu).unwrap();
        let keys: Vec<u64> = (100..120).collect();
        drop_out(&x, dropout, &keys).unwrap();
        for (row, key) in x.to_vec2::<f32>().unwrap().iter().zip(keys) {
            let mut factors = vec![0f32; 50];
            dropout.factors(key, &mut factors);
            assert_eq!(*row, factors);
        }
        assert!(drop_out(&x, dropout, &[1]).is_err());
    }
}

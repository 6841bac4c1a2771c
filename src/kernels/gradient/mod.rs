//! What is done to gradients as they are, whatever they are of: zeroing, and the sum of squares.

pub mod cuda;

use candle_core::Result;

use super::cpu::{Cpu, multiversion};
use super::parts::Parts;
use super::pool::Disjoint;
use super::profile;
use super::rows::LANES;

/// Sets these parts to zero.
///
/// # Errors
/// If there are no such rows.
pub fn zero(grad: &mut [f32], parts: Parts) -> Result<()> {
    let len = grad.len();
    parts.check(len)?;
    let _op = profile::op("zero gradients", 0, 4 * parts.elements(len));
    let grad = Disjoint::new(grad);
    parts.for_blocks(len, |_, range| {
        // SAFETY: blocks do not overlap, and each has one task.
        unsafe { grad.slice(range) }.fill(0.0);
    });
    Ok(())
}

/// The sum of the squares of these parts. In f64, where squares of finite f32 numbers cannot overflow; block by
/// block in order, so that neither threads nor rows of zeros that are left out change a bit.
///
/// # Errors
/// If there are no such rows.
pub fn sum_of_squares(grad: &[f32], parts: Parts) -> Result<f64> {
    sum_of_squares_on(Cpu::best(), grad, parts)
}

fn sum_of_squares_on(cpu: Cpu, grad: &[f32], parts: Parts) -> Result<f64> {
    let len = grad.len();
    parts.check(len)?;
    let _op = profile::op("gradient norm", 0, 4 * parts.elements(len));
    let mut sums = vec![0.0; parts.blocks(len)];
    let shared = Disjoint::new(&mut sums);
    parts.for_blocks(len, |block, range| {
        // SAFETY: each block has one task.
        let sum = unsafe { shared.slice(block..block + 1) };
        block_sum(cpu, &grad[range], &mut sum[0]);
    });
    Ok(sums.iter().sum())
}

multiversion! {
    /// In f64 the square of an f32 is exact: a fused multiply-add would give the same.
    fn block_sum(block: &[f32], sum: &mut f64) {
        let mut lanes = [0f64; LANES];
        let (groups, rest) = block.as_chunks::<LANES>();
        for group in groups {
            for lane in 0..LANES {
                let x = f64::from(group[lane]);
                lanes[lane] += x * x;
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(x) * f64::from(x);
        }
        *sum = lanes.iter().sum();
    }
}

#[cfg(test)]
mod tests {
    use super::super::parts::BLOCK;
    use super::super::pool::set_threads;
    use super::*;

    fn wave(len: usize) -> Vec<f32> {
        (0..len).map(|i| (i as f32 * 0.37).sin()).collect()
    }

    #[test]
    fn every_cpu_and_any_number_of_threads_give_the_same_bits() {
        let grad = wave(3 * BLOCK + 21);
        let expected: f64 = grad.iter().map(|&x| f64::from(x).powi(2)).sum();
        let first = sum_of_squares(&grad, Parts::All).unwrap();
        assert!((first / expected - 1.0).abs() < 1e-12);
        let before = super::super::pool::threads();
        for threads in [1, 2, 5] {
            set_threads(threads);
            for cpu in Cpu::each() {
                let sum = sum_of_squares_on(cpu, &grad, Parts::All).unwrap();
                assert_eq!(sum.to_bits(), first.to_bits(), "{cpu:?}, {threads} threads");
            }
        }
        set_threads(before);
    }

    #[test]
    fn rows_of_zeros_left_out_change_no_bit() {
        let width = 37;
        let mut grad = vec![0f32; 3000 * width];
        let rows: Vec<u32> = (0..3000).filter(|row| row * row % 7 == 2).collect();
        for &row in &rows {
            let at = row as usize * width;
            grad[at..at + width].copy_from_slice(&wave(3000 * width)[at..at + width]);
        }
        let all: Vec<u32> = (0..3000).collect();
        let sum = |rows| sum_of_squares(&grad, Parts::Rows { rows, width }).unwrap();
        assert!(sum(&rows) > 1.0);
        assert_eq!(sum(&rows).to_bits(), sum(&all).to_bits());
    }

    #[test]
    fn only_listed_rows_become_zero() {
        let mut grad = vec![1f32; 8];
        let parts = |rows| Parts::Rows { rows, width: 2 };
        zero(&mut grad, parts(&[0, 3])).unwrap();
        assert_eq!(grad, [0., 0., 1., 1., 1., 1., 0., 0.]);
        assert_eq!(sum_of_squares(&grad, parts(&[0, 2])).unwrap(), 2.0);
        assert!(zero(&mut grad, parts(&[4])).is_err());
        assert!(sum_of_squares(&grad, parts(&[4])).is_err());
        let mut long = wave(2 * BLOCK + 5);
        zero(&mut long, Parts::All).unwrap();
        assert!(long.iter().all(|&x| x == 0.0));
    }
}

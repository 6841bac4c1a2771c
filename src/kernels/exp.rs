//! The exponential function in f32, written so that loops over it become vector code.

use super::cpu::multiply_add;
use super::lanes::Lanes;

/// e^x for x in [-87, 88], within 2e-7 of the truth relatively; beyond, the value at the nearer end.
/// NaN stays NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r is the polynomial of Cephes' `expf` (Moshier 1989), and 2^n is
/// put together from its bits.
#[inline(always)]
pub fn exp<S: Lanes>(x: S) -> S {
    /// Adding it leaves the rounded integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// The upper part of ln 2: few enough bits for n times it to be exact.
    const LN_2_UPPER: f32 = 0.693_359_4;
    const LN_2_LOWER: f32 = -2.121_944_4e-4;
    let x = S::splat(88.0).smaller(S::splat(-87.0).larger(x));
    let shifted = x.mul_add(S::splat(std::f32::consts::LOG2_E), S::splat(ROUND));
    let n = shifted.sub(S::splat(ROUND));
    let r = n.mul_add(S::splat(-LN_2_UPPER), x);
    let r = n.mul_add(S::splat(-LN_2_LOWER), r);
    let p = S::splat(1.987_569_2e-4);
    let p = p.mul_add(r, S::splat(1.398_199_9e-3));
    let p = p.mul_add(r, S::splat(8.333_452e-3));
    let p = p.mul_add(r, S::splat(4.166_579_6e-2));
    let p = p.mul_add(r, S::splat(1.666_666_5e-1));
    let p = p.mul_add(r, S::splat(0.5));
    let e = p.mul_add(r.mul(r), r.add(S::splat(1.0)));
    e.mul(shifted.power_of_two())
}

/// [`exp`] of one number, by the same steps, for loops that are left to the compiler.
#[inline(always)]
pub fn exp_scalar<const FUSED: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LN_2_UPPER: f32 = 0.693_359_4;
    const LN_2_LOWER: f32 = -2.121_944_4e-4;
    const COEFFICIENTS: [f32; 5] = [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ];
    // Comparisons, as `max` and `min` would turn NaN into a number.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = multiply_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = multiply_add::<FUSED>(n, -LN_2_UPPER, x);
    let r = multiply_add::<FUSED>(n, -LN_2_LOWER, r);
    let mut p = 1.987_569_2e-4;
    for coefficient in COEFFICIENTS {
        p = multiply_add::<FUSED>(p, r, coefficient);
    }
    let e = multiply_add::<FUSED>(p, r * r, r + 1.0);
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()));
    e * power
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::{Cpu, multiversion};

    multiversion! {
        fn each<S: Lanes>(row: &mut [f32; 16]) {
            exp(S::load(row)).store(row);
        }
    }

    #[test]
    fn one_number_is_as_sixteen() {
        for i in -900..900 {
            let x = i as f32 / 10.0;
            let mut row = [x; 16];
            each(Cpu::best(), &mut row);
            let alone = [exp_scalar::<true>(x), exp_scalar::<false>(x)];
            for e in alone {
                assert!((e - row[3]).abs() <= 3e-7 * row[3], "{x}: {e} {}", row[3]);
            }
        }
        assert!(exp_scalar::<false>(f32::NAN).is_nan());
    }

    #[test]
    fn it_is_within_two_ten_millionths() {
        for cpu in Cpu::each() {
            for i in (-87_000..=88_000).step_by(16) {
                let x: [f32; 16] =
                    std::array::from_fn(|lane| (i + lane as i32).min(88_000) as f32 / 1000.0);
                let mut row = x;
                each(cpu, &mut row);
                for (x, value) in x.iter().zip(row) {
                    let error = (f64::from(value) / f64::from(*x).exp() - 1.0).abs();
                    assert!(error < 2e-7, "{cpu:?} {x}: {error}");
                }
            }
        }
    }

    #[test]
    fn the_ends_and_nan() {
        for cpu in Cpu::each() {
            let mut row = [0.0; 16];
            row[..4].copy_from_slice(&[f32::NEG_INFINITY, 1000.0, 0.0, f32::NAN]);
            each(cpu, &mut row);
            assert!(row[0] < 2e-38 && row[1] > 1e38 && row[2] == 1.0 && row[3].is_nan());
        }
    }
}

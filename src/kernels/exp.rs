//! The exponential function in f32, written so that loops over it become vector code.

use super::cpu::multiply_add;

/// e^x for x in [-87, 88], within 2e-7 of the truth relatively; beyond, the value at the nearer end.
/// NaN stays NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; e^r is the polynomial of Cephes' `expf` (Moshier 1989), and 2^n is
/// put together from its bits.
#[inline(always)]
pub fn exp<const FUSED: bool>(x: f32) -> f32 {
    const LOWEST: f32 = -87.0;
    const HIGHEST: f32 = 88.0;
    /// Adding it leaves the rounded integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    /// The upper part of ln 2: few enough bits for n times it to be exact.
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
    let x = if x < LOWEST { LOWEST } else { x };
    let x = if x > HIGHEST { HIGHEST } else { x };
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

    #[test]
    fn it_is_within_two_ten_millionths() {
        for i in -87_000..=88_000 {
            let x = i as f32 / 1000.0;
            let expected = f64::from(x).exp();
            for value in [exp::<true>(x), exp::<false>(x)] {
                let error = (f64::from(value) / expected - 1.0).abs();
                assert!(error < 2e-7, "{x}: {error}");
            }
        }
    }

    #[test]
    fn the_ends_and_nan() {
        assert!(exp::<true>(f32::NEG_INFINITY) < 2e-38);
        assert!(exp::<false>(1000.0) > 1e38);
        assert_eq!(exp::<true>(0.0), 1.0);
        assert!(exp::<true>(f32::NAN).is_nan() && exp::<false>(f32::NAN).is_nan());
    }
}

//! GELU (Hendrycks and Gimpel 2016): exact, `x Φ(x)`, and the tanh approximation BERT's authors also used.
//!
//! Φ comes from erfc, not from 1 + erf, so that the left tail keeps its relative precision; one exponential
//! serves value and derivative.

/// The integer nearest to a small f32 is in the low bits of its sum with this (1.5 * 2^23).
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts, so that `k * ln 2` is subtracted with more than f32 precision.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `exp(z^2) erfc(z) = t (P0 + P1 t + …)` with `t = 1 / (1 + 0.3 z)`: a fit for z in [0, 12] with equal
/// relative error, 6e-8 at worst.
const ERFC: [f32; 9] = [
    0.169_189_35,
    0.170_690_9,
    0.148_521_51,
    0.214_180_34,
    -0.092_823_245,
    0.544_962_5,
    -0.509_768_2,
    0.484_299_54,
    -0.129_252_73,
];

/// e^x for x <= 0; about 1e-38 below -87.
#[inline(always)]
fn exp_negative(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = x - k * LN_2_HIGH - k * LN_2_LOW;
    // Taylor's series; r is within ±0.35, where the term of degree 8 is below 1e-8.
    let p = 1.0 / 720.0 + r * (1.0 / 5040.0);
    let p = 1.0 / 120.0 + r * p;
    let p = 1.0 / 24.0 + r * p;
    let p = 1.0 / 6.0 + r * p;
    let p = 0.5 + r * p;
    let p = 1.0 + r * (1.0 + r * p);
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3F80_0000))
}

/// (Φ(x), exp(-x²/2)).
#[inline(always)]
fn normal(x: f32) -> (f32, f32) {
    let e = exp_negative(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.3 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let mut p = ERFC[8];
    for i in (0..8).rev() {
        p = p * t + ERFC[i];
    }
    let tail = 0.5 * e * t * p;
    (if x > 0.0 { 1.0 - tail } else { tail }, e)
}

/// (σ(2u), its derivative with respect to u), where u is the tanh approximation's argument.
#[inline(always)]
fn logistic(u: f32) -> (f32, f32) {
    let e = exp_negative(-2.0 * u.abs());
    let q = 1.0 / (1.0 + e);
    (if u > 0.0 { q } else { e * q }, 2.0 * e * q * q)
}

const TANH_SCALE: f32 = 0.797_884_6; // sqrt(2/π)
const TANH_CUBIC: f32 = 0.044_715;

vectorised! {
    /// `out = x Φ(x)`.
    pub(super) fn gelu(x: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * normal(x).0;
        }
    }
}

vectorised! {
    /// `d *= Φ(x) + x φ(x)`.
    pub(super) fn gelu_backward(x: &[f32], d: &mut [f32]) {
        const FRAC_1_SQRT_2_PI: f32 = 0.398_942_3;
        for (d, &x) in d.iter_mut().zip(x) {
            let (phi, e) = normal(x);
            *d *= phi + x * e * FRAC_1_SQRT_2_PI;
        }
    }
}

vectorised! {
    /// `out = x (1 + tanh(u)) / 2` with `u = sqrt(2/π) (x + 0.044715 x³)`; the same as `x σ(2u)`.
    pub(super) fn gelu_tanh(x: &[f32], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = x * logistic(TANH_SCALE * (x + TANH_CUBIC * x * x * x)).0;
        }
    }
}

vectorised! {
    /// `d *= σ(2u) + x σ'(2u) u'`.
    pub(super) fn gelu_tanh_backward(x: &[f32], d: &mut [f32]) {
        for (d, &x) in d.iter_mut().zip(x) {
            let (s, ds) = logistic(TANH_SCALE * (x + TANH_CUBIC * x * x * x));
            *d *= s + x * ds * TANH_SCALE * (1.0 + 3.0 * TANH_CUBIC * x * x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Φ in f64: the series of erf near 0, the continued fraction of erfc in the tails.
    fn cdf(x: f64) -> f64 {
        let z = x.abs() / std::f64::consts::SQRT_2;
        let tail = if z < 2.5 {
            let (mut term, mut sum) = (z, z);
            for n in 1..100 {
                let n = f64::from(n);
                term *= -z * z / n;
                sum += term / (2.0 * n + 1.0);
            }
            0.5 - sum / std::f64::consts::PI.sqrt()
        } else {
            let fraction = (1..120)
                .rev()
                .fold(z, |acc, n| z + f64::from(n) / 2.0 / acc);
            0.5 * (-z * z).exp() / fraction / std::f64::consts::PI.sqrt()
        };
        if x > 0.0 { 1.0 - tail } else { tail }
    }

    fn tanh_form(x: f64) -> f64 {
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
        // 1 + tanh(u) without cancellation.
        x / (1.0 + (-2.0 * u).exp())
    }

    fn points() -> Vec<f32> {
        (-1200..=1200).map(|i| i as f32 * 0.01).collect()
    }

    /// Forward against the reference, backward against its central differences.
    fn check(
        reference: fn(f64) -> f64,
        forward: fn(&[f32], &mut [f32]),
        backward: fn(&[f32], &mut [f32]),
    ) {
        let x = points();
        let (mut y, mut d) = (vec![0f32; x.len()], vec![2f32; x.len()]);
        forward(&x, &mut y);
        backward(&x, &mut d);
        for ((&x, &y), &d) in x.iter().zip(&y).zip(&d) {
            let expected = reference(f64::from(x));
            let relative = 3e-7 * (1.0 + f64::from(x * x));
            assert!(
                (f64::from(y) - expected).abs() <= expected.abs() * relative + 1e-36,
                "{x}: {y} {expected}"
            );
            let h = 1e-5;
            let slope = (reference(f64::from(x) + h) - reference(f64::from(x) - h)) / (2.0 * h);
            assert!(
                (f64::from(d) - 2.0 * slope).abs() < 2e-6,
                "{x}: {d} {slope}"
            );
        }
    }

    #[test]
    fn exact_gelu_and_its_derivative() {
        check(|x| x * cdf(x), gelu, gelu_backward);
        // Known values of x Φ(x).
        let mut y = [0f32; 2];
        gelu(&[1.0, -1.0], &mut y);
        assert!((y[0] - 0.841_344_7).abs() < 1e-7 && (y[1] + 0.158_655_25).abs() < 1e-7);
    }

    #[test]
    fn tanh_gelu_and_its_derivative() {
        check(tanh_form, gelu_tanh, gelu_tanh_backward);
    }

    #[test]
    fn nan_stays_nan() {
        let mut y = [0f32];
        gelu(&[f32::NAN], &mut y);
        assert!(y[0].is_nan());
        gelu_tanh(&[f32::NAN], &mut y);
        assert!(y[0].is_nan());
    }
}

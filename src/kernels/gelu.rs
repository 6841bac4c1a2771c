//! GELU (Hendrycks and Gimpel 2016): exact, `x Φ(x)`, and the tanh approximation BERT's authors also used.
//!
//! Φ comes from erfc, not from 1 + erf, so that the left tail keeps its relative precision; one exponential
//! serves value and derivative.

use super::cpu::{multiply_add, multiversion};
use super::exp::exp_scalar as exp;

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

/// (Φ(x), exp(-x²/2)).
#[inline(always)]
fn normal<const FUSED: bool>(x: f32) -> (f32, f32) {
    let e = exp::<FUSED>(-0.5 * x * x);
    let t = 1.0 / (1.0 + 0.3 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
    let mut p = ERFC[8];
    for i in (0..8).rev() {
        p = multiply_add::<FUSED>(p, t, ERFC[i]);
    }
    let tail = 0.5 * e * t * p;
    (if x > 0.0 { 1.0 - tail } else { tail }, e)
}

/// (σ(2u), its derivative with respect to u), where u is the tanh approximation's argument.
#[inline(always)]
fn logistic<const FUSED: bool>(u: f32) -> (f32, f32) {
    let e = exp::<FUSED>(-2.0 * u.abs());
    let q = 1.0 / (1.0 + e);
    (if u > 0.0 { q } else { e * q }, 2.0 * e * q * q)
}

const TANH_SCALE: f32 = 0.797_884_6; // sqrt(2/π)
const TANH_CUBIC: f32 = 0.044_715;

multiversion! {
    /// `x = x Φ(x)`.
    pub(super) fn gelu(x: &mut [f32]) {
        for x in x {
            *x *= normal::<FUSED>(*x).0;
        }
    }
}

const FRAC_1_SQRT_2_PI: f32 = 0.398_942_3;

multiversion! {
    /// `d *= Φ(x) + x φ(x)`.
    pub(super) fn gelu_backward(x: &[f32], d: &mut [f32]) {
        for (d, &x) in d.iter_mut().zip(x) {
            let (phi, e) = normal::<FUSED>(x);
            *d *= phi + x * e * FRAC_1_SQRT_2_PI;
        }
    }
}

multiversion! {
    /// Both at once: [`gelu_backward`], then [`gelu`].
    pub(super) fn gelu_both(x: &mut [f32], d: &mut [f32]) {
        for (d, x) in d.iter_mut().zip(x) {
            let (phi, e) = normal::<FUSED>(*x);
            *d *= phi + *x * e * FRAC_1_SQRT_2_PI;
            *x *= phi;
        }
    }
}

multiversion! {
    /// `x = x (1 + tanh(u)) / 2` with `u = sqrt(2/π) (x + 0.044715 x³)`; the same as `x σ(2u)`.
    pub(super) fn gelu_tanh(x: &mut [f32]) {
        for x in x {
            *x *= logistic::<FUSED>(TANH_SCALE * (*x + TANH_CUBIC * *x * *x * *x)).0;
        }
    }
}

multiversion! {
    /// `d *= σ(2u) + x σ'(2u) u'`.
    pub(super) fn gelu_tanh_backward(x: &[f32], d: &mut [f32]) {
        for (d, &x) in d.iter_mut().zip(x) {
            let (s, ds) = logistic::<FUSED>(TANH_SCALE * (x + TANH_CUBIC * x * x * x));
            *d *= s + x * ds * TANH_SCALE * (1.0 + 3.0 * TANH_CUBIC * x * x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::Cpu;

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
        cpu: Cpu,
        reference: fn(f64) -> f64,
        forward: fn(Cpu, &mut [f32]),
        backward: fn(Cpu, &[f32], &mut [f32]),
    ) {
        let x = points();
        let (mut y, mut d) = (x.clone(), vec![2f32; x.len()]);
        forward(cpu, &mut y);
        backward(cpu, &x, &mut d);
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
        for cpu in Cpu::each() {
            check(cpu, |x| x * cdf(x), gelu, gelu_backward);
        }
        // Known values of x Φ(x).
        let mut y = [1f32, -1.0];
        gelu(Cpu::best(), &mut y);
        assert!((y[0] - 0.841_344_7).abs() < 1e-7 && (y[1] + 0.158_655_25).abs() < 1e-7);
    }

    #[test]
    fn tanh_gelu_and_its_derivative() {
        for cpu in Cpu::each() {
            check(cpu, tanh_form, gelu_tanh, gelu_tanh_backward);
        }
    }

    #[test]
    fn nan_stays_nan() {
        let mut y = [f32::NAN];
        gelu(Cpu::best(), &mut y);
        assert!(y[0].is_nan());
        gelu_tanh(Cpu::best(), &mut y);
        assert!(y[0].is_nan());
    }
}

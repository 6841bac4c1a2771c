//! The AdamW update: one pass over a parameter, its gradient and its moments, in place.
//!
//! Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", in PyTorch's form (`torch.optim.adamw`,
//! `_single_tensor_adamw`). Elements are independent, so the result does not depend on the number of threads.

use std::sync::Mutex;

use candle_core::{Result, bail};

use super::pool::parallel_for;
use super::profile;

/// Elements per task: four streams of it (512 KiB) fit a core's second-level cache.
const CHUNK: usize = 1 << 15;

/// The scalars of one update of one parameter.
#[derive(Clone, Copy, Debug)]
pub struct AdamWUpdate {
    /// The gradient is multiplied by this first: the clip coefficient.
    pub grad_scale: f32,
    /// The parameter is multiplied by this first: 1 - lr * weight_decay, or 1.
    pub decay: f32,
    /// Second-moment decay.
    pub beta2: f32,
    /// 1 - beta1 and 1 - beta2, rounded once (1 - 0.999 loses 4 digits when taken in f32).
    pub rest: [f32; 2],
    /// lr / (1 - beta1^t)
    pub step_size: f32,
    /// 1 / sqrt(1 - beta2^t)
    pub second_scale: f32,
    /// Added to the denominator.
    pub epsilon: f32,
}

impl AdamWUpdate {
    /// The scalars of update number `step`, counted from 1.
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the arithmetic below is f32; each scalar is rounded once"
    )]
    pub fn new(
        step: u64,
        lr: f64,
        weight_decay: f64,
        (beta1, beta2): (f64, f64),
        epsilon: f64,
        grad_scale: f32,
    ) -> Self {
        // Beyond 2^31 steps the powers are 0 all the same.
        let power = |beta: f64| beta.powi(i32::try_from(step).unwrap_or(i32::MAX));
        Self {
            grad_scale,
            decay: (1.0 - lr * weight_decay) as f32,
            beta2: beta2 as f32,
            rest: [(1.0 - beta1) as f32, (1.0 - beta2) as f32],
            step_size: (lr / (1.0 - power(beta1))) as f32,
            second_scale: (1.0 / (1.0 - power(beta2)).sqrt()) as f32,
            epsilon: epsilon as f32,
        }
    }
}

/// Updates `value`, `exp_avg` (m) and `exp_avg_sq` (v), all of one length:
/// g *= grad_scale; m += (1-β1) (g - m); v = β2 v + (1-β2) g²;
/// value = decay · value - step_size · m / (√v · second_scale + ε).
///
/// # Errors
/// If the lengths differ.
pub fn adamw(
    update: &AdamWUpdate,
    value: &mut [f32],
    grad: &[f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
) -> Result<()> {
    let n = value.len();
    if [grad.len(), exp_avg.len(), exp_avg_sq.len()] != [n; 3] {
        bail!("adamw: parameter, gradient and moments differ in length")
    }
    let _op = profile::op("adamw", 0, 7 * 4 * n);
    // Each task takes its own slices out of its own lock, which nobody else wants: cheaper than a cache miss, and
    // without `unsafe`.
    let tasks: Vec<_> = value
        .chunks_mut(CHUNK)
        .zip(grad.chunks(CHUNK))
        .zip(exp_avg.chunks_mut(CHUNK).zip(exp_avg_sq.chunks_mut(CHUNK)))
        .map(|((value, grad), (m, v))| Mutex::new((value, grad, m, v)))
        .collect();
    parallel_for(tasks.len(), |task| {
        if let Ok(mut slices) = tasks[task].lock() {
            let (value, grad, m, v) = &mut *slices;
            chunk(update, value, grad, m, v);
        }
    });
    Ok(())
}

fn chunk(update: &AdamWUpdate, value: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32]) {
    let u = *update;
    // Equal lengths let the compiler drop the bounds checks and use vector registers.
    let n = value.len();
    let (grad, m, v) = (&grad[..n], &mut m[..n], &mut v[..n]);
    for i in 0..n {
        let g = grad[i] * u.grad_scale;
        m[i] += u.rest[0] * (g - m[i]);
        v[i] = u.beta2 * v[i] + u.rest[1] * g * g;
        let denominator = v[i].sqrt() * u.second_scale + u.epsilon;
        value[i] = value[i] * u.decay - u.step_size * m[i] / denominator;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slow reference: the formulas in f64, one element at a time.
    fn reference(
        step: i32,
        (lr, decay): (f64, f64),
        grad_scale: f64,
        (p, g, m, v): (f64, f64, f64, f64),
    ) -> (f64, f64, f64) {
        let g = g * grad_scale;
        let m = 0.9 * m + 0.1 * g;
        let v = 0.999 * v + 0.001 * g * g;
        let m_hat = m / (1.0 - 0.9f64.powi(step));
        let v_hat = v / (1.0 - 0.999f64.powi(step));
        (
            p * (1.0 - lr * decay) - lr * m_hat / (v_hat.sqrt() + 1e-8),
            m,
            v,
        )
    }

    #[test]
    fn every_element_follows_the_reference_whatever_its_chunk() {
        let n = 2 * CHUNK + 17;
        let wave = |scale: f32| {
            (0..n)
                .map(|i| (i as f32 * 0.37).sin() * scale)
                .collect::<Vec<_>>()
        };
        let (mut p, g, mut m) = (wave(1.0), wave(0.3), wave(0.1));
        let mut v: Vec<f32> = wave(0.1).iter().map(|x| x * x).collect();
        let before: Vec<_> = (0..n).map(|i| (p[i], g[i], m[i], v[i])).collect();
        let update = AdamWUpdate::new(7, 1e-2, 0.1, (0.9, 0.999), 1e-8, 0.5);
        adamw(&update, &mut p, &g, &mut m, &mut v).unwrap();
        for (i, &(p0, g0, m0, v0)) in before.iter().enumerate() {
            let start = (f64::from(p0), f64::from(g0), f64::from(m0), f64::from(v0));
            let expected = reference(7, (1e-2, 0.1), 0.5, start);
            assert!((f64::from(p[i]) - expected.0).abs() < 1e-6, "element {i}");
            assert!((f64::from(m[i]) - expected.1).abs() < 1e-7);
            assert!((f64::from(v[i]) - expected.2).abs() < 1e-8);
        }
    }

    #[test]
    fn differing_lengths_are_refused() {
        let update = AdamWUpdate::new(1, 1e-3, 0.0, (0.9, 0.999), 1e-8, 1.0);
        let mut three = [vec![0f32; 3], vec![0f32; 3], vec![0f32; 3]];
        let [p, m, v] = &mut three;
        assert!(adamw(&update, p, &[0.0; 2], m, v).is_err());
        assert!(adamw(&update, &mut p[..2], &[0.0; 3], m, v).is_err());
        assert!(adamw(&update, p, &[0.0; 3], m, v).is_ok());
    }

    #[test]
    fn a_zero_gradient_without_moments_changes_nothing() {
        let update = AdamWUpdate::new(1, 1e-3, 0.0, (0.9, 0.999), 1e-8, 1.0);
        let (mut p, mut m, mut v) = ([0.5f32; 3], [0f32; 3], [0f32; 3]);
        adamw(&update, &mut p, &[0.0; 3], &mut m, &mut v).unwrap();
        assert_eq!((p, m, v), ([0.5; 3], [0.0; 3], [0.0; 3]));
    }
}

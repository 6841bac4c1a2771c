//! The AdamW update: one pass over a parameter, its gradient and its moments, in place.
//!
//! Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", in PyTorch's form (`torch.optim.adamw`,
//! `_single_tensor_adamw`). Elements are independent, so the result does not depend on the number of threads.

pub mod cuda;

use candle_core::{Result, bail};

use super::cpu::{Cpu, multiversion};
use super::lanes::LANES;
use super::parts::Parts;
use super::pool::Disjoint;
use super::profile;

/// The scalars of one update of one parameter. Laid out as `Update` in `adamw.cu`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
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

/// Updates these parts of `value`, `exp_avg` (m) and `exp_avg_sq` (v), all of one length:
/// g *= grad_scale; m += (1-β1) (g - m); v = β2 v + (1-β2) g²;
/// value = decay · value - step_size · m / (√v · second_scale + ε).
///
/// Without decay, an element whose gradient and moments are zero stays as it is, bit by bit, so that it may be
/// left out.
///
/// # Errors
/// If the lengths differ or there are no such rows.
pub fn adamw(
    update: &AdamWUpdate,
    parts: Parts,
    value: &mut [f32],
    grad: &[f32],
    exp_avg: &mut [f32],
    exp_avg_sq: &mut [f32],
) -> Result<()> {
    let n = value.len();
    if [grad.len(), exp_avg.len(), exp_avg_sq.len()] != [n; 3] {
        bail!("adamw: parameter, gradient and moments differ in length")
    }
    parts.check(n)?;
    let _op = profile::op("adamw", 0, 7 * 4 * parts.elements(n));
    let cpu = Cpu::best();
    let shared = [value, exp_avg, exp_avg_sq].map(Disjoint::new);
    parts.for_blocks(n, |_, range| {
        // SAFETY: blocks do not overlap, and each has one task.
        let [value, m, v] = [0, 1, 2].map(|i| unsafe { shared[i].slice(range.clone()) });
        update_block(cpu, *update, value, &grad[range], m, v);
    });
    Ok(())
}

multiversion! {
    /// All slices have one length.
    fn update_block<S: Lanes>(
        u: AdamWUpdate,
        value: &mut [f32],
        grad: &[f32],
        m: &mut [f32],
        v: &mut [f32],
    ) {
        let (scale, decay, beta2) = (S::splat(u.grad_scale), S::splat(u.decay), S::splat(u.beta2));
        let (rest1, rest2) = (S::splat(u.rest[0]), S::splat(u.rest[1]));
        let (step, second) = (S::splat(-u.step_size), S::splat(u.second_scale));
        let epsilon = S::splat(u.epsilon);
        let moments = m.chunks_mut(LANES).zip(v.chunks_mut(LANES));
        let numbers = value.chunks_mut(LANES).zip(grad.chunks(LANES));
        for ((value, grad), (m, v)) in numbers.zip(moments) {
            let g = S::load_part(grad).mul(scale);
            let old = S::load_part(m);
            let first = g.sub(old).mul_add(rest1, old);
            let second_moment = S::load_part(v).mul_add(beta2, g.mul(g).mul(rest2));
            let denominator = second_moment.sqrt().mul_add(second, epsilon);
            let change = first.mul(step).div(denominator);
            S::load_part(value).mul_add(decay, change).store_part(value);
            first.store_part(m);
            second_moment.store_part(v);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::parts::BLOCK;
    use super::super::pool;
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

    type State = [Vec<f32>; 4];

    fn wave(n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * 0.37).sin() * scale).collect()
    }

    /// Value, gradient and moments.
    fn start(n: usize) -> State {
        let v = wave(n, 0.1).iter().map(|x| x * x).collect();
        [wave(n, 1.0), wave(n, 0.3), wave(n, 0.1), v]
    }

    fn run(parts: Parts, state: &mut State) {
        let update = AdamWUpdate::new(7, 1e-2, 0.1, (0.9, 0.999), 1e-8, 0.5);
        let [p, g, m, v] = state;
        adamw(&update, parts, p, g, m, v).unwrap();
    }

    fn assert_follows(actual: &State, before: &State) {
        for i in 0..actual[0].len() {
            let at = |part: usize| f64::from(before[part][i]);
            let (p, m, v) = reference(7, (1e-2, 0.1), 0.5, (at(0), at(1), at(2), at(3)));
            let off = |part: usize, expected: f64| (f64::from(actual[part][i]) - expected).abs();
            // Written so that NaN fails too.
            assert!(off(0, p) < 2e-7, "value {i}");
            assert!(off(2, m) < 2e-8, "first moment {i}");
            assert!(off(3, v) < 2e-9, "second moment {i}");
        }
    }

    #[test]
    fn every_cpu_follows_the_reference_whatever_the_length() {
        let update = AdamWUpdate::new(7, 1e-2, 0.1, (0.9, 0.999), 1e-8, 0.5);
        for cpu in Cpu::each() {
            for n in [1, 15, 16, 17, 1000] {
                let mut state = start(n);
                let [p, g, m, v] = &mut state;
                update_block(cpu, update, p, g, m, v);
                assert_follows(&state, &start(n));
            }
        }
    }

    #[test]
    fn every_element_follows_the_reference_whatever_its_block_and_the_threads() {
        let n = 3 * BLOCK + 17;
        let mut states = [1, 2, 5].map(|threads| {
            let before = pool::threads();
            pool::set_threads(threads);
            let mut state = start(n);
            run(Parts::All, &mut state);
            pool::set_threads(before);
            state.map(|part| part.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        });
        assert_eq!(states[0], states[1]);
        assert_eq!(states[0], states[2]);
        let state = std::mem::take(&mut states[0]);
        let state = state.map(|part| part.into_iter().map(f32::from_bits).collect());
        assert_follows(&state, &start(n));
    }

    #[test]
    fn listed_rows_are_updated_as_in_the_whole_and_others_left() {
        let (width, rows) = (21, [0, 3, 4, 99]);
        let (mut some, mut all) = (start(100 * width), start(100 * width));
        run(Parts::Rows { rows: &rows, width }, &mut some);
        run(Parts::All, &mut all);
        let before = start(100 * width);
        for row in 0..100 {
            let like = if rows.contains(&row) { &all } else { &before };
            let at = row as usize * width..(row as usize + 1) * width;
            for (some, like) in some.iter().zip(like) {
                assert_eq!(some[at.clone()], like[at.clone()], "row {row}");
            }
        }
    }

    #[test]
    fn differing_lengths_and_rows_outside_are_refused() {
        let update = AdamWUpdate::new(1, 1e-3, 0.0, (0.9, 0.999), 1e-8, 1.0);
        let mut three = [vec![0f32; 3], vec![0f32; 3], vec![0f32; 3]];
        let [p, m, v] = &mut three;
        let rows = |rows| Parts::Rows { rows, width: 1 };
        assert!(adamw(&update, Parts::All, p, &[0.0; 2], m, v).is_err());
        assert!(adamw(&update, Parts::All, &mut p[..2], &[0.0; 3], m, v).is_err());
        assert!(adamw(&update, rows(&[3]), p, &[0.0; 3], m, v).is_err());
        assert!(adamw(&update, rows(&[2]), p, &[0.0; 3], m, v).is_ok());
        assert!(adamw(&update, Parts::All, p, &[0.0; 3], m, v).is_ok());
    }

    #[test]
    fn a_zero_gradient_without_moments_changes_nothing() {
        let update = AdamWUpdate::new(1, 1e-3, 0.0, (0.9, 0.999), 1e-8, 1.0);
        let start = [0.5f32, -0.0, 0.0];
        let (mut p, mut m, mut v) = (start, [0f32; 3], [0f32; 3]);
        adamw(
            &update,
            Parts::All,
            &mut p,
            &[0.0, -0.0, 0.0],
            &mut m,
            &mut v,
        )
        .unwrap();
        assert_eq!(p.map(f32::to_bits), start.map(f32::to_bits));
        assert_eq!((m.map(f32::to_bits), v.map(f32::to_bits)), ([0; 3], [0; 3]));
    }
}

//! Learning-rate schedules of `transformers.optimization`: factors of the peak learning rate.
//!
//! `factor(step)` is what update number `step`, counted from 0, uses; so the first update with warm-up uses 0.

mod constant;
mod constant_with_warmup;
mod cosine;
mod linear;

/// The course after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScheduleKind {
    /// Down to 0 in a straight line.
    Linear,
    /// Down to 0 along half a cosine.
    Cosine,
    /// 1 throughout; warm-up is ignored.
    Constant,
    /// 1 after the warm-up.
    ConstantWithWarmup,
}

/// A schedule of one training.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The course.
    pub kind: ScheduleKind,
    /// Steps of linear warm-up from 0.
    pub warmup_steps: u64,
    /// Steps of the whole training.
    pub total_steps: u64,
}

impl Schedule {
    /// What update number `step`, counted from 0, multiplies the peak learning rate by; in [0, 1].
    pub fn factor(&self, step: u64) -> f64 {
        match self.kind {
            ScheduleKind::Linear => linear::factor(step, self.warmup_steps, self.total_steps),
            ScheduleKind::Cosine => cosine::factor(step, self.warmup_steps, self.total_steps),
            ScheduleKind::Constant => constant::factor(),
            ScheduleKind::ConstantWithWarmup => {
                constant_with_warmup::factor(step, self.warmup_steps)
            }
        }
    }
}

/// The factor during linear warm-up, `None` after it.
fn warmup(step: u64, warmup_steps: u64) -> Option<f64> {
    (step < warmup_steps).then(|| ratio(step, warmup_steps))
}

#[expect(clippy::cast_precision_loss, reason = "step counts are far below 2^53")]
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// The factors of the first `steps` updates.
#[cfg(test)]
fn factors(kind: ScheduleKind, warmup_steps: u64, total_steps: u64, steps: u64) -> Vec<f64> {
    let schedule = Schedule {
        kind,
        warmup_steps,
        total_steps,
    };
    (0..steps).map(|step| schedule.factor(step)).collect()
}

#[cfg(test)]
fn assert_close(actual: &[f64], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (a, e) in actual.iter().zip(expected) {
        assert!((a - e).abs() < 1e-12, "{actual:?} is not {expected:?}");
    }
}

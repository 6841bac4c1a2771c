//! `get_constant_schedule_with_warmup`: up to the peak, then constant.

use super::warmup;

pub(super) fn factor(step: u64, warmup_steps: u64) -> f64 {
    warmup(step, warmup_steps).unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use super::super::{ScheduleKind, assert_close, factors};

    /// transformers 5.23: `get_scheduler("constant_with_warmup", …, num_warmup_steps=2, num_training_steps=6)`.
    #[test]
    fn the_sequence_is_that_of_transformers() {
        let expected = [0.0, 0.5, 1.0, 1.0, 1.0, 1.0];
        assert_close(
            &factors(ScheduleKind::ConstantWithWarmup, 2, 6, 6),
            &expected,
        );
    }
}

//! `get_cosine_schedule_with_warmup` with its default half cycle: up to 1, then down to 0 along a cosine.

use std::f64::consts::PI;

use super::{ratio, warmup};

pub(super) fn factor(step: u64, warmup_steps: u64, total_steps: u64) -> f64 {
    warmup(step, warmup_steps).unwrap_or_else(|| {
        let done = step.min(total_steps.max(warmup_steps)) - warmup_steps;
        let progress = ratio(done, total_steps.saturating_sub(warmup_steps));
        (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
    })
}

#[cfg(test)]
mod tests {
    use super::super::{ScheduleKind, assert_close, factors};

    /// transformers 5.23: `get_scheduler("cosine", SGD([q], lr=1.0), num_warmup_steps=2, num_training_steps=6)`.
    #[test]
    fn the_sequence_is_that_of_transformers() {
        let expected = [0.0, 0.5, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627];
        assert_close(&factors(ScheduleKind::Cosine, 2, 6, 6), &expected);
    }

    #[test]
    fn it_ends_at_zero_and_stays_there() {
        assert_close(
            &factors(ScheduleKind::Cosine, 0, 2, 5),
            &[1.0, 0.5, 0.0, 0.0, 0.0],
        );
        assert!(
            factors(ScheduleKind::Cosine, 5, 3, 9)
                .iter()
                .all(|f| (0.0..=1.0).contains(f))
        );
    }
}

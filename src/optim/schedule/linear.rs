//! `get_linear_schedule_with_warmup`: up to 1, then down to 0 in a straight line.

use super::{ratio, warmup};

pub(super) fn factor(step: u64, warmup_steps: u64, total_steps: u64) -> f64 {
    warmup(step, warmup_steps).unwrap_or_else(|| {
        let left = total_steps.saturating_sub(step);
        ratio(left, total_steps.saturating_sub(warmup_steps)).min(1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::super::{ScheduleKind, assert_close, factors};

    /// transformers 5.23: `get_scheduler("linear", SGD([q], lr=1.0), num_warmup_steps=w, num_training_steps=6)`,
    /// `get_last_lr()` before each of 6 steps.
    #[test]
    fn the_sequence_is_that_of_transformers() {
        let none = factors(ScheduleKind::Linear, 0, 6, 6);
        let expected = [
            1.0,
            0.8333333333333334,
            0.6666666666666666,
            0.5,
            0.3333333333333333,
            0.16666666666666666,
        ];
        assert_close(&none, &expected);
        let two = factors(ScheduleKind::Linear, 2, 6, 6);
        assert_close(&two, &[0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
    }

    #[test]
    fn it_stays_at_zero_and_survives_odd_lengths() {
        assert_close(
            &factors(ScheduleKind::Linear, 0, 2, 4),
            &[1.0, 0.5, 0.0, 0.0],
        );
        assert_close(
            &factors(ScheduleKind::Linear, 4, 2, 6),
            &[0.0, 0.25, 0.5, 0.75, 0.0, 0.0],
        );
        assert_close(&factors(ScheduleKind::Linear, 0, 0, 2), &[0.0, 0.0]);
    }
}

//! `get_constant_schedule`: the peak throughout, without warm-up, as HF has it.

pub(super) fn factor() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    use super::super::{ScheduleKind, assert_close, factors};

    /// transformers 5.23 ignores `num_warmup_steps` here as well.
    #[test]
    fn it_is_one_throughout() {
        assert_close(&factors(ScheduleKind::Constant, 2, 4, 6), &[1.0; 6]);
    }
}

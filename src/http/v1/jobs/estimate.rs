//! When a queued job may start: a guess, from what running jobs expect and what earlier ones took.

use crate::store::QueueLoad;

/// Seconds until the job at `position` (1 is next) starts; `None` where nothing is known to guess from.
///
/// Slots become free as their jobs end; every job ahead takes the one that is free first, for the mean time.
pub fn wait_s(position: u64, slots: u32, load: &QueueLoad) -> Option<f64> {
    let mut free_at = load
        .running_eta_s
        .iter()
        .map(|eta| eta.or(load.mean_job_s))
        .collect::<Option<Vec<f64>>>()?;
    free_at.resize(free_at.len().max(slots as usize), 0.0);
    for _ in 1..position {
        *earliest(&mut free_at)? += load.mean_job_s?;
    }
    earliest(&mut free_at).copied()
}

fn earliest(free_at: &mut [f64]) -> Option<&mut f64> {
    free_at.iter_mut().min_by(|a, b| a.total_cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(running: &[Option<f64>], mean: Option<f64>) -> QueueLoad {
        QueueLoad {
            running_eta_s: running.to_vec(),
            mean_job_s: mean,
        }
    }

    #[test]
    fn a_free_slot_means_now() {
        assert_eq!(wait_s(1, 2, &load(&[Some(30.0)], None)), Some(0.0));
    }

    #[test]
    fn jobs_ahead_take_slots_in_turn() {
        let two = load(&[Some(10.0), Some(25.0)], Some(20.0));
        let waits: Vec<_> = (1..=4).map(|p| wait_s(p, 2, &two).unwrap()).collect();
        assert_eq!(waits, [10.0, 25.0, 30.0, 45.0]);
    }

    #[test]
    fn without_anything_to_go_by_there_is_no_guess() {
        assert_eq!(wait_s(1, 1, &load(&[None], None)), None);
        assert_eq!(wait_s(2, 1, &load(&[Some(1.0)], None)), None);
        assert_eq!(wait_s(1, 0, &load(&[], Some(1.0))), None);
        assert_eq!(wait_s(1, 1, &load(&[None], Some(7.0))), Some(7.0));
    }
}

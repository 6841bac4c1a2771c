//! Speed and remaining time, from time spent in optimizer steps only.

use std::time::{Duration, Instant};

use crate::domain::Progress;

/// How often a progress report leaves the trainer.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// Measures training speed over this attempt.
#[derive(Debug)]
pub struct Meter {
    training: Duration,
    samples: u64,
    tokens: u64,
    steps: u64,
    started: Instant,
    reported: Option<Instant>,
}

impl Meter {
    /// Starts counting.
    pub fn start() -> Self {
        Self {
            training: Duration::ZERO,
            samples: 0,
            tokens: 0,
            steps: 0,
            started: Instant::now(),
            reported: None,
        }
    }

    /// Takes note of one optimizer step.
    pub fn add_step(&mut self, took: Duration, samples: u64, tokens: u64) {
        self.training += took;
        self.samples += samples;
        self.tokens += tokens;
        self.steps += 1;
    }

    /// Seconds since the start, evaluation and saving included: HF's `train_runtime`.
    pub fn elapsed_s(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// A progress report, if one is due (the last step always is).
    pub fn progress(
        &mut self,
        global_step: u64,
        total_steps: u64,
        epoch: f64,
        loss: f64,
    ) -> Option<Progress> {
        let due =
            global_step == total_steps || self.reported.is_none_or(|t| t.elapsed() >= REPORT_EVERY);
        if !due {
            return None;
        }
        self.reported = Some(Instant::now());
        Some(self.snapshot(global_step, total_steps, epoch, loss))
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    fn snapshot(&self, global_step: u64, total_steps: u64, epoch: f64, loss: f64) -> Progress {
        let seconds = self.training.as_secs_f64().max(1e-9);
        let per_step_s = self.elapsed_s() / self.steps.max(1) as f64;
        Progress {
            global_step,
            total_steps,
            epoch,
            percent: 100.0 * global_step as f64 / total_steps.max(1) as f64,
            samples_per_second: Some(self.samples as f64 / seconds),
            tokens_per_second: Some(self.tokens as f64 / seconds),
            eta_s: Some(per_step_s * total_steps.saturating_sub(global_step) as f64),
            loss: Some(loss),
        }
    }
}

/// The most memory this process ever held, where the system says (Linux: `VmHWM`).
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_counts_training_time_only() {
        let mut meter = Meter::start();
        meter.add_step(Duration::from_secs(2), 32, 800);
        meter.add_step(Duration::from_secs(2), 32, 800);
        let progress = meter.progress(2, 4, 0.5, 0.7).unwrap();
        assert_eq!(progress.samples_per_second, Some(16.0));
        assert_eq!(progress.tokens_per_second, Some(400.0));
        assert_eq!(progress.percent, 50.0);
    }

    #[test]
    fn reports_are_throttled_except_the_last() {
        let mut meter = Meter::start();
        assert!(meter.progress(1, 3, 0.0, 1.0).is_some());
        assert!(meter.progress(2, 3, 0.0, 1.0).is_none());
        assert!(meter.progress(3, 3, 0.0, 1.0).is_some());
    }
}

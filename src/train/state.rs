//! What a training remembers besides weights and optimizer moments: saved with every checkpoint, so that
//! a resumed training logs and decides as an uninterrupted one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::evaluate::Evaluation;
use super::exact;

/// Counters, the running loss, the best evaluation so far, and all log entries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerState {
    /// Optimizer steps taken, or under way on a GPU.
    pub global_step: u64,
    /// Sum of the steps' losses since the last log entry.
    #[serde(deserialize_with = "exact::number")]
    pub loss_since_log: f64,
    /// Steps in `loss_since_log`.
    pub steps_since_log: u64,
    /// Sum of all steps' losses.
    #[serde(deserialize_with = "exact::number")]
    pub loss_total: f64,
    /// Tokens trained on, without padding.
    pub tokens_seen: u64,
    /// Samples trained on.
    pub samples_seen: u64,
    /// Seconds of training of earlier attempts.
    #[serde(deserialize_with = "exact::number")]
    pub train_seconds: f64,
    /// The best value of the deciding metric.
    #[serde(deserialize_with = "exact::option")]
    pub best_metric: Option<f64>,
    /// The step it was reached at.
    pub best_global_step: Option<u64>,
    /// The evaluation it comes from.
    pub best_evaluation: Option<Evaluation>,
    /// Metrics of the newest evaluation.
    #[serde(deserialize_with = "exact::map")]
    pub last_eval: BTreeMap<String, f64>,
    /// The step of the newest evaluation.
    pub last_eval_step: Option<u64>,
    /// Evaluations in a row that were not better, as HF's `EarlyStoppingCallback` counts them.
    #[serde(default)]
    pub early_stopping_counter: u32,
    /// Micro-batches are this many times smaller than asked for, because memory was short. 0 is 1.
    #[serde(default)]
    pub micro_batch_divisor: u32,
    /// Whether this is the end: the summary was made, nothing is left to do.
    #[serde(default)]
    pub finished: bool,
    /// HF's `log_history`: every log entry and evaluation.
    #[serde(deserialize_with = "exact::log")]
    pub log_history: Vec<LogEntry>,
}

/// One entry of `log_history`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogEntry {
    /// Epochs done, fractional.
    pub epoch: f64,
    /// Optimizer steps taken.
    pub step: u64,
    /// Values by HF's names.
    #[serde(flatten)]
    pub values: BTreeMap<String, f64>,
}

impl TrainerState {
    /// Takes note of what one optimizer step, which is counted already, came to.
    pub fn record_step(&mut self, loss: f64, samples: u64, tokens: u64) {
        self.loss_since_log += loss;
        self.steps_since_log += 1;
        self.loss_total += loss;
        self.samples_seen += samples;
        self.tokens_seen += tokens;
    }

    /// Mean loss of the steps since the last call; starts the next window.
    pub fn take_logged_loss(&mut self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "step counts are far below 2^53")]
        let mean = self.loss_since_log / self.steps_since_log.max(1) as f64;
        self.loss_since_log = 0.0;
        self.steps_since_log = 0;
        mean
    }

    /// Takes note of an evaluation; answers whether it is the best so far (strictly better, as HF).
    pub fn record_evaluation(
        &mut self,
        evaluation: &Evaluation,
        deciding: &str,
        larger_is_better: bool,
    ) -> bool {
        self.last_eval.clone_from(&evaluation.metrics);
        self.last_eval_step = Some(self.global_step);
        let Some(&value) = evaluation.metrics.get(deciding) else {
            return false;
        };
        let better = self.best_metric.is_none_or(|best| {
            if larger_is_better {
                value > best
            } else {
                value < best
            }
        });
        if better {
            self.best_metric = Some(value);
            self.best_global_step = Some(self.global_step);
            self.best_evaluation = Some(evaluation.clone());
        }
        better
    }

    /// What HF's `EarlyStoppingCallback` does with an evaluation, before the best one is updated: counts it
    /// unless it is better than the best by more than `threshold`.
    pub fn count_for_early_stopping(&mut self, value: f64, larger_is_better: bool, threshold: f64) {
        let better = self.best_metric.is_none_or(|best| {
            let gain = if larger_is_better {
                value - best
            } else {
                best - value
            };
            gain > 0.0 && gain > threshold
        });
        self.early_stopping_counter = if better {
            0
        } else {
            self.early_stopping_counter + 1
        };
    }

    /// Metrics to keep with a checkpoint taken now: those of an evaluation at this very step.
    pub fn metrics_now(&self) -> BTreeMap<String, f64> {
        if self.last_eval_step == Some(self.global_step) {
            self.last_eval.clone()
        } else {
            BTreeMap::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logged_loss_is_the_mean_of_its_window() {
        let mut state = TrainerState::default();
        state.record_step(1.0, 8, 80);
        state.record_step(3.0, 8, 70);
        assert_eq!(state.take_logged_loss(), 2.0);
        state.record_step(5.0, 4, 10);
        assert_eq!(state.take_logged_loss(), 5.0);
        assert_eq!((state.steps_since_log, state.loss_total), (0, 9.0));
        assert_eq!((state.samples_seen, state.tokens_seen), (20, 160));
    }

    #[test]
    fn only_a_strictly_better_value_is_a_new_best() {
        let mut state = TrainerState::default();
        let of = |x: f64| Evaluation {
            metrics: BTreeMap::from([("eval_accuracy".to_owned(), x)]),
            classes: Vec::new(),
            majority_share: 0.5,
        };
        let mut seen = Vec::new();
        for value in [0.5, 0.5, 0.7, 0.6] {
            state.global_step += 1;
            seen.push(state.record_evaluation(&of(value), "eval_accuracy", true));
        }
        assert_eq!(seen, [true, false, true, false]);
        assert_eq!(state.best_global_step, Some(3));
        assert_eq!(state.best_evaluation, Some(of(0.7)));
    }

    /// `EarlyStoppingCallback.check_metric_value` of transformers 5.23 by hand: 0.70 is better than 0.60 by
    /// more than 0.05; 0.72 is better, but by less, so it counts, although it becomes the best; 0.74 is
    /// compared with that.
    #[test]
    fn early_stopping_counts_as_hf() {
        let mut state = TrainerState::default();
        let mut counts = Vec::new();
        for value in [0.60, 0.70, 0.72, 0.74, 0.50, 0.90] {
            state.count_for_early_stopping(value, true, 0.05);
            if state.best_metric.is_none_or(|best| value > best) {
                state.best_metric = Some(value);
            }
            counts.push(state.early_stopping_counter);
        }
        assert_eq!(counts, [0, 0, 1, 2, 3, 0]);
        let mut state = TrainerState {
            best_metric: Some(0.5),
            ..TrainerState::default()
        };
        state.count_for_early_stopping(0.5, false, 0.0);
        assert_eq!(state.early_stopping_counter, 1, "equal is not better");
        state.count_for_early_stopping(0.49, false, 0.0);
        assert_eq!(state.early_stopping_counter, 0);
    }

    #[test]
    fn a_state_survives_storage() {
        let mut state = TrainerState::default();
        state.record_step(0.1, 1, 2);
        state.log_history.push(LogEntry {
            epoch: 0.5,
            step: 1,
            values: BTreeMap::from([("loss".to_owned(), 0.1)]),
        });
        let json = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<TrainerState>(&json).unwrap(), state);
    }
}

//! `training_args`: names, defaults and meaning as Hugging Face's `TrainingArguments`
//! (transformers 5.23, `src/transformers/training_args.py`), plus `warmup_ratio` of version 4.
//!
//! One default differs: `bf16` is `"auto"`, on where the hardware multiplies bf16 faster than f32.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FieldError, ObjectReader};

/// When something periodic happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IntervalStrategy {
    /// Never.
    No,
    /// Every so many steps, and at the last one.
    Steps,
    /// At the end of every epoch.
    Epoch,
}

/// When a checkpoint is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SaveStrategy {
    /// Only the trained model at the end.
    No,
    /// Every `save_steps`, and at the last step.
    Steps,
    /// At the end of every epoch.
    Epoch,
    /// After an evaluation that set a new best.
    Best,
}

/// The learning rate's course after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchedulerType {
    /// Linear down to 0.
    Linear,
    /// Half a cosine down to 0.
    Cosine,
    /// Constant, without warm-up.
    Constant,
    /// Constant after a linear warm-up.
    ConstantWithWarmup,
}

/// Whether matrix products run in bfloat16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Bf16 {
    /// On where the hardware does it faster than f32.
    Auto,
    /// On; emulated where the hardware has no such instructions.
    On,
    /// Off: everything in f32.
    Off,
}

impl TryFrom<Value> for Bf16 {
    type Error = String;
    fn try_from(value: Value) -> Result<Self, Self::Error> {
        match value {
            Value::Bool(true) => Ok(Self::On),
            Value::Bool(false) => Ok(Self::Off),
            Value::String(s) if s == "auto" => Ok(Self::Auto),
            other => Err(format!("expected true, false or \"auto\", found {other}")),
        }
    }
}

impl From<Bf16> for Value {
    fn from(bf16: Bf16) -> Self {
        match bf16 {
            Bf16::Auto => Self::from("auto"),
            Bf16::On => Self::Bool(true),
            Bf16::Off => Self::Bool(false),
        }
    }
}

/// An interval in steps: a whole number of at least 1, or a ratio of all steps between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct StepInterval(pub f64);

impl StepInterval {
    /// Steps between two occurrences in a training of `total_steps`; at least 1.
    pub fn resolve(self, total_steps: u64) -> u64 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "validated to be positive; step counts are far below 2^53"
        )]
        let steps = if self.0 < 1.0 {
            (self.0 * total_steps as f64).ceil() as u64
        } else {
            self.0 as u64
        };
        steps.max(1)
    }

    fn is_valid(self) -> bool {
        self.0.is_finite() && self.0 > 0.0 && (self.0 < 1.0 || self.0.fract() == 0.0)
    }
}

/// How to train. Absent fields take HF's defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingArguments {
    /// Passes over the training set; may be fractional.
    pub num_train_epochs: f64,
    /// If positive, the number of optimizer steps; overrides `num_train_epochs`.
    pub max_steps: i64,
    /// Sequences per micro-batch in training.
    pub per_device_train_batch_size: u32,
    /// Sequences per batch in evaluation.
    pub per_device_eval_batch_size: u32,
    /// Micro-batches per optimizer step.
    pub gradient_accumulation_steps: u32,
    /// Peak learning rate of AdamW.
    pub learning_rate: f64,
    /// Decoupled weight decay; not applied to biases and LayerNorm parameters.
    pub weight_decay: f64,
    /// AdamW's first-moment decay.
    pub adam_beta1: f64,
    /// AdamW's second-moment decay.
    pub adam_beta2: f64,
    /// AdamW's denominator term.
    pub adam_epsilon: f64,
    /// Largest global gradient norm; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// The learning rate's course after warm-up.
    pub lr_scheduler_type: SchedulerType,
    /// Share of all steps spent warming up; used when `warmup_steps` is 0.
    pub warmup_ratio: f64,
    /// Steps of linear warm-up; below 1 it is a share of all steps.
    pub warmup_steps: f64,
    /// ε of label smoothing.
    pub label_smoothing_factor: f64,
    /// Steps between two training log entries.
    #[schema(value_type = f64)]
    pub logging_steps: StepInterval,
    /// Whether the first step is logged as well.
    pub logging_first_step: bool,
    /// When to evaluate.
    pub eval_strategy: IntervalStrategy,
    /// Steps between two evaluations; `logging_steps` when absent.
    #[schema(value_type = Option<f64>)]
    pub eval_steps: Option<StepInterval>,
    /// When to save a checkpoint.
    pub save_strategy: SaveStrategy,
    /// Steps between two checkpoints.
    #[schema(value_type = f64)]
    pub save_steps: StepInterval,
    /// How many checkpoints to keep; the best one is kept besides.
    pub save_total_limit: Option<u32>,
    /// Whether the trained model is the best checkpoint instead of the last.
    pub load_best_model_at_end: bool,
    /// Metric that decides which checkpoint is best, with or without `eval_`; `loss` when absent.
    pub metric_for_best_model: Option<String>,
    /// Whether a larger metric is better; unless its name ends in `loss` when absent.
    pub greater_is_better: Option<bool>,
    /// Stop after this many evaluations in a row that were not better (HF's `EarlyStoppingCallback`).
    pub early_stopping_patience: Option<u32>,
    /// By how much an evaluation must be better to count as better.
    pub early_stopping_threshold: f64,
    /// Seed of initialisation and dropout, and of the data order unless `data_seed` is given.
    pub seed: u32,
    /// Seed of the data order.
    pub data_seed: Option<u32>,
    /// Whether an incomplete last batch of an epoch is dropped.
    pub dataloader_drop_last: bool,
    /// Whether matrix products run in bfloat16: true, false or "auto".
    #[schema(value_type = serde_json::Value)]
    pub bf16: Bf16,
}

impl Default for TrainingArguments {
    fn default() -> Self {
        Self {
            num_train_epochs: 3.0,
            max_steps: -1,
            per_device_train_batch_size: 8,
            per_device_eval_batch_size: 8,
            gradient_accumulation_steps: 1,
            learning_rate: 5e-5,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            lr_scheduler_type: SchedulerType::Linear,
            warmup_ratio: 0.0,
            warmup_steps: 0.0,
            label_smoothing_factor: 0.0,
            logging_steps: StepInterval(500.0),
            logging_first_step: false,
            eval_strategy: IntervalStrategy::No,
            eval_steps: None,
            save_strategy: SaveStrategy::Steps,
            save_steps: StepInterval(500.0),
            save_total_limit: None,
            load_best_model_at_end: false,
            metric_for_best_model: None,
            greater_is_better: None,
            early_stopping_patience: None,
            early_stopping_threshold: 0.0,
            seed: 42,
            data_seed: None,
            dataloader_drop_last: false,
            bf16: Bf16::Auto,
        }
    }
}

macro_rules! read_fields {
    ($reader:ident, $default:ident, $($name:ident),* $(,)?) => {
        TrainingArguments { $($name: $reader.or(stringify!($name), $default.$name),)* }
    };
}

impl TrainingArguments {
    /// Reads and checks `value`, found at `pointer`; all errors at once.
    ///
    /// # Errors
    /// Every field that is unknown, of the wrong type, out of range or at odds with another.
    pub fn parse(value: &Value, pointer: &str) -> Result<Self, Vec<FieldError>> {
        let default = Self::default();
        let mut reader = ObjectReader::new(value, pointer);
        let args = read_fields!(
            reader,
            default,
            num_train_epochs,
            max_steps,
            per_device_train_batch_size,
            per_device_eval_batch_size,
            gradient_accumulation_steps,
            learning_rate,
            weight_decay,
            adam_beta1,
            adam_beta2,
            adam_epsilon,
            max_grad_norm,
            lr_scheduler_type,
            warmup_ratio,
            warmup_steps,
            label_smoothing_factor,
            logging_steps,
            logging_first_step,
            eval_strategy,
            eval_steps,
            save_strategy,
            save_steps,
            save_total_limit,
            load_best_model_at_end,
            metric_for_best_model,
            greater_is_better,
            early_stopping_patience,
            early_stopping_threshold,
            seed,
            data_seed,
            dataloader_drop_last,
            bf16,
        );
        args.check_ranges(&mut reader);
        args.check_combinations(&mut reader);
        let errors = reader.finish();
        if errors.is_empty() {
            Ok(args)
        } else {
            Err(errors)
        }
    }

    fn check_ranges(&self, reader: &mut ObjectReader<'_>) {
        let mut range = |name: &str, ok: bool, message: &str| {
            if !ok {
                reader.error(name, "out_of_range", format!("`{name}` must be {message}"));
            }
        };
        let unit = |x: f64| (0.0..1.0).contains(&x);
        range(
            "num_train_epochs",
            self.num_train_epochs > 0.0 && self.num_train_epochs <= 10_000.0,
            "above 0 and at most 10000",
        );
        range(
            "max_steps",
            self.max_steps == -1 || (1..=100_000_000).contains(&self.max_steps),
            "-1, or between 1 and 100000000",
        );
        for (name, size) in [
            (
                "per_device_train_batch_size",
                self.per_device_train_batch_size,
            ),
            (
                "per_device_eval_batch_size",
                self.per_device_eval_batch_size,
            ),
        ] {
            range(name, (1..=4096).contains(&size), "between 1 and 4096");
        }
        range(
            "gradient_accumulation_steps",
            (1..=4096).contains(&self.gradient_accumulation_steps),
            "between 1 and 4096",
        );
        range(
            "learning_rate",
            self.learning_rate.is_finite() && self.learning_rate >= 0.0,
            "finite and at least 0",
        );
        range(
            "weight_decay",
            self.weight_decay.is_finite() && self.weight_decay >= 0.0,
            "finite and at least 0",
        );
        range("adam_beta1", unit(self.adam_beta1), "in [0, 1)");
        range("adam_beta2", unit(self.adam_beta2), "in [0, 1)");
        range(
            "adam_epsilon",
            self.adam_epsilon.is_finite() && self.adam_epsilon > 0.0,
            "above 0",
        );
        range(
            "max_grad_norm",
            self.max_grad_norm.is_finite() && self.max_grad_norm >= 0.0,
            "finite and at least 0",
        );
        range("warmup_ratio", unit(self.warmup_ratio), "in [0, 1)");
        range(
            "warmup_steps",
            self.warmup_steps >= 0.0
                && (self.warmup_steps < 1.0 || self.warmup_steps.fract() == 0.0),
            "a whole number of steps, or a ratio in [0, 1)",
        );
        range(
            "label_smoothing_factor",
            unit(self.label_smoothing_factor),
            "in [0, 1)",
        );
        let interval = "a whole number of at least 1, or a ratio in (0, 1)";
        range("logging_steps", self.logging_steps.is_valid(), interval);
        range("save_steps", self.save_steps.is_valid(), interval);
        range(
            "eval_steps",
            self.eval_steps.is_none_or(StepInterval::is_valid),
            interval,
        );
        range(
            "early_stopping_patience",
            self.early_stopping_patience != Some(0),
            "at least 1",
        );
        range(
            "early_stopping_threshold",
            self.early_stopping_threshold.is_finite() && self.early_stopping_threshold >= 0.0,
            "finite and at least 0",
        );
        range(
            "save_total_limit",
            self.save_total_limit != Some(0),
            "at least 1",
        );
    }

    fn check_combinations(&self, reader: &mut ObjectReader<'_>) {
        const CODE: &str = "invalid_combination";
        if self.load_best_model_at_end && self.eval_strategy == IntervalStrategy::No {
            reader.error(
                "load_best_model_at_end",
                CODE,
                "`load_best_model_at_end` needs evaluations: set `eval_strategy` to \"steps\" or \"epoch\"",
            );
        } else if self.load_best_model_at_end && !self.saves_when_it_evaluates() {
            reader.error(
                "load_best_model_at_end",
                CODE,
                "`load_best_model_at_end` needs a checkpoint at every evaluation: set `save_strategy` to \
                 the same as `eval_strategy` (with `save_steps` a multiple of `eval_steps`) or to \"best\"",
            );
        }
        if self.early_stopping_patience.is_some() && self.eval_strategy == IntervalStrategy::No {
            reader.error(
                "early_stopping_patience",
                CODE,
                "`early_stopping_patience` needs evaluations: set `eval_strategy` to \"steps\" or \"epoch\"",
            );
        }
        if self.save_strategy == SaveStrategy::Best && self.eval_strategy == IntervalStrategy::No {
            reader.error(
                "save_strategy",
                CODE,
                "`save_strategy` \"best\" needs evaluations: set `eval_strategy` to \"steps\" or \"epoch\"",
            );
        }
    }

    /// HF demands the same: the best model can only be loaded if it was saved.
    fn saves_when_it_evaluates(&self) -> bool {
        match (self.save_strategy, self.eval_strategy) {
            (SaveStrategy::Best, _) | (SaveStrategy::Epoch, IntervalStrategy::Epoch) => true,
            (SaveStrategy::Steps, IntervalStrategy::Steps) => {
                let (save, eval) = (
                    self.save_steps.0,
                    self.eval_steps.unwrap_or(self.logging_steps).0,
                );
                (save / eval).fract() == 0.0 || save < 1.0 && eval < 1.0
            }
            _ => false,
        }
    }

    /// The metric that decides which checkpoint is best, with its `eval_` prefix.
    pub fn best_metric(&self) -> String {
        let name = self.metric_for_best_model.as_deref().unwrap_or("loss");
        if name.starts_with("eval_") {
            name.to_owned()
        } else {
            format!("eval_{name}")
        }
    }

    /// Whether a larger [`TrainingArguments::best_metric`] is better.
    pub fn larger_is_better(&self) -> bool {
        self.greater_is_better
            .unwrap_or_else(|| !self.best_metric().ends_with("loss"))
    }

    /// Steps of warm-up in a training of `total_steps`.
    pub fn warmup_steps_of(&self, total_steps: u64) -> u64 {
        let ratio = if self.warmup_steps > 0.0 {
            self.warmup_steps
        } else {
            self.warmup_ratio
        };
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "validated to be non-negative; step counts are far below 2^53"
        )]
        if ratio < 1.0 {
            (ratio * total_steps as f64).ceil() as u64
        } else {
            ratio as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pointers(value: &Value) -> Vec<String> {
        TrainingArguments::parse(value, "/training_args")
            .expect_err("must be refused")
            .into_iter()
            .map(|e| e.pointer)
            .collect()
    }

    #[test]
    fn absent_fields_take_hf_defaults() {
        let args = TrainingArguments::parse(&json!({}), "").unwrap();
        assert_eq!(args, TrainingArguments::default());
        assert_eq!(args.num_train_epochs, 3.0);
        assert_eq!(args.per_device_train_batch_size, 8);
        assert_eq!(args.learning_rate, 5e-5);
        assert_eq!(args.seed, 42);
    }

    #[test]
    fn unknown_fields_types_and_ranges_are_reported_together() {
        let found = pointers(&json!({
            "learning_rate": -1, "lr_scheduler_type": "sawtooth", "lerning_rate": 1, "adam_beta1": 1.0,
        }));
        assert_eq!(
            found,
            [
                "/training_args/lr_scheduler_type",
                "/training_args/learning_rate",
                "/training_args/adam_beta1",
                "/training_args/lerning_rate",
            ]
        );
    }

    #[test]
    fn the_best_model_must_be_evaluated_and_saved() {
        assert_eq!(
            pointers(&json!({"load_best_model_at_end": true})),
            ["/training_args/load_best_model_at_end"]
        );
        assert_eq!(
            pointers(&json!({"load_best_model_at_end": true, "eval_strategy": "epoch"})),
            ["/training_args/load_best_model_at_end"]
        );
        let fine = json!({"load_best_model_at_end": true, "eval_strategy": "epoch", "save_strategy": "epoch"});
        assert!(TrainingArguments::parse(&fine, "").is_ok());
        let steps = json!({"load_best_model_at_end": true, "eval_strategy": "steps", "eval_steps": 30,
                           "save_strategy": "steps", "save_steps": 45});
        assert_eq!(pointers(&steps).len(), 1);
    }

    #[test]
    fn bf16_is_a_boolean_or_auto() {
        let of = |v: Value| TrainingArguments::parse(&json!({"bf16": v}), "").map(|a| a.bf16);
        assert_eq!(of(json!(true)), Ok(Bf16::On));
        assert_eq!(of(json!("auto")), Ok(Bf16::Auto));
        assert!(of(json!("yes")).is_err());
        assert_eq!(serde_json::to_value(Bf16::Off).unwrap(), json!(false));
    }

    #[test]
    fn intervals_and_warmup_may_be_ratios() {
        assert_eq!(StepInterval(0.1).resolve(95), 10);
        assert_eq!(StepInterval(500.0).resolve(95), 500);
        let args = TrainingArguments {
            warmup_ratio: 0.1,
            ..TrainingArguments::default()
        };
        assert_eq!(args.warmup_steps_of(95), 10);
        let args = TrainingArguments {
            warmup_steps: 7.0,
            ..args
        };
        assert_eq!(args.warmup_steps_of(95), 7);
    }

    #[test]
    fn the_best_metric_has_its_prefix_and_direction() {
        let mut args = TrainingArguments::default();
        assert_eq!(args.best_metric(), "eval_loss");
        assert!(!args.larger_is_better());
        args.metric_for_best_model = Some("accuracy".to_owned());
        assert_eq!(args.best_metric(), "eval_accuracy");
        assert!(args.larger_is_better());
    }

    #[test]
    fn serialized_arguments_parse_to_the_same() {
        let args = TrainingArguments {
            eval_steps: Some(StepInterval(10.0)),
            bf16: Bf16::Off,
            ..TrainingArguments::default()
        };
        let json = serde_json::to_value(&args).unwrap();
        assert_eq!(TrainingArguments::parse(&json, ""), Ok(args));
    }
}

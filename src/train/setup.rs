//! What is fixed for the whole training: data order, schedule, intervals, and the freshly loaded model.

use crate::data::EpochSampler;
use crate::domain::{
    Bf16, DeviceKind, ErrorCode, IntervalStrategy, JobError, LogLevel, Phase, SaveStrategy,
    SchedulerType, TrainingArguments,
};
use crate::heads::SequenceClassifier;
use crate::kernels::device::{Compute, Device};
use crate::kernels::linear::Precision;
use crate::models::ModelError;
use crate::optim::{AdamW, AdamWOptions, Clip, Schedule, ScheduleKind};

use super::data_order::DataOrder;
use super::prepare::{self, PreparedData};
use super::state::TrainerState;
use super::step::{Learner, engine};
use super::{Observer, TrainJob};

/// Data order, schedule and intervals.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Which rows make up which step.
    pub order: DataOrder,
    /// Optimizer steps in all.
    pub total_steps: u64,
    /// The base model's configuration.
    pub base_config: serde_json::Value,
    /// Parameters outside the embedding tables.
    dense_parameters: usize,
    peak_learning_rate: f64,
    schedule: Schedule,
    logging_steps: u64,
    eval_steps: u64,
    save_steps: u64,
}

/// What is due at the end of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// A log entry.
    pub log: bool,
    /// An evaluation.
    pub evaluate: bool,
    /// A checkpoint.
    pub save: bool,
}

impl Due {
    /// Whether anything is.
    pub fn any(self) -> bool {
        self.log || self.evaluate || self.save
    }
}

impl Setup {
    /// Loads the base model and derives everything from the arguments.
    ///
    /// # Errors
    /// If the model cannot be loaded or does not fit the job.
    pub fn new(
        job: &TrainJob,
        data: &PreparedData,
        observer: &dyn Observer,
    ) -> Result<(Self, Learner), JobError> {
        observer.phase(Phase::ResolvingModel);
        let args = &job.spec.training_args;
        let device = device_of(job.device)?;
        let compute = Compute {
            precision: precision_of(args.bf16, &device),
            device,
        };
        let seed = u64::from(args.seed);
        let (model, report) = SequenceClassifier::load_for(
            &job.model_dir,
            data.labels.len(),
            data.head.keeps_classifier(),
            seed,
            &compute,
        )
        .map_err(model_error)?;
        check_fits(job, data, &model)?;
        if let Some(message) = data.head.message() {
            observer.log(LogLevel::Info, message);
        }
        if !report.newly_initialized.is_empty() {
            observer.log(
                LogLevel::Info,
                format!("newly initialized: {}", report.newly_initialized.join(", ")),
            );
        }
        observer.log(
            LogLevel::Info,
            format!(
                "{} parameters in {} tensors on {}, matrix products in {}",
                model.parameters().element_count(),
                model.parameters().len(),
                compute.device.name(),
                match compute.precision {
                    Precision::F32 => "f32",
                    Precision::Bf16 => "bf16",
                }
            ),
        );
        let setup = Self::derive(args, data, prepare::data_seed(job), &model)?;
        let optimizer = AdamW::new(model.parameters(), adamw_options(args)).map_err(engine)?;
        let clip = Clip::new(model.parameters(), args.max_grad_norm).map_err(engine)?;
        let learner = Learner {
            model,
            clip,
            optimizer,
            seed,
        };
        Ok((setup, learner))
    }

    fn derive(
        args: &TrainingArguments,
        data: &PreparedData,
        data_seed: u64,
        model: &SequenceClassifier,
    ) -> Result<Self, JobError> {
        let sampler = EpochSampler::new(
            data_seed,
            data.train.len(),
            args.per_device_train_batch_size,
            args.gradient_accumulation_steps,
            args.dataloader_drop_last,
        )?;
        let total_steps = sampler.total_steps(args.max_steps, args.num_train_epochs);
        let dense_parameters = model
            .parameters()
            .iter()
            .filter(|p| !p.name.contains("embeddings."))
            .map(|p| p.value.elem_count())
            .sum();
        Ok(Self {
            schedule: schedule_of(args, total_steps),
            peak_learning_rate: args.learning_rate,
            logging_steps: args.logging_steps.resolve(total_steps),
            eval_steps: args
                .eval_steps
                .unwrap_or(args.logging_steps)
                .resolve(total_steps),
            save_steps: args.save_steps.resolve(total_steps),
            base_config: model.config().clone(),
            order: DataOrder::new(sampler),
            total_steps,
            dense_parameters,
        })
    }

    /// Steps between two evaluations.
    pub fn eval_steps(&self) -> u64 {
        self.eval_steps
    }

    /// Steps between two log entries.
    pub fn logging_steps(&self) -> u64 {
        self.logging_steps
    }

    /// Steps between two checkpoints.
    pub fn save_steps(&self) -> u64 {
        self.save_steps
    }

    /// HF's estimate of the work done: six operations per parameter and token.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn flos(&self, tokens: u64) -> f64 {
        6.0 * self.dense_parameters as f64 * tokens as f64
    }

    /// The learning rate of the update that follows `global_step` updates.
    pub fn learning_rate(&self, global_step: u64) -> f64 {
        self.peak_learning_rate * self.schedule.factor(global_step)
    }

    /// Whether no update follows: all were made, or early stopping said so.
    pub fn is_over(&self, args: &TrainingArguments, state: &TrainerState) -> bool {
        let patience = args.early_stopping_patience;
        state.global_step >= self.total_steps
            || patience.is_some_and(|patience| state.early_stopping_counter >= patience)
    }

    /// What is due after `step` updates. As HF, `steps` strategies also act at the last step; the last
    /// checkpoint is the end's own, as it shall hold the summary.
    pub fn due(&self, args: &TrainingArguments, step: u64, ends_epoch: bool) -> Due {
        let every = |n: u64| step.is_multiple_of(n);
        let last = step == self.total_steps;
        Due {
            log: every(self.logging_steps) || (step == 1 && args.logging_first_step),
            evaluate: match args.eval_strategy {
                IntervalStrategy::No => false,
                IntervalStrategy::Steps => every(self.eval_steps) || last,
                IntervalStrategy::Epoch => ends_epoch || last,
            },
            save: match args.save_strategy {
                SaveStrategy::No | SaveStrategy::Best => false,
                SaveStrategy::Steps => every(self.save_steps) && !last,
                SaveStrategy::Epoch => ends_epoch && !last,
            },
        }
    }
}

/// Longer sequences than the encoder has positions for, or tokens it has no embedding for, are refused
/// before any work is done.
fn check_fits(
    job: &TrainJob,
    data: &PreparedData,
    model: &SequenceClassifier,
) -> Result<(), JobError> {
    data.bounds
        .check_fits(model.vocab_size(), model.type_vocab_size())?;
    let (asked, positions) = (job.spec.max_seq_length, model.max_positions());
    if asked as usize <= positions {
        return Ok(());
    }
    Err(JobError::new(
        ErrorCode::ModelInvalid,
        format!("max_seq_length is {asked}, but the model has only {positions} positions"),
    )
    .at("/max_seq_length")
    .hint(format!("set max_seq_length to at most {positions}")))
}

/// The GPU is the first that the server left visible for this process.
fn device_of(kind: DeviceKind) -> Result<Device, JobError> {
    match kind {
        DeviceKind::Cpu => Ok(Device::Cpu),
        DeviceKind::Cuda => Device::first_gpu().map_err(engine),
    }
}

/// bf16 where asked for, or where it is native and left to us.
fn precision_of(bf16: Bf16, device: &Device) -> Precision {
    match bf16 {
        Bf16::On => Precision::Bf16,
        Bf16::Off => Precision::F32,
        Bf16::Auto if device.has_fast_bf16() => Precision::Bf16,
        Bf16::Auto => Precision::F32,
    }
}

fn schedule_of(args: &TrainingArguments, total_steps: u64) -> Schedule {
    let kind = match args.lr_scheduler_type {
        SchedulerType::Linear => ScheduleKind::Linear,
        SchedulerType::Cosine => ScheduleKind::Cosine,
        SchedulerType::Constant => ScheduleKind::Constant,
        SchedulerType::ConstantWithWarmup => ScheduleKind::ConstantWithWarmup,
    };
    Schedule {
        kind,
        warmup_steps: args.warmup_steps_of(total_steps),
        total_steps,
    }
}

fn adamw_options(args: &TrainingArguments) -> AdamWOptions {
    AdamWOptions {
        beta1: args.adam_beta1,
        beta2: args.adam_beta2,
        epsilon: args.adam_epsilon,
        weight_decay: args.weight_decay,
    }
}

/// What a user is told when a model cannot be loaded.
pub fn model_error(error: ModelError) -> JobError {
    let code = match &error {
        ModelError::TypeUnsupported { .. } => ErrorCode::ModelTypeUnsupported,
        ModelError::PickleOnly => ErrorCode::ModelPickleRefused,
        ModelError::Invalid(_) | ModelError::Io { .. } | ModelError::Candle(_) => {
            ErrorCode::ModelInvalid
        }
    };
    JobError::new(code, error.to_string()).at("/model")
}

//! One optimizer step: gradients of all micro-batches, then norm, clip, update.

use crate::data::Batch;
use crate::domain::{ErrorCode, JobError, TrainingArguments};
use crate::faults::{Action, Faults};
use crate::heads::{LossOptions, SequenceClassifier};
use crate::kernels::clip::Measures;
use crate::kernels::cross_entropy::Loss;
use crate::kernels::view;
use crate::layers;
use crate::metrics::MetricError;
use crate::models::{DropoutSeed, Input};
use crate::optim::{AdamW, Clip, Measured};

use super::gate;
use super::prepare::PreparedData;
use super::watchdog::Pulse;

/// Rows that an error names.
const NAMED_ROWS: usize = 16;

/// A step whose update is made, or under way on a GPU.
#[derive(Debug)]
pub struct StartedStep {
    /// Which one it is.
    pub place: StepPlace,
    /// Samples in the step.
    pub samples: u64,
    /// Tokens in the step.
    pub tokens: u64,
    measured: Measured,
    /// The first of its rows.
    rows: Vec<u32>,
}

impl StartedStep {
    /// Whether there is nothing to wait for.
    pub fn is_done(&self) -> bool {
        self.measured.is_known()
    }

    /// What came of it; waits for it.
    ///
    /// # Errors
    /// `non_finite_loss`: then neither this step nor one that was started after it has updated anything.
    pub fn finish(&self, data: &PreparedData) -> Result<Measures, JobError> {
        let measures = self.measured.wait().map_err(engine)?;
        if measures.are_finite() {
            return Ok(measures);
        }
        Err(non_finite(measures, self.place, &lines(data, &self.rows)))
    }
}

/// What a step is about.
#[derive(Clone, Copy, Debug)]
pub struct StepPlace {
    /// Updates made before.
    pub global_step: u64,
    /// Where it is in the stream of dropout masks: `global_step`.
    pub dropout_step: u64,
    /// The update's.
    pub learning_rate: f64,
}

/// What all steps share.
#[derive(Clone, Copy, Debug)]
pub struct StepContext<'a> {
    /// The rows.
    pub data: &'a PreparedData,
    /// Smoothing, clipping.
    pub args: &'a TrainingArguments,
    /// Gets a beat per micro-batch.
    pub pulse: &'a Pulse,
    /// What tests break.
    pub faults: &'a Faults,
}

/// The model and its optimizer: what a step changes.
#[derive(Debug)]
pub struct Learner {
    /// Encoder and head.
    pub model: SequenceClassifier,
    /// Clips their gradients.
    pub clip: Clip,
    /// AdamW over the model's parameters.
    pub optimizer: AdamW,
    /// Seed of the dropout masks.
    pub seed: u64,
}

impl Learner {
    /// Takes one step over `micro_batches` of the training rows. On a GPU it may be under way when this returns, and
    /// the next can be started.
    ///
    /// The loss is the sum over all items divided by all items of the step, so that any split of a batch
    /// into micro-batches gives the same gradient (HF averages averages, or does not divide at all).
    ///
    /// # Errors
    /// `non_finite_loss` before anything is updated, or on a GPU when the step is finished; `gradient_missing` at the
    /// first step; `out_of_memory` if a micro-batch is too large for the workspace, with nothing changed but gradients.
    pub fn start(
        &mut self,
        context: &StepContext<'_>,
        place: StepPlace,
        micro_batches: &[Batch],
    ) -> Result<StartedStep, JobError> {
        let samples: usize = micro_batches.iter().map(Batch::sequences).sum();
        let (losses, tokens) = self.gradients(context, place, micro_batches, samples)?;
        let share = f64::from(share_of_one(samples));
        let (measured, scale) = self
            .clip
            .measure(self.model.parameters(), losses, share)
            .map_err(engine)?;
        let rows = micro_batches.iter().flat_map(|batch| &batch.sequence_keys);
        let rows = rows.filter_map(|&key| u32::try_from(key).ok());
        let step = StartedStep {
            place,
            samples: samples as u64,
            tokens,
            measured,
            rows: rows.take(NAMED_ROWS).collect(),
        };
        let is_first = place.global_step == 0;
        if step.is_done() || is_first {
            step.finish(context.data)?;
        }
        if is_first {
            gate::check(self.model.parameters())?;
        }

        // ---- the update; everything after it is bookkeeping ------------------------------------
        self.optimizer
            .step(place.learning_rate, scale)
            .map_err(engine)?;
        // -----------------------------------------------------------------------------------------
        Ok(step)
    }

    /// The losses of all micro-batches, with the gradient of their mean left in the parameters, and their tokens.
    /// A GPU may still be at it.
    fn gradients(
        &mut self,
        context: &StepContext<'_>,
        place: StepPlace,
        micro_batches: &[Batch],
        samples: usize,
    ) -> Result<(Vec<Loss>, u64), JobError> {
        #[expect(clippy::cast_possible_truncation, reason = "a factor below 1")]
        let options = LossOptions {
            label_smoothing: context.args.label_smoothing_factor as f32,
            scale: share_of_one(samples),
        };
        let dropout = DropoutSeed {
            seed: self.seed,
            step: place.dropout_step,
        };
        self.model.parameters().zero_grad().map_err(engine)?;
        let (mut losses, mut tokens) = (Vec::with_capacity(micro_batches.len()), 0);
        for batch in micro_batches {
            let loss = self.model.start_forward_backward(
                &input(batch),
                &batch.labels,
                Some(dropout),
                &options,
            );
            losses.push(loss.map_err(engine)?);
            tokens += batch.tokens() as u64;
            context.pulse.beat();
        }
        let number = place.global_step + 1;
        if context.faults.at("train.memory", number) == Some(Action::Oom) {
            return Err(out_of_memory());
        }
        if context.faults.at("train.gradients", number) == Some(Action::Nan) {
            self.break_a_gradient()?;
        }
        Ok((losses, tokens))
    }

    fn break_a_gradient(&self) -> Result<(), JobError> {
        let Some(parameter) = self.model.parameters().iter().last() else {
            return Ok(());
        };
        view::write(&parameter.grad, |g| {
            g[0] = f32::NAN;
            Ok(())
        })
        .map_err(engine)
    }
}

/// What one sample counts in a mean.
#[expect(clippy::cast_precision_loss, reason = "a batch is far below 2^24")]
fn share_of_one(samples: usize) -> f32 {
    1.0 / samples.max(1) as f32
}

/// The model's view of a batch.
pub fn input(batch: &Batch) -> Input<'_> {
    Input {
        input_ids: &batch.input_ids,
        token_type_ids: &batch.token_type_ids,
        cu_seqlens: &batch.cu_seqlens,
        sequence_keys: &batch.sequence_keys,
    }
}

/// A failure of the engine: memory it could not get, or else nothing the user did.
pub fn engine(error: impl Into<EngineError>) -> JobError {
    match error.into() {
        EngineError::OutOfMemory => out_of_memory(),
        EngineError::Device(message) => JobError::new(ErrorCode::DeviceFailed, message)
            .hint("`nvidia-smi` and the system's log on the server say more about the GPU"),
        EngineError::Other(message) => JobError::new(
            ErrorCode::InternalError,
            format!("the engine failed: {message}"),
        ),
    }
}

/// What went wrong in the engine.
#[derive(Debug)]
pub enum EngineError {
    /// There was no memory for the workspace.
    OutOfMemory,
    /// The GPU failed.
    Device(String),
    /// Anything else.
    Other(String),
}

impl From<candle_core::Error> for EngineError {
    fn from(error: candle_core::Error) -> Self {
        if layers::is_out_of_memory(&error) {
            Self::OutOfMemory
        } else if layers::is_device_failure(&error) {
            Self::Device(error.to_string())
        } else {
            Self::Other(error.to_string())
        }
    }
}

impl From<MetricError> for EngineError {
    fn from(error: MetricError) -> Self {
        Self::Other(error.to_string())
    }
}

impl From<serde_json::Error> for EngineError {
    fn from(error: serde_json::Error) -> Self {
        Self::Other(error.to_string())
    }
}

fn out_of_memory() -> JobError {
    JobError::new(
        ErrorCode::OutOfMemory,
        "there is not enough memory for a micro-batch",
    )
    .at("/training_args/per_device_train_batch_size")
    .hint("lower max_seq_length, use a smaller model, or give the server more memory")
}

/// Lines of the training file that a step's rows are on; the first few are enough to look at.
fn lines(data: &PreparedData, rows: &[u32]) -> String {
    match data.train.lines(rows) {
        Ok(lines) => lines
            .iter()
            .map(u64::to_string)
            .collect::<Vec<_>>()
            .join(", "),
        Err(_) => "(unknown)".to_owned(),
    }
}

fn non_finite(measures: Measures, place: StepPlace, lines: &str) -> JobError {
    let Measures { loss, grad_norm } = measures;
    JobError::new(
        ErrorCode::NonFiniteLoss,
        format!(
            "loss {loss} and gradient norm {grad_norm} at step {} (learning rate {:e}); the weights were not \
             updated with it; the step's rows are on lines {lines} of the training file",
            place.global_step + 1,
            place.learning_rate,
        ),
    )
    .at("/training_args/learning_rate")
    .hint("lower the learning rate, add warm-up, or set bf16 to false")
}

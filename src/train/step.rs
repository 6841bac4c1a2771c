//! One optimizer step: gradients of all micro-batches, then norm, clip, update.

use std::time::Duration;
use std::time::Instant;

use crate::data::Batch;
use crate::domain::{ErrorCode, JobError, TrainingArguments};
use crate::heads::{LossOptions, SequenceClassifier};
use crate::models::{DropoutSeed, Input};
use crate::optim::{self, AdamW};

use super::gate;
use super::prepare::PreparedData;

/// What one step did.
#[derive(Clone, Copy, Debug)]
pub struct StepResult {
    /// Mean loss over the step's samples.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Learning rate the update used.
    pub learning_rate: f64,
    /// Samples in the step.
    pub samples: u64,
    /// Tokens in the step.
    pub tokens: u64,
    /// Wall time.
    pub took: Duration,
}

/// The model and its optimizer: what a step changes.
#[derive(Debug)]
pub struct Learner {
    /// Encoder and head.
    pub model: SequenceClassifier,
    /// AdamW over the model's parameters.
    pub optimizer: AdamW,
    /// Seed of the dropout masks.
    pub seed: u64,
}

impl Learner {
    /// Takes one step over `micro_batches` (row indexes into the training rows).
    ///
    /// The loss is the sum over all items divided by all items of the step, so that any split of a batch
    /// into micro-batches gives the same gradient (HF averages averages, or does not divide at all).
    ///
    /// # Errors
    /// `non_finite_loss` before anything is updated; `gradient_missing` at the first step.
    pub fn step(
        &mut self,
        data: &PreparedData,
        micro_batches: &[Vec<u32>],
        global_step: u64,
        learning_rate: f64,
        args: &TrainingArguments,
    ) -> Result<StepResult, JobError> {
        let started = Instant::now();
        let samples: usize = micro_batches.iter().map(Vec::len).sum();
        #[expect(clippy::cast_precision_loss, reason = "a batch is far below 2^24")]
        let scale = 1.0 / samples.max(1) as f32;
        #[expect(clippy::cast_possible_truncation, reason = "a factor below 1")]
        let options = LossOptions {
            label_smoothing: args.label_smoothing_factor as f32,
            scale,
        };
        let dropout = DropoutSeed {
            seed: self.seed,
            step: global_step,
        };
        self.model.parameters().zero_grad().map_err(engine)?;
        let (mut loss, mut tokens) = (0.0, 0);
        for indexes in micro_batches {
            let batch = data.train.batch(indexes);
            loss += self
                .model
                .forward_backward(&input(&batch), &batch.labels, Some(dropout), &options)
                .map_err(engine)?;
            tokens += batch.tokens() as u64;
        }
        loss *= f64::from(scale);
        let grad_norm = optim::global_grad_norm(self.model.parameters()).map_err(engine)?;
        if !loss.is_finite() || !grad_norm.is_finite() {
            return Err(non_finite(
                loss,
                grad_norm,
                global_step,
                learning_rate,
                &lines(data, micro_batches),
            ));
        }
        if global_step == 0 {
            gate::check(self.model.parameters())?;
        }

        // ---- the update; everything after it is bookkeeping ------------------------------------
        let clip = optim::clip_coefficient(grad_norm, args.max_grad_norm);
        self.optimizer.step(learning_rate, clip).map_err(engine)?;
        self.model.weights_changed().map_err(engine)?;
        // -----------------------------------------------------------------------------------------

        Ok(StepResult {
            loss,
            grad_norm,
            learning_rate,
            samples: samples as u64,
            tokens,
            took: started.elapsed(),
        })
    }
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

/// A failure of the engine itself; nothing the user did.
pub fn engine(error: impl std::fmt::Display) -> JobError {
    JobError::new(
        ErrorCode::InternalError,
        format!("the engine failed: {error}"),
    )
}

/// Lines of the training file that a step's rows are on; the first few are enough to look at.
fn lines(data: &PreparedData, micro_batches: &[Vec<u32>]) -> String {
    let lines = micro_batches
        .iter()
        .flatten()
        .take(16)
        .filter_map(|&row| data.train_lines.get(row as usize));
    lines.map(u64::to_string).collect::<Vec<_>>().join(", ")
}

fn non_finite(
    loss: f64,
    grad_norm: f64,
    global_step: u64,
    learning_rate: f64,
    lines: &str,
) -> JobError {
    JobError::new(
        ErrorCode::NonFiniteLoss,
        format!(
            "loss {loss} and gradient norm {grad_norm} at step {} (learning rate {learning_rate:e}); the \
             weights were not updated with it; the step's rows are on lines {lines} of the training file",
            global_step + 1,
        ),
    )
    .at("/training_args/learning_rate")
    .hint("lower the learning rate, add warm-up, or set bf16 to false")
}

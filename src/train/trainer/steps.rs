//! Starting and finishing steps. On a GPU the next is started while it is at one.

use std::time::{Duration, Instant};

use crate::domain::{ErrorCode, Event, JobError, LogLevel};
use crate::faults::Faults;
use crate::train::data_order::StepPlan;
use crate::train::step::{StartedStep, StepContext, StepPlace};

use super::Trainer;

/// A GPU is given the next step while it is at one: else it would stand still while that is read and launched.
pub(super) const STEPS_AHEAD: usize = 1;

/// A step that was started.
pub(super) struct StepUnderWay {
    step: StartedStep,
    /// Its epoch, fractional, once it is done.
    epoch: f64,
    /// When its rows were asked for.
    started: Instant,
}

/// What the newest finished step did.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LastStep {
    pub(super) grad_norm: f64,
    pub(super) learning_rate: f64,
    finished: Option<Instant>,
}

impl Trainer<'_> {
    /// Starts one update. When memory is short, all micro-batches are halved and the step begins again: nothing but
    /// gradients has changed, and the rows of the update stay the same. A smaller micro-batch is kept for the
    /// rest of the training.
    pub(super) fn start_step(&mut self) -> Result<StepPlan, JobError> {
        if let Some(action) = self.job.faults.at("train.step", self.state.global_step + 1) {
            Faults::strike(action);
        }
        let place = self.place();
        // Waiting for rows counts.
        let started = Instant::now();
        loop {
            let size = self.micro_batch_size();
            let rows = self.batches.step(place.dropout_step, size)?;
            let context = StepContext {
                data: &self.data,
                args: &self.job.spec.training_args,
                pulse: self.pulse,
                faults: &self.job.faults,
            };
            match self.learner.start(&context, place, &rows.batches) {
                Ok(step) => {
                    self.state.global_step += 1;
                    let epoch = rows.plan.epoch;
                    self.under_way.push_back(StepUnderWay {
                        step,
                        epoch,
                        started,
                    });
                    return Ok(rows.plan);
                }
                Err(error) if error.code == ErrorCode::OutOfMemory && size > 1 => {
                    self.halve_micro_batches();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until at most `ahead` steps are under way, and takes note of the others.
    pub(super) fn finish_steps(&mut self, ahead: usize) -> Result<(), JobError> {
        loop {
            let too_many = self.under_way.len() > ahead;
            let oldest = self
                .under_way
                .pop_front_if(|oldest| too_many || oldest.step.is_done());
            match oldest {
                Some(oldest) => self.finish_step(&oldest)?,
                None => return Ok(()),
            }
        }
    }

    fn finish_step(&mut self, under_way: &StepUnderWay) -> Result<(), JobError> {
        let step = &under_way.step;
        let measures = step.finish(&self.data)?;
        let now = Instant::now();
        // While one was under way, the time of the next had not begun.
        let began = self.last.finished.max(Some(under_way.started));
        let took = began.map_or(Duration::ZERO, |began| now - began);
        self.last = LastStep {
            grad_norm: measures.grad_norm,
            learning_rate: step.place.learning_rate,
            finished: Some(now),
        };
        self.pulse.step(took);
        self.state
            .record_step(measures.loss, step.samples, step.tokens);
        self.meter.add_step(took, step.samples, step.tokens);
        let progress = self.meter.progress(
            step.place.global_step + 1,
            self.setup.total_steps,
            under_way.epoch,
            measures.loss,
        );
        if let Some(progress) = progress {
            self.observer.event(Event::Progress(progress));
        }
        Ok(())
    }

    /// Where the next step is. (With the fault `train.order`, a resumed training begins again at the first
    /// rows and dropout masks: the control that shows that tests of resuming can fail.)
    fn place(&self) -> StepPlace {
        let global_step = self.state.global_step;
        let forgetful = self.job.faults.limit("train.order").is_some();
        let before = if forgetful { self.resumed_at } else { 0 };
        StepPlace {
            global_step,
            dropout_step: global_step - before,
            learning_rate: self.setup.learning_rate(global_step),
        }
    }

    fn micro_batch_size(&self) -> usize {
        let divisor = self.state.micro_batch_divisor.max(1);
        let size = self.args().per_device_train_batch_size.div_ceil(divisor);
        usize::try_from(size).unwrap_or(usize::MAX)
    }

    fn halve_micro_batches(&mut self) {
        self.learner.model.release();
        let before = self.micro_batch_size();
        self.state.micro_batch_divisor = self.state.micro_batch_divisor.saturating_mul(2);
        self.observer.log(
            LogLevel::Warning,
            format!(
                "out of memory at step {}: micro-batches have {} rows instead of {before} from now on; the \
                 batch of an update stays the same",
                self.state.global_step + 1,
                self.micro_batch_size(),
            ),
        );
    }
}

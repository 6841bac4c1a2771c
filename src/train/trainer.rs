//! The loop. What happens at the end of a step, and in which order, is HF's `DefaultFlowCallback`:
//! log, evaluate, save.

use std::collections::BTreeMap;

use crate::domain::{Command, Event, JobError, LogLevel, Phase, SaveStrategy, TrainingArguments};

use super::checkpoint;
use super::data_order::StepPlan;
use super::evaluate::{self, round};
use super::meter::Meter;
use super::prepare::PreparedData;
use super::setup::Setup;
use super::state::{LogEntry, TrainerState};
use super::step::{Learner, StepResult};
use super::{Observer, TrainJob, resume};

/// How a training ended without an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The checkpoint of this step is the trained model.
    Finished {
        /// Its `global_step`.
        model_step: u64,
    },
    /// Stopped because the server asked for it.
    Cancelled,
    /// Saved a checkpoint and left; another attempt goes on from it.
    Paused,
}

/// One training under way.
pub struct Trainer<'a> {
    job: &'a TrainJob,
    observer: &'a dyn Observer,
    data: PreparedData,
    setup: Setup,
    learner: Learner,
    state: TrainerState,
    meter: Meter,
}

impl<'a> Trainer<'a> {
    /// Loads the model and sets the optimizer, the schedule and the data order up.
    ///
    /// # Errors
    /// If the base model does not fit the job.
    pub fn new(
        job: &'a TrainJob,
        data: PreparedData,
        observer: &'a dyn Observer,
    ) -> Result<Self, JobError> {
        let (setup, learner) = Setup::new(job, &data, observer)?;
        Ok(Self {
            job,
            observer,
            data,
            setup,
            learner,
            state: TrainerState::default(),
            meter: Meter::start(),
        })
    }

    /// Goes back to the newest complete checkpoint of an earlier attempt, if there is one.
    ///
    /// # Errors
    /// If it is complete but does not fit this model.
    pub fn resume(&mut self) -> Result<(), JobError> {
        if let Some(state) = resume::newest(self.job, &mut self.learner, self.observer)? {
            self.state = state;
        }
        Ok(())
    }

    /// Trains to the end.
    ///
    /// # Errors
    /// If training diverges or a checkpoint cannot be written.
    pub fn train(mut self) -> Result<Outcome, JobError> {
        self.observer.phase(Phase::Training);
        while self.state.global_step < self.setup.total_steps {
            match self.observer.command() {
                Command::Continue => {}
                Command::Cancel => return Ok(Outcome::Cancelled),
                Command::Pause => {
                    self.save()?;
                    return Ok(Outcome::Paused);
                }
            }
            let plan = self.setup.order.step(self.state.global_step);
            let learning_rate = self.setup.learning_rate(self.state.global_step);
            let result = self.learner.step(
                &self.data,
                &plan.micro_batches,
                self.state.global_step,
                learning_rate,
                &self.job.spec.training_args,
            )?;
            self.state
                .record_step(result.loss, result.samples, result.tokens);
            if self.on_step_end(&plan, &result)?.is_cancelled() {
                return Ok(Outcome::Cancelled);
            }
        }
        self.finish()
    }

    fn args(&self) -> &'a TrainingArguments {
        &self.job.spec.training_args
    }

    fn on_step_end(&mut self, plan: &StepPlan, result: &StepResult) -> Result<Flow, JobError> {
        let step = self.state.global_step;
        self.meter
            .add_step(result.took, result.samples, result.tokens);
        let progress = self
            .meter
            .progress(step, self.setup.total_steps, plan.epoch, result.loss);
        if let Some(progress) = progress {
            self.observer.event(Event::Progress(progress));
        }
        let due = self.setup.due(self.args(), step, plan.ends_epoch);
        if due.log {
            self.log(plan.epoch, result);
        }
        let mut new_best = false;
        if due.evaluate {
            match self.evaluate(plan.epoch)? {
                Some(better) => new_best = better,
                None => return Ok(Flow::Cancelled),
            }
        }
        let best = new_best && self.args().save_strategy == SaveStrategy::Best;
        if due.save || (best && step < self.setup.total_steps) {
            self.save()?;
        }
        Ok(Flow::Continue)
    }

    fn log(&mut self, epoch: f64, result: &StepResult) {
        let loss = self.state.take_logged_loss();
        let values = BTreeMap::from([
            ("loss".to_owned(), loss),
            ("grad_norm".to_owned(), result.grad_norm),
            ("learning_rate".to_owned(), result.learning_rate),
        ]);
        self.report_metrics(epoch, values);
    }

    /// Adds an entry to `log_history` and tells the observer.
    fn report_metrics(&mut self, epoch: f64, values: BTreeMap<String, f64>) {
        let step = self.state.global_step;
        self.state.log_history.push(LogEntry {
            epoch,
            step,
            values: values.clone(),
        });
        self.observer.event(Event::Metrics {
            step,
            epoch,
            values,
        });
    }

    /// Runs the evaluation set, if there is one. Answers whether it is the best so far, or `None` if
    /// cancelled meanwhile.
    fn evaluate(&mut self, epoch: f64) -> Result<Option<bool>, JobError> {
        let Some(rows) = &self.data.eval else {
            return Ok(Some(false));
        };
        self.observer.phase(Phase::Evaluating);
        let (observer, args) = (self.observer, &self.job.spec.training_args);
        #[expect(clippy::cast_possible_truncation, reason = "a factor below 1")]
        let evaluation = evaluate::evaluate(
            &mut self.learner.model,
            rows,
            &self.data.labels,
            args.per_device_eval_batch_size,
            args.label_smoothing_factor as f32,
            &|| observer.command() != Command::Cancel,
        )?;
        let Some(evaluation) = evaluation else {
            return Ok(None);
        };
        let better =
            self.state
                .record_evaluation(&evaluation, &args.best_metric(), args.larger_is_better());
        self.report_metrics(epoch, evaluation.metrics);
        self.observer.event(Event::ClassificationReport {
            step: self.state.global_step,
            classes: evaluation.classes,
            majority_share: evaluation.majority_share,
        });
        self.observer.phase(Phase::Training);
        Ok(Some(better))
    }

    /// Publishes a checkpoint of now; at the last step without the optimizer, as nothing follows.
    fn save(&mut self) -> Result<(), JobError> {
        self.observer.phase(Phase::Saving);
        self.state.train_seconds = self.meter.elapsed_s();
        let resumable = self.state.global_step < self.setup.total_steps;
        let record = checkpoint::save(
            self.job,
            &self.setup,
            &self.data.labels,
            &self.learner,
            &self.state,
            resumable,
        )?;
        self.observer.event(Event::Checkpoint(record));
        for step in checkpoint::rotate(self.job, &self.state)? {
            self.observer.event(Event::CheckpointRemoved { step });
        }
        self.observer.phase(Phase::Training);
        Ok(())
    }

    /// The end of training: a last evaluation if the model was not just evaluated, the final checkpoint, and
    /// HF's summary.
    fn finish(mut self) -> Result<Outcome, JobError> {
        let epoch = self.setup.order.epochs_after(self.setup.total_steps);
        let evaluated = self.state.last_eval_step == Some(self.state.global_step);
        if !evaluated && self.evaluate(epoch)?.is_none() {
            return Ok(Outcome::Cancelled);
        }
        self.summarize(epoch);
        self.save()?;
        let step = self.state.global_step;
        let best = self
            .args()
            .load_best_model_at_end
            .then_some(self.state.best_global_step)
            .flatten();
        if let Some(model_step) = best
            && model_step != step
        {
            self.report_best(model_step);
            return Ok(Outcome::Finished { model_step });
        }
        Ok(Outcome::Finished { model_step: step })
    }

    /// The model is an earlier checkpoint than the last: its numbers are the job's final ones.
    fn report_best(&self, step: u64) {
        let metric = self.args().best_metric();
        self.observer.log(
            LogLevel::Info,
            format!("the model is the checkpoint of step {step}, best by {metric}"),
        );
        if let Some(best) = self.state.best_evaluation.clone() {
            self.observer.event(Event::Metrics {
                step,
                epoch: self.setup.order.epochs_after(step),
                values: best.metrics,
            });
            self.observer.event(Event::ClassificationReport {
                step,
                classes: best.classes,
                majority_share: best.majority_share,
            });
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    fn summarize(&mut self, epoch: f64) {
        let runtime = self.meter.elapsed_s().max(1e-9);
        let steps = self.state.global_step as f64;
        let samples = self.state.samples_seen as f64;
        let flos = self.setup.flos(self.state.tokens_seen);
        let mut values = BTreeMap::from([
            ("train_runtime".to_owned(), round(runtime, 4)),
            (
                "train_samples_per_second".to_owned(),
                round(samples / runtime, 3),
            ),
            (
                "train_steps_per_second".to_owned(),
                round(steps / runtime, 3),
            ),
            (
                "train_loss".to_owned(),
                self.state.loss_total / steps.max(1.0),
            ),
            ("total_flos".to_owned(), flos),
        ]);
        if let Some(bytes) = super::meter::peak_resident_bytes() {
            values.insert("train_peak_resident_bytes".to_owned(), bytes as f64);
        }
        self.report_metrics(epoch, values);
    }
}

/// Whether to go on after a step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Continue,
    Cancelled,
}

impl Flow {
    fn is_cancelled(self) -> bool {
        self == Self::Cancelled
    }
}

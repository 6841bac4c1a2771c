//! The loop. What happens at the end of a step, and in which order, is HF's `DefaultFlowCallback`:
//! log, evaluate, save.

mod steps;

use std::collections::{BTreeMap, VecDeque};

use crate::domain::{Command, Event, JobError, LogLevel, Phase, SaveStrategy, TrainingArguments};

use super::background::BackgroundWriter;
use super::batches::Batches;
use super::checkpoint::{self, Published, Publisher};
use super::data_order::StepPlan;
use super::evaluate::{self, Evaluation, round};
use super::meter::Meter;
use super::prepare::PreparedData;
use super::setup::{Due, Setup};
use super::state::{LogEntry, TrainerState};
use super::step::Learner;
use super::watchdog::Pulse;
use super::{Observer, TrainJob, resume};

use steps::{LastStep, STEPS_AHEAD, StepUnderWay};

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
    pulse: &'a Pulse,
    data: PreparedData,
    setup: Setup,
    batches: Batches,
    learner: Learner,
    /// Started, oldest first; their results are not in `state` yet.
    under_way: VecDeque<StepUnderWay>,
    last: LastStep,
    state: TrainerState,
    /// The step this attempt began after.
    resumed_at: u64,
    /// The step of the newest checkpoint, published or under way.
    saved_at: Option<u64>,
    writer: BackgroundWriter,
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
        pulse: &'a Pulse,
    ) -> Result<Self, JobError> {
        let (setup, learner) = Setup::new(job, &data, observer)?;
        let publisher = Publisher::new(job, &setup, &data.labels)?;
        Ok(Self {
            job,
            observer,
            pulse,
            writer: BackgroundWriter::start(publisher)?,
            batches: Batches::new(data.train.clone(), setup.order.clone(), setup.total_steps),
            data,
            setup,
            learner,
            under_way: VecDeque::new(),
            last: LastStep::default(),
            state: TrainerState {
                micro_batch_divisor: job.micro_batch_divisor.max(1),
                ..TrainerState::default()
            },
            resumed_at: 0,
            saved_at: None,
            meter: Meter::start(),
        })
    }

    /// Goes back to the newest complete checkpoint of an earlier attempt, if there is one.
    ///
    /// # Errors
    /// If it is complete but does not fit this model.
    pub fn resume(&mut self) -> Result<(), JobError> {
        if let Some(state) = resume::newest(self.job, &mut self.learner, self.observer)? {
            let divisor = self.state.micro_batch_divisor;
            self.state = state;
            self.state.micro_batch_divisor = self.state.micro_batch_divisor.max(divisor);
            self.resumed_at = self.state.global_step;
            self.saved_at = Some(self.state.global_step);
            // The trainer before may have died before it could remove what its last checkpoint replaced.
            self.remove(checkpoint::obsolete(self.job, &self.state)?);
        }
        Ok(())
    }

    /// Trains to the end.
    ///
    /// # Errors
    /// If training diverges or a checkpoint cannot be written.
    pub fn train(mut self) -> Result<Outcome, JobError> {
        let outcome = self.train_on();
        if outcome == Ok(Outcome::Cancelled) {
            self.writer.abandon();
        }
        // Whatever ended training, a checkpoint that was published is reported. What kept one from being
        // published is told only if nothing worse happened.
        let pulse = self.pulse;
        match pulse.rest(|| self.writer.wait()) {
            Ok(published) => self.report_checkpoint(published),
            Err(error) => tracing::warn!(%error, "the last checkpoint was not published"),
        }
        outcome
    }

    fn train_on(&mut self) -> Result<Outcome, JobError> {
        self.observer.phase(Phase::Training);
        while !self.setup.is_over(self.args(), &self.state) {
            match self.observer.command() {
                Command::Continue => {}
                Command::Cancel => return Ok(Outcome::Cancelled),
                Command::Pause => {
                    self.finish_steps(0)?;
                    if self.saved_at != Some(self.state.global_step) {
                        self.save()?;
                    }
                    self.wait_for_checkpoint()?;
                    return Ok(Outcome::Paused);
                }
            }
            let plan = self.start_step()?;
            let step = self.state.global_step;
            let due = self.setup.due(self.args(), step, plan.ends_epoch);
            // Whatever looks at what was learned waits for it.
            let waits = due.any() || self.setup.is_over(self.args(), &self.state);
            self.finish_steps(if waits { 0 } else { STEPS_AHEAD })?;
            if self.on_step_end(&plan, due)?.is_cancelled() {
                return Ok(Outcome::Cancelled);
            }
        }
        self.finish()
    }

    fn args(&self) -> &'a TrainingArguments {
        &self.job.spec.training_args
    }

    fn on_step_end(&mut self, plan: &StepPlan, due: Due) -> Result<Flow, JobError> {
        let published = self.writer.poll()?;
        self.report_checkpoint(published);
        if due.log {
            self.log(plan.epoch);
        }
        let mut new_best = false;
        if due.evaluate {
            match self.evaluate(plan.epoch)? {
                Some(better) => new_best = better,
                None => return Ok(Flow::Cancelled),
            }
        }
        let best = new_best && self.args().save_strategy == SaveStrategy::Best;
        // What comes at the end is saved there.
        if (due.save || best) && !self.setup.is_over(self.args(), &self.state) {
            self.save()?;
        }
        Ok(Flow::Continue)
    }

    fn log(&mut self, epoch: f64) {
        let loss = self.state.take_logged_loss();
        let values = BTreeMap::from([
            ("loss".to_owned(), loss),
            ("grad_norm".to_owned(), self.last.grad_norm),
            ("learning_rate".to_owned(), self.last.learning_rate),
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
        let keep_going = || {
            self.pulse.beat();
            observer.command() != Command::Cancel
        };
        let evaluation = evaluate::evaluate(
            &mut self.learner.model,
            rows,
            &self.data.labels,
            args,
            &keep_going,
        )?;
        let Some(evaluation) = evaluation else {
            return Ok(None);
        };
        let better = self.judge(&evaluation);
        self.report_metrics(epoch, evaluation.metrics);
        self.observer.event(Event::ClassificationReport {
            step: self.state.global_step,
            classes: evaluation.classes,
            majority_share: evaluation.majority_share,
        });
        self.observer.phase(Phase::Training);
        Ok(Some(better))
    }

    /// Counts an evaluation for early stopping and for the best; answers whether it is the best so far.
    fn judge(&mut self, evaluation: &Evaluation) -> bool {
        let args = self.args();
        let (deciding, larger) = (args.best_metric(), args.larger_is_better());
        if let Some(&value) = evaluation.metrics.get(&deciding) {
            self.state
                .count_for_early_stopping(value, larger, args.early_stopping_threshold);
        }
        self.state.record_evaluation(evaluation, &deciding, larger)
    }

    /// Begins a checkpoint of now, after the one under way is published; it is written while training goes
    /// on. At the end it has no optimizer, as nothing follows.
    fn save(&mut self) -> Result<(), JobError> {
        self.observer.phase(Phase::Saving);
        self.state.train_seconds = self.meter.elapsed_s();
        self.wait_for_checkpoint()?;
        let pulse = self.pulse;
        let (learner, state) = (&self.learner, &self.state);
        pulse.rest(|| {
            self.writer
                .begin(|snapshot| snapshot.take(learner, state, !state.finished))
        })?;
        self.saved_at = Some(self.state.global_step);
        self.observer.phase(Phase::Training);
        Ok(())
    }

    /// Returns when nothing is being written any more.
    fn wait_for_checkpoint(&mut self) -> Result<(), JobError> {
        let pulse = self.pulse;
        let published = pulse.rest(|| self.writer.wait())?;
        self.report_checkpoint(published);
        Ok(())
    }

    fn report_checkpoint(&self, published: Option<Published>) {
        let Some(published) = published else { return };
        self.observer.event(Event::Checkpoint(published.record));
        self.remove(published.obsolete);
    }

    fn remove(&self, obsolete: Vec<u64>) {
        for &step in &obsolete {
            self.observer.event(Event::CheckpointRemoved { step });
        }
        self.writer.remove(obsolete);
    }

    /// The end of training: a last evaluation if the model was not just evaluated, the final checkpoint, and
    /// HF's summary.
    fn finish(&mut self) -> Result<Outcome, JobError> {
        // An attempt that died after the final checkpoint has left nothing to do.
        if !self.state.finished {
            let epoch = self.setup.order.epochs_after(self.state.global_step);
            let evaluated = self.state.last_eval_step == Some(self.state.global_step);
            if !evaluated && self.evaluate(epoch)?.is_none() {
                return Ok(Outcome::Cancelled);
            }
            self.tell_if_stopped_early();
            self.summarize(epoch);
            self.state.finished = true;
            self.save()?;
            self.wait_for_checkpoint()?;
        }
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

    fn tell_if_stopped_early(&self) {
        if self.state.global_step < self.setup.total_steps {
            let message = format!(
                "stopped early at step {} of {}: {} evaluations in a row were not better by {}",
                self.state.global_step,
                self.setup.total_steps,
                self.state.early_stopping_counter,
                self.args().best_metric(),
            );
            self.observer.log(LogLevel::Info, message);
        }
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

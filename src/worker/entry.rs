//! `chandler train`: one attempt at one job, in a process of its own. Reads the spec from the server,
//! trains, reports. It never opens the database, and a crash here cannot hurt the API.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::artifacts::{self, DataDir};
use crate::domain::{
    AttemptId, AttemptSpec, Command, DeviceKind, ErrorCode, Event, JobError, LogLevel, Phase,
    Progress, SystemClock,
};
use crate::faults::Faults;
use crate::hub::{Hub, HubEnv, HubOptions};
use crate::kernels::pool;
use crate::train::{self, Observer, Outcome, TrainJob};

use super::gpus::meter::{GpuMeter, SAMPLE_EVERY};
use super::reporter::{Reporter, fetch_spec};

/// How long the last messages may take to reach the server. While it is away the spool keeps them.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(30);

/// Before training begins, commands are looked at this often.
const COMMAND_EVERY: Duration = Duration::from_millis(50);

/// How long a hanging trainer waits for its last words to arrive.
const LAST_WORDS_TIMEOUT: Duration = Duration::from_secs(2);

/// What the server tells a trainer on its command line; the token comes through the environment.
#[derive(Clone, Debug)]
pub struct TrainerArguments {
    /// Base URL of the server.
    pub server_url: String,
    /// The attempt.
    pub attempt_id: AttemptId,
    /// Folder for the spool and the log.
    pub attempt_dir: PathBuf,
    /// The attempt's token.
    pub token: String,
    /// Threads to train with.
    pub threads: usize,
    /// What to train on.
    pub device: DeviceKind,
}

/// Runs the attempt to its end.
pub fn run(arguments: &TrainerArguments) -> ExitCode {
    let stop = Arc::new(AtomicBool::new(false));
    if let Err(error) = stop_on_sigterm(Arc::clone(&stop)) {
        tracing::error!(%error, "signals cannot be watched");
        return ExitCode::from(2);
    }
    pool::set_threads(arguments.threads);
    pool::flush_denormals();
    let spec = match fetch_spec(
        &arguments.server_url,
        arguments.attempt_id,
        &arguments.token,
    ) {
        Ok(spec) => spec,
        Err(error) => {
            tracing::error!(%error, "the attempt's spec cannot be read");
            return ExitCode::from(2);
        }
    };
    let faults = match Faults::from_env(spec.attempt) {
        Ok(faults) => faults,
        Err(error) => {
            tracing::error!(error);
            return ExitCode::from(2);
        }
    };
    let reporter = match Reporter::start(
        &arguments.server_url,
        arguments.attempt_id,
        &arguments.token,
        &arguments.attempt_dir,
        Arc::new(SystemClock),
        spec.heartbeat_ms,
    ) {
        Ok(reporter) => reporter,
        Err(error) => {
            tracing::error!(%error, "the spool cannot be opened");
            return ExitCode::from(2);
        }
    };
    let reporting = Reporting {
        reporter,
        stop,
        preparing: AtomicBool::new(true),
        gpu: match arguments.device {
            DeviceKind::Cpu => None,
            DeviceKind::Cuda => GpuMeter::start(spec.gpu_energy_j).ok(),
        },
        place: Mutex::default(),
    };
    std::thread::scope(|scope| {
        scope.spawn(|| reporting.leave_while_preparing());
        let (under_way, over) = mpsc::channel();
        let gpu_reports = scope.spawn(|| reporting.report_gpu(over));
        let outcome = attempt(&spec, faults, &reporting);
        reporting.preparing.store(false, Ordering::Release);
        // Nothing may be reported after the end.
        drop(under_way);
        gpu_reports.join().ok();
        reporting.end(outcome)
    })
}

/// Resolves the base model and trains. A panic in the engine becomes an error of the job.
fn attempt(spec: &AttemptSpec, faults: Faults, observer: &Reporting) -> Result<Outcome, JobError> {
    let work = std::panic::AssertUnwindSafe(|| {
        observer.phase(Phase::ResolvingModel);
        let data_dir = DataDir::at(&spec.data_dir);
        let hub = Hub::new(HubOptions::new(data_dir.clone(), HubEnv::from_process()));
        let checkpoints_dir = data_dir.enter_checkpoints(spec.job_id, spec.attempt)?;
        let model_dir = base_model(&hub, &spec.spec.model, &checkpoints_dir)?;
        observer.log(
            LogLevel::Info,
            format!("base model {} in {}", spec.spec.model, model_dir.display()),
        );
        train::run(
            &TrainJob {
                job_id: spec.job_id,
                spec: spec.spec.clone(),
                train: spec.train.clone(),
                eval: spec.eval.clone(),
                model_dir,
                checkpoints_dir,
                micro_batch_divisor: spec.micro_batch_divisor,
                faults,
            },
            observer,
        )
    });
    std::panic::catch_unwind(work).unwrap_or_else(|panic| {
        let message = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        tracing::error!(message, "the trainer panicked");
        Err(JobError::new(
            ErrorCode::InternalError,
            format!("the trainer panicked: {message}"),
        ))
    })
}

/// The folder of the base model. An attempt that goes on from a checkpoint does not need it any more: if it is
/// gone (another job's checkpoint that was rotated away, a hub that cannot be reached), the checkpoint does.
fn base_model(hub: &Hub, name: &str, checkpoints_dir: &Path) -> Result<PathBuf, JobError> {
    hub.resolve(name).map(|model| model.dir).or_else(|error| {
        let own = artifacts::newest_valid(checkpoints_dir)?.found;
        own.map(|(_, dir, _)| dir).ok_or(error)
    })
}

/// The observer that reports to the server.
struct Reporting {
    reporter: Reporter,
    stop: Arc<AtomicBool>,
    /// Until training begins.
    preparing: AtomicBool,
    /// The card, if there is one.
    gpu: Option<GpuMeter>,
    /// Step and epoch that training has reached in this attempt.
    place: Mutex<Option<(u64, f64)>>,
}

impl Observer for Reporting {
    fn event(&self, event: Event) {
        if matches!(event, Event::Phase { phase } if phase == Phase::Training) {
            self.preparing.store(false, Ordering::Release);
        }
        if let Event::Progress(Progress {
            global_step: step,
            epoch,
            ..
        })
        | Event::Metrics { step, epoch, .. } = event
        {
            self.reach(step, epoch);
        }
        self.reporter.event(event);
    }

    fn command(&self) -> Command {
        match self.reporter.command() {
            Command::Continue if self.stop.load(Ordering::Relaxed) => Command::Pause,
            command => command,
        }
    }

    fn flush(&self) {
        self.reporter.flush(LAST_WORDS_TIMEOUT);
    }
}

impl Reporting {
    /// Follows a cancel or a request to leave before training begins. Finding a model and tokenising a large
    /// file may take minutes, look at no commands and leave nothing worth saving: so the process just goes.
    fn leave_while_preparing(&self) {
        while self.preparing.load(Ordering::Acquire) {
            let outcome = match self.command() {
                Command::Continue => {
                    std::thread::sleep(COMMAND_EVERY);
                    continue;
                }
                Command::Cancel => Outcome::Cancelled,
                Command::Pause => Outcome::Paused,
            };
            if self.preparing.swap(false, Ordering::AcqRel) {
                self.end(Ok(outcome));
                std::process::exit(0);
            }
        }
    }

    /// The model may be an earlier checkpoint, whose numbers are told last.
    fn reach(&self, step: u64, epoch: f64) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if place.is_none_or(|(before, _)| before <= step) {
            *place = Some((step, epoch));
        }
    }

    fn reached(&self) -> Option<(u64, f64)> {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports what the card does until the attempt is over. Before the first step there is no place in the series to
    /// report it for.
    fn report_gpu(&self, over: Receiver<()>) {
        let Some(gpu) = &self.gpu else { return };
        while over.recv_timeout(SAMPLE_EVERY) == Err(RecvTimeoutError::Timeout) {
            gpu.shared_by(self.reporter.jobs_on_device());
            let now = Instant::now();
            if let Some(place) = self.reached()
                && gpu.is_due(now)
            {
                self.gpu_values(place, gpu.report(now));
            }
        }
    }

    fn gpu_values(&self, (step, epoch): (u64, f64), values: BTreeMap<String, f64>) {
        if !values.is_empty() {
            self.reporter.event(Event::Metrics {
                step,
                epoch,
                values,
            });
        }
    }

    /// Reports how it ended, and before that what it has cost.
    fn end(&self, outcome: Result<Outcome, JobError>) -> ExitCode {
        if self.reporter.is_fenced() {
            tracing::warn!("the attempt was fenced: another one holds the job");
            return ExitCode::SUCCESS;
        }
        if let Some(gpu) = &self.gpu {
            let place = self.reached().unwrap_or_default();
            self.gpu_values(place, gpu.last_report());
        }
        self.reporter.event(match outcome {
            Ok(Outcome::Finished { model_step }) => Event::Succeeded { model_step },
            Ok(Outcome::Cancelled) => Event::Cancelled {},
            Ok(Outcome::Paused) => Event::Requeued {
                reason: "the trainer was asked to leave".to_owned(),
            },
            Err(error) => {
                tracing::error!(%error, "the job failed");
                Event::Failed { error }
            }
        });
        if self.reporter.flush(FLUSH_TIMEOUT) {
            ExitCode::SUCCESS
        } else {
            tracing::error!("the last messages did not reach the server");
            ExitCode::FAILURE
        }
    }
}

/// SIGTERM and SIGINT mean: save, report, leave. Watched by a small runtime on a thread of its own.
fn stop_on_sigterm(stop: Arc<AtomicBool>) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            runtime.block_on(async {
                let (Ok(mut term), Ok(mut int)) = (
                    signal(SignalKind::terminate()),
                    signal(SignalKind::interrupt()),
                ) else {
                    return;
                };
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                stop.store(true, Ordering::Relaxed);
            });
        })?;
    Ok(())
}

//! Worker, dispatcher and rescuer against a real store and a trainer that is a note in a list.

mod gpus;
mod processes;

use std::collections::HashMap;
use std::sync::Mutex;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::artifacts::DataDir;
use crate::domain::{
    AttemptId, DatasetFormat, DatasetId, DatasetLayout, ErrorCode, Event, FixedClock, Ids,
    JobError, JobId, JobSpec, Message, RetryPolicy, SequentialIds, Status, Timestamp,
};
use crate::store::{ClaimedAttempt, Dataset, Job};

/// Trainers that live until they are stopped.
#[derive(Debug, Default)]
struct FakeExecutor {
    started: Mutex<Vec<ClaimedAttempt>>,
    live: Mutex<HashMap<AttemptId, Option<Duration>>>,
    refuse: bool,
    /// Stopped trainers leave at once, through here.
    exits: Option<mpsc::Sender<TrainerExit>>,
}

impl FakeExecutor {
    fn stopped_with(&self, attempt: AttemptId) -> Option<Duration> {
        self.live.lock().unwrap()[&attempt]
    }

    fn claimed(&self, index: usize) -> ClaimedAttempt {
        self.started.lock().unwrap()[index].clone()
    }
}

impl Executor for FakeExecutor {
    fn start(&self, claimed: &ClaimedAttempt) -> Result<(), JobError> {
        if self.refuse {
            return Err(JobError::new(ErrorCode::TrainerStartFailed, "no processes"));
        }
        self.started.lock().unwrap().push(claimed.clone());
        self.live.lock().unwrap().insert(claimed.attempt_id, None);
        Ok(())
    }

    fn stop(&self, attempt: AttemptId, grace: Duration) -> bool {
        let mut live = self.live.lock().unwrap();
        let Some(entry) = live.get_mut(&attempt) else {
            return false;
        };
        *entry = Some(grace);
        if let Some(exits) = &self.exits {
            live.remove(&attempt);
            let exit = TrainerExit {
                attempt_id: attempt,
                cause: exit::ExitCause::Signal(15),
                log_tail: String::new(),
                spool: std::path::PathBuf::new(),
                oom_kill_seen: false,
            };
            exits.try_send(exit).unwrap();
        }
        true
    }

    fn live(&self) -> Vec<AttemptId> {
        self.live.lock().unwrap().keys().copied().collect()
    }
}

struct Fixture {
    folder: TempDir,
    clock: Arc<FixedClock>,
    store: Store,
    dataset: DatasetId,
    options: WorkerOptions,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(FixedClock::new(Timestamp(1_000_000)));
        let ids = Arc::new(SequentialIds::default());
        let dataset = DatasetId(ids.next_uuid());
        let store = Store::open(&folder.path().join("test.db"), clock.clone(), ids)
            .await
            .unwrap();
        store
            .create_dataset(Dataset {
                id: dataset,
                name: "d".to_owned(),
                layout: DatasetLayout {
                    format: DatasetFormat::Csv,
                    header: true,
                    columns: Vec::new(),
                },
                size_bytes: 1,
                sha256: "00".repeat(32),
                rows: 1,
                created_at: Timestamp(0),
            })
            .await
            .unwrap();
        let mut options = WorkerOptions::new(
            DataDir::at(folder.path()),
            "http://127.0.0.1:9".to_owned(),
            folder.path().join("fake-trainer"),
        );
        options.retry = RetryPolicy {
            max_attempts: 2,
            first_delay_ms: 0,
            max_delay_ms: 0,
        };
        Self {
            folder,
            clock,
            store,
            dataset,
            options,
        }
    }

    async fn job(&self) -> JobId {
        let spec = json!({
            "model": "org/model",
            "task": "sequence_classification",
            "dataset": {"train": self.dataset},
        });
        let spec = JobSpec::parse(&spec).unwrap();
        self.store.create_job(spec, None).await.unwrap().0.id
    }

    async fn read(&self, job: JobId) -> Job {
        self.store.job(job).await.unwrap().unwrap()
    }

    fn dispatcher(&self, executor: &Arc<FakeExecutor>) -> Dispatcher {
        Dispatcher::new(self.store.clone(), executor.clone(), &self.options)
    }

    fn rescuer(&self, executor: &Arc<FakeExecutor>) -> Rescuer {
        Rescuer::new(
            self.store.clone(),
            executor.clone(),
            self.clock.clone(),
            &self.options,
        )
    }

    async fn report(&self, claimed: &ClaimedAttempt, seq: u64, event: Event) {
        let at = Timestamp(0);
        let messages = vec![Message { seq, at, event }];
        let lease_ms = self.options.lease_ms;
        self.store
            .record_messages(claimed.attempt_id, &claimed.token, messages, lease_ms)
            .await
            .unwrap();
    }

    /// Waits for what the worker does; a failing test is ended by its runner.
    async fn until(&self, job: JobId, status: Status) -> Job {
        let mut news = self.store.subscribe(job);
        loop {
            let job = self.read(job).await;
            if job.status == status {
                return job;
            }
            news.changed().await.unwrap();
        }
    }
}

#[tokio::test]
async fn the_dispatcher_fills_slots_and_no_more() {
    let mut f = Fixture::new().await;
    f.options.slots = Slots::Cpu(2);
    let executor = Arc::new(FakeExecutor::default());
    let mut dispatcher = f.dispatcher(&executor);
    assert_eq!(dispatcher.tick().await, Tick::Nothing);
    let (first, second, third) = (f.job().await, f.job().await, f.job().await);
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    assert_eq!(dispatcher.tick().await, Tick::NoSlot);
    assert_eq!(executor.claimed(0).job_id, first);
    assert_eq!(executor.claimed(1).job_id, second);

    // Its report ends the attempt, but the process still holds the slot.
    let claimed = executor.claimed(0);
    f.report(&claimed, 1, Event::Cancelled {}).await;
    assert_eq!(dispatcher.tick().await, Tick::NoSlot);
    executor.live.lock().unwrap().remove(&claimed.attempt_id);
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    assert_eq!(executor.claimed(2).job_id, third);
}

#[tokio::test]
async fn adopted_attempts_hold_slots() {
    let f = Fixture::new().await;
    f.job().await;
    f.store.claim_next(1000).await.unwrap().unwrap();
    f.job().await;
    let executor = Arc::new(FakeExecutor::default());
    assert_eq!(f.dispatcher(&executor).tick().await, Tick::NoSlot);
}

#[tokio::test]
async fn no_slots_means_nothing_is_trained() {
    let mut f = Fixture::new().await;
    f.options.slots = Slots::Cpu(0);
    let job = f.job().await;
    let executor = Arc::new(FakeExecutor::default());
    assert_eq!(f.dispatcher(&executor).tick().await, Tick::NoSlot);
    assert_eq!(f.read(job).await.status, Status::Queued);
}

#[tokio::test]
async fn a_trainer_that_cannot_start_fails_its_job_alone() {
    let f = Fixture::new().await;
    let (first, second) = (f.job().await, f.job().await);
    let executor = Arc::new(FakeExecutor {
        refuse: true,
        ..FakeExecutor::default()
    });
    assert_eq!(f.dispatcher(&executor).tick().await, Tick::Claimed);
    let failed = f.read(first).await;
    assert_eq!(failed.error.unwrap().code, ErrorCode::TrainerStartFailed);
    assert_eq!(f.read(second).await.status, Status::Queued);
}

#[tokio::test]
async fn a_silent_trainer_is_killed_and_its_job_tried_again_then_failed() {
    let f = Fixture::new().await;
    let executor = Arc::new(FakeExecutor::default());
    let (mut dispatcher, mut rescuer) = (f.dispatcher(&executor), f.rescuer(&executor));
    let job = f.job().await;
    for attempt in 1..=2 {
        assert_eq!(dispatcher.tick().await, Tick::Claimed);
        let claimed = executor.claimed(attempt - 1);
        f.clock.advance_ms(f.options.lease_ms);
        rescuer.tick().await;
        assert_eq!(f.read(job).await.status, Status::Running);
        f.clock.advance_ms(1);
        rescuer.tick().await;
        assert_eq!(
            executor.stopped_with(claimed.attempt_id),
            Some(Duration::ZERO)
        );
        executor.live.lock().unwrap().remove(&claimed.attempt_id);
    }
    let failed = f.read(job).await;
    assert_eq!(failed.status, Status::Failed);
    let error = failed.error.unwrap();
    assert_eq!(error.code, ErrorCode::Poisoned);
    let last = "the trainer process stopped answering";
    assert!(error.message.ends_with(last), "{}", error.message);
}

#[tokio::test]
async fn a_cancel_that_is_not_followed_is_enforced() {
    let f = Fixture::new().await;
    let executor = Arc::new(FakeExecutor::default());
    let mut rescuer = f.rescuer(&executor);
    let ours = f.job().await;
    f.dispatcher(&executor).tick().await;
    let claimed = executor.claimed(0);
    // This one was started by an earlier server.
    let adopted = f.job().await;
    f.store.claim_next(f.options.lease_ms).await.unwrap();
    for job in [ours, adopted] {
        f.store.cancel_job(job).await.unwrap();
    }
    f.clock.advance_ms(f.options.cancel_grace_ms);
    rescuer.tick().await;
    assert_eq!(executor.stopped_with(claimed.attempt_id), None);
    f.clock.advance_ms(1);
    rescuer.tick().await;
    let grace = Duration::from_millis(f.options.kill_after_ms);
    assert_eq!(executor.stopped_with(claimed.attempt_id), Some(grace));
    assert_eq!(f.read(ours).await.status, Status::Running);
    assert_eq!(f.read(adopted).await.status, Status::Cancelled);
}

#[tokio::test]
async fn a_job_that_ran_too_long_fails_and_its_trainer_is_killed() {
    let f = Fixture::new().await;
    let executor = Arc::new(FakeExecutor::default());
    let mut rescuer = f.rescuer(&executor);
    let spec = json!({
        "model": "org/model",
        "task": "sequence_classification",
        "dataset": {"train": f.dataset},
        "max_runtime_s": 5,
    });
    let spec = JobSpec::parse(&spec).unwrap();
    let job = f.store.create_job(spec, None).await.unwrap().0.id;
    f.dispatcher(&executor).tick().await;
    let claimed = executor.claimed(0);
    f.clock.advance_ms(4_999);
    rescuer.tick().await;
    assert_eq!(f.read(job).await.status, Status::Running);
    f.clock.advance_ms(1);
    rescuer.tick().await;
    let stopped = executor.stopped_with(claimed.attempt_id);
    assert_eq!(stopped, Some(Duration::ZERO));
    let error = f.read(job).await.error.unwrap();
    assert_eq!(error.code, ErrorCode::MaxRuntimeExceeded);
}

#[tokio::test]
async fn whoever_ends_an_attempt_the_spool_is_applied_first() {
    let f = Fixture::new().await;
    let executor = Arc::new(FakeExecutor::default());
    let mut rescuer = f.rescuer(&executor);
    // Both were started by an earlier server.
    let paused = f.job().await;
    f.store.claim_next(1_000_000).await.unwrap();
    f.store.pause_job(paused).await.unwrap();
    let spec = json!({
        "model": "org/model",
        "task": "sequence_classification",
        "dataset": {"train": f.dataset},
        "max_runtime_s": 5,
    });
    let spec = JobSpec::parse(&spec).unwrap();
    let overrun = f.store.create_job(spec, None).await.unwrap().0.id;
    f.store.claim_next(1_000_000).await.unwrap();
    for job in [paused, overrun] {
        let spool = f.options.data_dir.events_file(job, 1);
        std::fs::create_dir_all(spool.parent().unwrap()).unwrap();
        let message = Message {
            seq: 1,
            at: Timestamp(0),
            event: Event::CheckpointRemoved { step: 7 },
        };
        std::fs::write(spool, serde_json::to_string(&message).unwrap()).unwrap();
    }
    f.clock.advance_ms(f.options.cancel_grace_ms + 1);
    rescuer.tick().await;
    for (job, status, last) in [
        (paused, Status::Paused, "paused"),
        (overrun, Status::Failed, "failed"),
    ] {
        assert_eq!(f.read(job).await.status, status);
        let events = f.store.events(job, 0, 100).await.unwrap();
        let kinds: Vec<_> = events.iter().map(|e| e.event.kind()).collect();
        assert_eq!(kinds, ["queued", "started", "checkpoint_removed", last]);
    }
}

#[tokio::test]
async fn a_trainer_that_stays_after_its_end_is_stopped() {
    let f = Fixture::new().await;
    let executor = Arc::new(FakeExecutor::default());
    let mut rescuer = f.rescuer(&executor);
    f.job().await;
    f.dispatcher(&executor).tick().await;
    let claimed = executor.claimed(0);
    f.report(&claimed, 1, Event::Cancelled {}).await;
    rescuer.tick().await;
    assert_eq!(executor.stopped_with(claimed.attempt_id), None);
    f.clock.advance_ms(f.options.cancel_grace_ms + 1);
    rescuer.tick().await;
    assert!(executor.stopped_with(claimed.attempt_id).is_some());
}

#[tokio::test]
async fn stopping_the_worker_queues_its_jobs_again_without_counting() {
    let f = Fixture::new().await;
    let job = f.job().await;
    for attempt in 1..=3 {
        let (sender, exits) = mpsc::channel(8);
        let executor = Arc::new(FakeExecutor {
            exits: Some(sender),
            ..FakeExecutor::default()
        });
        let (store, options) = (f.store.clone(), f.options.clone());
        let worker = Worker::start_with(
            store,
            options,
            f.clock.clone(),
            executor,
            exits,
            Arc::default(),
        );
        worker.wake();
        assert_eq!(f.until(job, Status::Running).await.attempt, attempt);
        worker.shutdown(Shutdown::Stop { grace_ms: 1000 }).await;
        assert_eq!(f.read(job).await.status, Status::Queued);
        worker.shutdown(Shutdown::Leave).await;
    }
}

#[tokio::test]
async fn an_exit_that_waits_when_the_worker_stops_is_not_forgotten() {
    let f = Fixture::new().await;
    let job = f.job().await;
    let claimed = f.store.claim_next(1000).await.unwrap().unwrap();
    let (sender, exits) = mpsc::channel(8);
    let executor = Arc::new(FakeExecutor::default());
    let mut worker = Worker {
        dispatcher: f.dispatcher(&executor),
        rescuer: f.rescuer(&executor),
        store: f.store.clone(),
        executor,
        options: f.options.clone(),
        exits,
        wake: Arc::default(),
    };
    let exit = TrainerExit {
        attempt_id: claimed.attempt_id,
        cause: exit::ExitCause::Code(0),
        log_tail: String::new(),
        spool: std::path::PathBuf::new(),
        oom_kill_seen: false,
    };
    sender.try_send(exit).unwrap();
    worker.stop(Duration::ZERO).await;
    assert_eq!(f.read(job).await.status, Status::Queued);
}

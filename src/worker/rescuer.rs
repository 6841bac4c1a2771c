//! Finds attempts that will not end by themselves.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::executor::Executor;
use super::leftovers;
use super::options::WorkerOptions;
use crate::artifacts::DataDir;
use crate::domain::{AttemptId, Clock, ErrorCode, JobError, LossCause, RetryPolicy, Timestamp};
use crate::store::{AttemptEnd, Store, StoreError};

pub(super) struct Rescuer {
    store: Store,
    executor: Arc<dyn Executor>,
    clock: Arc<dyn Clock>,
    data_dir: DataDir,
    retry: RetryPolicy,
    cancel_grace_ms: i64,
    kill_after: Duration,
    /// Trainers seen alive after their attempt ended, and since when.
    over_since: HashMap<AttemptId, Timestamp>,
}

impl Rescuer {
    pub fn new(
        store: Store,
        executor: Arc<dyn Executor>,
        clock: Arc<dyn Clock>,
        options: &WorkerOptions,
    ) -> Self {
        Self {
            store,
            executor,
            clock,
            data_dir: options.data_dir.clone(),
            retry: options.retry,
            cancel_grace_ms: options.cancel_grace_ms,
            kill_after: Duration::from_millis(options.kill_after_ms),
            over_since: HashMap::new(),
        }
    }

    /// One step:
    /// 1. Leases that ran out: the attempt ends (queued again or failed), its trainer is killed.
    /// 2. Jobs whose time ran out: they fail, their trainer is killed.
    /// 3. Cancels and pauses that the trainer did not follow in time: it is told to leave, then killed.
    /// 4. Trainers whose attempt is over and that stay: the same.
    pub async fn tick(&mut self) {
        if let Err(error) = self.try_tick().await {
            tracing::error!(%error, "looking for lost attempts failed");
        }
    }

    async fn try_tick(&mut self) -> Result<(), StoreError> {
        self.rescue_silent().await?;
        self.end_overrun().await?;
        self.enforce_stops().await?;
        self.remove_stayers().await
    }

    fn silent(&self) -> AttemptEnd {
        AttemptEnd::Lost {
            cause: LossCause::Silent,
            error: stopped_answering(),
            policy: self.retry,
        }
    }

    async fn rescue_silent(&self) -> Result<(), StoreError> {
        for open in self.store.expired_attempts().await? {
            leftovers::apply_of(&self.store, &self.data_dir, &open).await?;
            let (attempt, end) = (open.attempt_id, self.silent());
            // Fence first: a trainer that wakes up between the two finds its attempt over.
            if self.store.end_expired_attempt(attempt, end).await? {
                tracing::warn!(job = %open.job_id, %attempt, "trainer stopped answering");
                self.executor.stop(attempt, Duration::ZERO);
            }
        }
        Ok(())
    }

    async fn end_overrun(&self) -> Result<(), StoreError> {
        for open in self.store.overrun_attempts().await? {
            let attempt = open.attempt_id;
            tracing::warn!(job = %open.job_id, %attempt, "the job's time is used up");
            leftovers::apply_of(&self.store, &self.data_dir, &open).await?;
            let end = AttemptEnd::Fail(overrun());
            if self.store.end_attempt(attempt, end).await? {
                self.executor.stop(attempt, Duration::ZERO);
            }
        }
        Ok(())
    }

    async fn enforce_stops(&self) -> Result<(), StoreError> {
        for open in self.store.overdue_stops(self.cancel_grace_ms).await? {
            let attempt = open.attempt_id;
            if self.executor.stop(attempt, self.kill_after) {
                continue; // Its exit ends the attempt.
            }
            // Not our child: all we can do is to fence it, and its next message stops it.
            tracing::warn!(job = %open.job_id, %attempt, "a trainer did not follow a cancel or a pause");
            leftovers::apply_of(&self.store, &self.data_dir, &open).await?;
            self.store.end_attempt(attempt, self.silent()).await?;
        }
        Ok(())
    }

    async fn remove_stayers(&mut self) -> Result<(), StoreError> {
        let live = self.executor.live();
        if live.is_empty() {
            self.over_since.clear();
            return Ok(());
        }
        let open = self.store.open_attempts().await?;
        let open: HashSet<AttemptId> = open.iter().map(|open| open.attempt_id).collect();
        let stayers: HashSet<AttemptId> =
            live.into_iter().filter(|id| !open.contains(id)).collect();
        self.over_since.retain(|id, _| stayers.contains(id));
        let now = self.clock.now();
        for attempt in stayers {
            let since = *self.over_since.entry(attempt).or_insert(now);
            if now > since.plus_ms(self.cancel_grace_ms) {
                tracing::warn!(%attempt, "trainer stays after its attempt ended");
                self.executor.stop(attempt, self.kill_after);
            }
        }
        Ok(())
    }
}

fn overrun() -> JobError {
    JobError::new(
        ErrorCode::MaxRuntimeExceeded,
        "the job ran longer than its `max_runtime_s`",
    )
    .at("/max_runtime_s")
    .hint("its checkpoints stay: retry it for as much time again, or clone it with a higher limit")
}

fn stopped_answering() -> JobError {
    JobError::new(
        ErrorCode::TrainerDied,
        "the trainer process stopped answering",
    )
    .hint(
        "the machine may be overloaded or out of memory; the job's `trainer.log` on the server says more",
    )
}

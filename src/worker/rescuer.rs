//! Finds attempts that will not end by themselves.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::executor::Executor;
use super::options::WorkerOptions;
use crate::domain::{AttemptId, Clock, ErrorCode, JobError, Timestamp};
use crate::store::{AttemptEnd, Store, StoreError};

pub(super) struct Rescuer {
    store: Store,
    executor: Arc<dyn Executor>,
    clock: Arc<dyn Clock>,
    max_attempts: u32,
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
            max_attempts: options.max_attempts,
            cancel_grace_ms: options.cancel_grace_ms,
            kill_after: Duration::from_millis(options.kill_after_ms),
            over_since: HashMap::new(),
        }
    }

    /// One step:
    /// 1. Leases that ran out: the attempt ends (queued again or failed), its trainer is killed.
    /// 2. Cancels that the trainer did not follow in time: it is told to leave, then killed.
    /// 3. Trainers whose attempt is over and that stay: the same.
    pub async fn tick(&mut self) {
        if let Err(error) = self.try_tick().await {
            tracing::error!(%error, "looking for lost attempts failed");
        }
    }

    async fn try_tick(&mut self) -> Result<(), StoreError> {
        self.rescue_silent().await?;
        self.enforce_cancels().await?;
        self.remove_stayers().await
    }

    async fn rescue_silent(&self) -> Result<(), StoreError> {
        for (attempt, job) in self.store.expired_attempts().await? {
            let end = AttemptEnd::Requeue {
                error: stopped_answering(),
                max_attempts: self.max_attempts,
            };
            // Fence first: a trainer that wakes up between the two finds its attempt over.
            if self.store.end_expired_attempt(attempt, end).await? {
                tracing::warn!(%job, %attempt, "trainer stopped answering");
                self.executor.stop(attempt, Duration::ZERO);
            }
        }
        Ok(())
    }

    async fn enforce_cancels(&self) -> Result<(), StoreError> {
        for (attempt, job) in self.store.overdue_cancels(self.cancel_grace_ms).await? {
            if self.executor.stop(attempt, self.kill_after) {
                continue; // Its exit ends the attempt.
            }
            // Not our child: all we can do is to fence it, and its next message stops it.
            tracing::warn!(%job, %attempt, "a cancelled trainer did not answer");
            let end = AttemptEnd::Fail(stopped_answering());
            self.store.end_attempt(attempt, end).await?;
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

fn stopped_answering() -> JobError {
    JobError::new(
        ErrorCode::TrainerDied,
        "the trainer process stopped answering",
    )
    .hint(
        "the machine may be overloaded or out of memory; the job's `trainer.log` on the server says more",
    )
}

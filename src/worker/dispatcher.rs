//! Fills free slots with queued jobs.

use std::collections::HashSet;
use std::sync::Arc;

use super::executor::Executor;
use super::options::WorkerOptions;
use crate::domain::AttemptId;
use crate::store::{AttemptEnd, ClaimedAttempt, Store, StoreError};

/// What one tick did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tick {
    /// A job was claimed: tick again.
    Claimed,
    /// Nothing is queued, or the store failed: wait to be woken.
    Nothing,
    /// Every slot is taken: wait for one.
    NoSlot,
}

pub(super) struct Dispatcher {
    store: Store,
    executor: Arc<dyn Executor>,
    slots: usize,
    lease_ms: i64,
}

impl Dispatcher {
    pub fn new(store: Store, executor: Arc<dyn Executor>, options: &WorkerOptions) -> Self {
        Self {
            store,
            executor,
            slots: usize::try_from(options.slots).unwrap_or(usize::MAX),
            lease_ms: options.effective_lease_ms(),
        }
    }

    /// One step:
    /// 1. Count the slots that are taken. None free: `NoSlot`.
    /// 2. Claim the next queued job. None queued, or all of them waiting out a loss: `Nothing`.
    /// 3. Start its trainer. If that fails, the job fails with `trainer_start_failed`.
    pub async fn tick(&self) -> Tick {
        match self.try_tick().await {
            Ok(tick) => tick,
            Err(error) => {
                tracing::error!(%error, "claiming a job failed");
                Tick::Nothing
            }
        }
    }

    async fn try_tick(&self) -> Result<Tick, StoreError> {
        if self.slots == 0 || self.taken_slots().await? >= self.slots {
            return Ok(Tick::NoSlot);
        }
        let Some(claimed) = self.store.claim_next(self.lease_ms).await? else {
            return Ok(Tick::Nothing);
        };
        self.start(&claimed).await?;
        Ok(Tick::Claimed)
    }

    /// An open attempt holds a slot even if its trainer was started by an earlier server; a trainer that
    /// reported its end holds one until its process is gone and its memory is free.
    async fn taken_slots(&self) -> Result<usize, StoreError> {
        let open = self.store.open_attempts().await?;
        let mut taken: HashSet<AttemptId> = open.iter().map(|open| open.attempt_id).collect();
        taken.extend(self.executor.live());
        Ok(taken.len())
    }

    async fn start(&self, claimed: &ClaimedAttempt) -> Result<(), StoreError> {
        let attempt = claimed.attempt_id;
        match self.executor.start(claimed) {
            Ok(()) => {
                tracing::info!(job = %claimed.job_id, %attempt, "trainer started");
            }
            Err(error) => {
                tracing::error!(job = %claimed.job_id, %attempt, %error, "trainer not started");
                let end = AttemptEnd::Fail(error);
                self.store.end_attempt(attempt, end).await?;
            }
        }
        Ok(())
    }
}

//! Fills free slots with queued jobs.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::timeout;

use super::executor::Executor;
use super::options::WorkerOptions;
use super::slots::Slots;
use crate::domain::{AttemptId, Placement};
use crate::store::{AttemptEnd, ClaimedAttempt, QueuedJob, Store, StoreError};

/// What one tick did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tick {
    /// A job was claimed, or was gone before it could be: tick again.
    Claimed,
    /// Nothing is queued, or the store failed: wait to be woken.
    Nothing,
    /// Every slot is taken, or the next job fits in none: wait for one.
    NoSlot,
}

pub(super) struct Dispatcher {
    store: Store,
    executor: Arc<dyn Executor>,
    options: WorkerOptions,
    /// Where the executor's trainers are.
    placed: HashMap<AttemptId, Placement>,
    /// A question to the driver that was not answered in time.
    asking: Option<oneshot::Receiver<Option<Placement>>>,
}

impl Dispatcher {
    pub fn new(store: Store, executor: Arc<dyn Executor>, options: &WorkerOptions) -> Self {
        Self {
            store,
            executor,
            options: options.clone(),
            placed: HashMap::new(),
            asking: None,
        }
    }

    /// One step:
    /// 1. See what is taken of every slot. None free: `NoSlot`.
    /// 2. Look at the next queued job. None queued, or all of them waiting out a loss: `Nothing`.
    /// 3. Find a place for it. None: `NoSlot`. Later jobs wait with it, even such that would fit: a large job is
    ///    never overtaken for ever.
    /// 4. Claim it and start its trainer. If that fails, the job fails with `trainer_start_failed`.
    pub async fn tick(&mut self) -> Tick {
        match self.try_tick().await {
            Ok(tick) => tick,
            Err(error) => {
                tracing::error!(%error, "claiming a job failed");
                Tick::Nothing
            }
        }
    }

    async fn try_tick(&mut self) -> Result<Tick, StoreError> {
        if self.options.slots.are_full(&[]) {
            return Ok(Tick::NoSlot);
        }
        let taken = self.taken().await?;
        if self.options.slots.are_full(&taken) {
            return Ok(Tick::NoSlot);
        }
        let Some(next) = self.store.next_queued().await? else {
            return Ok(Tick::Nothing);
        };
        let job = next.job_id;
        let Some(placement) = self.place(next, taken).await else {
            return Ok(Tick::NoSlot);
        };
        let lease_ms = self.options.effective_lease_ms();
        let claimed = self.store.claim(job, placement.clone(), lease_ms).await?;
        if let Some(claimed) = claimed {
            self.start(&claimed, placement).await?;
        }
        Ok(Tick::Claimed)
    }

    /// An open attempt holds its place even if its trainer was started by an earlier server; a trainer that
    /// reported its end holds one until its process is gone and its memory is free.
    async fn taken(&mut self) -> Result<Vec<Placement>, StoreError> {
        let open = self.store.open_attempts().await?;
        let live: HashSet<AttemptId> = self.executor.live().into_iter().collect();
        self.placed.retain(|attempt, _| live.contains(attempt));
        let mut taken = self.placed.clone();
        taken.extend(
            open.into_iter()
                .map(|open| (open.attempt_id, open.placement)),
        );
        Ok(taken.into_values().collect())
    }

    /// A place on a card depends on the model's files and on the driver, which may never answer if its card is broken:
    /// that must keep nobody from watching the trainers there are. So it is asked by a thread that can be left behind;
    /// until that one is back, no other is sent.
    async fn place(&mut self, next: QueuedJob, taken: Vec<Placement>) -> Option<Placement> {
        let (slots, model_shape) = (self.options.slots.clone(), self.options.model_shape);
        if matches!(slots, Slots::Cpu(_)) {
            return slots.place(&taken, || None);
        }
        if let Some(asking) = &mut self.asking {
            if asking.try_recv() == Err(TryRecvError::Empty) {
                return None;
            }
            tracing::info!("the GPU driver answers again");
            self.asking = None;
        }
        let data_dir = self.options.data_dir.clone();
        let need_bytes = move || {
            if next.ran_out_of_memory {
                return None;
            }
            let shape = model_shape(&data_dir, &next.spec.model)?;
            Some(shape.training_bytes(&next.spec, next.micro_batch_divisor))
        };
        let (answer, mut asking) = oneshot::channel();
        let ask = move || answer.send(slots.place(&taken, need_bytes));
        if let Err(error) = std::thread::Builder::new().spawn(ask) {
            tracing::error!(%error, "the GPU driver cannot be asked");
            return None;
        }
        let patience = Duration::from_millis(self.options.driver_patience_ms);
        match timeout(patience, &mut asking).await {
            // Without an answer the thread has panicked, and said so.
            Ok(answer) => answer.ok().flatten(),
            Err(_) => {
                tracing::error!("the GPU driver does not answer: no job is started until it does");
                self.asking = Some(asking);
                None
            }
        }
    }

    async fn start(
        &mut self,
        claimed: &ClaimedAttempt,
        placement: Placement,
    ) -> Result<(), StoreError> {
        let (attempt, device) = (claimed.attempt_id, &claimed.device);
        match self.executor.start(claimed) {
            Ok(()) => {
                let reserved_bytes = placement.reserved_bytes;
                tracing::info!(job = %claimed.job_id, %attempt, %device, reserved_bytes, "trainer started");
                self.placed.insert(attempt, placement);
            }
            Err(error) => {
                tracing::error!(job = %claimed.job_id, %attempt, %device, %error, "trainer not started");
                let end = AttemptEnd::Fail(error);
                self.store.end_attempt(attempt, end).await?;
            }
        }
        Ok(())
    }
}

//! Supervises attempts on this machine: fills free slots, watches the trainers, rescues jobs whose trainer
//! is gone.
//!
//! ```text
//!   wake-up, or every second
//!      │
//!      ├─ a trainer exited    → exit::verdict → the attempt ends, unless the trainer reported an end
//!      ├─ adoption            → trainers of an earlier server that are gone
//!      ├─ Rescuer::tick       → leases and time that ran out, cancels and pauses nobody followed, trainers that stay
//!      └─ Dispatcher::tick    → a place for the next queued job? claim it and start its trainer there; again
//! ```
//!
//! All of it runs in one task, so no two of these ever interleave. What a trainer *reports* never passes
//! here: it goes to `store` through the attempt protocol, and the same guarded transitions decide who came
//! first. [`reporter`] is the trainer's side of that protocol.

mod adoption;
mod dispatcher;
pub mod entry;
mod executor;
mod exit;
mod gpus;
mod leftovers;
mod options;
pub mod reporter;
mod rescuer;
mod slots;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};

pub use executor::TOKEN_ENV;
pub use options::WorkerOptions;
pub use slots::Slots;

use dispatcher::{Dispatcher, Tick};
use executor::{Executor, LocalExecutor};
use exit::TrainerExit;
use rescuer::Rescuer;

use crate::domain::Clock;
use crate::store::{AttemptEnd, Store};

const TICK_EVERY: Duration = Duration::from_secs(1);
/// Exits that wait to be handled; a watcher waits when there are more.
const EXIT_QUEUE: usize = 64;
/// From SIGKILL until the kernel has really ended a process and its watcher said so.
const KILL_SETTLES: Duration = Duration::from_secs(5);
/// How often a stopping worker looks whether adopted trainers have left.
const ADOPTED_POLL: Duration = Duration::from_millis(50);

/// What happens to the trainers when the worker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// They train on and report to the next server, which adopts them.
    Leave,
    /// SIGTERM, and SIGKILL after `grace_ms`. Their jobs are queued again, without an attempt used, and go
    /// on from their newest checkpoint. Trainers adopted from an earlier server are no children of this one:
    /// the API asks them to leave, and here they are waited for.
    Stop { grace_ms: u64 },
}

struct ShutdownRequest {
    mode: Shutdown,
    done: oneshot::Sender<()>,
}

/// A way to wake the worker and to end it; cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    wake: Arc<Notify>,
    shutdown: mpsc::Sender<ShutdownRequest>,
}

impl WorkerHandle {
    /// A handle with no worker behind it.
    pub fn detached() -> Self {
        Self {
            wake: Arc::default(),
            shutdown: mpsc::channel(1).0,
        }
    }

    /// Something was queued or cancelled: look now, not at the next second.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Ends the worker; returns when every trainer was dealt with. Later calls return at once.
    pub async fn shutdown(&self, mode: Shutdown) {
        let (done, wait) = oneshot::channel();
        if self
            .shutdown
            .send(ShutdownRequest { mode, done })
            .await
            .is_ok()
        {
            // An error means that the worker is gone already.
            wait.await.ok();
        }
    }
}

/// The supervising task.
pub struct Worker {
    store: Store,
    executor: Arc<dyn Executor>,
    dispatcher: Dispatcher,
    rescuer: Rescuer,
    options: WorkerOptions,
    exits: mpsc::Receiver<TrainerExit>,
    wake: Arc<Notify>,
}

impl Worker {
    /// Starts the worker on the current tokio runtime.
    pub fn start(store: Store, options: WorkerOptions, clock: Arc<dyn Clock>) -> WorkerHandle {
        let wake = Arc::new(Notify::new());
        let (exit_sender, exits) = mpsc::channel(EXIT_QUEUE);
        let executor = LocalExecutor::new(&options, exit_sender, Arc::clone(&wake));
        Self::start_with(store, options, clock, Arc::new(executor), exits, wake)
    }

    fn start_with(
        store: Store,
        options: WorkerOptions,
        clock: Arc<dyn Clock>,
        executor: Arc<dyn Executor>,
        exits: mpsc::Receiver<TrainerExit>,
        wake: Arc<Notify>,
    ) -> WorkerHandle {
        let (shutdown, requests) = mpsc::channel(1);
        let worker = Self {
            dispatcher: Dispatcher::new(store.clone(), Arc::clone(&executor), &options),
            rescuer: Rescuer::new(store.clone(), Arc::clone(&executor), clock, &options),
            store,
            executor,
            options,
            exits,
            wake: Arc::clone(&wake),
        };
        tokio::spawn(worker.run(requests));
        WorkerHandle { wake, shutdown }
    }

    async fn run(mut self, mut requests: mpsc::Receiver<ShutdownRequest>) {
        // Trainers of an earlier server could not renew while it was away.
        let lease_ms = self.options.effective_lease_ms();
        if let Err(error) = self.store.extend_leases(lease_ms).await {
            tracing::error!(%error, "open attempts could not be given time to report");
        }
        let mut second = interval(TICK_EVERY);
        second.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = self.wake.notified() => {}
                Some(exit) = self.exits.recv() => {
                    let end = exit::verdict(&exit, &self.options.retry);
                    self.end(&exit, end).await;
                }
                _ = second.tick() => {
                    self.end_orphans().await;
                    self.rescuer.tick().await;
                }
                request = requests.recv() => {
                    // Without any handle left there is nobody to train for: leave.
                    let Some(request) = request else { return };
                    if let Shutdown::Stop { grace_ms } = request.mode {
                        self.stop(Duration::from_millis(grace_ms)).await;
                    }
                    request.done.send(()).ok();
                    return;
                }
            }
            while self.dispatcher.tick().await == Tick::Claimed {}
        }
    }

    /// Ends the attempt of a trainer that is gone; nothing happens if it reported an end itself. If the
    /// store cannot do it now, the lease runs out and the rescuer tries again.
    async fn end(&self, exit: &TrainerExit, end: AttemptEnd) {
        let attempt = exit.attempt_id;
        if let Err(error) = leftovers::apply(&self.store, attempt, &exit.spool).await {
            tracing::error!(%attempt, %error, "what a trainer left could not be applied");
            return;
        }
        match self.store.end_attempt(attempt, end).await {
            Ok(true) => {
                tracing::warn!(%attempt, exit = %exit.cause, "trainer left without a report")
            }
            Ok(false) => tracing::info!(%attempt, exit = %exit.cause, "trainer left"),
            Err(error) => tracing::error!(%attempt, %error, "an attempt could not be ended"),
        }
    }

    async fn stop(&mut self, grace: Duration) {
        let adopted_until = Instant::now() + grace;
        let mut waiting: HashSet<_> = self.executor.live().into_iter().collect();
        for attempt in &waiting {
            self.executor.stop(*attempt, grace);
        }
        let deadline = Instant::now() + grace + KILL_SETTLES;
        while !waiting.is_empty() {
            let Ok(Some(exit)) = timeout_at(deadline, self.exits.recv()).await else {
                tracing::error!(left = waiting.len(), "trainers did not end");
                return;
            };
            waiting.remove(&exit.attempt_id);
            self.hand_back(&exit).await;
        }
        // Those that left just before the stop are no longer live, but their exit may still wait here.
        while let Ok(exit) = self.exits.try_recv() {
            self.hand_back(&exit).await;
        }
        while Instant::now() < adopted_until
            && matches!(self.store.open_attempts().await, Ok(open) if !open.is_empty())
        {
            sleep(ADOPTED_POLL).await;
        }
    }

    async fn hand_back(&self, exit: &TrainerExit) {
        let reason = "the server was stopped".to_owned();
        self.end(exit, AttemptEnd::Return { reason }).await;
    }
}

#[cfg(test)]
mod tests;

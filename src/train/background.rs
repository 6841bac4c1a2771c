//! Writes checkpoints on a thread of its own while training goes on. One is in flight at a time: a save that
//! comes due earlier waits.
//!
//! ```text
//!  trainer   step │ take snapshot │ step  step  step … │ poll: published → Event::Checkpoint, CheckpointRemoved
//!  writer         └──► files, fsync, manifest, rename, fsync ──┘          └──► remove what it replaced
//! ```
//!
//! What goes is reported before it is removed: a trainer that dies in between leaves a folder too many, which
//! the next attempt removes, but nobody is ever told of a checkpoint that is not there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use crate::domain::{ErrorCode, JobError};

use super::checkpoint::{Published, Publisher};
use super::snapshot::Snapshot;

/// The writer's end on the trainer's side.
#[derive(Debug)]
pub struct BackgroundWriter {
    /// `None` once nothing more comes.
    work: Option<SyncSender<Work>>,
    done: Receiver<Done>,
    thread: Option<JoinHandle<()>>,
    /// The snapshot's memory, here unless it is being written from.
    idle: Option<Box<Snapshot>>,
    abandoned: Arc<AtomicBool>,
}

enum Work {
    Publish(Box<Snapshot>),
    /// Steps of checkpoints that were replaced.
    Remove(Vec<u64>),
}

/// A snapshot that comes back.
struct Done {
    snapshot: Box<Snapshot>,
    outcome: Result<Published, JobError>,
}

impl BackgroundWriter {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system gives none.
    pub fn start(publisher: Publisher) -> Result<Self, JobError> {
        let (work, received) = sync_channel(1);
        let (results, done) = sync_channel(1);
        let abandoned = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&abandoned);
        let thread = std::thread::Builder::new()
            .name("checkpoints".to_owned())
            .spawn(move || {
                for work in received {
                    let snapshot = match work {
                        Work::Publish(snapshot) => snapshot,
                        Work::Remove(steps) => {
                            publisher.remove(&steps);
                            continue;
                        }
                    };
                    let outcome = publisher.publish(&snapshot, &seen);
                    if results.send(Done { snapshot, outcome }).is_err() {
                        return;
                    }
                }
            })
            .map_err(|error| gone(&error.to_string()))?;
        Ok(Self {
            work: Some(work),
            done,
            thread: Some(thread),
            idle: Some(Box::default()),
            abandoned,
        })
    }

    /// Whether a checkpoint is being written.
    pub fn is_busy(&self) -> bool {
        self.idle.is_none()
    }

    /// Begins the checkpoint of the snapshot that `take` fills. Nothing may be in flight: call
    /// [`BackgroundWriter::wait`] before.
    ///
    /// # Errors
    /// What `take` answers.
    pub fn begin(
        &mut self,
        take: impl FnOnce(&mut Snapshot) -> Result<(), JobError>,
    ) -> Result<(), JobError> {
        let mut snapshot = self.idle.take().unwrap_or_default();
        let taken = take(&mut snapshot);
        if taken.is_err() {
            self.idle = Some(snapshot);
            return taken;
        }
        let sent = self
            .work
            .as_ref()
            .map(|work| work.send(Work::Publish(snapshot)));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(gone("its thread ended")),
        }
    }

    /// The checkpoint in flight, if it was published by now.
    ///
    /// # Errors
    /// Why it could not be.
    pub fn poll(&mut self) -> Result<Option<Published>, JobError> {
        if !self.is_busy() {
            return Ok(None);
        }
        match self.done.try_recv() {
            Ok(done) => self.settle(done).map(Some),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(gone("its thread ended")),
        }
    }

    /// Waits for the checkpoint in flight, if there is one.
    ///
    /// # Errors
    /// Why it could not be published.
    pub fn wait(&mut self) -> Result<Option<Published>, JobError> {
        if !self.is_busy() {
            return Ok(None);
        }
        match self.done.recv() {
            Ok(done) => self.settle(done).map(Some),
            Err(_) => Err(gone("its thread ended")),
        }
    }

    /// Removes checkpoints of which it was said already that they are gone.
    pub fn remove(&self, steps: Vec<u64>) {
        if let Some(work) = self.work.as_ref().filter(|_| !steps.is_empty()) {
            // Without the thread they stay until the next attempt, or for good: they only take room.
            work.send(Work::Remove(steps)).ok();
        }
    }

    /// Nobody needs the checkpoint in flight: it is given up at the next piece, unless it is done by then.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    fn settle(&mut self, done: Done) -> Result<Published, JobError> {
        self.idle = Some(done.snapshot);
        done.outcome
    }
}

impl Drop for BackgroundWriter {
    fn drop(&mut self) {
        self.abandon();
        drop(self.work.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by `wait` as a thread that ended.
            thread.join().ok();
        }
    }
}

fn gone(why: &str) -> JobError {
    JobError::new(
        ErrorCode::CheckpointFailed,
        format!("checkpoints cannot be written in the background: {why}"),
    )
}

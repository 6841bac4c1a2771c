//! Trainers that an earlier server started. They report to this one as if nothing had happened; all there
//! is to do is to notice when one is gone, as it is nobody's child here whose exit could be waited for.
//!
//! A trainer that ended while no server was there to listen left its last messages in its spool. They are
//! applied first, so that work that was done is not done again.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

use super::executor::attempt_dir;
use super::{Worker, exit};
use crate::domain::{AttemptId, ErrorCode, JobError, LossCause, Message};
use crate::store::{AttemptEnd, OpenAttempt, Store, StoreError};

/// Messages applied in one transaction.
const BATCH: usize = 500;

impl Worker {
    /// Ends attempts whose trainer, started by an earlier server, is gone.
    pub(super) async fn end_orphans(&mut self) {
        let orphans = match self.orphans().await {
            Ok(orphans) => orphans,
            Err(error) => {
                tracing::error!(%error, "looking for orphans failed");
                return;
            }
        };
        if orphans.is_empty() {
            return;
        }
        // A child of ours that is no longer live has its exit waiting here, which knows more of its end.
        while let Ok(exit) = self.exits.try_recv() {
            let end = exit::verdict(&exit, &self.options.retry);
            self.end(&exit, end).await;
        }
        for orphan in orphans {
            if let Err(error) = self.end_orphan(&orphan).await {
                tracing::error!(attempt = %orphan.attempt_id, %error, "an orphan could not be ended");
            }
        }
    }

    async fn orphans(&self) -> Result<Vec<OpenAttempt>, StoreError> {
        let mut open = self.store.open_attempts().await?;
        let live = self.executor.live();
        open.retain(|open| !live.contains(&open.attempt_id) && self.executor.has_ended(open));
        Ok(open)
    }

    async fn end_orphan(&self, orphan: &OpenAttempt) -> Result<(), StoreError> {
        let dir = attempt_dir(&self.options.data_dir, orphan.job_id, orphan.attempt);
        let spool = dir.join("events.jsonl");
        match replay(&self.store, orphan.attempt_id, &spool).await {
            Ok(0) => {}
            Ok(messages) => {
                tracing::info!(job = %orphan.job_id, messages, "what a trainer had not sent was found");
            }
            // It reported an end after all.
            Err(StoreError::Fenced) => return Ok(()),
            Err(error) => return Err(error),
        }
        let end = AttemptEnd::Lost {
            cause: LossCause::Died,
            error: JobError::new(
                ErrorCode::TrainerDied,
                "the trainer process ended while no server was watching it",
            )
            .hint("the job's `trainer.log` on the server says more"),
            policy: self.options.retry,
        };
        if self.store.end_attempt(orphan.attempt_id, end).await? {
            tracing::warn!(job = %orphan.job_id, attempt = orphan.attempt, "a trainer is gone");
        }
        Ok(())
    }
}

/// Applies the messages of `spool` that the server has not seen; answers how many. No spool holds none.
async fn replay(store: &Store, attempt: AttemptId, spool: &Path) -> Result<usize, StoreError> {
    let acked_seq = store.record_spooled(attempt, Vec::new()).await?;
    let path = spool.to_owned();
    let read = tokio::task::spawn_blocking(move || unseen(&path, acked_seq)).await;
    let messages = match read.map_err(io::Error::other).flatten() {
        Ok(messages) => messages,
        Err(error) => {
            tracing::warn!(%error, spool = %spool.display(), "a spool cannot be read");
            return Ok(0);
        }
    };
    let count = messages.len();
    for batch in messages.chunks(BATCH) {
        match store.record_spooled(attempt, batch.to_vec()).await {
            // The batch before held the end.
            Err(StoreError::Fenced) => break,
            other => other?,
        };
    }
    Ok(count)
}

/// Messages after `acked_seq`. A killed trainer may leave half a line at the end: there the spool ends.
fn unseen(spool: &Path, acked_seq: u64) -> io::Result<Vec<Message>> {
    let file = match File::open(spool) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut messages = Vec::new();
    for line in BufReader::new(file).lines() {
        let Ok(message) = serde_json::from_str::<Message>(&line?) else {
            break;
        };
        if message.seq > acked_seq {
            messages.push(message);
        }
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Event, Timestamp};

    #[test]
    fn a_spool_ends_where_its_trainer_was_killed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("events.jsonl");
        assert_eq!(unseen(&path, 0).unwrap(), []);
        let message = |seq| Message {
            seq,
            at: Timestamp(7),
            event: Event::Queued {},
        };
        let line = |seq| serde_json::to_string(&message(seq)).unwrap();
        std::fs::write(&path, format!("{}\n{}\n{{\"seq\": 3, ", line(1), line(2))).unwrap();
        assert_eq!(unseen(&path, 0).unwrap(), [message(1), message(2)]);
        assert_eq!(unseen(&path, 1).unwrap(), [message(2)]);
    }
}

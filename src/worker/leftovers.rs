//! What a trainer that is gone had not sent yet.
//!
//! Every message is in the spool before it is on its way, and the next attempt goes on from a checkpoint that may
//! be newer than the last message that arrived: what it does not repeat would be missing from the log. So the
//! spool is applied before the attempt is ended. If it holds the end, the work that was done is not done again.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

use crate::artifacts::DataDir;
use crate::domain::{AttemptId, Message};
use crate::store::{OpenAttempt, Store, StoreError};

/// Messages applied in one transaction.
const BATCH: usize = 500;

/// As [`apply`], for an attempt whose spool lies where this machine's trainers have theirs.
pub(super) async fn apply_of(
    store: &Store,
    data_dir: &DataDir,
    open: &OpenAttempt,
) -> Result<(), StoreError> {
    let spool = data_dir.events_file(open.job_id, open.attempt);
    apply(store, open.attempt_id, &spool).await
}

/// Applies what `spool` holds and the server has not seen. An attempt that is over needs none of it.
pub(super) async fn apply(
    store: &Store,
    attempt: AttemptId,
    spool: &Path,
) -> Result<(), StoreError> {
    match replay(store, attempt, spool).await {
        Ok(0) | Err(StoreError::Fenced) => Ok(()),
        Ok(messages) => {
            tracing::info!(%attempt, messages, "what a trainer had not sent was found");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Answers how many messages were new. No spool holds none.
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

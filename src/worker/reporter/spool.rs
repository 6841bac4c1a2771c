//! Every message on disk before it is sent, one JSON object a line.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;

use crate::domain::Message;

#[derive(Debug)]
pub(super) struct Spool(Option<File>);

impl Spool {
    /// Opens `events.jsonl` in the folder. Without it (disk full, say) the trainer can still report,
    /// that very error among other things.
    pub fn open(attempt_dir: &Path) -> Self {
        let path = attempt_dir.join("events.jsonl");
        match OpenOptions::new().create(true).append(true).open(path) {
            Ok(file) => Self(Some(file)),
            Err(error) => {
                tracing::warn!(%error, "no spool: reports go to the server alone");
                Self(None)
            }
        }
    }

    /// Writes one line in one call, so that a killed process leaves at most its last line unfinished.
    pub fn append(&mut self, message: &Message) {
        let Some(file) = &mut self.0 else { return };
        let written = serde_json::to_vec(message)
            .map_err(std::io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                file.write_all(&line)
            });
        if let Err(error) = written {
            tracing::warn!(%error, "the spool failed: reports go to the server alone");
            self.0 = None;
        }
    }
}

//! The thread that carries messages to the server and commands back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Shared;
use super::client::{Client, ProtocolError};
use super::outbox::PROGRESS_EVERY;
use crate::domain::Message;

/// Messages that come within this time share a request.
const BATCH_EVERY: Duration = Duration::from_millis(200);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

pub(super) struct Sender {
    pub shared: Arc<Shared>,
    pub client: Client,
    pub heartbeat: Duration,
}

impl Sender {
    /// Until the reporter is dropped or the attempt is fenced.
    pub fn run(mut self) {
        let mut last_answer = None;
        let mut pause = FIRST_PAUSE;
        while let Some(batch) = self.next_batch(last_answer) {
            let first = batch.first().map(|message| message.seq);
            match self.client.send(batch) {
                // A server that takes nothing of what it got would be asked again without a pause.
                Ok(answer) if first.is_some_and(|seq| answer.acked_seq < seq) => {
                    tracing::warn!(acked_seq = answer.acked_seq, "the server missed a report");
                    self.shared.follow(&answer);
                    self.rest(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Ok(answer) => {
                    let mut outbox = self.shared.lock();
                    outbox.acknowledge(answer.acked_seq);
                    self.shared.follow(&answer);
                    drop(outbox);
                    self.shared.changed.notify_all();
                    last_answer = Some(Instant::now());
                    pause = FIRST_PAUSE;
                }
                Err(ProtocolError::Fenced) => {
                    let mut outbox = self.shared.lock();
                    self.shared.fence();
                    outbox.forget();
                    drop(outbox);
                    self.shared.changed.notify_all();
                    return;
                }
                Err(error) => {
                    // Once per outage: it may last for hours.
                    if pause == FIRST_PAUSE {
                        tracing::warn!(%error, "the server did not take a report; trying again");
                    }
                    self.rest(pause);
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// Waits until it is time to send, even if only a heartbeat. `None` when the reporter was dropped.
    fn next_batch(&self, last_answer: Option<Instant>) -> Option<Vec<Message>> {
        let mut outbox = self.shared.lock();
        loop {
            if outbox.is_closed() {
                return None;
            }
            outbox.release_held(self.shared.clock.now(), Instant::now());
            let due = if outbox.is_urgent() || outbox.is_full() {
                Duration::ZERO
            } else if !outbox.is_empty() {
                BATCH_EVERY.min(self.heartbeat)
            } else if outbox.holds_progress() {
                PROGRESS_EVERY.min(self.heartbeat)
            } else {
                self.heartbeat
            };
            // The first request goes at once: a job may have been cancelled before its trainer began.
            let waited = last_answer.map_or(due, |last| last.elapsed());
            let Some(left) = due.checked_sub(waited).filter(|left| !left.is_zero()) else {
                return Some(outbox.batch());
            };
            outbox = self.shared.wait(outbox, left);
        }
    }

    /// Sleeps, unless the reporter is dropped.
    fn rest(&self, pause: Duration) {
        let end = Instant::now() + pause;
        let mut outbox = self.shared.lock();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if outbox.is_closed() || left.is_zero() {
                return;
            }
            outbox = self.shared.wait(outbox, left);
        }
    }
}

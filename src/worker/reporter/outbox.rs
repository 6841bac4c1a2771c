//! What was reported and not yet acknowledged.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::spool::Spool;
use crate::domain::{Event, Message, Progress, Timestamp};

/// Messages of one request.
const MAX_BATCH: usize = 100;
pub(super) const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// Numbered messages in order, and the newest progress without a number yet.
#[derive(Debug)]
pub(super) struct Outbox {
    spool: Spool,
    pending: VecDeque<Message>,
    last_seq: u64,
    held: Option<Progress>,
    progress_sent: Option<Instant>,
    /// Number of the newest progress that is not acknowledged.
    progress_waiting: Option<u64>,
    urgent: bool,
    closed: bool,
}

impl Outbox {
    pub fn new(spool: Spool) -> Self {
        Self {
            spool,
            pending: VecDeque::new(),
            last_seq: 0,
            held: None,
            progress_sent: None,
            progress_waiting: None,
            urgent: false,
            closed: false,
        }
    }

    /// Numbers and spools an event. A final one goes out at once, after the last progress.
    pub fn push(&mut self, at: Timestamp, event: Event) {
        let ends_attempt = event.is_final() || matches!(event, Event::Requeued { .. });
        if ends_attempt {
            self.force_held(at);
            self.urgent = true;
        }
        self.last_seq += 1;
        let message = Message {
            seq: self.last_seq,
            at,
            event,
        };
        self.spool.append(&message);
        self.pending.push_back(message);
    }

    /// Keeps a progress in place of the one before.
    pub fn hold(&mut self, progress: Progress) {
        self.held = Some(progress);
    }

    /// Numbers the held progress if it is time. While an older one waits (the server is away or slow) it is
    /// not: the queue would fill with numbers nobody needs any more.
    pub fn release_held(&mut self, at: Timestamp, now: Instant) {
        let is_time = self
            .progress_sent
            .is_none_or(|sent| now.duration_since(sent) >= PROGRESS_EVERY);
        if is_time && self.progress_waiting.is_none() && self.held.is_some() {
            self.progress_sent = Some(now);
            self.force_held(at);
        }
    }

    pub fn force_held(&mut self, at: Timestamp) {
        if let Some(progress) = self.held.take() {
            self.push(at, Event::Progress(progress));
            self.progress_waiting = Some(self.last_seq);
        }
    }

    pub fn holds_progress(&self) -> bool {
        self.held.is_some()
    }

    /// The oldest messages, as many as one request takes.
    pub fn batch(&self) -> Vec<Message> {
        self.pending.iter().take(MAX_BATCH).cloned().collect()
    }

    /// The server has everything up to `seq`.
    pub fn acknowledge(&mut self, seq: u64) {
        while self.pending.front().is_some_and(|first| first.seq <= seq) {
            self.pending.pop_front();
        }
        if self.pending.is_empty() {
            self.urgent = false;
        }
        if self.progress_waiting.is_some_and(|waiting| waiting <= seq) {
            self.progress_waiting = None;
        }
    }

    /// Whether a request could take no more.
    pub fn is_full(&self) -> bool {
        self.pending.len() >= MAX_BATCH
    }

    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Send what there is without waiting for more.
    pub fn hurry(&mut self) {
        self.urgent = !self.pending.is_empty();
    }

    pub fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// Nobody will take these messages; the spool has them.
    pub fn forget(&mut self) {
        self.pending.clear();
        self.held = None;
    }

    pub fn close(&mut self) {
        self.closed = true;
    }

    pub fn is_closed(&self) -> bool {
        self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Timestamp = Timestamp(7);

    fn outbox(folder: &tempfile::TempDir) -> Outbox {
        Outbox::new(Spool::open(folder.path()))
    }

    fn progress(global_step: u64) -> Progress {
        Progress {
            global_step,
            ..Progress::default()
        }
    }

    #[test]
    fn messages_are_numbered_spooled_and_forgotten_when_acknowledged() {
        let folder = tempfile::tempdir().unwrap();
        let mut outbox = outbox(&folder);
        outbox.push(AT, Event::Queued {});
        outbox.push(AT, Event::Cancelled {});
        assert!(outbox.is_urgent());
        outbox.acknowledge(1);
        let batch = outbox.batch();
        assert_eq!((batch.len(), batch[0].seq), (1, 2));
        outbox.acknowledge(2);
        assert!(outbox.is_empty() && !outbox.is_urgent());
        let spooled = std::fs::read_to_string(folder.path().join("events.jsonl")).unwrap();
        let seqs: Vec<u64> = spooled
            .lines()
            .map(|line| serde_json::from_str::<Message>(line).unwrap().seq)
            .collect();
        assert_eq!(seqs, [1, 2]);
    }

    #[test]
    fn only_the_newest_progress_is_numbered_and_not_too_often() {
        let folder = tempfile::tempdir().unwrap();
        let mut outbox = outbox(&folder);
        let start = Instant::now();
        outbox.hold(progress(1));
        outbox.release_held(AT, start);
        outbox.acknowledge(1);
        outbox.hold(progress(2));
        outbox.hold(progress(3));
        outbox.release_held(AT, start + PROGRESS_EVERY / 2);
        assert!(outbox.is_empty());
        outbox.release_held(AT, start + PROGRESS_EVERY);
        assert_eq!(outbox.batch()[0].event, Event::Progress(progress(3)));
        // Unacknowledged: later progress waits for its turn.
        outbox.hold(progress(4));
        outbox.release_held(AT, start + PROGRESS_EVERY * 9);
        assert_eq!(outbox.batch().len(), 1);
        // Before the end it goes all the same, and in order.
        outbox.push(AT, Event::Cancelled {});
        let kinds: Vec<_> = outbox.batch().iter().map(|m| m.event.kind()).collect();
        assert_eq!(kinds, ["progress", "progress", "cancelled"]);
    }

    #[test]
    fn a_batch_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut outbox = outbox(&folder);
        for _ in 0..MAX_BATCH + 5 {
            outbox.push(AT, Event::Queued {});
        }
        assert_eq!(outbox.batch().len(), MAX_BATCH);
    }
}

//! The live event stream: replay from the table, then wait to be woken, then read the table again.
//!
//! Events never travel by channel, so a slow reader loses nothing and costs no memory: it is simply
//! further behind in the table.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::sse::{Event as SseEvent, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures_util::stream;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::EventView;
use super::subscribers::Subscription;
use crate::domain::{JobId, Phase, Progress};
use crate::http::AppState;
use crate::store::{Job, Store, StoreError};

/// Events read from the table at once.
const BATCH: u32 = 200;
/// How soon a client should reconnect.
const RETRY: Duration = Duration::from_secs(2);
/// A comment this often keeps proxies from closing an idle stream.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Progress is read and sent at most this often.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// The table is read this often even when nobody says that there is something new.
const POLL_EVERY: Duration = Duration::from_secs(15);

/// Progress as a stream sends it, in the shape of an event. It is not one of the log: it has no `seq`, and
/// only the newest counts.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct ProgressEvent {
    #[serde(rename = "type")]
    kind: &'static str,
    data: Snapshot,
}

/// What [`ProgressEvent`] carries.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Snapshot {
    phase: Option<Phase>,
    #[serde(flatten)]
    progress: Progress,
}

/// One client following one job.
#[derive(Debug)]
pub struct Follower {
    store: Store,
    job: JobId,
    /// `seq` of the last event taken from the table.
    after: i64,
    wake: watch::Receiver<u64>,
    /// The store will not wake this follower again.
    deaf: bool,
    shutdown: CancellationToken,
    ready: VecDeque<SseEvent>,
    snapshot: Option<Snapshot>,
    /// When the job's row was last read, and whether it may have changed since.
    row_read: Option<Instant>,
    row_stale: bool,
    /// The table had nothing more when it was last read.
    caught_up: bool,
    ended: bool,
    _subscription: Subscription,
}

/// The answer that sends what `follower` finds.
pub fn response(follower: Follower) -> Response {
    let events = stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    let heartbeat = KeepAlive::new().interval(HEARTBEAT).text("heartbeat");
    let headers = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // Tells nginx and its relatives to pass each event on at once.
        (
            HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    let mut response = Sse::new(events).keep_alive(heartbeat).into_response();
    for (name, value) in headers {
        response.headers_mut().insert(name, value);
    }
    response
}

impl Follower {
    /// A client that has seen everything up to `after`. `wake` must have been subscribed before anything
    /// was read.
    pub fn new(
        state: &AppState,
        job: JobId,
        after: i64,
        wake: watch::Receiver<u64>,
        subscription: Subscription,
    ) -> Self {
        Self {
            store: state.store.clone(),
            job,
            after,
            wake,
            deaf: false,
            shutdown: state.shutdown.clone(),
            ready: VecDeque::from([SseEvent::default().retry(RETRY)]),
            snapshot: None,
            row_read: None,
            row_stale: true,
            caught_up: false,
            ended: false,
            _subscription: subscription,
        }
    }

    /// What is sent next; `None` ends the stream: after the job's last event, at shutdown, or when the
    /// store fails. The client reconnects and goes on where it was.
    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if self.shutdown.is_cancelled() {
                return None;
            }
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended || (self.caught_up && !self.wait().await) {
                return None;
            }
            if let Err(error) = self.read().await {
                tracing::warn!(%error, job_id = %self.job, "event stream ends early");
                return None;
            }
        }
    }

    /// Waits until there may be something new. False at shutdown.
    async fn wait(&mut self) -> bool {
        let since_row = self.row_read.map_or(PROGRESS_EVERY, |at| at.elapsed());
        let pause = if self.row_stale {
            PROGRESS_EVERY.saturating_sub(since_row)
        } else {
            POLL_EVERY
        };
        tokio::select! {
            () = self.shutdown.cancelled() => false,
            () = tokio::time::sleep(pause) => {
                self.row_stale = true;
                true
            }
            changed = self.wake.changed(), if !self.deaf => {
                self.row_stale = true;
                self.deaf = changed.is_err();
                true
            }
        }
    }

    /// Reads what is new. The row comes before the events: if it is final, the events read after it are all
    /// there will ever be, so a stream never ends without them.
    async fn read(&mut self) -> Result<(), StoreError> {
        self.wake.mark_unchanged();
        let row = self.read_row().await?;
        let events = self.store.events(self.job, self.after, BATCH).await?;
        self.caught_up = events.len() < BATCH as usize;
        for stored in events {
            self.after = stored.seq;
            // A retry follows its job's end: only the last event of all ends the stream.
            self.ended = self.caught_up && stored.event.is_final();
            let kind = stored.event.kind();
            let event = SseEvent::default().id(stored.seq.to_string()).event(kind);
            self.push(event, &EventView::from(stored));
        }
        let Some(row) = row.filter(|_| self.caught_up && !self.ended) else {
            return Ok(());
        };
        match row {
            // Deleted, or over for a client that has seen the end before.
            None => self.ended = true,
            Some(job) if job.status.is_final() => self.ended = true,
            Some(job) => self.push_snapshot(job),
        }
        Ok(())
    }

    /// The job's row, unless it was read a moment ago. The outer `None` means not read.
    async fn read_row(&mut self) -> Result<Option<Option<Job>>, StoreError> {
        if self
            .row_read
            .is_some_and(|at| at.elapsed() < PROGRESS_EVERY)
        {
            return Ok(None);
        }
        self.row_read = Some(Instant::now());
        self.row_stale = false;
        self.store.job(self.job).await.map(Some)
    }

    fn push_snapshot(&mut self, job: Job) {
        let Some(progress) = job.progress else { return };
        let snapshot = Snapshot {
            phase: job.phase,
            progress,
        };
        if self.snapshot.as_ref() != Some(&snapshot) {
            let event = ProgressEvent {
                kind: "progress",
                data: snapshot.clone(),
            };
            self.push(SseEvent::default().event(event.kind), &event);
            self.snapshot = Some(snapshot);
        }
    }

    fn push(&mut self, event: SseEvent, data: &impl Serialize) {
        match serde_json::to_string(data) {
            Ok(json) => self.ready.push_back(event.data(json)),
            Err(error) => tracing::error!(%error, job_id = %self.job, "event is no JSON"),
        }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;

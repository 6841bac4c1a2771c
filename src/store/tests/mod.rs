//! The store as its callers see it, on a real file in a temporary folder.

mod attempts;
mod concurrency;
mod devices;
mod faults;
mod jobs;
mod model;
mod plans;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::domain::{
    CheckpointRecord, DatasetFormat, DatasetId, DatasetLayout, Event, FixedClock, JobSpec, Message,
    SequentialIds, Status, Timestamp,
};

const LEASE_MS: i64 = 10_000;

struct Fixture {
    folder: TempDir,
    clock: Arc<FixedClock>,
    ids: Arc<SequentialIds>,
    store: Store,
    dataset: DatasetId,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(FixedClock::new(Timestamp(1_000_000)));
        let ids = Arc::new(SequentialIds::default());
        let store = Store::open(&folder.path().join("test.db"), clock.clone(), ids.clone())
            .await
            .unwrap();
        let dataset = dataset(&*ids);
        store.create_dataset(dataset.clone()).await.unwrap();
        Self {
            folder,
            clock,
            ids,
            store,
            dataset: dataset.id,
        }
    }

    async fn reopen(&mut self) {
        self.store.close().await;
        let path = self.folder.path().join("test.db");
        self.store = Store::open(&path, self.clock.clone(), self.ids.clone())
            .await
            .unwrap();
    }

    fn spec(&self) -> JobSpec {
        spec(self.dataset)
    }

    async fn job(&self) -> Job {
        self.store.create_job(self.spec(), None).await.unwrap().0
    }

    async fn claim(&self) -> ClaimedAttempt {
        self.store.claim_next(LEASE_MS).await.unwrap().unwrap()
    }

    /// The job and its status, read back.
    async fn status(&self, id: JobId) -> Status {
        self.store.job(id).await.unwrap().unwrap().status
    }

    async fn say(&self, claimed: &ClaimedAttempt, messages: Vec<Message>) -> SayResult {
        self.store
            .record_messages(claimed.attempt_id, &claimed.token, messages, LEASE_MS)
            .await
    }

    /// The kinds of a job's events, after checking that their numbers have no gaps.
    async fn kinds(&self, job: JobId) -> Vec<&'static str> {
        let events = self.store.events(job, 0, 100_000).await.unwrap();
        for (event, seq) in events.iter().zip(1..) {
            assert_eq!(event.seq, seq);
        }
        events.iter().map(|event| event.event.kind()).collect()
    }
}

type SayResult = Result<crate::domain::MessagesResponse, StoreError>;

fn dataset(ids: &dyn Ids) -> Dataset {
    Dataset {
        id: DatasetId(ids.next_uuid()),
        name: "tickets".to_owned(),
        layout: DatasetLayout {
            format: DatasetFormat::Csv,
            header: true,
            columns: vec!["text".to_owned(), "label".to_owned()],
        },
        size_bytes: 1234,
        sha256: "ab".repeat(32),
        rows: 60,
        created_at: Timestamp(999_000),
    }
}

fn spec(train: DatasetId) -> JobSpec {
    JobSpec::parse(&json!({
        "model": "org/model",
        "task": "sequence_classification",
        "dataset": {"train": train},
    }))
    .unwrap()
}

fn message(seq: u64, event: Event) -> Message {
    Message {
        seq,
        at: Timestamp(1_000_000),
        event,
    }
}

/// A trainer's first messages, if it reports the model's checkpoint and then its end.
fn success(step: u64) -> Vec<Message> {
    vec![
        message(1, Event::Checkpoint(checkpoint(step))),
        message(2, Event::Succeeded { model_step: step }),
    ]
}

fn checkpoint(step: u64) -> CheckpointRecord {
    CheckpointRecord {
        step,
        epoch: 0.5,
        metrics: BTreeMap::from([("eval_loss".to_owned(), 0.25)]),
        resumable: true,
        files: Vec::new(),
    }
}

fn metrics(step: u64, name: &str, value: f64) -> Event {
    Event::Metrics {
        step,
        epoch: 0.5,
        values: BTreeMap::from([(name.to_owned(), value)]),
    }
}

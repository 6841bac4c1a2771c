//! The only SQL: jobs, attempts, events, checkpoints, datasets, idempotency keys.
//!
//! One writer task owns the only connection that may write ([`writer`]); everything that arrives while a
//! commit waits for the disk goes into the next one. A call returns after its commit, with
//! `synchronous=FULL`, so what was answered survives power loss. Reads go to a pool of read-only
//! connections and never wait for a writer.
//!
//! Every change of status is one guarded `UPDATE` that must hit exactly one row, in the same transaction
//! as the event that tells of it; CHECK constraints refuse rows that make no sense
//! (`migrations/0001_initial.sql`).

mod apply;
mod attempts;
mod backup;
mod checkpoints;
mod claim;
mod datasets;
mod error;
mod events;
mod idempotency;
mod jobs;
mod lifecycle;
mod losses;
mod metrics;
mod queue;
mod rows;
mod spool;
mod subscribers;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod types;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, SqliteConnection};
use tokio::sync::watch;

use crate::domain::{Clock, Ids, JobId};

pub use backup::{DatabaseContents, check_database, copy_database};
pub use error::StoreError;
pub use types::{
    AttemptEnd, AttemptInput, ClaimedAttempt, Dataset, Idempotency, Job, JobPatch, MetricPoint,
    OpenAttempt, QueueLoad, QueuedJob, StoredCheckpoint, StoredEvent,
};

use subscribers::Subscribers;
use writer::{Tx, Writer};

const READERS: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// After a burst the write-ahead log is cut back to this.
const JOURNAL_SIZE_LIMIT_BYTES: &str = "67108864";

/// A handle to the database; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    readers: SqlitePool,
    writer: Writer,
    subscribers: Arc<Subscribers>,
    clock: Arc<dyn Clock>,
}

impl Store {
    /// Opens (and migrates) the database file, starts the writer task.
    ///
    /// # Errors
    /// The file cannot be opened, is no database, or was written by a newer version.
    pub async fn open(
        path: &Path,
        clock: Arc<dyn Clock>,
        ids: Arc<dyn Ids>,
    ) -> Result<Self, StoreError> {
        let connection = open_writer(path).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_with(
                SqliteConnectOptions::new()
                    .filename(path)
                    .read_only(true)
                    .busy_timeout(BUSY_TIMEOUT),
            )
            .await?;
        let subscribers = Arc::new(Subscribers::default());
        let tx = Tx::new(connection, Arc::clone(&clock), ids);
        let writer = Writer::start(tx, Arc::clone(&subscribers));
        Ok(Self {
            inner: Arc::new(Inner {
                readers,
                writer,
                subscribers,
                clock,
            }),
        })
    }

    /// Stops the writer after what was handed to it is committed, and closes all connections. Subscribers
    /// see their channel close.
    pub async fn close(&self) {
        // Readers first: the last connection to close folds the log into the database, and only the
        // writer may do that.
        self.inner.readers.close().await;
        self.inner.writer.close().await;
        self.inner.subscribers.clear();
    }

    /// Answers whether the database can be read and written (for `/readyz`).
    ///
    /// # Errors
    /// It cannot.
    pub async fn ping(&self) -> Result<(), StoreError> {
        sqlx::query("SELECT 1").fetch_one(self.readers()).await?;
        // An empty transaction takes the write lock, but costs no disk flush.
        self.write(|_| Box::pin(async { Ok(()) })).await
    }

    /// Wakes whenever something of this job was committed (events, progress, status). Payloads are read
    /// from the tables afterwards.
    pub fn subscribe(&self, job: JobId) -> watch::Receiver<u64> {
        self.inner.subscribers.subscribe(job)
    }

    fn readers(&self) -> &SqlitePool {
        &self.inner.readers
    }

    /// Runs `work` in the writer's next transaction; answers after the commit. The work goes on when the
    /// caller no longer waits.
    async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, StoreError>> + Send + 'static,
    {
        self.inner.writer.run(work).await
    }
}

/// NORMAL loses acknowledged commits on power loss; group commit makes FULL affordable.
fn synchronous() -> SqliteSynchronous {
    // For the test that shows that it can see such a loss. Not in a release.
    #[cfg(debug_assertions)]
    if std::env::var_os("CHANDLER_TEST_SYNCHRONOUS").is_some_and(|mode| mode == "normal") {
        return SqliteSynchronous::Normal;
    }
    SqliteSynchronous::Full
}

async fn open_writer(path: &Path) -> Result<SqliteConnection, StoreError> {
    let mut connection = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous())
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("journal_size_limit", JOURNAL_SIZE_LIMIT_BYTES)
        .connect()
        .await?;
    sqlx::migrate!("./migrations")
        .run(&mut connection)
        .await
        .map_err(|error| StoreError::Database(format!("migration failed: {error}")))?;
    Ok(connection)
}

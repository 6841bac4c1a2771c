//! The single writer: one task, one connection, one transaction for all that waits.
//!
//! ```text
//! loop
//!   take every waiting request (at least one, at most MAX_BATCH)
//!   BEGIN IMMEDIATE
//!   each request:  SAVEPOINT · work, or ROLLBACK TO if it failed · RELEASE
//!   COMMIT                       -- one disk flush for the whole batch
//!   answer every request, wake the subscribers of every job that changed
//! ```
//!
//! A request that fails does not undo its neighbours; a transaction that fails fails them all, and none
//! was told otherwise.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::StoreError;
use super::subscribers::Subscribers;
use crate::domain::{Clock, Ids, JobId, Timestamp};

const MAX_BATCH: usize = 256;
/// Requests beyond this wait for room, without a place in the queue.
const QUEUE: usize = 1024;

/// What a request may use: the connection inside its transaction, the time, fresh ids.
pub(super) struct Tx {
    pub conn: SqliteConnection,
    pub now: Timestamp,
    pub ids: Arc<dyn Ids>,
    clock: Arc<dyn Clock>,
    touched: Vec<JobId>,
}

impl Tx {
    pub fn new(conn: SqliteConnection, clock: Arc<dyn Clock>, ids: Arc<dyn Ids>) -> Self {
        Self {
            conn,
            now: clock.now(),
            ids,
            clock,
            touched: Vec::new(),
        }
    }

    /// Subscribers of this job are woken after the commit.
    pub fn touch(&mut self, job: JobId) {
        self.touched.push(job);
    }

    async fn execute(&mut self, sql: &'static str) -> Result<(), StoreError> {
        sqlx::query(sql).execute(&mut self.conn).await?;
        Ok(())
    }
}

/// A unit of work and where its answer goes, without their types.
trait Request: Send {
    /// Does the work and keeps its result; false if it failed and must be undone.
    fn run<'t>(&'t mut self, tx: &'t mut Tx) -> BoxFuture<'t, bool>;
    /// Sends the kept result, or the error that undid everything.
    fn answer(self: Box<Self>, undone_by: Option<&StoreError>);
}

struct Pending<T, F> {
    work: Option<F>,
    result: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<T, F> Request for Pending<T, F>
where
    T: Send,
    F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, StoreError>> + Send,
{
    fn run<'t>(&'t mut self, tx: &'t mut Tx) -> BoxFuture<'t, bool> {
        Box::pin(async move {
            if let Some(work) = self.work.take() {
                self.result = Some(work(tx).await);
            }
            matches!(self.result, Some(Ok(_)))
        })
    }

    fn answer(self: Box<Self>, undone_by: Option<&StoreError>) {
        let result = match (undone_by, self.result) {
            (None, Some(result)) | (Some(_), Some(result @ Err(_))) => result,
            (Some(error), _) => Err(error.clone()),
            (None, None) => Err(StoreError::Database("request was not run".to_owned())),
        };
        // Nobody listens any more when the caller was dropped; the work is done all the same.
        self.reply.send(result).ok();
    }
}

enum Input {
    Work(Box<dyn Request>),
    Close(oneshot::Sender<()>),
}

/// The way to the writer task. The task ends when this is dropped or closed.
#[derive(Debug)]
pub(super) struct Writer(mpsc::Sender<Input>);

impl Writer {
    pub fn start(tx: Tx, subscribers: Arc<Subscribers>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        tokio::spawn(serve(tx, receiver, subscribers));
        Self(sender)
    }

    pub async fn run<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'t> FnOnce(&'t mut Tx) -> BoxFuture<'t, Result<T, StoreError>> + Send + 'static,
    {
        let closed = || StoreError::Database("the store is closed".to_owned());
        let (reply, answer) = oneshot::channel();
        let request = Pending {
            work: Some(work),
            result: None,
            reply,
        };
        self.0
            .send(Input::Work(Box::new(request)))
            .await
            .map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    pub async fn close(&self) {
        let (done, wait) = oneshot::channel();
        if self.0.send(Input::Close(done)).await.is_ok() {
            // An error means that the task is gone, which is what was asked for.
            wait.await.ok();
        }
    }
}

async fn serve(mut tx: Tx, mut receiver: mpsc::Receiver<Input>, subscribers: Arc<Subscribers>) {
    let mut inputs = Vec::new();
    let mut closers = Vec::new();
    while receiver.recv_many(&mut inputs, MAX_BATCH).await > 0 {
        let mut batch = Vec::with_capacity(inputs.len());
        for input in inputs.drain(..) {
            match input {
                Input::Work(request) => batch.push(request),
                Input::Close(done) => {
                    // What was already handed over is still received; then `recv_many` answers 0.
                    receiver.close();
                    closers.push(done);
                }
            }
        }
        commit(&mut tx, batch, &subscribers).await;
    }
    if let Err(error) = tx.conn.close().await {
        tracing::warn!(%error, "closing the database failed");
    }
    for done in closers {
        done.send(()).ok();
    }
}

/// One transaction for the whole batch, then the answers.
async fn commit(tx: &mut Tx, mut batch: Vec<Box<dyn Request>>, subscribers: &Subscribers) {
    tx.touched.clear();
    let outcome = transact(tx, &mut batch).await;
    if let Err(error) = &outcome {
        tracing::error!(%error, requests = batch.len(), "a transaction failed");
        // SQLite may have rolled back by itself (full disk); then this has nothing to do.
        tx.execute("ROLLBACK").await.ok();
    } else {
        tx.touched.sort_unstable();
        tx.touched.dedup();
        subscribers.wake(&tx.touched);
    }
    for request in batch {
        request.answer(outcome.as_ref().err());
    }
}

async fn transact(tx: &mut Tx, batch: &mut [Box<dyn Request>]) -> Result<(), StoreError> {
    if batch.is_empty() {
        return Ok(());
    }
    // Two statements at a time: a round trip to the connection's thread costs more than either.
    let mut begin = "BEGIN IMMEDIATE; SAVEPOINT request";
    for request in batch {
        tx.execute(begin).await?;
        let touched = tx.touched.len();
        tx.now = tx.clock.now();
        if !request.run(tx).await {
            tx.touched.truncate(touched);
            tx.execute("ROLLBACK TO request").await?;
        }
        begin = "RELEASE request; SAVEPOINT request";
    }
    tx.execute("RELEASE request; COMMIT").await
}

//! The HTTP API: extract, call the store, answer. No SQL, no tensors, and no waiting for training here.
//!
//! [`router`] builds everything a client can reach; [`serve`] runs it on a socket. One file per endpoint:
//! its request and response types, the handler with its OpenAPI annotation, its tests.
//!
//! ```text
//! request ─► middleware (id, span, panic → problem) ─► route ─► extractors ─► handler ─► store
//! ```
//!
//! Whatever goes wrong on the way is a [`problem::Problem`].

mod digest;
mod extract;
mod health;
mod internal;
mod middleware;
mod openapi;
mod pace;
mod page;
pub mod problem;
mod query;
mod serve;
#[cfg(test)]
mod testing;
pub mod v1;

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{Method, Uri};
use tokio_util::sync::CancellationToken;

use crate::artifacts::{ArtifactError, DataDir};
use crate::domain::{Clock, ErrorCode, Ids, Slot};
use crate::store::Store;
pub use openapi::openapi_json;
pub use pace::Pace;
pub use page::Page;
use problem::Problem;
pub use serve::{ServeOptions, serve, serve_with};
use v1::jobs::{InFlight, Subscribers};

/// Everything a handler may use.
#[derive(Clone)]
pub struct AppState {
    /// The database.
    pub store: Store,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// New ids.
    pub ids: Arc<dyn Ids>,
    /// Where datasets and checkpoints lie.
    pub data_dir: DataDir,
    /// What jobs are trained on.
    pub slots: Arc<[Slot]>,
    /// Wakes the dispatcher: a job was queued or cancelled.
    pub worker: Arc<dyn Fn() + Send + Sync>,
    /// Bounds.
    pub limits: Limits,
    /// Cancelled when trainers are to save and leave because the server will stop.
    pub draining: CancellationToken,
    /// Cancelled when the server begins to shut down; streams end then.
    pub shutdown: CancellationToken,
    /// Open event streams.
    pub subscribers: Subscribers,
    /// `Idempotency-Key`s being handled.
    pub in_flight: InFlight,
}

impl AppState {
    /// Jobs trained at a time.
    fn jobs_at_a_time(&self) -> u32 {
        self.slots.iter().map(|slot| slot.jobs).sum()
    }
}

impl fmt::Debug for AppState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("AppState");
        debug.field("data_dir", &self.data_dir);
        debug.field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// Bounds on what a client can ask for, and what trainers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest JSON body.
    pub json_body_bytes: usize,
    /// Largest batch of a trainer's messages.
    pub messages_body_bytes: usize,
    /// Largest dataset file.
    pub dataset_bytes: u64,
    /// How slowly a body may come.
    pub body_pace: Pace,
    /// Open event streams of one job.
    pub subscribers_per_job: usize,
    /// How long a request waits for another one with its `Idempotency-Key`.
    pub idempotency_wait_ms: u64,
    /// How long an attempt lives without a message.
    pub lease_ms: i64,
    /// How often a trainer must report at least.
    pub heartbeat_ms: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            json_body_bytes: 1 << 20,
            messages_body_bytes: 8 << 20,
            dataset_bytes: 2 << 30,
            body_pace: Pace::default(),
            subscribers_per_job: 2000,
            idempotency_wait_ms: 5_000,
            lease_ms: 10_000,
            heartbeat_ms: 2_000,
        }
    }
}

/// Every route of the server.
pub fn router(state: AppState) -> Router {
    let (public, document) = openapi::routes(&state.limits).split_for_parts();
    let document = openapi::render(&document);
    public
        .merge(openapi::route(document))
        .merge(internal::routes(&state.limits))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(state.limits.json_body_bytes))
        .layer(axum::middleware::from_fn_with_state(
            state.clone(),
            middleware::around,
        ))
        .with_state(state)
}

async fn unknown_path(uri: Uri) -> Problem {
    let detail = format!("there is nothing at `{}`", uri.path());
    Problem::new(ErrorCode::NotFound, detail).hint("`/openapi.json` lists every path")
}

async fn unknown_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("`{}` does not take {method}", uri.path());
    Problem::new(ErrorCode::MethodNotAllowed, detail).hint("the `Allow` header lists what it takes")
}

/// Runs `work` to its end even when the client leaves, because a half-done change of database *and* disk
/// would leave one without the other.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    use tracing::Instrument;
    tokio::spawn(work.in_current_span())
        .await
        .unwrap_or_else(|panic| Err(Problem::internal(panic)))
}

/// Works on the disk, on a thread that may wait for it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| Err(Problem::internal(panic)))
}

/// Removes files whose row is gone. Failing to only costs disk space, so the request still succeeds.
async fn discard(
    state: &AppState,
    remove: impl FnOnce(&DataDir) -> Result<(), ArtifactError> + Send + 'static,
) {
    let data_dir = state.data_dir.clone();
    let removed = blocking(move || {
        if let Err(error) = remove(&data_dir) {
            tracing::warn!(%error, "files that nobody needs any more stay");
        }
        Ok(())
    });
    removed.await.ok();
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::testing::TestApp;

    #[tokio::test]
    async fn unknown_paths_and_methods_are_problems() {
        let app = TestApp::start().await;
        let answer = app.get("/v2/jobs").await;
        answer.assert_problem(StatusCode::NOT_FOUND, "not_found");
        assert_eq!(answer.json()["instance"], "/v2/jobs");
        assert_eq!(
            answer.json()["request_id"],
            answer.headers["x-request-id"].to_str().unwrap()
        );
        let answer = app.request("PUT", "/v1/jobs", &[], "").await;
        answer.assert_problem(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed");
        let allowed = answer.headers["allow"].to_str().unwrap();
        assert!(allowed.contains("GET") && allowed.contains("POST"));
    }

    #[tokio::test]
    async fn a_clients_request_id_comes_back() {
        let app = TestApp::start().await;
        let headers = [("x-request-id", "build-42")];
        let answer = app.request("GET", "/healthz", &headers, "").await;
        assert_eq!(answer.headers["x-request-id"], "build-42");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    }

    #[tokio::test]
    async fn a_body_above_the_limit_is_refused() {
        let app = TestApp::start().await;
        let body = format!("\"{}\"", "x".repeat(1 << 20));
        let answer = app
            .request(
                "POST",
                "/v1/jobs",
                &[("content-type", "application/json")],
                body,
            )
            .await;
        answer.assert_problem(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large");
    }

    async fn panics() {
        panic!("on purpose")
    }

    #[tokio::test]
    async fn a_panic_is_a_problem_and_the_server_goes_on() {
        let app = TestApp::start().await;
        let router = axum::Router::new()
            .route("/panic", axum::routing::get(panics))
            .fallback(|| async { "fine" })
            .layer(axum::middleware::from_fn_with_state(
                app.state.clone(),
                super::middleware::around,
            ));
        let answer = super::testing::send(&router, "GET", "/panic", &[], "").await;
        answer.assert_problem(StatusCode::INTERNAL_SERVER_ERROR, "internal_error");
        assert!(!answer.text().contains("on purpose"));
        let answer = super::testing::send(&router, "GET", "/", &[], "").await;
        assert_eq!(answer.text(), "fine");
    }
}

//! `GET /healthz`: the process answers. `GET /readyz`: it can do its work.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::problem::Problem;
use crate::domain::{ErrorCode, Slot};

/// A probe's answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    #[schema(example = "ok")]
    pub status: &'static str,
}

/// That the server can do its work, and what with.
#[derive(Debug, Serialize, ToSchema)]
pub struct Readiness {
    /// `ok`.
    #[schema(example = "ok")]
    pub status: &'static str,
    /// What jobs are trained on; empty where nothing is trained.
    pub slots: Vec<Slot>,
}

/// Is the process alive?
///
/// Always answers 200 while the process can answer at all. For liveness probes.
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, body = Health)))]
pub async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Can the server do its work?
///
/// 200 when the database can be read and written and the server is not shutting down. For readiness
/// probes and load balancers.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "health",
    responses(
        (status = 200, body = Readiness),
        (status = 503, description = "`unavailable`: the database does not answer, or the server is shutting down"),
    ),
)]
pub async fn readyz(State(state): State<AppState>) -> Result<Json<Readiness>, Problem> {
    if state.shutdown.is_cancelled() {
        return Err(Problem::new(
            ErrorCode::Unavailable,
            "the server is shutting down",
        ));
    }
    state.store.ping().await.map_err(|cause| {
        tracing::error!(%cause, "the database does not answer");
        Problem::new(ErrorCode::Unavailable, "the database does not answer")
    })?;
    Ok(Json(Readiness {
        status: "ok",
        slots: state.slots.to_vec(),
    }))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use crate::http::testing::TestApp;

    #[tokio::test]
    async fn ready_until_shutdown_begins() {
        let app = TestApp::start().await;
        let ready = app.get("/readyz").await;
        assert_eq!(ready.status, StatusCode::OK);
        let slot = serde_json::json!({"device": {"type": "cpu"}, "jobs": 1, "memory_bytes": null});
        assert_eq!(ready.json()["slots"], serde_json::json!([slot]));
        app.state.shutdown.cancel();
        app.get("/readyz")
            .await
            .assert_problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable");
        assert_eq!(app.get("/healthz").await.json()["status"], "ok");
    }
}

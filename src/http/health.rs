//! `GET /healthz`: the process answers. `GET /readyz`: it can do its work.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::AppState;
use super::problem::Problem;
use crate::domain::ErrorCode;

/// A probe's answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    /// `ok`.
    #[schema(example = "ok")]
    pub status: &'static str,
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
        (status = 200, body = Health),
        (status = 503, description = "`unavailable`: the database does not answer, or the server is shutting down"),
    ),
)]
pub async fn readyz(State(state): State<AppState>) -> Result<Json<Health>, Problem> {
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
    Ok(Json(Health { status: "ok" }))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use crate::http::testing::TestApp;

    #[tokio::test]
    async fn ready_until_shutdown_begins() {
        let app = TestApp::start().await;
        assert_eq!(app.get("/readyz").await.status, StatusCode::OK);
        app.state.shutdown.cancel();
        app.get("/readyz")
            .await
            .assert_problem(StatusCode::SERVICE_UNAVAILABLE, "unavailable");
        assert_eq!(app.get("/healthz").await.json()["status"], "ok");
    }
}

//! `POST /v1/jobs/{id}/cancel`

use axum::Json;
use axum::extract::State;

use super::view::{JobView, view};
use crate::http::AppState;
use crate::http::extract::JobPath;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, NoQuery};

/// Cancel a job
///
/// A queued job is cancelled at once. A running one is told with its trainer's next message; until then
/// `cancel_requested` is true. Its finished checkpoints stay. Cancelling twice is harmless.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/cancel",
    tag = "jobs",
    params(JobPath),
    responses(
        (status = 200, description = "The job as it stands now", body = JobView),
        (status = 404, description = "`job_not_found`"),
        (status = 409, description = "`job_state_conflict`: it has succeeded or failed"),
    ),
)]
pub async fn cancel_job(
    State(state): State<AppState>,
    JobPath(id): JobPath,
    _: ApiQuery<NoQuery>,
) -> Result<Json<JobView>, Problem> {
    let job = state.store.cancel_job(id).await.map_err(super::about(id))?;
    (state.worker)();
    view(&state, job).await.map(Json)
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use crate::domain::Event;
    use crate::http::testing::TestApp;

    #[tokio::test]
    async fn queued_running_and_final_jobs_differ() {
        let app = TestApp::start().await;
        let job = app.queued_job().await;
        let path = format!("/v1/jobs/{}/cancel", job["id"].as_str().unwrap());
        for _ in 0..2 {
            let answer = app.request("POST", &path, &[], "").await;
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(answer.json()["status"], "cancelled");
        }

        let job = app.queued_job().await;
        let path = format!("/v1/jobs/{}/cancel", job["id"].as_str().unwrap());
        let mut trainer = app.claim().await;
        let answer = app.request("POST", &path, &[], "").await.json();
        assert_eq!(answer["status"], "running");
        assert_eq!(answer["cancel_requested"], true);
        assert_eq!(trainer.report(vec![]).await["command"], "cancel");
        trainer.report(vec![Event::Cancelled {}]).await;

        app.queued_job().await;
        let mut trainer = app.claim().await;
        trainer.report(vec![TestApp::checkpoint(1, &[])]).await;
        trainer
            .report(vec![Event::Succeeded { model_step: 1 }])
            .await;
        let path = format!("/v1/jobs/{}/cancel", trainer.job_id);
        app.request("POST", &path, &[], "")
            .await
            .assert_problem(StatusCode::CONFLICT, "job_state_conflict");
    }
}

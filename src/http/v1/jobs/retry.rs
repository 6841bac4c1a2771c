//! `POST /v1/jobs/{id}/retry`

use axum::Json;
use axum::extract::State;

use super::view::{JobView, view};
use crate::http::AppState;
use crate::http::extract::JobPath;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, NoQuery};

/// Retry a job
///
/// Queues a job again that failed or was cancelled. It keeps its id and its log and goes on from its newest
/// checkpoint, with all its retries, as if it had never lost a trainer.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/retry",
    tag = "jobs",
    params(JobPath),
    responses(
        (status = 200, description = "The job, queued", body = JobView),
        (status = 404, description = "`job_not_found`"),
        (status = 409, description = "`job_state_conflict`: it has not failed and was not cancelled"),
    ),
)]
pub async fn retry_job(
    State(state): State<AppState>,
    JobPath(id): JobPath,
    _: ApiQuery<NoQuery>,
) -> Result<Json<JobView>, Problem> {
    let job = state.store.retry_job(id).await.map_err(super::about(id))?;
    (state.worker)();
    view(&state, job).await.map(Json)
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use crate::domain::{ErrorCode, Event, JobError};
    use crate::http::testing::TestApp;

    #[tokio::test]
    async fn a_failed_job_waits_again_with_its_log_and_can_end_once_more() {
        let app = TestApp::start().await;
        let job = app.queued_job().await;
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        let retry = format!("{path}/retry");
        app.request("POST", &retry, &[], "")
            .await
            .assert_problem(StatusCode::CONFLICT, "job_state_conflict");
        let error = JobError::new(ErrorCode::NonFiniteLoss, "NaN");
        let mut trainer = app.claim().await;
        trainer.report(vec![Event::Failed { error }]).await;
        let answer = app.request("POST", &retry, &[], "").await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let answer = answer.json();
        assert_eq!(answer["status"], "queued");
        assert_eq!(answer["error"], serde_json::Value::Null);
        assert_eq!(answer["finished_at"], serde_json::Value::Null);

        let mut trainer = app.claim().await;
        trainer.report(vec![TestApp::checkpoint(1, &[])]).await;
        trainer
            .report(vec![Event::Succeeded { model_step: 1 }])
            .await;
        let job = app.get(&path).await.json();
        assert_eq!(
            (&job["status"], &job["attempt"]),
            (&"succeeded".into(), &2.into())
        );
        let events = app.get(&format!("{path}/events")).await.json();
        let kinds = events["data"].as_array().unwrap().iter();
        let kinds: Vec<_> = kinds.map(|e| e["type"].as_str().unwrap()).collect();
        assert_eq!(
            kinds,
            [
                "queued",
                "started",
                "failed",
                "retried",
                "started",
                "checkpoint",
                "succeeded"
            ]
        );
        // Followed from the start, the stream goes past the first end to the last.
        let headers = [("accept", "text/event-stream")];
        let stream = app
            .request("GET", &format!("{path}/events"), &headers, "")
            .await;
        assert!(stream.text().contains("event: retried"));
        assert!(stream.text().contains("event: succeeded"));
        app.request("POST", &retry, &[], "")
            .await
            .assert_problem(StatusCode::CONFLICT, "job_state_conflict");
    }
}

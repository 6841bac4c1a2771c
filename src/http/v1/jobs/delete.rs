//! `DELETE /v1/jobs/{id}`

use axum::extract::State;
use axum::http::StatusCode;

use crate::domain::ErrorCode;
use crate::http::extract::JobPath;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, NoQuery};
use crate::http::{AppState, detached, discard};
use crate::store::StoreError;

/// Delete a job
///
/// Removes a job that has ended, with its events, metrics and checkpoints: the trained model too.
#[utoipa::path(
    delete,
    path = "/v1/jobs/{id}",
    tag = "jobs",
    params(JobPath),
    responses(
        (status = 204, description = "Deleted"),
        (status = 404, description = "`job_not_found`"),
        (status = 409, description = "`job_state_conflict`: it has not ended; cancel it first"),
    ),
)]
pub async fn delete_job(
    State(state): State<AppState>,
    JobPath(id): JobPath,
    _: ApiQuery<NoQuery>,
) -> Result<StatusCode, Problem> {
    detached(async move {
        match state.store.delete_job(id).await {
            Err(StoreError::StateConflict(status)) => {
                let detail =
                    format!("the job is {status}; only a job that has ended can be deleted");
                let problem = Problem::new(ErrorCode::JobStateConflict, detail);
                return Err(problem.hint("cancel it first"));
            }
            other => other.map_err(super::about(id))?,
        }
        // After the row: a job without files would be a lie, files without a job are only garbage.
        discard(&state, move |data_dir| data_dir.remove_job(id)).await;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use crate::http::testing::TestApp;

    #[tokio::test]
    async fn only_ended_jobs_go_and_their_files_with_them() {
        let app = TestApp::start().await;
        let job = app.queued_job().await;
        let id = job["id"].as_str().unwrap();
        let path = format!("/v1/jobs/{id}");
        let dir = app.state.data_dir.job_dir(id.parse().unwrap());
        std::fs::create_dir_all(dir.join("checkpoints/checkpoint-1")).unwrap();

        let answer = app.delete(&path).await;
        answer.assert_problem(StatusCode::CONFLICT, "job_state_conflict");
        assert!(dir.exists());

        app.request("POST", &format!("{path}/cancel"), &[], "")
            .await;
        assert_eq!(app.delete(&path).await.status, StatusCode::NO_CONTENT);
        assert!(!dir.exists());
        app.delete(&path)
            .await
            .assert_problem(StatusCode::NOT_FOUND, "job_not_found");
    }
}

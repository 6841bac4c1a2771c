//! `POST /v1/jobs/{id}/pause`

use axum::Json;
use axum::extract::State;

use super::view::{JobView, view};
use crate::http::AppState;
use crate::http::extract::JobPath;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, NoQuery};

/// Pause a job
///
/// A queued job is paused at once. A running one saves a checkpoint with its trainer's next message and frees
/// its slot; until then `pause_requested` is true. `resume` goes on exactly where it stopped. Pausing twice is
/// harmless.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/pause",
    tag = "jobs",
    params(JobPath),
    responses(
        (status = 200, description = "The job as it stands now", body = JobView),
        (status = 404, description = "`job_not_found`"),
        (status = 409, description = "`job_state_conflict`: it has ended"),
    ),
)]
pub async fn pause_job(
    State(state): State<AppState>,
    JobPath(id): JobPath,
    _: ApiQuery<NoQuery>,
) -> Result<Json<JobView>, Problem> {
    let job = state.store.pause_job(id).await.map_err(super::about(id))?;
    (state.worker)();
    view(&state, job).await.map(Json)
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use crate::domain::Event;
    use crate::http::testing::TestApp;

    #[tokio::test]
    async fn a_running_job_is_told_saves_and_frees_its_slot() {
        let app = TestApp::start().await;
        let job = app.queued_job().await;
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        let (pause, resume) = (format!("{path}/pause"), format!("{path}/resume"));
        let mut trainer = app.claim().await;
        let answer = app.request("POST", &pause, &[], "").await.json();
        assert_eq!(answer["status"], "running");
        assert_eq!(answer["pause_requested"], true);
        assert_eq!(trainer.report(vec![]).await["command"], "pause");
        let reason = "told to".to_owned();
        trainer.report(vec![Event::Requeued { reason }]).await;
        for _ in 0..2 {
            let answer = app.request("POST", &pause, &[], "").await;
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(answer.json()["status"], "paused");
            assert_eq!(answer.json()["pause_requested"], false);
        }
        assert!(app.state.store.claim_next(1000).await.unwrap().is_none());

        let answer = app.request("POST", &resume, &[], "").await.json();
        assert_eq!(answer["status"], "queued");
        let mut trainer = app.claim().await;
        // Withdrawn before the trainer heard of it.
        app.request("POST", &pause, &[], "").await;
        app.request("POST", &resume, &[], "").await;
        assert_eq!(trainer.report(vec![]).await["command"], "continue");
        trainer.report(vec![Event::Cancelled {}]).await;
        for path in [pause, resume] {
            app.request("POST", &path, &[], "")
                .await
                .assert_problem(StatusCode::CONFLICT, "job_state_conflict");
        }
    }
}

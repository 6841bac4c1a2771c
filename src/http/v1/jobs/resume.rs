//! `POST /v1/jobs/{id}/resume`

use axum::Json;
use axum::extract::State;

use super::view::{JobView, view};
use crate::http::AppState;
use crate::http::extract::JobPath;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, NoQuery};

/// Resume a job
///
/// A paused job is queued again, in its old place, and goes on from its checkpoint. A pause that has not taken
/// effect yet is withdrawn. Resuming a job that waits or runs is harmless.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/resume",
    tag = "jobs",
    params(JobPath),
    responses(
        (status = 200, description = "The job as it stands now", body = JobView),
        (status = 404, description = "`job_not_found`"),
        (status = 409, description = "`job_state_conflict`: it has ended"),
    ),
)]
pub async fn resume_job(
    State(state): State<AppState>,
    JobPath(id): JobPath,
    _: ApiQuery<NoQuery>,
) -> Result<Json<JobView>, Problem> {
    let job = state.store.resume_job(id).await.map_err(super::about(id))?;
    (state.worker)();
    view(&state, job).await.map(Json)
}

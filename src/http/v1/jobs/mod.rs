//! `/v1/jobs`: fine-tuning jobs, what they do, and what they made.

mod cancel;
mod checkpoints;
mod clone;
mod create;
mod delete;
mod estimate;
mod events;
mod get;
mod in_flight;
mod list;
mod metrics;
mod pause;
mod resume;
mod retry;
mod stream;
mod submit;
mod subscribers;
mod update;
mod view;

use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::domain::JobId;
use crate::http::AppState;
use crate::http::problem::Problem;
use crate::store::{Job, StoreError};

pub use events::EventView;
pub use in_flight::InFlight;
pub use subscribers::Subscribers;
pub use view::JobView;

/// The routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(create::create_job, list::list_jobs))
        .routes(routes!(
            get::get_job,
            update::update_job,
            delete::delete_job
        ))
        .routes(routes!(cancel::cancel_job))
        .routes(routes!(pause::pause_job))
        .routes(routes!(resume::resume_job))
        .routes(routes!(retry::retry_job))
        .routes(routes!(clone::clone_job))
        .routes(routes!(events::list_events))
        .routes(routes!(metrics::get_metrics))
        .merge(checkpoints::routes())
}

/// The job, or 404.
async fn find(state: &AppState, id: JobId) -> Result<Job, Problem> {
    let job = state.store.job(id).await?;
    job.ok_or_else(|| Problem::job_not_found(id))
}

/// What the store says about one job, in words that name it.
fn about(id: JobId) -> impl Fn(StoreError) -> Problem {
    move |error| match error {
        StoreError::NotFound => Problem::job_not_found(id),
        other => other.into(),
    }
}

//! Version 1 of the API, by resource.

pub mod datasets;
pub mod jobs;

use utoipa_axum::router::OpenApiRouter;

use super::{AppState, Limits};

/// Every route under `/v1`.
pub fn routes(limits: &Limits) -> OpenApiRouter<AppState> {
    datasets::routes(limits).merge(jobs::routes())
}

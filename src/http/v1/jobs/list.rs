//! `GET /v1/jobs`

use axum::Json;
use axum::extract::State;
use utoipa::IntoParams;

use super::view::{JobView, views};
use crate::domain::{JobId, Status};
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, FromQuery, QueryReader};
use crate::http::{AppState, Page};

/// Which page of which jobs.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListJobs {
    /// Items per page.
    #[param(minimum = 1, maximum = 100, default = 20, required = false)]
    limit: u32,
    /// `next_cursor` of the page before.
    after: Option<JobId>,
    /// Only jobs with this status.
    status: Option<Status>,
}

impl FromQuery for ListJobs {
    fn from_query(query: &mut QueryReader) -> Self {
        Self {
            limit: query.number("limit", 20, 1..=100),
            after: query.optional("after"),
            status: query.optional("status"),
        }
    }
}

/// List jobs
///
/// Newest first.
#[utoipa::path(
    get,
    path = "/v1/jobs",
    tag = "jobs",
    params(ListJobs),
    responses((status = 200, description = "One page", body = Page<JobView>)),
)]
pub async fn list_jobs(
    State(state): State<AppState>,
    ApiQuery(query): ApiQuery<ListJobs>,
) -> Result<Json<Page<JobView>>, Problem> {
    let found = state
        .store
        .jobs(query.status, query.after, query.limit + 1)
        .await?;
    let page = Page::new(found, query.limit, |job| job.id.to_string());
    Ok(Json(Page {
        data: views(&state, page.data).await?,
        has_more: page.has_more,
        next_cursor: page.next_cursor,
    }))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::Value;

    use crate::http::testing::TestApp;

    fn ids(page: &Value) -> Vec<Value> {
        let data = page["data"].as_array().unwrap();
        data.iter().map(|job| job["id"].clone()).collect()
    }

    #[tokio::test]
    async fn newest_first_by_page_and_by_status() {
        let app = TestApp::start().await;
        let mut made = Vec::new();
        for _ in 0..3 {
            made.push(app.queued_job().await["id"].clone());
        }
        let first = app.get("/v1/jobs?limit=2").await.json();
        assert_eq!(ids(&first), [made[2].clone(), made[1].clone()]);
        let after = first["next_cursor"].as_str().unwrap();
        let second = app
            .get(&format!("/v1/jobs?limit=2&after={after}"))
            .await
            .json();
        assert_eq!(ids(&second), [made[0].clone()]);
        assert_eq!(second["next_cursor"], Value::Null);

        app.claim().await;
        let running = app.get("/v1/jobs?status=running").await.json();
        assert_eq!(ids(&running), [made[0].clone()]);
        assert_eq!(
            ids(&app.get("/v1/jobs?status=failed").await.json()).len(),
            0
        );
        let answer = app.get("/v1/jobs?status=done").await;
        answer.assert_problem(StatusCode::UNPROCESSABLE_ENTITY, "validation_failed");
        assert_eq!(answer.pointers(), ["/query/status"]);
    }
}

//! `GET /v1/datasets`

use axum::Json;
use axum::extract::State;
use utoipa::IntoParams;

use super::DatasetView;
use crate::domain::DatasetId;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, FromQuery, QueryReader};
use crate::http::{AppState, Page};

/// Which page of the list.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListDatasets {
    /// Items per page.
    #[param(minimum = 1, maximum = 100, default = 20, required = false)]
    limit: u32,
    /// `next_cursor` of the page before.
    after: Option<DatasetId>,
}

impl FromQuery for ListDatasets {
    fn from_query(query: &mut QueryReader) -> Self {
        Self {
            limit: query.number("limit", 20, 1..=100),
            after: query.optional("after"),
        }
    }
}

/// List datasets
///
/// Newest first.
#[utoipa::path(
    get,
    path = "/v1/datasets",
    tag = "datasets",
    params(ListDatasets),
    responses((status = 200, description = "One page", body = Page<DatasetView>)),
)]
pub async fn list_datasets(
    State(state): State<AppState>,
    ApiQuery(query): ApiQuery<ListDatasets>,
) -> Result<Json<Page<DatasetView>>, Problem> {
    let found = state.store.datasets(query.after, query.limit + 1).await?;
    let page = Page::new(found, query.limit, |d| d.id.to_string());
    Ok(Json(page.map(DatasetView::from)))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::Value;

    use crate::http::testing::TestApp;

    fn names(page: &Value) -> Vec<&str> {
        let data = page["data"].as_array().unwrap();
        data.iter().map(|d| d["name"].as_str().unwrap()).collect()
    }

    #[tokio::test]
    async fn pages_go_from_new_to_old_without_gap_or_repeat() {
        let app = TestApp::start().await;
        assert_eq!(names(&app.get("/v1/datasets").await.json()), [""; 0]);
        for name in ["a.csv", "b.csv", "c.csv"] {
            app.upload(name, "text,label\nx,1\n").await;
        }
        let first = app.get("/v1/datasets?limit=2").await.json();
        assert_eq!(names(&first), ["c.csv", "b.csv"]);
        assert_eq!(first["has_more"], true);
        let after = first["next_cursor"].as_str().unwrap();
        let second = app
            .get(&format!("/v1/datasets?limit=2&after={after}"))
            .await
            .json();
        assert_eq!(names(&second), ["a.csv"]);
        assert_eq!(second["has_more"], false);
        assert_eq!(second["next_cursor"], Value::Null);
    }

    #[tokio::test]
    async fn wrong_parameters_are_named() {
        let app = TestApp::start().await;
        let answer = app.get("/v1/datasets?limit=101&after=x&page=2").await;
        answer.assert_problem(StatusCode::UNPROCESSABLE_ENTITY, "validation_failed");
        assert_eq!(
            answer.pointers(),
            ["/query/limit", "/query/after", "/query/page"]
        );
    }
}

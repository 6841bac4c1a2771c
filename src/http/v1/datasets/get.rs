//! `GET /v1/datasets/{id}`

use axum::Json;
use axum::extract::State;

use super::DatasetView;
use crate::http::AppState;
use crate::http::extract::DatasetPath;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, NoQuery};

/// Get a dataset
#[utoipa::path(
    get,
    path = "/v1/datasets/{id}",
    tag = "datasets",
    params(DatasetPath),
    responses(
        (status = 200, description = "The dataset", body = DatasetView),
        (status = 404, description = "`dataset_not_found`"),
    ),
)]
pub async fn get_dataset(
    State(state): State<AppState>,
    DatasetPath(id): DatasetPath,
    _: ApiQuery<NoQuery>,
) -> Result<Json<DatasetView>, Problem> {
    let dataset = state.store.dataset(id).await?;
    let dataset = dataset.ok_or_else(|| Problem::dataset_not_found(id))?;
    Ok(Json(dataset.into()))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use crate::http::testing::TestApp;

    #[tokio::test]
    async fn an_uploaded_dataset_is_found_by_its_id() {
        let app = TestApp::start().await;
        let created = app.upload("a.csv", "text,label\nx,1\n").await;
        let path = format!("/v1/datasets/{}", created["id"].as_str().unwrap());
        assert_eq!(app.get(&path).await.json(), created);
    }

    #[tokio::test]
    async fn an_unknown_or_malformed_id_is_not_found() {
        let app = TestApp::start().await;
        for id in ["01990000-0000-7000-8000-000000000001", "nonsense", "%ff"] {
            let answer = app.get(&format!("/v1/datasets/{id}")).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND, "{id}");
            assert_eq!(answer.headers["content-type"], "application/problem+json");
        }
        let answer = app.get("/v1/datasets/nonsense?verbose=1").await;
        answer.assert_problem(StatusCode::NOT_FOUND, "dataset_not_found");
    }
}

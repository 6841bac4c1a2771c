//! `DELETE /v1/datasets/{id}`

use axum::extract::State;
use axum::http::StatusCode;

use crate::http::extract::DatasetPath;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, NoQuery};
use crate::http::{AppState, detached, discard};
use crate::store::StoreError;

/// Delete a dataset
///
/// Removes the file. Jobs that have ended keep their results.
#[utoipa::path(
    delete,
    path = "/v1/datasets/{id}",
    tag = "datasets",
    params(DatasetPath),
    responses(
        (status = 204, description = "Deleted"),
        (status = 404, description = "`dataset_not_found`"),
        (status = 409, description = "`dataset_in_use`: a job that has not ended needs it"),
    ),
)]
pub async fn delete_dataset(
    State(state): State<AppState>,
    DatasetPath(id): DatasetPath,
    _: ApiQuery<NoQuery>,
) -> Result<StatusCode, Problem> {
    detached(async move {
        match state.store.delete_dataset(id).await {
            Err(StoreError::NotFound) => return Err(Problem::dataset_not_found(id)),
            other => other?,
        }
        discard(&state, move |data_dir| data_dir.remove_dataset(id)).await;
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use crate::http::testing::TestApp;

    #[tokio::test]
    async fn deleting_removes_row_and_file() {
        let app = TestApp::start().await;
        let id = app.upload("a.csv", "text,label\nx,1\n").await["id"]
            .as_str()
            .unwrap()
            .to_owned();
        let path = format!("/v1/datasets/{id}");
        let dir = app.state.data_dir.dataset_dir(id.parse().unwrap());
        assert!(dir.exists());
        assert_eq!(app.delete(&path).await.status, StatusCode::NO_CONTENT);
        assert!(!dir.exists());
        app.get(&path)
            .await
            .assert_problem(StatusCode::NOT_FOUND, "dataset_not_found");
        app.delete(&path)
            .await
            .assert_problem(StatusCode::NOT_FOUND, "dataset_not_found");
    }

    #[tokio::test]
    async fn a_queued_job_keeps_its_dataset() {
        let app = TestApp::start().await;
        let job = app.queued_job().await;
        let dataset = job["spec"]["dataset"]["train"].as_str().unwrap();
        let path = format!("/v1/datasets/{dataset}");
        let answer = app.delete(&path).await;
        answer.assert_problem(StatusCode::CONFLICT, "dataset_in_use");
        assert_eq!(app.get(&path).await.status, StatusCode::OK);
        let cancel = format!("/v1/jobs/{}/cancel", job["id"].as_str().unwrap());
        app.request("POST", &cancel, &[], "").await;
        assert_eq!(app.delete(&path).await.status, StatusCode::NO_CONTENT);
    }
}

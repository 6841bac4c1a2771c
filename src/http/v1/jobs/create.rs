//! `POST /v1/jobs`

use axum::extract::State;
use axum::http::HeaderMap;

use super::submit::{Submitted, submit};
use super::view::JobView;
use crate::domain::JobSpec;
use crate::http::AppState;
use crate::http::extract::JsonBody;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, NoQuery};

/// Create a job
///
/// Stores the job and queues it. Everything wrong with the request comes back at once, each with its
/// JSON pointer.
///
/// With an `Idempotency-Key` the request can be repeated safely: the same key and body answer the same
/// job again, with the header `Idempotency-Replayed: true`. Requests with a key that is just being handled
/// wait for its answer.
#[utoipa::path(
    post,
    path = "/v1/jobs",
    tag = "jobs",
    params(
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters, new for every new job"),
    ),
    request_body(
        content = JobSpec,
        example = json!({
            "name": "ticket triage",
            "model": "sentence-transformers/all-MiniLM-L6-v2",
            "task": "sequence_classification",
            "dataset": {
                "train": "01990000-0000-7000-8000-000000000001",
                "eval_split": 0.1,
                "columns": {"text": "text", "label": "label"},
            },
            "max_seq_length": 128,
            "training_args": {
                "num_train_epochs": 3,
                "per_device_train_batch_size": 16,
                "learning_rate": 5e-5,
                "eval_strategy": "epoch",
                "seed": 42,
            },
            "metadata": {"team": "support"},
        }),
    ),
    responses(
        (status = 201, description = "Queued", body = JobView, headers(
            ("location" = String, description = "Path of the job"),
            ("idempotency-replayed" = String, description = "`true` when this key was answered before"),
        )),
        (status = 400, description = "`invalid_json`, with `line`"),
        (status = 409, description = "`idempotency_key_in_use`: the first request with this key is not done; try again"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`validation_failed`, `dataset_not_found`, `column_not_found` or `idempotency_key_reused`"),
    ),
)]
pub async fn create_job(
    State(state): State<AppState>,
    _: ApiQuery<NoQuery>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<Submitted, Problem> {
    let spec = JobSpec::parse(&body).map_err(Problem::invalid)?;
    submit(&state, &headers, spec).await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use axum::http::StatusCode;
    use serde_json::json;

    use crate::http::testing::{JSON, TestApp};

    #[tokio::test]
    async fn a_valid_job_is_queued_and_the_worker_woken() {
        let app = TestApp::start().await;
        let spec = app.job_spec().await;
        let answer = app
            .request("POST", "/v1/jobs", &JSON, spec.to_string())
            .await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        let job = answer.json();
        assert_eq!(
            answer.headers["location"],
            format!("/v1/jobs/{}", job["id"].as_str().unwrap())
        );
        assert_eq!(job["status"], "queued");
        assert_eq!(job["spec"]["max_seq_length"], 128);
        assert_eq!(app.woken.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn every_wrong_field_is_reported() {
        let app = TestApp::start().await;
        let body =
            json!({"task": "poetry", "training_args": {"seed": -1}, "dataset": {"train": "x"}});
        let answer = app
            .request("POST", "/v1/jobs", &JSON, body.to_string())
            .await;
        answer.assert_problem(StatusCode::UNPROCESSABLE_ENTITY, "validation_failed");
        assert_eq!(
            answer.pointers(),
            ["/model", "/task", "/dataset/train", "/training_args/seed"]
        );
        let answer = app
            .request("POST", "/v1/jobs", &JSON, "{\"model\":\n]")
            .await;
        answer.assert_problem(StatusCode::BAD_REQUEST, "invalid_json");
        assert_eq!(answer.json()["line"], 2);
        let answer = app.request("POST", "/v1/jobs", &[], "{}").await;
        answer.assert_problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type");
        assert_eq!(app.woken.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn columns_must_exist_and_those_there_are_are_listed() {
        let app = TestApp::start().await;
        let mut spec = app.job_spec().await;
        spec["dataset"]["columns"] = json!({"text": "body", "label": "label"});
        let answer = app
            .request("POST", "/v1/jobs", &JSON, spec.to_string())
            .await;
        answer.assert_problem(StatusCode::UNPROCESSABLE_ENTITY, "column_not_found");
        assert_eq!(answer.pointers(), ["/dataset/columns/text"]);
        let detail = answer.json()["detail"].to_string();
        assert!(
            detail.contains("`body`") && detail.contains("`text`, `label`"),
            "{detail}"
        );
    }

    #[tokio::test]
    async fn datasets_must_exist() {
        let app = TestApp::start().await;
        let mut spec = app.job_spec().await;
        spec["dataset"]["eval"] = json!("01990000-0000-7000-8000-0000000000ff");
        let answer = app
            .request("POST", "/v1/jobs", &JSON, spec.to_string())
            .await;
        answer.assert_problem(StatusCode::UNPROCESSABLE_ENTITY, "dataset_not_found");
        assert_eq!(answer.pointers(), ["/dataset/eval"]);
    }

    #[tokio::test]
    async fn a_repeated_request_answers_the_same_job() {
        let app = TestApp::start().await;
        let mut spec = app.job_spec().await;
        let headers = [JSON[0], ("idempotency-key", "k-1")];
        let first = app
            .request("POST", "/v1/jobs", &headers, spec.to_string())
            .await;
        assert!(!first.headers.contains_key("idempotency-replayed"));
        // Written another way, it is still the same request.
        spec["max_seq_length"] = json!(128);
        let again = app
            .request("POST", "/v1/jobs", &headers, format!("{spec:#}"))
            .await;
        assert_eq!(again.status, StatusCode::CREATED);
        assert_eq!(again.headers["idempotency-replayed"], "true");
        assert_eq!(again.json()["id"], first.json()["id"]);
        assert_eq!(again.headers["location"], first.headers["location"]);
        assert_eq!(app.woken.load(Ordering::SeqCst), 1);

        spec["max_seq_length"] = json!(64);
        let other = app
            .request("POST", "/v1/jobs", &headers, spec.to_string())
            .await;
        other.assert_problem(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key_reused");
        let long = "k".repeat(256);
        for key in ["", "a b", long.as_str()] {
            let headers = [JSON[0], ("idempotency-key", key)];
            let answer = app
                .request("POST", "/v1/jobs", &headers, spec.to_string())
                .await;
            assert_eq!(answer.pointers(), ["/headers/idempotency-key"]);
        }
        assert_eq!(
            app.get("/v1/jobs").await.json()["data"]
                .as_array()
                .unwrap()
                .len(),
            1
        );
    }

    #[tokio::test]
    async fn a_key_whose_first_request_is_not_done_is_in_use() {
        let limits = crate::http::Limits {
            idempotency_wait_ms: 10,
            ..Default::default()
        };
        let app = TestApp::with_limits(limits).await;
        let spec = app.job_spec().await;
        let headers = [JSON[0], ("idempotency-key", "k-1")];
        let patience = std::time::Duration::from_secs(1);
        let first = app.state.in_flight.turn("k-1", patience).await;
        let answer = app
            .request("POST", "/v1/jobs", &headers, spec.to_string())
            .await;
        answer.assert_problem(StatusCode::CONFLICT, "idempotency_key_in_use");
        drop(first);
        let answer = app
            .request("POST", "/v1/jobs", &headers, spec.to_string())
            .await;
        assert_eq!(answer.status, StatusCode::CREATED);
    }

    #[tokio::test]
    async fn many_requests_with_one_key_make_one_job() {
        let app = TestApp::start().await;
        let spec = app.job_spec().await.to_string();
        let headers = [JSON[0], ("idempotency-key", "k-1")];
        let posts = (0..64).map(|_| app.request("POST", "/v1/jobs", &headers, spec.clone()));
        let answers = futures_util::future::join_all(posts).await;
        let first = &answers[0].json()["id"];
        let replayed = answers
            .iter()
            .filter(|a| a.headers.contains_key("idempotency-replayed"));
        assert_eq!(replayed.count(), 63);
        assert!(answers.iter().all(|a| a.json()["id"] == *first));
        assert_eq!(app.woken.load(Ordering::SeqCst), 1);
    }
}

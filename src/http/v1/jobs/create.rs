//! `POST /v1/jobs`

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};

use super::view::{JobView, view};
use crate::domain::{Columns, DatasetId, ErrorCode, FieldError, JobSpec};
use crate::http::AppState;
use crate::http::digest::hex;
use crate::http::extract::JsonBody;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, NoQuery};
use crate::store::{Dataset, Idempotency, StoreError};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const MAX_KEY_CHARS: usize = 255;

/// Create a job
///
/// Stores the job and queues it. Everything wrong with the request comes back at once, each with its
/// JSON pointer.
///
/// With an `Idempotency-Key` the request can be repeated safely: the same key and body answer the same
/// job again, with the header `Idempotency-Replayed: true`.
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
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`validation_failed`, `dataset_not_found`, `column_not_found` or `idempotency_key_reused`"),
    ),
)]
pub async fn create_job(
    State(state): State<AppState>,
    _: ApiQuery<NoQuery>,
    headers: HeaderMap,
    JsonBody(body): JsonBody,
) -> Result<(StatusCode, HeaderMap, Json<JobView>), Problem> {
    let key = idempotency_key(&headers)?;
    let spec = JobSpec::parse(&body).map_err(Problem::invalid)?;
    let missing = check_datasets(&state, &spec).await?;
    let idempotency = key.map(|key| Idempotency {
        key,
        request_sha256: fingerprint(&spec),
    });
    let (job, replayed) = match state.store.create_job(spec, idempotency).await {
        Err(StoreError::DatasetNotFound(_)) if !missing.is_empty() => {
            return Err(datasets_missing(missing));
        }
        other => other?,
    };
    if !replayed {
        (state.worker)();
    }
    let mut headers = HeaderMap::new();
    let location = format!("/v1/jobs/{}", job.id);
    let location = HeaderValue::try_from(location).map_err(Problem::internal)?;
    headers.insert(header::LOCATION, location);
    if replayed {
        headers.insert(IDEMPOTENCY_REPLAYED, HeaderValue::from_static("true"));
    }
    let view = view(&state, job).await?;
    Ok((StatusCode::CREATED, headers, Json(view)))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    let key = value.to_str().unwrap_or_default();
    if (1..=MAX_KEY_CHARS).contains(&key.len()) && key.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(Some(key.to_owned()));
    }
    let message =
        format!("`Idempotency-Key` must be 1 to {MAX_KEY_CHARS} visible ASCII characters");
    Err(Problem::invalid_field(
        "/headers/idempotency-key",
        "out_of_range",
        message,
    ))
}

/// SHA-256 of what was asked for. Of the parsed spec, so that the order of keys, white space and written-out
/// defaults do not make it another request.
fn fingerprint(spec: &JobSpec) -> String {
    let json = serde_json::to_vec(spec).unwrap_or_default();
    hex(Sha256::new_with_prefix(json))
}

/// Checks the columns of the datasets there are, and answers the pointers of those there are not. Missing
/// ones are no error yet: a repeated request must be answered even if its dataset was deleted since.
async fn check_datasets(state: &AppState, spec: &JobSpec) -> Result<Vec<FieldError>, Problem> {
    let (mut missing, mut errors) = (Vec::new(), Vec::new());
    let named = [
        ("/dataset/train", Some(spec.dataset.train)),
        ("/dataset/eval", spec.dataset.eval),
    ];
    for (pointer, id) in named {
        let Some(id) = id else { continue };
        match state.store.dataset(id).await? {
            Some(dataset) => errors.extend(missing_columns(&dataset, &spec.dataset.columns)),
            None => missing.push(dataset_missing(pointer, id)),
        }
    }
    if errors.is_empty() {
        return Ok(missing);
    }
    let detail = match errors.as_slice() {
        [only] => only.message.clone(),
        many => format!("{} columns do not exist; see `errors`", many.len()),
    };
    Err(Problem::new(ErrorCode::ColumnNotFound, detail).errors(errors))
}

fn missing_columns(dataset: &Dataset, columns: &Columns) -> Vec<FieldError> {
    let there = &dataset.layout.columns;
    let asked = [
        ("text", Some(&columns.text)),
        ("text_pair", columns.text_pair.as_ref()),
        ("label", Some(&columns.label)),
    ];
    let absent = asked
        .into_iter()
        .filter_map(|(role, name)| Some((role, name.filter(|n| !there.contains(n))?)));
    absent
        .map(|(role, name)| {
            let message = format!(
                "dataset `{}` has no column `{name}`; it has {}",
                dataset.id,
                quoted(there)
            );
            let code = ErrorCode::ColumnNotFound.as_str();
            FieldError::new(format!("/dataset/columns/{role}"), code, message)
        })
        .collect()
}

/// At most 50 names: a table may have a thousand.
fn quoted(names: &[String]) -> String {
    let shown: Vec<String> = names.iter().take(50).map(|n| format!("`{n}`")).collect();
    let rest = names.len() - shown.len();
    match rest {
        0 => shown.join(", "),
        _ => format!("{} and {rest} more", shown.join(", ")),
    }
}

fn dataset_missing(pointer: &str, id: DatasetId) -> FieldError {
    let message = format!("there is no dataset `{id}`");
    FieldError::new(pointer, ErrorCode::DatasetNotFound.as_str(), message)
}

/// 422 rather than the code's 404: the path was right, the body was not.
fn datasets_missing(missing: Vec<FieldError>) -> Problem {
    let detail = missing.first().map(|e| e.message.clone());
    Problem::new(ErrorCode::DatasetNotFound, detail.unwrap_or_default())
        .status(StatusCode::UNPROCESSABLE_ENTITY)
        .errors(missing)
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
}

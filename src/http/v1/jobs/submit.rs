//! From a checked spec to a queued job: what creating and cloning have in common.

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use sha2::{Digest, Sha256};

use super::view::{JobView, view};
use crate::domain::{Columns, DatasetId, ErrorCode, FieldError, JobSpec};
use crate::http::AppState;
use crate::http::digest::hex;
use crate::http::problem::Problem;
use crate::store::{Dataset, Idempotency, StoreError};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const IDEMPOTENCY_REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const MAX_KEY_CHARS: usize = 255;

/// 201, `Location`, and the job.
pub type Submitted = (StatusCode, HeaderMap, Json<JobView>);

/// Queues a job, once per `Idempotency-Key`.
pub async fn submit(
    state: &AppState,
    headers: &HeaderMap,
    spec: JobSpec,
) -> Result<Submitted, Problem> {
    let key = idempotency_key(headers)?;
    // Held until the answer is made.
    let _turn = match &key {
        Some(key) => Some(turn(state, key).await?),
        None => None,
    };
    let missing = check_datasets(state, &spec).await?;
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
    let view = view(state, job).await?;
    Ok((StatusCode::CREATED, headers, Json(view)))
}

async fn turn(state: &AppState, key: &str) -> Result<super::in_flight::Turn, Problem> {
    let patience = Duration::from_millis(state.limits.idempotency_wait_ms);
    state.in_flight.turn(key, patience).await.ok_or_else(|| {
        let detail = "the first request with this `Idempotency-Key` is still being handled";
        Problem::new(ErrorCode::IdempotencyKeyInUse, detail).hint("try again in a few seconds")
    })
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

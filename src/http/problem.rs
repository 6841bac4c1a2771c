//! Every error a client sees: RFC 9457 `application/problem+json` with a stable `code`.
//!
//! Two messages per failure: `detail` is for the caller, the cause of a 5xx goes to the log and nowhere
//! else. Handlers return `Result<_, Problem>`; the middleware adds `instance` and `request_id`.

use std::fmt::Display;
use std::io;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::artifacts::ArtifactError;
use crate::domain::{ErrorCode, FieldError, JobError};
use crate::store::StoreError;

/// The media type of every error body.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// What went wrong (RFC 9457). Programs read `code`, people read `detail`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Problem, example = json!({
    "type": "urn:chandler:problem:validation_failed",
    "title": "The request is not valid",
    "status": 422,
    "detail": "2 fields are not valid; see `errors`",
    "code": "validation_failed",
    "instance": "/v1/jobs",
    "request_id": "01990000-0000-7000-8000-000000000001",
    "errors": [
        {"pointer": "/model", "code": "missing_field", "message": "`model` is required"},
        {"pointer": "/max_seq_length", "code": "out_of_range", "message": "`max_seq_length` must be between 8 and 8192"},
    ],
}))]
pub struct ProblemBody {
    /// URI of the kind of problem: `urn:chandler:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem in a few words; the same for every occurrence.
    pub title: String,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    pub status: u16,
    /// What was wrong this time and what would be right.
    pub detail: String,
    /// Stable word for programs.
    pub code: ErrorCode,
    /// Path of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The request's id, as in the `x-request-id` header and in the server's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
    /// Everything wrong with the request. A pointer into the body is a JSON pointer from its root; query
    /// parameters are under `/query/`, headers under `/headers/`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Line of the uploaded file or of the JSON body, where one is to blame; the first is 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// What the caller can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// A refused or failed request. Boxed, because it is the error of almost every function here.
#[derive(Clone, Debug)]
pub struct Problem(pub Box<ProblemBody>);

impl Problem {
    /// A problem with the status and title that belong to `code`.
    pub fn new(code: ErrorCode, detail: impl Into<String>) -> Self {
        let (status, title) = status_and_title(code);
        Self(Box::new(ProblemBody {
            kind: format!("urn:chandler:problem:{code}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            code,
            instance: None,
            request_id: None,
            errors: Vec::new(),
            line: None,
            hint: None,
        }))
    }

    /// 422 with every field that is wrong.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        let detail = match errors.as_slice() {
            [only] => only.message.clone(),
            many => format!("{} fields are not valid; see `errors`", many.len()),
        };
        let mut problem = Self::new(ErrorCode::ValidationFailed, detail);
        problem.0.errors = errors;
        problem
    }

    /// 422 with one wrong field.
    pub fn invalid_field(pointer: &str, code: &str, message: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError::new(pointer, code, message)])
    }

    /// 500. The cause goes to the log; the caller learns that it is not their fault.
    pub fn internal(cause: impl Display) -> Self {
        tracing::error!(%cause, "request failed");
        Self::new(
            ErrorCode::InternalError,
            "the server failed; its log says why under this request's id",
        )
    }

    /// A failed file operation: 507 when the disk is full, 500 otherwise.
    pub fn io(doing: &str, cause: &io::Error) -> Self {
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                tracing::error!(%cause, doing, "disk is full");
                Self::new(ErrorCode::DiskFull, "the server's disk is full")
            }
            _ => Self::internal(format_args!("{doing}: {cause}")),
        }
    }

    /// 404 for a job id.
    pub fn job_not_found(id: impl Display) -> Self {
        Self::new(ErrorCode::JobNotFound, format!("there is no job `{id}`"))
    }

    /// 404 for a dataset id.
    pub fn dataset_not_found(id: impl Display) -> Self {
        Self::new(
            ErrorCode::DatasetNotFound,
            format!("there is no dataset `{id}`"),
        )
    }

    /// Another status than the code's usual one.
    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        self.0.status = status.as_u16();
        self
    }

    /// Names the fields to blame.
    #[must_use]
    pub fn errors(mut self, errors: Vec<FieldError>) -> Self {
        self.0.errors = errors;
        self
    }

    /// Names the line to blame.
    #[must_use]
    pub fn on_line(mut self, line: u64) -> Self {
        self.0.line = Some(line);
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(&*self.0)).into_response();
        let media_type = HeaderValue::from_static(PROBLEM_JSON);
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, media_type);
        // The middleware finds it here to fill in what only it knows.
        response.extensions_mut().insert(self);
        response
    }
}

impl From<StoreError> for Problem {
    /// For the cases a handler has not told apart itself.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::NotFound => Self::new(ErrorCode::NotFound, "there is no such thing"),
            StoreError::DatasetNotFound(id) => Self::dataset_not_found(id),
            StoreError::StateConflict(status) => {
                Self::new(ErrorCode::JobStateConflict, format!("the job is {status}"))
            }
            StoreError::DatasetInUse(job) => Self::new(
                ErrorCode::DatasetInUse,
                format!("job `{job}` still needs this dataset"),
            )
            .hint("wait for the job to end, or cancel it"),
            StoreError::IdempotencyKeyReused => Self::new(
                ErrorCode::IdempotencyKeyReused,
                "this `Idempotency-Key` came before with another body",
            )
            .hint("send a new key with a new request, and the same key only to repeat one"),
            StoreError::Fenced => Self::new(
                ErrorCode::AttemptFenced,
                "the token is wrong or the attempt is over",
            ),
            StoreError::DiskFull => {
                tracing::error!("database: disk is full");
                Self::new(ErrorCode::DiskFull, "the server's disk is full")
            }
            StoreError::Database(cause) => Self::internal(format_args!("database: {cause}")),
        }
    }
}

impl From<ArtifactError> for Problem {
    fn from(error: ArtifactError) -> Self {
        match error {
            ArtifactError::DiskFull { .. } => {
                tracing::error!(%error, "disk is full");
                Self::new(ErrorCode::DiskFull, "the server's disk is full")
            }
            _ => Self::internal(error),
        }
    }
}

impl From<JobError> for Problem {
    fn from(error: JobError) -> Self {
        if status_and_title(error.code).0.is_server_error() {
            return Self::internal(error);
        }
        let mut problem = Self::new(error.code, error.message.clone());
        if let Some(pointer) = error.pointer {
            let field = FieldError::new(pointer, error.code.as_str(), error.message);
            problem.0.errors.push(field);
        }
        problem.0.line = error.line;
        problem.0.hint = error.hint;
        problem
    }
}

/// The contract: which status and title a code has. A new code does not compile until it has a row.
pub fn status_and_title(code: ErrorCode) -> (StatusCode, &'static str) {
    use ErrorCode as E;
    use StatusCode as S;
    match code {
        E::ValidationFailed => (S::UNPROCESSABLE_ENTITY, "The request is not valid"),
        E::InvalidJson => (S::BAD_REQUEST, "The body is not JSON"),
        E::UnsupportedMediaType => (S::UNSUPPORTED_MEDIA_TYPE, "Unsupported content type"),
        E::PayloadTooLarge => (S::PAYLOAD_TOO_LARGE, "The body is too large"),
        E::RequestTimeout => (S::REQUEST_TIMEOUT, "The body came too slowly"),
        E::NotFound => (S::NOT_FOUND, "No such path"),
        E::MethodNotAllowed => (S::METHOD_NOT_ALLOWED, "Method not allowed"),
        E::JobNotFound => (S::NOT_FOUND, "No such job"),
        E::DatasetNotFound => (S::NOT_FOUND, "No such dataset"),
        E::CheckpointNotFound => (S::NOT_FOUND, "No such checkpoint or file"),
        E::JobStateConflict => (S::CONFLICT, "The job's status does not allow this"),
        E::DatasetInUse => (S::CONFLICT, "The dataset is in use"),
        E::IdempotencyKeyReused => (S::UNPROCESSABLE_ENTITY, "Idempotency key reused"),
        E::IdempotencyKeyInUse => (S::CONFLICT, "Idempotency key in use"),
        E::RangeNotSatisfiable => (S::RANGE_NOT_SATISFIABLE, "Range outside the file"),
        E::AttemptFenced => (S::CONFLICT, "The attempt is fenced"),
        E::InternalError => (S::INTERNAL_SERVER_ERROR, "The server failed"),
        E::Unavailable => (S::SERVICE_UNAVAILABLE, "The server is not available"),
        E::DiskFull => (S::INSUFFICIENT_STORAGE, "The disk is full"),
        E::DatasetEmpty => (S::UNPROCESSABLE_ENTITY, "The dataset is empty"),
        E::DatasetNotUtf8 => (S::UNPROCESSABLE_ENTITY, "The dataset is not UTF-8"),
        E::DatasetRaggedRow => (S::UNPROCESSABLE_ENTITY, "A row has too few or many fields"),
        E::DatasetMalformed => (S::UNPROCESSABLE_ENTITY, "The dataset cannot be read"),
        E::DatasetLineTooLong => (S::UNPROCESSABLE_ENTITY, "A line is too long"),
        E::ColumnNotFound => (S::UNPROCESSABLE_ENTITY, "No such column"),
        E::ValueInvalid => (S::UNPROCESSABLE_ENTITY, "A value is not valid"),
        E::LabelUnknown => (S::UNPROCESSABLE_ENTITY, "Unknown label"),
        E::LabelsTooFew => (S::UNPROCESSABLE_ENTITY, "Too few labels"),
        E::LabelsTooMany => (S::UNPROCESSABLE_ENTITY, "Too many labels"),
        E::TextHasNoTokens => (S::UNPROCESSABLE_ENTITY, "A text has no tokens"),
        E::ModelNotFound => (S::UNPROCESSABLE_ENTITY, "No such model"),
        E::ModelTypeUnsupported => (S::UNPROCESSABLE_ENTITY, "Unsupported model type"),
        E::ModelPickleRefused => (S::UNPROCESSABLE_ENTITY, "Pickle weights are refused"),
        E::ModelInvalid => (S::UNPROCESSABLE_ENTITY, "The model is not valid"),
        E::GradientMissing => (S::INTERNAL_SERVER_ERROR, "A gradient is missing"),
        E::NonFiniteLoss => (S::INTERNAL_SERVER_ERROR, "The loss is not finite"),
        E::TrainerDied => (S::INTERNAL_SERVER_ERROR, "The trainer died"),
        E::Poisoned => (S::INTERNAL_SERVER_ERROR, "The job kills its trainers"),
        E::OutOfMemory => (S::INTERNAL_SERVER_ERROR, "Out of memory"),
        E::DeviceFailed => (S::INTERNAL_SERVER_ERROR, "The GPU failed"),
        E::TrainerHung => (S::INTERNAL_SERVER_ERROR, "The trainer hung"),
        E::MaxRuntimeExceeded => (S::INTERNAL_SERVER_ERROR, "The job ran too long"),
        E::TrainerStartFailed => (S::INTERNAL_SERVER_ERROR, "The trainer did not start"),
        E::CheckpointFailed => (S::INTERNAL_SERVER_ERROR, "A checkpoint failed"),
        E::PortInUse => (S::INTERNAL_SERVER_ERROR, "The port is in use"),
        E::DataDirNotWritable => (S::INTERNAL_SERVER_ERROR, "Data directory not writable"),
        E::DataDirLocked => (S::INTERNAL_SERVER_ERROR, "Data directory in use"),
        E::FolderNotEmpty => (S::INTERNAL_SERVER_ERROR, "The folder is not empty"),
        E::BackupInvalid => (S::INTERNAL_SERVER_ERROR, "The backup is damaged"),
        E::ConfigInvalid => (S::INTERNAL_SERVER_ERROR, "The configuration is wrong"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_code_has_an_error_status_and_a_title_of_its_own() {
        let mut titles = HashSet::new();
        for &code in ErrorCode::ALL {
            let (status, title) = status_and_title(code);
            assert!(
                status.is_client_error() || status.is_server_error(),
                "{code}"
            );
            assert!(titles.insert(title), "{code} shares the title `{title}`");
        }
    }

    #[test]
    fn a_server_error_says_nothing_internal() {
        let problem = Problem::from(StoreError::Database("secret path".to_owned()));
        let text = serde_json::to_string(&*problem.0).unwrap();
        assert_eq!(problem.0.status, 500);
        assert!(!text.contains("secret"));
        let full = Problem::io("write", &io::Error::from(io::ErrorKind::StorageFull));
        assert_eq!(full.0.status, 507);
    }

    #[test]
    fn a_job_error_keeps_line_hint_and_pointer() {
        let error = JobError::new(ErrorCode::DatasetRaggedRow, "3 fields instead of 2")
            .at("/dataset/train")
            .on_line(7)
            .hint("quote the comma");
        let problem = Problem::from(error);
        assert_eq!(problem.0.status, 422);
        assert_eq!(problem.0.line, Some(7));
        assert_eq!(problem.0.hint.as_deref(), Some("quote the comma"));
        assert_eq!(problem.0.errors[0].pointer, "/dataset/train");
        assert_eq!(problem.0.errors[0].code, "dataset_ragged_row");
    }

    #[test]
    fn the_response_is_problem_json_with_the_status() {
        let response = Problem::job_not_found("x").into_response();
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert_eq!(response.headers()[header::CONTENT_TYPE], PROBLEM_JSON);
    }
}

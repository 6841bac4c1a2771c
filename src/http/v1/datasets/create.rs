//! `POST /v1/datasets`

use axum::Json;
use axum::extract::multipart::{Field, MultipartError};
use axum::extract::{FromRequest, Multipart, Request, State};
use axum::http::{HeaderName, StatusCode, header};
use futures_util::TryStreamExt;
use utoipa::{IntoParams, ToSchema};

use super::DatasetView;
use super::upload::{self, Reading, Received};
use crate::domain::{DatasetFormat, ErrorCode};
use crate::http::AppState;
use crate::http::extract::media_type;
use crate::http::pace::broken_off;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, FromQuery, QueryReader};

const MAX_NAME_CHARS: usize = 200;
const MAX_COLUMNS: usize = 1000;
const KNOWN_TYPES: &str =
    "`text/csv`, `text/tab-separated-values`, `application/x-ndjson`, `multipart/form-data`";

/// What the file is called and how to read it.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct CreateDataset {
    /// A name for people. Required for a raw body; a multipart file's name by default.
    #[param(example = "tickets.csv", max_length = 200)]
    name: Option<String>,
    /// The file's format, if the content type or the file's extension does not say it.
    format: Option<DatasetFormat>,
    /// Whether the first line names the columns (CSV and TSV).
    #[param(default = true, required = false)]
    header: bool,
    /// Names of the columns, separated by commas, for CSV and TSV with `header=false`; without them they are `column_1`, `column_2`, …
    #[param(value_type = Option<String>, example = "text,label")]
    columns: Option<Vec<String>>,
}

/// The multipart form of an upload.
#[derive(Debug, ToSchema)]
#[expect(dead_code, reason = "describes the body for OpenAPI")]
pub struct DatasetForm {
    /// The file.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

impl FromQuery for CreateDataset {
    fn from_query(query: &mut QueryReader) -> Self {
        let name: Option<String> = query.text("name");
        if name.as_deref().is_some_and(|n| !fits(n)) {
            let message = format!("`name` must have at most {MAX_NAME_CHARS} characters");
            query.error("name", "out_of_range", message);
        }
        let format = query.optional("format");
        let header = query.optional("header").unwrap_or(true);
        let columns = query.list("columns");
        let mut distinct = columns.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.len() != columns.len() || columns.len() > MAX_COLUMNS {
            let message = format!("`columns` must be at most {MAX_COLUMNS} distinct names");
            query.error("columns", "out_of_range", message);
        }
        Self {
            name,
            format,
            header,
            columns: Some(columns).filter(|c| !c.is_empty()),
        }
    }
}

fn fits(name: &str) -> bool {
    name.chars().count() <= MAX_NAME_CHARS
}

/// Upload a dataset
///
/// Send the file as the raw body with its content type, or as the field `file` of a multipart form. It is
/// streamed to disk, hashed, read once, and refused with the line where it is wrong.
///
/// ```sh
/// curl --data-binary @tickets.csv -H 'content-type: text/csv' "$URL/v1/datasets?name=tickets"
/// curl -F file=@sst2.tsv "$URL/v1/datasets?header=false&columns=text,label"
/// ```
#[utoipa::path(
    post,
    path = "/v1/datasets",
    tag = "datasets",
    params(CreateDataset),
    request_body(
        content(
            (String = "text/csv", example = "text,label\nMy card was charged twice,billing\n"),
            (String = "text/tab-separated-values"),
            (String = "application/x-ndjson", example = "{\"text\": \"My card was charged twice\", \"label\": \"billing\"}\n"),
            (DatasetForm = "multipart/form-data"),
        ),
    ),
    responses(
        (status = 201, description = "Stored", body = DatasetView,
            headers(("location" = String, description = "Path of the dataset"))),
        (status = 413, description = "`payload_too_large`"),
        (status = 415, description = "`unsupported_media_type`: neither the content type nor `format` names a known format"),
        (status = 422, description = "The file is refused: `dataset_empty`, `dataset_not_utf8`, `dataset_ragged_row`, `dataset_malformed`, `dataset_line_too_long`, with `line`; or a parameter is: `validation_failed`"),
    ),
)]
pub async fn create_dataset(
    State(state): State<AppState>,
    ApiQuery(query): ApiQuery<CreateDataset>,
    request: Request,
) -> Result<(StatusCode, [(HeaderName, String); 1], Json<DatasetView>), Problem> {
    let media_type = media_type(request.headers()).unwrap_or_default();
    let (received, reading) = if media_type == "multipart/form-data" {
        receive_form(&state, query, request).await?
    } else {
        receive_raw(&state, query, &media_type, request).await?
    };
    let dataset = upload::publish(&state, received, reading).await?;
    let location = format!("/v1/datasets/{}", dataset.id);
    Ok((
        StatusCode::CREATED,
        [(header::LOCATION, location)],
        Json(dataset.into()),
    ))
}

async fn receive_raw(
    state: &AppState,
    query: CreateDataset,
    media_type: &str,
    request: Request,
) -> Result<(Received, Reading), Problem> {
    let format = query.format.or_else(|| format_of_type(media_type));
    let format = format.ok_or_else(|| unknown_format(media_type))?;
    let Some(name) = query.name.clone() else {
        let message = "`name` is required with a raw body";
        return Err(Problem::invalid_field(
            "/query/name",
            "missing_field",
            message,
        ));
    };
    let reading = reading(query, name, format)?;
    let length = request.headers().get(header::CONTENT_LENGTH);
    let announced = length.and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > state.limits.dataset_bytes) {
        return Err(upload::too_large(state.limits.dataset_bytes));
    }
    let chunks = request.into_body().into_data_stream().map_err(|error| {
        tracing::debug!(%error, "upload ended early");
        broken_off(&error)
    });
    Ok((upload::receive(state, chunks).await?, reading))
}

async fn receive_form(
    state: &AppState,
    query: CreateDataset,
    request: Request,
) -> Result<(Received, Reading), Problem> {
    let limit = state.limits.dataset_bytes;
    let failed = |error: &MultipartError| form_problem(error, limit);
    let mut form = Multipart::from_request(request, state).await.map_err(|e| {
        Problem::new(ErrorCode::ValidationFailed, e.body_text()).status(StatusCode::BAD_REQUEST)
    })?;
    let Some(field) = form.next_field().await.map_err(|e| failed(&e))? else {
        let message = "the form has no field `file`";
        return Err(Problem::invalid_field("/file", "missing_field", message));
    };
    let file = only_file(field)?;
    let name = query
        .name
        .clone()
        .or_else(|| file.file_name().map(base_name));
    let Some(name) = name.filter(|n| !n.is_empty() && fits(n)) else {
        let message = "give `name`: the file has none, or too long a one";
        return Err(Problem::invalid_field(
            "/query/name",
            "missing_field",
            message,
        ));
    };
    let format = query.format.or_else(|| format_of_field(&file));
    let format = format.ok_or_else(|| unknown_format(file.content_type().unwrap_or_default()))?;
    let reading = reading(query, name, format)?;
    let received = upload::receive(state, file.map_err(|e: MultipartError| failed(&e))).await?;
    match form.next_field().await.map_err(|e| failed(&e))? {
        Some(extra) => {
            only_file(extra)?;
            let message = "the form has two fields `file`; upload one file at a time";
            Err(Problem::invalid_field("/file", "repeated", message))
        }
        None => Ok((received, reading)),
    }
}

fn only_file(field: Field<'_>) -> Result<Field<'_>, Problem> {
    match field.name() {
        Some("file") => Ok(field),
        other => {
            let name = other.unwrap_or_default();
            let message =
                format!("unknown field `{name}`; known is file, the rest goes into the query");
            Err(Problem::invalid_field(
                &format!("/{name}"),
                "unknown_field",
                message,
            ))
        }
    }
}

fn form_problem(error: &MultipartError, limit: u64) -> Problem {
    if error.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return upload::too_large(limit);
    }
    let problem = broken_off(error);
    if problem.0.code == ErrorCode::RequestTimeout {
        return problem;
    }
    Problem::new(ErrorCode::ValidationFailed, error.body_text()).status(StatusCode::BAD_REQUEST)
}

fn reading(query: CreateDataset, name: String, format: DatasetFormat) -> Result<Reading, Problem> {
    if query.columns.is_some() && (query.header || format == DatasetFormat::Jsonl) {
        let message = "`columns` is for CSV and TSV files without a header: add `header=false`, or leave it out";
        return Err(Problem::invalid_field(
            "/query/columns",
            "invalid_combination",
            message,
        ));
    }
    Ok(Reading {
        name,
        format,
        header: query.header,
        columns: query.columns,
    })
}

fn format_of_type(media_type: &str) -> Option<DatasetFormat> {
    match media_type {
        "text/csv" => Some(DatasetFormat::Csv),
        "text/tab-separated-values" => Some(DatasetFormat::Tsv),
        "application/x-ndjson" | "application/ndjson" | "application/jsonl" => {
            Some(DatasetFormat::Jsonl)
        }
        _ => None,
    }
}

/// A part's content type says more than its name, but most clients send `application/octet-stream`.
fn format_of_field(field: &Field<'_>) -> Option<DatasetFormat> {
    let media_type = field.content_type().unwrap_or_default();
    let essence = media_type.split(';').next().unwrap_or_default();
    let by_type = format_of_type(&essence.trim().to_ascii_lowercase());
    by_type.or_else(|| {
        let (_, extension) = field.file_name()?.rsplit_once('.')?;
        match extension.to_ascii_lowercase().as_str() {
            "csv" => Some(DatasetFormat::Csv),
            "tsv" => Some(DatasetFormat::Tsv),
            "jsonl" | "ndjson" => Some(DatasetFormat::Jsonl),
            _ => None,
        }
    })
}

/// Some clients send the whole path.
fn base_name(file_name: &str) -> String {
    let name = file_name.rsplit(['/', '\\']).next();
    name.unwrap_or_default().to_owned()
}

fn unknown_format(media_type: &str) -> Problem {
    let detail = format!("`{media_type}` says no dataset format; known are {KNOWN_TYPES}");
    Problem::new(ErrorCode::UnsupportedMediaType, detail)
        .hint("or say it with `?format=csv`, `tsv` or `jsonl`")
}

#[cfg(test)]
#[path = "create_tests.rs"]
mod tests;

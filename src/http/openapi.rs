//! The OpenAPI document: generated from the handlers, committed as `openapi/openapi.json`, served at
//! `/openapi.json`. What the annotations cannot say is added here once for all operations.

use axum::Router;
use axum::http::header;
use axum::routing::get;
use serde_json::{Value, json};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::{PROBLEM_JSON, ProblemBody};
use super::{AppState, Limits, health, v1};
use crate::domain::TrainingArguments;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "chandler",
        description = "Fine-tunes BERT-family encoders: upload a dataset, POST a job, watch it live, take a \
Hugging Face model folder.\n\nEvery error is `application/problem+json` (RFC 9457) with a stable `code`. Every list \
answers `{\"data\": […], \"has_more\", \"next_cursor\"}`: send `next_cursor` as `after` for the next page. Timestamps \
are RFC 3339 in UTC, ids are UUIDv7, which sort by creation time. Unknown fields and unknown query parameters are \
refused by name.",
        license(name = "MIT", identifier = "MIT"),
    ),
    tags(
        (name = "datasets", description = "Files to train and evaluate on."),
        (name = "jobs", description = "Fine-tuning jobs and their life."),
        (name = "observe", description = "What a job does and did: events, live or as pages, and metrics."),
        (name = "checkpoints", description = "What a job made. Every checkpoint is a Hugging Face model folder."),
        (name = "health", description = "Probes."),
    ),
    components(schemas(ProblemBody)),
)]
struct Document;

/// Every public route together with its description.
pub fn routes(limits: &Limits) -> OpenApiRouter<AppState> {
    OpenApiRouter::with_openapi(Document::openapi())
        .merge(v1::routes(limits))
        .routes(routes!(health::healthz))
        .routes(routes!(health::readyz))
}

/// `GET /openapi.json`.
pub fn route(document: String) -> Router<AppState> {
    let document = axum::body::Bytes::from(document);
    let handler = move || {
        let document = document.clone();
        async move { ([(header::CONTENT_TYPE, "application/json")], document) }
    };
    Router::new().route("/openapi.json", get(handler))
}

/// The document as it is committed and served: indented, in the order of the code, with a final newline.
pub fn openapi_json() -> String {
    render(&routes(&Limits::default()).into_openapi())
}

/// Completes the generated document and prints it.
pub fn render(document: &utoipa::openapi::OpenApi) -> String {
    let mut value = serde_json::to_value(document).unwrap_or_default();
    name_rest_of_path(&mut value);
    describe_errors(&mut value);
    describe_job_spec(&mut value);
    simplify(&mut value);
    let mut text = serde_json::to_string_pretty(&value).unwrap_or_default();
    text.push('\n');
    text
}

/// axum writes a parameter that takes the rest of the path as `{*path}`; OpenAPI has no such thing.
fn name_rest_of_path(document: &mut Value) {
    if let Some(paths) = document["paths"].as_object_mut() {
        let renamed = std::mem::take(paths).into_iter();
        *paths = renamed
            .map(|(path, item)| (path.replace("{*", "{"), item))
            .collect();
    }
}

/// Gives every error response its body, and every operation the errors that any can have.
fn describe_errors(document: &mut Value) {
    let content = json!({PROBLEM_JSON: {"schema": {"$ref": "#/components/schemas/Problem"}}});
    for operation in operations(document) {
        let Some(responses) = operation["responses"].as_object_mut() else {
            continue;
        };
        for (status, response) in responses.iter_mut() {
            if status.as_str() >= "400" {
                response["content"] = content.clone();
            }
        }
        let any = json!({
            "description": "Any other error: 408 `request_timeout`, 413 `payload_too_large`, 422 `validation_failed`, 500 `internal_error`, 507 `disk_full`.",
            "content": content,
        });
        responses.insert("default".to_owned(), any);
    }
}

/// `JobSpec` always holds every field, but a request may leave out those with a default.
fn describe_job_spec(document: &mut Value) {
    let schemas = &mut document["components"]["schemas"];
    schemas["JobSpec"]["required"] = json!(["model", "task", "dataset"]);
    schemas["JobSpec"]["properties"]["max_seq_length"]["default"] = json!(128);
    let defaults = serde_json::to_value(TrainingArguments::default()).unwrap_or_default();
    for (name, default) in defaults.as_object().into_iter().flatten() {
        if !default.is_null() {
            schemas["TrainingArguments"]["properties"][name]["default"] = default.clone();
        }
    }
}

/// What would make generated clients clumsy: items of lists spelled out where they have a name, and headers
/// that could be `null`.
fn simplify(document: &mut Value) {
    let schemas = document["components"]["schemas"].as_object_mut();
    for (name, schema) in schemas.into_iter().flatten() {
        if let Some(item) = name.strip_prefix("Page_") {
            let reference = format!("#/components/schemas/{item}");
            schema["properties"]["data"]["items"] = json!({"$ref": reference});
        }
    }
    for operation in operations(document) {
        for parameter in operation["parameters"].as_array_mut().into_iter().flatten() {
            let kind = &mut parameter["schema"]["type"];
            if let Some(first) = kind.get(0).cloned() {
                *kind = first;
            }
        }
    }
}

/// Every operation of every path.
fn operations(document: &mut Value) -> impl Iterator<Item = &mut Value> {
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    let items = paths.flat_map(|(_, item)| item.as_object_mut().into_iter().flatten());
    items.map(|(_, operation)| operation)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// `UPDATE_OPENAPI=1 cargo test openapi` writes the file anew.
    #[test]
    fn the_committed_document_is_the_generated_one() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("openapi/openapi.json");
        if std::env::var_os("UPDATE_OPENAPI").is_some() {
            std::fs::write(&path, openapi_json()).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == openapi_json(),
            "openapi/openapi.json has drifted from the handlers; UPDATE_OPENAPI=1 writes it anew"
        );
    }

    #[test]
    fn every_operation_is_described_and_every_reference_resolves() {
        let text = openapi_json();
        let document: Value = serde_json::from_str(&text).unwrap();
        let mut ids = std::collections::HashSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let place = format!("{method} {path}");
                assert!(!place.contains('*'), "{place}");
                assert!(operation["summary"].is_string(), "{place}");
                assert!(ids.insert(operation["operationId"].clone()), "{place}");
                assert!(operation["tags"].is_array(), "{place}");
                assert!(operation["responses"]["default"].is_object(), "{place}");
            }
        }
        assert!(!text.contains("/internal/"));
        for part in text.split("\"#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(
                document["components"]["schemas"][name].is_object(),
                "{name}"
            );
        }
    }
}

//! Extractors whose refusals are problems: ids in the path, JSON bodies, bearer tokens.

use std::str::FromStr;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, RawPathParams, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::Value;
use utoipa::IntoParams;

use super::pace::broken_off;
use super::problem::Problem;
use crate::domain::{DatasetId, ErrorCode, JobId};

/// The job named by the path. What is no UUID names no job: 404.
#[derive(Clone, Copy, Debug, IntoParams)]
#[into_params(names("id"), parameter_in = Path)]
pub struct JobPath(
    /// The job's id.
    #[param(value_type = JobId)]
    pub JobId,
);

/// The dataset named by the path. What is no UUID names no dataset: 404.
#[derive(Clone, Copy, Debug, IntoParams)]
#[into_params(names("id"), parameter_in = Path)]
pub struct DatasetPath(
    /// The dataset's id.
    #[param(value_type = DatasetId)]
    pub DatasetId,
);

impl<S: Send + Sync> FromRequestParts<S> for JobPath {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        id(parts, state, Problem::job_not_found).await.map(Self)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for DatasetPath {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        id(parts, state, Problem::dataset_not_found).await.map(Self)
    }
}

async fn id<S: Send + Sync, T: FromStr>(
    parts: &mut Parts,
    state: &S,
    not_found: impl Fn(String) -> Problem,
) -> Result<T, Problem> {
    let text = path_param(parts, state, "id").await?;
    text.parse().map_err(|_| not_found(text))
}

/// One part of the path, percent-decoded.
pub async fn path_param<S: Send + Sync>(
    parts: &mut Parts,
    state: &S,
    name: &str,
) -> Result<String, Problem> {
    let params = RawPathParams::from_request_parts(parts, state)
        .await
        .map_err(|_| Problem::new(ErrorCode::NotFound, "the path is not valid UTF-8"))?;
    let value = params.iter().find(|(key, _)| *key == name);
    value
        .map(|(_, value)| value.to_owned())
        .ok_or_else(|| Problem::internal(format_args!("route has no parameter `{name}`")))
}

/// A JSON body: 415 for another content type, 413 above the limit, 400 with line and column for what is
/// no JSON. Field errors are the endpoint's business.
#[derive(Debug)]
pub struct JsonBody(pub Value);

impl<S: Send + Sync> FromRequest<S> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let media_type = media_type(request.headers()).unwrap_or_default();
        if media_type != "application/json" && !media_type.ends_with("+json") {
            let detail = format!("expected `application/json`, found `{media_type}`");
            return Err(Problem::new(ErrorCode::UnsupportedMediaType, detail));
        }
        let bytes = body(request, state).await?;
        serde_json::from_slice(&bytes)
            .map(Self)
            .map_err(|e| invalid_json(&e))
    }
}

/// The whole body, as long as the route's `DefaultBodyLimit` allows.
pub async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    Bytes::from_request(request, state).await.map_err(|e| {
        if e.status() == StatusCode::PAYLOAD_TOO_LARGE {
            Problem::new(
                ErrorCode::PayloadTooLarge,
                "the body is larger than this endpoint takes",
            )
        } else {
            broken_off(&e)
        }
    })
}

/// 400 that says where the JSON breaks.
pub fn invalid_json(error: &serde_json::Error) -> Problem {
    Problem::new(ErrorCode::InvalidJson, error.to_string()).on_line(error.line() as u64)
}

/// The content type without its parameters, in lower case.
pub fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let essence = value.split(';').next().unwrap_or_default();
    Some(essence.trim().to_ascii_lowercase())
}

/// The token of `Authorization: Bearer …`.
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;

    use super::*;

    async fn read(content_type: &str, text: &'static str) -> Result<Value, Problem> {
        let request = Request::post("/")
            .header("content-type", content_type)
            .body(Body::from(text))
            .unwrap();
        JsonBody::from_request(request, &()).await.map(|b| b.0)
    }

    #[tokio::test]
    async fn json_bodies_are_checked_before_they_are_read() {
        assert!(read("application/json; charset=utf-8", "{}").await.is_ok());
        let problem = read("text/plain", "{}").await.unwrap_err();
        assert_eq!(problem.0.code, ErrorCode::UnsupportedMediaType);
        let problem = read("application/json", "{\n  \"a\": }").await.unwrap_err();
        assert_eq!(problem.0.status, 400);
        assert_eq!(problem.0.line, Some(2));
        assert!(
            problem.0.detail.contains("column 8"),
            "{}",
            problem.0.detail
        );
    }

    #[tokio::test]
    async fn deep_json_is_refused_not_a_crash() {
        let deep: &'static str = "[".repeat(100_000).leak();
        let problem = read("application/json", deep).await.unwrap_err();
        assert_eq!(problem.0.code, ErrorCode::InvalidJson);
    }

    #[test]
    fn bearer_tokens() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer(&headers), None);
        headers.insert("authorization", "bearer abc".parse().unwrap());
        assert_eq!(bearer(&headers), Some("abc"));
        headers.insert("authorization", "Basic abc".parse().unwrap());
        assert_eq!(bearer(&headers), None);
    }
}

//! What happens around every request: an id, a span, a log line, safe headers, a limit on slow bodies, and a
//! problem instead of a torn connection when a handler panics.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use tracing::Instrument;

use super::AppState;
use super::problem::Problem;

/// Carries the request's id in both directions.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longest id taken from a client.
const MAX_REQUEST_ID: usize = 128;

/// The outermost layer of the router.
pub async fn around(State(state): State<AppState>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers()).unwrap_or_else(|| state.ids.next_uuid().to_string());
    let path = request.uri().path().to_owned();
    let quiet = is_quiet(&path);
    let method = request.method().clone();
    let pace = state.limits.body_pace;
    let request = request.map(|body| pace.keep(body));
    let span = tracing::info_span!("request", request_id = %id, %method, %path);
    let handled = AssertUnwindSafe(next.run(request))
        .catch_unwind()
        .instrument(span.clone())
        .await;
    let _entered = span.enter();
    let response = handled.unwrap_or_else(|_| {
        // The panic hook has written the message and the place already.
        Problem::internal("handler panicked").into_response()
    });
    let (status, latency_ms) = (response.status().as_u16(), started.elapsed().as_millis());
    if quiet {
        tracing::debug!(status, latency_ms, "answered");
    } else {
        tracing::info!(status, latency_ms, "answered");
    }
    finish(response, &id, &path)
}

/// Probes and trainers call every few seconds; they would drown the rest of the log.
fn is_quiet(path: &str) -> bool {
    matches!(path, "/healthz" | "/readyz") || path.starts_with("/internal/")
}

/// A client's own id, if it is short and plain enough to be put into logs and headers.
fn request_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    ((1..=MAX_REQUEST_ID).contains(&id.len()) && id.bytes().all(plain)).then(|| id.to_owned())
}

fn finish(mut response: Response, id: &str, path: &str) -> Response {
    if let Some(mut problem) = response.extensions_mut().remove::<Problem>() {
        problem.0.instance = Some(path.to_owned());
        problem.0.request_id = Some(id.to_owned());
        let (mut parts, _) = response.into_parts();
        parts.headers.remove(header::CONTENT_LENGTH);
        let body = serde_json::to_vec(&*problem.0).unwrap_or_default();
        response = Response::from_parts(parts, Body::from(body));
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_request_ids_are_taken_over() {
        let taken = |id: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_static(id));
            request_id(&headers)
        };
        assert_eq!(taken("build-42_a.b").as_deref(), Some("build-42_a.b"));
        assert_eq!(taken(""), None);
        assert_eq!(taken("a b"), None);
        assert_eq!(taken("x".repeat(129).leak()), None);
    }
}

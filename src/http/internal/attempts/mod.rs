//! `/internal/attempts/{id}`: one trainer and its server. Every refusal is the fence, so that a trainer that
//! is not wanted any more can tell it from a failure worth retrying.

mod messages;
mod spec;

use axum::Router;
use axum::extract::{DefaultBodyLimit, FromRequestParts};
use axum::http::request::Parts;
use axum::routing::{get, post};

use crate::domain::{AttemptId, ErrorCode};
use crate::http::extract::{bearer, path_param};
use crate::http::problem::Problem;
use crate::http::{AppState, Limits};
use crate::store::StoreError;

/// The routes.
pub fn routes(limits: &Limits) -> Router<AppState> {
    let batch_limit = DefaultBodyLimit::max(limits.messages_body_bytes);
    let messages = post(messages::post_messages).layer(batch_limit);
    Router::new()
        .route("/internal/attempts/{id}/spec", get(spec::get_spec))
        .route("/internal/attempts/{id}/messages", messages)
}

/// Who calls: the attempt of the path, with the token it claims to be entitled by.
struct Caller {
    attempt: AttemptId,
    token: String,
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = path_param(parts, state, "id").await?;
        let attempt = id.parse().map_err(|_| fenced("there is no such attempt"))?;
        let token = bearer(&parts.headers).ok_or_else(|| fenced("the token is missing"))?;
        Ok(Self {
            attempt,
            token: token.to_owned(),
        })
    }
}

fn fenced(detail: &str) -> Problem {
    Problem::new(ErrorCode::AttemptFenced, detail)
}

/// An attempt that the store does not know is over: its job was deleted.
fn refusal(error: StoreError) -> Problem {
    match error {
        StoreError::NotFound => fenced("there is no such attempt"),
        other => other.into(),
    }
}

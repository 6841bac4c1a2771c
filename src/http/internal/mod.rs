//! What only trainers call. Not part of the public document; the words are in `domain::protocol`.

mod attempts;

use axum::Router;

use super::{AppState, Limits};

/// The routes.
pub fn routes(limits: &Limits) -> Router<AppState> {
    attempts::routes(limits)
}

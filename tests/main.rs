//! The one integration binary: the real program, its real HTTP API, real trainer processes, a tiny BERT.

mod api;
mod bad_input;
// A release build has no faults to test with.
#[cfg(debug_assertions)]
mod checkpoints;
mod support;
mod tidy;
mod training;

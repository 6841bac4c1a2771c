//! The one integration binary: the real program, its real HTTP API, real trainer processes, a tiny BERT.

mod api;
mod backup;
mod bad_input;
// A release build has no faults to test with.
#[cfg(debug_assertions)]
mod checkpoints;
mod lanes;
mod parity;
mod slots;
mod support;
mod tidy;
#[cfg(debug_assertions)]
mod token_cache;
mod training;

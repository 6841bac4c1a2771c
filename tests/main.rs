//! The one integration binary: the real program, its real HTTP API, real trainer processes, a tiny BERT.

mod api;
mod bad_input;
mod support;
mod tidy;
mod training;

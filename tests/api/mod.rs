//! The public API, through a real server.

mod datasets;
mod events;
mod jobs;
mod serving;

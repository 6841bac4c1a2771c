//! Checkpoints, resuming and what goes wrong while training: each claim is shown by breaking something on
//! purpose, beside a control that must fail.
//!
//! The long lanes, each with a count (`CHANDLER_LANE_COUNT`) and a seed (`CHANDLER_LANE_SEED`), are run by
//! `cargo test --test chandler NAME -- --ignored --nocapture`:
//!
//! - `killed_trainers_end_like_one_left_alone`: 200 kills over all configurations
//! - `lane_damaged_checkpoints`: 1,000 corruptions
//! - `lane_a_full_file_system`: 50 saves on a real file system that fills up (root)
//! - `checkpoints::overhead`: what a checkpoint costs

mod child;
mod corruption;
mod disk_full;
pub mod lab;
mod lane;
mod memory;
mod numbers;
mod overhead;
mod retention;
mod server;

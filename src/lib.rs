//! chandler fine-tunes BERT-family encoders behind an HTTP API: `POST` a job, watch it live, take a
//! checkpoint that Hugging Face `transformers` loads.
//!
//! # The map
//!
//! Two processes share this crate. `chandler serve` is the control plane: it accepts, queues, dispatches
//! and answers, and never names a tensor. It starts `chandler train`, the data plane, once per *attempt*;
//! that process trains and never opens the database. They speak [`domain`]'s attempt protocol over HTTP.
//!
//! The modules, in the order in which they depend on one another:
//!
//! | module | what it is |
//! |---|---|
//! | [`domain`] | pure types: job spec and validation, status, events, error codes, protocol, clock |
//! | [`config`] | the server's settings |
//! | [`telemetry`] | logs |
//! | [`faults`] | what tests break on purpose; empty in a release build |
//! | [`child`] | waiting for a child process, with a time limit |
//! | [`store`] | the only SQL: one writer task, read-only readers |
//! | [`artifacts`] | the only knowledge of the data directory: layout, atomic publish, manifest, retention |
//! | [`hub`] | where base models come from |
//! | [`kernels`] | fused ops, forward and backward; the only `unsafe` |
//! | [`layers`] | what encoders are composed of; ordered named parameters |
//! | [`models`] | encoders by `model_type` |
//! | [`metrics`] | accuracy, F1, … |
//! | [`heads`] | one task each: head, loss |
//! | [`data`] | readers, labels, tokenisation into a cache on disk, split, batches read ahead, data order |
//! | [`optim`] | AdamW, parameter groups, clipping, schedules |
//! | [`train`] | the trainer: loop, step, evaluation, checkpoint, export |
//! | [`worker`] | dispatcher, slots and the GPUs behind them, executor, rescuer; `entry` is `chandler train` |
//! | [`http`] | the API |
//! | [`cli`] | the command line |
//!
//! `tests/tidy.rs` holds the table of who may name whom, and fails when the code strays from it.
//!
//! # A job's way
//!
//! 1. `POST /v1/jobs` → [`http`] parses it into a [`domain::JobSpec`], reporting every error at once.
//! 2. [`store`] writes the job and its `queued` event in one transaction; then `201`, and the worker wakes.
//! 3. The [`worker`]'s dispatcher finds a slot for the next queued job, the processor or a GPU with room, and claims
//!    it: one guarded statement that makes it `running` and gives the attempt a token and a lease. The executor starts
//!    `chandler train`.
//! 4. The trainer fetches its spec, asks [`hub`] for the base model, [`train`] does the rest:
//!    [`data`] → [`models`] and [`heads`] → [`optim`], resuming from the newest sound checkpoint.
//! 5. What happens becomes an [`domain::Event`], is spooled to disk, sent, stored, and only then seen.
//! 6. SSE clients read the rows after `Last-Event-ID`, wait to be woken, and read again.
//! 7. [`artifacts`] publishes checkpoints atomically; `succeeded` names the one that is the model.
//!
//! # Invariants
//!
//! - A request never waits for training. A trainer never opens the database.
//! - Every state change is one guarded statement; a row a client can see was committed first; an accepted
//!   job survives power loss (WAL, `synchronous=FULL`, one writer with group commit).
//! - Every trainable parameter has a finite gradient at step 1, or the job fails with `gradient_missing`.
//! - A NaN is seen before the update and never hidden.
//! - A folder without its manifest is garbage; a checkpoint is used only after its hashes match. No pickle
//!   is read or written. Weights and token caches are read, not memory-mapped, and a cache only after its
//!   checksums match.
//! - `unsafe` only in [`kernels`], each block with its SAFETY comment.
//! - The same spec, data, seed, device and build give the same weights, bit for bit, resumed or not.

#![deny(unsafe_code)]

pub mod artifacts;
pub mod child;
pub mod cli;
pub mod config;
pub mod data;
pub mod domain;
pub mod faults;
pub mod heads;
pub mod http;
pub mod hub;
#[allow(unsafe_code, reason = "the one module that may")]
pub mod kernels;
pub mod layers;
pub mod metrics;
pub mod models;
pub mod optim;
pub mod store;
pub mod telemetry;
pub mod train;
pub mod worker;

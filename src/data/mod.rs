//! From an uploaded file to packed micro-batches: readers, examples, labels, split, tokenisation, collation and
//! the seeded order of training.
//!
//! Everything here is synchronous and names no tensor. A file is untrusted: every reader is bounded, and what
//! is wrong with it comes back as a [`JobError`](crate::domain::JobError) that names the line.

pub mod batch;
pub mod examples;
pub mod labels;
pub mod preflight;
pub mod readers;
pub mod sampler;
pub mod split;
pub mod tokenize;
mod tokenizer_file;

pub use batch::{Batch, TokenizedDataset};
pub use examples::{Example, load_examples};
pub use labels::LabelMap;
pub use preflight::{DatasetReport, SetReport};
pub use readers::{Cell, Column, Inspection, ReaderLimits, Row, Rows, inspect, rows};
pub use sampler::{Epoch, EpochSampler, Mt19937};
pub use split::{Split, stratified_split};
pub use tokenize::{Encoded, TextTokenizer};

//! From an uploaded file to packed micro-batches: readers, examples, labels, tokenisation into a cache on disk,
//! split, collation and the seeded order of training.
//!
//! Everything here is synchronous and names no tensor. A file is untrusted: every reader is bounded, and what
//! is wrong with it comes back as a [`JobError`](crate::domain::JobError) that names the line.
//!
//! No text stays in memory. What does of a row: four bytes that say where its tokens lie ([`token_cache`]), four
//! more if rows were held out ([`split`]), and four for the epoch's order ([`sampler`]); while a training begins,
//! sixteen for its facts and eight to find duplicates ([`preflight`]).

pub mod batch;
pub mod dataset;
pub mod examples;
pub mod labels;
pub mod prefetch;
pub mod preflight;
pub mod readers;
pub mod sampler;
pub mod split;
pub mod token_cache;
pub mod tokenize;
mod tokenizer_file;

pub use batch::Batch;
pub use dataset::TokenizedDataset;
pub use examples::{Example, examples};
pub use labels::{LabelMap, SeenLabels};
pub use prefetch::Prefetch;
pub use preflight::{DatasetReport, SetFacts, SetReport};
pub use readers::{Cell, Column, Inspection, ReaderLimits, Row, Rows, inspect, rows};
pub use sampler::{Epoch, EpochSampler, Mt19937};
pub use split::{Split, stratified_split};
pub use token_cache::{CacheKey, Damaged, RowFacts, TokenFile};
pub use tokenize::{Encoded, IdBounds, TextTokenizer};

#[cfg(test)]
pub(crate) mod testing;

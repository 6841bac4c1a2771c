//! What a token cache is made of.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::header::VERSION;
use crate::data::readers::unreadable;
use crate::data::tokenizer_file;
use crate::domain::{Columns, DatasetLocation, JobError};

/// Names everything that decides what a cache holds: two that differ in any of it have different keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct CacheKey([u8; 32]);

impl CacheKey {
    /// The key of `dataset`'s `columns`, tokenised with `tokenizer_file` and cut at `max_seq_length`.
    ///
    /// The dataset is known by the hash that was taken when it was uploaded; its size and the time of its last
    /// change are there for who edits it in place. This program's version is part of the key because its
    /// tokenizer may change with it.
    ///
    /// # Errors
    /// `internal_error` if the dataset is not there, `model_invalid` if the tokenizer is not.
    pub fn new(
        dataset: &DatasetLocation,
        columns: &Columns,
        tokenizer_file: &Path,
        max_seq_length: u32,
    ) -> Result<Self, JobError> {
        let file = std::fs::metadata(&dataset.path).map_err(|error| unreadable(&error))?;
        let tokenizer = Sha256::digest(tokenizer_file::read_bytes(tokenizer_file)?);
        let made_of = json!({
            "version": [env!("CARGO_PKG_VERSION"), VERSION],
            "dataset": [dataset.sha256, file.size(), file.mtime(), file.mtime_nsec()],
            "layout": dataset.layout,
            "columns": columns,
            "tokenizer": tokenizer.to_vec(),
            "max_seq_length": max_seq_length,
        });
        Ok(Self(Sha256::digest(made_of.to_string()).into()))
    }

    pub(super) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// 64 lower-case hexadecimal digits.
impl fmt::Display for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheKey({self})")
    }
}

#[cfg(test)]
impl CacheKey {
    pub(super) fn of_byte(byte: u8) -> Self {
        Self([byte; 32])
    }
}

//! Why the store refused or failed.

use crate::domain::{DatasetId, JobId, Status};

/// SQLite's result code for a full disk.
const SQLITE_FULL: &str = "13";

/// Why the store refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No such job, dataset or attempt.
    #[error("not found")]
    NotFound,
    /// The spec names a dataset that does not exist.
    #[error("dataset {0} does not exist")]
    DatasetNotFound(DatasetId),
    /// The job's status does not allow this.
    #[error("the job is {0}")]
    StateConflict(Status),
    /// An unfinished job needs this dataset.
    #[error("dataset is used by unfinished job {0}")]
    DatasetInUse(JobId),
    /// The same idempotency key came with another request.
    #[error("idempotency key was used with another request")]
    IdempotencyKeyReused,
    /// Wrong token, or the attempt is over.
    #[error("attempt is fenced")]
    Fenced,
    /// The disk is full.
    #[error("disk is full")]
    DiskFull,
    /// The database failed; the cause is for the log.
    #[error("database failed: {0}")]
    Database(String),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|e| e.code());
        if code.as_deref() == Some(SQLITE_FULL) {
            Self::DiskFull
        } else {
            Self::Database(error.to_string())
        }
    }
}

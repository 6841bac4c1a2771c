//! Stable error codes, and the two shapes an error takes: one wrong field, one failed job.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal;)*) => {
        /// What went wrong, as a word that never changes once released. `http` maps it to a status.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode { $($(#[$doc])* $variant,)* }

        impl ErrorCode {
            /// Every code there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The word in JSON.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }
    };
}

error_codes! {
    // -- requests
    /// The body or query does not fit the schema; `errors` lists every field.
    ValidationFailed = "validation_failed";
    /// The body is not JSON.
    InvalidJson = "invalid_json";
    /// The content type is not one this endpoint reads.
    UnsupportedMediaType = "unsupported_media_type";
    /// The body is larger than the limit.
    PayloadTooLarge = "payload_too_large";
    /// The body came too slowly.
    RequestTimeout = "request_timeout";
    /// No such path.
    NotFound = "not_found";
    /// The path exists, but not with this method.
    MethodNotAllowed = "method_not_allowed";
    /// No job has this id.
    JobNotFound = "job_not_found";
    /// No dataset has this id.
    DatasetNotFound = "dataset_not_found";
    /// The job has no such checkpoint, or the checkpoint no such file.
    CheckpointNotFound = "checkpoint_not_found";
    /// The job is in a state that does not allow this.
    JobStateConflict = "job_state_conflict";
    /// A job that is not finished still needs this dataset.
    DatasetInUse = "dataset_in_use";
    /// The same `Idempotency-Key` came with another body.
    IdempotencyKeyReused = "idempotency_key_reused";
    /// A request with the same `Idempotency-Key` is still being handled.
    IdempotencyKeyInUse = "idempotency_key_in_use";
    /// The requested byte range lies outside the file.
    RangeNotSatisfiable = "range_not_satisfiable";
    /// The attempt's token is wrong, or the attempt is over.
    AttemptFenced = "attempt_fenced";
    /// The server could not do it; the log says why.
    InternalError = "internal_error";
    /// The server is shutting down or not ready.
    Unavailable = "unavailable";
    /// The disk is full.
    DiskFull = "disk_full";
    // -- datasets
    /// The file has no rows.
    DatasetEmpty = "dataset_empty";
    /// Bytes that are not UTF-8; `line` says where.
    DatasetNotUtf8 = "dataset_not_utf8";
    /// A row has another number of fields than the header; `line` says where.
    DatasetRaggedRow = "dataset_ragged_row";
    /// A row cannot be parsed; `line` says where.
    DatasetMalformed = "dataset_malformed";
    /// A line is longer than the limit; `line` says where.
    DatasetLineTooLong = "dataset_line_too_long";
    /// The dataset has no column of this name; the message lists those there are.
    ColumnNotFound = "column_not_found";
    /// A row's text or label is empty or of the wrong type; `line` says where.
    ValueInvalid = "value_invalid";
    /// The evaluation set has a label that the training set does not.
    LabelUnknown = "label_unknown";
    /// The training set has fewer than two labels.
    LabelsTooFew = "labels_too_few";
    /// The training set has more labels than the limit.
    LabelsTooMany = "labels_too_many";
    /// A row has no tokens after tokenisation.
    TextHasNoTokens = "text_has_no_tokens";
    // -- models
    /// The base model could not be found; the message lists everything tried.
    ModelNotFound = "model_not_found";
    /// The base model's `model_type` is not supported; the message lists those that are.
    ModelTypeUnsupported = "model_type_unsupported";
    /// The base model has only pickle weights, which are never read.
    ModelPickleRefused = "model_pickle_refused";
    /// A file of the base model is missing, corrupt or inconsistent.
    ModelInvalid = "model_invalid";
    // -- training
    /// A parameter got no finite gradient at the first step.
    GradientMissing = "gradient_missing";
    /// The loss or the gradient norm was NaN or infinite; nothing was updated with it.
    NonFiniteLoss = "non_finite_loss";
    /// The trainer process died without reporting an end.
    TrainerDied = "trainer_died";
    /// The job's trainer died so often that the job is held to be the reason.
    Poisoned = "poisoned";
    /// The trainer needs more memory than there is, even for the smallest micro-batch.
    OutOfMemory = "out_of_memory";
    /// The GPU cannot be used, or failed in the middle of training.
    DeviceFailed = "device_failed";
    /// A step took so long that the trainer was given up.
    TrainerHung = "trainer_hung";
    /// The job ran longer than its `max_runtime_s`.
    MaxRuntimeExceeded = "max_runtime_exceeded";
    /// The trainer process could not be started.
    TrainerStartFailed = "trainer_start_failed";
    /// A checkpoint could not be written or read.
    CheckpointFailed = "checkpoint_failed";
    // -- start-up
    /// The listening address is taken.
    PortInUse = "port_in_use";
    /// The data directory cannot be written.
    DataDirNotWritable = "data_dir_not_writable";
    /// Another server uses the data directory.
    DataDirLocked = "data_dir_locked";
    /// A folder that was to be written anew holds something.
    FolderNotEmpty = "folder_not_empty";
    /// A backup is damaged or incomplete.
    BackupInvalid = "backup_invalid";
    /// The configuration is wrong.
    ConfigInvalid = "config_invalid";
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing wrong with one place of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FieldError {
    /// JSON pointer (RFC 6901) to the value, such as `/training_args/learning_rate`.
    pub pointer: String,
    /// What kind of wrong: `unknown_field`, `missing_field`, `invalid_type`, `out_of_range`, …
    pub code: String,
    /// What was wrong and what would be right.
    pub message: String,
}

impl FieldError {
    /// An error at `pointer`.
    pub fn new(
        pointer: impl Into<String>,
        code: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            pointer: pointer.into(),
            code: code.into(),
            message: message.into(),
        }
    }
}

/// Why a job failed, for the user: a stable code, what was wrong, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobError {
    /// Stable word.
    pub code: ErrorCode,
    /// What was wrong, in one or two sentences.
    pub message: String,
    /// JSON pointer into the job spec, where one field is to blame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// Line of the dataset file (the first line is 1), where one line is to blame.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// What the user can do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl JobError {
    /// An error with a code and a message.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            pointer: None,
            line: None,
            hint: None,
        }
    }

    /// Names the field of the spec that is to blame.
    #[must_use]
    pub fn at(mut self, pointer: impl Into<String>) -> Self {
        self.pointer = Some(pointer.into());
        self
    }

    /// Names the line of the dataset file that is to blame.
    #[must_use]
    pub fn on_line(mut self, line: u64) -> Self {
        self.line = Some(line);
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for JobError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)?;
        if let Some(line) = self.line {
            write!(f, " (line {line})")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for JobError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_word_in_json_is_the_word_in_the_table() {
        for code in ErrorCode::ALL {
            assert_eq!(
                serde_json::to_value(code).unwrap(),
                serde_json::json!(code.as_str()),
            );
        }
    }
}

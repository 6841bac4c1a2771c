//! Why a source does not have the model, and the one error when none has it.

use crate::domain::{ErrorCode, JobError};

/// A source that cannot deliver.
#[derive(Debug)]
pub(super) struct Miss {
    /// What came of the attempt, for people.
    pub outcome: String,
    /// Set when the model is there but cannot be used: the error's code and what to do.
    pub fault: Option<(ErrorCode, &'static str)>,
    /// Whether looking further would hide a mistake the user should know of.
    pub stop: bool,
}

impl Miss {
    /// The source does not have it.
    pub fn nothing(outcome: impl Into<String>) -> Self {
        Self {
            outcome: outcome.into(),
            fault: None,
            stop: false,
        }
    }

    /// The source has it, but it is damaged or incomplete.
    pub fn invalid(outcome: impl Into<String>) -> Self {
        Self {
            outcome: outcome.into(),
            fault: Some((
                ErrorCode::ModelInvalid,
                "a base model is a folder with config.json, model.safetensors and tokenizer.json",
            )),
            stop: false,
        }
    }

    /// The same, and no further source is asked.
    #[must_use]
    pub fn and_stop(mut self) -> Self {
        self.stop = true;
        self
    }
}

pub(super) mod failure {
    use super::{ErrorCode, JobError};
    use crate::hub::Attempt;

    const HINT: &str = "give a folder with config.json, model.safetensors and tokenizer.json, \
         a job of this server (job:ID), or a hub id (org/name, org/name@revision)";

    /// `model` cannot name anything.
    pub fn unnamed(requested: &str, reason: &str) -> JobError {
        let message = format!("model `{}` names nothing: {reason}", short(requested));
        JobError::new(ErrorCode::ModelNotFound, message)
            .at("/model")
            .hint(HINT)
    }

    /// Everything was tried.
    pub fn nothing_worked(
        requested: &str,
        attempts: &[Attempt],
        fault: Option<(ErrorCode, &'static str)>,
    ) -> JobError {
        let tried: Vec<String> = attempts
            .iter()
            .map(|attempt| format!("{}: {}", attempt.source, attempt.outcome))
            .collect();
        let (verdict, code, hint) = match fault {
            Some((code, hint)) => ("cannot be used", code, hint),
            None => ("could not be found", ErrorCode::ModelNotFound, HINT),
        };
        let message = format!(
            "model `{}` {verdict}; tried in this order: {}",
            short(requested),
            tried.join("; ")
        );
        JobError::new(code, message).at("/model").hint(hint)
    }

    /// What the user wrote, short and printable.
    fn short(requested: &str) -> String {
        requested
            .chars()
            .take(200)
            .filter(|c| !c.is_control())
            .collect()
    }
}

//! One JSON object a line.

use std::io::BufRead;

use serde_json::{Map, Value};

use crate::domain::{ErrorCode, JobError};

use super::lines::Lines;
use super::{ReaderLimits, not_utf8};

/// An object and the line it stands on.
pub(super) type NumberedObject = (u64, Map<String, Value>);

/// Objects of a JSONL file.
pub(super) struct JsonlObjects<R> {
    lines: Lines<R>,
}

impl<R: BufRead> JsonlObjects<R> {
    pub(super) fn new(input: R, limits: ReaderLimits) -> Self {
        Self {
            lines: Lines::new(input, limits.line_bytes),
        }
    }

    /// The next object, or `None` at the end of the file.
    pub(super) fn next_object(&mut self) -> Result<Option<NumberedObject>, JobError> {
        while let Some((number, line)) = self.lines.next_line()? {
            let text = std::str::from_utf8(&line).map_err(|_| not_utf8(number))?;
            if text.trim().is_empty() {
                continue;
            }
            return parse(text)
                .map(|object| Some((number, object)))
                .map_err(|message| {
                    JobError::new(ErrorCode::DatasetMalformed, message).on_line(number)
                });
        }
        Ok(None)
    }
}

fn parse(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("expected a JSON object".to_owned()),
        Err(error) => {
            // The parser saw one line, so its own line number would mislead.
            let full = error.to_string();
            let cause = full.split(" at line ").next().unwrap_or(&full);
            Err(format!(
                "invalid JSON at column {}: {cause}",
                error.column()
            ))
        }
    }
}

//! Lines of bounded length.

use std::io::BufRead;

use crate::domain::JobError;

use super::{fill, too_long};

/// Reads an input line by line and never buffers more than `cap` bytes of one.
pub(super) struct Lines<R> {
    input: R,
    cap: usize,
    line: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R, cap: usize) -> Self {
        Self {
            input,
            cap,
            line: 0,
        }
    }

    /// The next line with its number, without its LF or CRLF; `None` at the end of the input.
    pub(super) fn next_line(&mut self) -> Result<Option<(u64, Vec<u8>)>, JobError> {
        let number = self.line + 1;
        let mut line = Vec::new();
        loop {
            let buffer = fill(&mut self.input)?;
            if buffer.is_empty() {
                if line.is_empty() {
                    return Ok(None);
                }
                break;
            }
            let end = buffer.iter().position(|&byte| byte == b'\n');
            let part = &buffer[..end.unwrap_or(buffer.len())];
            // One byte more than the cap may be the CR of a CRLF.
            if line.len() + part.len() > self.cap + 1 {
                return Err(too_long(number, self.cap));
            }
            line.extend_from_slice(part);
            let used = part.len() + usize::from(end.is_some());
            self.input.consume(used);
            if end.is_some() {
                break;
            }
        }
        self.line = number;
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if line.len() > self.cap {
            return Err(too_long(number, self.cap));
        }
        Ok(Some((number, line)))
    }
}

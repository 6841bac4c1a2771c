//! Tab-separated values: a tab always separates, a quote is an ordinary character.

use std::io::BufRead;

use crate::domain::JobError;

use super::lines::Lines;
use super::row::Fields;
use super::{ReaderLimits, Records};

/// Records of a TSV file.
pub(super) struct TsvRecords<R> {
    lines: Lines<R>,
}

impl<R: BufRead> TsvRecords<R> {
    pub(super) fn new(input: R, limits: ReaderLimits) -> Self {
        Self {
            lines: Lines::new(input, limits.line_bytes),
        }
    }
}

impl<R: BufRead> Records for TsvRecords<R> {
    fn next_record(&mut self) -> Result<Option<Fields>, JobError> {
        while let Some((number, line)) = self.lines.next_line()? {
            if line.is_empty() {
                continue;
            }
            let mut spans = Vec::new();
            let mut start = 0;
            for field in line.split(|&byte| byte == b'\t') {
                spans.push(start..start + field.len());
                start += field.len() + 1;
            }
            return Fields::new(number, line, spans).map(Some);
        }
        Ok(None)
    }
}

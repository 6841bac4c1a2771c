//! Comma-separated values with RFC 4180 quoting.
//!
//! Own parser: crates.io `csv` buffers a record without bound and accepts an unterminated quote in silence,
//! which would swallow the rest of a file into one text.

use std::io::BufRead;
use std::ops::Range;

use crate::domain::{ErrorCode, JobError};

use super::row::Fields;
use super::{ReaderLimits, Records, fill, too_long};

/// Records of a CSV file.
pub(super) struct CsvRecords<R> {
    input: R,
    cap: usize,
    /// Line of the next unread byte.
    line: u64,
}

impl<R: BufRead> CsvRecords<R> {
    pub(super) fn new(input: R, limits: ReaderLimits) -> Self {
        Self {
            input,
            cap: limits.line_bytes,
            line: 1,
        }
    }

    /// One record, which may be a blank line; `None` at the end of the input.
    fn read(&mut self) -> Result<Option<Parser>, JobError> {
        let mut parser = Parser::new(self.line);
        let mut size = 0;
        loop {
            let buffer = fill(&mut self.input)?;
            if buffer.is_empty() {
                return match size {
                    0 => Ok(None),
                    _ => parser.end_of_input().map(Some),
                };
            }
            // A window of what the cap still allows, its CR and its LF.
            let window = buffer.len().min(self.cap + 2 - size);
            let (used, ended) = parser.push(&buffer[..window])?;
            size += used;
            self.input.consume(used);
            if size > self.cap + if ended { 2 } else { 1 } {
                return Err(parser.too_long(self.cap));
            }
            if ended {
                self.line = parser.line + parser.breaks + 1;
                return Ok(Some(parser));
            }
        }
    }
}

impl<R: BufRead> Records for CsvRecords<R> {
    fn next_record(&mut self) -> Result<Option<Fields>, JobError> {
        while let Some(record) = self.read()? {
            if !record.is_blank() {
                return Fields::new(record.line, record.bytes, record.spans).map(Some);
            }
        }
        Ok(None)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    FieldStart,
    Plain,
    Quoted,
    /// After a quote inside quotes: the end of the field, or half of a doubled quote.
    QuoteSeen,
    /// After the CR that follows a closing quote.
    CarriageReturn,
}

/// One record being parsed.
struct Parser {
    line: u64,
    /// Line breaks inside quotes so far.
    breaks: u64,
    bytes: Vec<u8>,
    spans: Vec<Range<usize>>,
    field_start: usize,
    state: State,
    any_quoted: bool,
}

impl Parser {
    fn new(line: u64) -> Self {
        Self {
            line,
            breaks: 0,
            bytes: Vec::new(),
            spans: Vec::new(),
            field_start: 0,
            state: State::FieldStart,
            any_quoted: false,
        }
    }

    /// Takes bytes up to the end of the record: how many, and whether it ended.
    fn push(&mut self, input: &[u8]) -> Result<(usize, bool), JobError> {
        let mut at = 0;
        while at < input.len() {
            let run = self.ordinary_run(&input[at..]);
            self.bytes.extend_from_slice(&input[at..at + run]);
            at += run;
            let Some(&byte) = input.get(at) else { break };
            at += 1;
            if self.step(byte)? {
                return Ok((at, true));
            }
        }
        Ok((at, false))
    }

    /// How many of the next bytes are content whatever they are.
    fn ordinary_run(&self, input: &[u8]) -> usize {
        let special = |byte: &u8| match self.state {
            State::Plain => matches!(byte, b',' | b'\n'),
            State::Quoted => matches!(byte, b'"' | b'\n'),
            _ => true,
        };
        input.iter().position(special).unwrap_or(input.len())
    }

    /// Takes one byte; whether it ended the record.
    fn step(&mut self, byte: u8) -> Result<bool, JobError> {
        self.state = match (self.state, byte) {
            (State::FieldStart, b'"') => {
                self.any_quoted = true;
                State::Quoted
            }
            (State::FieldStart | State::Plain | State::QuoteSeen, b',') => {
                self.end_field();
                State::FieldStart
            }
            (
                State::FieldStart | State::Plain | State::QuoteSeen | State::CarriageReturn,
                b'\n',
            ) => {
                self.end_record();
                return Ok(true);
            }
            (State::FieldStart | State::Plain, _) => {
                self.bytes.push(byte);
                State::Plain
            }
            (State::Quoted, b'"') => State::QuoteSeen,
            (State::Quoted, _) => {
                self.breaks += u64::from(byte == b'\n');
                self.bytes.push(byte);
                State::Quoted
            }
            (State::QuoteSeen, b'"') => {
                self.bytes.push(byte);
                State::Quoted
            }
            (State::QuoteSeen, b'\r') => State::CarriageReturn,
            (State::QuoteSeen | State::CarriageReturn, _) => {
                return Err(self
                    .malformed("there is text between a closing quote and the next comma")
                    .hint("inside a quoted field, write a double quote twice"));
            }
        };
        Ok(false)
    }

    fn end_of_input(mut self) -> Result<Self, JobError> {
        if self.state == State::Quoted {
            return Err(self.malformed("a quote that opens here is never closed"));
        }
        self.end_record();
        Ok(self)
    }

    fn end_record(&mut self) {
        let carriage_return = self.state == State::Plain
            && self.bytes.len() > self.field_start
            && self.bytes.last() == Some(&b'\r');
        if carriage_return {
            self.bytes.pop();
        }
        self.end_field();
    }

    fn end_field(&mut self) {
        self.spans.push(self.field_start..self.bytes.len());
        self.field_start = self.bytes.len();
    }

    fn is_blank(&self) -> bool {
        self.spans.len() == 1 && self.bytes.is_empty() && !self.any_quoted
    }

    fn malformed(&self, message: &str) -> JobError {
        JobError::new(ErrorCode::DatasetMalformed, message).on_line(self.line)
    }

    fn too_long(&self, cap: usize) -> JobError {
        let error = too_long(self.line, cap);
        match self.state {
            State::Quoted => error.hint("a quote that opens in this row may never be closed"),
            _ => error,
        }
    }
}

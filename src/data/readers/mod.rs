//! Streaming readers of CSV, TSV and JSONL files.
//!
//! [`inspect`] passes once over a new upload and checks everything structural; [`rows`] reads the file again the
//! way the inspection found it. Both hold one record in memory, never more than [`ReaderLimits::line_bytes`].
//! A leading UTF-8 byte-order mark and blank lines are skipped, as pandas and HF `datasets` do; lines end in
//! LF or CRLF. Lines are counted from 1; a record that spans lines is named by its first.

mod csv;
mod jsonl;
mod lines;
mod row;
mod tsv;

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::Path;

use crate::domain::{DatasetFormat, DatasetLayout, ErrorCode, JobError};

use self::csv::CsvRecords;
use self::jsonl::JsonlObjects;
use self::row::Fields;
use self::tsv::TsvRecords;

pub use self::row::{Cell, Column, Row};

/// Bounds on a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReaderLimits {
    /// Longest line (for CSV: record) in bytes, without its end.
    pub line_bytes: usize,
    /// Most rows.
    pub rows: u64,
    /// Most columns.
    pub columns: usize,
}

impl Default for ReaderLimits {
    fn default() -> Self {
        Self {
            line_bytes: 1 << 20,
            rows: 10_000_000,
            columns: 1000,
        }
    }
}

/// What [`inspect`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inspection {
    /// How to read the file again.
    pub layout: DatasetLayout,
    /// Rows, without header and blank lines; at least 1.
    pub rows: u64,
}

/// Reads the whole file once and checks its structure.
///
/// `header` says whether the first line of a CSV or TSV names the columns (JSONL ignores it); without a header
/// the columns are called `names`, or `column_1`, `column_2`, ….
///
/// # Errors
/// `dataset_empty`, `dataset_not_utf8`, `dataset_ragged_row`, `dataset_malformed`, `dataset_line_too_long`,
/// each but the first with a line; `payload_too_large` beyond [`ReaderLimits::rows`]; `validation_failed` if
/// `names` does not fit; `internal_error` if the file cannot be read.
pub fn inspect(
    path: &Path,
    format: DatasetFormat,
    header: bool,
    names: Option<Vec<String>>,
    limits: ReaderLimits,
) -> Result<Inspection, JobError> {
    let header = header && format != DatasetFormat::Jsonl;
    if names.is_some() && (header || format == DatasetFormat::Jsonl) {
        return Err(JobError::new(
            ErrorCode::ValidationFailed,
            "column names can only be given for a CSV or TSV file without a header",
        ));
    }
    let input = open(path)?;
    let (columns, rows) = match format {
        DatasetFormat::Csv => {
            inspect_delimited(CsvRecords::new(input, limits), header, names, limits)?
        }
        DatasetFormat::Tsv => {
            inspect_delimited(TsvRecords::new(input, limits), header, names, limits)?
        }
        DatasetFormat::Jsonl => inspect_jsonl(JsonlObjects::new(input, limits), limits)?,
    };
    Ok(Inspection {
        layout: DatasetLayout {
            format,
            header,
            columns,
        },
        rows,
    })
}

/// Reads the rows of an inspected file, in order; ends after the first error.
///
/// # Errors
/// `internal_error` if the file cannot be opened. Items fail as in [`inspect`], should the file have changed.
pub fn rows(path: &Path, layout: &DatasetLayout) -> Result<Rows, JobError> {
    let input = open(path)?;
    let limits = ReaderLimits::default();
    let source = match layout.format {
        DatasetFormat::Csv => Source::Delimited(Box::new(CsvRecords::new(input, limits))),
        DatasetFormat::Tsv => Source::Delimited(Box::new(TsvRecords::new(input, limits))),
        DatasetFormat::Jsonl => Source::Jsonl(JsonlObjects::new(input, limits)),
    };
    Ok(Rows {
        source,
        columns: layout.columns.len(),
        header_pending: layout.header,
        done: false,
    })
}

/// The rows of a file; see [`rows`].
pub struct Rows {
    source: Source,
    columns: usize,
    header_pending: bool,
    done: bool,
}

enum Source {
    Delimited(Box<dyn Records + Send>),
    Jsonl(JsonlObjects<Input>),
}

/// Records of a delimited file, blank lines left out.
trait Records {
    /// The next record, or `None` at the end of the file.
    fn next_record(&mut self) -> Result<Option<Fields>, JobError>;
}

impl Rows {
    fn read(&mut self) -> Result<Option<Row>, JobError> {
        match &mut self.source {
            Source::Delimited(records) => {
                if std::mem::take(&mut self.header_pending) {
                    records.next_record()?;
                }
                let Some(fields) = records.next_record()? else {
                    return Ok(None);
                };
                check_width(&fields, self.columns)?;
                Ok(Some(Row::delimited(fields)))
            }
            Source::Jsonl(objects) => Ok(objects
                .next_object()?
                .map(|(line, object)| Row::object(line, object))),
        }
    }
}

impl Iterator for Rows {
    type Item = Result<Row, JobError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.read().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

fn inspect_delimited(
    mut records: impl Records,
    header: bool,
    names: Option<Vec<String>>,
    limits: ReaderLimits,
) -> Result<(Vec<String>, u64), JobError> {
    let Some(first) = records.next_record()? else {
        return Err(empty("the file is empty"));
    };
    if first.len() > limits.columns {
        return Err(too_many_columns(first.len(), limits).on_line(first.line));
    }
    let columns = if header {
        let columns: Vec<String> = first.iter().map(str::to_owned).collect();
        check_names(&columns).map_err(|error| error.on_line(first.line))?;
        columns
    } else {
        name_columns(first.len(), names)?
    };
    let mut rows = u64::from(!header);
    while let Some(fields) = records.next_record()? {
        check_width(&fields, columns.len())?;
        rows += 1;
        check_rows(rows, limits)?;
    }
    if rows == 0 {
        return Err(empty("the file has a header but no rows"));
    }
    Ok((columns, rows))
}

fn inspect_jsonl(
    mut objects: JsonlObjects<Input>,
    limits: ReaderLimits,
) -> Result<(Vec<String>, u64), JobError> {
    let Some((line, first)) = objects.next_object()? else {
        return Err(empty("the file is empty"));
    };
    if first.len() > limits.columns {
        return Err(too_many_columns(first.len(), limits).on_line(line));
    }
    let columns: Vec<String> = first.into_iter().map(|(key, _)| key).collect();
    if columns.is_empty() {
        let message = "the first row is an object without keys, but its keys name the columns";
        return Err(JobError::new(ErrorCode::DatasetMalformed, message).on_line(line));
    }
    check_names(&columns).map_err(|error| error.on_line(line))?;
    let mut rows = 1;
    while objects.next_object()?.is_some() {
        rows += 1;
        check_rows(rows, limits)?;
    }
    Ok((columns, rows))
}

fn name_columns(count: usize, names: Option<Vec<String>>) -> Result<Vec<String>, JobError> {
    let Some(names) = names else {
        return Ok((1..=count).map(|i| format!("column_{i}")).collect());
    };
    if names.len() != count {
        let message = format!(
            "{} column names were given, but the file has {count} columns",
            names.len()
        );
        return Err(JobError::new(ErrorCode::ValidationFailed, message));
    }
    check_names(&names).map_err(|error| JobError {
        code: ErrorCode::ValidationFailed,
        ..error
    })?;
    Ok(names)
}

fn check_names(names: &[String]) -> Result<(), JobError> {
    let mut seen = HashSet::new();
    for (i, name) in names.iter().enumerate() {
        let wrong = if name.trim().is_empty() {
            format!("column {} has an empty name", i + 1)
        } else if !seen.insert(name) {
            format!("two columns are named {}", quoted(name))
        } else {
            continue;
        };
        return Err(JobError::new(ErrorCode::DatasetMalformed, wrong)
            .hint("if the file has no header, upload it with header=false"));
    }
    Ok(())
}

fn check_width(fields: &Fields, columns: usize) -> Result<(), JobError> {
    if fields.len() == columns {
        return Ok(());
    }
    let message = format!("expected {columns} fields, found {}", fields.len());
    Err(JobError::new(ErrorCode::DatasetRaggedRow, message)
        .on_line(fields.line)
        .hint("in CSV, a field that contains a comma, a quote or a line break must be in double quotes"))
}

fn check_rows(rows: u64, limits: ReaderLimits) -> Result<(), JobError> {
    if rows <= limits.rows {
        return Ok(());
    }
    let message = format!("the file has more than {} rows", limits.rows);
    Err(JobError::new(ErrorCode::PayloadTooLarge, message))
}

fn too_many_columns(found: usize, limits: ReaderLimits) -> JobError {
    let message = format!(
        "the file has {found} columns; at most {} are read",
        limits.columns
    );
    JobError::new(ErrorCode::DatasetMalformed, message)
}

fn empty(message: &str) -> JobError {
    JobError::new(ErrorCode::DatasetEmpty, message)
}

/// A name or value for a message: quoted, and cut where it is long.
pub(super) fn quoted(text: &str) -> String {
    const SHOWN_CHARS: usize = 80;
    match text.char_indices().nth(SHOWN_CHARS) {
        None => format!("`{text}`"),
        Some((end, _)) => format!("`{}…`", &text[..end]),
    }
}

type Input = BufReader<std::io::Chain<Cursor<Vec<u8>>, File>>;

fn open(path: &Path) -> Result<Input, JobError> {
    let file = File::open(path).map_err(|error| unreadable(&error))?;
    skip_bom(file).map_err(|error| unreadable(&error))
}

/// Buffers `input` and drops a leading UTF-8 byte-order mark.
fn skip_bom<R: Read>(
    mut input: R,
) -> std::io::Result<BufReader<std::io::Chain<Cursor<Vec<u8>>, R>>> {
    let mut head = Vec::new();
    (&mut input).take(3).read_to_end(&mut head)?;
    if head == b"\xEF\xBB\xBF" {
        head.clear();
    }
    Ok(BufReader::with_capacity(
        1 << 16,
        Cursor::new(head).chain(input),
    ))
}

/// The unread part of the input's buffer; empty at the end of the file.
fn fill(input: &mut impl BufRead) -> Result<&[u8], JobError> {
    input.fill_buf().map_err(|error| unreadable(&error))
}

pub(super) fn unreadable(error: &std::io::Error) -> JobError {
    JobError::new(
        ErrorCode::InternalError,
        format!("cannot read the dataset file: {error}"),
    )
}

fn not_utf8(line: u64) -> JobError {
    JobError::new(ErrorCode::DatasetNotUtf8, "the line is not valid UTF-8")
        .on_line(line)
        .hint("convert the file to UTF-8, for example with iconv")
}

fn too_long(line: u64, cap: usize) -> JobError {
    let message = format!("the line is longer than {cap} bytes");
    JobError::new(ErrorCode::DatasetLineTooLong, message).on_line(line)
}

#[cfg(test)]
mod tests;

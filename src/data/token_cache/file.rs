//! A token cache that was checked, and reading from it.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt as _;

use serde::{Deserialize, Serialize};

use super::header::{Form, HEADER_BYTES};
use super::index::Index;
use super::key::CacheKey;
use super::record::{HEAD_BYTES, Head, Record, RowFacts};
use crate::data::batch::Batch;
use crate::data::labels::SeenLabels;
use crate::data::tokenize::IdBounds;
use crate::domain::{ErrorCode, JobError};

/// Length and checksum of the footer.
const TAIL_BYTES: usize = 8;
/// Read at once while checking.
const BUFFER_BYTES: usize = 1 << 18;

/// What stands behind the records.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Footer {
    pub(super) rows: u32,
    pub(super) labels: SeenLabels,
}

impl Footer {
    /// Footer and tail.
    pub(super) fn bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut out = serde_json::to_vec(self)?;
        let (length, checksum) = (out.len() as u32, crc32fast::hash(&out));
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&checksum.to_le_bytes());
        Ok(out)
    }
}

/// Why a file cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Damaged(pub(super) String);

impl From<&str> for Damaged {
    fn from(reason: &str) -> Self {
        Self(reason.to_owned())
    }
}

impl From<std::io::Error> for Damaged {
    fn from(error: std::io::Error) -> Self {
        Self(format!("it cannot be read: {error}"))
    }
}

/// A dataset's tokens.
#[derive(Debug)]
pub struct TokenFile {
    file: File,
    form: Form,
    index: Index,
    labels: SeenLabels,
}

impl TokenFile {
    /// Takes a file that must be the cache of `key`, whole and without a fault, after reading all of it. Answers
    /// the facts of every row besides.
    ///
    /// # Errors
    /// [`Damaged`] with what is wrong with it.
    pub fn open(file: File, key: &CacheKey) -> Result<(Self, Vec<RowFacts>), Damaged> {
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0)?;
        let form = Form::parse(&header, key)?;
        let (footer, end) = read_footer(&file)?;
        // As many as it says, if it is long enough for them.
        let fit = usize::try_from(end).unwrap_or(usize::MAX) / form.record_bytes(0);
        let rows = fit.min(footer.rows as usize);
        let mut index = Index::starting_at(HEADER_BYTES as u64, rows);
        let mut facts = Vec::with_capacity(rows);
        let mut scan = Scan::new(&file, form);
        for row in 0..footer.rows {
            let head = scan.next(row)?;
            if usize::from(head.facts.label) >= footer.labels.len() {
                return Err(format!("row {row} has an unknown label").as_str().into());
            }
            if !index.push(scan.record.len() as u64) {
                return Err("its rows are too long".into());
            }
            facts.push(head.facts);
        }
        if index.end() != end {
            return Err("it has more rows than it says".into());
        }
        let this = Self {
            form,
            index,
            labels: footer.labels,
            file,
        };
        Ok((this, facts))
    }

    /// Rows.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The labels, by their numbers in this file.
    pub fn labels(&self) -> &SeenLabels {
        &self.labels
    }

    /// How large its ids are at most.
    pub fn bounds(&self) -> IdBounds {
        self.form.bounds
    }

    /// Appends rows to a batch, in the order given. `label_ids` are the training's ids of this file's labels,
    /// `keys` name the rows to dropout.
    ///
    /// # Errors
    /// `internal_error` if the file is no longer what it was when it was opened.
    pub fn read(
        &self,
        rows: &[u32],
        label_ids: &[u32],
        keys: &[u32],
        batch: &mut Batch,
    ) -> Result<(), JobError> {
        let mut keys = keys.iter();
        self.for_each(rows, |record| {
            let tokens = record.head.facts.tokens as usize;
            let (ids, types) = (&mut batch.input_ids, &mut batch.token_type_ids);
            self.form.id_width.get(record.input_ids, tokens, ids);
            self.form
                .type_width
                .get(record.token_type_ids, tokens, types);
            let label = label_ids.get(usize::from(record.head.facts.label));
            let key = keys.next();
            batch.end_sequence(*label?, u64::from(*key?));
            Some(())
        })
    }

    /// Lines of the dataset on which rows start.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn lines(&self, rows: &[u32]) -> Result<Vec<u64>, JobError> {
        let mut lines = Vec::with_capacity(rows.len());
        self.for_each(rows, |record| {
            lines.push(record.head.line);
            Some(())
        })?;
        Ok(lines)
    }

    /// Reads and checks records; neighbours are read at once.
    fn for_each(
        &self,
        rows: &[u32],
        mut take: impl FnMut(&Record<'_>) -> Option<()>,
    ) -> Result<(), JobError> {
        let mut buffer = Vec::new();
        for run in rows.chunk_by(|a, b| a.checked_add(1) == Some(*b)) {
            let start = self.read_run(run, &mut buffer)?;
            for &row in run {
                let place = self.index.bytes_of(row as usize, row as usize);
                place
                    .and_then(|place| {
                        let range = (place.start - start) as usize..(place.end - start) as usize;
                        self.form.parse_record(row, &buffer[range])
                    })
                    .and_then(|record| take(&record))
                    .ok_or_else(|| changed(&format!("row {row} is damaged")))?;
            }
        }
        Ok(())
    }

    /// Reads neighbouring rows; answers where they start in the file.
    fn read_run(&self, run: &[u32], buffer: &mut Vec<u8>) -> Result<u64, JobError> {
        let ends = run.first().zip(run.last());
        let place = ends.and_then(|(&a, &b)| self.index.bytes_of(a as usize, b as usize));
        let place = place.ok_or_else(|| changed("there is no such row"))?;
        buffer.resize((place.end - place.start) as usize, 0);
        self.file
            .read_exact_at(buffer, place.start)
            .map_err(|error| changed(&error.to_string()))?;
        Ok(place.start)
    }
}

fn changed(cause: &str) -> JobError {
    JobError::new(
        ErrorCode::InternalError,
        format!("the token cache changed while it was in use: {cause}"),
    )
    .hint("retry the job: a damaged cache is built again")
}

/// The footer, and where it starts.
fn read_footer(file: &File) -> Result<(Footer, u64), Damaged> {
    let size = file.metadata()?.len();
    let tail_at = size
        .checked_sub(TAIL_BYTES as u64)
        .ok_or("it is too short")?;
    let mut tail = [0; TAIL_BYTES];
    file.read_exact_at(&mut tail, tail_at)?;
    let [a, b, c, d, checksum @ ..] = tail;
    let length = u32::from_le_bytes([a, b, c, d]);
    let start = tail_at
        .checked_sub(u64::from(length))
        .ok_or("it is cut short")?;
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, start)?;
    if crc32fast::hash(&bytes) != u32::from_le_bytes(checksum) {
        return Err("it is cut short, or its end is damaged".into());
    }
    let footer = serde_json::from_slice(&bytes).map_err(|_| "its end is damaged")?;
    Ok((footer, start))
}

/// Reads records one after the other from the first one on.
struct Scan<'a> {
    input: BufReader<At<'a>>,
    form: Form,
    /// The last one read.
    record: Vec<u8>,
    ids: Vec<u32>,
}

impl<'a> Scan<'a> {
    fn new(file: &'a File, form: Form) -> Self {
        let at = At {
            file,
            position: HEADER_BYTES as u64,
        };
        Self {
            input: BufReader::with_capacity(BUFFER_BYTES, at),
            form,
            record: Vec::new(),
            ids: Vec::new(),
        }
    }

    fn next(&mut self, row: u32) -> Result<Head, Damaged> {
        let damaged = || Damaged(format!("row {row} is damaged"));
        self.record.resize(HEAD_BYTES, 0);
        self.input.read_exact(&mut self.record)?;
        let tokens = Head::parse(&self.record).ok_or_else(damaged)?.facts.tokens;
        // Before memory is asked for.
        if tokens > self.form.max_tokens {
            return Err(damaged());
        }
        self.record.resize(self.form.record_bytes(tokens), 0);
        self.input.read_exact(&mut self.record[HEAD_BYTES..])?;
        let record = self.form.parse_record(row, &self.record);
        let record = record.ok_or_else(damaged)?;
        let Form {
            id_width,
            type_width,
            bounds,
            ..
        } = self.form;
        for (width, bytes, max) in [
            (id_width, record.input_ids, bounds.token_id),
            (type_width, record.token_type_ids, bounds.type_id),
        ] {
            self.ids.clear();
            width.get(bytes, tokens as usize, &mut self.ids);
            if self.ids.iter().any(|&id| id > max) {
                return Err(damaged());
            }
        }
        Ok(record.head)
    }
}

/// Reads a file from a position of its own.
struct At<'a> {
    file: &'a File,
    position: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read_at(buffer, self.position)?;
        self.position += read as u64;
        Ok(read)
    }
}

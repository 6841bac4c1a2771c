//! Tokenises a dataset into a token cache.
//!
//! This thread reads rows and writes records, in the dataset's order; others tokenise. A chunk of rows is read
//! while the one before is tokenised, so at any time no more than two are in memory.

use std::panic::resume_unwind;

use sha2::{Digest, Sha256};

use super::file::Footer;
use super::header::Form;
use super::key::CacheKey;
use super::record::{Head, RowFacts};
use crate::data::examples::{Example, examples};
use crate::data::labels::SeenLabels;
use crate::data::tokenize::TextTokenizer;
use crate::domain::{Columns, DatasetLocation, ErrorCode, JobError};

/// Rows of a chunk for each thread; handing a chunk out costs far less than tokenising this many.
const CHUNK_ROWS: usize = 1024;
/// Text at which a chunk is full, whatever its rows.
const CHUNK_BYTES: usize = 4 << 20;

/// Reads `dataset`, tokenises its rows on `threads` threads besides this one and gives the bytes of the cache of
/// `key` to `append`, piece by piece. `which` is `train` or `eval`, for messages.
///
/// # Errors
/// The first thing that is wrong with the dataset, in its own order, with the line; what `append` fails with.
pub fn build(
    dataset: &DatasetLocation,
    columns: &Columns,
    which: &str,
    tokenizer: &TextTokenizer,
    key: &CacheKey,
    threads: usize,
    mut append: impl FnMut(&[u8]) -> Result<(), JobError>,
) -> Result<(), JobError> {
    let threads = threads.max(1);
    let encoder = Encoder {
        form: Form::of(tokenizer, columns.text_pair.is_some()),
        tokenizer,
        which,
    };
    let mut source = Source {
        examples: examples(&dataset.path, &dataset.layout, columns, which)?,
        labels: SeenLabels::default(),
        rows: 0,
        most: CHUNK_ROWS * threads,
        which,
    };
    append(&encoder.form.header(key))?;
    let mut chunk = source.next_chunk();
    while !chunk.rows.is_empty() {
        let (records, next) = std::thread::scope(|scope| {
            let share = chunk.rows.len().div_ceil(threads);
            let encoder = &encoder;
            let workers: Vec<_> = chunk
                .rows
                .chunks(share)
                .map(|rows| scope.spawn(move || encoder.records(rows)))
                .collect();
            let next = source.next_chunk();
            let join = |worker: std::thread::ScopedJoinHandle<'_, _>| {
                worker.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            (workers.into_iter().map(join).collect::<Vec<_>>(), next)
        });
        for part in records {
            append(&part?)?;
        }
        // What stopped the reading comes after the rows before it.
        chunk.end?;
        chunk = next;
    }
    chunk.end?;
    let footer = Footer {
        rows: source.rows,
        labels: source.labels,
    };
    let bytes = footer
        .bytes()
        .map_err(|error| internal(&error.to_string()))?;
    append(&bytes)
}

/// A row on its way.
struct NumberedExample {
    row: u32,
    label: u16,
    example: Example,
}

/// Some rows, and what is wrong with the one after them.
struct Chunk {
    rows: Vec<NumberedExample>,
    end: Result<(), JobError>,
}

/// The dataset's rows in order.
struct Source<'a, I> {
    examples: I,
    labels: SeenLabels,
    rows: u32,
    most: usize,
    which: &'a str,
}

impl<I: Iterator<Item = Result<Example, JobError>>> Source<'_, I> {
    /// The next rows; none at the end.
    fn next_chunk(&mut self) -> Chunk {
        let mut rows = Vec::new();
        let mut bytes = 0;
        while rows.len() < self.most && bytes < CHUNK_BYTES {
            match self.next_row().transpose() {
                None => break,
                Some(Ok(row)) => {
                    bytes += row.example.text_bytes();
                    rows.push(row);
                }
                Some(Err(error)) => {
                    return Chunk {
                        rows,
                        end: Err(error),
                    };
                }
            }
        }
        Chunk { rows, end: Ok(()) }
    }

    fn next_row(&mut self) -> Result<Option<NumberedExample>, JobError> {
        let Some(example) = self.examples.next().transpose()? else {
            return Ok(None);
        };
        let label = self
            .labels
            .number(&example.label, example.line, self.which)?;
        let row = self.rows;
        self.rows = row
            .checked_add(1)
            .ok_or_else(|| internal("a dataset of 2^32 rows"))?;
        Ok(Some(NumberedExample {
            row,
            label,
            example,
        }))
    }
}

struct Encoder<'a> {
    form: Form,
    tokenizer: &'a TextTokenizer,
    which: &'a str,
}

impl Encoder<'_> {
    /// The records of `rows`, one after the other.
    fn records(&self, rows: &[NumberedExample]) -> Result<Vec<u8>, JobError> {
        let mut records = Vec::new();
        for row in rows {
            let encoded = self.tokenizer.encode_example(&row.example, self.which)?;
            let head = Head {
                line: row.example.line,
                facts: RowFacts {
                    text_hash: text_hash(&row.example),
                    tokens: u32::try_from(encoded.input_ids.len()).unwrap_or(u32::MAX),
                    label: row.label,
                    cut: encoded.truncated,
                },
            };
            self.form.put_record(&mut records, row.row, &head, &encoded);
        }
        Ok(records)
    }
}

/// 64 bits of a hash of the texts: among ten million rows, two different ones share it by chance once in
/// 400,000 datasets.
fn text_hash(example: &Example) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update((example.text.len() as u64).to_le_bytes());
    hasher.update(&example.text);
    hasher.update(example.text_pair.as_deref().unwrap_or_default());
    let hash: [u8; 32] = hasher.finalize().into();
    let [a, b, c, d, e, f, g, h, ..] = hash;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

fn internal(message: &str) -> JobError {
    JobError::new(ErrorCode::InternalError, message)
}

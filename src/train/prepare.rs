//! From dataset files to token ids: read, split, map labels, tokenise.

use std::path::Path;

use crate::data::{self, Example, LabelMap, TextTokenizer, TokenizedDataset};
use crate::domain::{ErrorCode, JobError, LogLevel};

use super::{Observer, TrainJob};

/// Rows ready to be batched.
#[derive(Debug)]
pub struct PreparedData {
    /// Names of the labels, by id.
    pub labels: LabelMap,
    /// The training rows.
    pub train: TokenizedDataset,
    /// The evaluation rows, if there are any.
    pub eval: Option<TokenizedDataset>,
}

/// Reads and tokenises what the job names.
///
/// # Errors
/// Whatever is wrong with the rows, with the line it is on.
pub fn prepare(job: &TrainJob, observer: &dyn Observer) -> Result<PreparedData, JobError> {
    let columns = &job.spec.dataset.columns;
    let mut train = data::load_examples(&job.train.path, &job.train.layout, columns, "train")?;
    let labels = LabelMap::from_examples(&train)?;
    let eval = match (&job.eval, job.spec.dataset.eval_split) {
        (Some(file), _) => Some(data::load_examples(&file.path, &file.layout, columns, "eval")?),
        (None, Some(share)) => {
            let held_out = data::stratified_split(&labels.ids(&train)?, share, data_seed(job));
            Some(take_rows(&mut train, &held_out))
        }
        (None, None) => None,
    };
    let tokenizer = load_tokenizer(&job.model_dir, job.spec.max_seq_length)?;
    let tokenized = tokenizer.tokenize(&train, &labels)?;
    let eval_tokenized = eval
        .as_deref()
        .map(|rows| tokenizer.tokenize(rows, &labels))
        .transpose()?;
    let report = data::DatasetReport::new(&train, eval.as_deref(), &labels, &tokenized);
    observer.log(LogLevel::Info, report.summary());
    for warning in report.warnings() {
        observer.log(LogLevel::Warning, warning);
    }
    Ok(PreparedData {
        labels,
        train: tokenized,
        eval: eval_tokenized,
    })
}

/// The base model's tokenizer, cutting at `max_seq_length`.
pub fn load_tokenizer(model_dir: &Path, max_seq_length: u32) -> Result<TextTokenizer, JobError> {
    TextTokenizer::load(model_dir, max_seq_length as usize)
}

/// The seed of the data order and of the split.
pub fn data_seed(job: &TrainJob) -> u32 {
    let args = &job.spec.training_args;
    args.data_seed.unwrap_or(args.seed)
}

/// Moves the rows at `indexes` (ascending) out of `rows`.
fn take_rows(rows: &mut Vec<Example>, indexes: &[usize]) -> Vec<Example> {
    let mut taken = Vec::with_capacity(indexes.len());
    let mut kept = Vec::with_capacity(rows.len() - indexes.len());
    let mut next = indexes.iter().peekable();
    for (i, row) in std::mem::take(rows).into_iter().enumerate() {
        if next.peek() == Some(&&i) {
            next.next();
            taken.push(row);
        } else {
            kept.push(row);
        }
    }
    *rows = kept;
    taken
}

/// A longer sequence than the encoder has positions for is refused before any work is done.
pub fn check_length(max_seq_length: u32, max_positions: usize) -> Result<(), JobError> {
    if max_seq_length as usize <= max_positions {
        return Ok(());
    }
    Err(JobError::new(
        ErrorCode::ModelInvalid,
        format!(
            "max_seq_length is {max_seq_length}, but the model has only {max_positions} positions"
        ),
    )
    .at("/max_seq_length")
    .hint(format!("set max_seq_length to at most {max_positions}")))
}

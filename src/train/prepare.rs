//! From dataset files to token ids: read, split, map labels, tokenise.

use crate::data::{
    DatasetReport, Encoded, Example, LabelMap, TextTokenizer, TokenizedDataset, load_examples,
    stratified_split,
};
use crate::domain::{JobError, LogLevel};

use super::base_labels::{self, Head};
use super::{Observer, TrainJob};

/// More of the rows cut than this is worth a warning.
const CUT_SHARE_TO_WARN: f64 = 0.1;

/// Rows ready to be batched.
#[derive(Debug)]
pub struct PreparedData {
    /// Names of the labels, by id.
    pub labels: LabelMap,
    /// What becomes of the base model's classifier.
    pub head: Head,
    /// The training rows.
    pub train: TokenizedDataset,
    /// Line of the training file on which each row starts.
    pub train_lines: Vec<u64>,
    /// The evaluation rows, if there are any.
    pub eval: Option<TokenizedDataset>,
    /// The tokenizer, to be held against the model.
    pub tokenizer: TextTokenizer,
}

/// Reads and tokenises what the job names.
///
/// # Errors
/// Whatever is wrong with the rows, with the line it is on.
pub fn prepare(job: &TrainJob, observer: &dyn Observer) -> Result<PreparedData, JobError> {
    let columns = &job.spec.dataset.columns;
    let rows = load_examples(&job.train.path, &job.train.layout, columns, "train")?;
    let labels = LabelMap::from_training(rows.iter().map(|row| row.label.as_str()))?;
    let (labels, head) = base_labels::adopt(labels, &job.model_dir);
    let (train, eval) = match (&job.eval, job.spec.dataset.eval_split) {
        (Some(file), _) => {
            let eval = load_examples(&file.path, &file.layout, columns, "eval")?;
            (rows, Some(eval))
        }
        (None, Some(share)) => {
            let ids = labels.ids_of(&rows, "train")?;
            let split = stratified_split(&ids, share, data_seed(job))
                .map_err(|error| error.at("/dataset/eval_split"))?;
            let (train, eval) = split.part(rows);
            (train, Some(eval))
        }
        (None, None) => (rows, None),
    };
    let tokenizer = TextTokenizer::load(
        &job.model_dir.join("tokenizer.json"),
        job.spec.max_seq_length,
    )?;
    let train_tokens = tokenizer.encode_examples(&train, "train")?;
    let eval_tokens = match &eval {
        Some(rows) => Some(tokenizer.encode_examples(rows, "eval")?),
        None => None,
    };
    let report = DatasetReport::new(
        (&train, &train_tokens),
        eval.as_deref().zip(eval_tokens.as_deref()),
    );
    tell(&report, observer);
    Ok(PreparedData {
        train: numbered(&labels, &train, &train_tokens, "train")?,
        eval: match (&eval, &eval_tokens) {
            (Some(rows), Some(tokens)) => Some(numbered(&labels, rows, tokens, "eval")?),
            _ => None,
        },
        train_lines: train.iter().map(|row| row.line).collect(),
        labels,
        head,
        tokenizer,
    })
}

/// The seed of the data order and of the split.
pub fn data_seed(job: &TrainJob) -> u64 {
    let args = &job.spec.training_args;
    u64::from(args.data_seed.unwrap_or(args.seed))
}

/// Rows with their labels' ids.
fn numbered(
    labels: &LabelMap,
    examples: &[Example],
    tokens: &[Encoded],
    which: &str,
) -> Result<TokenizedDataset, JobError> {
    let ids = labels.ids_of(examples, which)?;
    Ok(TokenizedDataset::new(tokens.iter().zip(ids)))
}

/// What a look at the rows says, before time is spent on them.
fn tell(report: &DatasetReport, observer: &dyn Observer) {
    observer.log(LogLevel::Info, report.to_string());
    if report.train.truncated_share > CUT_SHARE_TO_WARN {
        observer.log(
            LogLevel::Warning,
            format!(
                "{:.0} % of the training rows are longer than max_seq_length and were cut",
                100.0 * report.train.truncated_share
            ),
        );
    }
    if report.overlapping_rows > 0 {
        observer.log(
            LogLevel::Warning,
            format!(
                "{} evaluation rows are also training rows: the evaluation will look better than it is",
                report.overlapping_rows
            ),
        );
    }
}

//! From dataset files to the rows to train and evaluate on: labels, split, and a report on what was found.

use crate::data::{DatasetReport, IdBounds, LabelMap, TokenizedDataset, stratified_split};
use crate::domain::{JobError, LogLevel};

use super::base_labels::{self, Head};
use super::file_rows::{FileRows, Reader};
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
    /// The evaluation rows, if there are any.
    pub eval: Option<TokenizedDataset>,
    /// How large token ids are at most, to be held against the model.
    pub bounds: IdBounds,
}

/// Reads and tokenises what the job names.
///
/// # Errors
/// Whatever is wrong with the rows, with the line it is on.
pub fn prepare(job: &TrainJob, observer: &dyn Observer) -> Result<PreparedData, JobError> {
    let reader = Reader::new(job, observer);
    let train = reader.rows_of(&job.train, "train")?;
    let labels = LabelMap::from_training(train.tokens.labels().names())?;
    let (labels, head) = base_labels::adopt(labels, &job.model_dir);
    let eval = match &job.eval {
        Some(file) => Some(reader.rows_of(file, "eval")?),
        None => None,
    };
    let sets = match (&eval, job.spec.dataset.eval_split) {
        (None, Some(share)) => Sets::split(&train, &labels, share, data_seed(job))?,
        (eval, _) => Sets {
            train: train.all(&labels, "train")?,
            eval: match eval {
                Some(eval) => Some(eval.all(&labels, "eval")?),
                None => None,
            },
        },
    };
    tell(&sets.report(&train, eval.as_ref()), observer);
    Ok(PreparedData {
        labels,
        head,
        bounds: train.tokens.bounds(),
        train: sets.train,
        eval: sets.eval,
    })
}

/// The seed of the data order and of the split.
pub fn data_seed(job: &TrainJob) -> u64 {
    let args = &job.spec.training_args;
    u64::from(args.data_seed.unwrap_or(args.seed))
}

/// What to train and evaluate on.
struct Sets {
    train: TokenizedDataset,
    eval: Option<TokenizedDataset>,
}

impl Sets {
    /// Holds out a share of one file's rows.
    fn split(file: &FileRows, labels: &LabelMap, share: f64, seed: u64) -> Result<Self, JobError> {
        let all = file.all(labels, "train")?;
        let label_ids: Vec<u32> = file
            .facts
            .iter()
            .map(|row| all.label_id(row.label))
            .collect();
        let split = stratified_split(&label_ids, share, seed)
            .map_err(|error| error.at("/dataset/eval_split"))?;
        Ok(Self {
            train: all.part(split.train),
            eval: Some(all.part(split.eval)),
        })
    }

    fn report(&self, train: &FileRows, eval: Option<&FileRows>) -> DatasetReport {
        let held_out_of = eval.unwrap_or(train);
        let eval = self.eval.as_ref().map(|set| held_out_of.facts_of(set));
        DatasetReport::new(&train.facts_of(&self.train), eval.as_ref())
    }
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

//! From dataset files to rows of token ids: tokenised once into a cache, read from it ever after; labels, split.

use std::cell::OnceCell;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use crate::artifacts::TokenCaches;
use crate::data::{
    CacheKey, DatasetReport, IdBounds, LabelMap, RowFacts, SetFacts, TextTokenizer, TokenFile,
    TokenizedDataset, stratified_split, token_cache,
};
use crate::domain::{DatasetLocation, ErrorCode, JobError, LogLevel};
use crate::kernels::pool;

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
    let reader = Reader {
        job,
        observer,
        tokenizer: OnceCell::new(),
    };
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

/// A file's tokens, and what is known of each row until training begins.
struct FileRows {
    tokens: Arc<TokenFile>,
    facts: Vec<RowFacts>,
}

impl FileRows {
    /// All rows, with the training's label ids.
    fn all(&self, labels: &LabelMap, which: &str) -> Result<TokenizedDataset, JobError> {
        let label_ids = labels.ids_of(self.tokens.labels(), which)?;
        Ok(TokenizedDataset::new(Arc::clone(&self.tokens), label_ids))
    }

    /// The facts of a set that is made of this file's rows.
    fn facts_of<'a>(&'a self, set: &'a TokenizedDataset) -> SetFacts<'a> {
        SetFacts {
            facts: &self.facts,
            rows: set.rows(),
            labels: self.tokens.labels(),
        }
    }
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

/// Gets tokens from the cache, or tokenises.
struct Reader<'a> {
    job: &'a TrainJob,
    observer: &'a dyn Observer,
    /// Read when first needed: with a warm cache never, and the check of the file took place when it was made.
    tokenizer: OnceCell<TextTokenizer>,
}

impl Reader<'_> {
    fn rows_of(&self, dataset: &DatasetLocation, which: &str) -> Result<FileRows, JobError> {
        let spec = &self.job.spec;
        let key = CacheKey::new(
            dataset,
            &spec.dataset.columns,
            &self.tokenizer_file(),
            spec.max_seq_length,
        )?;
        let caches = TokenCaches::beside(&dataset.path);
        if let Some(file) = caches.open(&key.to_string())? {
            match TokenFile::open(file, &key) {
                Ok(found) => {
                    self.say(format!("the {which} dataset is tokenised already"));
                    return Ok(found.into());
                }
                Err(damage) => self.observer.log(
                    LogLevel::Warning,
                    format!("the {which} dataset's token cache is not used: {damage}"),
                ),
            }
        }
        let file = self.build(&caches, &key, dataset, which)?;
        let opened = TokenFile::open(file, &key).map_err(|damage| {
            let message =
                format!("the {which} dataset's token cache was damaged at once: {damage}");
            JobError::new(ErrorCode::InternalError, message)
        });
        opened.map(FileRows::from)
    }

    fn build(
        &self,
        caches: &TokenCaches,
        key: &CacheKey,
        dataset: &DatasetLocation,
        which: &str,
    ) -> Result<File, JobError> {
        let columns = &self.job.spec.dataset.columns;
        let (tokenizer, threads) = (self.tokenizer()?, pool::threads());
        self.say(format!(
            "tokenising the {which} dataset with {threads} threads"
        ));
        caches.publish(&key.to_string(), |new| {
            token_cache::build(dataset, columns, which, tokenizer, key, threads, |bytes| {
                Ok(new.append(bytes)?)
            })
        })
    }

    fn tokenizer(&self) -> Result<&TextTokenizer, JobError> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer);
        }
        let length = self.job.spec.max_seq_length;
        let loaded = TextTokenizer::load(&self.tokenizer_file(), length)?;
        Ok(self.tokenizer.get_or_init(|| loaded))
    }

    fn tokenizer_file(&self) -> PathBuf {
        self.job.model_dir.join("tokenizer.json")
    }

    fn say(&self, message: String) {
        self.observer.log(LogLevel::Info, message);
    }
}

impl From<(TokenFile, Vec<RowFacts>)> for FileRows {
    fn from((tokens, facts): (TokenFile, Vec<RowFacts>)) -> Self {
        Self {
            tokens: Arc::new(tokens),
            facts,
        }
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

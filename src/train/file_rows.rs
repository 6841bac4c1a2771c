//! The rows of one file: tokenised once into a cache, read from it ever after.

use std::cell::OnceCell;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use crate::artifacts::TokenCaches;
use crate::data::{
    CacheKey, LabelMap, RowFacts, SetFacts, TextTokenizer, TokenFile, TokenizedDataset, token_cache,
};
use crate::domain::{DatasetLocation, ErrorCode, JobError, LogLevel};
use crate::kernels::pool;

use super::{Observer, TrainJob};

/// A file's tokens, and what is known of each row until training begins.
pub struct FileRows {
    /// The tokens.
    pub tokens: Arc<TokenFile>,
    /// By row.
    pub facts: Vec<RowFacts>,
}

impl FileRows {
    /// All rows, with the training's label ids.
    ///
    /// # Errors
    /// `label_unknown` with the first line whose label is not one of them.
    pub fn all(&self, labels: &LabelMap, which: &str) -> Result<TokenizedDataset, JobError> {
        let label_ids = labels.ids_of(self.tokens.labels(), which)?;
        Ok(TokenizedDataset::new(Arc::clone(&self.tokens), label_ids))
    }

    /// The facts of a set that is made of this file's rows.
    pub fn facts_of<'a>(&'a self, set: &'a TokenizedDataset) -> SetFacts<'a> {
        SetFacts {
            facts: &self.facts,
            rows: set.rows(),
            labels: self.tokens.labels(),
        }
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

/// Gets tokens from the cache, or tokenises.
pub struct Reader<'a> {
    job: &'a TrainJob,
    observer: &'a dyn Observer,
    /// Read when first needed: with a warm cache never, and the check of the file took place when it was made.
    tokenizer: OnceCell<TextTokenizer>,
}

impl<'a> Reader<'a> {
    /// Nothing is read yet.
    pub fn new(job: &'a TrainJob, observer: &'a dyn Observer) -> Self {
        Self {
            job,
            observer,
            tokenizer: OnceCell::new(),
        }
    }

    /// The rows of `dataset`, of which `which` is `train` or `eval`, for messages.
    ///
    /// # Errors
    /// Whatever is wrong with the rows, with the line; `model_invalid` if the tokenizer cannot be used.
    pub fn rows_of(&self, dataset: &DatasetLocation, which: &str) -> Result<FileRows, JobError> {
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

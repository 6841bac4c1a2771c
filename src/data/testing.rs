//! Small real files for tests: a tokenizer and datasets.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::readers::{ReaderLimits, inspect};
use super::token_cache::{CacheKey, Damaged, RowFacts, TokenFile, build};
use super::{TextTokenizer, TokenizedDataset};
use crate::domain::{Columns, DatasetFormat, DatasetLocation, JobError};

/// A small BERT tokenizer: ids are positions in this list.
const VOCABULARY: [&str; 14] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "un", "##know", "##n", "!", "é", "e", "x",
];

/// Its `tokenizer.json`.
pub fn bert() -> Value {
    let vocabulary: serde_json::Map<String, Value> = VOCABULARY
        .iter()
        .enumerate()
        .map(|(id, token)| ((*token).to_owned(), json!(id)))
        .collect();
    json!({
        "version": "1.0",
        "truncation": {"direction": "Left", "max_length": 3, "strategy": "OnlyFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": [{"id": 3, "content": "[SEP]", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [special("[CLS]", 0), sequence("A", 0), special("[SEP]", 0)],
            "pair": [special("[CLS]", 0), sequence("A", 0), special("[SEP]", 0),
                sequence("B", 1), special("[SEP]", 1)],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocabulary},
    })
}

pub fn special(id: &str, type_id: u32) -> Value {
    json!({"SpecialToken": {"id": id, "type_id": type_id}})
}

pub fn sequence(id: &str, type_id: u32) -> Value {
    json!({"Sequence": {"id": id, "type_id": type_id}})
}

/// Tokens of a sequence in [`Sample`].
pub const MAX_SEQ_LENGTH: u32 = 8;

/// A dataset and a tokenizer in a folder of their own.
pub struct Sample {
    dir: TempDir,
    pub dataset: DatasetLocation,
    pub columns: Columns,
}

impl Sample {
    /// A CSV with the columns `text,label`, or `text,pair,label`.
    pub fn new(csv: &str) -> Self {
        Self::with_tokenizer(csv, &bert())
    }

    pub fn with_tokenizer(csv: &str, tokenizer: &Value) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.csv");
        std::fs::write(&path, csv).unwrap();
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        let limits = ReaderLimits::default();
        let found = inspect(&path, DatasetFormat::Csv, true, None, limits).unwrap();
        let pairs = found.layout.columns.iter().any(|name| name == "pair");
        Self {
            dir,
            dataset: DatasetLocation {
                path,
                layout: found.layout,
                sha256: "of the upload".to_owned(),
            },
            columns: Columns {
                text_pair: pairs.then(|| "pair".to_owned()),
                ..Columns::default()
            },
        }
    }

    pub fn tokenizer_file(&self) -> PathBuf {
        self.dir.path().join("tokenizer.json")
    }

    pub fn tokenizer(&self) -> TextTokenizer {
        TextTokenizer::load(&self.tokenizer_file(), MAX_SEQ_LENGTH).unwrap()
    }

    pub fn key(&self) -> CacheKey {
        let file = self.tokenizer_file();
        CacheKey::new(&self.dataset, &self.columns, &file, MAX_SEQ_LENGTH).unwrap()
    }

    /// The bytes of its token cache.
    pub fn build(&self, threads: usize) -> Result<Vec<u8>, JobError> {
        let mut bytes = Vec::new();
        let (tokenizer, key) = (self.tokenizer(), self.key());
        let append = |piece: &[u8]| {
            bytes.extend_from_slice(piece);
            Ok(())
        };
        let (dataset, columns) = (&self.dataset, &self.columns);
        build(dataset, columns, "train", &tokenizer, &key, threads, append)?;
        Ok(bytes)
    }

    /// What becomes of a file with these bytes.
    pub fn open(&self, bytes: &[u8]) -> Result<(TokenFile, Vec<RowFacts>), Damaged> {
        TokenFile::open(self.file(bytes), &self.key())
    }

    /// A file with these bytes.
    pub fn file(&self, bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile_in(self.dir.path()).unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    /// All rows, tokenised; labels keep the numbers they have in the file.
    pub fn rows(&self) -> TokenizedDataset {
        let (tokens, _) = self.open(&self.build(2).unwrap()).unwrap();
        let labels: Vec<u32> = (0..tokens.labels().len() as u32).collect();
        TokenizedDataset::new(Arc::new(tokens), labels)
    }
}

/// A CSV of `rows` rows of one to five tokens, and two labels.
pub fn short_rows(rows: usize) -> String {
    let mut csv = String::from("text,label\n");
    for row in 0..rows {
        let words: Vec<&str> = (0..row % 5 + 1)
            .map(|i| ["a", "b", "c", "x"][(row + i) % 4])
            .collect();
        csv.push_str(&format!("{},{}\n", words.join(" "), ["no", "yes"][row % 2]));
    }
    csv
}

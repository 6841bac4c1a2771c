//! Reads a base model's `tokenizer.json`, which is untrusted.
//!
//! `tokenizers` panics or explodes on hostile files (a regular expression that backtracks, a `Replace` that turns
//! 20 kB into 700 MB), so only the parts that BERT tokenizers consist of are let through, before anything of
//! the file is built. Decoder, truncation and padding are not used and never built.

use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::{ModelWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer};

use crate::domain::{ErrorCode, JobError};

const MAX_FILE_BYTES: u64 = 64 << 20;
const MAX_ADDED_TOKENS: usize = 10_000;
const MAX_ADDED_TOKEN_BYTES: usize = 1024;
/// WordPiece takes quadratic time in the length of a word.
const MAX_WORD_CHARS: u64 = 1000;
const MAX_PREFIX_BYTES: usize = 16;
const MAX_NORMALIZERS: usize = 8;

const NORMALIZERS: [&str; 5] = ["BertNormalizer", "Lowercase", "NFC", "NFD", "StripAccents"];
const PRE_TOKENIZERS: [&str; 2] = ["BertPreTokenizer", "Whitespace"];
const POST_PROCESSORS: [&str; 2] = ["BertProcessing", "TemplateProcessing"];
const MODELS: [&str; 1] = ["WordPiece"];

/// Reads, checks and builds a tokenizer, without truncation and padding.
///
/// # Errors
/// `model_invalid` if the file is missing, too large, no tokenizer, or has a part that is not let through.
pub(super) fn read(path: &Path) -> Result<Tokenizer, JobError> {
    let mut root: Map<String, Value> =
        serde_json::from_slice(&read_bytes(path)?).map_err(|error| invalid(&error.to_string()))?;
    check(&root).map_err(|cause| invalid(&cause))?;
    for unused in ["decoder", "truncation", "padding"] {
        root.insert(unused.to_owned(), Value::Null);
    }
    let bytes = serde_json::to_vec(&root).map_err(|error| invalid(&error.to_string()))?;
    let tokenizer = guarded(|| Tokenizer::from_bytes(&bytes))?;
    check_built(&tokenizer).map_err(|cause| invalid(&cause))?;
    Ok(tokenizer)
}

/// Runs code of `tokenizers` and turns its errors and panics into `model_invalid`.
pub(super) fn guarded<T>(f: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, JobError> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(invalid(&error.to_string())),
        Err(_) => Err(invalid("the tokenizer panicked")),
    }
}

pub(super) fn invalid(cause: &str) -> JobError {
    JobError::new(
        ErrorCode::ModelInvalid,
        format!("the base model's tokenizer.json cannot be used: {cause}"),
    )
}

/// The file's content, if it is not too large.
///
/// # Errors
/// `model_invalid` if it is, or cannot be read.
pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>, JobError> {
    let unreadable = |error: std::io::Error| invalid(&error.to_string());
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(invalid(&format!(
            "it is larger than {MAX_FILE_BYTES} bytes"
        )));
    }
    Ok(bytes)
}

fn check(root: &Map<String, Value>) -> Result<(), String> {
    check_normalizer(root.get("normalizer"))?;
    check_type("pre-tokenizer", root.get("pre_tokenizer"), &PRE_TOKENIZERS)?;
    check_type(
        "post-processor",
        root.get("post_processor"),
        &POST_PROCESSORS,
    )?;
    check_type("model", root.get("model"), &MODELS)?;
    check_word_piece(root.get("model").unwrap_or(&Value::Null))?;
    check_added_tokens(root.get("added_tokens"))
}

/// A normalizer may be absent (cased models), one of the list, or a short sequence of those.
fn check_normalizer(part: Option<&Value>) -> Result<(), String> {
    let part = part.unwrap_or(&Value::Null);
    if part.is_null() {
        return Ok(());
    }
    if part.get("type").and_then(Value::as_str) != Some("Sequence") {
        return check_type("normalizer", Some(part), &NORMALIZERS);
    }
    let sequence = part.get("normalizers").and_then(Value::as_array);
    let Some(sequence) = sequence.filter(|sequence| sequence.len() <= MAX_NORMALIZERS) else {
        return Err(format!(
            "its normalizer is not a list of at most {MAX_NORMALIZERS}"
        ));
    };
    sequence
        .iter()
        .try_for_each(|part| check_type("normalizer", Some(part), &NORMALIZERS))
}

fn check_type(role: &str, part: Option<&Value>, supported: &[&str]) -> Result<(), String> {
    let found = match part {
        None | Some(Value::Null) => "is missing".to_owned(),
        Some(part) => match part.get("type").and_then(Value::as_str) {
            Some(name) if supported.contains(&name) => return Ok(()),
            Some(name) => format!("`{}` is not supported", name.escape_debug()),
            None => "has no type".to_owned(),
        },
    };
    Err(format!(
        "the {role} {found}; supported: {}",
        supported.join(", ")
    ))
}

fn check_word_piece(model: &Value) -> Result<(), String> {
    let word_chars = model
        .get("max_input_chars_per_word")
        .and_then(Value::as_u64);
    if word_chars.is_none_or(|chars| chars > MAX_WORD_CHARS) {
        return Err(format!(
            "max_input_chars_per_word is not at most {MAX_WORD_CHARS}"
        ));
    }
    let prefix = model
        .get("continuing_subword_prefix")
        .and_then(Value::as_str);
    if prefix.is_none_or(|prefix| prefix.len() > MAX_PREFIX_BYTES) {
        return Err(format!(
            "continuing_subword_prefix is not at most {MAX_PREFIX_BYTES} bytes"
        ));
    }
    let unknown = model.get("unk_token").and_then(Value::as_str);
    let vocabulary = model.get("vocab").and_then(Value::as_object);
    match (unknown, vocabulary) {
        (Some(unknown), Some(vocabulary)) if vocabulary.contains_key(unknown) => Ok(()),
        _ => Err("unk_token is not in the vocabulary".to_owned()),
    }
}

fn check_added_tokens(tokens: Option<&Value>) -> Result<(), String> {
    let Some(tokens) = tokens.and_then(Value::as_array) else {
        return Ok(());
    };
    let fits = |token: &Value| {
        let content = token.get("content").and_then(Value::as_str);
        content.is_some_and(|content| content.len() <= MAX_ADDED_TOKEN_BYTES)
    };
    if tokens.len() > MAX_ADDED_TOKENS || !tokens.iter().all(fits) {
        return Err(format!(
            "added_tokens are not at most {MAX_ADDED_TOKENS}, each of at most {MAX_ADDED_TOKEN_BYTES} bytes"
        ));
    }
    Ok(())
}

/// What was built must be what was checked: `tokenizers` picks some parts by their fields, not by their type.
fn check_built(tokenizer: &Tokenizer) -> Result<(), String> {
    let plain = |normalizer: &NormalizerWrapper| {
        matches!(
            normalizer,
            NormalizerWrapper::BertNormalizer(_)
                | NormalizerWrapper::Lowercase(_)
                | NormalizerWrapper::NFC(_)
                | NormalizerWrapper::NFD(_)
                | NormalizerWrapper::StripAccents(_)
        )
    };
    let normalizer = match tokenizer.get_normalizer() {
        None => true,
        Some(NormalizerWrapper::Sequence(sequence)) => sequence.as_ref().iter().all(plain),
        Some(normalizer) => plain(normalizer),
    };
    let pre_tokenizer = matches!(
        tokenizer.get_pre_tokenizer(),
        Some(PreTokenizerWrapper::BertPreTokenizer(_) | PreTokenizerWrapper::Whitespace(_))
    );
    let post_processor = matches!(
        tokenizer.get_post_processor(),
        Some(PostProcessorWrapper::Bert(_) | PostProcessorWrapper::Template(_))
    );
    let model = matches!(tokenizer.get_model(), ModelWrapper::WordPiece(_));
    if normalizer && pre_tokenizer && post_processor && model {
        Ok(())
    } else {
        Err("a part's fields do not fit its type".to_owned())
    }
}

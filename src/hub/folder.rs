//! Which files make a base model, asked of a folder and of the Hub's list of files alike.

use std::fs;
use std::path::Path;

use serde::de::IgnoredAny;

use super::error::Miss;
use crate::artifacts::hash_file;
use crate::domain::ErrorCode;

/// The weights.
pub(super) const WEIGHTS: &str = "model.safetensors";

/// What a model cannot do without.
pub(super) const REQUIRED: [&str; 3] = ["config.json", "tokenizer.json", WEIGHTS];

/// What is taken along when it is there: the export copies it.
pub(super) const OPTIONAL: [&str; 3] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
];

/// Answers whether the files that are there make a model; the miss begins with `place`.
pub(super) fn check(place: &str, has: impl Fn(&str) -> bool) -> Result<(), Miss> {
    let missing: Vec<&str> = REQUIRED.into_iter().filter(|name| !has(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if missing.contains(&WEIGHTS) {
        if has("model.safetensors.index.json") {
            return Err(Miss::invalid(format!(
                "{place} has its weights in several files, which is not supported"
            )));
        }
        if has("pytorch_model.bin") || has("pytorch_model.bin.index.json") {
            return Err(pickle_only(place));
        }
    }
    Err(Miss::invalid(format!(
        "{place} lacks {}",
        missing.join(", ")
    )))
}

fn pickle_only(place: &str) -> Miss {
    Miss {
        outcome: format!(
            "{place} has only pickle weights (pytorch_model.bin), which can run any code when read and are \
             never opened"
        ),
        fault: Some((
            ErrorCode::ModelPickleRefused,
            "save the model as model.safetensors, or name a revision that has it",
        )),
        stop: false,
    }
}

/// [`check`] for a folder.
pub(super) fn check_dir(dir: &Path) -> Result<(), Miss> {
    let place = dir.display().to_string();
    check(&place, |name| dir.join(name).is_file())
}

/// SHA-256 of the weights in `dir`. In a hub cache a large file is a link to a blob named by its hash; then
/// the content must match.
pub(super) fn hash_weights(dir: &Path) -> Result<String, Miss> {
    let path = dir.join(WEIGHTS);
    let sha256 = hash_file(&path)
        .map_err(|e| Miss::invalid(e.to_string()))?
        .sha256;
    match blob_sha256(&path) {
        Some(promised) if promised != sha256 => Err(Miss::invalid(format!(
            "{} is damaged: its content does not match its hash",
            path.display()
        ))),
        _ => Ok(sha256),
    }
}

/// The hash a hub cache promises for this file; none for the small ones, whose blobs have git's names.
fn blob_sha256(path: &Path) -> Option<String> {
    if !path.is_symlink() {
        return None;
    }
    let blob = fs::canonicalize(path).ok()?;
    let name = blob.file_name()?.to_str()?;
    let is_hash = name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    is_hash.then(|| name.to_ascii_lowercase())
}

/// Checks a file as it arrived: the weights by their hash, JSON by being JSON. `hf-hub` 1.0 saves the body of
/// an error answer as if it were the file, so this is what keeps an error page out.
pub(super) fn check_arrived(path: &Path, name: &str) -> Result<(), Miss> {
    if name == WEIGHTS {
        return match path.parent() {
            Some(dir) => hash_weights(dir).map(drop),
            None => Ok(()),
        };
    }
    if !name.ends_with(".json") {
        return Ok(());
    }
    let damaged =
        |reason: String| Miss::invalid(format!("{} is damaged: {reason}", path.display()));
    let bytes = fs::read(path).map_err(|e| damaged(e.to_string()))?;
    serde_json::from_slice::<IgnoredAny>(&bytes)
        .map(drop)
        .map_err(|e| damaged(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn miss(names: &[&str]) -> Miss {
        check("x", |name| names.contains(&name)).unwrap_err()
    }

    #[test]
    fn a_model_needs_three_files() {
        assert!(check("x", |name| REQUIRED.contains(&name)).is_ok());
        assert_eq!(
            miss(&["config.json", WEIGHTS]).outcome,
            "x lacks tokenizer.json"
        );
        let none = miss(&[]);
        assert_eq!(
            none.outcome,
            "x lacks config.json, tokenizer.json, model.safetensors"
        );
        assert_eq!(none.fault.unwrap().0, ErrorCode::ModelInvalid);
    }

    #[test]
    fn pickle_and_shards_are_refused_by_name() {
        let pickle = miss(&["config.json", "tokenizer.json", "pytorch_model.bin"]);
        assert_eq!(pickle.fault.unwrap().0, ErrorCode::ModelPickleRefused);
        let shards = miss(&["config.json", "model.safetensors.index.json"]);
        assert!(shards.outcome.contains("several files"));
        // Pickle beside safetensors is ignored.
        let names = [&REQUIRED[..], &["pytorch_model.bin"]].concat();
        assert!(check("x", |name| names.contains(&name)).is_ok());
    }
}

//! Reading and checking checkpoints: nothing is used before its hashes match.
//!
//! `manifest.json` holds the format version, the [`CheckpointRecord`], and the SHA-256 of the record's exact
//! bytes. Without that last hash a flipped bit in the epoch or a metric would go unseen, since the record's
//! other hashes speak only for the other files.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::durable::{entries, hash_bytes, hash_file};
use super::{ArtifactError, checkpoint_name, step_of_name};
use crate::domain::CheckpointRecord;

/// Name of the file that makes a folder a checkpoint.
pub const MANIFEST_FILE: &str = "manifest.json";

/// Raised when an older reader could misread what a newer writer wrote.
const FORMAT_VERSION: u32 = 1;

/// A manifest lists a few dozen files; anything longer is not one of ours.
const MAX_MANIFEST_BYTES: u64 = 1024 * 1024;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    format_version: u32,
    record_sha256: String,
    record: Box<RawValue>,
}

/// The bytes of `manifest.json` for this record.
pub(super) fn encode(record: &CheckpointRecord) -> Result<Vec<u8>, serde_json::Error> {
    let record = serde_json::value::to_raw_value(record)?;
    serde_json::to_vec(&Manifest {
        format_version: FORMAT_VERSION,
        record_sha256: hash_bytes(record.get().as_bytes()),
        record,
    })
}

/// The record of the checkpoint in `dir`. The manifest itself is checked, the files it lists are not.
pub fn read(dir: &Path) -> Result<CheckpointRecord, ArtifactError> {
    let path = dir.join(MANIFEST_FILE);
    let invalid = |reason: String| ArtifactError::invalid(&path, reason);
    let mut bytes = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_MANIFEST_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|e| ArtifactError::io("read", &path, e))?;
    if bytes.len() as u64 > MAX_MANIFEST_BYTES {
        return Err(invalid("manifest is too long".to_owned()));
    }
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|e| invalid(format!("manifest cannot be read: {e}")))?;
    if manifest.format_version != FORMAT_VERSION {
        let version = manifest.format_version;
        return Err(invalid(format!("manifest has unknown format {version}")));
    }
    if hash_bytes(manifest.record.get().as_bytes()) != manifest.record_sha256 {
        return Err(invalid("manifest does not match its own hash".to_owned()));
    }
    let record: CheckpointRecord = serde_json::from_str(manifest.record.get())
        .map_err(|e| invalid(format!("manifest cannot be read: {e}")))?;
    if let Some(file) = record.files.iter().find(|f| !is_plain(Path::new(&f.path))) {
        return Err(invalid(format!("manifest lists `{}`", file.path)));
    }
    Ok(record)
}

/// Whether a path stays below the folder it is joined to.
pub fn is_plain(path: &Path) -> bool {
    let mut parts = path.components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

/// The record of the checkpoint in `dir`, after every listed file was found with its size and hash.
/// Reads every byte: about a second per gigabyte.
///
/// Files that are not listed are ignored: a file manager, a backup or a network file system may leave some, and
/// that must not cost a checkpoint. Nothing here reads, serves or copies them.
pub fn verify(dir: &Path) -> Result<CheckpointRecord, ArtifactError> {
    let record = read(dir)?;
    let named = dir.file_name().and_then(|n| step_of_name(n.to_str()?));
    if named.is_some_and(|step| step != record.step) {
        let reason = format!("manifest is of step {}", record.step);
        return Err(ArtifactError::invalid(dir, reason));
    }
    for expected in &record.files {
        let path = dir.join(&expected.path);
        // The length first: it costs nothing and finds most damage.
        let size_bytes = path
            .metadata()
            .map_err(|e| ArtifactError::io("open", &path, e))?
            .len();
        if size_bytes != expected.size_bytes {
            let reason = format!("{size_bytes} bytes instead of {}", expected.size_bytes);
            return Err(ArtifactError::invalid(&path, reason));
        }
        if hash_file(&path)?.sha256 != expected.sha256 {
            return Err(ArtifactError::invalid(
                &path,
                "content does not match its hash",
            ));
        }
    }
    Ok(record)
}

/// What a search for a usable checkpoint found.
#[derive(Debug, Default)]
pub struct NewestValid {
    /// Step, folder and record of the newest one that passed.
    pub found: Option<(u64, PathBuf, CheckpointRecord)>,
    /// Newer ones that did not pass, newest first. Each belongs in the job's log.
    pub skipped: Vec<SkippedCheckpoint>,
}

/// A checkpoint that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedCheckpoint {
    /// Its step.
    pub step: u64,
    /// Why it was not used.
    pub reason: String,
}

/// The newest checkpoint whose hashes match. A folder that does not exist holds none.
pub fn newest_valid(checkpoints_dir: &Path) -> Result<NewestValid, ArtifactError> {
    newest_valid_where(checkpoints_dir, |_| true)
}

/// The same among those whose record `accept`s; the others are passed over without being hashed or reported.
pub fn newest_valid_where(
    checkpoints_dir: &Path,
    accept: impl Fn(&CheckpointRecord) -> bool,
) -> Result<NewestValid, ArtifactError> {
    let mut result = NewestValid::default();
    for step in list_steps(checkpoints_dir)?.into_iter().rev() {
        let dir = checkpoints_dir.join(checkpoint_name(step));
        let checked = match read(&dir) {
            Ok(record) if !accept(&record) => continue,
            Ok(_) => verify(&dir),
            Err(error) => Err(error),
        };
        match checked {
            Ok(record) => {
                result.found = Some((step, dir, record));
                break;
            }
            Err(error) => result.skipped.push(SkippedCheckpoint {
                step,
                reason: error.to_string(),
            }),
        }
    }
    Ok(result)
}

/// Steps of all checkpoint folders, complete or not, ascending.
pub fn list_steps(checkpoints_dir: &Path) -> Result<Vec<u64>, ArtifactError> {
    if !checkpoints_dir.exists() {
        return Ok(Vec::new());
    }
    let mut steps: Vec<u64> = entries(checkpoints_dir)?
        .iter()
        .filter_map(|path| step_of_name(path.file_name()?.to_str()?))
        .collect();
    steps.sort_unstable();
    Ok(steps)
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;

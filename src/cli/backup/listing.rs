//! `backup.json`: every file of a backup with its length and hash, and its own hash.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::invalid;
use crate::artifacts::{files_under, hash_bytes, hash_file, is_plain, write_file};
use crate::domain::{Clock, FileRecord, JobError, SystemClock, Timestamp};

const NAME: &str = "backup.json";
/// Raised when an older reader could misread what a newer writer wrote.
const FORMAT_VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sealed {
    format_version: u32,
    listing_sha256: String,
    listing: Box<RawValue>,
}

/// What a backup holds.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    pub chandler_version: String,
    pub created_at: Timestamp,
    pub with_files: bool,
    /// Relative to the backup's folder, `/`-separated.
    pub files: Vec<FileRecord>,
}

/// Hashes everything in `folder` and writes the list beside it.
pub(super) fn write(folder: &Path, with_files: bool) -> Result<Listing, JobError> {
    let mut files = Vec::new();
    for relative in files_under(folder)? {
        let path = folder.join(&relative);
        let name = relative
            .to_str()
            .ok_or_else(|| invalid(&path, "the name is not UTF-8"))?;
        let hashed = hash_file(&path)?;
        files.push(FileRecord {
            path: name.to_owned(),
            size_bytes: hashed.size_bytes,
            sha256: hashed.sha256,
        });
    }
    let listing = Listing {
        chandler_version: env!("CARGO_PKG_VERSION").to_owned(),
        created_at: SystemClock.now(),
        with_files,
        files,
    };
    let path = folder.join(NAME);
    let seal = || {
        let raw = serde_json::value::to_raw_value(&listing)?;
        serde_json::to_vec(&Sealed {
            format_version: FORMAT_VERSION,
            listing_sha256: hash_bytes(raw.get().as_bytes()),
            listing: raw,
        })
    };
    write_file(&path, &seal().map_err(|e| invalid(&path, e))?)?;
    Ok(listing)
}

/// The list in `folder`, which matches its own hash and names only files below it.
pub(super) fn read(folder: &Path) -> Result<Listing, JobError> {
    let path = folder.join(NAME);
    let bytes = fs::read(&path).map_err(|e| invalid(&path, e))?;
    let sealed: Sealed = serde_json::from_slice(&bytes).map_err(|e| invalid(&path, e))?;
    if sealed.format_version != FORMAT_VERSION {
        let version = sealed.format_version;
        return Err(invalid(&path, format!("unknown format {version}")));
    }
    if hash_bytes(sealed.listing.get().as_bytes()) != sealed.listing_sha256 {
        return Err(invalid(&path, "the list does not match its own hash"));
    }
    let listing: Listing =
        serde_json::from_str(sealed.listing.get()).map_err(|e| invalid(&path, e))?;
    match listing
        .files
        .iter()
        .find(|file| !is_plain(Path::new(&file.path)))
    {
        Some(file) => Err(invalid(&path, format!("lists `{}`", file.path))),
        None => Ok(listing),
    }
}

//! A folder on this machine.

use std::fs;
use std::path::Path;

use super::error::Miss;
use super::{Found, ModelSource, folder};

/// The model in the folder `path`. One that looks like a model but is not whole ends the search: falling
/// through to a model of the same name on the Hub would hide it.
pub(super) fn find(path: &Path) -> Result<Found, Miss> {
    let place = path.display();
    let dir = match fs::canonicalize(path) {
        Ok(dir) if dir.is_dir() => dir,
        Ok(_) => return Err(Miss::nothing(format!("{place} is not a folder"))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Miss::nothing(format!("{place} does not exist")));
        }
        Err(e) => return Err(Miss::nothing(format!("{place} cannot be read: {e}"))),
    };
    let is_meant = path.is_absolute() || dir.join("config.json").is_file();
    folder::check_dir(&dir).map_err(|miss| {
        if is_meant {
            miss.and_stop()
        } else {
            Miss::nothing(miss.outcome)
        }
    })?;
    let model_sha256 = folder::hash_weights(&dir).map_err(Miss::and_stop)?;
    Ok(Found {
        dir,
        source: ModelSource::LocalFolder,
        revision: None,
        model_sha256,
    })
}

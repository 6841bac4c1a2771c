//! The few operations by which a checkpoint changes the disk, all in one place: tests make any one of them
//! fail, end the process there, or write all of them down and compute what a power cut would have left.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::ArtifactError;
use super::durable::{HashedFile, entries, hex, swap};
use crate::faults::{Action, Faults};

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Op {
    CreateDir(PathBuf),
    CreateFile(PathBuf),
    Write(PathBuf, Vec<u8>),
    SyncFile(PathBuf),
    SyncDir(PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    RemoveFile(PathBuf),
    RemoveDir(PathBuf),
}

/// The disk, with the faults planned for it. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    faults: Faults,
    #[cfg(test)]
    pub(super) journal: Option<std::sync::Arc<std::sync::Mutex<Vec<Op>>>>,
}

impl Disk {
    /// A disk that fails as planned.
    pub fn with_faults(faults: Faults) -> Self {
        Self {
            faults,
            #[cfg(test)]
            journal: None,
        }
    }

    /// Asked before every change: may it happen?
    fn before(&self, op: impl FnOnce() -> Op) -> io::Result<()> {
        if let Some(action) = self.faults.next("checkpoint.write") {
            Faults::strike(action);
            if action == Action::Enospc {
                return Err(io::Error::from(io::ErrorKind::StorageFull));
            }
        }
        self.note(op);
        Ok(())
    }

    #[cfg(test)]
    fn note(&self, op: impl FnOnce() -> Op) {
        if let Some(journal) = &self.journal {
            journal.lock().unwrap().push(op());
        }
    }

    #[cfg(not(test))]
    #[inline(always)]
    fn note(&self, _op: impl FnOnce() -> Op) {}

    pub(super) fn create_dir_all(&self, dir: &Path) -> Result<(), ArtifactError> {
        if dir.is_dir() {
            return Ok(());
        }
        if let Some(parent) = dir.parent() {
            self.create_dir_all(parent)?;
        }
        self.before(|| Op::CreateDir(dir.to_path_buf()))
            .and_then(|()| fs::create_dir(dir))
            .map_err(|e| ArtifactError::io("create", dir, e))
    }

    /// A new file to be written piece by piece.
    pub(super) fn create(&self, path: &Path) -> Result<DiskFile<'_>, ArtifactError> {
        let file = self
            .before(|| Op::CreateFile(path.to_path_buf()))
            .and_then(|()| File::create(path))
            .map_err(|e| ArtifactError::io("create", path, e))?;
        Ok(DiskFile {
            disk: self,
            path: path.to_path_buf(),
            file,
            hasher: Sha256::new(),
            size_bytes: 0,
        })
    }

    /// Makes a file's content durable, written by whomever.
    pub(super) fn sync_file(&self, path: &Path) -> Result<(), ArtifactError> {
        self.before(|| Op::SyncFile(path.to_path_buf()))
            .and_then(|()| File::open(path)?.sync_all())
            .map_err(|e| ArtifactError::io("sync", path, e))
    }

    /// Makes the names in a folder durable: without it a rename can be undone by power loss.
    pub(super) fn sync_dir(&self, dir: &Path) -> Result<(), ArtifactError> {
        self.before(|| Op::SyncDir(dir.to_path_buf()))
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(|e| ArtifactError::io("sync", dir, e))
    }

    /// Syncs every folder under `dir`, deepest first, and `dir` last.
    pub(super) fn sync_dirs(&self, dir: &Path) -> Result<(), ArtifactError> {
        for entry in entries(dir)? {
            if entry.is_dir() {
                self.sync_dirs(&entry)?;
            }
        }
        self.sync_dir(dir)
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> Result<(), ArtifactError> {
        self.before(|| Op::Rename(from.to_path_buf(), to.to_path_buf()))
            .and_then(|()| fs::rename(from, to))
            .map_err(|e| ArtifactError::io("rename to", to, e))
    }

    /// Puts the folder `from` (synced by the caller) at `to` in one step, replacing what is there. At every
    /// moment `to` is the old folder or the new one. Both must lie in the same folder.
    pub(super) fn replace_dir(&self, from: &Path, to: &Path) -> Result<(), ArtifactError> {
        let parent = to
            .parent()
            .ok_or_else(|| ArtifactError::invalid(to, "has no parent folder"))?;
        if to.exists() {
            self.before(|| Op::Exchange(from.to_path_buf(), to.to_path_buf()))
                .map_err(|e| ArtifactError::io("rename to", to, e))?;
            swap(from, to)?;
            self.sync_dir(parent)?;
            // `from` is the old folder now; losing the race against a crash leaves only `.tmp-` garbage.
            self.remove_any(from)
        } else {
            self.rename(from, to)?;
            self.sync_dir(parent)
        }
    }

    /// Removes a folder that may not be there: one rename to `aside`, on the same file system, takes it out of
    /// sight, so no one ever finds half of it. What a crash leaves aside is swept later.
    pub(super) fn remove_by_way_of(&self, aside: &Path, dir: &Path) -> Result<(), ArtifactError> {
        self.remove_any(aside)?;
        if !dir.exists() {
            return Ok(());
        }
        self.rename(dir, aside)?;
        self.remove_any(aside)
    }

    /// Removes a file or folder that may not be there.
    pub(super) fn remove_any(&self, path: &Path) -> Result<(), ArtifactError> {
        match self.remove_tree(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ArtifactError::io("remove", path, error))
            }
            _ => Ok(()),
        }
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        if !fs::symlink_metadata(path)?.is_dir() {
            self.before(|| Op::RemoveFile(path.to_path_buf()))?;
            return fs::remove_file(path);
        }
        for entry in fs::read_dir(path)? {
            self.remove_tree(&entry?.path())?;
        }
        self.before(|| Op::RemoveDir(path.to_path_buf()))?;
        fs::remove_dir(path)
    }
}

/// A file being written: hashed as it grows.
#[derive(Debug)]
pub struct DiskFile<'a> {
    disk: &'a Disk,
    path: PathBuf,
    file: File,
    hasher: Sha256,
    size_bytes: u64,
}

impl DiskFile<'_> {
    /// Appends `bytes`.
    ///
    /// # Errors
    /// `DiskFull`, or what the file system says.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), ArtifactError> {
        self.disk
            .before(|| Op::Write(self.path.clone(), bytes.to_vec()))
            .and_then(|()| self.file.write_all(bytes))
            .map_err(|e| ArtifactError::io("write", &self.path, e))?;
        self.hasher.update(bytes);
        self.size_bytes += bytes.len() as u64;
        Ok(())
    }

    /// Makes the content durable; the name is after a sync of the folder.
    pub(super) fn finish(self) -> Result<HashedFile, ArtifactError> {
        self.disk
            .before(|| Op::SyncFile(self.path.clone()))
            .and_then(|()| self.file.sync_all())
            .map_err(|e| ArtifactError::io("sync", &self.path, e))?;
        Ok(HashedFile {
            size_bytes: self.size_bytes,
            sha256: hex(&self.hasher.finalize()),
        })
    }
}

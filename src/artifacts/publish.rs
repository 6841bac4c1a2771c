//! Writing a checkpoint so that it is there completely or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::durable::{HashedFile, entries, files_under, hash_file, remove_any};
use super::error::free_bytes;
use super::manifest::{MANIFEST_FILE, encode, is_plain};
use super::{ArtifactError, Disk, DiskFile, checkpoint_name};
use crate::domain::{CheckpointRecord, FileRecord};

/// What every unfinished folder's name begins with.
const TMP_PREFIX: &str = ".tmp-";

/// A checkpoint being written: a temporary folder beside its final place. Dropping it unpublished removes it.
#[derive(Debug)]
pub struct CheckpointWriter {
    disk: Disk,
    checkpoints_dir: PathBuf,
    tmp: PathBuf,
    step: u64,
    /// What [`CheckpointWriter::write`] hashed and synced already.
    sealed: BTreeMap<PathBuf, HashedFile>,
    published: bool,
}

impl CheckpointWriter {
    /// Begins the checkpoint of `step`; `checkpoints_dir` is created where missing.
    pub fn begin(checkpoints_dir: &Path, step: u64) -> Result<Self, ArtifactError> {
        Self::begin_on(Disk::default(), checkpoints_dir, step, 0)
    }

    /// The same on a given disk, which must have `needed_bytes` free.
    pub fn begin_on(
        disk: Disk,
        checkpoints_dir: &Path,
        step: u64,
        needed_bytes: u64,
    ) -> Result<Self, ArtifactError> {
        let name = checkpoint_name(step);
        let tmp = checkpoints_dir.join(format!("{TMP_PREFIX}{name}-{}", std::process::id()));
        disk.remove_any(&tmp)?;
        if !checkpoints_dir.is_dir() {
            disk.create_dir_all(checkpoints_dir)?;
            // The folder's own name must survive too, and that of the job's folder.
            for parent in checkpoints_dir.ancestors().skip(1).take(2) {
                disk.sync_dir(parent)?;
            }
        }
        if free_bytes(checkpoints_dir).is_some_and(|free| free < needed_bytes) {
            return Err(ArtifactError::disk_full(&tmp, needed_bytes));
        }
        disk.create_dir_all(&tmp)?;
        Ok(Self {
            disk,
            checkpoints_dir: checkpoints_dir.to_path_buf(),
            tmp,
            step,
            sealed: BTreeMap::new(),
            published: false,
        })
    }

    /// Writes the file `name` piece by piece: hashed on the way, synced at the end, never read again.
    pub fn write<E: From<ArtifactError>>(
        &mut self,
        name: &str,
        content: impl FnOnce(&mut DiskFile<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let path = self.file(name)?;
        let mut file = self.disk.create(&path)?;
        content(&mut file)?;
        let hashed = file.finish()?;
        self.sealed.insert(PathBuf::from(name), hashed);
        Ok(())
    }

    /// The folder to write into.
    pub fn dir(&self) -> &Path {
        &self.tmp
    }

    /// Where to write the file `name` (relative, `/`-separated); folders on the way are created.
    pub fn file(&self, name: &str) -> Result<PathBuf, ArtifactError> {
        let path = self.tmp.join(name);
        if !is_plain(Path::new(name)) || name == MANIFEST_FILE {
            return Err(ArtifactError::invalid(&path, "not a name for a file here"));
        }
        if let Some(parent) = path.parent() {
            self.disk.create_dir_all(parent)?;
        }
        Ok(path)
    }

    /// Hashes and syncs everything written, writes the manifest as the last file, and moves the folder to its
    /// place, replacing a checkpoint of the same step. After a crash at any point there is the old state or the
    /// new one.
    ///
    /// A metric or epoch that is not finite is refused: JSON would turn it into `null`.
    pub fn publish(
        mut self,
        epoch: f64,
        metrics: BTreeMap<String, f64>,
        resumable: bool,
    ) -> Result<CheckpointRecord, ArtifactError> {
        let not_finite = metrics.iter().find(|(_, value)| !value.is_finite());
        if let Some((name, value)) = not_finite {
            let reason = format!("metric `{name}` is {value}");
            return Err(ArtifactError::invalid(&self.tmp, reason));
        }
        if !epoch.is_finite() {
            return Err(ArtifactError::invalid(&self.tmp, "epoch is not finite"));
        }
        let record = CheckpointRecord {
            step: self.step,
            epoch,
            metrics,
            resumable,
            files: self.seal_files()?,
        };
        let manifest = encode(&record)
            .map_err(|e| ArtifactError::invalid(&self.tmp, format!("no manifest: {e}")))?;
        let mut file = self.disk.create(&self.tmp.join(MANIFEST_FILE))?;
        file.append(&manifest)?;
        file.finish()?;
        self.disk.sync_dirs(&self.tmp)?;
        let place = self.checkpoints_dir.join(checkpoint_name(self.step));
        self.disk.replace_dir(&self.tmp, &place)?;
        self.published = true;
        Ok(record)
    }

    /// Makes every file durable and answers what the manifest says of it.
    fn seal_files(&self) -> Result<Vec<FileRecord>, ArtifactError> {
        files_under(&self.tmp)?
            .into_iter()
            .map(|relative| {
                let path = self.tmp.join(&relative);
                let name = relative
                    .to_str()
                    .ok_or_else(|| ArtifactError::invalid(&path, "name is not UTF-8"))?;
                if name == MANIFEST_FILE {
                    return Err(ArtifactError::invalid(&path, "is written by `publish`"));
                }
                let hashed = match self.sealed.get(&relative) {
                    Some(hashed) => hashed.clone(),
                    None => {
                        self.disk.sync_file(&path)?;
                        hash_file(&path)?
                    }
                };
                Ok(FileRecord {
                    path: name.to_owned(),
                    size_bytes: hashed.size_bytes,
                    sha256: hashed.sha256,
                })
            })
            .collect()
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        if !self.published {
            // Nothing to be done about a failure here; `sweep_leftovers` tries again.
            let _ = fs::remove_dir_all(&self.tmp);
        }
    }
}

/// Removes what trainers that died left half-written or half-removed. To be called by an attempt before its
/// first checkpoint: the attempt before it is fenced off, so nothing found here can still become valid.
pub fn sweep_leftovers(checkpoints_dir: &Path) -> Result<(), ArtifactError> {
    if !checkpoints_dir.exists() {
        return Ok(());
    }
    entries(checkpoints_dir)?
        .iter()
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(TMP_PREFIX))
        })
        .try_for_each(|path| remove_any(path))
}

/// A name beside `dir` under which it may be taken apart.
pub(super) fn tmp_beside(dir: &Path) -> Option<PathBuf> {
    let name = dir.file_name()?.to_str()?;
    let pid = std::process::id();
    Some(dir.with_file_name(format!("{TMP_PREFIX}removed-{name}-{pid}")))
}

#[cfg(test)]
mod tests {
    use super::super::manifest::{list_steps, verify};
    use super::*;

    fn write(checkpoints: &Path, step: u64, weights: &[u8]) -> CheckpointWriter {
        let writer = CheckpointWriter::begin(checkpoints, step).unwrap();
        fs::write(writer.file("model.safetensors").unwrap(), weights).unwrap();
        fs::write(writer.file("a/b.json").unwrap(), "{}").unwrap();
        writer
    }

    #[test]
    fn nothing_is_there_until_everything_is() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("checkpoints");
        let writer = write(&dir, 7, b"weights");
        assert!(list_steps(&dir).unwrap().is_empty());
        let metrics = BTreeMap::from([("eval_accuracy".to_owned(), 0.9)]);
        let record = writer.publish(0.25, metrics, false).unwrap();
        assert_eq!(list_steps(&dir).unwrap(), [7]);
        assert_eq!(verify(&dir.join("checkpoint-7")).unwrap(), record);
        let names: Vec<&str> = record.files.iter().map(|f| f.path.as_str()).collect();
        assert_eq!(names, ["a/b.json", "model.safetensors"]);
        assert_eq!(record.files[1].size_bytes, 7);
        assert_eq!(entries(&dir).unwrap().len(), 1);
    }

    #[test]
    fn dropping_leaves_nothing() {
        let temp = tempfile::tempdir().unwrap();
        drop(write(temp.path(), 7, b"w"));
        assert!(entries(temp.path()).unwrap().is_empty());
    }

    #[test]
    fn a_failed_publish_leaves_the_old_checkpoint_alone() {
        let temp = tempfile::tempdir().unwrap();
        let old = write(temp.path(), 7, b"old")
            .publish(1.0, BTreeMap::new(), true)
            .unwrap();
        let nan = BTreeMap::from([("eval_loss".to_owned(), f64::NAN)]);
        let error = write(temp.path(), 7, b"new").publish(1.0, nan, true);
        assert!(error.unwrap_err().to_string().contains("eval_loss"));
        assert_eq!(verify(&temp.path().join("checkpoint-7")).unwrap(), old);
        assert_eq!(entries(temp.path()).unwrap().len(), 1);
    }

    #[test]
    fn the_same_step_is_replaced() {
        let temp = tempfile::tempdir().unwrap();
        for weights in [b"first".as_slice(), b"second"] {
            let writer = write(temp.path(), 7, weights);
            writer.publish(1.0, BTreeMap::new(), true).unwrap();
        }
        let record = verify(&temp.path().join("checkpoint-7")).unwrap();
        assert_eq!(record.files[1].size_bytes, 6);
        assert_eq!(entries(temp.path()).unwrap().len(), 1);
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let writer = CheckpointWriter::begin(temp.path(), 1).unwrap();
        for name in ["../x", "/x", "a/../../x", "", ".", MANIFEST_FILE] {
            assert!(writer.file(name).is_err(), "{name}");
        }
    }

    #[test]
    fn leftovers_are_swept_and_checkpoints_kept() {
        let temp = tempfile::tempdir().unwrap();
        sweep_leftovers(&temp.path().join("none")).unwrap();
        write(temp.path(), 7, b"w")
            .publish(1.0, BTreeMap::new(), true)
            .unwrap();
        for name in [".tmp-checkpoint-9-1", ".tmp-removed-checkpoint-3-1"] {
            fs::create_dir_all(temp.path().join(name).join("deep")).unwrap();
        }
        sweep_leftovers(temp.path()).unwrap();
        assert_eq!(
            entries(temp.path()).unwrap(),
            [temp.path().join("checkpoint-7")]
        );
    }
}

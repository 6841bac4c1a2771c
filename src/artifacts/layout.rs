//! Where everything lies in the data directory, and the lock that keeps a second server out.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::durable::{entries, remove_any, sync_dir};
use super::{ArtifactError, Disk, checkpoint_name};
use crate::domain::{DatasetFormat, DatasetId, JobId};

/// The data directory: a path and what is known about its inside. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataDir {
    root: PathBuf,
}

/// Held while a server uses a data directory; released when dropped, and by the kernel when the process ends.
#[derive(Debug)]
#[must_use = "dropping it lets another server in"]
pub struct DataDirLock {
    // Opened close-on-exec, so that a trainer outliving its server does not keep the lock.
    _file: File,
}

impl DataDir {
    /// The server's side: creates the folders, and shows by writing a file that it can be written. The path
    /// is absolute afterwards, because trainers run in other working directories.
    pub fn open(path: &Path) -> Result<Self, ArtifactError> {
        let not_writable = |source| ArtifactError::NotWritable {
            path: path.to_path_buf(),
            source,
        };
        fs::create_dir_all(path).map_err(not_writable)?;
        let this = Self::at(&fs::canonicalize(path).map_err(not_writable)?);
        for dir in ["datasets", "jobs", "models", "tmp"] {
            fs::create_dir_all(this.root.join(dir)).map_err(not_writable)?;
        }
        let probe = this.tmp_dir().join(format!("probe-{}", std::process::id()));
        File::create(&probe)
            .and_then(|mut file| file.write_all(b"x"))
            .and_then(|()| fs::remove_file(&probe))
            .map_err(not_writable)?;
        Ok(this)
    }

    /// The trainer's side: the same paths, nothing created or checked.
    pub fn at(path: &Path) -> Self {
        Self {
            root: path.to_path_buf(),
        }
    }

    /// Takes the lock that only one server can hold. [`ArtifactError::Locked`] when another has it.
    pub fn lock(&self) -> Result<DataDirLock, ArtifactError> {
        let path = self.root.join("lock");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(|e| ArtifactError::io("open", &path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Only for the message; the holder may be writing it just now.
                let _ = file.take(32).read_to_string(&mut pid);
                return Err(ArtifactError::Locked {
                    path: self.root.clone(),
                    pid: pid.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(ArtifactError::io("lock", &path, e)),
        }
        file.set_len(0)
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(|e| ArtifactError::io("write", &path, e))?;
        Ok(DataDirLock { _file: file })
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The SQLite file.
    pub fn database(&self) -> PathBuf {
        self.root.join("chandler.db")
    }

    /// The folder of one dataset.
    pub fn dataset_dir(&self, id: DatasetId) -> PathBuf {
        self.root.join("datasets").join(id.to_string())
    }

    /// The uploaded file of one dataset.
    pub fn dataset_file(&self, id: DatasetId, format: DatasetFormat) -> PathBuf {
        self.dataset_dir(id).join(format!("data.{format}"))
    }

    /// Everything of one job.
    pub fn job_dir(&self, id: JobId) -> PathBuf {
        self.root.join("jobs").join(id.to_string())
    }

    /// What one attempt wrote; `attempt` counts from 1.
    pub fn attempt_dir(&self, id: JobId, attempt: u32) -> PathBuf {
        self.job_dir(id).join("attempts").join(attempt.to_string())
    }

    /// The attempt's spool of messages.
    pub fn events_file(&self, id: JobId, attempt: u32) -> PathBuf {
        self.attempt_dir(id, attempt).join("events.jsonl")
    }

    /// The trainer process's output.
    pub fn trainer_log(&self, id: JobId, attempt: u32) -> PathBuf {
        self.attempt_dir(id, attempt).join("trainer.log")
    }

    /// The job's checkpoints.
    pub fn checkpoints_dir(&self, id: JobId) -> PathBuf {
        self.job_dir(id).join("checkpoints")
    }

    /// One checkpoint of a job.
    pub fn checkpoint_dir(&self, id: JobId, step: u64) -> PathBuf {
        self.checkpoints_dir(id).join(checkpoint_name(step))
    }

    /// Base models that `hub` fetched.
    pub fn models_dir(&self) -> PathBuf {
        self.root.join("models")
    }

    /// Files on their way to their place; on the same file system, so that a rename moves them.
    pub fn tmp_dir(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Moves a finished, synced upload from [`Self::tmp_dir`] to its place, durably, and answers the place.
    pub fn place_dataset(
        &self,
        upload: &Path,
        id: DatasetId,
        format: DatasetFormat,
    ) -> Result<PathBuf, ArtifactError> {
        let dir = self.dataset_dir(id);
        fs::create_dir_all(&dir).map_err(|e| ArtifactError::io("create", &dir, e))?;
        let file = self.dataset_file(id, format);
        fs::rename(upload, &file).map_err(|e| ArtifactError::io("rename to", &file, e))?;
        sync_dir(&dir)?;
        sync_dir(&self.root.join("datasets"))?;
        Ok(file)
    }

    /// Empties `tmp/`: what a server that died left there. Only under the lock, before anything is uploaded.
    pub fn sweep_tmp(&self) -> Result<(), ArtifactError> {
        entries(&self.tmp_dir())?
            .iter()
            .try_for_each(|path| remove_any(path))
    }

    /// Removes everything of a job. A job that left nothing is fine.
    pub fn remove_job(&self, id: JobId) -> Result<(), ArtifactError> {
        self.remove(&self.job_dir(id), &format!("job-{id}"))
    }

    /// Removes a dataset's folder. One that is not there is fine.
    pub fn remove_dataset(&self, id: DatasetId) -> Result<(), ArtifactError> {
        self.remove(&self.dataset_dir(id), &format!("dataset-{id}"))
    }

    /// `sweep_tmp` finishes what a crash interrupted.
    fn remove(&self, dir: &Path, name: &str) -> Result<(), ArtifactError> {
        Disk::default().remove_by_way_of(&self.tmp_dir().join(name), dir)
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::ErrorCode;

    fn open() -> (tempfile::TempDir, DataDir) {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(&dir.path().join("data")).unwrap();
        (dir, data)
    }

    #[test]
    fn paths_are_the_documented_ones() {
        let data = DataDir::at(Path::new("/d"));
        let id = Uuid::from_u128(7);
        let job = "/d/jobs/00000000-0000-0000-0000-000000000007";
        let path = |p: PathBuf| p.display().to_string();
        assert_eq!(path(data.database()), "/d/chandler.db");
        assert_eq!(
            path(data.dataset_file(DatasetId(id), DatasetFormat::Jsonl)),
            "/d/datasets/00000000-0000-0000-0000-000000000007/data.jsonl"
        );
        assert_eq!(
            path(data.events_file(JobId(id), 2)),
            format!("{job}/attempts/2/events.jsonl")
        );
        assert_eq!(
            path(data.trainer_log(JobId(id), 1)),
            format!("{job}/attempts/1/trainer.log")
        );
        assert_eq!(
            path(data.checkpoint_dir(JobId(id), 30)),
            format!("{job}/checkpoints/checkpoint-30")
        );
        assert_eq!(path(data.models_dir()), "/d/models");
        assert_eq!(path(data.tmp_dir()), "/d/tmp");
    }

    #[test]
    fn opening_twice_is_fine_and_the_path_becomes_absolute() {
        let (_dir, data) = open();
        assert_eq!(DataDir::open(data.root()).unwrap(), data);
        assert!(data.root().is_absolute());
        assert!(entries(&data.tmp_dir()).unwrap().is_empty());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        // A file where a folder must be: refused even to root, whom permissions do not stop.
        let error = DataDir::open(&file.join("data")).unwrap_err();
        assert_eq!(error.code(), ErrorCode::DataDirNotWritable);
        assert!(error.to_string().contains("file/data"), "{error}");
        assert!(error.to_string().contains("directory"), "{error}");
    }

    #[test]
    fn only_one_holds_the_lock() {
        let (_dir, data) = open();
        let held = data.lock().unwrap();
        let error = data.lock().unwrap_err();
        assert_eq!(error.code(), ErrorCode::DataDirLocked);
        let pid = format!("process {}", std::process::id());
        assert!(error.to_string().contains(&pid), "{error}");
        drop(held);
        let _again = data.lock().unwrap();
    }

    #[test]
    fn sweeping_and_removing_take_only_what_they_should() {
        let (_dir, data) = open();
        let ids = [Uuid::from_u128(1), Uuid::from_u128(2)];
        for id in ids {
            fs::create_dir_all(data.checkpoint_dir(JobId(id), 5)).unwrap();
            let upload = data.tmp_dir().join("upload");
            fs::write(&upload, "a,b\n").unwrap();
            let placed = data.place_dataset(&upload, DatasetId(id), DatasetFormat::Csv);
            assert_eq!(fs::read(placed.unwrap()).unwrap(), b"a,b\n");
        }
        fs::create_dir_all(data.tmp_dir().join("left/over")).unwrap();
        fs::write(data.tmp_dir().join("half"), "x").unwrap();
        data.sweep_tmp().unwrap();
        assert!(entries(&data.tmp_dir()).unwrap().is_empty());

        for _ in 0..2 {
            data.remove_job(JobId(ids[0])).unwrap();
            data.remove_dataset(DatasetId(ids[0])).unwrap();
        }
        assert!(!data.job_dir(JobId(ids[0])).exists());
        assert!(!data.dataset_dir(DatasetId(ids[0])).exists());
        assert!(data.checkpoint_dir(JobId(ids[1]), 5).exists());
        assert!(data.dataset_dir(DatasetId(ids[1])).exists());
    }
}

//! The few paths below the data directory that `http` touches.

use std::path::{Component, Path, PathBuf};

use uuid::Uuid;

use crate::domain::{DatasetFormat, DatasetId, JobId};

/// Where an upload is written until it is complete.
pub fn upload(data_dir: &Path, id: Uuid) -> PathBuf {
    tmp_dir(data_dir).join(format!("upload-{id}"))
}

/// Unfinished files; safe to empty when no server runs.
pub fn tmp_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("tmp")
}

/// A dataset's folder.
pub fn dataset_dir(data_dir: &Path, id: DatasetId) -> PathBuf {
    data_dir.join("datasets").join(id.to_string())
}

/// A dataset's file.
pub fn dataset_file(data_dir: &Path, id: DatasetId, format: DatasetFormat) -> PathBuf {
    dataset_dir(data_dir, id).join(format!("data.{format}"))
}

/// A job's folder: attempts and checkpoints.
pub fn job_dir(data_dir: &Path, id: JobId) -> PathBuf {
    data_dir.join("jobs").join(id.to_string())
}

/// One checkpoint's folder; a Hugging Face model folder.
pub fn checkpoint_dir(data_dir: &Path, job: JobId, step: u64) -> PathBuf {
    job_dir(data_dir, job)
        .join("checkpoints")
        .join(format!("checkpoint-{step}"))
}

/// A file in a checkpoint, or `None` for a path that would leave the folder. The path comes from a
/// trainer's record; a trainer gone wrong must not make the server hand out other files.
pub fn checkpoint_file(data_dir: &Path, job: JobId, step: u64, file: &str) -> Option<PathBuf> {
    let file = Path::new(file);
    let inside = file.components().all(|c| matches!(c, Component::Normal(_)));
    (inside && file.components().next().is_some())
        .then(|| checkpoint_dir(data_dir, job, step).join(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_file_stays_in_its_folder() {
        let root = Path::new("/d");
        let job = JobId(Uuid::nil());
        let inside = checkpoint_file(root, job, 3, "optimizer/state.safetensors").unwrap();
        assert!(inside.ends_with("checkpoint-3/optimizer/state.safetensors"));
        for outside in ["../x", "a/../../x", "/etc/passwd", ""] {
            assert_eq!(checkpoint_file(root, job, 3, outside), None, "{outside}");
        }
    }
}

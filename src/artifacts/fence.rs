//! Keeps a trainer that was given up, and lives all the same, away from its job's checkpoints.
//!
//! Every attempt reaches them by a name of its own, a link in its own folder, and the first thing an attempt
//! does is to take the names of the attempts before it away. Whatever such a trainer does next, publish,
//! replace or rotate, it finds nothing there: the file system decides, at every single call, server or no
//! server.

use std::fs;
use std::path::PathBuf;

use super::durable::{entries, remove_any, sync_dir};
use super::{ArtifactError, DataDir};
use crate::domain::JobId;

/// The link's name in the attempt's folder.
const LINK: &str = "checkpoints";

impl DataDir {
    /// This attempt's own name for the job's checkpoints; earlier attempts lose theirs.
    ///
    /// # Errors
    /// A later attempt has begun, or the file system refused.
    pub fn enter_checkpoints(&self, job: JobId, attempt: u32) -> Result<PathBuf, ArtifactError> {
        let place = self.checkpoints_dir(job);
        fs::create_dir_all(&place).map_err(|e| ArtifactError::io("create", &place, e))?;
        sync_dir(&self.job_dir(job))?;
        let dir = self.attempt_dir(job, attempt);
        fs::create_dir_all(&dir).map_err(|e| ArtifactError::io("create", &dir, e))?;
        let link = dir.join(LINK);
        remove_any(&link)?;
        std::os::unix::fs::symlink(&place, &link)
            .map_err(|e| ArtifactError::io("link", &link, e))?;
        // Only now: a later attempt that comes in between either sees this link and takes it away, or is
        // seen here.
        for other in self.attempts(job)? {
            if other > attempt {
                remove_any(&link)?;
                let reason = format!("attempt {other} has begun");
                return Err(ArtifactError::invalid(&link, reason));
            }
            if other < attempt {
                remove_any(&self.attempt_dir(job, other).join(LINK))?;
            }
        }
        Ok(link)
    }

    /// Numbers of the attempts that have entered.
    fn attempts(&self, job: JobId) -> Result<Vec<u32>, ArtifactError> {
        let folders = entries(&self.job_dir(job).join("attempts"))?;
        let entered = folders
            .iter()
            .filter(|folder| fs::symlink_metadata(folder.join(LINK)).is_ok());
        Ok(entered
            .filter_map(|folder| folder.file_name()?.to_str()?.parse().ok())
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::super::{CheckpointWriter, list_steps, verify};
    use super::*;

    #[test]
    fn an_attempt_that_was_given_up_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(&folder.path().join("data")).unwrap();
        let job = JobId(Uuid::from_u128(7));
        let shared = data.checkpoints_dir(job);
        let begin = |dir: &PathBuf, step, weights: &str| {
            let writer = CheckpointWriter::begin(dir, step).unwrap();
            fs::write(writer.file("model.safetensors").unwrap(), weights).unwrap();
            writer
        };
        let first = data.enter_checkpoints(job, 1).unwrap();
        let publish = |writer: CheckpointWriter| writer.publish(1.0, BTreeMap::new(), true);
        publish(begin(&first, 5, "first")).unwrap();
        assert_eq!(list_steps(&shared).unwrap(), [5]);

        // It is in the middle of the next one, of the same step as one of its successor's.
        let late = begin(&first, 10, "late");
        let second = data.enter_checkpoints(job, 2).unwrap();
        assert_eq!(list_steps(&second).unwrap(), [5]);
        let record = publish(begin(&second, 10, "second")).unwrap();
        assert!(publish(late).is_err());
        assert!(list_steps(&first).unwrap().is_empty(), "nothing to rotate");
        // A new one goes where nobody looks.
        let _ = publish(begin(&first, 15, "later still"));
        assert_eq!(list_steps(&shared).unwrap(), [5, 10]);
        assert_eq!(verify(&shared.join("checkpoint-10")).unwrap(), record);

        let refused = data.enter_checkpoints(job, 1).unwrap_err();
        assert!(refused.to_string().contains("attempt 2 has begun"));
        assert!(data.enter_checkpoints(job, 3).is_ok());
        data.remove_job(job).unwrap();
        assert!(!data.job_dir(job).exists());
    }
}

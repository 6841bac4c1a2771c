//! A model this server trained: a checkpoint whose hashes match.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::error::Miss;
use super::folder::{WEIGHTS, check_dir};
use super::request::{CheckpointAlias, JobRef, Which};
use super::{Found, ModelSource, StepOfAlias};
use crate::artifacts::{self, ArtifactError, DataDir};
use crate::domain::CheckpointRecord;

/// The checkpoint that `job` names.
pub(super) fn find(
    data_dir: &DataDir,
    job: &JobRef,
    step_of_alias: Option<&StepOfAlias>,
) -> Result<Found, Miss> {
    let checkpoints = data_dir.checkpoints_dir(job.id);
    if !checkpoints.is_dir() {
        return Err(Miss::nothing(format!("job {} has no checkpoints", job.id)));
    }
    let step = match job.which {
        Which::Newest => None,
        Which::Step(step) => Some(step),
        Which::Alias(alias) => match step_of_alias {
            Some(ask) => ask(job.id, alias),
            None if alias == CheckpointAlias::Best => best_step(&checkpoints),
            None => None,
        },
    };
    let (step, dir, record) = match step {
        Some(step) => exactly(&data_dir.checkpoint_dir(job.id, step), step)?,
        None => newest(&checkpoints)?,
    };
    check_dir(&dir)?;
    let weights = record.files.into_iter().find(|file| file.path == WEIGHTS);
    let model_sha256 = weights
        .ok_or_else(|| Miss::invalid(format!("checkpoint {step} does not list {WEIGHTS}")))?
        .sha256;
    Ok(Found {
        dir,
        source: ModelSource::Job {
            job_id: job.id,
            step,
        },
        revision: None,
        model_sha256,
    })
}

type Checked = (u64, PathBuf, CheckpointRecord);

fn exactly(dir: &Path, step: u64) -> Result<Checked, Miss> {
    if !dir.is_dir() {
        return Err(Miss::nothing(format!("the job has no checkpoint {step}")));
    }
    let record = artifacts::verify(dir).map_err(|e| damaged(step, &e))?;
    Ok((step, dir.to_path_buf(), record))
}

fn newest(checkpoints: &Path) -> Result<Checked, Miss> {
    let search = artifacts::newest_valid(checkpoints).map_err(|e| Miss::invalid(e.to_string()))?;
    for skipped in &search.skipped {
        tracing::warn!(
            step = skipped.step,
            reason = skipped.reason,
            "checkpoint passed over"
        );
    }
    search.found.ok_or_else(|| match search.skipped.first() {
        Some(skipped) => Miss::invalid(format!(
            "no checkpoint of the job is whole; {}: {}",
            skipped.step, skipped.reason
        )),
        None => Miss::nothing("the job has no checkpoints"),
    })
}

fn damaged(step: u64, error: &ArtifactError) -> Miss {
    Miss::invalid(format!("checkpoint {step} cannot be used: {error}"))
}

/// The best step so far, as the HF Trainer's state in the newest checkpoint has it.
fn best_step(checkpoints: &Path) -> Option<u64> {
    #[derive(Deserialize)]
    struct TrainerState {
        best_global_step: Option<u64>,
    }
    let (_, dir, _) = artifacts::newest_valid(checkpoints).ok()?.found?;
    let bytes = fs::read(dir.join("trainer_state.json")).ok()?;
    let state: TrainerState = serde_json::from_slice(&bytes).ok()?;
    state.best_global_step
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::*;
    use crate::artifacts::CheckpointWriter;
    use crate::domain::{ErrorCode, JobId};
    use crate::hub::testing::write_model;

    const JOB: JobId = JobId(Uuid::from_u128(9));

    fn publish(data: &DataDir, step: u64, best: u64) {
        let writer = CheckpointWriter::begin(&data.checkpoints_dir(JOB), step).unwrap();
        write_model(writer.dir(), &format!("weights {step}"));
        let state = format!(r#"{{"best_global_step": {best}, "epoch": 1.0}}"#);
        fs::write(writer.file("trainer_state.json").unwrap(), state).unwrap();
        writer.publish(1.0, BTreeMap::new(), true).unwrap();
    }

    fn step(data: &DataDir, which: Which, ask: Option<&StepOfAlias>) -> Result<u64, Miss> {
        let found = find(data, &JobRef { id: JOB, which }, ask)?;
        let weights = artifacts::hash_file(&found.dir.join(WEIGHTS)).unwrap();
        assert_eq!(found.model_sha256, weights.sha256);
        match found.source {
            ModelSource::Job { step, .. } => Ok(step),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn newest_best_last_and_steps() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::open(temp.path()).unwrap();
        let best = Which::Alias(CheckpointAlias::Best);
        let last = Which::Alias(CheckpointAlias::Last);
        let none = step(&data, Which::Newest, None).unwrap_err();
        assert!(none.fault.is_none() && none.outcome.contains("no checkpoints"));
        publish(&data, 10, 10);
        publish(&data, 20, 10);
        assert_eq!(step(&data, Which::Newest, None).unwrap(), 20);
        assert_eq!(step(&data, last, None).unwrap(), 20);
        assert_eq!(step(&data, best, None).unwrap(), 10);
        assert_eq!(step(&data, Which::Step(10), None).unwrap(), 10);
        let ask: StepOfAlias = Box::new(|_, _| Some(20));
        assert_eq!(step(&data, best, Some(&ask)).unwrap(), 20);
        let miss = step(&data, Which::Step(11), None).unwrap_err();
        assert_eq!(miss.outcome, "the job has no checkpoint 11");
    }

    #[test]
    fn a_damaged_one_is_passed_over_unless_it_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let data = DataDir::open(temp.path()).unwrap();
        publish(&data, 10, 10);
        publish(&data, 20, 20);
        fs::write(data.checkpoint_dir(JOB, 20).join(WEIGHTS), "weights 2x").unwrap();
        assert_eq!(step(&data, Which::Newest, None).unwrap(), 10);
        let miss = step(&data, Which::Step(20), None).unwrap_err();
        assert_eq!(miss.fault.unwrap().0, ErrorCode::ModelInvalid);
        fs::remove_file(data.checkpoint_dir(JOB, 10).join("config.json")).unwrap();
        let miss = step(&data, Which::Newest, None).unwrap_err();
        assert!(miss.outcome.contains("no checkpoint of the job is whole"));
    }
}

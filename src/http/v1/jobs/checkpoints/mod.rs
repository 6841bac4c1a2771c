//! `/v1/jobs/{id}/checkpoints`: what a job made.

mod archive;
mod file;
mod list;
mod range;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::domain::{ErrorCode, JobId};
use crate::http::AppState;
use crate::http::extract::{JobPath, path_param};
use crate::http::problem::Problem;
use crate::store::{Job, StoredCheckpoint};

/// The routes.
pub fn routes() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list::list_checkpoints))
        .routes(routes!(file::get_checkpoint_file))
        .routes(routes!(archive::get_checkpoint_archive))
}

/// A checkpoint named by the path.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Path)]
pub struct CheckpointPath {
    /// The job's id.
    id: JobId,
    /// Its step, or `best`, or `last`. `best` goes by the job's `metric_for_best_model`; without an evaluation
    /// it is the trained model, before the job has ended the last checkpoint.
    #[param(example = "best")]
    checkpoint: String,
}

impl<S: Send + Sync> FromRequestParts<S> for CheckpointPath {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let JobPath(id) = JobPath::from_request_parts(parts, state).await?;
        let checkpoint = path_param(parts, state, "checkpoint").await?;
        Ok(Self { id, checkpoint })
    }
}

impl CheckpointPath {
    /// The checkpoint, or 404.
    async fn find(&self, state: &AppState) -> Result<StoredCheckpoint, Problem> {
        let job = super::find(state, self.id).await?;
        let mut all = state.store.checkpoints(self.id).await?;
        let chosen = choose(&job, &all, &self.checkpoint);
        match chosen.and_then(|step| all.iter().position(|c| c.record.step == step)) {
            Some(index) => Ok(all.swap_remove(index)),
            None => {
                let steps: Vec<String> = all.iter().map(|c| c.record.step.to_string()).collect();
                let there = if steps.is_empty() {
                    "it has none".to_owned()
                } else {
                    format!("it has {}", steps.join(", "))
                };
                let wanted = &self.checkpoint;
                let detail = format!("the job has no checkpoint `{wanted}`; {there}");
                Err(Problem::new(ErrorCode::CheckpointNotFound, detail))
            }
        }
    }
}

/// The step that a name means.
fn choose(job: &Job, all: &[StoredCheckpoint], name: &str) -> Option<u64> {
    let last = || all.last().map(|c| c.record.step);
    match name {
        "last" => last(),
        "best" => best_step(job, all).or(job.model_step).or_else(last),
        number => number.parse().ok(),
    }
}

/// Step of the checkpoint with the best `metric_for_best_model`; the first of equals, as in HF's Trainer.
/// `None` when no checkpoint has that metric.
fn best_step(job: &Job, all: &[StoredCheckpoint]) -> Option<u64> {
    let args = &job.spec.training_args;
    let (name, larger) = (args.best_metric(), args.larger_is_better());
    let mut best: Option<(u64, f64)> = None;
    for StoredCheckpoint { record, .. } in all {
        let Some(&value) = record.metrics.get(&name).filter(|v| v.is_finite()) else {
            continue;
        };
        let better = best.is_none_or(|(_, top)| if larger { value > top } else { value < top });
        if better {
            best = Some((record.step, value));
        }
    }
    best.map(|(step, _)| step)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::domain::{CheckpointRecord, JobSpec, Status, Timestamp};

    fn job(metric: Option<&str>) -> Job {
        let spec = json!({"model": "m", "task": "sequence_classification",
            "dataset": {"train": Uuid::nil().to_string()}, "training_args": {"metric_for_best_model": metric}});
        Job {
            id: JobId(Uuid::nil()),
            status: Status::Running,
            phase: None,
            spec: JobSpec::parse(&spec).unwrap(),
            progress: None,
            metrics: BTreeMap::new(),
            error: None,
            attempt: 1,
            device: None,
            cancel_requested: false,
            pause_requested: false,
            not_before: None,
            model_step: None,
            created_at: Timestamp(0),
            started_at: None,
            finished_at: None,
        }
    }

    fn checkpoint(step: u64, metrics: &[(&str, f64)]) -> StoredCheckpoint {
        StoredCheckpoint {
            record: CheckpointRecord {
                step,
                epoch: 0.0,
                metrics: metrics.iter().map(|&(k, v)| (k.to_owned(), v)).collect(),
                resumable: true,
                files: Vec::new(),
            },
            attempt: 1,
            created_at: Timestamp(0),
        }
    }

    #[test]
    fn best_goes_by_the_specs_metric_and_direction() {
        let all = [
            checkpoint(1, &[("eval_loss", 0.5), ("eval_accuracy", 0.7)]),
            checkpoint(2, &[("eval_loss", 0.3), ("eval_accuracy", 0.8)]),
            checkpoint(3, &[("eval_loss", 0.4), ("eval_accuracy", 0.8)]),
        ];
        assert_eq!(choose(&job(None), &all, "best"), Some(2));
        assert_eq!(choose(&job(Some("accuracy")), &all, "best"), Some(2));
        assert_eq!(best_step(&job(Some("f1")), &all), None);
        assert_eq!(choose(&job(None), &all, "last"), Some(3));
        assert_eq!(choose(&job(None), &all, "1"), Some(1));
        assert_eq!(choose(&job(None), &all, "first"), None);
    }

    #[test]
    fn without_an_evaluation_best_is_the_model_or_else_the_last() {
        let all = [checkpoint(1, &[]), checkpoint(2, &[])];
        let mut job = job(None);
        assert_eq!(choose(&job, &all, "best"), Some(2));
        job.model_step = Some(1);
        assert_eq!(choose(&job, &all, "best"), Some(1));
        assert_eq!(choose(&job, &[], "last"), None);
    }
}

//! `GET /v1/jobs/{id}/checkpoints`

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::best_step;
use crate::domain::{FileRecord, Timestamp};
use crate::http::extract::JobPath;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, NoQuery};
use crate::http::{AppState, Page};
use crate::store::StoredCheckpoint;

/// A complete checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = Checkpoint)]
pub struct CheckpointView {
    /// `global_step` at which it was taken.
    pub step: u64,
    /// Epoch at which it was taken, fractional.
    pub epoch: f64,
    /// The newest evaluation metrics at that step, by HF name.
    #[schema(example = json!({"eval_loss": 0.28, "eval_accuracy": 0.93}))]
    pub metrics: BTreeMap<String, f64>,
    /// Whether training can go on from it (it holds the optimizer's state).
    pub resumable: bool,
    /// Whether it has the best `metric_for_best_model`.
    pub best: bool,
    /// Whether it is the newest.
    pub last: bool,
    /// Length of all its files in bytes.
    pub size_bytes: u64,
    /// Its files.
    pub files: Vec<FileRecord>,
    /// When it was published.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// List a job's checkpoints
///
/// In order of step. Each is a Hugging Face model folder: `from_pretrained` loads it.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/checkpoints",
    tag = "checkpoints",
    params(JobPath),
    responses(
        (status = 200, description = "All of them; there is one page", body = Page<CheckpointView>),
        (status = 404, description = "`job_not_found`"),
    ),
)]
pub async fn list_checkpoints(
    State(state): State<AppState>,
    JobPath(id): JobPath,
    _: ApiQuery<NoQuery>,
) -> Result<Json<Page<CheckpointView>>, Problem> {
    let job = crate::http::v1::jobs::find(&state, id).await?;
    let all = state.store.checkpoints(id).await?;
    let best = best_step(&job, &all);
    let last = all.last().map(|c| c.record.step);
    let data = all.into_iter().map(|c| view(c, best, last)).collect();
    Ok(Json(Page::whole(data)))
}

fn view(stored: StoredCheckpoint, best: Option<u64>, last: Option<u64>) -> CheckpointView {
    let record = stored.record;
    CheckpointView {
        best: best == Some(record.step),
        last: last == Some(record.step),
        size_bytes: record.files.iter().map(|f| f.size_bytes).sum(),
        step: record.step,
        epoch: record.epoch,
        metrics: record.metrics,
        resumable: record.resumable,
        files: record.files,
        created_at: stored.created_at,
    }
}

#[cfg(test)]
mod tests {
    use crate::http::testing::TestApp;

    #[tokio::test]
    async fn checkpoints_come_with_sizes_best_and_last() {
        let app = TestApp::start().await;
        app.queued_job().await;
        let mut trainer = app.claim().await;
        let path = format!("/v1/jobs/{}/checkpoints", trainer.job_id);
        assert_eq!(
            app.get(&path).await.json()["data"]
                .as_array()
                .unwrap()
                .len(),
            0
        );
        let files = [("config.json", "{}"), ("model.safetensors", "0123456789")];
        trainer
            .report(vec![
                TestApp::checkpoint_with(2, &[("eval_loss", 0.2)], &files),
                TestApp::checkpoint_with(4, &[("eval_loss", 0.3)], &files),
            ])
            .await;
        let page = app.get(&path).await.json();
        assert_eq!(page["has_more"], false);
        let data = page["data"].as_array().unwrap();
        let flags: Vec<_> = data
            .iter()
            .map(|c| (c["step"].as_u64(), c["best"].as_bool(), c["last"].as_bool()))
            .collect();
        assert_eq!(
            flags,
            [
                (Some(2), Some(true), Some(false)),
                (Some(4), Some(false), Some(true))
            ]
        );
        assert_eq!(data[0]["size_bytes"], 12);
        assert_eq!(data[0]["files"][1]["path"], "model.safetensors");
    }
}

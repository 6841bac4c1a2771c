//! `GET /internal/attempts/{id}/spec`

use axum::Json;
use axum::extract::State;

use super::{Caller, refusal};
use crate::domain::{AttemptSpec, DatasetLocation};
use crate::http::AppState;
use crate::http::problem::Problem;
use crate::store::Dataset;

/// All that a trainer needs to do its work.
pub async fn get_spec(
    State(state): State<AppState>,
    caller: Caller,
) -> Result<Json<AttemptSpec>, Problem> {
    let input = state
        .store
        .attempt_input(caller.attempt, &caller.token)
        .await
        .map_err(refusal)?;
    Ok(Json(AttemptSpec {
        attempt_id: caller.attempt,
        attempt: input.attempt,
        job_id: input.job_id,
        spec: input.spec,
        train: location(&state, input.train),
        eval: input.eval.map(|dataset| location(&state, dataset)),
        micro_batch_divisor: input.micro_batch_divisor,
        gpu_energy_j: input.metrics.get("gpu_energy_j").copied().unwrap_or(0.0),
        data_dir: state.data_dir.root().to_owned(),
        heartbeat_ms: state.limits.heartbeat_ms,
    }))
}

fn location(state: &AppState, dataset: Dataset) -> DatasetLocation {
    DatasetLocation {
        path: state
            .data_dir
            .dataset_file(dataset.id, dataset.layout.format),
        layout: dataset.layout,
        sha256: dataset.sha256,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use crate::domain::{AttemptSpec, Event};
    use crate::http::testing::TestApp;

    #[tokio::test]
    async fn the_trainer_learns_what_to_do_and_where() {
        let app = TestApp::start().await;
        let job = app.queued_job().await;
        let trainer = app.claim().await;
        let answer = trainer.get_spec().await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
        let spec: AttemptSpec = serde_json::from_value(answer.json()).unwrap();
        assert_eq!(spec.job_id.to_string(), job["id"].as_str().unwrap());
        assert_eq!(spec.attempt, 1);
        assert_eq!(spec.gpu_energy_j, 0.0);
        assert_eq!(spec.train.layout.columns, ["text", "label"]);
        assert!(spec.train.path.is_file());
        assert_eq!(spec.eval, None);
        assert_eq!(spec.data_dir, app.state.data_dir.root());
    }

    #[tokio::test]
    async fn the_next_trainer_learns_what_the_job_has_cost() {
        let app = TestApp::start().await;
        app.queued_job().await;
        let mut trainer = app.claim().await;
        let spent = TestApp::metrics(3, &[("gpu_energy_j", 1234.5)]);
        let reason = "stop".to_owned();
        trainer
            .report(vec![spent, Event::Requeued { reason }])
            .await;
        let answer = app.claim().await.get_spec().await;
        assert_eq!(answer.json()["gpu_energy_j"], 1234.5);
    }

    #[tokio::test]
    async fn without_the_right_token_everyone_is_fenced() {
        let app = TestApp::start().await;
        app.queued_job().await;
        let trainer = app.claim().await;
        let path = format!("/internal/attempts/{}/spec", trainer.attempt_id);
        let wrong = ("authorization", "Bearer 0000");
        for (path, headers) in [
            (path.as_str(), &[][..]),
            (path.as_str(), &[wrong]),
            ("/internal/attempts/nonsense/spec", &[wrong]),
            (
                "/internal/attempts/01990000-0000-7000-8000-0000000000ff/spec",
                &[wrong],
            ),
        ] {
            app.request("GET", path, headers, "")
                .await
                .assert_problem(StatusCode::CONFLICT, "attempt_fenced");
        }
    }
}

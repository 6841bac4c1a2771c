//! `GET /v1/jobs/{id}`

use axum::Json;
use axum::extract::State;

use super::view::{JobView, view};
use crate::http::AppState;
use crate::http::extract::JobPath;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, NoQuery};

/// Get a job
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}",
    tag = "jobs",
    params(JobPath),
    responses(
        (status = 200, description = "The job", body = JobView),
        (status = 404, description = "`job_not_found`"),
    ),
)]
pub async fn get_job(
    State(state): State<AppState>,
    JobPath(id): JobPath,
    _: ApiQuery<NoQuery>,
) -> Result<Json<JobView>, Problem> {
    let job = super::find(&state, id).await?;
    view(&state, job).await.map(Json)
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::{Value, json};

    use crate::domain::{Device, Event, Placement};
    use crate::http::testing::TestApp;

    #[tokio::test]
    async fn a_job_is_seen_from_queue_to_model() {
        let app = TestApp::start().await;
        let queued = app.queued_job().await;
        assert_eq!(queued["status"], "queued");
        assert_eq!(queued["queue_position"], 1);
        let path = format!("/v1/jobs/{}", queued["id"].as_str().unwrap());
        assert_eq!(app.get(&path).await.json(), queued);

        let mut trainer = app.claim().await;
        trainer.report(vec![TestApp::checkpoint(4, &[])]).await;
        let running = app.get(&path).await.json();
        assert_eq!(running["status"], "running");
        assert_eq!(running["queue_position"], Value::Null);
        assert_eq!(running["attempt"], 1);
        assert_eq!(queued["device"], Value::Null);
        assert_eq!(running["device"], json!({"type": "cpu"}));
        assert_eq!(running["model_dir"], Value::Null);

        trainer
            .report(vec![Event::Succeeded { model_step: 4 }])
            .await;
        let done = app.get(&path).await.json();
        assert_eq!(done["status"], "succeeded");
        assert_eq!(done["model_step"], 4);
        let dir = done["model_dir"].as_str().unwrap();
        assert!(dir.ends_with("checkpoints/checkpoint-4"), "{dir}");
        assert!(done["finished_at"].is_string());
        assert_eq!(done["error"], Value::Null);
        assert_eq!(done["metadata"], json!({"team": "support"}));
    }

    #[tokio::test]
    async fn a_job_says_which_card_it_is_on() {
        let app = TestApp::start().await;
        app.queued_job().await;
        let device = Device::Cuda {
            name: "NVIDIA H100".to_owned(),
            uuid: "GPU-1".to_owned(),
        };
        let placement = Placement {
            device,
            reserved_bytes: None,
        };
        let job = app.claim_for(placement).await.job_id;
        let view = app.get(&format!("/v1/jobs/{job}")).await.json();
        let device = json!({"type": "cuda", "name": "NVIDIA H100", "uuid": "GPU-1"});
        assert_eq!(view["device"], device);
        let events = app.get(&format!("/v1/jobs/{job}/events")).await.json();
        let started = json!({"attempt": 1, "device": device});
        assert_eq!(events["data"][1]["data"], started);
    }

    #[tokio::test]
    async fn unknown_ids_are_not_found() {
        let app = TestApp::start().await;
        for id in ["01990000-0000-7000-8000-0000000000ff", "nonsense"] {
            app.get(&format!("/v1/jobs/{id}"))
                .await
                .assert_problem(StatusCode::NOT_FOUND, "job_not_found");
        }
    }
}

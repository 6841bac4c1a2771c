//! `GET /v1/jobs/{id}/metrics`

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use crate::domain::Timestamp;
use crate::http::AppState;
use crate::http::extract::JobPath;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, FromQuery, QueryReader};
use crate::store::MetricPoint;

const MAX_NAMES: usize = 100;

/// Which series.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct GetMetrics {
    /// Names of the metrics, separated by commas; all when absent.
    #[param(value_type = Option<String>, example = "loss,eval_loss")]
    names: Vec<String>,
    /// Only values of this step and later.
    #[param(default = 0, required = false)]
    since_step: u64,
}

impl FromQuery for GetMetrics {
    fn from_query(query: &mut QueryReader) -> Self {
        let names = query.list("names");
        if names.len() > MAX_NAMES {
            let message = format!("`names` takes at most {MAX_NAMES} names");
            query.error("names", "out_of_range", message);
        }
        Self {
            names,
            since_step: query.optional("since_step").unwrap_or(0),
        }
    }
}

/// Whole series by metric name.
#[derive(Debug, Serialize, ToSchema)]
pub struct Metrics {
    /// Values in order of time, by name.
    pub data: BTreeMap<String, Vec<Point>>,
}

/// One value of a metric.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = MetricPoint)]
pub struct Point {
    /// `global_step` it belongs to.
    pub step: u64,
    /// Epochs done, fractional.
    pub epoch: f64,
    /// The value.
    pub value: f64,
    /// When it was measured.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

/// Get metric series
///
/// HF's names: `loss`, `grad_norm`, `learning_rate` while training, `eval_loss`, `eval_accuracy`, … after each
/// evaluation. On a GPU also, every ten seconds and at the end of an attempt: `gpu_utilization_percent` and
/// `gpu_power_w` (of the card, means since the last value), `gpu_memory_bytes` (the most that the job's trainer held since),
/// `gpu_energy_j` (of the job so far, over all attempts; several jobs on one card are charged equal parts).
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/metrics",
    tag = "observe",
    params(JobPath, GetMetrics),
    responses(
        (status = 200, description = "The series", body = Metrics),
        (status = 404, description = "`job_not_found`"),
    ),
)]
pub async fn get_metrics(
    State(state): State<AppState>,
    JobPath(id): JobPath,
    ApiQuery(query): ApiQuery<GetMetrics>,
) -> Result<Json<Metrics>, Problem> {
    super::find(&state, id).await?;
    let points = state
        .store
        .metric_points(id, &query.names, query.since_step)
        .await?;
    Ok(Json(Metrics {
        data: by_name(points),
    }))
}

fn by_name(points: Vec<MetricPoint>) -> BTreeMap<String, Vec<Point>> {
    let mut data: BTreeMap<String, Vec<Point>> = BTreeMap::new();
    for point in points {
        data.entry(point.name).or_default().push(Point {
            step: point.step,
            epoch: point.epoch,
            value: point.value,
            created_at: point.created_at,
        });
    }
    data
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::Value;

    use crate::http::testing::TestApp;

    fn values(series: &Value) -> Vec<(u64, f64)> {
        let points = series.as_array().unwrap();
        points
            .iter()
            .map(|p| (p["step"].as_u64().unwrap(), p["value"].as_f64().unwrap()))
            .collect()
    }

    #[tokio::test]
    async fn series_by_name_and_from_a_step() {
        let app = TestApp::start().await;
        app.queued_job().await;
        let mut trainer = app.claim().await;
        let log = |step, loss| TestApp::metrics(step, &[("loss", loss), ("grad_norm", 1.0)]);
        trainer
            .report(vec![
                log(1, 0.5),
                log(2, 0.25),
                TestApp::metrics(2, &[("eval_loss", 0.75)]),
            ])
            .await;
        let path = format!("/v1/jobs/{}/metrics", trainer.job_id);
        let all = app.get(&path).await.json();
        assert_eq!(all["data"].as_object().unwrap().len(), 3);
        assert_eq!(values(&all["data"]["loss"]), [(1, 0.5), (2, 0.25)]);
        assert!(all["data"]["loss"][0]["created_at"].is_string());
        let some = app
            .get(&format!("{path}?names=loss,eval_loss&since_step=2"))
            .await
            .json();
        assert_eq!(values(&some["data"]["loss"]), [(2, 0.25)]);
        assert_eq!(values(&some["data"]["eval_loss"]), [(2, 0.75)]);
        assert_eq!(some["data"].as_object().unwrap().len(), 2);
        app.get("/v1/jobs/01990000-0000-7000-8000-0000000000ff/metrics")
            .await
            .assert_problem(StatusCode::NOT_FOUND, "job_not_found");
    }
}

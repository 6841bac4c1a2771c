//! `PATCH /v1/jobs/{id}`

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::view::{JobView, view};
use crate::domain::{ErrorCode, JobSpec, ObjectReader};
use crate::http::AppState;
use crate::http::extract::{JobPath, JsonBody};
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, NoQuery};
use crate::store::{JobPatch, StoreError};

/// What to change; what is left out stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(
    dead_code,
    reason = "read by hand, so that every error comes with its pointer"
)]
pub struct UpdateJob {
    /// A new place in the queue, -100 to 100; only while the job is queued or paused.
    #[schema(minimum = -100, maximum = 100)]
    priority: Option<i32>,
    /// A new name.
    name: Option<String>,
    /// Replaces all pairs.
    metadata: Option<BTreeMap<String, String>>,
}

/// Change a job
///
/// Its priority while it waits; its name and metadata at any time.
#[utoipa::path(
    patch,
    path = "/v1/jobs/{id}",
    tag = "jobs",
    params(JobPath),
    request_body(content = UpdateJob, example = json!({"priority": 10})),
    responses(
        (status = 200, description = "The job as it stands now", body = JobView),
        (status = 400, description = "`invalid_json`, with `line`"),
        (status = 404, description = "`job_not_found`"),
        (status = 409, description = "`job_state_conflict`: a priority, and the job does not wait"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`validation_failed`"),
    ),
)]
pub async fn update_job(
    State(state): State<AppState>,
    JobPath(id): JobPath,
    _: ApiQuery<NoQuery>,
    JsonBody(body): JsonBody,
) -> Result<Json<JobView>, Problem> {
    let job = super::find(&state, id).await?;
    let patch = parse(&body, &job.spec)?;
    let job = match state.store.update_job(id, patch).await {
        Err(StoreError::StateConflict(status)) => {
            let detail = format!("the job is {status}; a priority can change only while it waits");
            return Err(Problem::new(ErrorCode::JobStateConflict, detail));
        }
        other => other.map_err(super::about(id))?,
    };
    (state.worker)();
    view(&state, job).await.map(Json)
}

/// Values are checked as those of a new spec are: by parsing the spec they would make.
fn parse(body: &Value, spec: &JobSpec) -> Result<JobPatch, Problem> {
    let mut reader = ObjectReader::new(body, "");
    let patch = JobPatch {
        priority: reader.optional("priority"),
        name: reader.optional("name"),
        metadata: reader.optional("metadata"),
    };
    let errors = reader.finish();
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    let mut changed = serde_json::to_value(spec).map_err(Problem::internal)?;
    for name in ["priority", "name", "metadata"] {
        if let Some(value) = body.get(name).filter(|value| !value.is_null()) {
            changed[name] = value.clone();
        }
    }
    JobSpec::parse(&changed).map_err(Problem::invalid)?;
    Ok(patch)
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::json;

    use crate::http::testing::{JSON, TestApp};

    #[tokio::test]
    async fn a_higher_priority_overtakes_and_equal_ones_keep_their_age() {
        let app = TestApp::start().await;
        let mut paths = Vec::new();
        for _ in 0..3 {
            let job = app.queued_job().await;
            paths.push(format!("/v1/jobs/{}", job["id"].as_str().unwrap()));
        }
        for path in [&paths[2], &paths[1]] {
            let body = json!({"priority": 5, "name": "urgent", "metadata": {"a": "b"}});
            let answer = app.request("PATCH", path, &JSON, body.to_string()).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.text());
            let job = answer.json();
            assert_eq!(
                (&job["priority"], &job["name"]),
                (&json!(5), &json!("urgent"))
            );
            assert_eq!(job["metadata"], json!({"a": "b"}));
        }
        for (path, position) in paths.iter().zip([3, 1, 2]) {
            assert_eq!(app.get(path).await.json()["queue_position"], position);
        }
        for path in [&paths[1], &paths[2], &paths[0]] {
            let claimed = app.claim().await;
            assert!(path.ends_with(&claimed.job_id.to_string()));
        }
        let late = app
            .request("PATCH", &paths[0], &JSON, "{\"priority\": 1}")
            .await;
        late.assert_problem(StatusCode::CONFLICT, "job_state_conflict");
        let named = app
            .request("PATCH", &paths[0], &JSON, "{\"name\": \"n\"}")
            .await;
        assert_eq!(named.status, StatusCode::OK);
    }

    #[tokio::test]
    async fn wrong_changes_are_refused_with_their_place() {
        let app = TestApp::start().await;
        let job = app.queued_job().await;
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        for (body, pointer) in [
            (json!({"priority": 101}), "/priority"),
            (json!({"priority": "high"}), "/priority"),
            (json!({"name": ""}), "/name"),
            (json!({"model": "x"}), "/model"),
            (json!({"metadata": {"k": 1}}), "/metadata"),
        ] {
            let answer = app.request("PATCH", &path, &JSON, body.to_string()).await;
            answer.assert_problem(StatusCode::UNPROCESSABLE_ENTITY, "validation_failed");
            assert_eq!(answer.pointers(), [pointer]);
        }
    }
}

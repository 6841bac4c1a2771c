//! `POST /v1/jobs/{id}/clone`

use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::Value;

use super::submit::{Submitted, submit};
use super::view::JobView;
use crate::domain::JobSpec;
use crate::http::AppState;
use crate::http::extract::{JobPath, JsonBody};
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, NoQuery};

/// Clone a job
///
/// Creates a new job with the spec of this one, changed by the body: a JSON Merge Patch (RFC 7396), in which
/// `null` sets a field back to its default. An empty object repeats the job as it was. Works on a job in any
/// state.
#[utoipa::path(
    post,
    path = "/v1/jobs/{id}/clone",
    tag = "jobs",
    params(
        JobPath,
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters, new for every new job"),
    ),
    request_body(
        content = Object,
        description = "What is different, in the shape of a job spec",
        example = json!({"training_args": {"learning_rate": 2e-5, "seed": 2}}),
    ),
    responses(
        (status = 201, description = "Queued", body = JobView, headers(
            ("location" = String, description = "Path of the new job"),
            ("idempotency-replayed" = String, description = "`true` when this key was answered before"),
        )),
        (status = 400, description = "`invalid_json`, with `line`"),
        (status = 404, description = "`job_not_found`"),
        (status = 409, description = "`idempotency_key_in_use`: the first request with this key is not done; try again"),
        (status = 415, description = "`unsupported_media_type`"),
        (status = 422, description = "`validation_failed`, `dataset_not_found`, `column_not_found` or `idempotency_key_reused`"),
    ),
)]
pub async fn clone_job(
    State(state): State<AppState>,
    JobPath(id): JobPath,
    _: ApiQuery<NoQuery>,
    headers: HeaderMap,
    JsonBody(patch): JsonBody,
) -> Result<Submitted, Problem> {
    let job = super::find(&state, id).await?;
    if !patch.is_object() {
        let message = "the body must be an object with what is different";
        return Err(Problem::invalid_field("", "invalid_type", message));
    }
    let mut spec = serde_json::to_value(&job.spec).map_err(Problem::internal)?;
    merge(&mut spec, patch);
    let spec = JobSpec::parse(&spec).map_err(Problem::invalid)?;
    submit(&state, &headers, spec).await
}

/// JSON Merge Patch (RFC 7396): objects are merged, `null` removes, everything else replaces.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(fields) = target else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            fields.shift_remove(&name);
        } else {
            merge(fields.entry(name).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::json;

    use super::merge;
    use crate::http::testing::{JSON, TestApp};

    #[test]
    fn merging_follows_the_rfc() {
        // From the table in RFC 7396, appendix A.
        for (target, patch, result) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": "b"}),
                json!({"b": "c"}),
                json!({"a": "b", "b": "c"}),
            ),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (
                json!({"a": {"b": "c"}}),
                json!({"a": {"b": "d", "c": null}}),
                json!({"a": {"b": "d"}}),
            ),
            (
                json!({}),
                json!({"a": {"bb": {"ccc": null}}}),
                json!({"a": {"bb": {}}}),
            ),
        ] {
            let mut merged = target;
            merge(&mut merged, patch);
            assert_eq!(merged, result);
        }
    }

    #[tokio::test]
    async fn a_clone_is_the_same_but_for_what_was_said() {
        let app = TestApp::start().await;
        let job = app.queued_job().await;
        let path = format!("/v1/jobs/{}/clone", job["id"].as_str().unwrap());
        let body = json!({"training_args": {"seed": 7}, "metadata": null, "max_runtime_s": 60});
        let headers = [JSON[0], ("idempotency-key", "c-1")];
        let answer = app.request("POST", &path, &headers, body.to_string()).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{}", answer.text());
        let clone = answer.json();
        assert_ne!(clone["id"], job["id"]);
        let mut expected = job["spec"].clone();
        expected["training_args"]["seed"] = json!(7);
        expected["metadata"] = json!({});
        expected["max_runtime_s"] = json!(60);
        assert_eq!(clone["spec"], expected);
        let again = app.request("POST", &path, &headers, body.to_string()).await;
        assert_eq!(again.json()["id"], clone["id"]);

        let wrong = app
            .request("POST", &path, &JSON, "{\"training_args\": {\"sede\": 1}}")
            .await;
        assert_eq!(wrong.pointers(), ["/training_args/sede"]);
        let wrong = app.request("POST", &path, &JSON, "[]").await;
        wrong.assert_problem(StatusCode::UNPROCESSABLE_ENTITY, "validation_failed");
    }
}

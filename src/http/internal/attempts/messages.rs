//! `POST /internal/attempts/{id}/messages`

use axum::Json;
use axum::extract::{Request, State};

use super::{Caller, refusal};
use crate::domain::{Command, MessagesRequest, MessagesResponse};
use crate::http::AppState;
use crate::http::extract::{body, invalid_json};
use crate::http::problem::Problem;

/// A batch of reports. Renews the lease and answers what to do next.
pub async fn post_messages(
    State(state): State<AppState>,
    caller: Caller,
    request: Request,
) -> Result<Json<MessagesResponse>, Problem> {
    let bytes = body(request, &state).await?;
    let batch: MessagesRequest = serde_json::from_slice(&bytes).map_err(|e| invalid_json(&e))?;
    let (lease_ms, messages) = (state.limits.lease_ms, batch.messages);
    let ends = messages.iter().any(|m| m.event.is_final());
    let mut answer = state
        .store
        .record_messages(caller.attempt, &caller.token, messages, lease_ms)
        .await
        .map_err(refusal)?;
    if ends {
        // A slot may be free now.
        (state.worker)();
    }
    // A trainer that an earlier server started is no child of this one: no signal, but this reaches it.
    if state.draining.is_cancelled() && answer.command == Command::Continue {
        answer.command = Command::Pause;
    }
    Ok(Json(answer))
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::json;

    use crate::domain::Event;
    use crate::http::testing::{JSON, TestApp};

    #[tokio::test]
    async fn batches_are_acknowledged_and_resending_is_harmless() {
        let app = TestApp::start().await;
        app.queued_job().await;
        let mut trainer = app.claim().await;
        let answer = trainer
            .report(vec![TestApp::metrics(1, &[("loss", 0.5)])])
            .await;
        assert_eq!(
            answer,
            json!({"acked_seq": 1, "command": "continue", "jobs_on_device": 1})
        );
        trainer.next_seq = 1;
        let answer = trainer
            .report(vec![TestApp::metrics(1, &[("loss", 0.5)])])
            .await;
        assert_eq!(answer["acked_seq"], 1);
        let events = app
            .get(&format!("/v1/jobs/{}/events", trainer.job_id))
            .await
            .json();
        let kinds = events["data"].as_array().unwrap().iter();
        assert_eq!(kinds.filter(|e| e["type"] == "metrics").count(), 1);
    }

    #[tokio::test]
    async fn a_draining_server_asks_trainers_to_save_and_leave() {
        let app = TestApp::start().await;
        let job = app.queued_job().await;
        let mut trainer = app.claim().await;
        app.state.draining.cancel();
        let answer = trainer
            .report(vec![TestApp::metrics(1, &[("loss", 0.5)])])
            .await;
        assert_eq!(
            answer,
            json!({"acked_seq": 1, "command": "pause", "jobs_on_device": 1})
        );
        // A cancel says more than a pause.
        let path = format!("/v1/jobs/{}/cancel", job["id"].as_str().unwrap());
        app.request("POST", &path, &[], "").await;
        let answer = trainer.report(vec![]).await;
        assert_eq!(answer["command"], "cancel");
    }

    #[tokio::test]
    async fn an_attempt_that_is_over_is_fenced() {
        let app = TestApp::start().await;
        app.queued_job().await;
        let mut trainer = app.claim().await;
        trainer.report(vec![Event::Cancelled {}]).await;
        let late = trainer
            .send(vec![TestApp::metrics(9, &[("loss", 0.1)])])
            .await;
        late.assert_problem(StatusCode::CONFLICT, "attempt_fenced");
        trainer
            .get_spec()
            .await
            .assert_problem(StatusCode::CONFLICT, "attempt_fenced");
    }

    #[tokio::test]
    async fn a_batch_must_be_one() {
        let app = TestApp::start().await;
        app.queued_job().await;
        let trainer = app.claim().await;
        let path = format!("/internal/attempts/{}/messages", trainer.attempt_id);
        let token = trainer.authorization();
        let headers = [JSON[0], ("authorization", token.as_str())];
        let answer = app
            .request("POST", &path, &headers, "{\"messages\": [1]}")
            .await;
        answer.assert_problem(StatusCode::BAD_REQUEST, "invalid_json");
    }
}

//! `GET /v1/jobs/{id}/events`: a page as JSON, or a live stream (SSE).

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::stream;
use crate::domain::{ErrorCode, Event, JobId, Timestamp};
use crate::http::extract::JobPath;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, FromQuery, QueryReader};
use crate::http::{AppState, Page};
use crate::store::StoredEvent;

/// Which events.
#[derive(Debug, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct ListEvents {
    /// Only events with a larger `seq`. For a stream, `Last-Event-ID` comes first.
    #[param(minimum = 0, value_type = Option<i64>)]
    after: Option<u64>,
    /// Items per page; a stream has no pages.
    #[param(minimum = 1, maximum = 1000, default = 100, required = false)]
    limit: u32,
}

impl FromQuery for ListEvents {
    fn from_query(query: &mut QueryReader) -> Self {
        Self {
            after: query.optional("after"),
            limit: query.number("limit", 100, 1..=1000),
        }
    }
}

/// One thing that happened to a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = JobEvent)]
pub struct EventView {
    /// Counts up from 1 within the job, without gaps.
    pub seq: i64,
    /// When it was stored.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// The attempt it happened in; `null` for what the server did.
    #[schema(required)]
    pub attempt: Option<u32>,
    /// `type` and `data`.
    #[serde(flatten)]
    pub event: Event,
}

impl From<StoredEvent> for EventView {
    fn from(stored: StoredEvent) -> Self {
        Self {
            seq: stored.seq,
            created_at: stored.created_at,
            attempt: stored.attempt,
            event: stored.event,
        }
    }
}

/// List or follow a job's events
///
/// Answers a page, oldest first. With `Accept: text/event-stream` it answers a live stream instead: `id` is
/// `seq`, `event` is `type`, `data` is the same object as in the page. The stream begins after `Last-Event-ID`
/// (or `after`), so a client that reconnects misses nothing and sees nothing twice. Between events come
/// `progress` snapshots without an id, and comments every 15 s. It ends after `succeeded`, `failed` or
/// `cancelled`.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/events",
    tag = "observe",
    params(
        JobPath,
        ListEvents,
        ("Last-Event-ID" = Option<i64>, Header, description = "The last `seq` seen, sent by SSE clients when they reconnect"),
    ),
    responses(
        (status = 200, description = "One page, or the stream", content(
            (Page<EventView> = "application/json"),
            (String = "text/event-stream", example = "id: 3\nevent: metrics\ndata: {\"seq\":3,\"created_at\":\"2026-11-18T11:06:40.123Z\",\"attempt\":1,\"type\":\"metrics\",\"data\":{\"step\":10,\"epoch\":0.5,\"values\":{\"loss\":0.4}}}\n\n"),
        )),
        (status = 404, description = "`job_not_found`"),
        (status = 503, description = "`unavailable`: too many open streams of this job; see `Retry-After`"),
    ),
)]
pub async fn list_events(
    State(state): State<AppState>,
    JobPath(id): JobPath,
    ApiQuery(query): ApiQuery<ListEvents>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    if wants_stream(&headers) {
        let after = last_event_id(&headers)?.or(query.after);
        return follow(&state, id, cursor(after)).await;
    }
    super::find(&state, id).await?;
    let found = state
        .store
        .events(id, cursor(query.after), query.limit + 1)
        .await?;
    let page = Page::new(found, query.limit, |event| event.seq.to_string());
    Ok(Json(page.map(EventView::from)).into_response())
}

async fn follow(state: &AppState, id: JobId, after: i64) -> Result<Response, Problem> {
    let limit = state.limits.subscribers_per_job;
    let Some(subscription) = state.subscribers.subscribe(id, limit) else {
        let detail = format!("{limit} streams of this job are open; try again later");
        let problem = Problem::new(ErrorCode::Unavailable, detail);
        return Ok(([(header::RETRY_AFTER, "5")], problem).into_response());
    };
    // Before the first look at the tables: what is committed between that look and a later subscription
    // would be seen only with the next event, or never.
    let wake = state.store.subscribe(id);
    super::find(state, id).await?;
    let follower = stream::Follower::new(state, id, after, wake, subscription);
    Ok(stream::response(follower))
}

fn cursor(after: Option<u64>) -> i64 {
    i64::try_from(after.unwrap_or(0)).unwrap_or(i64::MAX)
}

fn wants_stream(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().any(|value| {
        let types = value.to_str().unwrap_or_default().split(',');
        types.into_iter().any(|t| {
            let essence = t.split(';').next().unwrap_or_default();
            essence.trim().eq_ignore_ascii_case("text/event-stream")
        })
    })
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get("last-event-id") else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or("?").trim();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let message = "`Last-Event-ID` must be the `id` of an event of this stream";
        Problem::invalid_field("/headers/last-event-id", "invalid_type", message)
    })
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use serde_json::{Value, json};

    use crate::domain::Event;
    use crate::http::testing::TestApp;

    #[tokio::test]
    async fn pages_are_oldest_first_and_continue() {
        let app = TestApp::start().await;
        app.queued_job().await;
        let mut trainer = app.claim().await;
        trainer
            .report(vec![TestApp::metrics(1, &[("loss", 0.5)])])
            .await;
        let path = format!("/v1/jobs/{}/events", trainer.job_id);
        let all = app.get(&path).await.json();
        let all = all["data"].as_array().unwrap();
        let seqs: Vec<i64> = all.iter().map(|e| e["seq"].as_i64().unwrap()).collect();
        assert_eq!(seqs, (1..=seqs.len() as i64).collect::<Vec<_>>());
        assert_eq!(all[0]["type"], "queued");
        assert_eq!(all[0]["attempt"], Value::Null);
        let last = all.last().unwrap();
        assert_eq!(last["type"], "metrics");
        assert_eq!(last["attempt"], 1);
        assert_eq!(
            last["data"],
            json!({"step": 1, "epoch": 1.0, "values": {"loss": 0.5}})
        );

        let first = app.get(&format!("{path}?limit=1")).await.json();
        assert_eq!(first["data"], json!([all[0]]));
        assert_eq!(first["next_cursor"], "1");
        let rest = app.get(&format!("{path}?after=1")).await.json();
        assert_eq!(rest["data"].as_array().unwrap().as_slice(), &all[1..]);
        assert_eq!(rest["has_more"], false);
    }

    #[tokio::test]
    async fn wrong_cursors_and_jobs_are_refused() {
        let app = TestApp::start().await;
        let job = app.queued_job().await;
        let path = format!("/v1/jobs/{}/events", job["id"].as_str().unwrap());
        let answer = app.get(&format!("{path}?after=-1&limit=1001")).await;
        assert_eq!(answer.pointers(), ["/query/after", "/query/limit"]);
        let sse = [("accept", "text/event-stream"), ("last-event-id", "abc")];
        let answer = app.request("GET", &path, &sse, "").await;
        assert_eq!(answer.pointers(), ["/headers/last-event-id"]);
        let other = "/v1/jobs/01990000-0000-7000-8000-0000000000ff/events";
        for headers in [&sse[..1], &[]] {
            app.request("GET", other, headers, "")
                .await
                .assert_problem(StatusCode::NOT_FOUND, "job_not_found");
        }
    }

    #[tokio::test]
    async fn a_whole_life_is_streamed_and_the_stream_ends() {
        let app = TestApp::start().await;
        app.queued_job().await;
        let mut trainer = app.claim().await;
        trainer
            .report(vec![TestApp::metrics(1, &[("loss", 0.5)])])
            .await;
        trainer.report(vec![Event::Cancelled {}]).await;
        let path = format!("/v1/jobs/{}/events", trainer.job_id);
        let sse = [("accept", "text/html, text/event-stream;q=0.9")];
        let answer = app.request("GET", &path, &sse, "").await;
        assert_eq!(answer.headers["content-type"], "text/event-stream");
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert_eq!(answer.headers["x-accel-buffering"], "no");
        let text = answer.text();
        assert!(text.starts_with("retry: 2000\n"), "{text}");
        assert!(
            text.contains("id: 1\n") && text.contains("event: queued\n"),
            "{text}"
        );
        let last = text.trim_end().rsplit("\n\n").next().unwrap();
        assert!(last.contains("event: cancelled"), "{last}");
        let data = last.lines().find_map(|l| l.strip_prefix("data: ")).unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], "cancelled");

        // Resumed in the middle, and after the end.
        let resumed = [sse[0], ("last-event-id", "1")];
        let answer = app
            .request("GET", &format!("{path}?after=0"), &resumed, "")
            .await;
        assert!(!answer.text().contains("id: 1\n") && answer.text().contains("id: 2\n"));
        let end = data["seq"].to_string();
        let over = [sse[0], ("last-event-id", end.as_str())];
        let answer = app.request("GET", &path, &over, "").await;
        assert!(!answer.text().contains("data:"), "{}", answer.text());
    }
}

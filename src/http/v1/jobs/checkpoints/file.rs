//! `GET /v1/jobs/{id}/checkpoints/{checkpoint}/files/{path}`

use std::io::{self, SeekFrom};
use std::path::Path;

use axum::body::Body;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::CheckpointPath;
use super::range::{Wanted, wanted};
use crate::artifacts::{self, DataDir};
use crate::domain::{ErrorCode, FileRecord, JobId};
use crate::http::AppState;
use crate::http::extract::path_param;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, NoQuery};

/// Read from disk and sent at once.
pub const CHUNK_BYTES: usize = 64 << 10;

/// The file's path in the checkpoint.
#[derive(Debug)]
pub struct FilePath(String);

impl<S: Send + Sync> FromRequestParts<S> for FilePath {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        path_param(parts, state, "path").await.map(Self)
    }
}

/// Get a file of a checkpoint
///
/// The file's SHA-256 is its `ETag`, so `If-None-Match` and `If-Range` work. One byte range is answered with 206;
/// downloads can be resumed. `HEAD` answers the headers only.
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/checkpoints/{checkpoint}/files/{*path}",
    tag = "checkpoints",
    params(
        CheckpointPath,
        ("path" = String, Path, description = "One of the checkpoint's `files`", example = "model.safetensors"),
        ("Range" = Option<String>, Header, description = "`bytes=START-END`, `bytes=START-` or `bytes=-LAST`"),
        ("If-None-Match" = Option<String>, Header, description = "An `ETag` seen before"),
    ),
    responses(
        (status = 200, description = "The file", body = Vec<u8>, content_type = "application/octet-stream",
            headers(("etag" = String, description = "SHA-256 of the file, quoted"))),
        (status = 206, description = "The range", body = Vec<u8>, content_type = "application/octet-stream",
            headers(("content-range" = String, description = "`bytes START-END/SIZE`"))),
        (status = 304, description = "The file has not changed"),
        (status = 404, description = "`job_not_found` or `checkpoint_not_found`"),
        (status = 416, description = "`range_not_satisfiable`"),
    ),
)]
pub async fn get_checkpoint_file(
    State(state): State<AppState>,
    checkpoint: CheckpointPath,
    FilePath(path): FilePath,
    _: ApiQuery<NoQuery>,
    method: Method,
    mut headers: HeaderMap,
) -> Result<Response, Problem> {
    let found = checkpoint.find(&state).await?;
    // Only what the record lists: no path of the client's ever reaches the disk.
    let record = found.record.files.iter().find(|f| f.path == path);
    let record = record.ok_or_else(|| file_not_found(&path))?;
    let file = open(&state.data_dir, checkpoint.id, found.record.step, record).await?;

    let size = record.size_bytes;
    let etag = format!("\"{}\"", record.sha256);
    if method == Method::HEAD {
        // Ranges are defined for GET only.
        headers.remove(header::RANGE);
    }
    let mut response = match wanted(&headers, &etag, size) {
        Wanted::Nothing => StatusCode::NOT_MODIFIED.into_response(),
        Wanted::Whole => content(file, 0, size).await?,
        Wanted::Part { start, len } => {
            let mut response = content(file, start, len).await?;
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let last = start + len - 1;
            set(
                &mut response,
                header::CONTENT_RANGE,
                &format!("bytes {start}-{last}/{size}"),
            );
            response
        }
        Wanted::Unsatisfiable => return Ok(unsatisfiable(size)),
    };
    set(&mut response, header::ETAG, &etag);
    set(&mut response, header::ACCEPT_RANGES, "bytes");
    set(&mut response, header::CACHE_CONTROL, "no-cache");
    if response.status() != StatusCode::NOT_MODIFIED {
        set(&mut response, header::CONTENT_TYPE, content_type(&path));
    }
    Ok(response)
}

/// Opens a file of a checkpoint. One that is not as recorded is not handed out: the checkpoint may have just
/// been removed by `save_total_limit`.
pub async fn open(
    data_dir: &DataDir,
    job: JobId,
    step: u64,
    record: &FileRecord,
) -> Result<File, Problem> {
    // The path comes from a trainer's record; one gone wrong must not make the server hand out other files.
    if !artifacts::is_plain(Path::new(&record.path)) {
        return Err(file_not_found(&record.path));
    }
    let path = data_dir.checkpoint_dir(job, step).join(&record.path);
    let failed = |cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound => file_not_found(&record.path),
        _ => Problem::io("read a checkpoint", &cause),
    };
    let file = File::open(&path).await.map_err(failed)?;
    let found = file.metadata().await.map_err(failed)?;
    if !found.is_file() || found.len() != record.size_bytes {
        let cause = format!("{} is not as recorded", path.display());
        return Err(Problem::internal(cause));
    }
    Ok(file)
}

async fn content(mut file: File, start: u64, len: u64) -> Result<Response, Problem> {
    if start > 0 {
        let moved = file.seek(SeekFrom::Start(start)).await;
        moved.map_err(|e| Problem::io("read a checkpoint", &e))?;
    }
    let chunks = ReaderStream::with_capacity(file.take(len), CHUNK_BYTES);
    let mut response = Body::from_stream(chunks).into_response();
    set(&mut response, header::CONTENT_LENGTH, &len.to_string());
    Ok(response)
}

fn unsatisfiable(size: u64) -> Response {
    let detail = format!("the file has {size} bytes");
    let problem = Problem::new(ErrorCode::RangeNotSatisfiable, detail);
    let range = [(header::CONTENT_RANGE, format!("bytes */{size}"))];
    (range, problem).into_response()
}

fn file_not_found(path: &str) -> Problem {
    let detail = format!("the checkpoint has no file `{path}`");
    Problem::new(ErrorCode::CheckpointNotFound, detail).hint("its list of `files` names them")
}

fn set(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

fn content_type(path: &str) -> &'static str {
    match path.rsplit_once('.').map(|(_, extension)| extension) {
        Some("json") => "application/json",
        Some("md") => "text/markdown; charset=utf-8",
        Some("txt") => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use crate::http::testing::TestApp;

    const FILES: [(&str, &str); 3] = [
        ("config.json", "{}"),
        ("model.safetensors", "0123456789"),
        ("1_Pooling/config.json", "[]"),
    ];

    /// A job with a checkpoint at step 3; its `files` URL.
    async fn published(app: &TestApp) -> String {
        app.queued_job().await;
        let mut trainer = app.claim().await;
        trainer
            .report(vec![TestApp::checkpoint_with(3, &[], &FILES)])
            .await;
        app.write_checkpoint(trainer.job_id, 3, &FILES);
        format!("/v1/jobs/{}/checkpoints/3/files", trainer.job_id)
    }

    #[tokio::test]
    async fn whole_part_and_unchanged() {
        let app = TestApp::start().await;
        let files = published(&app).await;
        let path = format!("{files}/model.safetensors");
        let whole = app.get(&path).await;
        assert_eq!(whole.status, StatusCode::OK);
        assert_eq!(whole.text(), "0123456789");
        assert_eq!(whole.headers["content-length"], "10");
        assert_eq!(whole.headers["accept-ranges"], "bytes");
        assert_eq!(whole.headers["content-type"], "application/octet-stream");
        let etag = whole.headers["etag"].to_str().unwrap();
        assert_eq!(etag.len(), 66);

        let part = app
            .request("GET", &path, &[("range", "bytes=2-4")], "")
            .await;
        assert_eq!(part.status, StatusCode::PARTIAL_CONTENT);
        assert_eq!(part.text(), "234");
        assert_eq!(part.headers["content-range"], "bytes 2-4/10");
        assert_eq!(part.headers["content-length"], "3");

        let beyond = app
            .request("GET", &path, &[("range", "bytes=10-")], "")
            .await;
        beyond.assert_problem(StatusCode::RANGE_NOT_SATISFIABLE, "range_not_satisfiable");
        assert_eq!(beyond.headers["content-range"], "bytes */10");

        let same = app
            .request("GET", &path, &[("if-none-match", etag)], "")
            .await;
        assert_eq!(same.status, StatusCode::NOT_MODIFIED);
        assert_eq!(same.headers["etag"], etag);
        assert_eq!(same.text(), "");

        let head = app
            .request("HEAD", &path, &[("range", "bytes=2-4")], "")
            .await;
        assert_eq!(head.status, StatusCode::OK);
        assert_eq!(head.headers["content-length"], "10");
        assert_eq!(head.text(), "");
    }

    #[tokio::test]
    async fn names_and_paths_must_exist() {
        let app = TestApp::start().await;
        let files = published(&app).await;
        let config = app.get(&format!("{files}/config.json")).await;
        assert_eq!(config.headers["content-type"], "application/json");
        let nested = app.get(&format!("{files}/1_Pooling/config.json")).await;
        assert_eq!(nested.text(), "[]");
        for alias in ["best", "last"] {
            let path = format!("{files}/config.json").replace("/3/", &format!("/{alias}/"));
            assert_eq!(app.get(&path).await.text(), "{}", "{alias}");
        }
        for path in [
            format!("{files}/optimizer.pt"),
            format!("{files}/..%2f..%2fchandler.db"),
            format!("{files}/%2e%2e/%2e%2e/chandler.db"),
            format!("{files}//etc/passwd"),
            format!("{files}/config.json").replace("/3/", "/4/"),
            format!("{files}/config.json").replace("/3/", "/worst/"),
        ] {
            app.get(&path)
                .await
                .assert_problem(StatusCode::NOT_FOUND, "checkpoint_not_found");
        }
    }

    #[tokio::test]
    async fn a_record_cannot_make_the_server_hand_out_other_files() {
        let app = TestApp::start().await;
        app.queued_job().await;
        let mut trainer = app.claim().await;
        let secret = [("../../../../secret", "s")];
        trainer
            .report(vec![TestApp::checkpoint_with(3, &[], &secret)])
            .await;
        app.write_checkpoint(trainer.job_id, 3, &[("config.json", "{}")]);
        std::fs::write(app.state.data_dir.root().join("secret"), "s").unwrap();
        let files = format!("/v1/jobs/{}/checkpoints/3/files", trainer.job_id);
        app.get(&format!("{files}/..%2f..%2f..%2f..%2fsecret"))
            .await
            .assert_problem(StatusCode::NOT_FOUND, "checkpoint_not_found");
    }

    #[tokio::test]
    async fn a_file_that_is_not_as_recorded_is_not_handed_out() {
        let app = TestApp::start().await;
        let files = published(&app).await;
        let job = files.split('/').nth(3).unwrap().parse().unwrap();
        app.write_checkpoint(job, 3, &[("config.json", "{ }")]);
        app.get(&format!("{files}/config.json"))
            .await
            .assert_problem(StatusCode::INTERNAL_SERVER_ERROR, "internal_error");
        std::fs::remove_dir_all(app.state.data_dir.root().join("jobs")).unwrap();
        app.get(&format!("{files}/config.json"))
            .await
            .assert_problem(StatusCode::NOT_FOUND, "checkpoint_not_found");
    }
}

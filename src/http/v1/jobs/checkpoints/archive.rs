//! `GET /v1/jobs/{id}/checkpoints/{checkpoint}/archive`

use std::io;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;

use super::CheckpointPath;
use super::file::{CHUNK_BYTES, open};
use crate::domain::{FileRecord, Timestamp};
use crate::http::AppState;
use crate::http::problem::Problem;
use crate::http::query::{ApiQuery, NoQuery};

/// The unit of the tar format.
const BLOCK: u64 = 512;

/// Get a whole checkpoint as a tar archive
///
/// Streamed as it is read, with its length known beforehand. The files are under `checkpoint-STEP/`.
///
/// ```sh
/// curl "$URL/v1/jobs/$ID/checkpoints/best/archive" | tar x
/// ```
#[utoipa::path(
    get,
    path = "/v1/jobs/{id}/checkpoints/{checkpoint}/archive",
    tag = "checkpoints",
    params(CheckpointPath),
    responses(
        (status = 200, description = "The archive", body = Vec<u8>, content_type = "application/x-tar",
            headers(("content-disposition" = String, description = "A file name"))),
        (status = 404, description = "`job_not_found` or `checkpoint_not_found`"),
    ),
)]
pub async fn get_checkpoint_archive(
    State(state): State<AppState>,
    checkpoint: CheckpointPath,
    _: ApiQuery<NoQuery>,
) -> Result<Response, Problem> {
    let found = checkpoint.find(&state).await?;
    let (job, step) = (checkpoint.id, found.record.step);
    let mut entries = Vec::with_capacity(found.record.files.len());
    let mut length = 2 * BLOCK;
    for record in &found.record.files {
        let head = entry_header(step, record, found.created_at)
            .map_err(|e| Problem::io("describe a file", &e))?;
        // All are opened before the first byte is sent: `save_total_limit` may remove the checkpoint while
        // it is being downloaded, and an open file stays readable.
        let file = open(&state.data_dir, job, step, record).await?;
        length += BLOCK + record.size_bytes + padding(record.size_bytes);
        entries.push((head, file, record.size_bytes));
    }
    let disposition = format!("attachment; filename=\"{job}-checkpoint-{step}.tar\"");
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar".to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
        (header::CONTENT_DISPOSITION, disposition),
    ];
    Ok((headers, Body::from_stream(archive(entries))).into_response())
}

/// Headers, contents and padding one after the other, and the two empty blocks that end an archive.
fn archive(entries: Vec<(Bytes, File, u64)>) -> impl Stream<Item = io::Result<Bytes>> {
    let entries = stream::iter(entries).flat_map(|(head, file, size)| {
        let content = ReaderStream::with_capacity(file.take(size), CHUNK_BYTES);
        one(head).chain(content).chain(one(zeros(padding(size))))
    });
    entries.chain(one(zeros(2 * BLOCK)))
}

fn one(bytes: Bytes) -> impl Stream<Item = io::Result<Bytes>> {
    stream::iter((!bytes.is_empty()).then_some(Ok(bytes)))
}

fn zeros(count: u64) -> Bytes {
    static ZEROS: [u8; 2 * BLOCK as usize] = [0; 2 * BLOCK as usize];
    let count = usize::try_from(count).unwrap_or(0).min(ZEROS.len());
    Bytes::from_static(&ZEROS[..count])
}

/// Zero bytes that fill up the last block.
fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK) - size
}

/// POSIX ustar, which every tar reads.
fn entry_header(step: u64, record: &FileRecord, at: Timestamp) -> io::Result<Bytes> {
    let mut header = tar::Header::new_ustar();
    header.set_path(format!("checkpoint-{step}/{}", record.path))?;
    header.set_size(record.size_bytes);
    header.set_mode(0o644);
    header.set_mtime(u64::try_from(at.0 / 1000).unwrap_or(0));
    header.set_entry_type(tar::EntryType::Regular);
    header.set_cksum();
    Ok(Bytes::copy_from_slice(header.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use axum::http::StatusCode;

    use crate::http::testing::TestApp;

    #[tokio::test]
    async fn the_archive_unpacks_to_the_files() {
        let app = TestApp::start().await;
        app.queued_job().await;
        let mut trainer = app.claim().await;
        let long = "x".repeat(200_000);
        let block = "y".repeat(512);
        let files = [
            ("config.json", "{}"),
            ("model.safetensors", long.as_str()),
            ("sub/exact.txt", block.as_str()),
            ("empty.txt", ""),
        ];
        trainer
            .report(vec![TestApp::checkpoint_with(7, &[], &files)])
            .await;
        app.write_checkpoint(trainer.job_id, 7, &files);
        let path = format!("/v1/jobs/{}/checkpoints/last/archive", trainer.job_id);
        let answer = app.get(&path).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.headers["content-type"], "application/x-tar");
        assert_eq!(
            answer.headers["content-length"].to_str().unwrap(),
            answer.body.len().to_string()
        );
        let disposition = answer.headers["content-disposition"].to_str().unwrap();
        assert!(disposition.ends_with("checkpoint-7.tar\""), "{disposition}");

        let mut archive = tar::Archive::new(answer.body.as_ref());
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            found.push((path, content));
        }
        let expected: Vec<_> = files
            .iter()
            .map(|(path, content)| (format!("checkpoint-7/{path}"), (*content).to_owned()))
            .collect();
        assert!(found == expected);
    }

    #[tokio::test]
    async fn a_checkpoint_that_is_gone_is_a_problem_not_half_an_archive() {
        let app = TestApp::start().await;
        app.queued_job().await;
        let mut trainer = app.claim().await;
        trainer
            .report(vec![TestApp::checkpoint_with(
                7,
                &[],
                &[("config.json", "{}")],
            )])
            .await;
        let path = format!("/v1/jobs/{}/checkpoints/7/archive", trainer.job_id);
        app.get(&path)
            .await
            .assert_problem(StatusCode::NOT_FOUND, "checkpoint_not_found");
    }
}

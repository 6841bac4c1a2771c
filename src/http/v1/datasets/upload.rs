//! From a stream of bytes to a published dataset file: temporary file, hash, inspection, rename, row.
//!
//! Whatever fails on the way, the client leaving included, removes what was written.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use axum::body::Bytes;
use futures_util::{Stream, StreamExt, pin_mut};
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use crate::data::{self, ReaderLimits};
use crate::domain::{DatasetFormat, DatasetId, ErrorCode};
use crate::http::digest::hex;
use crate::http::problem::Problem;
use crate::http::{AppState, blocking, detached, discard};
use crate::store::Dataset;

/// How the uploader wants the file to be read.
#[derive(Debug)]
pub struct Reading {
    pub name: String,
    pub format: DatasetFormat,
    pub header: bool,
    pub columns: Option<Vec<String>>,
}

/// A file that is complete, synced and hashed, but belongs to nobody yet.
#[derive(Debug)]
pub struct Received {
    file: Unpublished,
    size_bytes: u64,
    sha256: String,
}

/// Removes what it names unless told to keep it.
#[derive(Debug)]
struct Unpublished(Option<PathBuf>);

impl Unpublished {
    fn path(&self) -> &Path {
        self.0.as_deref().unwrap_or(Path::new(""))
    }

    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(cause) = fs::remove_file(&path)
            && cause.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%cause, path = %path.display(), "cannot remove an unfinished upload");
        }
    }
}

/// Writes `chunks` to a temporary file, hashing and counting. Never holds more than a chunk.
pub async fn receive<S>(state: &AppState, chunks: S) -> Result<Received, Problem>
where
    S: Stream<Item = Result<Bytes, Problem>>,
{
    let limit = state.limits.dataset_bytes;
    let failed = |cause: io::Error| Problem::io("write an upload", &cause);
    let name = format!("upload-{}", state.ids.next_uuid());
    let path = state.data_dir.tmp_dir().join(name);
    let file = Unpublished(Some(path));
    // Not in the background: a request that is dropped while it waits would remove the file first, and then
    // it would be created.
    let out = File::create(file.path()).map_err(failed)?;
    let mut out = tokio::fs::File::from_std(out);
    let (mut hash, mut size_bytes) = (Sha256::new(), 0u64);
    pin_mut!(chunks);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        size_bytes += chunk.len() as u64;
        if size_bytes > limit {
            return Err(too_large(limit));
        }
        hash.update(&chunk);
        out.write_all(&chunk).await.map_err(failed)?;
    }
    out.flush().await.map_err(failed)?;
    out.sync_all().await.map_err(failed)?;
    Ok(Received {
        file,
        size_bytes,
        sha256: hex(hash),
    })
}

/// 413.
pub fn too_large(limit: u64) -> Problem {
    let detail = format!("a dataset may have {limit} bytes");
    Problem::new(ErrorCode::PayloadTooLarge, detail)
}

/// Inspects the file, moves it to its place and stores its row.
pub async fn publish(
    state: &AppState,
    received: Received,
    reading: Reading,
) -> Result<Dataset, Problem> {
    let Reading {
        name,
        format,
        header,
        columns,
    } = reading;
    let Received {
        file,
        size_bytes,
        sha256,
    } = received;
    let (file, inspected) = blocking(move || {
        let inspected = data::inspect(
            file.path(),
            format,
            header,
            columns,
            ReaderLimits::default(),
        );
        Ok((file, inspected))
    })
    .await?;
    let inspection = inspected?;
    let dataset = Dataset {
        id: DatasetId(state.ids.next_uuid()),
        name,
        layout: inspection.layout,
        size_bytes,
        sha256,
        rows: inspection.rows,
        created_at: state.clock.now(),
    };
    let state = state.clone();
    detached(async move {
        let (data_dir, id) = (state.data_dir.clone(), dataset.id);
        let placed = blocking(move || {
            data_dir.place_dataset(file.path(), id, format)?;
            file.keep();
            Ok(())
        });
        let stored = match placed.await {
            Ok(()) => {
                let stored = state.store.create_dataset(dataset.clone()).await;
                stored.map_err(Problem::from)
            }
            Err(problem) => Err(problem),
        };
        if stored.is_err() {
            discard(&state, move |data_dir| data_dir.remove_dataset(id)).await;
        }
        stored.map(|()| dataset)
    })
    .await
}

//! `/v1/datasets`: files to train and evaluate on.

mod create;
mod delete;
mod get;
mod list;
mod upload;

use axum::extract::DefaultBodyLimit;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::domain::{DatasetFormat, DatasetId, Timestamp};
use crate::http::{AppState, Limits};
use crate::store::Dataset;

/// Room for the boundaries and headers of a multipart body beside the file itself.
const MULTIPART_OVERHEAD: u64 = 1 << 20;

/// The routes. Only the upload takes bodies above the limit of JSON.
pub fn routes(limits: &Limits) -> OpenApiRouter<AppState> {
    let largest = limits.dataset_bytes.saturating_add(MULTIPART_OVERHEAD);
    let upload_limit = DefaultBodyLimit::max(usize::try_from(largest).unwrap_or(usize::MAX));
    let upload = OpenApiRouter::new()
        .routes(routes!(create::create_dataset, list::list_datasets))
        .layer(upload_limit);
    upload.routes(routes!(get::get_dataset, delete::delete_dataset))
}

/// An uploaded dataset.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = Dataset, example = json!({
    "id": "01990000-0000-7000-8000-000000000001",
    "name": "tickets.csv",
    "format": "csv",
    "header": true,
    "size_bytes": 48213,
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "rows": 612,
    "columns": ["text", "label"],
    "created_at": "2026-11-18T11:06:40.123Z",
}))]
pub struct DatasetView {
    /// Its id.
    pub id: DatasetId,
    /// A name for people.
    pub name: String,
    /// The file's format.
    pub format: DatasetFormat,
    /// Whether the first line names the columns (CSV and TSV).
    pub header: bool,
    /// Length of the file in bytes.
    pub size_bytes: u64,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// Rows, without the header.
    pub rows: u64,
    /// Column names; for JSONL the keys of the first row.
    pub columns: Vec<String>,
    /// When it was uploaded.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

impl From<Dataset> for DatasetView {
    fn from(dataset: Dataset) -> Self {
        Self {
            id: dataset.id,
            name: dataset.name,
            format: dataset.layout.format,
            header: dataset.layout.header,
            size_bytes: dataset.size_bytes,
            sha256: dataset.sha256,
            rows: dataset.rows,
            columns: dataset.layout.columns,
            created_at: dataset.created_at,
        }
    }
}

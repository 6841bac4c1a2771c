//! Uploaded datasets.

use sqlx::sqlite::SqliteRow;

use super::jobs::PAST_EVERY_ID;
use super::rows::{get, get_count, get_json, get_parsed, get_time, to_i64, to_json};
use super::types::Dataset;
use super::writer::Tx;
use super::{Store, StoreError};
use crate::domain::DatasetId;

macro_rules! select_dataset {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, layout, size_bytes, sha256, row_count, created_at FROM dataset ",
            $rest
        )
    };
}

pub(super) const SELECT: &str = select_dataset!("WHERE id = ?1");
pub(super) const LIST: &str = select_dataset!("WHERE id < ?1 ORDER BY id DESC LIMIT ?2");
pub(super) const USED_BY: &str = "SELECT id FROM job WHERE finished_at IS NULL AND train_dataset_id = ?1 \
     UNION ALL SELECT id FROM job WHERE finished_at IS NULL AND eval_dataset_id = ?1 LIMIT 1";

impl Store {
    /// Stores what is known of an uploaded file. The id must be new.
    pub async fn create_dataset(&self, dataset: Dataset) -> Result<(), StoreError> {
        self.write(move |tx| Box::pin(insert(tx, dataset))).await
    }

    /// The dataset, if there is one.
    pub async fn dataset(&self, id: DatasetId) -> Result<Option<Dataset>, StoreError> {
        let row = sqlx::query(SELECT)
            .bind(id.to_string())
            .fetch_optional(self.readers())
            .await?;
        row.as_ref().map(read_dataset).transpose()
    }

    /// Newest first, starting after the dataset `after`.
    pub async fn datasets(
        &self,
        after: Option<DatasetId>,
        limit: u32,
    ) -> Result<Vec<Dataset>, StoreError> {
        let after = after.map_or_else(|| PAST_EVERY_ID.to_owned(), |id| id.to_string());
        let rows = sqlx::query(LIST)
            .bind(after)
            .bind(limit)
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(read_dataset).collect()
    }

    /// `DatasetInUse` while a job that is not final names it.
    pub async fn delete_dataset(&self, id: DatasetId) -> Result<(), StoreError> {
        self.write(move |tx| Box::pin(delete(tx, id))).await
    }
}

async fn insert(tx: &mut Tx, dataset: Dataset) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO dataset (id, name, layout, size_bytes, sha256, row_count, created_at) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
    )
    .bind(dataset.id.to_string())
    .bind(&dataset.name)
    .bind(to_json(&dataset.layout)?)
    .bind(to_i64(dataset.size_bytes))
    .bind(&dataset.sha256)
    .bind(to_i64(dataset.rows))
    .bind(dataset.created_at.0)
    .execute(&mut tx.conn)
    .await?;
    Ok(())
}

async fn delete(tx: &mut Tx, id: DatasetId) -> Result<(), StoreError> {
    let user = sqlx::query(USED_BY)
        .bind(id.to_string())
        .fetch_optional(&mut tx.conn)
        .await?;
    if let Some(row) = user {
        return Err(StoreError::DatasetInUse(get_parsed(&row, "id")?));
    }
    let result = sqlx::query("DELETE FROM dataset WHERE id = ?1")
        .bind(id.to_string())
        .execute(&mut tx.conn)
        .await?;
    if result.rows_affected() == 0 {
        return Err(StoreError::NotFound);
    }
    Ok(())
}

pub(super) fn read_dataset(row: &SqliteRow) -> Result<Dataset, StoreError> {
    Ok(Dataset {
        id: get_parsed(row, "id")?,
        name: get(row, "name")?,
        layout: get_json(row, "layout")?,
        size_bytes: get_count(row, "size_bytes")?,
        sha256: get(row, "sha256")?,
        rows: get_count(row, "row_count")?,
        created_at: get_time(row, "created_at")?,
    })
}

//! Where a queued job stands, and what a guess at its start is made from.

use super::rows::{get, get_count, get_json_or_null};
use super::types::{Job, QueueLoad};
use super::{Store, StoreError};
use crate::domain::{Progress, Status};

/// Positions are counted up to here: beyond, nobody minds the exact number, and counting it for every job of
/// a page would cost as much as the queue is long.
const COUNTED: u32 = 1000;

pub(super) const HIGHER: &str = "SELECT COUNT(*) AS ahead FROM (\
         SELECT 1 FROM job WHERE status = 'queued' AND priority > ?1 LIMIT ?2)";
pub(super) const OLDER: &str = "SELECT COUNT(*) AS ahead FROM (\
         SELECT 1 FROM job WHERE status = 'queued' AND priority = ?1 AND id < ?3 LIMIT ?2)";
pub(super) const RUNNING: &str =
    "SELECT progress FROM job WHERE status = 'running' ORDER BY id LIMIT 256";
pub(super) const RECENT: &str = "SELECT AVG(took_ms) AS mean_ms FROM (\
         SELECT finished_at - started_at AS took_ms FROM job WHERE status = 'succeeded' \
         ORDER BY id DESC LIMIT 20)";

impl Store {
    /// 1 for the next job to be claimed; `None` unless queued, and beyond the first thousand.
    pub async fn queue_position(&self, job: &Job) -> Result<Option<u64>, StoreError> {
        if job.status != Status::Queued {
            return Ok(None);
        }
        let mut ahead: u64 = 0;
        for sql in [HIGHER, OLDER] {
            let row = sqlx::query(sql)
                .bind(job.spec.priority)
                .bind(COUNTED)
                .bind(job.id.to_string())
                .fetch_one(self.readers())
                .await?;
            ahead += get_count::<u64>(&row, "ahead")?;
        }
        Ok((ahead < u64::from(COUNTED)).then_some(ahead + 1))
    }

    /// How busy the slots are and how long jobs take.
    pub async fn queue_load(&self) -> Result<QueueLoad, StoreError> {
        let rows = sqlx::query(RUNNING).fetch_all(self.readers()).await?;
        let running_eta_s = rows
            .iter()
            .map(|row| {
                let progress: Option<Progress> = get_json_or_null(row, "progress")?;
                Ok(progress.and_then(|p| p.eta_s))
            })
            .collect::<Result<_, StoreError>>()?;
        let row = sqlx::query(RECENT).fetch_one(self.readers()).await?;
        let mean_ms: Option<f64> = get(&row, "mean_ms")?;
        Ok(QueueLoad {
            running_eta_s,
            mean_job_s: mean_ms.map(|ms| ms / 1000.0),
        })
    }
}

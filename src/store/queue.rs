//! Where a queued job stands, and what a guess at its start is made from.

use std::collections::HashMap;

use super::rows::{get, get_json_or_null, get_parsed};
use super::types::{Job, QueueLoad};
use super::{Store, StoreError};
use crate::domain::{JobId, Progress, Status};

/// Positions are counted up to here: beyond, nobody minds the exact number, and counting it for every job of
/// a page would cost as much as the queue is long.
const COUNTED: u32 = 1000;

/// One statement for a whole page: every round trip to the database's thread costs more than the counting.
pub(super) const AHEAD: &str = "SELECT id, CASE WHEN status = 'queued' THEN \
         (SELECT COUNT(*) FROM (SELECT 1 FROM job AS ahead WHERE ahead.status = 'queued' \
              AND ahead.priority > job.priority LIMIT ?3)) + \
         (SELECT COUNT(*) FROM (SELECT 1 FROM job AS ahead WHERE ahead.status = 'queued' \
              AND ahead.priority = job.priority AND ahead.id < job.id LIMIT ?3)) \
         END AS ahead FROM job WHERE id BETWEEN ?1 AND ?2";
/// One row with the mean even if nothing runs.
pub(super) const LOAD: &str = "SELECT recent.mean_ms, running.id, running.progress FROM \
         (SELECT AVG(took_ms) AS mean_ms FROM (\
              SELECT finished_at - started_at AS took_ms FROM job WHERE status = 'succeeded' \
              ORDER BY id DESC LIMIT 20)) AS recent \
         LEFT JOIN (SELECT id, progress FROM job WHERE status = 'running' ORDER BY id LIMIT 256) \
              AS running ON 1 = 1";

impl Store {
    /// Where the queued ones among `jobs`, a page or less, stand: 1 is claimed next. Those beyond the first
    /// thousand are left out.
    pub async fn queue_positions(&self, jobs: &[Job]) -> Result<HashMap<JobId, u64>, StoreError> {
        let queued = jobs.iter().filter(|job| job.status == Status::Queued);
        let ids: Vec<String> = queued.map(|job| job.id.to_string()).collect();
        let (Some(first), Some(last)) = (ids.iter().min(), ids.iter().max()) else {
            return Ok(HashMap::new());
        };
        let rows = sqlx::query(AHEAD)
            .bind(first)
            .bind(last)
            .bind(COUNTED)
            .fetch_all(self.readers())
            .await?;
        let mut positions = HashMap::new();
        for row in &rows {
            let ahead: Option<i64> = get(row, "ahead")?;
            let counted = ahead.filter(|ahead| *ahead < i64::from(COUNTED));
            if let Some(ahead) = counted.and_then(|ahead| u64::try_from(ahead).ok()) {
                positions.insert(get_parsed(row, "id")?, ahead + 1);
            }
        }
        Ok(positions)
    }

    /// How busy the slots are and how long jobs take.
    pub async fn queue_load(&self) -> Result<QueueLoad, StoreError> {
        let rows = sqlx::query(LOAD).fetch_all(self.readers()).await?;
        let mut load = QueueLoad::default();
        for row in &rows {
            let mean_ms: Option<f64> = get(row, "mean_ms")?;
            load.mean_job_s = mean_ms.map(|ms| ms / 1000.0);
            if get::<Option<&str>>(row, "id")?.is_some() {
                let progress: Option<Progress> = get_json_or_null(row, "progress")?;
                load.running_eta_s.push(progress.and_then(|p| p.eta_s));
            }
        }
        Ok(load)
    }
}

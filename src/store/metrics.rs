//! Metric series.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteRow;

use super::events::{Origin, append};
use super::rows::{exactly_one, get, get_count, get_json, get_time, to_i64, to_json};
use super::types::MetricPoint;
use super::writer::Tx;
use super::{Store, StoreError};
use crate::domain::{Event, JobId};

pub(super) const ALL: &str = "SELECT name, seq, step, epoch, value, created_at FROM metric \
     WHERE job_id = ?1 AND step >= ?2 ORDER BY seq, name";
pub(super) const ONE: &str = "SELECT name, seq, step, epoch, value, created_at FROM metric \
     WHERE job_id = ?1 AND step >= ?2 AND name = ?3 ORDER BY seq";

impl Store {
    /// Metric values with `step >= since_step` in order of time; `names` empty means all. A resumed
    /// attempt repeats the steps after its checkpoint, so a step may come twice: the later one counts.
    pub async fn metric_points(
        &self,
        job: JobId,
        names: &[String],
        since_step: u64,
    ) -> Result<Vec<MetricPoint>, StoreError> {
        let job = job.to_string();
        let since_step = to_i64(since_step);
        let mut rows = Vec::new();
        if names.is_empty() {
            let query = sqlx::query(ALL).bind(&job).bind(since_step);
            rows = query.fetch_all(self.readers()).await?;
        }
        for name in names {
            let query = sqlx::query(ONE).bind(&job).bind(since_step).bind(name);
            rows.extend(query.fetch_all(self.readers()).await?);
        }
        let mut points: Vec<(i64, MetricPoint)> =
            rows.iter().map(read_point).collect::<Result<_, _>>()?;
        points.sort_by(|(a_seq, a), (b_seq, b)| (a_seq, &a.name).cmp(&(b_seq, &b.name)));
        Ok(points.into_iter().map(|(_, point)| point).collect())
    }
}

/// Stores a metrics event: the event, its values as points, and the newest values with the job.
pub(super) async fn record(
    tx: &mut Tx,
    job: JobId,
    origin: Origin,
    (step, epoch): (u64, f64),
    values: &BTreeMap<String, f64>,
) -> Result<(), StoreError> {
    // A trainer never sends these; if one did, JSON could not carry them to any reader.
    let epoch = if epoch.is_finite() { epoch } else { 0.0 };
    let mut values = values.clone();
    values.retain(|_, value| value.is_finite());
    let event = Event::Metrics {
        step,
        epoch,
        values,
    };
    let seq = append(tx, job, origin, &event).await?;
    let Event::Metrics { values, .. } = event else {
        return Ok(());
    };
    for (name, value) in &values {
        sqlx::query(
            "INSERT INTO metric (job_id, name, seq, step, epoch, value, created_at) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )
        .bind(job.to_string())
        .bind(name)
        .bind(seq)
        .bind(to_i64(step))
        .bind(epoch)
        .bind(value)
        .bind(origin.at.0)
        .execute(&mut tx.conn)
        .await?;
    }
    keep_newest(tx, job, values).await
}

async fn keep_newest(
    tx: &mut Tx,
    job: JobId,
    values: BTreeMap<String, f64>,
) -> Result<(), StoreError> {
    let row = sqlx::query("SELECT metrics FROM job WHERE id = ?1")
        .bind(job.to_string())
        .fetch_one(&mut tx.conn)
        .await?;
    let mut newest: BTreeMap<String, f64> = get_json(&row, "metrics")?;
    newest.extend(values);
    let result = sqlx::query("UPDATE job SET metrics = ?2 WHERE id = ?1")
        .bind(job.to_string())
        .bind(to_json(&newest)?)
        .execute(&mut tx.conn)
        .await?;
    exactly_one(&result)
}

fn read_point(row: &SqliteRow) -> Result<(i64, MetricPoint), StoreError> {
    let point = MetricPoint {
        name: get(row, "name")?,
        step: get_count(row, "step")?,
        epoch: get(row, "epoch")?,
        value: get(row, "value")?,
        created_at: get_time(row, "created_at")?,
    };
    Ok((get(row, "seq")?, point))
}

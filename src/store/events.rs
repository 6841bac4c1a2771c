//! The event log: append and page.

use sqlx::sqlite::SqliteRow;

use super::rows::{get, get_json, get_time, to_json};
use super::types::StoredEvent;
use super::writer::Tx;
use super::{Store, StoreError};
use crate::domain::{Event, JobId, Timestamp};

pub(super) const PAGE: &str = "SELECT seq, attempt, created_at, body FROM event \
     WHERE job_id = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3";

impl Store {
    /// Events with `seq > after`, oldest first. Empty for an unknown job.
    pub async fn events(
        &self,
        job: JobId,
        after: i64,
        limit: u32,
    ) -> Result<Vec<StoredEvent>, StoreError> {
        let rows = sqlx::query(PAGE)
            .bind(job.to_string())
            .bind(after)
            .bind(limit)
            .fetch_all(self.readers())
            .await?;
        rows.iter().map(read_event).collect()
    }
}

/// Where an event comes from.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    /// Attempt it happened in.
    pub attempt: Option<u32>,
    /// The trainer's number for it.
    pub message_seq: Option<i64>,
    pub at: Timestamp,
}

impl Origin {
    /// What the server itself did.
    pub fn server(at: Timestamp) -> Self {
        Self {
            attempt: None,
            message_seq: None,
            at,
        }
    }
}

/// An event's place in its job's log.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub seq: i64,
    /// How often the job was queued again by hand before.
    pub round: i64,
}

impl Place {
    /// From a row of the job with its `last_seq`, which was just counted up for this event.
    pub fn read(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            seq: get(row, "last_seq")?,
            round: get(row, "round")?,
        })
    }
}

/// Of a job that is just being made.
pub(super) const FIRST: Place = Place { seq: 1, round: 0 };

/// Appends what the server itself did, now.
pub(super) async fn append_server_event(
    tx: &mut Tx,
    job: JobId,
    event: &Event,
) -> Result<(), StoreError> {
    append(tx, job, Origin::server(tx.now), event)
        .await
        .map(|_| ())
}

/// Appends to the job's log and answers the number it got.
pub(super) async fn append(
    tx: &mut Tx,
    job: JobId,
    origin: Origin,
    event: &Event,
) -> Result<i64, StoreError> {
    // The counter lives in the job's row, so the numbers have no gaps: both change or neither does.
    let row = sqlx::query(
        "UPDATE job SET last_seq = last_seq + 1 WHERE id = ?1 RETURNING last_seq, round",
    )
    .bind(job.to_string())
    .fetch_optional(&mut tx.conn)
    .await?;
    let row = row.ok_or(StoreError::NotFound)?;
    let place = Place::read(&row)?;
    insert_event(tx, job, place, origin, event).await?;
    Ok(place.seq)
}

/// Puts an event at a place that the job's row has counted already.
pub(super) async fn insert_event(
    tx: &mut Tx,
    job: JobId,
    place: Place,
    origin: Origin,
    event: &Event,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO event (job_id, seq, attempt, message_seq, kind, body, created_at, round) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )
    .bind(job.to_string())
    .bind(place.seq)
    .bind(origin.attempt)
    .bind(origin.message_seq)
    .bind(event.kind())
    .bind(to_json(event)?)
    .bind(origin.at.0)
    .bind(place.round)
    .execute(&mut tx.conn)
    .await?;
    tx.touch(job);
    Ok(())
}

fn read_event(row: &SqliteRow) -> Result<StoredEvent, StoreError> {
    Ok(StoredEvent {
        seq: get(row, "seq")?,
        attempt: get(row, "attempt")?,
        created_at: get_time(row, "created_at")?,
        event: get_json(row, "body")?,
    })
}

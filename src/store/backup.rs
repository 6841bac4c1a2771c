//! A consistent copy of a database that a server may be using, and the check of such a copy.

use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Connection, SqliteConnection};

use super::StoreError;
use super::rows::{get, get_count, get_json, get_parsed};
use crate::domain::{DatasetFormat, DatasetId, DatasetLayout, JobId};

/// Which files a database speaks of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseContents {
    /// How many jobs it holds.
    pub jobs: u64,
    /// Datasets, with format and SHA-256.
    pub datasets: Vec<(DatasetId, DatasetFormat, String)>,
    /// Checkpoints, by job and step.
    pub checkpoints: Vec<(JobId, u64)>,
}

/// Copies the database `source` as it is at one moment into the new file `dest`. Reads in one transaction:
/// a server that uses it goes on, and nothing of what it acknowledged before is missing.
///
/// # Errors
/// `source` is no database, or `dest` exists or cannot be written.
pub async fn copy_database(source: &Path, dest: &Path) -> Result<(), StoreError> {
    let dest = dest
        .to_str()
        .ok_or_else(|| StoreError::Database("the path is not UTF-8".to_owned()))?;
    let mut connection = open(source).await?;
    sqlx::query("VACUUM INTO ?1")
        .bind(dest)
        .execute(&mut connection)
        .await?;
    connection.close().await?;
    Ok(())
}

/// Checks a database that nobody uses, down to every page and reference; answers what it speaks of.
///
/// # Errors
/// What is wrong with it.
pub async fn check_database(path: &Path) -> Result<DatabaseContents, StoreError> {
    let mut connection = open(path).await?;
    let found: Vec<String> = sqlx::query_scalar("PRAGMA integrity_check")
        .fetch_all(&mut connection)
        .await?;
    if found != ["ok"] {
        return Err(StoreError::Database(found.join("; ")));
    }
    let dangling = sqlx::query("PRAGMA foreign_key_check")
        .fetch_all(&mut connection)
        .await?;
    if !dangling.is_empty() {
        let message = format!("{} rows refer to nothing", dangling.len());
        return Err(StoreError::Database(message));
    }
    let contents = contents(&mut connection).await?;
    connection.close().await?;
    Ok(contents)
}

async fn open(path: &Path) -> Result<SqliteConnection, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(super::BUSY_TIMEOUT);
    Ok(options.connect().await?)
}

async fn contents(connection: &mut SqliteConnection) -> Result<DatabaseContents, StoreError> {
    let jobs = sqlx::query("SELECT COUNT(*) AS jobs FROM job")
        .fetch_one(&mut *connection)
        .await?;
    let datasets = sqlx::query("SELECT id, layout, sha256 FROM dataset ORDER BY id")
        .fetch_all(&mut *connection)
        .await?;
    let checkpoints = sqlx::query("SELECT job_id, step FROM checkpoint ORDER BY job_id, step")
        .fetch_all(&mut *connection)
        .await?;
    Ok(DatabaseContents {
        jobs: get_count(&jobs, "jobs")?,
        datasets: datasets
            .iter()
            .map(|row| {
                let layout: DatasetLayout = get_json(row, "layout")?;
                Ok((get_parsed(row, "id")?, layout.format, get(row, "sha256")?))
            })
            .collect::<Result<_, StoreError>>()?,
        checkpoints: checkpoints
            .iter()
            .map(|row| Ok((get_parsed(row, "job_id")?, get_count(row, "step")?)))
            .collect::<Result<_, StoreError>>()?,
    })
}

//! Between rows and types. A value that cannot be read back is a damaged or newer database, never a panic.

use std::fmt::Display;
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::sqlite::{SqliteQueryResult, SqliteRow};
use sqlx::{Decode, Row, Sqlite, Type};

use super::StoreError;
use crate::domain::Timestamp;

pub(super) fn get<'r, T>(row: &'r SqliteRow, column: &str) -> Result<T, StoreError>
where
    T: Decode<'r, Sqlite> + Type<Sqlite>,
{
    Ok(row.try_get(column)?)
}

pub(super) fn get_parsed<T>(row: &SqliteRow, column: &str) -> Result<T, StoreError>
where
    T: FromStr,
    T::Err: Display,
{
    let text: &str = get(row, column)?;
    text.parse().map_err(|error| unreadable(column, error))
}

pub(super) fn get_json<T: DeserializeOwned>(
    row: &SqliteRow,
    column: &str,
) -> Result<T, StoreError> {
    let text: &str = get(row, column)?;
    serde_json::from_str(text).map_err(|error| unreadable(column, error))
}

pub(super) fn get_json_or_null<T: DeserializeOwned>(
    row: &SqliteRow,
    column: &str,
) -> Result<Option<T>, StoreError> {
    let text: Option<&str> = get(row, column)?;
    text.map(serde_json::from_str)
        .transpose()
        .map_err(|error| unreadable(column, error))
}

/// A non-negative integer column.
pub(super) fn get_count<T: TryFrom<i64>>(row: &SqliteRow, column: &str) -> Result<T, StoreError> {
    let value: i64 = get(row, column)?;
    T::try_from(value).map_err(|_| unreadable(column, "out of range"))
}

pub(super) fn get_time(row: &SqliteRow, column: &str) -> Result<Timestamp, StoreError> {
    Ok(Timestamp(get(row, column)?))
}

pub(super) fn to_json<T: Serialize + ?Sized>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|error| StoreError::Database(format!("value cannot be written: {error}")))
}

/// Counts beyond `i64::MAX` do not occur; cutting them keeps the conversion total.
pub(super) fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The guard of a transition held: it hit the one row it was meant for.
pub(super) fn exactly_one(result: &SqliteQueryResult) -> Result<(), StoreError> {
    match result.rows_affected() {
        1 => Ok(()),
        n => Err(changed_rows(n)),
    }
}

/// The guard of a transition did not hold.
pub(super) fn changed_rows(n: u64) -> StoreError {
    StoreError::Database(format!("a guarded update changed {n} rows"))
}

fn unreadable(column: &str, error: impl Display) -> StoreError {
    StoreError::Database(format!("column `{column}` is unreadable: {error}"))
}

//! Stand-in for the data module: only what `http` calls, replaced when the branch `data` lands.

use std::path::Path;

use crate::domain::{DatasetFormat, DatasetLayout, ErrorCode, JobError};

/// What a dataset file turned out to hold.
#[derive(Clone, Debug)]
pub struct Inspection {
    pub layout: DatasetLayout,
    pub rows: u64,
}

/// Reads the file once: columns, rows, and the first thing wrong with it.
///
/// # Errors
/// A dataset code, with the line where there is one.
pub fn inspect(
    path: &Path,
    format: DatasetFormat,
    header: bool,
    names: Option<Vec<String>>,
) -> Result<Inspection, JobError> {
    let io = |e: &dyn std::fmt::Display| JobError::new(ErrorCode::InternalError, e.to_string());
    let bytes = std::fs::read(path).map_err(|e| io(&e))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| JobError::new(ErrorCode::DatasetNotUtf8, "not UTF-8").on_line(1))?;
    let mut lines = text.lines();
    let separator = if format == DatasetFormat::Csv {
        ','
    } else {
        '\t'
    };
    let found: Vec<String> = match format {
        DatasetFormat::Jsonl => lines
            .clone()
            .next()
            .and_then(|l| serde_json::from_str::<serde_json::Map<_, _>>(l).ok())
            .map(|m| m.keys().cloned().collect())
            .unwrap_or_default(),
        _ if header => lines
            .next()
            .map(|l| l.split(separator).map(str::to_owned).collect())
            .unwrap_or_default(),
        _ => lines
            .clone()
            .next()
            .map(|l| {
                (1..=l.split(separator).count())
                    .map(|i| format!("column_{i}"))
                    .collect()
            })
            .unwrap_or_default(),
    };
    let rows = lines.count() as u64;
    if rows == 0 {
        return Err(JobError::new(
            ErrorCode::DatasetEmpty,
            "the file has no rows",
        ));
    }
    Ok(Inspection {
        layout: DatasetLayout {
            format,
            header,
            columns: names.unwrap_or(found),
        },
        rows,
    })
}

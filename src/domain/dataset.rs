//! What an uploaded file looks like.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The file's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DatasetFormat {
    /// Comma-separated, RFC 4180 quoting.
    Csv,
    /// Tab-separated; quotes are ordinary characters.
    Tsv,
    /// One JSON object a line.
    Jsonl,
}

impl DatasetFormat {
    /// The word in the database and in JSON; also the file's extension.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Tsv => "tsv",
            Self::Jsonl => "jsonl",
        }
    }
}

impl fmt::Display for DatasetFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for DatasetFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "csv" => Ok(Self::Csv),
            "tsv" => Ok(Self::Tsv),
            "jsonl" => Ok(Self::Jsonl),
            other => Err(format!("unknown dataset format `{other}`")),
        }
    }
}

/// Everything a reader must know to read the file again the same way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetLayout {
    /// The file's format.
    pub format: DatasetFormat,
    /// Whether the first line names the columns (CSV and TSV).
    pub header: bool,
    /// Column names: from the header, from the uploader, or `column_1`, `column_2`, …; for JSONL the keys
    /// of the first row. Empty before the file was inspected.
    pub columns: Vec<String>,
}

//! The rows of a dataset as the task sees them: text, second text, label.

use std::path::Path;

use crate::domain::{Columns, DatasetLayout, ErrorCode, JobError};

use super::readers::{Cell, Column, Row, quoted, rows};

/// A label longer than this is a text in the wrong column.
const MAX_LABEL_CHARS: usize = 1000;

/// One labelled text or pair of texts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Example {
    /// Line of the file on which the row starts; the first is 1.
    pub line: u64,
    /// The text, or the first of a pair; has at least one character that is not white space.
    pub text: String,
    /// The second text of a pair; may be empty.
    pub text_pair: Option<String>,
    /// The label as written; JSON numbers and booleans as JSON writes them.
    pub label: String,
}

impl Example {
    /// Bytes of its texts.
    pub fn text_bytes(&self) -> usize {
        self.text.len() + self.text_pair.as_ref().map_or(0, String::len)
    }
}

/// Reads a dataset row by row; ends after the first error. `which` is `train` or `eval`, for messages.
///
/// # Errors
/// `column_not_found` with the pointer of the column's name; what [`rows`] fails with. Rows fail with
/// `value_invalid` and the line of a missing or empty text or label or one of the wrong type.
pub fn examples(
    path: &Path,
    layout: &DatasetLayout,
    columns: &Columns,
    which: &str,
) -> Result<impl Iterator<Item = Result<Example, JobError>>, JobError> {
    let find = |name: &str, role: &str| {
        Column::find(layout, name).ok_or_else(|| not_found(layout, name, role, which))
    };
    let text = find(&columns.text, "text")?;
    let text_pair = match &columns.text_pair {
        Some(name) => Some(find(name, "text_pair")?),
        None => None,
    };
    let label = find(&columns.label, "label")?;
    Ok(rows(path, layout)?.map(move |row| {
        let row = row?;
        Ok(Example {
            line: row.line(),
            text: required(&row, &text, read_text(&row, &text, which)?, which)?,
            text_pair: match &text_pair {
                Some(column) => Some(read_text(&row, column, which)?),
                None => None,
            },
            label: read_label(&row, &label, which)?,
        })
    }))
}

fn not_found(layout: &DatasetLayout, name: &str, role: &str, which: &str) -> JobError {
    const SHOWN: usize = 50;
    let mut there: Vec<String> = layout
        .columns
        .iter()
        .take(SHOWN)
        .map(|c| quoted(c))
        .collect();
    if layout.columns.len() > SHOWN {
        there.push(format!("and {} more", layout.columns.len() - SHOWN));
    }
    let message = format!(
        "the {which} dataset has no column {}; it has {}",
        quoted(name),
        there.join(", ")
    );
    JobError::new(ErrorCode::ColumnNotFound, message).at(format!("/dataset/columns/{role}"))
}

fn read_text(row: &Row, column: &Column, which: &str) -> Result<String, JobError> {
    match row.get(column) {
        Cell::Text(text) => Ok(text.to_owned()),
        Cell::Missing => Err(invalid(row, column, which, "is missing")),
        Cell::Scalar(value) => {
            let wrong = format!("must be a string, found {}", quoted(&value));
            Err(invalid(row, column, which, &wrong))
        }
        Cell::Nested(kind) => {
            let wrong = format!("must be a string, found {kind}");
            Err(invalid(row, column, which, &wrong))
        }
    }
}

fn read_label(row: &Row, column: &Column, which: &str) -> Result<String, JobError> {
    let label = match row.get(column) {
        Cell::Text(text) => text.to_owned(),
        Cell::Scalar(value) => value,
        Cell::Missing => return Err(invalid(row, column, which, "is missing")),
        Cell::Nested(kind) => {
            let wrong = format!("must be a string, a number or a boolean, found {kind}");
            return Err(invalid(row, column, which, &wrong));
        }
    };
    if label.chars().nth(MAX_LABEL_CHARS).is_some() {
        let wrong = format!("is longer than {MAX_LABEL_CHARS} characters");
        return Err(invalid(row, column, which, &wrong)
            .hint("is this the label's column? `columns.label` names it"));
    }
    required(row, column, label, which)
}

fn required(row: &Row, column: &Column, value: String, which: &str) -> Result<String, JobError> {
    if value.trim().is_empty() {
        return Err(invalid(row, column, which, "is empty"));
    }
    Ok(value)
}

fn invalid(row: &Row, column: &Column, which: &str, wrong: &str) -> JobError {
    let message = format!("{} of the {which} dataset {wrong}", quoted(column.name()));
    JobError::new(ErrorCode::ValueInvalid, message).on_line(row.line())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::data::readers::{ReaderLimits, inspect};
    use crate::domain::DatasetFormat;

    fn load(
        format: DatasetFormat,
        bytes: &str,
        columns: &Columns,
    ) -> Result<Vec<Example>, JobError> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes.as_bytes()).unwrap();
        let layout = inspect(file.path(), format, true, None, ReaderLimits::default())
            .unwrap()
            .layout;
        examples(file.path(), &layout, columns, "train")?.collect()
    }

    fn pair_columns() -> Columns {
        Columns {
            text: "a".into(),
            text_pair: Some("b".into()),
            label: "label".into(),
        }
    }

    #[test]
    fn columns_are_picked_by_name_in_any_order() {
        let csv = "label,b,id,a\nyes,second,1,first\nno,,2,\"one\ntwo\"\nno,x,3,y\n";
        let examples = load(DatasetFormat::Csv, csv, &pair_columns()).unwrap();
        assert_eq!(examples.len(), 3);
        assert_eq!(
            examples[0],
            Example {
                line: 2,
                text: "first".into(),
                text_pair: Some("second".into()),
                label: "yes".into()
            }
        );
        assert_eq!(examples[1].text_pair.as_deref(), Some(""));
        assert_eq!((examples[1].line, examples[2].line), (3, 5));
    }

    #[test]
    fn a_wrong_column_names_those_there_are() {
        let wrong = Columns {
            label: "Label".into(),
            ..Columns::default()
        };
        let error = load(DatasetFormat::Csv, "text,label\nx,1\n", &wrong).unwrap_err();
        assert_eq!(error.code, ErrorCode::ColumnNotFound);
        assert_eq!(error.pointer.as_deref(), Some("/dataset/columns/label"));
        assert_eq!(
            error.message,
            "the train dataset has no column `Label`; it has `text`, `label`"
        );
        let error = load(DatasetFormat::Csv, "a,label\nx,1\n", &pair_columns()).unwrap_err();
        assert_eq!(error.pointer.as_deref(), Some("/dataset/columns/text_pair"));
        let error = load(DatasetFormat::Csv, "a,label\nx,1\n", &Columns::default()).unwrap_err();
        assert_eq!(error.pointer.as_deref(), Some("/dataset/columns/text"));
    }

    #[test]
    fn json_labels_become_text() {
        let jsonl = concat!(
            "{\"text\": \"a\", \"label\": 1}\n",
            "{\"text\": \"b\", \"label\": true}\n",
            "{\"text\": \"c\", \"label\": 2.5}\n",
            "{\"text\": \"d\", \"label\": \"1\"}\n",
            "{\"label\": -3, \"extra\": {}, \"text\": \"e\"}\n",
        );
        let examples = load(DatasetFormat::Jsonl, jsonl, &Columns::default()).unwrap();
        let labels: Vec<&str> = examples.iter().map(|e| e.label.as_str()).collect();
        assert_eq!(labels, ["1", "true", "2.5", "1", "-3"]);
    }

    #[test]
    fn bad_values_name_their_line() {
        let first = "{\"text\": \"a\", \"label\": 1}\n";
        for (row, part) in [
            (
                "{\"text\": \"b\"}",
                "`label` of the train dataset is missing",
            ),
            ("{\"text\": \"b\", \"label\": null}", "is missing"),
            ("{\"text\": \"b\", \"label\": \" \"}", "is empty"),
            ("{\"text\": \"b\", \"label\": [1]}", "found an array"),
            ("{\"text\": \"b\", \"label\": {}}", "found an object"),
            ("{\"label\": 2}", "`text` of the train dataset is missing"),
            ("{\"text\": 7, \"label\": 2}", "must be a string, found `7`"),
            ("{\"text\": [], \"label\": 2}", "must be a string"),
            ("{\"text\": \"\\t\", \"label\": 2}", "is empty"),
        ] {
            let jsonl = format!("{first}{row}\n");
            let error = load(DatasetFormat::Jsonl, &jsonl, &Columns::default()).unwrap_err();
            assert_eq!((error.code, error.line), (ErrorCode::ValueInvalid, Some(2)));
            assert!(error.message.contains(part), "{row}: {}", error.message);
        }
        let error = load(
            DatasetFormat::Csv,
            "text,label\na,1\nb,\n",
            &Columns::default(),
        );
        let error = error.unwrap_err();
        assert_eq!((error.code, error.line), (ErrorCode::ValueInvalid, Some(3)));
    }

    #[test]
    fn a_text_in_the_label_column_is_recognised() {
        let csv = format!("text,label\na,{}\n", "long ".repeat(300));
        let error = load(DatasetFormat::Csv, &csv, &Columns::default()).unwrap_err();
        assert_eq!((error.code, error.line), (ErrorCode::ValueInvalid, Some(2)));
        assert!(error.message.len() < 200 && error.hint.is_some());
    }
}

//! One row, and how its values are reached by column.

use std::ops::Range;

use serde_json::{Map, Value};

use crate::domain::{DatasetLayout, JobError};

use super::not_utf8;

/// The fields of one delimited record: one buffer, and where each field lies in it.
#[derive(Debug)]
pub(super) struct Fields {
    /// Where the record starts.
    pub(super) line: u64,
    text: String,
    spans: Vec<Range<usize>>,
}

impl Fields {
    /// Checks that every field is UTF-8. `first_line` is the line of the buffer's first byte.
    pub(super) fn new(
        line: u64,
        bytes: Vec<u8>,
        spans: Vec<Range<usize>>,
    ) -> Result<Self, JobError> {
        let text = String::from_utf8(bytes).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let breaks = valid.iter().filter(|&&byte| byte == b'\n').count();
            not_utf8(line + breaks as u64)
        })?;
        // Two fields that are broken on their own can be valid when joined.
        let whole = |span: &Range<usize>| text.get(span.clone()).is_some();
        if !spans.iter().all(whole) {
            return Err(not_utf8(line));
        }
        Ok(Self { line, text, spans })
    }

    pub(super) fn len(&self) -> usize {
        self.spans.len()
    }

    pub(super) fn get(&self, index: usize) -> Option<&str> {
        self.text.get(self.spans.get(index)?.clone())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

/// One row of a dataset.
#[derive(Debug)]
pub struct Row {
    line: u64,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Delimited(Fields),
    Object(Map<String, Value>),
}

/// One value of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Cell<'a> {
    /// JSON `null`, or no such key.
    Missing,
    /// Text; every CSV and TSV field is.
    Text(&'a str),
    /// A JSON number or boolean, as JSON writes it.
    Scalar(String),
    /// A JSON array or object: the word says which.
    Nested(&'static str),
}

/// A column of a layout, looked up once for all rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    name: String,
    index: usize,
}

impl Column {
    /// The column called `name`, if the layout has it.
    pub fn find(layout: &DatasetLayout, name: &str) -> Option<Self> {
        let index = layout.columns.iter().position(|column| column == name)?;
        Some(Self {
            name: name.to_owned(),
            index,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Row {
    pub(super) fn delimited(fields: Fields) -> Self {
        Self {
            line: fields.line,
            values: Values::Delimited(fields),
        }
    }

    pub(super) fn object(line: u64, object: Map<String, Value>) -> Self {
        Self {
            line,
            values: Values::Object(object),
        }
    }

    /// Line of the file on which the row starts; the first is 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// The row's value in a column.
    pub fn get(&self, column: &Column) -> Cell<'_> {
        match &self.values {
            Values::Delimited(fields) => fields.get(column.index).map_or(Cell::Missing, Cell::Text),
            Values::Object(object) => match object.get(&column.name) {
                None | Some(Value::Null) => Cell::Missing,
                Some(Value::String(text)) => Cell::Text(text),
                Some(scalar @ (Value::Number(_) | Value::Bool(_))) => {
                    Cell::Scalar(scalar.to_string())
                }
                Some(Value::Array(_)) => Cell::Nested("an array"),
                Some(Value::Object(_)) => Cell::Nested("an object"),
            },
        }
    }
}

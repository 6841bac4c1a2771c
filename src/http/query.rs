//! Query strings, read parameter by parameter with every error at once; unknown parameters are refused.

use std::fmt::Display;
use std::str::FromStr;

use axum::extract::{FromRequestParts, Query};
use axum::http::Uri;
use axum::http::request::Parts;

use super::problem::Problem;
use crate::domain::FieldError;

/// Parameters being read. What was not asked for in the end is refused.
#[derive(Debug)]
pub struct QueryReader {
    pairs: Vec<(String, String)>,
    asked: Vec<&'static str>,
    errors: Vec<FieldError>,
}

/// A query string's shape.
pub trait FromQuery: Sized {
    /// Reads the parameters; wrong ones are noted in `query`, whose owner reports them.
    fn from_query(query: &mut QueryReader) -> Self;
}

/// Extracts a query string, or answers 422 with everything wrong with it.
#[derive(Debug)]
pub struct ApiQuery<T>(pub T);

impl<S: Send + Sync, T: FromQuery> FromRequestParts<S> for ApiQuery<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let mut reader = QueryReader::new(&parts.uri)?;
        let query = T::from_query(&mut reader);
        reader.finish().map(|()| Self(query))
    }
}

impl QueryReader {
    fn new(uri: &Uri) -> Result<Self, Problem> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|e| Problem::invalid_field("/query", "invalid_encoding", e.body_text()))?;
        Ok(Self {
            pairs,
            asked: Vec::new(),
            errors: Vec::new(),
        })
    }

    /// A parameter as text; an empty one counts as absent.
    pub fn text(&mut self, name: &'static str) -> Option<String> {
        self.asked.push(name);
        let mut values = self.pairs.iter().filter(|(key, _)| key == name);
        let first = values.next().map(|(_, value)| value.clone());
        if values.next().is_some() {
            self.error(name, "repeated", format!("`{name}` is given twice"));
        }
        first.filter(|value| !value.is_empty())
    }

    /// A parameter that parses.
    pub fn optional<T: FromStr<Err: Display>>(&mut self, name: &'static str) -> Option<T> {
        let text = self.text(name)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.error(name, "invalid_type", format!("`{name}`: {error}"));
                None
            }
        }
    }

    /// A whole number in `range`, or `default` when absent.
    pub fn number(
        &mut self,
        name: &'static str,
        default: u32,
        range: std::ops::RangeInclusive<u32>,
    ) -> u32 {
        let value = self.optional(name).unwrap_or(default);
        if !range.contains(&value) {
            let (low, high) = (range.start(), range.end());
            let message = format!("`{name}` must be between {low} and {high}");
            self.error(name, "out_of_range", message);
        }
        value
    }

    /// A comma-separated list; absent is empty.
    pub fn list(&mut self, name: &'static str) -> Vec<String> {
        let text = self.text(name).unwrap_or_default();
        let items = text.split(',').map(str::trim);
        items
            .filter(|item| !item.is_empty())
            .map(str::to_owned)
            .collect()
    }

    /// Notes that a parameter is wrong.
    pub fn error(&mut self, name: &str, code: &str, message: impl Into<String>) {
        let pointer = format!("/query/{}", name.replace('~', "~0").replace('/', "~1"));
        self.errors.push(FieldError::new(pointer, code, message));
    }

    fn finish(mut self) -> Result<(), Problem> {
        let unknown: Vec<String> = self
            .pairs
            .iter()
            .map(|(key, _)| key)
            .filter(|key| !self.asked.contains(&key.as_str()))
            .cloned()
            .collect();
        for key in unknown {
            let known = match self.asked.as_slice() {
                [] => "there are none here".to_owned(),
                names => format!("known are {}", names.join(", ")),
            };
            let message = format!("unknown query parameter `{key}`; {known}");
            self.error(&key, "unknown_parameter", message);
        }
        if self.errors.is_empty() {
            Ok(())
        } else {
            Err(Problem::invalid(self.errors))
        }
    }
}

/// For endpoints without parameters.
#[derive(Debug)]
pub struct NoQuery;

impl FromQuery for NoQuery {
    fn from_query(_query: &mut QueryReader) -> Self {
        Self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<T>(query: &str, f: impl FnOnce(&mut QueryReader) -> T) -> Result<T, Vec<FieldError>> {
        let uri: Uri = format!("/x?{query}").parse().unwrap();
        let mut reader = QueryReader::new(&uri).unwrap();
        let value = f(&mut reader);
        reader.finish().map(|()| value).map_err(|p| p.0.errors)
    }

    #[test]
    fn every_wrong_parameter_is_reported() {
        let errors = read("limit=0&after=x&nope=1&limit=2", |q| {
            q.number("limit", 20, 1..=100);
            q.optional::<u64>("after");
        })
        .unwrap_err();
        let found: Vec<_> = errors
            .iter()
            .map(|e| (e.pointer.as_str(), e.code.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("/query/limit", "repeated"),
                ("/query/limit", "out_of_range"),
                ("/query/after", "invalid_type"),
                ("/query/nope", "unknown_parameter"),
            ]
        );
    }

    #[test]
    fn lists_and_defaults() {
        let (limit, names) = read("names=a,%20b,,c", |q| {
            (q.number("limit", 20, 1..=100), q.list("names"))
        })
        .unwrap();
        assert_eq!(limit, 20);
        assert_eq!(names, ["a", "b", "c"]);
    }
}

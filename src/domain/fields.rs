//! Reads a JSON object field by field and collects *every* error, each with its JSON pointer.
//!
//! `serde` stops at the first error; a user who fixes one field only to be told of the next gives up.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::FieldError;

/// A JSON object being read. Call [`ObjectReader::finish`] last: it refuses what was not asked for.
#[derive(Debug)]
pub struct ObjectReader<'a> {
    object: Option<&'a Map<String, Value>>,
    pointer: String,
    asked: Vec<&'static str>,
    errors: Vec<FieldError>,
}

impl<'a> ObjectReader<'a> {
    /// Starts reading `value`, found at `pointer` (empty for the root).
    pub fn new(value: &'a Value, pointer: impl Into<String>) -> Self {
        let pointer = pointer.into();
        let mut errors = Vec::new();
        if !value.is_object() {
            errors.push(FieldError::new(
                pointer.clone(),
                "invalid_type",
                format!("expected an object, found {}", kind(value)),
            ));
        }
        Self {
            object: value.as_object(),
            pointer,
            asked: Vec::new(),
            errors,
        }
    }

    /// The pointer of a field of this object.
    pub fn pointer_to(&self, name: &str) -> String {
        format!(
            "{}/{}",
            self.pointer,
            name.replace('~', "~0").replace('/', "~1")
        )
    }

    /// The raw value of a field; `null` counts as absent.
    pub fn raw(&mut self, name: &'static str) -> Option<&'a Value> {
        self.asked.push(name);
        self.object?.get(name).filter(|v| !v.is_null())
    }

    /// A field that may be absent.
    pub fn optional<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<T> {
        let value = self.raw(name)?;
        match T::deserialize(value) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.error(name, "invalid_type", error.to_string());
                None
            }
        }
    }

    /// A field with a default.
    pub fn or<T: DeserializeOwned>(&mut self, name: &'static str, default: T) -> T {
        self.optional(name).unwrap_or(default)
    }

    /// A field that must be there.
    pub fn required<T: DeserializeOwned>(&mut self, name: &'static str) -> Option<T> {
        let absent = self
            .object
            .is_some_and(|o| o.get(name).is_none_or(Value::is_null));
        if absent {
            self.error(name, "missing_field", format!("`{name}` is required"));
        }
        self.optional(name)
    }

    /// Adds an error at a field of this object.
    pub fn error(&mut self, name: &str, code: &str, message: impl Into<String>) {
        self.errors
            .push(FieldError::new(self.pointer_to(name), code, message));
    }

    /// Takes over the errors of a nested reader.
    pub fn absorb(&mut self, errors: Vec<FieldError>) {
        self.errors.extend(errors);
    }

    /// Refuses fields that were never asked for, and hands out all errors found.
    pub fn finish(mut self) -> Vec<FieldError> {
        let unknown: Vec<&String> = self
            .object
            .into_iter()
            .flat_map(Map::keys)
            .filter(|key| !self.asked.contains(&key.as_str()))
            .collect();
        for key in unknown {
            let pointer = self.pointer_to(key);
            let message = format!("unknown field `{key}`; known are {}", self.asked.join(", "));
            self.errors
                .push(FieldError::new(pointer, "unknown_field", message));
        }
        self.errors
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn all_errors_come_at_once_with_pointers() {
        let value = json!({"count": "three", "extra/1": 1});
        let mut reader = ObjectReader::new(&value, "/args");
        assert_eq!(reader.optional::<u32>("count"), None);
        assert_eq!(reader.required::<String>("name"), None);
        let errors = reader.finish();
        let found: Vec<(&str, &str)> = errors
            .iter()
            .map(|e| (e.pointer.as_str(), e.code.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("/args/count", "invalid_type"),
                ("/args/name", "missing_field"),
                ("/args/extra~11", "unknown_field"),
            ]
        );
    }

    #[test]
    fn a_value_that_is_no_object_is_one_error() {
        let value = json!([1]);
        let mut reader = ObjectReader::new(&value, "");
        assert_eq!(reader.required::<u32>("a"), None);
        let errors = reader.finish();
        assert_eq!(errors.len(), 1);
        assert_eq!(errors[0].code, "invalid_type");
    }
}

//! Labels and their ids.

use std::collections::{BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::domain::{ErrorCode, JobError};

use super::readers::quoted;

/// The most labels a training set may have.
pub const MAX_LABELS: usize = 10_000;
/// The most labels a message lists.
const SHOWN_LABELS: usize = 20;

/// Labels in id order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMap {
    labels: Vec<String>,
    ids: HashMap<String, u32>,
}

impl LabelMap {
    /// Gives every distinct label of the training set an id: sorted as strings, as HF's `run_classification`
    /// does, but by value where all are integers (HF would put `10` before `2`).
    ///
    /// # Errors
    /// `labels_too_few` below two labels, `labels_too_many` beyond [`MAX_LABELS`].
    pub fn from_training<'a>(labels: impl IntoIterator<Item = &'a str>) -> Result<Self, JobError> {
        let mut distinct = BTreeSet::new();
        for label in labels {
            distinct.insert(label);
            if distinct.len() > MAX_LABELS {
                return Err(too_many("train"));
            }
        }
        if distinct.len() < 2 {
            let found = distinct
                .first()
                .map_or("none".to_owned(), |label| format!("only {}", quoted(label)));
            let message = format!("a classifier needs at least two labels; found {found}");
            return Err(JobError::new(ErrorCode::LabelsTooFew, message));
        }
        let mut labels: Vec<&str> = distinct.into_iter().collect();
        if labels.iter().all(|label| label.parse::<i64>().is_ok()) {
            labels.sort_by_key(|label| label.parse::<i64>().unwrap_or_default());
        }
        Ok(Self::from_ordered(labels.into_iter().map(str::to_owned)))
    }

    /// Labels whose order is known already, as from a trained model's `id2label`.
    pub fn from_ordered(labels: impl IntoIterator<Item = String>) -> Self {
        let labels: Vec<String> = labels.into_iter().collect();
        let ids = (0u32..).zip(&labels).map(|(id, label)| (label.clone(), id));
        Self {
            ids: ids.collect(),
            labels,
        }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// In id order.
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// A label's id.
    pub fn id_of(&self, label: &str) -> Option<u32> {
        self.ids.get(label).copied()
    }

    /// An id's label.
    pub fn label_of(&self, id: u32) -> Option<&str> {
        let index = usize::try_from(id).ok()?;
        self.labels.get(index).map(String::as_str)
    }

    /// The ids of a file's labels, by their numbers there. `which` is `train` or `eval`, for messages.
    ///
    /// # Errors
    /// `label_unknown` with the first line whose label is not one of these.
    pub fn ids_of(&self, seen: &SeenLabels, which: &str) -> Result<Vec<u32>, JobError> {
        let id = |seen: &SeenLabel| {
            self.id_of(&seen.label)
                .ok_or_else(|| self.unknown(seen, which))
        };
        seen.labels.iter().map(id).collect()
    }

    /// Hugging Face's `id2label`: `{"0": …, "1": …}`, in id order.
    pub fn id2label(&self) -> Map<String, Value> {
        let entry = |(id, label): (usize, &String)| (id.to_string(), Value::from(label.clone()));
        self.labels.iter().enumerate().map(entry).collect()
    }

    /// Hugging Face's `label2id`, in id order.
    pub fn label2id(&self) -> Map<String, Value> {
        let entry = |(id, label): (usize, &String)| (label.clone(), Value::from(id));
        self.labels.iter().enumerate().map(entry).collect()
    }

    fn unknown(&self, seen: &SeenLabel, which: &str) -> JobError {
        let mut known: Vec<String> = self
            .labels
            .iter()
            .take(SHOWN_LABELS)
            .map(|l| quoted(l))
            .collect();
        if self.len() > SHOWN_LABELS {
            known.push(format!("and {} more", self.len() - SHOWN_LABELS));
        }
        let message = format!(
            "the {which} dataset has the label {}, which the train dataset does not; known are {}",
            quoted(&seen.label),
            known.join(", ")
        );
        JobError::new(ErrorCode::LabelUnknown, message).on_line(seen.line)
    }
}

/// The labels of one file, numbered as they come. What they mean to a training is decided by its [`LabelMap`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<SeenLabel>", into = "Vec<SeenLabel>")]
pub struct SeenLabels {
    labels: Vec<SeenLabel>,
    numbers: HashMap<String, u16>,
}

/// A label, and the line where it first stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SeenLabel {
    label: String,
    line: u64,
}

impl SeenLabels {
    /// The number of the label on `line`. `which` is `train` or `eval`, for messages.
    ///
    /// # Errors
    /// `labels_too_many` beyond [`MAX_LABELS`].
    pub fn number(&mut self, label: &str, line: u64, which: &str) -> Result<u16, JobError> {
        if let Some(&number) = self.numbers.get(label) {
            return Ok(number);
        }
        if self.labels.len() == MAX_LABELS {
            return Err(too_many(which));
        }
        let number = u16::try_from(self.labels.len()).map_err(|_| too_many(which))?;
        self.numbers.insert(label.to_owned(), number);
        self.labels.push(SeenLabel {
            label: label.to_owned(),
            line,
        });
        Ok(number)
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// In order of first appearance, which is that of the numbers.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.labels.iter().map(|seen| seen.label.as_str())
    }
}

impl From<SeenLabels> for Vec<SeenLabel> {
    fn from(seen: SeenLabels) -> Self {
        seen.labels
    }
}

impl From<Vec<SeenLabel>> for SeenLabels {
    fn from(labels: Vec<SeenLabel>) -> Self {
        let numbered = (0u16..).zip(&labels);
        let numbers = numbered.map(|(number, seen)| (seen.label.clone(), number));
        Self {
            numbers: numbers.collect(),
            labels,
        }
    }
}

fn too_many(which: &str) -> JobError {
    let message = format!("the {which} dataset has more than {MAX_LABELS} labels");
    JobError::new(ErrorCode::LabelsTooMany, message)
        .hint("is this the label's column? `columns.label` names it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(labels: &[(u64, &str)]) -> SeenLabels {
        let mut seen = SeenLabels::default();
        for (line, label) in labels {
            seen.number(label, *line, "eval").unwrap();
        }
        seen
    }

    #[test]
    fn strings_sort_by_code_point_and_integers_by_value() {
        let of = |labels: &[&str]| {
            LabelMap::from_training(labels.iter().copied())
                .unwrap()
                .labels()
                .to_vec()
        };
        assert_eq!(of(&["b", "é", "B", "b", "a"]), ["B", "a", "b", "é"]);
        assert_eq!(of(&["10", "2", "-1", "2"]), ["-1", "2", "10"]);
        assert_eq!(of(&["10", "2", "x"]), ["10", "2", "x"]);
        assert_eq!(of(&["1", "01", "0"]), ["0", "01", "1"]);
        assert_eq!(of(&["2.5", "10"]), ["10", "2.5"]);
    }

    #[test]
    fn maps_are_hugging_faces() {
        let map = LabelMap::from_training(["10", "9", "8"]).unwrap();
        assert_eq!((map.id_of("10"), map.id_of("11")), (Some(2), None));
        assert_eq!((map.label_of(0), map.label_of(3)), (Some("8"), None));
        let id2label = serde_json::to_string(&map.id2label()).unwrap();
        assert_eq!(id2label, r#"{"0":"8","1":"9","2":"10"}"#);
        let label2id = serde_json::to_string(&map.label2id()).unwrap();
        assert_eq!(label2id, r#"{"8":0,"9":1,"10":2}"#);
        assert_eq!(LabelMap::from_ordered(map.labels().to_vec()), map);
    }

    #[test]
    fn too_few_labels_name_the_one() {
        let error = LabelMap::from_training(["spam", "spam"]).unwrap_err();
        assert_eq!(error.code, ErrorCode::LabelsTooFew);
        assert!(error.message.contains("only `spam`"));
        let error = LabelMap::from_training([]).unwrap_err();
        assert_eq!(error.code, ErrorCode::LabelsTooFew);
    }

    #[test]
    fn too_many_labels_are_refused() {
        let labels: Vec<String> = (0..=MAX_LABELS).map(|i| i.to_string()).collect();
        let of = |labels: &[String]| {
            LabelMap::from_training(labels.iter().map(String::as_str)).map(|map| map.len())
        };
        assert_eq!(of(&labels[1..]).unwrap(), MAX_LABELS);
        assert_eq!(of(&labels).unwrap_err().code, ErrorCode::LabelsTooMany);
    }

    #[test]
    fn an_unknown_label_names_line_label_and_the_known() {
        let map = LabelMap::from_training(["a", "b"]).unwrap();
        let fine = seen(&[(2, "b"), (3, "a"), (4, "b")]);
        assert_eq!(map.ids_of(&fine, "eval").unwrap(), [1, 0]);
        let error = map
            .ids_of(&seen(&[(2, "a"), (9, "c"), (10, "d"), (11, "c")]), "eval")
            .unwrap_err();
        assert_eq!((error.code, error.line), (ErrorCode::LabelUnknown, Some(9)));
        assert!(error.message.contains("`c`") && error.message.contains("known are `a`, `b`"));
        let many: Vec<String> = (0..30).map(|i| i.to_string()).collect();
        let map = LabelMap::from_training(many.iter().map(String::as_str)).unwrap();
        let error = map.ids_of(&seen(&[(1, "c")]), "eval").unwrap_err();
        assert!(error.message.ends_with("`19`, and 10 more"));
    }

    #[test]
    fn labels_are_numbered_as_they_come_up_to_a_limit() {
        let mut labels = seen(&[(2, "b"), (3, "a"), (4, "b")]);
        assert_eq!(labels.names().collect::<Vec<_>>(), ["b", "a"]);
        assert_eq!(labels.number("b", 9, "train").unwrap(), 0);
        for number in 2..MAX_LABELS {
            labels.number(&number.to_string(), 9, "train").unwrap();
        }
        let error = labels.number("one more", 9, "train").unwrap_err();
        assert_eq!(error.code, ErrorCode::LabelsTooMany);
        assert_eq!(labels.number("a", 9, "train").unwrap(), 1);
        let text = serde_json::to_string(&labels).unwrap();
        assert_eq!(serde_json::from_str::<SeenLabels>(&text).unwrap(), labels);
    }
}

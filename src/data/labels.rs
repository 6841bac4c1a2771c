//! Labels and their ids.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};

use crate::domain::{ErrorCode, JobError};

use super::examples::Example;
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
                let message = format!("the train dataset has more than {MAX_LABELS} labels");
                return Err(JobError::new(ErrorCode::LabelsTooMany, message)
                    .hint("is this the label's column? `columns.label` names it"));
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

    /// The ids of the examples' labels. `which` is `train` or `eval`, for messages.
    ///
    /// # Errors
    /// `label_unknown` with the first line whose label is not one of these.
    pub fn ids_of(&self, examples: &[Example], which: &str) -> Result<Vec<u32>, JobError> {
        let id = |example: &Example| {
            self.id_of(&example.label)
                .ok_or_else(|| self.unknown(example, which))
        };
        examples.iter().map(id).collect()
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

    fn unknown(&self, example: &Example, which: &str) -> JobError {
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
            quoted(&example.label),
            known.join(", ")
        );
        JobError::new(ErrorCode::LabelUnknown, message).on_line(example.line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(line: u64, label: &str) -> Example {
        Example {
            line,
            text: "x".into(),
            text_pair: None,
            label: label.into(),
        }
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
        assert_eq!(
            map.ids_of(&[example(2, "b"), example(3, "a")], "eval")
                .unwrap(),
            [1, 0]
        );
        let error = map
            .ids_of(&[example(2, "a"), example(9, "c")], "eval")
            .unwrap_err();
        assert_eq!((error.code, error.line), (ErrorCode::LabelUnknown, Some(9)));
        assert!(error.message.contains("`c`") && error.message.contains("known are `a`, `b`"));
        let many: Vec<String> = (0..30).map(|i| i.to_string()).collect();
        let map = LabelMap::from_training(many.iter().map(String::as_str)).unwrap();
        let error = map.ids_of(&[example(1, "c")], "eval").unwrap_err();
        assert!(error.message.ends_with("`19`, and 10 more"));
    }
}

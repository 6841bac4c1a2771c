//! Warm start: a base model that was trained on the same labels goes on with its own classifier and its own
//! ids for them; for any other set of labels the classifier is a new one.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::data::LabelMap;

/// Labels that a message lists.
const SHOWN: usize = 10;

/// What becomes of the base model's classifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// The base model names no labels.
    New,
    /// It has exactly these labels.
    Continued,
    /// It has others.
    Replaced {
        /// Its labels.
        base: Vec<String>,
        /// Those of the training set.
        new: Vec<String>,
    },
}

impl Head {
    /// Whether weights of a classifier are to be taken over if they fit.
    pub fn keeps_classifier(&self) -> bool {
        !matches!(self, Self::Replaced { .. })
    }

    /// What the user is told.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::New => None,
            Self::Continued => Some(
                "the base model has the same labels: training continues with its classifier and its label ids"
                    .to_owned(),
            ),
            Self::Replaced { base, new } => Some(format!(
                "the base model has other labels ({}) than the training set ({}): the classifier is a new one",
                list(base),
                list(new)
            )),
        }
    }
}

/// The labels to train with: in the base model's order where it has the same ones.
pub fn adopt(labels: LabelMap, model_dir: &Path) -> (LabelMap, Head) {
    let Some(base) = labels_of(model_dir) else {
        return (labels, Head::New);
    };
    let same = base.len() == labels.len()
        && base.iter().collect::<BTreeSet<_>>() == labels.labels().iter().collect();
    if same {
        return (LabelMap::from_ordered(base), Head::Continued);
    }
    let new = labels.labels().to_vec();
    (labels, Head::Replaced { base, new })
}

/// The labels that a model's `config.json` names, by id. HF's placeholders (`LABEL_0`, …) are no names.
fn labels_of(model_dir: &Path) -> Option<Vec<String>> {
    let text = std::fs::read(model_dir.join("config.json")).ok()?;
    let config: Value = serde_json::from_slice(&text).ok()?;
    let by_id = config.get("id2label")?.as_object()?;
    let labels: Vec<String> = (0..by_id.len())
        .map(|id| by_id.get(&id.to_string())?.as_str().map(str::to_owned))
        .collect::<Option<_>>()?;
    let placeholder = |(id, label): (usize, &String)| *label == format!("LABEL_{id}");
    (!labels.iter().enumerate().all(placeholder)).then_some(labels)
}

fn list(labels: &[String]) -> String {
    let mut text = labels[..labels.len().min(SHOWN)].join(", ");
    if labels.len() > SHOWN {
        text += &format!(", and {} more", labels.len() - SHOWN);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn adopted(id2label: &Value, training: &[&str]) -> (Vec<String>, Head) {
        let temp = tempfile::tempdir().unwrap();
        let config = json!({"model_type": "bert", "id2label": id2label});
        std::fs::write(temp.path().join("config.json"), config.to_string()).unwrap();
        let labels = LabelMap::from_training(training.iter().copied()).unwrap();
        let (labels, head) = adopt(labels, temp.path());
        (labels.labels().to_vec(), head)
    }

    #[test]
    fn the_same_labels_keep_the_base_models_ids() {
        let base = json!({"0": "spam", "1": "ham"});
        let (labels, head) = adopted(&base, &["ham", "spam", "ham"]);
        assert_eq!(
            labels,
            ["spam", "ham"],
            "sorted they would be the other way round"
        );
        assert!(head == Head::Continued && head.keeps_classifier());
    }

    #[test]
    fn other_labels_get_a_new_classifier_even_if_there_are_as_many() {
        let base = json!({"0": "spam", "1": "ham"});
        for training in [&["no", "yes"][..], &["ham", "spam", "eggs"]] {
            let (labels, head) = adopted(&base, training);
            let mut sorted = training.to_vec();
            sorted.sort_unstable();
            assert_eq!(labels, sorted);
            assert!(!head.keeps_classifier());
            assert!(head.message().unwrap().contains("(spam, ham)"));
        }
    }

    #[test]
    fn a_model_without_names_for_its_labels_says_nothing() {
        for base in [
            json!({"0": "LABEL_0", "1": "LABEL_1"}),
            json!({"0": "a", "2": "b"}),
            json!({}),
            json!(null),
        ] {
            let (labels, head) = adopted(&base, &["b", "a"]);
            assert_eq!(
                (labels.as_slice(), head),
                (&["a".to_owned(), "b".to_owned()][..], Head::New)
            );
        }
    }
}

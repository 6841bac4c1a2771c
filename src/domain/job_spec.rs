//! The job spec: the body of `POST /v1/jobs`, read with all its errors at once.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Columns, DatasetId, FieldError, ObjectReader, TrainingArguments};

const MAX_NAME_CHARS: usize = 200;
const MAX_MODEL_CHARS: usize = 1024;
/// Priorities lie between `-MAX_PRIORITY` and `MAX_PRIORITY`.
pub const MAX_PRIORITY: i32 = 100;
/// A year.
const MAX_RUNTIME_S: u64 = 366 * 86_400;
const MAX_METADATA: usize = 16;
const MAX_METADATA_KEY: usize = 64;
const MAX_METADATA_VALUE: usize = 512;
/// No supported encoder has more positions than this.
const MAX_SEQ_LENGTH: u32 = 8192;

/// What the model learns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// One label for a text or a pair of texts.
    SequenceClassification,
}

/// Which rows to train and evaluate on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DatasetSpec {
    /// The training dataset.
    pub train: DatasetId,
    /// The evaluation dataset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<DatasetId>,
    /// Share of the training rows held out for evaluation instead, stratified by label, in (0, 1).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval_split: Option<f64>,
    /// Which column means what.
    #[serde(default)]
    pub columns: Columns,
}

/// What to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// A name for people; need not be unique.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The base model: a folder, a job of this server (`job:ID`), or a hub id (`org/name`, `org/name@revision`).
    pub model: String,
    /// What the model learns.
    pub task: Task,
    /// Which rows.
    pub dataset: DatasetSpec,
    /// Tokens per sequence; longer texts are cut.
    pub max_seq_length: u32,
    /// How to train.
    pub training_args: TrainingArguments,
    /// Jobs with a higher priority are started first, older ones first among equals; -100 to 100.
    #[serde(default)]
    #[schema(minimum = -100, maximum = 100)]
    pub priority: i32,
    /// Seconds of running, over all attempts, after which the job fails with `max_runtime_exceeded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_runtime_s: Option<u64>,
    /// Up to 16 pairs of the user's own.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
}

impl JobSpec {
    /// Reads and checks a job spec.
    ///
    /// # Errors
    /// Everything wrong with it, each with a JSON pointer.
    pub fn parse(value: &Value) -> Result<Self, Vec<FieldError>> {
        let mut reader = ObjectReader::new(value, "");
        let name: Option<String> = reader.optional("name");
        let model: Option<String> = reader.required("model");
        let task: Option<Task> = reader.required("task");
        let dataset = match reader.raw("dataset") {
            Some(raw) => {
                let (dataset, errors) = parse_dataset(raw);
                reader.absorb(errors);
                dataset
            }
            None => {
                reader.required::<Value>("dataset");
                None
            }
        };
        let max_seq_length = reader.or("max_seq_length", 128u32);
        let training_args = match reader.raw("training_args") {
            Some(raw) => match TrainingArguments::parse(raw, "/training_args") {
                Ok(args) => Some(args),
                Err(errors) => {
                    reader.absorb(errors);
                    None
                }
            },
            None => Some(TrainingArguments::default()),
        };
        let priority = reader.or("priority", 0i32);
        let max_runtime_s: Option<u64> = reader.optional("max_runtime_s");
        let metadata = reader.or("metadata", BTreeMap::<String, String>::new());
        check_lengths(
            &mut reader,
            name.as_deref(),
            model.as_deref(),
            max_seq_length,
            &metadata,
        );
        check_queueing(&mut reader, priority, max_runtime_s);
        if let (Some(dataset), Some(args)) = (&dataset, &training_args) {
            check_evaluation(&mut reader, dataset, args);
        }
        let errors = reader.finish();
        match (model, task, dataset, training_args) {
            (Some(model), Some(task), Some(dataset), Some(training_args)) if errors.is_empty() => {
                Ok(Self {
                    name,
                    model,
                    task,
                    dataset,
                    max_seq_length,
                    training_args,
                    priority,
                    max_runtime_s,
                    metadata,
                })
            }
            _ => Err(errors),
        }
    }
}

fn parse_dataset(value: &Value) -> (Option<DatasetSpec>, Vec<FieldError>) {
    let mut reader = ObjectReader::new(value, "/dataset");
    let train: Option<DatasetId> = reader.required("train");
    let eval: Option<DatasetId> = reader.optional("eval");
    let eval_split: Option<f64> = reader.optional("eval_split");
    let columns = match reader.raw("columns") {
        Some(raw) => {
            let mut columns = ObjectReader::new(raw, "/dataset/columns");
            let default = Columns::default();
            let parsed = Columns {
                text: columns.or("text", default.text),
                text_pair: columns.optional("text_pair"),
                label: columns.or("label", default.label),
            };
            reader.absorb(columns.finish());
            parsed
        }
        None => Columns::default(),
    };
    if eval_split.is_some_and(|share| !(share > 0.0 && share < 1.0)) {
        reader.error(
            "eval_split",
            "out_of_range",
            "`eval_split` must be between 0 and 1, both excluded",
        );
    }
    if eval.is_some() && eval_split.is_some() {
        reader.error(
            "eval_split",
            "invalid_combination",
            "give either `eval` or `eval_split`, not both",
        );
    }
    let errors = reader.finish();
    let dataset = train.map(|train| DatasetSpec {
        train,
        eval,
        eval_split,
        columns,
    });
    (dataset, errors)
}

fn check_lengths(
    reader: &mut ObjectReader<'_>,
    name: Option<&str>,
    model: Option<&str>,
    max_seq_length: u32,
    metadata: &BTreeMap<String, String>,
) {
    if name.is_some_and(|n| n.is_empty() || n.chars().count() > MAX_NAME_CHARS) {
        reader.error(
            "name",
            "out_of_range",
            format!("`name` must have 1 to {MAX_NAME_CHARS} characters"),
        );
    }
    if model.is_some_and(|m| m.trim().is_empty() || m.chars().count() > MAX_MODEL_CHARS) {
        reader.error(
            "model",
            "out_of_range",
            format!("`model` must have 1 to {MAX_MODEL_CHARS} characters"),
        );
    }
    if !(8..=MAX_SEQ_LENGTH).contains(&max_seq_length) {
        reader.error(
            "max_seq_length",
            "out_of_range",
            format!("`max_seq_length` must be between 8 and {MAX_SEQ_LENGTH}"),
        );
    }
    let metadata_fits = metadata.len() <= MAX_METADATA
        && metadata.iter().all(|(key, value)| {
            key.chars().count() <= MAX_METADATA_KEY && value.chars().count() <= MAX_METADATA_VALUE
        });
    if !metadata_fits {
        reader.error(
            "metadata",
            "out_of_range",
            format!(
                "`metadata` takes at most {MAX_METADATA} pairs, keys up to {MAX_METADATA_KEY} and values up \
                 to {MAX_METADATA_VALUE} characters"
            ),
        );
    }
}

fn check_queueing(reader: &mut ObjectReader<'_>, priority: i32, max_runtime_s: Option<u64>) {
    if !(-MAX_PRIORITY..=MAX_PRIORITY).contains(&priority) {
        reader.error(
            "priority",
            "out_of_range",
            format!("`priority` must be between -{MAX_PRIORITY} and {MAX_PRIORITY}"),
        );
    }
    if max_runtime_s.is_some_and(|seconds| !(1..=MAX_RUNTIME_S).contains(&seconds)) {
        reader.error(
            "max_runtime_s",
            "out_of_range",
            format!("`max_runtime_s` must be between 1 and {MAX_RUNTIME_S}"),
        );
    }
}

fn check_evaluation(
    reader: &mut ObjectReader<'_>,
    dataset: &DatasetSpec,
    args: &TrainingArguments,
) {
    let evaluates = args.eval_strategy != super::IntervalStrategy::No;
    if evaluates && dataset.eval.is_none() && dataset.eval_split.is_none() {
        reader.error(
            "dataset",
            "invalid_combination",
            "`eval_strategy` needs something to evaluate on: set `dataset.eval` or `dataset.eval_split`",
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const TRAIN: &str = "01900000-0000-7000-8000-000000000001";

    fn minimal() -> Value {
        json!({
            "model": "sentence-transformers/all-MiniLM-L6-v2",
            "task": "sequence_classification",
            "dataset": {"train": TRAIN},
        })
    }

    #[test]
    fn a_minimal_spec_takes_defaults() {
        let spec = JobSpec::parse(&minimal()).unwrap();
        assert_eq!(spec.max_seq_length, 128);
        assert_eq!(spec.training_args, TrainingArguments::default());
        assert_eq!(spec.dataset.columns, Columns::default());
    }

    #[test]
    fn a_spec_survives_storage() {
        let spec = JobSpec::parse(&minimal()).unwrap();
        let json = serde_json::to_value(&spec).unwrap();
        assert_eq!(JobSpec::parse(&json).as_ref(), Ok(&spec));
        assert_eq!(serde_json::from_value::<JobSpec>(json).unwrap(), spec);
    }

    #[test]
    fn every_error_is_reported_with_its_pointer() {
        let value = json!({
            "task": "poetry",
            "dataset": {"train": "nonsense", "eval_split": 1.5, "colums": {}, "columns": {"txt": "a"}},
            "max_seq_length": 4,
            "training_args": {"seed": -1, "epochs": 3},
            "nmae": "x",
        });
        let errors = JobSpec::parse(&value).unwrap_err();
        let pointers: Vec<&str> = errors.iter().map(|e| e.pointer.as_str()).collect();
        assert_eq!(
            pointers,
            [
                "/model",
                "/task",
                "/dataset/train",
                "/dataset/columns/txt",
                "/dataset/eval_split",
                "/dataset/colums",
                "/training_args/seed",
                "/training_args/epochs",
                "/max_seq_length",
                "/nmae",
            ]
        );
    }

    #[test]
    fn evaluation_needs_rows() {
        let mut value = minimal();
        value["training_args"] = json!({"eval_strategy": "epoch"});
        let errors = JobSpec::parse(&value).unwrap_err();
        assert_eq!(errors[0].pointer, "/dataset");
        value["dataset"]["eval_split"] = json!(0.1);
        assert!(JobSpec::parse(&value).is_ok());
    }
}

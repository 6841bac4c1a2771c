//! The files that make a folder a Hugging Face model: `config.json`, tokenizer files, `trainer_state.json`,
//! and the model card. What is written here was checked against transformers 5.23 (`tests/hf_check.py`).

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::artifacts::ArtifactError;
use crate::data::LabelMap;
use crate::domain::{IntervalStrategy, JobError, SaveStrategy};

use super::setup::Setup;
use super::state::TrainerState;
use super::step::engine;
use super::{TrainJob, model_card};

/// File with what inference needs and HF has no place for.
pub const CHANDLER_FILE: &str = "chandler.json";
/// Tokenizer files copied from the base model where it has them.
const TOKENIZER_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
];

/// Everything but the weights and the tokenizer, by file name.
///
/// # Errors
/// `internal_error` if something cannot be JSON.
pub fn model_files(
    job: &TrainJob,
    setup: &Setup,
    labels: &LabelMap,
    state: &TrainerState,
) -> Result<BTreeMap<&'static str, Vec<u8>>, JobError> {
    let settings = json!({"job_id": job.job_id, "max_seq_length": job.spec.max_seq_length});
    Ok(BTreeMap::from([
        ("config.json", to_json(&config(&setup.base_config, labels))?),
        (
            "trainer_state.json",
            to_json(&trainer_state(job, setup, state))?,
        ),
        (CHANDLER_FILE, to_json(&settings)?),
        (
            "README.md",
            model_card::render(job, labels, state).into_bytes(),
        ),
    ]))
}

/// The base model's tokenizer files, those it has.
///
/// # Errors
/// `checkpoint_failed` if one cannot be read.
pub fn tokenizer_files(model_dir: &Path) -> Result<BTreeMap<&'static str, Vec<u8>>, JobError> {
    let mut files = BTreeMap::new();
    for name in TOKENIZER_FILES {
        let path = model_dir.join(name);
        if path.is_file() {
            let bytes = std::fs::read(&path).map_err(|e| ArtifactError::io("read", &path, e))?;
            files.insert(name, bytes);
        }
    }
    Ok(files)
}

/// Indented JSON.
///
/// # Errors
/// `internal_error` if `value` cannot be JSON.
pub fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>, JobError> {
    let text = serde_json::to_string_pretty(value).map_err(engine)?;
    Ok((text + "\n").into_bytes())
}

/// The base model's configuration, unknown fields kept, with the head described.
fn config(base: &Value, labels: &LabelMap) -> Value {
    let mut config = base.as_object().cloned().unwrap_or_default();
    // `num_labels` would contradict `id2label` if the base model had other labels.
    config.remove("num_labels");
    config.remove("_name_or_path");
    config.insert(
        "architectures".to_owned(),
        json!(["BertForSequenceClassification"]),
    );
    config.insert("id2label".to_owned(), Value::Object(labels.id2label()));
    config.insert("label2id".to_owned(), Value::Object(labels.label2id()));
    config.insert(
        "problem_type".to_owned(),
        json!("single_label_classification"),
    );
    config.insert("dtype".to_owned(), json!("float32"));
    // Version 4 of transformers reads the old name.
    config.insert("torch_dtype".to_owned(), json!("float32"));
    Value::Object(config)
}

/// HF's `trainer_state.json`. Unknown keys break `TrainerState.load_from_json`, so these and no more.
fn trainer_state(job: &TrainJob, setup: &Setup, state: &TrainerState) -> Value {
    let args = &job.spec.training_args;
    let epoch = setup.order.epochs_after(state.global_step);
    let epochs_in_all = setup.order.epochs_after(setup.total_steps).ceil();
    let best_checkpoint = state
        .best_global_step
        .map(crate::artifacts::checkpoint_name);
    let log_history: Vec<Value> = state.log_history.iter().map(|entry| json!(entry)).collect();
    let should_stop = setup.is_over(args, state);
    let stopping_counter = state.early_stopping_counter;
    let mut state = json!({
        "best_global_step": state.best_global_step,
        "best_metric": state.best_metric,
        "best_model_checkpoint": best_checkpoint,
        "epoch": epoch,
        "eval_steps": setup.eval_steps(),
        "global_step": state.global_step,
        "is_hyper_param_search": false,
        "is_local_process_zero": true,
        "is_world_process_zero": true,
        "log_history": log_history,
        "logging_steps": setup.logging_steps(),
        "max_steps": setup.total_steps,
        "num_input_tokens_seen": state.tokens_seen,
        "num_train_epochs": epochs_in_all,
        "save_steps": setup.save_steps(),
        "stateful_callbacks": {
            "TrainerControl": {
                "args": {
                    "should_epoch_stop": false,
                    "should_evaluate": args.eval_strategy != IntervalStrategy::No,
                    "should_log": false,
                    "should_save": args.save_strategy != SaveStrategy::No,
                    "should_training_stop": should_stop,
                },
                "attributes": {},
            }
        },
        "total_flos": setup.flos(state.tokens_seen),
        "train_batch_size": args.per_device_train_batch_size,
        "trial_name": null,
        "trial_params": null,
    });
    if let Some(patience) = args.early_stopping_patience {
        state["stateful_callbacks"]["EarlyStoppingCallback"] = json!({
            "args": {
                "early_stopping_patience": patience,
                "early_stopping_threshold": args.early_stopping_threshold,
            },
            "attributes": {"early_stopping_patience_counter": stopping_counter},
        });
    }
    state
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_keeps_what_the_base_had_and_describes_the_head() {
        let base = json!({
            "model_type": "bert", "hidden_size": 8, "num_labels": 2, "_name_or_path": "x",
            "architectures": ["BertModel"], "custom": {"a": 1},
        });
        let labels = LabelMap::from_ordered(["no".to_owned(), "yes".to_owned()]);
        let config = config(&base, &labels);
        assert_eq!(
            config["architectures"],
            json!(["BertForSequenceClassification"])
        );
        assert_eq!(config["id2label"], json!({"0": "no", "1": "yes"}));
        assert_eq!(config["label2id"], json!({"no": 0, "yes": 1}));
        assert_eq!(config["problem_type"], "single_label_classification");
        assert_eq!(config["custom"], json!({"a": 1}));
        assert!(config.get("num_labels").is_none());
    }
}

//! The model card: `README.md` of an exported model, with the YAML front matter the Hub reads.

use std::fmt::Write as _;

use crate::data::LabelMap;

use super::TrainJob;
use super::state::TrainerState;

/// Evaluation numbers worth showing, in this order.
const SHOWN: [&str; 6] = [
    "eval_loss",
    "eval_accuracy",
    "eval_f1",
    "eval_precision",
    "eval_recall",
    "eval_matthews_correlation",
];

/// The card's text.
pub fn render(job: &TrainJob, labels: &LabelMap, state: &TrainerState) -> String {
    let name = job
        .spec
        .name
        .clone()
        .unwrap_or_else(|| job.job_id.to_string());
    let mut card = front_matter(job, &name, state);
    let _ = write!(
        card,
        "# {name}\n\nFine-tuned from `{}` by chandler, job `{}`.\n\n",
        job.spec.model, job.job_id
    );
    let shown = labels.labels().iter().take(50);
    let list = shown
        .map(|l| format!("`{l}`"))
        .collect::<Vec<_>>()
        .join(", ");
    let _ = write!(card, "Labels ({}): {list}\n\n", labels.len());
    evaluation(&mut card, state);
    let _ = write!(
        card,
        "## Training\n\n- step {}, {} samples, {} tokens\n- max_seq_length {}\n\n```json\n{}\n```\n\n",
        state.global_step,
        state.samples_seen,
        state.tokens_seen,
        job.spec.max_seq_length,
        serde_json::to_string_pretty(&job.spec.training_args).unwrap_or_default(),
    );
    let _ = write!(
        card,
        "- training data SHA-256 `{}`\n\n## Use\n\n```python\nfrom transformers import pipeline\n\n\
         classify = pipeline(\"text-classification\", model=\"path/to/this/folder\")\n\
         classify(\"some text\", truncation=True, max_length={})\n```\n",
        job.train.sha256, job.spec.max_seq_length
    );
    card
}

fn front_matter(job: &TrainJob, name: &str, state: &TrainerState) -> String {
    let mut yaml =
        String::from("---\nlibrary_name: transformers\npipeline_tag: text-classification\n");
    // A folder or a job id is no model of the Hub, and the Hub refuses a card that says it is.
    let on_hub = job.spec.model.split('@').next().unwrap_or_default();
    if on_hub.matches('/').count() == 1 && !on_hub.starts_with(['.', '/']) {
        let _ = writeln!(yaml, "base_model: {}", quoted(on_hub));
    }
    yaml.push_str("tags:\n- chandler\n- text-classification\n");
    if let Some(accuracy) = state.last_eval.get("eval_accuracy") {
        let _ = write!(
            yaml,
            "model-index:\n- name: {}\n  results:\n  - task:\n      type: text-classification\n    \
             dataset:\n      name: evaluation set\n      type: custom\n    metrics:\n    - type: accuracy\n      \
             value: {accuracy}\n",
            quoted(name)
        );
    }
    yaml.push_str("---\n\n");
    yaml
}

fn evaluation(card: &mut String, state: &TrainerState) {
    if state.last_eval.is_empty() {
        return;
    }
    card.push_str("## Evaluation\n\n| metric | value |\n|---|---|\n");
    for name in SHOWN {
        if let Some(value) = state.last_eval.get(name) {
            let _ = writeln!(card, "| {name} | {value:.4} |");
        }
    }
    card.push('\n');
}

/// A YAML double-quoted scalar; JSON's escapes are a subset of YAML's.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

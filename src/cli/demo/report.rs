//! What the demo prints at the end.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::train::Predictor;

/// Three tickets the model has not seen, one of them hard.
const SENTENCES: [&str; 3] = [
    "The courier left my parcel in the rain and the box is soaked.",
    "I was charged twice for March, please check.",
    "It would be great if the app could export to a spreadsheet one day.",
];

/// The folder of the trained model.
pub fn model_dir(job: &Value) -> anyhow::Result<&str> {
    job["model_dir"]
        .as_str()
        .context("the job has no model_dir")
}

/// Success, or 1 for a job that failed or was cancelled.
pub fn exit_code(job: &Value) -> ExitCode {
    if job["status"] == "succeeded" {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Accuracy beside the majority guess, and the table per class.
pub fn results(job: &Value, report: &Value) -> anyhow::Result<()> {
    let metrics = &job["metrics"];
    println!();
    println!(
        "accuracy    {:.4} on held-out tickets (always guessing the most frequent label: {:.4})",
        accuracy(job).context("the job has no eval_accuracy")?,
        report["majority_share"].as_f64().unwrap_or_default(),
    );
    println!(
        "trained in  {:.1} s, {:.0} samples/s",
        metrics["train_runtime"].as_f64().unwrap_or_default(),
        metrics["train_samples_per_second"]
            .as_f64()
            .unwrap_or_default(),
    );
    println!("\n  {:<18} precision  recall     f1  rows", "label");
    for class in report["classes"].as_array().into_iter().flatten() {
        println!(
            "  {:<18} {:>9.3} {:>7.3} {:>6.3} {:>5}",
            class["label"].as_str().unwrap_or_default(),
            class["precision"].as_f64().unwrap_or_default(),
            class["recall"].as_f64().unwrap_or_default(),
            class["f1"].as_f64().unwrap_or_default(),
            class["support"],
        );
    }
    println!("\nmodel       {}", model_dir(job)?);
    Ok(())
}

/// Why the job did not succeed.
pub fn failure(job: &Value) {
    println!("\nthe job ended as {}: {}", job["status"], job["error"]);
}

/// Labels three sentences with the new model.
pub fn try_model(dir: &Path) -> anyhow::Result<()> {
    let mut predictor = Predictor::load(dir)?;
    let texts = SENTENCES.map(str::to_owned);
    println!();
    for (text, prediction) in texts.iter().zip(predictor.predict(&texts)?) {
        println!("  {:<16} {:.3}  {text}", prediction.label, prediction.score);
    }
    Ok(())
}

/// The curl lines that do the same.
pub fn by_hand(url: &str, model: &str, job: &Value) {
    let id = job["id"].as_str().unwrap_or_default();
    println!(
        "\nby hand:\n  \
         curl -H 'content-type: text/csv' --data-binary @train.csv '{url}/v1/datasets?name=train'\n  \
         curl -H 'content-type: application/json' {url}/v1/jobs -d '{{\"model\": \"{model}\",\n    \
         \"task\": \"sequence_classification\", \"dataset\": {{\"train\": DATASET_ID, \"eval_split\": 0.1}},\n    \
         \"training_args\": {{\"num_train_epochs\": 3, \"eval_strategy\": \"epoch\"}}}}'\n  \
         curl -N -H 'accept: text/event-stream' {url}/v1/jobs/{id}/events\n  \
         curl {url}/v1/jobs/{id}\n  \
         curl {url}/v1/jobs/{id}/checkpoints/best/archive | tar x"
    );
}

/// The last line with `--json`.
pub fn json_line(job: &Value, report: &Value, url: &str) -> Value {
    json!({
        "job_id": job["id"],
        "status": job["status"],
        "eval_accuracy": accuracy(job),
        "majority_accuracy": report["majority_share"],
        "model_dir": job["model_dir"],
        "train_seconds": job["metrics"]["train_runtime"],
        "error": job["error"],
        "server": url,
    })
}

/// Accuracy of the trained model on the held-out set.
fn accuracy(job: &Value) -> Option<f64> {
    job["metrics"]["eval_accuracy"].as_f64()
}

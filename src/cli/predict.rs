//! `chandler predict MODEL_DIR TEXT…`

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::train::Predictor;

/// Label texts with a trained model
#[derive(Args, Debug)]
pub struct Predict {
    /// Folder of the model
    model_dir: PathBuf,
    /// Texts to label
    #[arg(required = true)]
    texts: Vec<String>,
    /// One JSON object a line, with the probability of every label
    #[arg(long)]
    json: bool,
}

impl Predict {
    /// Loads the model and prints one line per text.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let mut predictor = Predictor::load(&self.model_dir)?;
        let predictions = predictor.predict(&self.texts)?;
        let mut out = std::io::stdout().lock();
        for (text, prediction) in self.texts.iter().zip(predictions) {
            if self.json {
                let scores: serde_json::Map<String, serde_json::Value> = prediction
                    .scores
                    .into_iter()
                    .map(|(label, score)| (label, score.into()))
                    .collect();
                let line = serde_json::json!({
                    "text": text, "label": prediction.label, "score": prediction.score, "scores": scores,
                });
                writeln!(out, "{line}")?;
            } else {
                writeln!(out, "{}\t{:.4}\t{text}", prediction.label, prediction.score)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

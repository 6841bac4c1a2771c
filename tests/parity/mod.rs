//! The same training, proved: against the Hugging Face Trainer, against itself with other threads and other
//! micro-batches, and sequence by sequence against other neighbours.

mod determinism;
mod hugging_face;
mod neighbours;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use chandler::domain::{DatasetFormat, DatasetLayout, DatasetLocation, DeviceKind, JobSpec};
use chandler::faults::Faults;
use chandler::train::{self, Outcome, TrainJob};
use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::support::recorder::Recorder;

/// Tensors by name.
type Weights = BTreeMap<String, Vec<f32>>;

/// Trains in this process; answers what was reported and the weights at the end.
fn train(model_dir: &Path, rows: &Path, spec: &Value) -> (Recorder, Weights) {
    let out = tempfile::tempdir().unwrap();
    // Beside the rows comes their token cache, which does not belong among fixtures.
    let dataset = out.path().join("rows.csv");
    std::fs::copy(rows, &dataset).unwrap();
    let mut body = json!({
        "model": "base",
        "task": "sequence_classification",
        "dataset": {"train": "00000000-0000-0000-0000-000000000001"},
    });
    for (name, value) in spec.as_object().unwrap() {
        body[name] = value.clone();
    }
    let job = TrainJob {
        job_id: "00000000-0000-0000-0000-000000000002".parse().unwrap(),
        spec: JobSpec::parse(&body).unwrap(),
        train: DatasetLocation {
            path: dataset,
            layout: DatasetLayout {
                format: DatasetFormat::Csv,
                header: true,
                columns: vec!["text".to_owned(), "label".to_owned()],
            },
            sha256: String::new(),
        },
        eval: None,
        model_dir: model_dir.to_owned(),
        checkpoints_dir: out.path().join("checkpoints"),
        micro_batch_divisor: 1,
        device: DeviceKind::Cpu,
        faults: Faults::default(),
    };
    let recorder = Recorder::default();
    let Outcome::Finished { model_step } = train::run(&job, &recorder).unwrap() else {
        panic!("nobody asked it to stop");
    };
    let checkpoint = format!("checkpoint-{model_step}");
    let weights = read_weights(&job.checkpoints_dir.join(checkpoint));
    (recorder, weights)
}

/// The tensors of a folder's `model.safetensors`.
fn read_weights(dir: &Path) -> Weights {
    weights_in(&dir.join("model.safetensors"))
}

fn weights_in(path: &Path) -> Weights {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    let values = |data: &[u8]| {
        let (words, _) = data.as_chunks::<4>();
        words.iter().map(|word| f32::from_le_bytes(*word)).collect()
    };
    tensors
        .into_iter()
        .map(|(name, view)| (name, values(view.data())))
        .collect()
}

/// Softmax takes the keys' biases away again, so their gradient is nothing but rounding, which Adam makes as
/// large as any other. They are the only weights that two sound trainings need not agree on.
fn counts(name: &str) -> bool {
    !name.ends_with("attention.self.key.bias")
}

/// The L2 norm of `a - b`, over the weights that count.
fn distance(a: &Weights, b: &Weights) -> f64 {
    assert!(a.keys().eq(b.keys()), "other tensors");
    let pairs = a
        .iter()
        .filter(|(name, _)| counts(name))
        .flat_map(|(name, x)| {
            assert_eq!(x.len(), b[name].len(), "{name}");
            x.iter().zip(&b[name])
        });
    pairs
        .map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// The L2 norm of the weights that count.
fn norm(weights: &Weights) -> f64 {
    let values = weights.iter().filter(|(name, _)| counts(name));
    values
        .flat_map(|(_, x)| x)
        .map(|x| f64::from(*x).powi(2))
        .sum::<f64>()
        .sqrt()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

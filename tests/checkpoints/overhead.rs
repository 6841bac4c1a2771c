//! What a checkpoint costs (row 20): `cargo test --test chandler checkpoints::overhead -- --ignored --nocapture`

use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use chandler::domain::{Command, Event, Phase};
use chandler::train::{self, Observer};
use serde_json::json;

use super::lab::Lab;

/// HF's default `save_steps`.
const DEFAULT_SAVE_STEPS: f64 = 500.0;
/// CheckFreq's promise, and ours.
const ALLOWED: f64 = 0.035;

struct Stopwatch {
    started: Instant,
    seen: Mutex<Vec<(f64, Event)>>,
}

impl Observer for Stopwatch {
    fn event(&self, event: Event) {
        self.seen
            .lock()
            .unwrap()
            .push((self.started.elapsed().as_secs_f64(), event));
    }
    fn command(&self) -> Command {
        Command::Continue
    }
}

/// A model of MiniLM's shape (6 layers of 384, 30,522 words; 22.7 M parameters): the vocabulary is filled up
/// with words that never come.
fn minilm(lab: &Path) {
    let dir = lab.join("dropout");
    let path = dir.join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (name, value) in [
        ("vocab_size", 30_522),
        ("hidden_size", 384),
        ("num_hidden_layers", 6),
        ("num_attention_heads", 12),
        ("intermediate_size", 1536),
        ("max_position_embeddings", 512),
    ] {
        config[name] = json!(value);
    }
    std::fs::write(&path, config.to_string()).unwrap();
    crate::support::tiny_bert::write_weights_of(&dir, &config);
    let path = dir.join("tokenizer.json");
    let mut tokenizer: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    for id in vocab.len()..30_522 {
        vocab.insert(format!("unused{id}"), json!(id));
    }
    std::fs::write(&path, tokenizer.to_string()).unwrap();
}

#[test]
#[ignore = "a measurement"]
fn a_checkpoint_costs_little_at_the_default_interval() {
    let temp = tempfile::tempdir().unwrap();
    let lab = Lab::set_up(&temp.path().join("lab"), 400);
    minilm(&lab.dir);
    let spec = json!({"training_args": {
        "max_steps": 60, "per_device_train_batch_size": 8, "logging_steps": 1, "save_steps": 20,
        "save_total_limit": 1,
    }});
    let job = lab.job(&temp.path().join("run"), &spec);
    let watch = Stopwatch {
        started: Instant::now(),
        seen: Mutex::default(),
    };
    train::run(&job, &watch).unwrap();
    let seen = watch.seen.into_inner().unwrap();
    let steps: Vec<(u64, f64)> = seen
        .iter()
        .filter_map(|(at, event)| match event {
            Event::Metrics { step, values, .. } if values.contains_key("loss") => {
                Some((*step, *at))
            }
            _ => None,
        })
        .collect();
    // From one log entry to the next is one step, a save between them included.
    let times: Vec<f64> = steps.windows(2).map(|w| w[1].1 - w[0].1).collect();
    let mut sorted = times.clone();
    sorted.sort_by(f64::total_cmp);
    let step = sorted[sorted.len() / 2];
    let mut blocked = Vec::new();
    let mut saving = None;
    for (at, event) in &seen {
        match event {
            Event::Phase {
                phase: Phase::Saving,
            } => saving = Some(*at),
            Event::Phase {
                phase: Phase::Training,
            } => blocked.extend(saving.take().map(|s| at - s)),
            _ => {}
        }
    }
    // The last save is the end's own, which is waited for.
    blocked.truncate(2);
    let longest = blocked.iter().copied().fold(0.0, f64::max);
    // All that saving cost the steps from one save on, the slower ones beside the writer included.
    let total: f64 = times[19..39].iter().map(|t| (t - step).max(0.0)).sum();
    println!(
        "step {:.1} ms; blocked {:?} ms; longest is {:.3} % of 500 steps; with slower steps {:.1} ms, {:.3} %",
        1e3 * step,
        blocked
            .iter()
            .map(|b| (1e4 * b).round() / 10.0)
            .collect::<Vec<_>>(),
        100.0 * longest / (DEFAULT_SAVE_STEPS * step),
        1e3 * total,
        100.0 * total / (DEFAULT_SAVE_STEPS * step),
    );
    assert_eq!(blocked.len(), 2);
    assert!(longest / (DEFAULT_SAVE_STEPS * step) <= ALLOWED);
    assert!(total / (DEFAULT_SAVE_STEPS * step) <= ALLOWED);
}

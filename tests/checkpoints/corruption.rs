//! A damaged newest checkpoint is passed over for the one before, and the event log says so (row 18).

use std::path::Path;

use chandler::domain::{Event, LogLevel};
use chandler::train::{Outcome, Predictor, TrainJob};
use serde_json::{Value, json};

use super::lab::{Lab, Random, copy_tree, file, lane, names, run};

const FILES: [&str; 6] = [
    "model.safetensors",
    "optimizer.safetensors",
    "trainer_progress.json",
    "config.json",
    "tokenizer.json",
    "manifest.json",
];

fn spec() -> Value {
    json!({"training_args": {
        "max_steps": 6, "learning_rate": 3e-3, "logging_steps": 1, "seed": 3, "save_steps": 2,
    }})
}

/// Damages the checkpoint in `newest`; answers how.
fn damage(newest: &Path, previous: &Path, random: &mut Random) -> String {
    let name = *random.pick(&FILES);
    let path = newest.join(name);
    let bytes = std::fs::read(&path).unwrap();
    let at = random.below(bytes.len() as u64);
    let index = usize::try_from(at).unwrap();
    let write = |bytes: &[u8]| std::fs::write(&path, bytes).unwrap();
    match random.below(8) {
        0 => {
            let mut bytes = bytes;
            bytes[index] ^= 1 << random.below(8);
            write(&bytes);
            format!("a bit of {name} at {at}")
        }
        1 => {
            write(&bytes[..index]);
            format!("{name} cut to {at} bytes")
        }
        2 => {
            write(b"");
            format!("{name} empty")
        }
        3 => {
            std::fs::remove_file(&path).unwrap();
            format!("no {name}")
        }
        4 => {
            std::fs::copy(previous.join("manifest.json"), newest.join("manifest.json")).unwrap();
            "the manifest of the checkpoint before".to_owned()
        }
        5 => {
            let extra: Vec<u8> = (0..=random.below(64)).map(|i| i as u8).collect();
            write(&[bytes, extra].concat());
            format!("bytes behind {name}")
        }
        6 => {
            let name = *random.pick(&FILES[..3]);
            std::fs::copy(previous.join(name), newest.join(name)).unwrap();
            format!("{name} of the checkpoint before")
        }
        _ => {
            let other = newest.join("README.md");
            let text = std::fs::read(&other).unwrap();
            std::fs::write(&other, &bytes).unwrap();
            write(&text);
            format!("{name} and README.md swapped")
        }
    }
}

fn corrupt(count: usize, seed: u64) {
    let temp = tempfile::tempdir().unwrap();
    let lab = Lab::set_up(&temp.path().join("lab"), 24);
    let whole = lab.job(&temp.path().join("whole"), &spec());
    assert_eq!(run(&whole).0, Ok(Outcome::Finished { model_step: 6 }));
    std::fs::remove_dir_all(whole.checkpoints_dir.join("checkpoint-6")).unwrap();
    let template = whole.checkpoints_dir.clone();
    // The weights to end with, and what the damaged one would give if nobody looked.
    let expected = {
        let job = lab.job(&temp.path().join("expected"), &spec());
        copy_tree(&template, &job.checkpoints_dir);
        run(&job).0.unwrap();
        file(&job, 6, "model.safetensors")
    };
    let mut random = Random(seed);
    let mut accepted_unseen = 0;
    for round in 0..count {
        let place = temp.path().join(format!("round-{round}"));
        let mut job = lab.job(&place, &spec());
        job.spec.training_args.save_strategy = chandler::domain::SaveStrategy::No;
        copy_tree(&template, &job.checkpoints_dir);
        let (newest, previous) = (
            job.checkpoints_dir.join("checkpoint-4"),
            job.checkpoints_dir.join("checkpoint-2"),
        );
        let how = damage(&newest, &previous, &mut random);
        accepted_unseen += usize::from(Predictor::load(&newest).is_ok());
        fell_back(
            &job,
            &expected,
            &format!("seed {seed}, round {round}: {how}"),
        );
        std::fs::remove_dir_all(&place).unwrap();
    }
    println!("{count} damaged, 0 accepted; without hashes {accepted_unseen} would have been");
    // The control: a reader that does not check takes some of them for sound.
    assert!(
        accepted_unseen > 0,
        "no damage was of the kind that only a hash finds"
    );
}

fn fell_back(job: &TrainJob, expected: &[u8], what: &str) {
    let (outcome, recorder) = run(job);
    assert_eq!(outcome, Ok(Outcome::Finished { model_step: 6 }), "{what}");
    let events = recorder.events.lock().unwrap();
    let warning = events.iter().find_map(|event| match event {
        Event::Log {
            level: LogLevel::Warning,
            message,
        } => Some(message.as_str()),
        _ => None,
    });
    let reason = warning
        .and_then(|text| text.strip_prefix("the checkpoint of step 4 is damaged and was skipped: "))
        .unwrap_or_else(|| panic!("{what}: {warning:?}"));
    assert!(reason.contains("checkpoint-4"), "{what}: {reason}");
    drop(events);
    let resumed = "resumed from the checkpoint of step 2".to_owned();
    assert!(recorder.messages().contains(&resumed), "{what}");
    assert_eq!(file(job, 6, "model.safetensors"), expected, "{what}");
    assert_eq!(
        names(job),
        ["checkpoint-2", "checkpoint-4", "checkpoint-6"],
        "{what}"
    );
}

#[test]
fn forty_damaged_checkpoints_are_passed_over() {
    corrupt(40, 5);
}

#[test]
#[ignore = "minutes: 1,000 corruptions"]
fn lane_damaged_checkpoints_are_passed_over() {
    let (count, seed) = lane(1000);
    corrupt(count, seed);
}

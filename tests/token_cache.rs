//! Rows are tokenised once: the second training on a dataset reads what the first one left, and whatever happens
//! to that file, the weights are the same.

use std::path::{Path, PathBuf};

use chandler::domain::Event;
use chandler::train::{Outcome, TrainJob};
use serde_json::{Value, json};

use crate::checkpoints::lab::{Lab, Recorder, file, run};
use crate::support::{TestServer, reviews, spec, tiny_bert};

const STEPS: u64 = 20;
const WARM: &str = "the train dataset is tokenised already";

fn training() -> Value {
    json!({"eval_split": 0.25, "training_args": {
        "max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "eval_strategy": "epoch",
        "logging_steps": 1, "seed": 3,
    }})
}

fn job(lab: &Lab, run: &str) -> TrainJob {
    lab.job(&lab.dir.join(run), &training())
}

/// Trains to the end; answers weights and what was logged.
fn weights(job: &TrainJob) -> (Vec<u8>, Recorder) {
    let (outcome, recorder) = run(job);
    assert_eq!(outcome.unwrap(), Outcome::Finished { model_step: STEPS });
    (file(job, STEPS, "model.safetensors"), recorder)
}

/// The files in the folder of caches.
fn caches(dataset_dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dataset_dir.join("tokens")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_damaged_cache_is_noticed_built_again_and_changes_no_weight() {
    let temp = tempfile::tempdir().unwrap();
    let lab = Lab::set_up(&temp.path().join("lab"), 64);
    let (cold, recorder) = weights(&job(&lab, "cold"));
    assert!(!recorder.messages().contains(&WARM.to_owned()));
    let (warm, recorder) = weights(&job(&lab, "warm"));
    assert!(recorder.messages().contains(&WARM.to_owned()));
    assert!(cold == warm);

    let [cache] = &caches(&lab.dir)[..] else {
        panic!("not one cache: {:?}", caches(&lab.dir));
    };
    let sound = std::fs::read(cache).unwrap();
    let other = Lab::set_up(&temp.path().join("other"), 10);
    weights(&job(&other, "other"));
    let foreign = std::fs::read(&caches(&other.dir)[0]).unwrap();
    let mut flipped = sound.clone();
    flipped[sound.len() / 2] ^= 1;
    let cut = &sound[..sound.len() - 1];
    for (name, damaged) in [
        ("flipped", &flipped[..]),
        ("cut", cut),
        ("foreign", &foreign),
        ("empty", b""),
    ] {
        std::fs::write(cache, damaged).unwrap();
        let (rebuilt, recorder) = weights(&job(&lab, name));
        assert!(rebuilt == cold, "{name}");
        let messages = recorder.messages();
        let told = |m: &String| m.starts_with("the train dataset's token cache is not used: ");
        assert!(messages.iter().any(told), "{name}: {messages:?}");
        assert!(std::fs::read(cache).unwrap() == sound, "{name}");
    }
}

#[test]
fn trainings_that_tokenise_the_same_dataset_at_once_do_not_hurt_each_other() {
    let temp = tempfile::tempdir().unwrap();
    let lab = Lab::set_up(&temp.path().join("lab"), 300);
    let weights: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let names = ["a", "b", "c"];
        let runs = names.map(|name| scope.spawn(|| weights(&job(&lab, name)).0));
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(weights[0] == weights[1] && weights[1] == weights[2]);
    assert_eq!(caches(&lab.dir).len(), 1, "{:?}", caches(&lab.dir));
}

#[test]
fn other_data_or_another_tokenizer_is_another_cache_and_old_ones_go() {
    let temp = tempfile::tempdir().unwrap();
    let lab = Lab::set_up(&temp.path().join("lab"), 40);
    for length in 8..16 {
        let mut job = job(&lab, &format!("length-{length}"));
        job.spec.max_seq_length = length;
        let (_, recorder) = weights(&job);
        assert!(
            !recorder.messages().contains(&WARM.to_owned()),
            "length {length}"
        );
        assert!(caches(&lab.dir).len() <= 4);
    }
    // Edited in place: the cache of the old rows is not taken for that of the new ones.
    let before = weights(&job(&lab, "before")).0;
    std::fs::write(lab.dir.join("train.csv"), reviews(48)).unwrap();
    let (after, recorder) = weights(&job(&lab, "after"));
    assert!(!recorder.messages().contains(&WARM.to_owned()));
    assert!(after != before);
}

#[test]
fn a_server_keeps_caches_with_the_dataset_and_removes_them_with_it() {
    let server = TestServer::start();
    let model = server.data_dir.join("tiny");
    tiny_bert::write(&model);
    let dataset = server.csv(&reviews(40));
    let logged = |job: &str| {
        assert_eq!(server.wait(job)["status"], "succeeded");
        let events = server.events(job);
        events.iter().any(|event| event["data"]["message"] == WARM)
    };
    let body = spec(&model, &dataset);
    assert!(!logged(&server.job(&body)));
    assert!(logged(&server.job(&body)));
    let dir = server.data_dir.join("datasets").join(&dataset);
    assert_eq!(caches(&dir).len(), 1);
    let path = server.url(&format!("/v1/datasets/{dataset}"));
    assert_eq!(server.http.delete(path).send().unwrap().status(), 204);
    assert!(!dir.exists());
}

/// What the events say of the rows is the same whether they were tokenised or read.
#[test]
fn the_report_on_the_rows_is_that_of_the_first_time() {
    let temp = tempfile::tempdir().unwrap();
    let lab = Lab::set_up(&temp.path().join("lab"), 40);
    let report = |run: &str| {
        let (_, recorder) = weights(&job(&lab, run));
        let events = recorder.events.lock().unwrap();
        let found = events.iter().find_map(|event| match event {
            Event::Log { message, .. } if message.starts_with("train: ") => Some(message.clone()),
            _ => None,
        });
        found.unwrap()
    };
    let cold = report("cold");
    assert!(cold.starts_with("train: 30 rows, 2 labels, "), "{cold}");
    assert!(cold.contains("; eval: 10 rows, 2 labels, "), "{cold}");
    assert_eq!(report("warm"), cold);
}

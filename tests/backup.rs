//! `chandler backup` and `chandler restore`: a copy of a live server's state that is whole, or refused.

use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::support::database::{integrity, texts};
use crate::support::lane::Lane;
use crate::support::submitters::{Manners, Submitters, compare, listed};
use crate::support::{TestServer, chandler, reviews, spec, tiny_bert};

fn backup(data_dir: &Path, dest: &Path, with_files: bool) -> Output {
    let mut command = chandler();
    command.arg("backup").arg(dest);
    command.arg("--data-dir").arg(data_dir);
    if with_files {
        command.arg("--with-files");
    }
    command.output().unwrap()
}

fn restore(source: &Path, data_dir: &Path) -> Output {
    let mut command = chandler();
    command.arg("restore").arg(source);
    command.arg("--data-dir").arg(data_dir);
    command.output().unwrap()
}

fn must(output: Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

fn refusal(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn files_under(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_under(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn a_backup_under_load_holds_everything_acknowledged_before_it_began() {
    let temp = tempfile::tempdir().unwrap();
    let server = TestServer::with_slots(0);
    let dataset = server.csv("text,label\na,x\nb,y\n");
    let submitters = Submitters::start(server.address(), &dataset, "b", 8, Manners::WithKeys);
    for round in 0..3 {
        while submitters.acknowledged().len() < 50 * (round + 1) {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let before = submitters.acknowledged();
        let dest = temp.path().join(format!("backup-{round}"));
        must(backup(&server.data_dir, &dest, false));
        let data_dir = temp.path().join(format!("restored-{round}"));
        must(restore(&dest, &data_dir));
        assert_eq!(integrity(&data_dir.join("chandler.db")), ["ok"]);
        let restored = TestServer::in_dir(&data_dir, 0);
        let there = listed(restored.address());
        let verdict = compare(&before, &there);
        assert!(verdict.missing.is_empty(), "{verdict:?}");
        // Each job came with its event and its key: one moment, not a mixture of several.
        let database = data_dir.join("chandler.db");
        let torn = "SELECT id FROM job WHERE last_seq <> \
             (SELECT COUNT(*) FROM event WHERE event.job_id = job.id) \
             OR id NOT IN (SELECT job_id FROM idempotency_key)";
        assert_eq!(texts(&database, torn), Vec::<String>::new());
        println!(
            "{} acknowledged before, {} restored",
            before.len(),
            there.len()
        );
    }
    assert_eq!(submitters.refused(), 0);
    submitters.finish();
}

#[test]
fn a_backup_with_files_serves_models_and_trains_on() {
    let temp = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    let model = temp.path().join("tiny");
    tiny_bert::write(&model);
    let dataset = server.csv(&reviews(40));
    let body = spec(&model, &dataset);
    let job = server.job(&body);
    server.wait(&job);
    let path = format!("/v1/jobs/{job}/checkpoints/last/files/model.safetensors");
    let weights = server.get(&path).bytes().unwrap();
    let dest = temp.path().join("backup");
    must(backup(&server.data_dir, &dest, true));
    drop(server);

    let data_dir = temp.path().join("restored");
    must(restore(&dest, &data_dir));
    let server = TestServer::in_dir(&data_dir, 1);
    assert_eq!(server.get(&path).bytes().unwrap(), weights);
    assert_eq!(server.wait(&server.job(&body))["status"], "succeeded");
}

#[test]
fn a_backup_of_a_stopped_server_without_files_keeps_the_manifests() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = temp.path().join("data");
    let server = TestServer::in_dir(&data_dir, 1);
    let model = temp.path().join("tiny");
    tiny_bert::write(&model);
    let job = server.job(&spec(&model, &server.csv(&reviews(40))));
    let before = server.wait(&job);
    server.stop();
    let dest = temp.path().join("backup");
    must(backup(&data_dir, &dest, false));
    let names: Vec<String> = files_under(&dest)
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["backup.json", "chandler.db", "manifest.json"]);
    let restored = temp.path().join("restored");
    assert!(must(restore(&dest, &restored)).contains("without datasets"));
    let server = TestServer::in_dir(&restored, 0);
    let after = server.get_json(&format!("/v1/jobs/{job}"));
    assert_eq!(after["metrics"], before["metrics"]);
    assert_eq!(after["status"], "succeeded");
}

/// Every single byte counts: whichever is wrong, nothing is restored, and the file is named.
#[test]
fn a_damaged_backup_is_refused_with_the_file_named() {
    let temp = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    let model = temp.path().join("tiny");
    tiny_bert::write(&model);
    let job = server.job(&spec(&model, &server.csv(&reviews(40))));
    server.wait(&job);
    let dest = temp.path().join("backup");
    must(backup(&server.data_dir, &dest, true));
    // The checkpoint's files are hard links: what damages the backup must not damage the server.
    drop(server);
    let mut lane = Lane::short("damaged backups", 3);
    let files = files_under(&dest);
    assert!(files.len() > 6, "{files:?}");
    for file in &files {
        let sound = std::fs::read(file).unwrap();
        for _ in 0..lane.count {
            let mut damaged = sound.clone();
            let at = usize::try_from(lane.random.between(0, sound.len() as u64)).unwrap();
            match lane.random.next() % 3 {
                0 => damaged[at] ^= 1 << (lane.random.next() % 8),
                1 => damaged.truncate(at),
                _ => damaged.insert(at, b'x'),
            }
            std::fs::write(file, &damaged).unwrap();
            assert_refused(&dest, file, &temp.path().join("restored"));
        }
        std::fs::remove_file(file).unwrap();
        assert_refused(&dest, file, &temp.path().join("restored"));
        std::fs::write(file, &sound).unwrap();
    }
    println!(
        "{} files, each damaged {} times and removed: all refused",
        files.len(),
        lane.count
    );
    must(restore(&dest, &temp.path().join("restored")));
}

fn assert_refused(backup: &Path, file: &Path, data_dir: &Path) {
    let error = refusal(&restore(backup, data_dir));
    assert!(error.contains("backup_invalid"), "{error}");
    let name = file.file_name().unwrap().to_str().unwrap();
    assert!(error.contains(name), "{name}: {error}");
    assert!(!data_dir.exists(), "something was restored");
    let parent = data_dir.parent().unwrap();
    let left = std::fs::read_dir(parent).unwrap().flatten();
    let tmp = left.filter(|entry| entry.file_name().to_string_lossy().starts_with(".tmp-"));
    assert_eq!(tmp.count(), 0, "something is left");
}

/// Hashes that fit do not make a database sound.
#[test]
fn a_database_that_was_damaged_before_the_backup_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let data_dir = temp.path().join("data");
    let server = TestServer::in_dir(&data_dir, 0);
    let dataset = server.csv("text,label\na,x\nb,y\n");
    let submitters = Submitters::start(server.address(), &dataset, "d", 8, Manners::WithKeys);
    while submitters.acknowledged().len() < 200 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    submitters.finish();
    server.stop();
    let database = data_dir.join("chandler.db");
    let mut bytes = std::fs::read(&database).unwrap();
    let middle = bytes.len() / 2 / 4096 * 4096;
    bytes[middle..middle + 4096].fill(0x5a);
    std::fs::write(&database, bytes).unwrap();
    let dest = temp.path().join("backup");
    refusal(&backup(&data_dir, &dest, false));
    assert!(!dest.exists());
}

#[test]
fn nothing_is_overwritten_and_nothing_is_made_of_nothing() {
    let temp = tempfile::tempdir().unwrap();
    let server = TestServer::with_slots(0);
    let dest = temp.path().join("backup");
    must(backup(&server.data_dir, &dest, false));
    for output in [
        backup(&server.data_dir, &dest, false),
        restore(&dest, &server.data_dir),
    ] {
        assert!(refusal(&output).contains("folder_not_empty"));
    }
    let nowhere = temp.path().join("nowhere");
    refusal(&backup(&nowhere, &temp.path().join("other"), false));
    assert!(!nowhere.exists(), "a backup made a data directory");
    assert!(refusal(&restore(&nowhere, &temp.path().join("other"))).contains("backup_invalid"));
    let mut listing: Value =
        serde_json::from_slice(&std::fs::read(dest.join("backup.json")).unwrap()).unwrap();
    listing["format_version"] = 2.into();
    std::fs::write(dest.join("backup.json"), listing.to_string()).unwrap();
    let error = refusal(&restore(&dest, &temp.path().join("other")));
    assert!(error.contains("unknown format 2"), "{error}");
}

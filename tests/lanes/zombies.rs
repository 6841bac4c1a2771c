//! A trainer that is stopped past its lease and continued finds itself fenced: nothing that it says is
//! taken, and what its successor does is not disturbed.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::database::texts;
use crate::support::lane::Lane;
use crate::support::trainers::{Trainers, is_alive};
use crate::support::{ServerOptions, TestServer, await_some, reviews, spec, tiny_bert};

const LEASE_MS: u64 = 3_000;
const HEARTBEAT_MS: u64 = 300;

/// A zombie of this server cannot be its child, which is killed with its lease: it is a trainer that an
/// earlier server started.
fn adopted_trainer(
    options: &ServerOptions,
    trainers: &Trainers,
    body: &mut Value,
) -> (TestServer, String, Pid) {
    let server = options.start();
    body["dataset"]["train"] = json!(server.csv(&reviews(64)));
    let job = server.job(body);
    server.wait_until(&job, |view| {
        view["progress"]["global_step"].as_u64() > Some(3)
    });
    let pid = trainers.of_attempt(&job, 1).expect("a trainer runs");
    server.kill();
    (options.start(), job, pid)
}

/// (attempt, number) of every event of an attempt, in the order of the log.
fn attempts(server: &TestServer, job: &str) -> Vec<u64> {
    let events = server.events(job);
    events
        .iter()
        .filter_map(|event| event["attempt"].as_u64())
        .collect()
}

fn manifests(data_dir: &Path, job: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = data_dir.join("jobs").join(job).join("checkpoints");
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let path = entry.path().join("manifest.json");
            Some((path.clone(), std::fs::read(path).ok()?))
        })
        .collect();
    found.sort();
    found
}

fn wake_the_dead(mut lane: Lane) {
    let (mut fenced, mut left) = (0, 0);
    for round in 0..lane.count {
        let temp = tempfile::tempdir().unwrap();
        let options = ServerOptions::new(&temp.path().join("data"))
            .fixed_port()
            .env("CHANDLER_LEASE_MS", LEASE_MS)
            .env("CHANDLER_HEARTBEAT_MS", HEARTBEAT_MS);
        let trainers = Trainers::of(&options.data_dir);
        let model = temp.path().join("tiny");
        tiny_bert::write(&model);
        let mut body = spec(&model, "");
        body["training_args"]["num_train_epochs"] = json!(10_000);
        body["training_args"]["save_strategy"] = json!("steps");
        body["training_args"]["save_steps"] = json!(lane.random.between(20, 200));
        body["training_args"]["save_total_limit"] = json!(2);
        let (server, job, zombie) = adopted_trainer(&options, &trainers, &mut body);
        // Anywhere: in a step, in the middle of a checkpoint, in a request.
        std::thread::sleep(lane.random.millis(0, 500));
        kill(zombie, Signal::SIGSTOP).unwrap();
        // Its successor trains: it has said so itself.
        await_some("a successor trains", || {
            let events = server.events(&job);
            let said =
                |event: &Value| event["attempt"] == 2 && event["data"]["phase"] == "training";
            events.iter().any(said).then_some(())
        });
        let successor = trainers.of_attempt(&job, 2).expect("a successor runs");
        std::thread::sleep(lane.random.millis(0, 300));
        kill(zombie, Signal::SIGCONT).unwrap();
        await_some("the zombie leaves", || (!is_alive(zombie)).then_some(()));
        left += 1;
        assert!(is_alive(successor), "round {round}: the successor died");
        let step = |view: &Value| view["progress"]["global_step"].as_u64();
        let now = step(&server.get_json(&format!("/v1/jobs/{job}")));
        server.wait_until(&job, |view| step(view) > now);
        server.post(&format!("/v1/jobs/{job}/cancel"), &json!({}));
        let view = server.wait(&job);
        assert_eq!(view["status"], "cancelled", "{view}");
        assert_eq!(view["attempt"], 2);
        await_some("all have left", || trainers.pids().is_empty().then_some(()));

        let attempts = attempts(&server, &job);
        assert!(
            attempts.is_sorted(),
            "round {round}: a zombie's event came in"
        );
        let database = options.data_dir.join("chandler.db");
        let outcomes = texts(&database, "SELECT outcome FROM attempt ORDER BY number");
        assert_eq!(outcomes, ["lost", "cancelled"]);
        // What the successor published is what lies there, bit for bit.
        let sql = "SELECT json_extract(record, '$') FROM checkpoint ORDER BY step";
        let records: Vec<Value> = texts(&database, sql)
            .iter()
            .map(|text| serde_json::from_str(text).unwrap())
            .collect();
        let there = manifests(&options.data_dir, &job);
        let names = there.iter().map(|(path, _)| path.display().to_string());
        let names: Vec<String> = names.collect();
        for record in records {
            let name = format!("checkpoint-{}", record["step"]);
            let found = there.iter().find(|(path, _)| {
                path.parent().unwrap().file_name().unwrap().to_str() == Some(&name)
            });
            let (_, manifest) =
                found.unwrap_or_else(|| panic!("round {round}: no {name}: {names:?}"));
            let manifest: Value = serde_json::from_slice(manifest).unwrap();
            assert_eq!(
                manifest["record"], record,
                "round {round}: {name} was replaced"
            );
        }
        fenced += 1;
        if fenced % 10 == 0 {
            println!("{fenced} fenced");
        }
    }
    println!(
        "{} trainers stopped past their lease and continued: {fenced} fenced, {left} left; \
         none of their reports or checkpoints taken",
        lane.count
    );
}

#[test]
fn a_zombie_is_fenced() {
    wake_the_dead(Lane::short("zombies", 1));
}

#[test]
#[ignore = "lane: 100 zombies"]
fn lane_zombies() {
    wake_the_dead(Lane::long("zombies", 100));
}

//! A server that dies or restarts leaves its trainers training, and the next one takes them over: nothing is
//! missing, nothing twice, no step repeated, no attempt used.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::support::database::texts;
use crate::support::lane::Lane;
use crate::support::trainers::{Trainers, is_alive};
use crate::support::{ServerOptions, TestServer, await_some, reviews, spec, tiny_bert};

/// A job long enough to outlive a server or two, also where a step takes half a millisecond.
fn long_job(server: &TestServer, epochs: u32) -> Value {
    let model = server.data_dir.join("tiny");
    tiny_bert::write(&model);
    let mut body = spec(&model, &server.csv(&reviews(200)));
    body["training_args"]["num_train_epochs"] = json!(epochs);
    body["training_args"]["logging_steps"] = json!(5);
    body["training_args"]["save_strategy"] = json!("no");
    body
}

fn steps_reached(server: &TestServer, job: &str, steps: u64) {
    server.wait_until(job, |view| {
        view["progress"]["global_step"].as_u64() > Some(steps)
    });
}

/// (step, loss) of every logged loss.
fn losses(events: &[Value]) -> Vec<(u64, f64)> {
    let logged = events.iter().filter_map(|event| {
        let loss = event["data"]["values"]["loss"].as_f64()?;
        Some((event["data"]["step"].as_u64()?, loss))
    });
    logged.collect()
}

fn spooled(data_dir: &Path, job: &str) -> Vec<Value> {
    let dir = data_dir.join("jobs").join(job).join("attempts/1");
    let text = std::fs::read_to_string(dir.join("events.jsonl")).unwrap_or_default();
    text.lines()
        .map_while(|line| serde_json::from_str(line).ok())
        .collect()
}

/// Whether two values are the same but for the last place of numbers: the server reads them with serde_json,
/// which may be off by one there.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(x), Value::Number(y)) if x.is_f64() && y.is_f64() => {
            let (x, y) = (x.as_f64().unwrap(), y.as_f64().unwrap());
            (x - y).abs() <= 4.0 * f64::EPSILON * x.abs()
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

/// The job's log is what its one trainer spooled, once and in order.
fn check_log(server: &TestServer, job: &str) -> Vec<Value> {
    let events = server.events(job);
    for (event, seq) in events.iter().zip(1..) {
        assert_eq!(event["seq"], seq, "a gap");
    }
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["queued", "started"]);
    let of_trainer = |event: &Value| json!([event["type"], event["data"]]);
    let stored: Vec<Value> = events[2..].iter().map(of_trainer).collect();
    let said: Vec<Value> = spooled(&server.data_dir, job)
        .iter()
        .map(|message| of_trainer(&message["event"]))
        .filter(|event| event[0] != "progress")
        .collect();
    assert_eq!(
        stored.len(),
        said.len(),
        "the log is not as long as what the trainer said"
    );
    for (stored, said) in stored.iter().zip(&said) {
        assert!(
            same(stored, said),
            "{stored} is not what the trainer said: {said}"
        );
    }
    let twice = texts(
        &server.data_dir.join("chandler.db"),
        "SELECT job_id FROM event WHERE message_seq IS NOT NULL \
         GROUP BY job_id, attempt, message_seq HAVING COUNT(*) > 1",
    );
    assert!(twice.is_empty(), "{twice:?}");
    events
}

fn weights(job: &Value) -> Vec<u8> {
    let dir = Path::new(job["model_dir"].as_str().unwrap());
    std::fs::read(dir.join("model.safetensors")).unwrap()
}

/// Kills the server again and again while one trainer trains on; compares with a run in peace.
fn kill_servers_under_a_trainer(mut lane: Lane) {
    let temp = tempfile::tempdir().unwrap();
    let options = ServerOptions::new(&temp.path().join("data"))
        .fixed_port()
        .leave();
    let trainers = Trainers::of(&options.data_dir);
    let mut server = options.start();
    let epochs = 400 + 40 * u32::try_from(lane.count).unwrap();
    let body = long_job(&server, epochs);
    let undisturbed = server.job(&body);
    let expected = server.wait(&undisturbed);
    let expected_losses = losses(&server.events(&undisturbed));

    let job = server.job(&body);
    steps_reached(&server, &job, 10);
    let trainer = trainers.of_attempt(&job, 1).expect("a trainer runs");
    let mut kills = 0;
    while kills < lane.count {
        std::thread::sleep(lane.random.millis(0, 300));
        if server.get_json(&format!("/v1/jobs/{job}"))["status"] != "running" {
            break;
        }
        server.kill();
        kills += 1;
        // It trains on with nobody to report to.
        let before = spooled(&options.data_dir, &job).len();
        std::thread::sleep(lane.random.millis(0, 800));
        await_some("the trainer spools on", || {
            let ended = spooled(&options.data_dir, &job)
                .last()
                .is_some_and(|message| message["event"]["type"] == "succeeded");
            (ended || spooled(&options.data_dir, &job).len() > before).then_some(())
        });
        assert!(is_alive(trainer), "the trainer died with its server");
        server = options.start();
    }
    let view = server.wait(&job);
    assert_eq!(view["status"], "succeeded", "{view}");
    assert_eq!(view["attempt"], 1);
    let events = check_log(&server, &job);
    assert_eq!(losses(&events), expected_losses);
    assert!(weights(&view) == weights(&expected), "other weights");
    println!(
        "{kills} kills during one attempt: {} events, none missing or doubled; {} losses as in the undisturbed run",
        events.len(),
        expected_losses.len()
    );
    assert!(kills > 0, "the job was over before the first kill");
}

#[test]
fn a_killed_server_leaves_its_trainer_and_the_next_one_adopts_it() {
    kill_servers_under_a_trainer(Lane::short("adoption", 2));
}

#[test]
#[ignore = "lane: kills one server after the other under one trainer"]
fn lane_adoption() {
    kill_servers_under_a_trainer(Lane::long("adoption", 30));
}

/// What a trainer finished while no server was there counts, even if the trainer is gone by then.
#[test]
fn the_spool_of_a_trainer_that_ended_alone_is_applied() {
    let temp = tempfile::tempdir().unwrap();
    let options = ServerOptions::new(&temp.path().join("data"))
        .fixed_port()
        .leave();
    let trainers = Trainers::of(&options.data_dir);
    let server = options.start();
    let job = server.job(&long_job(&server, 300));
    steps_reached(&server, &job, 10);
    let trainer = trainers.of_attempt(&job, 1).expect("a trainer runs");
    server.kill();
    await_some("the trainer's end is spooled", || {
        let messages = spooled(&options.data_dir, &job);
        (messages.last()?["event"]["type"] == "succeeded").then_some(())
    });
    kill(trainer, Signal::SIGKILL).unwrap();
    await_some("the trainer is gone", || (!is_alive(trainer)).then_some(()));

    let server = options.start();
    let view = server.wait(&job);
    assert_eq!(view["status"], "succeeded", "{view}");
    assert_eq!(view["attempt"], 1);
    check_log(&server, &job);
}

/// A restart for an upgrade: SIGTERM leaves the trainer, the next server adopts it; a drain then reaches it
/// although it is not that server's child.
#[test]
fn sigterm_leaves_trainers_and_draining_reaches_adopted_ones() {
    let temp = tempfile::tempdir().unwrap();
    let leaving = ServerOptions::new(&temp.path().join("data"))
        .fixed_port()
        .leave()
        // So long that no crowded machine keeps the trainer from saving and saying so.
        .env("CHANDLER_STOP_GRACE_MS", 60_000);
    let trainers = Trainers::of(&leaving.data_dir);
    let server = leaving.start();
    // Long enough that it is still at it when two servers have stopped, on a crowded machine too.
    let body = long_job(&server, 2_000);
    let job = server.job(&body);
    steps_reached(&server, &job, 10);
    let trainer = trainers.of_attempt(&job, 1).expect("a trainer runs");
    let (status, log) = server.stop_and_log();
    assert!(status.success());
    let said = |log: &[String], words: &str| {
        let found = log.iter().find(|line| line.contains(words));
        serde_json::from_str::<Value>(found.unwrap_or_else(|| panic!("{log:?}"))).unwrap()
    };
    assert_eq!(said(&log, "trainers train on")["trainers"], 1);
    assert!(is_alive(trainer));

    let draining = ServerOptions {
        drain: true,
        ..leaving.clone()
    };
    let server = draining.start();
    let adopted_at = server.get_json(&format!("/v1/jobs/{job}"));
    assert_eq!(adopted_at["status"], "running");
    let step = adopted_at["progress"]["global_step"].as_u64().unwrap();
    steps_reached(&server, &job, step);
    let (status, log) = server.stop_and_log();
    assert!(status.success());
    assert_eq!(said(&log, "trainers save and leave")["trainers"], 1);
    await_some("the trainer leaves", || (!is_alive(trainer)).then_some(()));
    assert_eq!(outcomes(&draining.data_dir), ["returned"]);

    let server = draining.start();
    let view = server.wait(&job);
    assert_eq!(view["status"], "succeeded", "{view}");
    assert_eq!(outcomes(&draining.data_dir), ["returned", "succeeded"]);
    let whole = server.wait(&server.job(&body));
    assert!(weights(&view) == weights(&whole), "other weights");
}

fn outcomes(data_dir: &Path) -> Vec<String> {
    let sql = "SELECT COALESCE(outcome, 'open') FROM attempt ORDER BY job_id, number";
    texts(&data_dir.join("chandler.db"), sql)
}

/// Trainer and server both die: the next server knows at once, not after a lease.
#[test]
fn a_trainer_that_died_with_its_server_is_replaced_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let options = ServerOptions::new(&temp.path().join("data"))
        .fixed_port()
        .leave()
        // So long that a test that waits for it fails.
        .env("CHANDLER_LEASE_MS", 3_600_000);
    let trainers = Trainers::of(&options.data_dir);
    let server = options.start();
    let job = server.job(&long_job(&server, 300));
    steps_reached(&server, &job, 10);
    server.kill();
    for pid in trainers.pids() {
        kill(pid, Signal::SIGKILL).unwrap();
        await_some("the trainer is gone", || (!is_alive(pid)).then_some(()));
    }
    std::thread::sleep(Duration::from_millis(20));
    let server = options.start();
    let view = server.wait(&job);
    assert_eq!(view["status"], "succeeded", "{view}");
    assert_eq!(view["attempt"], 2);
}

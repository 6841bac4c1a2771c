//! A trainer that is killed does not take its job along: the job is leased again soon, to a trainer that
//! goes on from the newest checkpoint.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::support::lane::{Lane, percentile};
use crate::support::trainers::{Trainers, is_alive};
use crate::support::{ServerOptions, TestServer, await_some, reviews, spec, tiny_bert};

/// From a trainer's death to the next one's start.
const LEASED_AGAIN: Duration = Duration::from_secs(15);
/// From a server's start to knowing which of its trainers are gone.
const ORPHANS_KNOWN: Duration = Duration::from_secs(2);
const SLOTS: u32 = 2;

/// A job that does not end by itself.
fn endless(server: &TestServer, dataset: &str) -> String {
    let model = server.data_dir.join("tiny");
    if !model.exists() {
        tiny_bert::write(&model);
    }
    let mut body = spec(&model, dataset);
    body["training_args"]["num_train_epochs"] = json!(10_000);
    body["training_args"]["logging_steps"] = json!(500);
    server.job(&body)
}

fn attempt_is(server: &TestServer, job: &str, attempt: u64) -> Value {
    server.wait_until(job, |view| {
        view["status"] == "running" && view["attempt"].as_u64() == Some(attempt)
    })
}

fn cancel(server: &TestServer, jobs: &[String]) {
    for job in jobs {
        server.post(&format!("/v1/jobs/{job}/cancel"), &json!({}));
    }
    for job in jobs {
        assert_eq!(server.wait(job)["status"], "cancelled");
    }
}

fn kill_trainers(mut lane: Lane, limit: Duration) {
    let temp = tempfile::tempdir().unwrap();
    let server = ServerOptions::new(&temp.path().join("data"))
        .slots(SLOTS)
        .start();
    let trainers = Trainers::of(&server.data_dir);
    let dataset = server.csv(&reviews(64));
    let mut took = Vec::new();
    while (took.len() as u64) < lane.count {
        let jobs: Vec<String> = (0..SLOTS).map(|_| endless(&server, &dataset)).collect();
        for job in &jobs {
            attempt_is(&server, job, 1);
        }
        // Anywhere: while it starts, loads, trains.
        std::thread::sleep(lane.random.millis(0, 1500));
        let killed = Instant::now();
        for job in &jobs {
            if let Some(pid) = trainers.of_attempt(job, 1) {
                kill(pid, Signal::SIGKILL).unwrap();
            }
        }
        for job in &jobs {
            attempt_is(&server, job, 2);
            took.push(killed.elapsed());
        }
        cancel(&server, &jobs);
    }
    println!(
        "{} trainers killed: leased again after p50 {:?}, slowest {:?}",
        took.len(),
        percentile(&mut took, 50),
        percentile(&mut took, 100)
    );
    assert!(percentile(&mut took, 100) < limit, "{took:?}");
}

fn kill_trainers_and_server(mut lane: Lane, known: Duration, limit: Duration) {
    let temp = tempfile::tempdir().unwrap();
    let options = ServerOptions::new(&temp.path().join("data"))
        .slots(SLOTS)
        .fixed_port();
    let trainers = Trainers::of(&options.data_dir);
    let mut server = options.start();
    let dataset = server.csv(&reviews(64));
    let (mut known_after, mut leased_after) = (Vec::new(), Vec::new());
    while (known_after.len() as u64) < lane.count {
        let jobs: Vec<String> = (0..SLOTS).map(|_| endless(&server, &dataset)).collect();
        for job in &jobs {
            attempt_is(&server, job, 1);
        }
        std::thread::sleep(lane.random.millis(0, 1500));
        server.kill();
        for pid in trainers.pids() {
            kill(pid, Signal::SIGKILL).unwrap();
            await_some("the trainer is gone", || (!is_alive(pid)).then_some(()));
        }
        server = options.start();
        let began = Instant::now();
        for job in &jobs {
            let requeued = |events: Vec<Value>| events.iter().any(|e| e["type"] == "requeued");
            await_some("the orphan is known", || {
                requeued(server.events(job)).then_some(())
            });
            known_after.push(began.elapsed());
        }
        for job in &jobs {
            attempt_is(&server, job, 2);
            leased_after.push(began.elapsed());
        }
        cancel(&server, &jobs);
    }
    println!(
        "{} trainers killed with their server: known after p50 {:?}, slowest {:?}; \
         leased again after p50 {:?}, slowest {:?}",
        known_after.len(),
        percentile(&mut known_after, 50),
        percentile(&mut known_after, 100),
        percentile(&mut leased_after, 50),
        percentile(&mut leased_after, 100),
    );
    assert!(percentile(&mut known_after, 100) < known, "{known_after:?}");
    assert!(
        percentile(&mut leased_after, 100) < limit,
        "{leased_after:?}"
    );
}

#[test]
fn a_killed_trainers_job_is_leased_again() {
    kill_trainers(Lane::short("trainer deaths", 2), 4 * LEASED_AGAIN);
}

#[test]
fn orphans_are_found_when_the_server_comes_back() {
    let lane = Lane::short("orphans", 2);
    kill_trainers_and_server(lane, 10 * ORPHANS_KNOWN, 4 * LEASED_AGAIN);
}

#[test]
#[ignore = "lane: 100 trainers killed"]
fn lane_trainer_deaths() {
    kill_trainers(Lane::long("trainer deaths", 100), LEASED_AGAIN);
}

#[test]
#[ignore = "lane: 100 trainers killed together with their server"]
fn lane_orphans() {
    let lane = Lane::long("orphans", 100);
    kill_trainers_and_server(lane, ORPHANS_KNOWN, LEASED_AGAIN);
}

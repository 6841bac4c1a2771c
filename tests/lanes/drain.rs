//! SIGTERM with `--drain`: the trainer saves, the server is gone within the ten seconds that container
//! runtimes grant, open streams or not, and the job is queued with no attempt used.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::database::texts;
use crate::support::lane::{Lane, percentile};
use crate::support::trainers::Trainers;
use crate::support::{ServerOptions, reviews, spec, tiny_bert};

/// What `docker stop` waits for before it kills.
const LIMIT: Duration = Duration::from_secs(10);

fn stop_again_and_again(mut lane: Lane, limit: Duration) {
    let temp = tempfile::tempdir().unwrap();
    let options = ServerOptions::new(&temp.path().join("data"));
    let trainers = Trainers::of(&options.data_dir);
    let mut server = options.start();
    let model = server.data_dir.join("tiny");
    tiny_bert::write(&model);
    let mut body = spec(&model, &server.csv(&reviews(200)));
    body["training_args"]["num_train_epochs"] = json!(10_000);
    body["training_args"]["logging_steps"] = json!(500);
    let job = server.job(&body);
    let mut took = Vec::new();
    let mut reached = 0;
    for round in 1..=lane.count {
        let view = server.wait_until(&job, |view| {
            view["status"] == "running" && view["progress"]["global_step"].as_u64() > Some(reached)
        });
        assert_eq!(view["attempt"], round);
        std::thread::sleep(lane.random.millis(0, 100));
        let streams: Vec<_> = (0..3)
            .map(|_| {
                let path = server.url(&format!("/v1/jobs/{job}/events"));
                let request = server.http.get(path).header("accept", "text/event-stream");
                request.send().unwrap()
            })
            .collect();
        let began = Instant::now();
        let (status, log) = server.stop_and_log();
        took.push(began.elapsed());
        assert!(status.success(), "{log:?}");
        drop(streams);
        assert!(trainers.pids().is_empty(), "a trainer is left");
        let database = options.data_dir.join("chandler.db");
        let status = texts(&database, "SELECT status FROM job");
        assert_eq!(status, ["queued"]);
        let outcomes = texts(&database, "SELECT DISTINCT outcome FROM attempt");
        assert_eq!(outcomes, ["returned"], "an attempt was used");
        let at = "SELECT CAST(json_extract(progress, '$.global_step') AS TEXT) FROM job";
        let now: u64 = texts(&database, at)[0].parse().unwrap();
        assert!(
            now >= reached,
            "round {round}: from {reached} back to {now}"
        );
        reached = now;
        server = options.start();
    }
    println!(
        "{} stops: p50 {:?}, slowest {:?}; {reached} steps done in all",
        lane.count,
        percentile(&mut took, 50),
        percentile(&mut took, 100),
    );
    assert!(percentile(&mut took, 100) < limit, "{took:?}");
    server.post(&format!("/v1/jobs/{job}/cancel"), &json!({}));
    server.wait(&job);
}

#[test]
fn draining_is_quick_and_uses_no_attempt() {
    // Other tests share the machine: here the limit only tells a hang.
    stop_again_and_again(Lane::short("drain", 5), 6 * LIMIT);
}

#[test]
#[ignore = "lane: 50 drains"]
fn lane_drain() {
    stop_again_and_again(Lane::long("drain", 50), LIMIT);
}

//! Cancel against the end of the job: one terminal status, one terminal event, and they agree.

use serde_json::json;

use crate::support::lane::{Lane, Random};
use crate::support::raw_http::Connection;
use crate::support::{ServerOptions, TestServer, reviews, spec, tiny_bert};

const SLOTS: u32 = 2;

/// The status and the terminal events of a job that has ended.
fn check_end(server: &TestServer, job: &str) -> String {
    let view = server.wait(job);
    let status = view["status"].as_str().unwrap().to_owned();
    let events = server.events(job);
    let ends: Vec<&str> = events
        .iter()
        .filter_map(|event| event["type"].as_str())
        .filter(|kind| matches!(*kind, "succeeded" | "failed" | "cancelled"))
        .collect();
    assert_eq!(ends, [status.as_str()]);
    assert_eq!(events.last().unwrap()["type"], status.as_str());
    for (event, seq) in events.iter().zip(1..) {
        assert_eq!(event["seq"], seq);
    }
    status
}

fn race(mut lane: Lane) {
    let temp = tempfile::tempdir().unwrap();
    let server = ServerOptions::new(&temp.path().join("data"))
        .slots(SLOTS)
        .start();
    let model = server.data_dir.join("tiny");
    tiny_bert::write(&model);
    let mut body = spec(&model, &server.csv(&reviews(16)));
    // A second or so: a trainer hears of a cancel with the answer to its next report.
    body["training_args"]["num_train_epochs"] = json!(60);
    // How long a job takes from its post to its end, so that the cancels hit its end.
    let began = std::time::Instant::now();
    let whole = server.job(&body);
    assert_eq!(check_end(&server, &whole), "succeeded");
    let usual = u64::try_from(began.elapsed().as_millis()).unwrap();
    let address = server.address();
    let mut statuses: Vec<String> = Vec::new();
    while (statuses.len() as u64) < lane.count {
        let jobs: Vec<String> = (0..SLOTS).map(|_| server.job(&body)).collect();
        let cancels: Vec<_> = jobs
            .iter()
            .map(|job| {
                let job = job.clone();
                let pause = Random(lane.random.next()).millis(0, 2 * usual);
                std::thread::spawn(move || {
                    std::thread::sleep(pause);
                    let path = format!("/v1/jobs/{job}/cancel");
                    let reply = Connection::new(address).post_json(&path, &[], "{}");
                    reply.unwrap().status
                })
            })
            .collect();
        for (job, cancel) in jobs.iter().zip(cancels) {
            let answer = cancel.join().unwrap();
            let status = check_end(&server, job);
            let late = matches!(status.as_str(), "succeeded" | "failed") && answer == 409;
            assert!(answer / 100 == 2 || late, "{answer} and {status}");
            statuses.push(status);
        }
    }
    let count = |word: &str| statuses.iter().filter(|status| *status == word).count();
    println!(
        "{} races: {} cancelled, {} succeeded, {} failed; one terminal event each",
        statuses.len(),
        count("cancelled"),
        count("succeeded"),
        count("failed")
    );
    assert_eq!(count("failed"), 0);
    if lane.count >= 100 {
        let rarer = count("cancelled").min(count("succeeded")) as u64;
        assert!(rarer >= lane.count / 10, "hardly a race");
    }
}

#[test]
fn a_cancel_and_the_end_of_a_job_agree() {
    race(Lane::short("cancel races", 6));
}

#[test]
#[ignore = "lane: 200 races through real trainers"]
fn lane_cancel_races() {
    race(Lane::long("cancel races", 200));
}

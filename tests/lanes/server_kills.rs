//! `kill -9` of the server while 50 clients submit: every acknowledged job is there after the restart, and
//! no job is there twice, although every client tries again what was cut off.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::ServerOptions;
use crate::support::database::{integrity, texts};
use crate::support::lane::Lane;
use crate::support::submitters::{Manners, Submitters, Verdict, compare, listed};

const DATASET: &str = "text,label\na,x\nb,y\n";

fn kill_the_server_under_clients(mut lane: Lane, clients: u64) {
    let temp = tempfile::tempdir().unwrap();
    let options = ServerOptions::new(&temp.path().join("data"))
        .slots(0)
        .fixed_port()
        .env("RUST_LOG", "warn,chandler::cli=info");
    let mut server = options.start();
    let dataset = server.csv(DATASET);
    let address = server.address();
    let submitters = Submitters::start(address, &dataset, "k", clients, Manners::WithKeys);
    let database = options.data_dir.join("chandler.db");
    let mut missing = BTreeSet::new();
    for kill in 1..=lane.count {
        std::thread::sleep(lane.random.millis(10, 400));
        server.kill();
        // Everything acknowledged before the kill. Looked up in the file, because the clients submit on:
        // asking the server would take longer than they take to submit as much again.
        let acknowledged = submitters.acknowledged();
        server = options.start();
        let there: BTreeSet<String> = texts(
            &database,
            "SELECT id || ' ' || json_extract(spec, '$.name') FROM job",
        )
        .into_iter()
        .collect();
        let lost = acknowledged
            .iter()
            .filter(|(name, id)| !there.contains(&format!("{id} {name}")));
        missing.extend(lost.map(|(name, _)| name.clone()));
        if kill % 20 == 0 {
            let (found, lost) = (acknowledged.len(), missing.len());
            println!("{kill} kills, {found} jobs acknowledged, {lost} missing");
        }
    }
    let refused = submitters.refused();
    let journal = submitters.finish();
    let there = listed(address);
    let verdict = compare(&journal, &there);
    println!(
        "{} kills under {clients} clients: {} jobs acknowledged, {} there; {} missing after a restart, \
         {} missing at the end, {} keys with more than one job, {refused} answers other than 2xx",
        lane.count,
        journal.len(),
        there.len(),
        missing.len(),
        verdict.missing.len(),
        verdict.extra.len(),
    );
    assert!(missing.is_empty(), "{missing:?}");
    assert_eq!(verdict, Verdict::default());
    assert_eq!(there.len(), journal.len(), "jobs that nobody asked for");
    assert_eq!(refused, 0);
    assert!(
        journal.len() as u64 > clients,
        "hardly anything was submitted"
    );
    server.stop();
    assert_eq!(integrity(&database), ["ok"]);
}

#[test]
fn no_acknowledged_job_is_lost_when_the_server_is_killed() {
    kill_the_server_under_clients(Lane::short("server kills", 5), 50);
}

#[test]
#[ignore = "lane: 200 kills of the server under 50 clients"]
fn lane_server_kills() {
    kill_the_server_under_clients(Lane::long("server kills", 200), 50);
}

/// Known-bad control: a server whose newest commits are thrown away is caught.
#[test]
fn losing_the_write_ahead_log_is_seen() {
    let temp = tempfile::tempdir().unwrap();
    let options = ServerOptions::new(&temp.path().join("data"))
        .slots(0)
        .fixed_port();
    let server = options.start();
    let dataset = server.csv(DATASET);
    server.stop();
    let server = options.start();
    let address = server.address();
    let submitters = Submitters::start(address, &dataset, "k", 4, Manners::WithKeys);
    while submitters.acknowledged().len() < 20 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let journal = submitters.finish();
    assert_eq!(compare(&journal, &listed(address)), Verdict::default());
    server.kill();
    std::fs::remove_file(options.data_dir.join("chandler.db-wal")).unwrap();
    let server = options.start();
    let verdict = compare(&journal, &listed(server.address()));
    assert!(!verdict.missing.is_empty(), "{verdict:?}");
}

/// Known-bad control: clients that try again without a key make jobs twice, and that is caught.
#[test]
fn trying_again_without_a_key_is_seen() {
    let temp = tempfile::tempdir().unwrap();
    let options = ServerOptions::new(&temp.path().join("data"))
        .slots(0)
        .fixed_port();
    let mut server = options.start();
    let dataset = server.csv(DATASET);
    let address = server.address();
    let submitters = Submitters::start(address, &dataset, "k", 50, Manners::WithoutKeys);
    // Under 50 clients some job is committed and not yet answered at almost every kill.
    let mut lane = Lane::short("control without keys", 40);
    let mut extra = Vec::new();
    for _ in 0..lane.count {
        std::thread::sleep(lane.random.millis(10, 200));
        server.kill();
        server = options.start();
        extra = compare(&BTreeMap::new(), &listed(address)).extra;
        if !extra.is_empty() {
            break;
        }
    }
    submitters.finish();
    assert!(!extra.is_empty(), "40 kills made no job twice");
}

//! How fast the service is with every commit on disk, and how it bears 100,000 jobs. Printed beside what
//! the disk itself takes for one sync, because that is the floor. Run these alone, in a release build.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chandler::domain::{
    CheckpointRecord, Event, JobSpec, Message, Placement, SystemClock, SystemIds, Timestamp,
};
use chandler::store::Store;

use crate::support::lane::{Lane, number, percentile};
use crate::support::raw_http::Connection;
use crate::support::submitters::named_spec;
use crate::support::{ServerOptions, TestServer};

const QUIET: (&str, &str) = ("RUST_LOG", "warn,chandler::cli=info");
const LEASE_MS: i64 = 600_000;
const JOBS: u64 = 100_000;

/// What one write of 4 KiB and its sync take on this disk: p50 and p99.
fn sync_latency(folder: &Path) -> (Duration, Duration) {
    let mut file = tempfile::tempfile_in(folder).unwrap();
    let mut took: Vec<Duration> = (0..200)
        .map(|_| {
            let began = Instant::now();
            file.write_all(&[7; 4096]).unwrap();
            file.sync_data().unwrap();
            began.elapsed()
        })
        .collect();
    (percentile(&mut took, 50), percentile(&mut took, 99))
}

/// Acknowledged submissions a second of `clients`, and their latencies.
fn submit_for(server: &TestServer, clients: u64, duration: Duration) -> (f64, Vec<Duration>) {
    let dataset = server.csv("text,label\na,x\nb,y\n");
    let (address, stop) = (server.address(), Arc::<AtomicBool>::default());
    let began = Instant::now();
    let threads: Vec<_> = (0..clients)
        .map(|client| {
            let (stop, dataset) = (stop.clone(), dataset.clone());
            std::thread::spawn(move || {
                let mut connection = Connection::new(address);
                let mut took = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let key = format!("{client}-{}", took.len());
                    let body = named_spec(&key, &dataset);
                    let sent = Instant::now();
                    let headers = [("idempotency-key", key.as_str())];
                    let reply = connection.post_json("/v1/jobs", &headers, &body).unwrap();
                    assert_eq!(reply.status, 201);
                    took.push(sent.elapsed());
                }
                took
            })
        })
        .collect();
    std::thread::sleep(duration);
    stop.store(true, Ordering::Relaxed);
    let took: Vec<Duration> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap())
        .collect();
    (took.len() as f64 / began.elapsed().as_secs_f64(), took)
}

#[test]
#[ignore = "lane: submissions a second"]
fn lane_submissions() {
    let seconds = number("CHANDLER_LANE_SECONDS").unwrap_or(10);
    let temp = tempfile::tempdir().unwrap();
    let (p50, p99) = sync_latency(temp.path());
    let server = ServerOptions::new(&temp.path().join("data"))
        .slots(0)
        .env(QUIET.0, QUIET.1)
        .start();
    let (rate, mut took) = submit_for(&server, 64, Duration::from_secs(seconds));
    println!("one 4 KiB write and sync: p50 {p50:?}, p99 {p99:?}");
    println!(
        "64 clients, {seconds} s: {rate:.0} acknowledged submissions a second (goal 1,000), p50 {:?}, p99 {:?}",
        percentile(&mut took, 50),
        percentile(&mut took, 99)
    );
    if !cfg!(debug_assertions) {
        assert!(rate >= 1_000.0);
    }
}

fn open(runtime: &tokio::runtime::Runtime, data_dir: &Path) -> Store {
    std::fs::create_dir_all(data_dir).unwrap();
    let (clock, ids) = (Arc::new(SystemClock), Arc::new(SystemIds(SystemClock)));
    runtime
        .block_on(Store::open(&data_dir.join("chandler.db"), clock, ids))
        .unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Queues `count` jobs straight into the store.
async fn queue(store: &Store, dataset: &str, count: u64) {
    let spec = serde_json::from_str(&named_spec("seeded", dataset)).unwrap();
    let spec = JobSpec::parse(&spec).unwrap();
    let mut together = tokio::task::JoinSet::new();
    for n in 0..count {
        let (store, spec) = (store.clone(), spec.clone());
        together.spawn(async move { store.create_job(spec, None).await.map(|_| ()).unwrap() });
        if n % 1000 == 999 {
            while together.join_next().await.is_some() {}
        }
    }
    together.join_all().await;
}

/// Claims a job and reports its model and its end; answers what both took, or nothing if no job is left.
async fn claim_and_finish(store: &Store) -> Option<(Duration, Duration)> {
    let began = Instant::now();
    let claimed = loop {
        let next = store.next_queued().await.unwrap()?;
        let claimed = store.claim(next.job_id, Placement::default(), LEASE_MS);
        // Otherwise another worker of this lane was faster.
        if let Some(claimed) = claimed.await.unwrap() {
            break claimed;
        }
    };
    let claim = began.elapsed();
    let model = CheckpointRecord {
        step: 1,
        epoch: 1.0,
        metrics: BTreeMap::new(),
        resumable: false,
        files: Vec::new(),
    };
    let message = |seq, event| Message {
        seq,
        at: Timestamp(0),
        event,
    };
    let end = vec![
        message(1, Event::Checkpoint(model)),
        message(2, Event::Succeeded { model_step: 1 }),
    ];
    let (attempt, token) = (claimed.attempt_id, &claimed.token);
    store
        .record_messages(attempt, token, end, LEASE_MS)
        .await
        .unwrap();
    Some((claim, began.elapsed()))
}

/// A data directory with one dataset, made by a server; answers the dataset.
fn prepare(options: &ServerOptions) -> String {
    let server = options.start();
    let dataset = server.csv("text,label\na,x\nb,y\n");
    server.stop();
    dataset
}

#[test]
#[ignore = "lane: claims and ends a second"]
fn lane_claims() {
    let lane = Lane::long("claims", 3_000);
    let temp = tempfile::tempdir().unwrap();
    let options = ServerOptions::new(&temp.path().join("data")).slots(0);
    let dataset = prepare(&options);
    let runtime = runtime();
    let store = open(&runtime, &options.data_dir);
    runtime.block_on(queue(&store, &dataset, lane.count));
    let (p50, p99) = sync_latency(temp.path());
    println!("one 4 KiB write and sync: p50 {p50:?}, p99 {p99:?}");
    let mut best: f64 = 0.0;
    for workers in [1, 4, 16] {
        let began = Instant::now();
        let done = runtime.block_on(async {
            let mut all = tokio::task::JoinSet::new();
            for _ in 0..workers {
                let (store, each) = (store.clone(), lane.count / 3 / workers);
                all.spawn(async move {
                    for _ in 0..each {
                        claim_and_finish(&store).await.unwrap();
                    }
                    each
                });
            }
            all.join_all().await.into_iter().sum::<u64>()
        });
        let rate = done as f64 / began.elapsed().as_secs_f64();
        println!("{workers} workers: {rate:.0} claims and ends a second (goal 300)");
        best = best.max(rate);
    }
    runtime.block_on(store.close());
    if !cfg!(debug_assertions) {
        assert!(best >= 300.0);
    }
}

fn resident_mb(server: &TestServer) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap();
    let kilobytes: f64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes / 1024.0
}

fn get_again_and_again(server: &TestServer, paths: &[String], times: usize) -> Vec<Duration> {
    let mut connection = Connection::new(server.address());
    (0..times)
        .map(|n| {
            let began = Instant::now();
            let reply = connection.get(&paths[n % paths.len()]).unwrap();
            assert_eq!(reply.status, 200);
            began.elapsed()
        })
        .collect()
}

#[test]
#[ignore = "lane: 100,000 jobs"]
fn lane_many_jobs() {
    let jobs = number("CHANDLER_LANE_COUNT").unwrap_or(JOBS);
    let temp = tempfile::tempdir().unwrap();
    let options = ServerOptions::new(&temp.path().join("data"))
        .slots(0)
        .env(QUIET.0, QUIET.1);
    let dataset = prepare(&options);
    let server = options.start();
    let paths = [
        "/v1/jobs?limit=20".to_owned(),
        "/v1/jobs?limit=20&status=queued".to_owned(),
    ];
    get_again_and_again(&server, &paths, 50);
    let empty_mb = resident_mb(&server);
    server.stop();

    let runtime = runtime();
    let store = open(&runtime, &options.data_dir);
    let began = Instant::now();
    runtime.block_on(queue(&store, &dataset, jobs));
    let seeded = began.elapsed();
    let (p50, p99) = sync_latency(temp.path());
    println!(
        "{jobs} jobs queued in {seeded:?}; one 4 KiB write and sync: p50 {p50:?}, p99 {p99:?}"
    );
    let mut claims: Vec<Duration> = (0..300)
        .map(|_| runtime.block_on(claim_and_finish(&store)).unwrap().0)
        .collect();
    println!(
        "claim: p50 {:?}, p99 {:?} (goal 10 ms and one sync)",
        percentile(&mut claims, 50),
        percentile(&mut claims, 99)
    );
    runtime.block_on(store.close());

    let began = Instant::now();
    let server = options.start();
    println!("start: {:?} (goal 2 s)", began.elapsed());
    let start = began.elapsed();
    let cursor = server.get_json("/v1/jobs?limit=100")["next_cursor"].clone();
    let cursor = cursor.as_str().unwrap();
    let mut slowest = Duration::ZERO;
    for path in [
        "/v1/jobs?limit=20".to_owned(),
        format!("/v1/jobs?limit=20&after={cursor}"),
        "/v1/jobs?limit=20&status=queued".to_owned(),
        "/v1/jobs?limit=20&status=succeeded".to_owned(),
    ] {
        let mut took = get_again_and_again(&server, std::slice::from_ref(&path), 200);
        let (p50, p99) = (percentile(&mut took, 50), percentile(&mut took, 99));
        println!("GET {path}: p50 {p50:?}, p99 {p99:?} (goal 20 ms)");
        slowest = slowest.max(p99);
    }
    let grown = resident_mb(&server) - empty_mb;
    println!("resident: {empty_mb:.0} MB empty, {grown:+.0} MB with {jobs} jobs (goal +50 MB)");
    let (rate, mut took) = submit_for(&server, 64, Duration::from_secs(5));
    println!(
        "64 clients behind {jobs} jobs: {rate:.0} submissions a second, p99 {:?}",
        percentile(&mut took, 99)
    );
    if !cfg!(debug_assertions) {
        assert!(slowest < Duration::from_millis(20), "{slowest:?}");
        assert!(start < Duration::from_secs(2), "{start:?}");
        assert!(grown < 50.0, "{grown}");
    }
}

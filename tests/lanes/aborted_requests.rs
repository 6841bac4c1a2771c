//! Writers, readers and clients that hang up in the middle: no request fails, no lock is left behind.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::lane::{Lane, Random, number};
use crate::support::raw_http::{Connection, request};
use crate::support::submitters::named_spec;
use crate::support::{ServerOptions, TestServer};

/// What readers ask for; `{}` is a job.
const READS: [&str; 5] = [
    "/v1/jobs?limit=20",
    "/v1/jobs/{}",
    "/v1/jobs/{}/events",
    "/v1/datasets",
    "/readyz",
];

fn server() -> (tempfile::TempDir, TestServer) {
    let temp = tempfile::tempdir().unwrap();
    let options = ServerOptions::new(&temp.path().join("data"))
        .slots(0)
        .env("RUST_LOG", "warn,chandler::cli=info");
    let server = options.start();
    (temp, server)
}

/// Nothing at the level of an error was logged: neither "database is locked" nor a failed transaction.
fn assert_quiet(server: &TestServer) {
    let log = server.log();
    let bad = |line: &&String| line.contains("\"ERROR\"") || line.contains("locked");
    let bad: Vec<_> = log.iter().filter(bad).collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

#[derive(Default)]
struct Counts {
    writes: AtomicU64,
    reads: AtomicU64,
    bad: AtomicU64,
}

fn write_and_read(duration: Duration, writers: u64, readers: u64) {
    let (_temp, server) = server();
    let dataset = server.csv("text,label\na,x\nb,y\n");
    let job = Connection::new(server.address())
        .post_json("/v1/jobs", &[], &named_spec("read", &dataset))
        .unwrap();
    let job = job.json()["id"].as_str().unwrap().to_owned();
    let (counts, stop) = (Arc::<Counts>::default(), Arc::<AtomicBool>::default());
    let address = server.address();
    let threads: Vec<_> = (0..writers + readers)
        .map(|index| {
            let (counts, stop) = (counts.clone(), stop.clone());
            let (dataset, job) = (dataset.clone(), job.clone());
            std::thread::spawn(move || {
                let mut connection = Connection::new(address);
                for n in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let (reply, count) = if index < writers {
                        let body = named_spec(&format!("{index}-{n}"), &dataset);
                        let reply = connection.post_json("/v1/jobs", &[], &body);
                        (reply, &counts.writes)
                    } else {
                        let path = READS[n % READS.len()].replace("{}", &job);
                        (connection.get(&path), &counts.reads)
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                    if !reply.is_ok_and(|reply| reply.status / 100 == 2) {
                        counts.bad.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    std::thread::sleep(duration);
    stop.store(true, Ordering::Relaxed);
    for thread in threads {
        thread.join().unwrap();
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{writers} writers, {readers} readers, {duration:?}: {} writes, {} reads, {} answers other than 2xx",
        count(&counts.writes),
        count(&counts.reads),
        count(&counts.bad),
    );
    assert_eq!(count(&counts.bad), 0);
    assert!(count(&counts.writes) > 0 && count(&counts.reads) > 0);
    assert_quiet(&server);
}

#[test]
fn writers_and_readers_never_find_the_database_locked() {
    write_and_read(Duration::from_secs(3), 50, 50);
}

#[test]
#[ignore = "lane: 60 s of 50 writers and 50 readers"]
fn lane_writers_and_readers() {
    let seconds = number("CHANDLER_LANE_SECONDS").unwrap_or(60);
    write_and_read(Duration::from_secs(seconds), 50, 50);
}

/// Sends a part of a request, perhaps waits a little, hangs up.
fn abort(address: SocketAddr, bytes: &[u8], random: &mut Random) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    // Every other one is whole: what is cut off then is the answer, somewhere between BEGIN and COMMIT.
    let until = match random.next() % 2 {
        0 => bytes.len(),
        _ => usize::try_from(random.between(0, bytes.len() as u64)).unwrap(),
    };
    // The server may have answered and closed already.
    let _ = stream.write_all(&bytes[..until]);
    if random.next().is_multiple_of(2) {
        std::thread::sleep(Duration::from_micros(random.between(0, 5_000)));
    }
}

fn abort_requests(lane: Lane) {
    let (_temp, server) = server();
    let dataset = server.csv("text,label\na,x\nb,y\n");
    let address = server.address();
    let threads = 8;
    let clients: Vec<_> = (0..threads)
        .map(|client| {
            let mut random = Random(lane.random.0 ^ (client << 32));
            let (count, dataset) = (lane.count / threads, dataset.clone());
            std::thread::spawn(move || {
                for n in 0..count {
                    let json = [("content-type", "application/json")];
                    let csv = [("content-type", "text/csv")];
                    let name = format!("{client}-{n}");
                    let bytes = match random.next() % 4 {
                        0 | 1 => {
                            let body = named_spec(&name, &dataset);
                            request("POST", "/v1/jobs", &json, body.as_bytes())
                        }
                        2 => {
                            let body = "text,label\na,x\nb,y\n".repeat(200);
                            request("POST", "/v1/datasets?name=x", &csv, body.as_bytes())
                        }
                        _ => request("GET", "/v1/jobs?limit=100", &[], b""),
                    };
                    abort(address, &bytes, &mut random);
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    // Readers and the writer work, and work at once: no connection is left inside a transaction.
    let mut connection = Connection::new(address);
    for n in 0..20 {
        let began = Instant::now();
        assert_eq!(connection.get("/readyz").unwrap().status, 200);
        let body = named_spec(&format!("after-{n}"), &dataset);
        let reply = connection.post_json("/v1/jobs", &[], &body).unwrap();
        assert_eq!(reply.status, 201);
        let id = reply.json()["id"].as_str().unwrap().to_owned();
        let seen = connection.get(&format!("/v1/jobs/{id}")).unwrap();
        assert_eq!(seen.status, 200, "a reader is stuck in an old snapshot");
        assert!(began.elapsed() < Duration::from_secs(5), "a lock is held");
    }
    assert_quiet(&server);
    let tmp = server.data_dir.join("tmp");
    assert_eq!(std::fs::read_dir(tmp).unwrap().count(), 0, "half uploads");
    println!(
        "{} requests aborted; 20 writes and reads after them succeeded; no error logged",
        lane.count / threads * threads
    );
    assert!(server.stop().success());
}

#[test]
fn aborted_requests_leave_no_transaction_open() {
    abort_requests(Lane::short("aborted requests", 304));
}

#[test]
#[ignore = "lane: 10,000 aborted requests"]
fn lane_aborted_requests() {
    abort_requests(Lane::long("aborted requests", 10_000));
}

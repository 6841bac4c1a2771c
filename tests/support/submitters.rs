//! Clients that submit jobs and keep a journal of what was acknowledged, and the check that every
//! acknowledged job is there exactly once, whatever happened to the server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use super::raw_http::Connection;

/// How clients behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manners {
    /// Every job has an `Idempotency-Key`, sent again with each try.
    WithKeys,
    /// The known-bad control: tries again without a key.
    WithoutKeys,
}

/// Acknowledged jobs: the name a client gave → the id it was told.
type Journal = Arc<Mutex<BTreeMap<String, String>>>;

/// Clients in threads of their own, until told to stop.
pub struct Submitters {
    journal: Journal,
    stop: Arc<AtomicBool>,
    failed: Arc<AtomicU64>,
    clients: Vec<JoinHandle<()>>,
}

/// What is wrong.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged, but not there.
    pub missing: Vec<String>,
    /// There more than once, or under another id than was told.
    pub extra: Vec<String>,
}

impl Submitters {
    /// `prefix` keeps the names of several groups apart.
    pub fn start(
        address: SocketAddr,
        dataset: &str,
        prefix: &str,
        clients: u64,
        manners: Manners,
    ) -> Self {
        let journal = Journal::default();
        let stop = Arc::new(AtomicBool::new(false));
        let failed = Arc::new(AtomicU64::new(0));
        let clients = (0..clients)
            .map(|client| {
                let (journal, stop, failed) = (journal.clone(), stop.clone(), failed.clone());
                let (dataset, prefix) = (dataset.to_owned(), prefix.to_owned());
                std::thread::spawn(move || {
                    let mut connection = Connection::new(address);
                    for n in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let name = format!("{prefix}-{client}-{n}");
                        let id = submit(&mut connection, &name, &dataset, manners, &failed);
                        // In the journal before anything else is asked for.
                        journal.lock().unwrap().insert(name, id);
                    }
                })
            })
            .collect();
        Self {
            journal,
            stop,
            failed,
            clients,
        }
    }

    /// What is acknowledged so far.
    pub fn acknowledged(&self) -> BTreeMap<String, String> {
        self.journal.lock().unwrap().clone()
    }

    /// Answers other than 2xx so far: a client never gets to see a failure of the server itself.
    pub fn refused(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Lets every client finish the job it is at; answers the whole journal.
    pub fn finish(self) -> BTreeMap<String, String> {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.join().unwrap();
        }
        self.journal.lock().unwrap().clone()
    }
}

/// A spec that is valid and never runs.
pub fn named_spec(name: &str, dataset: &str) -> String {
    json!({
        "name": name,
        "model": "org/model",
        "task": "sequence_classification",
        "dataset": {"train": dataset},
    })
    .to_string()
}

/// Tries until the job is acknowledged; answers its id.
fn submit(
    connection: &mut Connection,
    name: &str,
    dataset: &str,
    manners: Manners,
    failed: &AtomicU64,
) -> String {
    let key = [("idempotency-key", name)];
    let headers: &[_] = match manners {
        Manners::WithKeys => &key,
        Manners::WithoutKeys => &[],
    };
    let body = named_spec(name, dataset);
    loop {
        match connection.post_json("/v1/jobs", headers, &body) {
            Ok(reply) if reply.status / 100 == 2 => {
                return reply.json()["id"].as_str().unwrap().to_owned();
            }
            Ok(_) => {
                failed.fetch_add(1, Ordering::Relaxed);
            }
            // The server is away, or went away in the middle: nobody knows whether it was done.
            Err(_) => {}
        }
        // Fifty clients that ask more often would keep the server from starting.
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every job that the server lists: (name, id).
pub fn listed(address: SocketAddr) -> Vec<(String, String)> {
    let mut connection = Connection::new(address);
    let mut jobs = Vec::new();
    let mut path = "/v1/jobs?limit=100".to_owned();
    loop {
        let page = connection.get(&path).unwrap().json();
        for job in page["data"].as_array().unwrap() {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            jobs.push((text(&job["spec"]["name"]), text(&job["id"])));
        }
        let Some(cursor) = page["next_cursor"].as_str() else {
            return jobs;
        };
        path = format!("/v1/jobs?limit=100&after={cursor}");
    }
}

/// Compares what was acknowledged with what is there.
pub fn compare(journal: &BTreeMap<String, String>, there: &[(String, String)]) -> Verdict {
    let mut ids: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, id) in there {
        ids.entry(name).or_default().push(id);
    }
    let mut verdict = Verdict::default();
    for (name, id) in journal {
        let found = ids.get(name.as_str()).map_or(&[][..], Vec::as_slice);
        if !found.contains(&id.as_str()) {
            verdict.missing.push(name.clone());
        }
    }
    for (name, found) in ids {
        if found.len() > 1 {
            verdict.extra.push(name.to_owned());
        }
    }
    verdict
}

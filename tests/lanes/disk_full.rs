//! The disk under the database fills up: submits are told so (507), reads go on, and as soon as there is
//! space again so do writes, without a restart.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::ServerOptions;
use crate::support::lane::{Lane, Random};
use crate::support::raw_http::{Connection, Reply};
use crate::support::submitters::{listed, named_spec};

/// What recovery may take.
const LIMIT: Duration = Duration::from_secs(5);
const ROUNDS_PER_DISK: u64 = 5;

/// A file system of 16 MB in memory; `None` where this process may not mount one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let output = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m", "chandler-test"])
            .arg(folder.path())
            .output();
        match output {
            Ok(output) if output.status.success() => Some(Self(folder)),
            Ok(output) => {
                println!("skipped: {}", String::from_utf8_lossy(&output.stderr));
                None
            }
            Err(error) => {
                println!("skipped: mount: {error}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// Fills the disk to the last byte.
fn fill(ballast: &Path) {
    let mut file = std::fs::File::options()
        .create(true)
        .append(true)
        .open(ballast)
        .unwrap();
    for size in [1 << 20, 1 << 12, 1] {
        while file.write_all(&vec![b'x'; size]).is_ok() {}
    }
}

fn assert_disk_full(reply: &Reply) {
    assert_eq!(
        reply.status,
        507,
        "{}",
        String::from_utf8_lossy(&reply.body)
    );
    assert_eq!(reply.json()["code"], "disk_full");
    assert_eq!(
        reply.header("content-type"),
        Some("application/problem+json")
    );
}

#[derive(Debug, Default)]
struct Totals {
    refused: usize,
    accepted: usize,
    slowest: Duration,
}

fn fill_and_free(mut lane: Lane, limit: Duration) {
    let mut totals = Totals::default();
    let mut left = lane.count;
    while left > 0 {
        // Jobs are only ever added: one disk does not hold those of many rounds.
        let rounds = left.min(ROUNDS_PER_DISK);
        let Some(disk) = SmallDisk::mount() else {
            return;
        };
        on_one_disk(&disk, &mut lane.random, rounds, limit, &mut totals);
        left -= rounds;
        println!("{} of {} times full", lane.count - left, lane.count);
    }
    println!(
        "{} times full: {} submits refused with 507, {} accepted and all there; \
         writing again at most {:?} after there was space",
        lane.count, totals.refused, totals.accepted, totals.slowest
    );
}

fn on_one_disk(
    disk: &SmallDisk,
    random: &mut Random,
    rounds: u64,
    limit: Duration,
    totals: &mut Totals,
) {
    let options = ServerOptions::new(&disk.path().join("data")).slots(0);
    let server = options.start();
    let address = server.address();
    let mut full = FullDisk {
        dataset: server.csv("text,label\na,x\nb,y\n"),
        connection: Connection::new(address),
        ballast: disk.path().join("ballast"),
        accepted: 0,
    };
    for _ in 0..rounds {
        for _ in 0..random.between(1, 20) {
            assert!(full.submit(), "there is space");
        }
        totals.refused += full.fill_until_every_submit_is_refused();
        let upload = server.upload("name=x", "text/csv", "text,label\na,x\n".repeat(2000));
        assert_eq!(upload.status(), 507);
        assert_eq!(
            listed(address).len(),
            full.accepted,
            "reads work and tell the truth"
        );
        assert_eq!(full.connection.get("/healthz").unwrap().status, 200);

        std::fs::remove_file(&full.ballast).unwrap();
        let freed = Instant::now();
        while !full.submit() {
            assert!(freed.elapsed() < limit, "it does not recover");
            std::thread::sleep(Duration::from_millis(10));
        }
        totals.slowest = totals.slowest.max(freed.elapsed());
        assert_eq!(full.connection.get("/readyz").unwrap().status, 200);
        assert_eq!(listed(address).len(), full.accepted);
    }
    totals.accepted += full.accepted;
    assert!(server.stop().success());
    let database = options.data_dir.join("chandler.db");
    assert_eq!(crate::support::database::integrity(&database), ["ok"]);
}

/// A client, and what takes its server's space away.
struct FullDisk {
    dataset: String,
    connection: Connection,
    ballast: PathBuf,
    accepted: usize,
}

impl FullDisk {
    /// Whether a job was taken; if not, the answer says that the disk is full.
    fn submit(&mut self) -> bool {
        let body = named_spec("full", &self.dataset);
        let reply = self.connection.post_json("/v1/jobs", &[], &body).unwrap();
        if reply.status == 201 {
            self.accepted += 1;
            return true;
        }
        assert_disk_full(&reply);
        false
    }

    /// The log has some room of its own left, so some submits still come through. Answers how many did not.
    fn fill_until_every_submit_is_refused(&mut self) -> usize {
        let (mut refused, mut in_a_row) = (0, 0);
        while in_a_row < 10 {
            fill(&self.ballast);
            if self.submit() {
                in_a_row = 0;
            } else {
                (in_a_row, refused) = (in_a_row + 1, refused + 1);
            }
        }
        refused
    }
}

#[test]
fn a_full_disk_refuses_submits_and_passes() {
    fill_and_free(Lane::short("disk full", 2), 6 * LIMIT);
}

#[test]
#[ignore = "lane: 50 times full"]
fn lane_disk_full() {
    fill_and_free(Lane::long("disk full", 50), LIMIT);
}

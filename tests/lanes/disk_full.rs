//! The disk under the database fills up: submits are told so (507), reads go on, and as soon as there is
//! space again so do writes, without a restart.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::ServerOptions;
use crate::support::lane::Lane;
use crate::support::raw_http::{Connection, Reply};
use crate::support::submitters::{listed, named_spec};

/// What recovery may take.
const LIMIT: Duration = Duration::from_secs(5);

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

fn fill_and_free(mut lane: Lane, limit: Duration) {
    let Some(disk) = SmallDisk::mount() else {
        return;
    };
    let options = ServerOptions::new(&disk.path().join("data")).slots(0);
    let server = options.start();
    let dataset = server.csv("text,label\na,x\nb,y\n");
    let address = server.address();
    let mut connection = Connection::new(address);
    let ballast = disk.path().join("ballast");
    let (mut accepted, mut refused, mut slowest) = (0, 0, Duration::ZERO);
    for round in 0..lane.count {
        for n in 0..lane.random.between(1, 20) {
            let body = named_spec(&format!("{round}-{n}"), &dataset);
            let reply = connection.post_json("/v1/jobs", &[], &body).unwrap();
            assert_eq!(reply.status, 201);
            accepted += 1;
        }
        fill(&ballast);
        // The log has some room of its own left; then every submit is refused.
        let mut in_a_row = 0;
        while in_a_row < 10 {
            let body = named_spec(&format!("{round}-full-{refused}-{accepted}"), &dataset);
            let reply = connection.post_json("/v1/jobs", &[], &body).unwrap();
            if reply.status == 201 {
                (in_a_row, accepted) = (0, accepted + 1);
                fill(&ballast);
            } else {
                assert_disk_full(&reply);
                (in_a_row, refused) = (in_a_row + 1, refused + 1);
            }
        }
        let upload = server.upload("name=x", "text/csv", "text,label\na,x\n".repeat(2000));
        assert_eq!(upload.status(), 507);
        assert_eq!(
            listed(address).len(),
            accepted,
            "reads work and tell the truth"
        );
        assert_eq!(connection.get("/healthz").unwrap().status, 200);

        std::fs::remove_file(&ballast).unwrap();
        let freed = Instant::now();
        loop {
            let body = named_spec(&format!("{round}-freed"), &dataset);
            let reply = connection.post_json("/v1/jobs", &[], &body).unwrap();
            if reply.status == 201 {
                break;
            }
            assert_disk_full(&reply);
            assert!(freed.elapsed() < limit, "it does not recover");
            std::thread::sleep(Duration::from_millis(10));
        }
        accepted += 1;
        slowest = slowest.max(freed.elapsed());
        assert_eq!(connection.get("/readyz").unwrap().status, 200);
        assert_eq!(listed(address).len(), accepted);
    }
    println!(
        "{} times full: {refused} submits refused with 507, {accepted} accepted and all there; \
         writing again at most {slowest:?} after there was space",
        lane.count
    );
    assert!(server.stop().success());
    let database = options.data_dir.join("chandler.db");
    assert_eq!(crate::support::database::integrity(&database), ["ok"]);
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

//! Power cuts: the file system forgets everything that was not synced. Every acknowledged job is there
//! afterwards. The control runs with `synchronous=NORMAL` and must lose some, or the lane sees nothing.
//!
//! Needs a mounted LazyFS, as `tests/LANES.md` says how; there is no short form.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;

use crate::support::ServerOptions;
use crate::support::database::integrity;
use crate::support::lane::Lane;
use crate::support::raw_http::Connection;
use crate::support::submitters::{Manners, Submitters, compare, listed};

const CLIENTS: u64 = 16;

/// A file system that keeps what was not synced in its own memory.
struct LazyFs {
    mount: PathBuf,
    faults: PathBuf,
    done: BufReader<File>,
}

impl LazyFs {
    fn from_env() -> Self {
        let path = |name: &str| {
            let value = std::env::var_os(name);
            PathBuf::from(value.unwrap_or_else(|| panic!("{name} is not set; see tests/LANES.md")))
        };
        // Both ends: opening does not wait for LazyFS, and LazyFS always finds a reader.
        let done = File::options()
            .read(true)
            .write(true)
            .open(path("CHANDLER_LAZYFS_DONE"));
        Self {
            mount: path("CHANDLER_LAZYFS_MNT"),
            faults: path("CHANDLER_LAZYFS_FIFO"),
            done: BufReader::new(done.unwrap()),
        }
    }

    /// Drops what was written and not synced; returns when it is gone.
    fn cut_power(&mut self) {
        let mut faults = File::options().write(true).open(&self.faults).unwrap();
        faults.write_all(b"lazyfs::clear-cache\n").unwrap();
        let mut line = String::new();
        self.done.read_line(&mut line).unwrap();
        assert!(line.contains("clear-cache"), "LazyFS said {line:?}");
    }
}

#[derive(Debug, Default)]
struct Losses {
    acknowledged: usize,
    lost: usize,
    cuts_with_loss: usize,
    unsound: usize,
}

fn cut_again_and_again(mut lane: Lane, synchronous: &str) -> Losses {
    let mut lazy = LazyFs::from_env();
    let folder = tempfile::tempdir_in(&lazy.mount).unwrap();
    let options = ServerOptions::new(&folder.path().join("data"))
        .slots(0)
        .fixed_port()
        .env("RUST_LOG", "warn,chandler::cli=info")
        .env("CHANDLER_TEST_SYNCHRONOUS", synchronous);
    let server = options.start();
    let dataset = server.csv("text,label\na,x\nb,y\n");
    // Closing folds the log into the database and syncs it: the dataset survives in the control, too.
    server.stop();
    let mut losses = Losses::default();
    for cut in 0..lane.count {
        let server = options.start();
        let address = server.address();
        let prefix = format!("cut-{cut}");
        let submitters = Submitters::start(address, &dataset, &prefix, CLIENTS, Manners::WithKeys);
        std::thread::sleep(lane.random.millis(200, 900));
        server.kill();
        let journal = submitters.acknowledged();
        lazy.cut_power();
        let server = options.start();
        submitters.finish();
        let database = options.data_dir.join("chandler.db");
        if integrity(&database) != ["ok"] {
            losses.unsound += 1;
        }
        let mut connection = Connection::new(address);
        let mut lost = 0;
        for id in journal.values() {
            let reply = connection.get(&format!("/v1/jobs/{id}")).unwrap();
            lost += usize::from(reply.status != 200);
        }
        losses.acknowledged += journal.len();
        losses.lost += lost;
        losses.cuts_with_loss += usize::from(lost > 0);
        if cut % 10 == 9 {
            println!("{} cuts: {losses:?}", cut + 1);
        }
        server.stop();
    }
    let server = options.start();
    let twice = compare(&BTreeMap::new(), &listed(server.address())).extra;
    println!(
        "{} power cuts with synchronous={synchronous}: {losses:?}, {} keys with more than one job",
        lane.count,
        twice.len()
    );
    assert_eq!(twice, Vec::<String>::new());
    assert!(
        losses.acknowledged as u64 >= lane.count,
        "hardly anything was submitted"
    );
    losses
}

#[test]
#[ignore = "lane: 100 power cuts; needs LazyFS"]
fn lane_power_cuts() {
    let losses = cut_again_and_again(Lane::long("power cuts", 100), "full");
    assert_eq!((losses.lost, losses.unsound), (0, 0));
}

#[test]
#[ignore = "control of lane_power_cuts: must lose jobs; needs LazyFS"]
fn lane_power_cuts_control() {
    let losses = cut_again_and_again(Lane::long("power cuts control", 10), "normal");
    assert!(losses.lost > 0, "the lane cannot see a loss");
}

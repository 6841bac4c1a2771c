//! A disk that fills up while a checkpoint is written (row 19).

use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chandler::artifacts::newest_valid;
use chandler::domain::{ErrorCode, JobError};
use chandler::faults::Faults;
use chandler::train::TrainJob;
use serde_json::{Value, json};

use super::lab::{Lab, Random, lane, names, run};

fn spec() -> Value {
    json!({"training_args": {
        "max_steps": 6, "learning_rate": 3e-3, "logging_steps": 1, "seed": 3, "save_steps": 2,
    }})
}

/// The job failed while it saved step 4: the one before is whole, nothing unfinished is left.
fn failed_at_the_second_save(job: &TrainJob, error: &JobError, what: &str) {
    assert_eq!(error.code, ErrorCode::DiskFull, "{what}: {error}");
    let number = |word: &str| -> u64 {
        let before = error.message.split(word).next().unwrap();
        let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap();
        digits.parse().unwrap_or_else(|_| panic!("{what}: {error}"))
    };
    assert!(number(" bytes needed") > 100_000, "{what}: {error}");
    number(" bytes free");
    assert_eq!(names(job), ["checkpoint-2"], "{what}");
    assert_eq!(
        newest_valid(&job.checkpoints_dir).unwrap().found.unwrap().0,
        2,
        "{what}"
    );
}

#[test]
fn a_disk_full_at_any_of_fifty_places_leaves_the_checkpoint_before() {
    let temp = tempfile::tempdir().unwrap();
    let lab = Lab::set_up(&temp.path().join("lab"), 24);
    let run_with = |name: String, faults: &str| {
        let mut job = lab.job(&temp.path().join(name), &spec());
        job.faults = Faults::parse(faults, 1).unwrap();
        let (outcome, _) = run(&job);
        (job, outcome)
    };
    // The first save's operations end where a fault no longer hits it.
    let saves = |n: u64| {
        let (job, outcome) = run_with(
            format!("probe-{n}"),
            &format!("checkpoint.write@{n}=enospc"),
        );
        (outcome.is_err(), names(&job).len())
    };
    let (mut low, mut high) = (1, 2000);
    while low < high {
        let middle = (low + high) / 2;
        if saves(middle) == (true, 0) {
            low = middle + 1
        } else {
            high = middle
        }
    }
    let first = low;
    assert!(first > 50, "a save has only {first} operations");
    for round in 0..50 {
        let n = first + round * (first - 2) / 50;
        let faults = format!("checkpoint.write@{n}=enospc");
        let (job, outcome) = run_with(format!("round-{round}"), &faults);
        failed_at_the_second_save(&job, &outcome.unwrap_err(), &faults);
        std::fs::remove_dir_all(job.checkpoints_dir).unwrap();
    }
}

/// A real file system that something else fills while step 4 is being saved.
#[test]
#[ignore = "needs root: mounts a small tmpfs"]
fn lane_a_full_file_system_leaves_the_checkpoint_before() {
    let (count, seed) = lane(50);
    let temp = tempfile::tempdir().unwrap();
    let lab = Lab::set_up(&temp.path().join("lab"), 24);
    let whole = lab.job(&temp.path().join("whole"), &spec());
    run(&whole).0.unwrap();
    // Room for two checkpoints and what a save asks for beforehand, and little more.
    let room = 2 * blocks(&whole.checkpoints_dir.join("checkpoint-2")) + 104 * 1024;
    let mut random = Random(seed);
    let (mut failed, mut missed) = (0, 0);
    while failed < count {
        let place = temp.path().join(format!("small-{failed}-{missed}"));
        let mounted = Mount::tmpfs(&place, room);
        let job = lab.job(&place, &spec());
        let outcome = fill_while(&job, random.below(2000), || run(&job).0);
        let what = format!("seed {seed}, {failed} failed, {missed} missed");
        match outcome {
            Err(error) if names(&job) == ["checkpoint-2"] => {
                failed_at_the_second_save(&job, &error, &what);
                failed += 1;
            }
            // The save was over before the disk was full; perhaps the next one failed.
            _ => missed += 1,
        }
        assert!(missed < 10 * count, "{what}");
        drop(mounted);
    }
    println!("{failed} saves failed and left the checkpoint before; {missed} were over too soon");
}

/// Bytes a folder takes on a file system with pages of 4 KiB.
fn blocks(dir: &Path) -> u64 {
    let sizes = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len());
    sizes.map(|size| size.next_multiple_of(4096)).sum()
}

/// Fills the file system as soon as the second save has begun, `delay` microseconds later.
fn fill_while<R>(job: &TrainJob, delay: u64, work: impl FnOnce() -> R) -> R {
    let over = AtomicBool::new(false);
    let begun = || {
        std::fs::read_dir(&job.checkpoints_dir).is_ok_and(|mut entries| {
            entries.any(|e| {
                e.is_ok_and(|e| {
                    e.file_name()
                        .to_string_lossy()
                        .starts_with(".tmp-checkpoint-4")
                })
            })
        })
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !begun() && !over.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
            let until = Instant::now() + Duration::from_micros(delay);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            let ballast = job.checkpoints_dir.with_file_name("ballast");
            let mut file = File::create(ballast).unwrap();
            while file.write_all(&[0; 4096]).is_ok() {}
        });
        let result = work();
        over.store(true, Ordering::Relaxed);
        result
    })
}

struct Mount(std::path::PathBuf);

impl Mount {
    fn tmpfs(place: &Path, size: u64) -> Self {
        std::fs::create_dir_all(place).unwrap();
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(place);
        assert!(mount.status().unwrap().success(), "mounting needs root");
        Self(place.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

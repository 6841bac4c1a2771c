//! What a power cut leaves, computed: every change a writer makes to the disk is written down, then for every
//! place in that list the disk is rebuilt as a cut just there might leave it (the model of ALICE, Pillai et al.
//! 2014): content that was not synced may be there, in part, as zeros, or not at all; names in a folder that
//! was not synced may be the old ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::disk::{Disk, Op};
use super::*;

/// Checkpoints the writer publishes; the last step twice.
const STEPS: [u64; 13] = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12];
const KEEP: u64 = 2;

/// A writer's whole work: its changes, and after how many of them each publication was reported.
struct Work {
    root: PathBuf,
    ops: Vec<Op>,
    reported: Vec<(usize, u64)>,
    /// Weights of each step, in order of publication.
    weights: Vec<(u64, Vec<u8>)>,
    _temp: tempfile::TempDir,
}

fn work() -> Work {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("jobs");
    fs::create_dir(&root).unwrap();
    let dir = root.join("job/checkpoints");
    let journal = Arc::new(Mutex::new(Vec::new()));
    let mut disk = Disk::default();
    disk.journal = Some(Arc::clone(&journal));
    let (mut reported, mut weights) = (Vec::new(), Vec::new());
    for (round, step) in STEPS.into_iter().enumerate() {
        let content: Vec<u8> = (0..90).map(|i| (i * 7 + round * 13) as u8).collect();
        let mut writer = CheckpointWriter::begin_on(disk.clone(), &dir, step, 1).unwrap();
        writer
            .write("model.safetensors", |file| {
                content.chunks(30).try_for_each(|piece| file.append(piece))
            })
            .unwrap();
        writer
            .write("optimizer.safetensors", |file| file.append(&content[..40]))
            .unwrap();
        writer.write("a/b.json", |file| file.append(b"{}")).unwrap();
        writer.publish(1.0, BTreeMap::new(), true).unwrap();
        reported.push((journal.lock().unwrap().len(), step));
        weights.push((step, content));
        let steps = list_steps(&dir).unwrap();
        for old in plan(&steps, Some(KEEP), None, &[]) {
            remove(&disk, &dir.join(checkpoint_name(old))).unwrap();
        }
    }
    let ops = journal.lock().unwrap().clone();
    Work {
        root,
        ops,
        reported,
        weights,
        _temp: temp,
    }
}

/// Names in a folder, each with its inode.
type Names = BTreeMap<String, usize>;

enum Inode {
    File {
        written: Vec<u8>,
        synced: Vec<u8>,
    },
    /// `pending` holds the folder after each change since its last sync.
    Dir {
        now: Names,
        synced: Names,
        pending: Vec<Names>,
    },
}

/// How much of what was not synced a cut leaves.
#[derive(Clone, Copy, Debug)]
enum Cut {
    /// Nothing.
    Strict,
    /// All of it: the process was killed, not the machine.
    KillOnly,
    /// All names, no content: a rename overtook the data.
    NamesFirst,
    /// Any part, by chance.
    Random(u64),
}

struct Sim {
    inodes: Vec<Inode>,
    root: PathBuf,
}

impl Sim {
    fn new(root: &Path) -> Self {
        Self {
            inodes: vec![new_dir()],
            root: root.to_owned(),
        }
    }

    /// The folder that holds `path`, and its name in it.
    fn locate(&self, path: &Path) -> (usize, String) {
        let relative = path.strip_prefix(&self.root).unwrap();
        let mut names: Vec<String> = relative
            .iter()
            .map(|n| n.to_str().unwrap().to_owned())
            .collect();
        let last = names.pop().unwrap();
        let mut dir = 0;
        for name in names {
            let Inode::Dir { now, .. } = &self.inodes[dir] else {
                panic!("{path:?}")
            };
            dir = now[&name];
        }
        (dir, last)
    }

    fn inode(&self, path: &Path) -> usize {
        if path == self.root {
            return 0;
        }
        let (dir, name) = self.locate(path);
        let Inode::Dir { now, .. } = &self.inodes[dir] else {
            panic!("{path:?}")
        };
        now[&name]
    }

    fn change(&mut self, dir: usize, change: impl FnOnce(&mut Names)) {
        let Inode::Dir { now, pending, .. } = &mut self.inodes[dir] else {
            panic!("no folder")
        };
        change(now);
        pending.push(now.clone());
    }

    fn add(&mut self, path: &Path, inode: Inode) {
        let (dir, name) = self.locate(path);
        self.inodes.push(inode);
        let new = self.inodes.len() - 1;
        self.change(dir, |names| {
            names.insert(name, new);
        });
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::CreateDir(path) => self.add(path, new_dir()),
            Op::CreateFile(path) => self.add(
                path,
                Inode::File {
                    written: Vec::new(),
                    synced: Vec::new(),
                },
            ),
            Op::Write(path, bytes) => {
                let inode = self.inode(path);
                let Inode::File { written, .. } = &mut self.inodes[inode] else {
                    panic!()
                };
                written.extend(bytes);
            }
            Op::SyncFile(path) => {
                let inode = self.inode(path);
                let Inode::File { written, synced } = &mut self.inodes[inode] else {
                    panic!()
                };
                synced.clone_from(written);
            }
            Op::SyncDir(path) => {
                let inode = self.inode(path);
                let Inode::Dir {
                    now,
                    synced,
                    pending,
                } = &mut self.inodes[inode]
                else {
                    panic!()
                };
                synced.clone_from(now);
                pending.clear();
            }
            Op::Rename(from, to) => {
                let ((dir, from), (same, to)) = (self.locate(from), self.locate(to));
                assert_eq!(dir, same);
                self.change(dir, |names| {
                    let inode = names.remove(&from).unwrap();
                    names.insert(to, inode);
                });
            }
            Op::Exchange(a, b) => {
                let ((dir, a), (same, b)) = (self.locate(a), self.locate(b));
                assert_eq!(dir, same);
                self.change(dir, |names| {
                    let (one, two) = (names[&a], names[&b]);
                    names.extend([(a, two), (b, one)]);
                });
            }
            Op::RemoveFile(path) | Op::RemoveDir(path) => {
                let (dir, name) = self.locate(path);
                self.change(dir, |names| {
                    names.remove(&name);
                });
            }
        }
    }

    /// Writes the disk after the cut to `place`.
    fn cut(&self, inode: usize, cut: Cut, random: &mut Random, place: &Path) {
        match &self.inodes[inode] {
            Inode::File { written, synced } => {
                let content = match cut {
                    Cut::Strict | Cut::NamesFirst => synced.clone(),
                    Cut::KillOnly => written.clone(),
                    Cut::Random(_) => torn(written, synced, random),
                };
                fs::write(place, content).unwrap();
            }
            Inode::Dir {
                now,
                synced,
                pending,
            } => {
                let names = match cut {
                    Cut::Strict => synced,
                    Cut::KillOnly | Cut::NamesFirst => now,
                    // Changes of one folder reach the disk in order, up to any of them.
                    Cut::Random(_) => match random.below(pending.len() + 1) {
                        0 => synced,
                        n => &pending[n - 1],
                    },
                };
                fs::create_dir_all(place).unwrap();
                for (name, inode) in names {
                    self.cut(*inode, cut, random, &place.join(name));
                }
            }
        }
    }
}

/// Content of which some beyond `synced` arrived: a part, or room with zeros in it.
fn torn(written: &[u8], synced: &[u8], random: &mut Random) -> Vec<u8> {
    let mut content = written.to_vec();
    let arrived = synced.len() + random.below(written.len() - synced.len() + 1);
    if random.below(2) == 0 {
        content.truncate(arrived);
    } else {
        content[arrived..].fill(0);
    }
    content
}

fn new_dir() -> Inode {
    Inode::Dir {
        now: Names::new(),
        synced: Names::new(),
        pending: Vec::new(),
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((x ^ (x >> 31)) % n.max(1) as u64) as usize
    }
}

/// What is wrong with the disk that a cut left, if anything is.
fn judge(dir: &Path, work: &Work, ops_done: usize) -> Option<String> {
    let promised = work.reported.iter().rfind(|(ops, _)| *ops <= ops_done);
    let found = newest_valid(dir).unwrap().found;
    let Some((step, folder, _)) = found else {
        return promised.map(|(_, step)| format!("step {step} was reported, nothing is there"));
    };
    if promised.is_some_and(|(_, promised)| *promised > step) {
        return Some(format!("{promised:?} was reported, {step} is the newest"));
    }
    let content = fs::read(folder.join("model.safetensors")).unwrap();
    let whole = work
        .weights
        .iter()
        .any(|(s, w)| *s == step && *w == content);
    (!whole).then(|| format!("step {step} was accepted with other weights"))
}

/// Cuts after every operation in every way; answers how many cuts, and what was wrong after which.
fn cut_everywhere(work: &Work, keep: impl Fn(&Op) -> bool, repair: bool) -> (usize, Vec<String>) {
    let mut sim = Sim::new(&work.root);
    sim.apply(&Op::SyncDir(work.root.clone()));
    let (mut cuts, mut wrong) = (0, Vec::new());
    for done in 0..=work.ops.len() {
        for cut in [
            Cut::Strict,
            Cut::KillOnly,
            Cut::NamesFirst,
            Cut::Random(1),
            Cut::Random(2),
        ] {
            let temp = tempfile::tempdir().unwrap();
            let seed = if let Cut::Random(n) = cut { n } else { 0 };
            let mut random = Random(seed * 1_000_003 + done as u64);
            sim.cut(0, cut, &mut random, temp.path());
            let dir = temp.path().join("job/checkpoints");
            cuts += 1;
            if let Some(reason) = judge(&dir, work, done) {
                wrong.push(format!("after {done} operations, {cut:?}: {reason}"));
            } else if repair {
                go_on(&dir);
            }
        }
        if let Some(op) = work.ops.get(done)
            && keep(op)
        {
            sim.apply(op);
        }
    }
    (cuts, wrong)
}

/// The next attempt clears up and publishes.
fn go_on(dir: &Path) {
    sweep_leftovers(dir).unwrap();
    let mut writer = CheckpointWriter::begin(dir, 100).unwrap();
    writer
        .write("model.safetensors", |file| file.append(b"next"))
        .unwrap();
    writer.publish(1.0, BTreeMap::new(), true).unwrap();
    assert_eq!(newest_valid(dir).unwrap().found.unwrap().0, 100);
    let tidy = fs::read_dir(dir)
        .unwrap()
        .all(|entry| step_of_name(entry.unwrap().file_name().to_str().unwrap()).is_some());
    assert!(tidy, "something unfinished is left");
}

#[test]
fn a_power_cut_anywhere_leaves_the_last_reported_checkpoint_and_no_partial_one_is_accepted() {
    let work = work();
    let (cuts, wrong) = cut_everywhere(&work, |_| true, true);
    println!(
        "{} operations, {cuts} cuts, {} wrong",
        work.ops.len(),
        wrong.len()
    );
    assert!(cuts >= 500, "only {cuts}");
    assert!(
        wrong.is_empty(),
        "{} of {cuts}: {:#?}",
        wrong.len(),
        &wrong[..wrong.len().min(5)]
    );
}

/// Whether a writer does this.
type Kept = fn(&Op) -> bool;

/// The controls: writers that leave out one kind of sync lose what they reported.
#[test]
fn a_writer_without_syncs_is_caught() {
    let work = work();
    let without: [(&str, Kept); 3] = [
        ("fsync of files", |op| !matches!(op, Op::SyncFile(_))),
        ("fsync of folders", |op| !matches!(op, Op::SyncDir(_))),
        (
            "fsync of the folder of checkpoints",
            |op| !matches!(op, Op::SyncDir(dir) if dir.ends_with("checkpoints")),
        ),
    ];
    for (what, keep) in without {
        let (cuts, wrong) = cut_everywhere(&work, keep, false);
        println!(
            "without {what}: {} of {cuts} cuts lose a checkpoint",
            wrong.len()
        );
        assert!(!wrong.is_empty(), "without {what} nothing was lost");
    }
}

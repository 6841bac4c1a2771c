//! Every way we know to damage a checkpoint, and that none of them is taken for a good one.

use std::collections::BTreeMap;
use std::fs;

use super::super::CheckpointWriter;
use super::*;

/// SplitMix64 (Steele et al. 2014): enough randomness for choosing what to break.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

const FILES: [(&str, usize); 4] = [
    ("config.json", 40),
    ("model.safetensors", 900),
    ("optimizer/state.safetensors", 1700),
    ("trainer_state.json", 200),
];

fn publish(checkpoints: &Path, step: u64) -> CheckpointRecord {
    let writer = CheckpointWriter::begin(checkpoints, step).unwrap();
    for (name, size) in FILES {
        let content: Vec<u8> = (0..size).map(|i| (i as u64 * 31 + step) as u8).collect();
        fs::write(writer.file(name).unwrap(), content).unwrap();
    }
    let metrics = BTreeMap::from([("eval_loss".to_owned(), 0.5)]);
    writer.publish(1.5, metrics, true).unwrap()
}

/// Does one random thing to the checkpoint in `dir` and says what.
fn damage(dir: &Path, other: &Path, random: &mut Random) -> String {
    let names: Vec<&str> = FILES
        .iter()
        .map(|(name, _)| *name)
        .chain([MANIFEST_FILE])
        .collect();
    let name = names[random.below(names.len())];
    let path = dir.join(name);
    let mut bytes = fs::read(&path).unwrap();
    let what = match random.below(7) {
        0 | 1 => {
            let (at, bit) = (random.below(bytes.len()), random.below(8));
            bytes[at] ^= 1 << bit;
            format!("bit {bit} of byte {at}")
        }
        2 => {
            let len = random.below(bytes.len());
            bytes.truncate(len);
            format!("cut to {len} bytes")
        }
        3 => {
            bytes.clear();
            "emptied".to_owned()
        }
        4 => {
            bytes.push(b'x');
            "one byte more".to_owned()
        }
        5 => {
            fs::remove_file(&path).unwrap();
            return format!("{name}: removed");
        }
        _ => {
            fs::copy(other.join(name), &path).unwrap();
            return format!("{name}: of another checkpoint");
        }
    };
    fs::write(&path, bytes).unwrap();
    format!("{name}: {what}")
}

#[test]
fn none_of_600_random_corruptions_is_accepted() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    let older = publish(dir, 10);
    let newer = publish(dir, 20);
    let target = dir.join(checkpoint_name(20));
    let files: Vec<&str> = FILES
        .iter()
        .map(|(name, _)| *name)
        .chain([MANIFEST_FILE])
        .collect();
    let good: Vec<Vec<u8>> = files
        .iter()
        .map(|n| fs::read(target.join(n)).unwrap())
        .collect();
    let mut random = Random(42);
    for round in 0..600 {
        let what = damage(&target, &dir.join(checkpoint_name(10)), &mut random);
        assert!(verify(&target).is_err(), "round {round}: {what}");
        let search = newest_valid(dir).unwrap();
        let (step, _, record) = search.found.unwrap();
        assert_eq!((step, &record), (10, &older), "round {round}: {what}");
        assert_eq!(search.skipped[0].step, 20);
        for (name, bytes) in files.iter().zip(&good) {
            fs::write(target.join(name), bytes).unwrap();
        }
        assert_eq!(verify(&target).unwrap(), newer);
    }
}

#[test]
fn every_single_bit_of_a_manifest_counts() {
    let temp = tempfile::tempdir().unwrap();
    publish(temp.path(), 3);
    let dir = temp.path().join(checkpoint_name(3));
    let path = dir.join(MANIFEST_FILE);
    let good = fs::read(&path).unwrap();
    for at in 0..good.len() {
        for bit in 0..8 {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << bit;
            fs::write(&path, bytes).unwrap();
            assert!(verify(&dir).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn a_manifest_cannot_point_outside() {
    let temp = tempfile::tempdir().unwrap();
    let mut record = publish(temp.path(), 1);
    let dir = temp.path().join(checkpoint_name(1));
    for path in ["../secret", "/etc/passwd", "a/../../b", ""] {
        record.files[0].path = path.to_owned();
        fs::write(dir.join(MANIFEST_FILE), encode(&record).unwrap()).unwrap();
        let error = read(&dir).unwrap_err().to_string();
        assert!(error.contains("manifest lists"), "{path}: {error}");
    }
}

#[test]
fn a_file_that_is_not_listed_costs_no_checkpoint_and_belongs_to_none() {
    let temp = tempfile::tempdir().unwrap();
    let record = publish(temp.path(), 4);
    let dir = temp.path().join(checkpoint_name(4));
    fs::write(dir.join(".DS_Store"), "of a file manager").unwrap();
    assert_eq!(verify(&dir).unwrap(), record);
    // Other content under a listed name is another matter.
    fs::write(dir.join(&record.files[0].path), "of a stranger").unwrap();
    assert!(verify(&dir).is_err());
}

#[test]
fn the_search_says_what_it_passed_over() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path();
    assert!(newest_valid(&dir.join("none")).unwrap().found.is_none());
    for step in [5, 40, 9, 100] {
        publish(dir, step);
    }
    fs::create_dir(dir.join(".tmp-checkpoint-500-1")).unwrap();
    fs::create_dir(dir.join("checkpoint-300")).unwrap();
    fs::write(dir.join("checkpoint-100/config.json"), "{}").unwrap();
    assert_eq!(list_steps(dir).unwrap(), [5, 9, 40, 100, 300]);

    let search = newest_valid(dir).unwrap();
    assert_eq!(search.found.unwrap().0, 40);
    let skipped: Vec<u64> = search.skipped.iter().map(|s| s.step).collect();
    assert_eq!(skipped, [300, 100]);
    assert!(search.skipped[0].reason.contains(MANIFEST_FILE));
    assert!(search.skipped[1].reason.contains("bytes instead of 40"));

    let early = newest_valid_where(dir, |record| record.step < 40).unwrap();
    assert_eq!(early.found.unwrap().0, 9);
}

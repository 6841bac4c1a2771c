//! Which old checkpoints go, by HF's `save_total_limit`.
//!
//! As in the HF Trainer, the limit counts **all** checkpoints, the best one included: with a limit of K and a
//! best that is older than the last K, the best, the last, and the K - 2 newest others stay. A limit of 1 with
//! a best that is not the last keeps both, because training must be able to go on from the last.
//! (`transformers`, `trainer_utils.rotate_checkpoints`.)

use std::path::Path;

use super::publish::tmp_beside;
use super::{ArtifactError, Disk};

/// The steps to remove, ascending. `save_total_limit` of `None` or 0 keeps everything. `in_use` are never
/// removed and do not count: they go at a later call.
pub fn plan(
    steps: &[u64],
    save_total_limit: Option<u64>,
    best: Option<u64>,
    in_use: &[u64],
) -> Vec<u64> {
    let mut steps = steps.to_vec();
    steps.sort_unstable();
    steps.dedup();
    let (Some(limit @ 1..), Some(&last)) = (save_total_limit, steps.last()) else {
        return Vec::new();
    };
    let mut kept = vec![last];
    kept.extend(best.filter(|best| *best != last && steps.contains(best)));
    for step in steps.iter().rev() {
        if kept.len() as u64 >= limit {
            break;
        }
        if !kept.contains(step) {
            kept.push(*step);
        }
    }
    steps.retain(|step| !kept.contains(step) && !in_use.contains(step));
    steps
}

/// Removes a checkpoint folder; `sweep_leftovers` finishes what a crash interrupted.
pub fn remove(disk: &Disk, dir: &Path) -> Result<(), ArtifactError> {
    let aside =
        tmp_beside(dir).ok_or_else(|| ArtifactError::invalid(dir, "not a checkpoint's folder"))?;
    disk.remove_by_way_of(&aside, dir)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::durable::entries;
    use super::*;

    const STEPS: [u64; 5] = [100, 10, 20, 40, 30];

    #[test]
    fn no_limit_keeps_everything() {
        assert!(plan(&STEPS, None, None, &[]).is_empty());
        assert!(plan(&STEPS, Some(0), None, &[]).is_empty());
        assert!(plan(&STEPS, Some(5), Some(10), &[]).is_empty());
        assert!(plan(&[], Some(1), Some(10), &[]).is_empty());
    }

    #[test]
    fn the_last_stay() {
        assert_eq!(plan(&STEPS, Some(1), None, &[]), [10, 20, 30, 40]);
        assert_eq!(plan(&STEPS, Some(2), None, &[]), [10, 20, 30]);
    }

    #[test]
    fn an_older_best_takes_one_of_the_places() {
        assert_eq!(plan(&STEPS, Some(3), Some(20), &[]), [10, 30]);
        assert_eq!(plan(&STEPS, Some(2), Some(20), &[]), [10, 30, 40]);
        assert_eq!(plan(&STEPS, Some(2), Some(100), &[]), [10, 20, 30]);
        // A best whose folder is gone takes no place.
        assert_eq!(plan(&STEPS, Some(2), Some(15), &[]), [10, 20, 30]);
    }

    #[test]
    fn a_limit_of_one_keeps_the_last_and_the_best() {
        assert_eq!(plan(&STEPS, Some(1), Some(20), &[]), [10, 30, 40]);
        assert_eq!(plan(&STEPS, Some(1), Some(100), &[]), [10, 20, 30, 40]);
    }

    #[test]
    fn what_is_in_use_waits() {
        assert_eq!(plan(&STEPS, Some(1), None, &[20, 999]), [10, 30, 40]);
    }

    #[test]
    fn removal_leaves_nothing_and_may_be_repeated() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("checkpoint-3");
        fs::create_dir_all(dir.join("sub")).unwrap();
        let disk = Disk::default();
        remove(&disk, &dir).unwrap();
        remove(&disk, &dir).unwrap();
        assert!(entries(temp.path()).unwrap().is_empty());
        assert!(remove(&disk, Path::new("/")).is_err());
    }
}

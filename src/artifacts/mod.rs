//! The only knowledge of the data directory: where everything lies, how a checkpoint is published so that a
//! crash never leaves half of one, how it is checked before use, and which old ones go.
//!
//! ```text
//! <data_dir>/
//!   chandler.db  lock
//!   datasets/<dataset_id>/data.<ext>  and tokens/<key>.tokens: see `token_caches`
//!   jobs/<job_id>/attempts/<n>/{events.jsonl,trainer.log}   and `checkpoints`, a link: see `fence`
//!   jobs/<job_id>/checkpoints/checkpoint-<step>/{manifest.json,…}
//!   models/…                      base models fetched by `hub`
//!   tmp/                          swept when a server starts
//! ```
//!
//! The rule behind all of it: **a folder without its manifest is garbage**. Everything is written beside its
//! place under a `.tmp-` name, synced, and renamed as the last act.

#[cfg(test)]
mod crash_tests;
mod disk;
mod durable;
mod error;
mod fence;
mod layout;
mod manifest;
mod publish;
mod retention;
mod token_caches;

pub use disk::{Disk, DiskFile};
pub use durable::{
    HashedFile, files_under, hash_bytes, hash_file, replace_dir, sync_dir, sync_tree, write_file,
};
pub use error::{ArtifactError, free_bytes};
pub use layout::{DataDir, DataDirLock};
pub use manifest::{
    MANIFEST_FILE, NewestValid, SkippedCheckpoint, is_plain, list_steps, newest_valid,
    newest_valid_where, read, verify,
};
pub use publish::{CheckpointWriter, sweep_leftovers};
pub use retention::{plan, remove};
pub use token_caches::{NewTokenCache, TokenCaches};

/// Name of the folder of the checkpoint taken at `step`, as the HF Trainer names it.
pub fn checkpoint_name(step: u64) -> String {
    format!("checkpoint-{step}")
}

/// The step in a checkpoint folder's name; `None` for any other name (`checkpoint-007` too: one step, one
/// name).
pub fn step_of_name(name: &str) -> Option<u64> {
    let step = name.strip_prefix("checkpoint-")?.parse().ok()?;
    (checkpoint_name(step) == name).then_some(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_has_exactly_one_name() {
        assert_eq!(step_of_name("checkpoint-120"), Some(120));
        for wrong in [
            "checkpoint-",
            "checkpoint-007",
            "checkpoint-+7",
            "checkpoint--1",
            ".tmp-checkpoint-7-99",
            "checkpoint-7.old",
        ] {
            assert_eq!(step_of_name(wrong), None, "{wrong}");
        }
    }
}

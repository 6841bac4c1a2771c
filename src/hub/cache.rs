//! The local hub cache that Python's `huggingface_hub` and this server share:
//! `models--org--name/{blobs,refs/<revision>,snapshots/<commit>/…}`. Reading it is a few files, so it is done
//! here and never needs the network.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::Miss;
use super::request::RepoRef;
use super::{Found, ModelSource, folder};

/// The snapshot of `repo` at its revision. A branch means what it meant at the last download.
pub(super) fn find(cache_dir: &Path, repo: &RepoRef) -> Result<Found, Miss> {
    let (dir, commit) = snapshot(cache_dir, repo)?;
    folder::check_dir(&dir)?;
    let model_sha256 = folder::hash_weights(&dir)?;
    Ok(Found {
        dir,
        source: ModelSource::HubCache {
            repo: repo.id.clone(),
        },
        revision: Some(commit),
        model_sha256,
    })
}

/// Folder and commit of the snapshot, whatever is in it.
pub(super) fn snapshot(cache_dir: &Path, repo: &RepoRef) -> Result<(PathBuf, String), Miss> {
    let place = repo_dir(cache_dir, repo);
    if !place.is_dir() {
        return Err(Miss::nothing(format!("nothing in {}", place.display())));
    }
    let revision = repo.revision();
    let commit = commit_of(&place, revision).ok_or_else(|| {
        Miss::nothing(format!(
            "{} does not know revision `{revision}`",
            place.display()
        ))
    })?;
    let snapshot = place.join("snapshots").join(&commit);
    if !snapshot.is_dir() {
        return Err(Miss::nothing(format!(
            "{} does not exist",
            snapshot.display()
        )));
    }
    let dir = std::path::absolute(&snapshot).unwrap_or(snapshot);
    Ok((dir, commit))
}

/// Remembers which commit a branch or tag was, so that the next lookup needs no network. Called when the
/// snapshot is whole.
pub(super) fn write_ref(cache_dir: &Path, repo: &RepoRef, commit: &str) -> std::io::Result<()> {
    if is_commit(repo.revision()) {
        return Ok(());
    }
    let path = repo_dir(cache_dir, repo).join("refs").join(repo.revision());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let tmp = path.with_file_name(format!(".tmp-ref-{}", std::process::id()));
    fs::write(&tmp, commit)?;
    fs::rename(&tmp, &path)
}

fn repo_dir(cache_dir: &Path, repo: &RepoRef) -> PathBuf {
    cache_dir.join(format!("models--{}", repo.id.replace('/', "--")))
}

fn commit_of(place: &Path, revision: &str) -> Option<String> {
    if is_commit(revision) {
        return Some(revision.to_owned());
    }
    let text = fs::read_to_string(place.join("refs").join(revision)).ok()?;
    // The content becomes part of a path.
    Some(text.trim().to_owned()).filter(|commit| is_commit(commit))
}

/// Whether this is a full commit hash, which needs no lookup.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::artifacts::hash_file;
    use crate::hub::testing::{COMMIT, write_model};

    fn repo(revision: Option<&str>) -> RepoRef {
        RepoRef {
            id: "org/name".to_owned(),
            revision: revision.map(str::to_owned),
        }
    }

    /// A cache as `huggingface_hub` lays it out: snapshot files are links to blobs named by hash.
    fn cache(dir: &Path) -> PathBuf {
        let place = dir.join("models--org--name");
        let snapshot = place.join("snapshots").join(COMMIT);
        let blobs = place.join("blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::create_dir_all(&snapshot).unwrap();
        write_model(&blobs, "weights");
        for name in folder::REQUIRED {
            let sha256 = hash_file(&blobs.join(name)).unwrap().sha256;
            fs::rename(blobs.join(name), blobs.join(&sha256)).unwrap();
            symlink(format!("../../blobs/{sha256}"), snapshot.join(name)).unwrap();
        }
        write_ref(dir, &repo(None), COMMIT).unwrap();
        snapshot
    }

    #[test]
    fn branches_tags_and_commits() {
        let temp = tempfile::tempdir().unwrap();
        let snapshot = cache(temp.path());
        write_ref(temp.path(), &repo(Some("refs/pr/1")), COMMIT).unwrap();
        for revision in [None, Some("main"), Some(COMMIT), Some("refs/pr/1")] {
            let found = find(temp.path(), &repo(revision)).unwrap();
            assert_eq!(found.dir, snapshot);
            assert_eq!(found.revision.as_deref(), Some(COMMIT));
        }
        let miss = find(temp.path(), &repo(Some("v2"))).unwrap_err();
        assert!(miss.outcome.contains("`v2`"), "{}", miss.outcome);
    }

    #[test]
    fn a_ref_cannot_point_outside() {
        let temp = tempfile::tempdir().unwrap();
        cache(temp.path());
        write_model(&temp.path().join("outside"), "w");
        write_ref(temp.path(), &repo(None), "../../outside").unwrap();
        assert!(find(temp.path(), &repo(None)).is_err());
    }

    #[test]
    fn incomplete_and_damaged_snapshots_are_not_used() {
        let temp = tempfile::tempdir().unwrap();
        let snapshot = cache(temp.path());
        let blob = fs::canonicalize(snapshot.join(folder::WEIGHTS)).unwrap();
        fs::write(&blob, "weightz").unwrap();
        let miss = find(temp.path(), &repo(None)).unwrap_err();
        assert!(
            miss.outcome.contains("does not match its hash"),
            "{}",
            miss.outcome
        );
        fs::remove_file(blob).unwrap();
        let miss = find(temp.path(), &repo(None)).unwrap_err();
        assert!(miss.outcome.contains("lacks model.safetensors") && !miss.stop);
    }
}

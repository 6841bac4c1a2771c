//! Fixtures of this module's tests.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Hub, HubEnv, HubOptions};
use crate::artifacts::DataDir;

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The three files of a model, with `weights` for content where a real one has weights.
pub(super) fn write_model(dir: &Path, weights: &str) {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), r#"{"model_type":"bert"}"#).unwrap();
    fs::write(dir.join("tokenizer.json"), r#"{"version":"1.0"}"#).unwrap();
    fs::write(dir.join("model.safetensors"), weights).unwrap();
}

/// A temporary machine: a data directory, a hub cache, and no Hub to be reached.
pub(super) struct Machine {
    pub temp: tempfile::TempDir,
    pub env: HubEnv,
    pub python: PathBuf,
}

impl Machine {
    pub fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        let env = HubEnv {
            hub_cache: Some(temp.path().join("cache")),
            // The discard port: refused at once on a machine that runs no such service.
            endpoint: Some("http://127.0.0.1:9".to_owned()),
            ..HubEnv::default()
        };
        let python = temp.path().join("no-python");
        Self { temp, env, python }
    }

    pub fn data_dir(&self) -> DataDir {
        DataDir::open(&self.temp.path().join("data")).unwrap()
    }

    pub fn hub(&self) -> Hub {
        let mut options = HubOptions::new(self.data_dir(), self.env.clone());
        options.python = self.python.clone();
        Hub::new(options)
    }
}

/// Writes an executable shell script and waits until it can be started: a test running beside this one may
/// have forked while the file was open for writing, and Linux refuses to start it until that child is gone.
/// The script must do nothing when called without arguments.
pub(super) fn write_script(path: &Path, body: &str) {
    fs::write(path, format!("#!/bin/sh\n[ $# -eq 0 ] && exit 0\n{body}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    while Command::new(path).status().is_err() {
        std::thread::yield_now();
    }
}

//! The Hugging Face Hub, through `hf-hub`.
//!
//! The revision is turned into a commit first and every file is asked for at that commit, so that a push in
//! between cannot mix two versions. Files land in the shared hub cache; the branch's ref is written last, when
//! the snapshot is whole.
//!
//! `hf-hub` offers no time limit for its HEAD requests, so the work runs on a thread of its own and is given
//! up when nothing moves for a while.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::Duration;

use hf_hub::progress::{DownloadEvent, FileStatus, ProgressEvent, ProgressHandler};
use hf_hub::repository::RepoTypeModel;
use hf_hub::{HFClient, HFClientSync, HFError, HFRepositorySync};

use super::error::Miss;
use super::folder::{self, OPTIONAL, WEIGHTS};
use super::request::RepoRef;
use super::{Found, HubEnv, ModelSource, cache};

/// Two tries of this and the pause between them stay below [`FIRST_ANSWER`].
const CONNECT: Duration = Duration::from_secs(4);

/// No byte of an answer's body for this long ends the download.
const READ: Duration = Duration::from_secs(30);

/// Limit for the answer to the first question; an unreachable Hub costs no more than this.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// Limit for any later silence.
const STALL: Duration = Duration::from_secs(60);

/// What the download thread says.
enum Report {
    /// Bytes arrived.
    Alive,
    /// Something to tell the user.
    Line(String),
    /// The end.
    Done(Result<Found, Miss>),
}

/// Downloads what is needed of `repo` and answers its snapshot.
pub(super) fn fetch(env: &HubEnv, repo: &RepoRef, say: &dyn Fn(&str)) -> Result<Found, Miss> {
    if env.offline {
        return Err(Miss::nothing("not asked, because HF_HUB_OFFLINE is set"));
    }
    let (report, reports) = mpsc::sync_channel(64);
    let (work_env, work_repo) = (env.clone(), repo.clone());
    thread::Builder::new()
        .name("hub-download".to_owned())
        .spawn(move || {
            let result = download(&work_env, &work_repo, &report);
            // Nobody listens any more when the time limit struck.
            let _ = report.send(Report::Done(result));
        })
        .map_err(|e| Miss::nothing(format!("no thread for the download: {e}")))?;
    let mut limit = FIRST_ANSWER;
    loop {
        match reports.recv_timeout(limit) {
            Ok(Report::Alive) => {}
            Ok(Report::Line(text)) => say(&text),
            Ok(Report::Done(result)) => return result,
            Err(RecvTimeoutError::Timeout) => {
                let (endpoint, seconds) = (env.endpoint(), limit.as_secs());
                return Err(Miss::nothing(format!(
                    "{endpoint} gave no answer for {seconds} s"
                )));
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Miss::nothing("the download ended unexpectedly"));
            }
        }
        limit = STALL;
    }
}

fn download(env: &HubEnv, repo: &RepoRef, report: &SyncSender<Report>) -> Result<Found, Miss> {
    let endpoint = env.endpoint().to_owned();
    let place = format!("{} at {endpoint}", repo.id);
    let explain = |e: HFError| Miss::nothing(explain(&e, repo, &endpoint));
    let client = client(env).map_err(explain)?;
    let (owner, name) = hf_hub::split_id(&repo.id);
    let model = client.model(owner, name);
    let info = model
        .info()
        .maybe_revision(repo.revision.clone())
        .send()
        .map_err(explain)?;
    let commit = info
        .sha
        .filter(|sha| cache::is_commit(sha))
        .ok_or_else(|| Miss::nothing(format!("{place}: the answer names no commit")))?;
    let listed = info.siblings.unwrap_or_default();
    let has = |name: &str| listed.iter().any(|file| file.rfilename == name);
    folder::check(&place, has)?;

    // The weights last: a broken small file is found before the long download.
    let small = ["config.json", "tokenizer.json"]
        .into_iter()
        .chain(OPTIONAL);
    for name in small.filter(|name| has(name)) {
        fetch_file(&model, name, &commit, report).map_err(|e| e.explained(explain))?;
    }
    let _ = report.send(Report::Line(format!(
        "downloading {place}, commit {commit}"
    )));
    let weights = fetch_file(&model, WEIGHTS, &commit, report).map_err(|e| e.explained(explain))?;
    let cache_dir = env.cache_dir();
    cache::write_ref(&cache_dir, repo, &commit)
        .map_err(|e| Miss::nothing(format!("cannot write {}: {e}", cache_dir.display())))?;
    let dir = weights.parent().map(PathBuf::from).unwrap_or_default();
    let dir = std::path::absolute(&dir).unwrap_or(dir);
    Ok(Found {
        model_sha256: folder::hash_weights(&dir)?,
        dir,
        source: ModelSource::Hub {
            repo: repo.id.clone(),
            endpoint,
        },
        revision: Some(commit),
    })
}

fn client(env: &HubEnv) -> Result<HFClientSync, HFError> {
    let http = reqwest::Client::builder()
        .user_agent(concat!("chandler/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT)
        .read_timeout(READ)
        .build()?;
    let mut builder = HFClient::builder()
        .client(http)
        .endpoint(env.endpoint())
        .cache_dir(env.cache_dir())
        .retry_max_attempts(1);
    if let Some(token) = &env.token {
        builder = builder.token(token);
    }
    builder.build_sync()
}

/// Why one file could not be had.
enum FileError {
    Hub(HFError),
    Damaged(Miss),
}

impl FileError {
    fn explained(self, explain: impl Fn(HFError) -> Miss) -> Miss {
        match self {
            Self::Hub(error) => explain(error),
            Self::Damaged(miss) => miss,
        }
    }
}

/// Downloads one file into the cache and checks it. What is damaged is fetched once more, and removed when
/// that is no better: the cache is shared, and others do not check.
fn fetch_file(
    model: &HFRepositorySync<RepoTypeModel>,
    name: &str,
    commit: &str,
    report: &SyncSender<Report>,
) -> Result<PathBuf, FileError> {
    let get = |again: bool| {
        model
            .download_file()
            .filename(name)
            .revision(commit)
            .force_download(again)
            .progress(Ticker::new(report.clone()))
            .send()
            .map_err(FileError::Hub)
    };
    let path = get(false)?;
    if folder::check_arrived(&path, name).is_ok() {
        return Ok(path);
    }
    let path = get(true)?;
    folder::check_arrived(&path, name).map_err(|miss| {
        if let Ok(blob) = std::fs::canonicalize(&path) {
            let _ = std::fs::remove_file(blob);
        }
        let _ = std::fs::remove_file(&path);
        FileError::Damaged(miss)
    })?;
    Ok(path)
}

/// Turns `hf-hub`'s progress into signs of life, and a line every tenth of a file.
struct Ticker {
    report: SyncSender<Report>,
    tenths: Mutex<u64>,
}

impl Ticker {
    fn new(report: SyncSender<Report>) -> Self {
        Self {
            report,
            tenths: Mutex::new(0),
        }
    }
}

impl ProgressHandler for Ticker {
    fn on_progress(&self, event: &ProgressEvent) {
        // A full channel means the listener is alive with enough to do: never block the download for it.
        let _ = self.report.try_send(Report::Alive);
        let ProgressEvent::Download(DownloadEvent::Progress { files }) = event else {
            return;
        };
        let Ok(mut told) = self.tenths.lock() else {
            return;
        };
        // Small files come and go without a word.
        for file in files.iter().filter(|file| file.total_bytes > 4_000_000) {
            let tenths = (10 * file.bytes_completed / file.total_bytes).min(10);
            if tenths > *told && file.status == FileStatus::InProgress {
                *told = tenths;
                let mb = file.total_bytes / 1_000_000;
                let line = format!("{}: {}0 % of {mb} MB", file.filename, tenths);
                let _ = self.report.try_send(Report::Line(line));
            }
        }
    }
}

/// What the error means for the user. Never holds the token: errors carry addresses and answers only.
fn explain(error: &HFError, repo: &RepoRef, endpoint: &str) -> String {
    let revision = repo.revision();
    match error {
        HFError::RepoNotFound { .. } => format!("{endpoint} has no model {}", repo.id),
        HFError::RevisionNotFound { .. } => {
            format!(
                "{endpoint} has no model {} with revision `{revision}`",
                repo.id
            )
        }
        HFError::AuthRequired { .. } => format!(
            "{endpoint} says 401 for {}: it does not exist, or it is private and HF_TOKEN is missing or wrong",
            repo.id
        ),
        HFError::Forbidden { .. } => format!(
            "{endpoint} says 403 for {}: this token may not read it; its terms may have to be accepted first",
            repo.id
        ),
        HFError::Request { source, .. } => {
            let cause = if source.is_timeout() {
                "timed out".to_owned()
            } else {
                root_cause(source)
            };
            format!("{endpoint} cannot be reached: {cause}")
        }
        HFError::Http { context } => {
            format!("{endpoint} answered {} for {}", context.status, repo.id)
        }
        other => format!("{endpoint}: {other}"),
    }
}

/// The innermost reason: `connection refused` rather than `error sending request`.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
#[path = "remote_tests.rs"]
mod tests;

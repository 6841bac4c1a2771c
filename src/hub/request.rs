//! Reading what the user wrote as `model`, without touching the file system.

use std::path::PathBuf;

use crate::domain::JobId;

/// The demo's model under the short name that `sentence-transformers` users write.
const SHORT_NAMES: [(&str, &str); 1] =
    [("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2")];

/// A checkpoint of a job by its role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckpointAlias {
    /// The one with the best metric.
    Best,
    /// The newest.
    Last,
}

/// Which checkpoint of a job is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// The newest that is whole.
    Newest,
    Alias(CheckpointAlias),
    Step(u64),
}

/// A model this server trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JobRef {
    pub id: JobId,
    pub which: Which,
}

/// A repository on the Hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RepoRef {
    /// `org/name`, or `name` for the few that have no owner.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: Option<String>,
}

impl RepoRef {
    /// The revision to look up.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

/// What the text can mean; more than one may be set.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub path: Option<PathBuf>,
    pub job: Option<JobRef>,
    /// The repository, or why the text cannot name one; `None` where none was meant.
    pub repo: Option<Result<RepoRef, String>>,
}

impl Request {
    /// The error says why the text can name nothing at all.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.trim().is_empty() {
            return Err("it is empty".to_owned());
        }
        if text.chars().any(char::is_control) {
            return Err("it has control characters".to_owned());
        }
        if let Some(job) = text.strip_prefix("job:") {
            return Ok(Self {
                path: None,
                job: Some(parse_job(job)?),
                repo: None,
            });
        }
        if text.split('/').any(|part| part == "..") {
            return Err("`..` is not allowed; give the absolute path of the folder".to_owned());
        }
        let path = Some(PathBuf::from(text));
        if text.starts_with('/') {
            return Ok(Self {
                path,
                job: None,
                repo: None,
            });
        }
        let job = parse_uuid(text).map(|id| JobRef {
            id,
            which: Which::Newest,
        });
        let repo = job.is_none().then(|| parse_repo(text));
        Ok(Self { path, job, repo })
    }
}

fn parse_job(text: &str) -> Result<JobRef, String> {
    let (id, which) = text.split_once('@').unwrap_or((text, ""));
    let id = parse_uuid(id).ok_or("`job:` must be followed by the id of a job")?;
    let which = match which {
        "" if text.ends_with('@') => return Err("`@` must be followed by a checkpoint".to_owned()),
        "" => Which::Newest,
        "best" => Which::Alias(CheckpointAlias::Best),
        "last" => Which::Alias(CheckpointAlias::Last),
        step => Which::Step(
            step.parse()
                .map_err(|_| "a checkpoint is `best`, `last` or a step".to_owned())?,
        ),
    };
    Ok(JobRef { id, which })
}

/// Only the usual form with hyphens: the parser also takes forms that could be repository names.
fn parse_uuid(text: &str) -> Option<JobId> {
    text.parse().ok().filter(|_| text.len() == 36)
}

/// The Hub's rules for names (`huggingface_hub.utils.validate_repo_id`).
fn parse_repo(text: &str) -> Result<RepoRef, String> {
    let (id, revision) = match text.split_once('@') {
        Some((id, revision)) => (id, Some(revision)),
        None => (text, None),
    };
    let not = |reason: &str| Err(format!("`{text}` is not a hub id: {reason}"));
    let parts: Vec<&str> = id.split('/').collect();
    if parts.len() > 2 {
        return not("it has more than one slash");
    }
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    for part in parts {
        if part.is_empty() || part.len() > 96 {
            return not("owner and name must have 1 to 96 characters");
        }
        if !part.chars().all(word) {
            return not("only letters, digits, `-`, `_` and `.` are allowed");
        }
        if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
            return not("a name cannot begin or end with `-` or `.`");
        }
    }
    if id.contains("--") || id.contains("..") {
        return not("`--` and `..` are not allowed");
    }
    if let Some(revision) = revision {
        let allowed = revision.chars().all(|c| word(c) || c == '/');
        let parts_fine = revision
            .split('/')
            .all(|part| !part.is_empty() && !part.starts_with('.') && !part.contains(".."));
        if !allowed || !parts_fine || revision.len() > 200 {
            return not("the part after `@` must be a branch, a tag or a commit");
        }
    }
    let full = SHORT_NAMES.iter().find(|(short, _)| *short == id);
    Ok(RepoRef {
        id: full.map_or(id, |(_, full)| full).to_owned(),
        revision: revision.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0190a5f0-0000-7000-8000-000000000001";

    fn repo(text: &str) -> Option<RepoRef> {
        Request::parse(text).unwrap().repo.unwrap().ok()
    }

    #[test]
    fn hub_ids() {
        let full = "sentence-transformers/all-MiniLM-L6-v2";
        assert_eq!(repo(full).unwrap().id, full);
        assert_eq!(repo("all-MiniLM-L6-v2").unwrap().id, full);
        let pinned = repo("google-bert/bert-base_uncased.v2@refs/pr/1").unwrap();
        assert_eq!(pinned.id, "google-bert/bert-base_uncased.v2");
        assert_eq!(pinned.revision(), "refs/pr/1");
        assert_eq!(repo("gpt2").unwrap().revision(), "main");
    }

    #[test]
    fn what_cannot_be_a_hub_id_is_told_why() {
        for text in [
            "a/b/c",
            "my model",
            "org/na me",
            "-a/b",
            "a/.b",
            "a--b",
            "a..b/c",
            "a/b@",
            "a/b@../x",
            "a/b@x/.hidden",
            "a/b@x y",
            "org/",
            "~/x",
            "a\\b",
            "ä/b",
        ] {
            let request = Request::parse(text).unwrap();
            let reason = request.repo.unwrap().unwrap_err();
            assert!(reason.contains("is not a hub id"), "{text}: {reason}");
        }
    }

    #[test]
    fn what_can_name_nothing_is_refused_at_once() {
        for text in ["", "  ", "../x", "a/../b", "/a/../b", "..", "a\0b", "a\nb"] {
            assert!(Request::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn jobs() {
        let which = |text: String| Request::parse(&text).map(|r| r.job.unwrap().which);
        assert_eq!(which(ID.to_owned()), Ok(Which::Newest));
        assert_eq!(which(format!("job:{ID}")), Ok(Which::Newest));
        let best = Which::Alias(CheckpointAlias::Best);
        assert_eq!(which(format!("job:{ID}@best")), Ok(best));
        assert_eq!(which(format!("job:{ID}@120")), Ok(Which::Step(120)));
        for wrong in ["job:", "job:x", "job:../x"] {
            assert!(Request::parse(wrong).is_err(), "{wrong}");
        }
        for wrong in ["@", "@first", "@-1"] {
            assert!(
                Request::parse(&format!("job:{ID}{wrong}")).is_err(),
                "{wrong}"
            );
        }
        // The other forms of a UUID are names like any other.
        assert!(repo("0190a5f0000070008000000000000001").is_some());
    }

    #[test]
    fn an_absolute_path_is_only_that() {
        let request = Request::parse("/models/my bert").unwrap();
        assert_eq!(request.path, Some(PathBuf::from("/models/my bert")));
        assert_eq!((request.job, request.repo), (None, None));
    }
}

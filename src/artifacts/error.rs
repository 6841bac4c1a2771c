//! Why the data directory could not do what was asked.

use std::io;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

use crate::domain::{ErrorCode, JobError};

/// Why an artifact could not be written, read or trusted.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The data directory cannot be created or written.
    #[error("data directory {} cannot be written: {source}", .path.display())]
    NotWritable { path: PathBuf, source: io::Error },
    /// Another process holds the data directory's lock.
    #[error("data directory {} is used by another server{}", .path.display(), owner(.pid))]
    Locked { path: PathBuf, pid: Option<u32> },
    /// No space left for a file.
    #[error("disk is full: cannot write {}{}", .path.display(), room(.needed_bytes, .free_bytes))]
    DiskFull {
        path: PathBuf,
        /// What the whole undertaking needs, where known.
        needed_bytes: Option<u64>,
        free_bytes: Option<u64>,
    },
    /// The content is not what it should be.
    #[error("{}: {reason}", .path.display())]
    Invalid { path: PathBuf, reason: String },
    /// The file system refused.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl ArtifactError {
    /// A file system error while doing `action` to `path`; a full disk becomes [`Self::DiskFull`].
    pub fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull {
                needed_bytes: None,
                free_bytes: path.ancestors().find_map(free_bytes),
                path,
            },
            _ => Self::Io {
                action,
                path,
                source,
            },
        }
    }

    /// `path` needs more room than there is, or might be.
    pub fn disk_full(path: &Path, needed_bytes: u64) -> Self {
        Self::DiskFull {
            path: path.to_path_buf(),
            needed_bytes: Some(needed_bytes),
            free_bytes: path.ancestors().find_map(free_bytes),
        }
    }

    /// `path` holds something it should not.
    pub fn invalid(path: &Path, reason: impl Into<String>) -> Self {
        Self::Invalid {
            path: path.to_path_buf(),
            reason: reason.into(),
        }
    }

    /// The stable word for the user.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::NotWritable { .. } => ErrorCode::DataDirNotWritable,
            Self::Locked { .. } => ErrorCode::DataDirLocked,
            Self::DiskFull { .. } => ErrorCode::DiskFull,
            Self::Invalid { .. } | Self::Io { .. } => ErrorCode::CheckpointFailed,
        }
    }
}

impl From<ArtifactError> for JobError {
    fn from(error: ArtifactError) -> Self {
        let hint = match &error {
            ArtifactError::NotWritable { .. } => {
                Some("choose another --data-dir or correct its owner and permissions")
            }
            ArtifactError::Locked { .. } => {
                Some("stop the other server or choose another --data-dir")
            }
            ArtifactError::DiskFull { .. } => {
                Some("free some space, or lower save_total_limit, and submit again")
            }
            ArtifactError::Invalid { .. } | ArtifactError::Io { .. } => None,
        };
        let job_error = Self::new(error.code(), error.to_string());
        match hint {
            Some(hint) => job_error.hint(hint),
            None => job_error,
        }
    }
}

/// Bytes an ordinary user may still write to the file system of `path`.
pub fn free_bytes(path: &Path) -> Option<u64> {
    let stats = statvfs(path).ok()?;
    #[allow(
        clippy::useless_conversion,
        reason = "the C types differ between platforms"
    )]
    Some(u64::from(stats.blocks_available()).saturating_mul(u64::from(stats.fragment_size())))
}

fn owner(pid: &Option<u32>) -> String {
    pid.map_or(String::new(), |pid| format!(" (process {pid})"))
}

fn room(needed: &Option<u64>, free: &Option<u64>) -> String {
    let needed = needed.map(|bytes| format!("{bytes} bytes needed"));
    let free = free.map(|bytes| format!("{bytes} bytes free"));
    let known: Vec<String> = needed.into_iter().chain(free).collect();
    if known.is_empty() {
        String::new()
    } else {
        format!(" ({})", known.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_other_failures() {
        let full = io::Error::from_raw_os_error(nix::errno::Errno::ENOSPC as i32);
        let error = ArtifactError::io("write", Path::new("/no/such/file"), full);
        assert_eq!(error.code(), ErrorCode::DiskFull);
        assert!(error.to_string().contains("bytes free"), "{error}");

        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        let error = ArtifactError::io("write", Path::new("/x"), denied);
        assert_eq!(error.code(), ErrorCode::CheckpointFailed);
        assert!(error.to_string().starts_with("cannot write /x"), "{error}");
    }
}

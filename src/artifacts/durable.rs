//! Files and folders that survive power loss: content synced, then the folder that names it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::ArtifactError;
use super::disk::Disk;

/// Length and SHA-256 of a file's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashedFile {
    /// Length in bytes.
    pub size_bytes: u64,
    /// 64 lower-case hexadecimal digits.
    pub sha256: String,
}

/// Reads a file once, in pieces, and answers its length and hash.
pub fn hash_file(path: &Path) -> Result<HashedFile, ArtifactError> {
    let mut file = File::open(path).map_err(|e| ArtifactError::io("open", path, e))?;
    hash_open(&mut file, path)
}

/// The same for a file that is already open.
fn hash_open(file: &mut File, path: &Path) -> Result<HashedFile, ArtifactError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut size_bytes = 0;
    loop {
        let n = file
            .read(&mut buffer)
            .map_err(|e| ArtifactError::io("read", path, e))?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        size_bytes += n as u64;
    }
    Ok(HashedFile {
        size_bytes,
        sha256: hex(&hasher.finalize()),
    })
}

/// SHA-256 of bytes in memory, 64 lower-case hexadecimal digits.
pub fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Writes a whole file and syncs its content. Its name is durable after [`sync_dir`] of the folder.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ArtifactError> {
    let disk = Disk::default();
    let mut file = disk.create(path)?;
    file.append(bytes)?;
    file.finish().map(drop)
}

/// Makes the names in a folder durable: without it a rename can be undone by power loss.
pub fn sync_dir(dir: &Path) -> Result<(), ArtifactError> {
    Disk::default().sync_dir(dir)
}

/// Syncs every file and folder under `dir`, and `dir` itself.
pub fn sync_tree(dir: &Path) -> Result<(), ArtifactError> {
    let disk = Disk::default();
    for file in files_under(dir)? {
        disk.sync_file(&dir.join(file))?;
    }
    disk.sync_dirs(dir)
}

/// Puts the folder `from` (synced by the caller) at `to` in one step, replacing what is there. At every
/// moment `to` is the old folder or the new one. Both must lie in the same folder.
pub fn replace_dir(from: &Path, to: &Path) -> Result<(), ArtifactError> {
    Disk::default().replace_dir(from, to)
}

/// Removes a file or folder that may not be there.
pub(super) fn remove_any(path: &Path) -> Result<(), ArtifactError> {
    Disk::default().remove_any(path)
}

/// Every regular file under `dir`, relative to it, sorted. A link or a device is refused: what a manifest
/// lists must be in the folder itself.
pub fn files_under(dir: &Path) -> Result<Vec<PathBuf>, ArtifactError> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder)? {
            let kind = fs::symlink_metadata(&path)
                .map_err(|e| ArtifactError::io("look at", &path, e))?
                .file_type();
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                found.push(path.strip_prefix(dir).unwrap_or(&path).to_path_buf());
            } else {
                return Err(ArtifactError::invalid(&path, "not a regular file"));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Paths of what a folder holds, in no order.
pub(super) fn entries(dir: &Path) -> Result<Vec<PathBuf>, ArtifactError> {
    fs::read_dir(dir)
        .and_then(|all| all.map(|entry| Ok(entry?.path())).collect())
        .map_err(|e| ArtifactError::io("list", dir, e))
}

/// Exchanges two folders in one step.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(super) fn swap(a: &Path, b: &Path) -> Result<(), ArtifactError> {
    use nix::errno::Errno;
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

    match renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE) {
        // Some network file systems cannot exchange.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => swap_in_three(a, b),
        other => other.map_err(|e| ArtifactError::io("rename to", b, e.into())),
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(super) fn swap(a: &Path, b: &Path) -> Result<(), ArtifactError> {
    swap_in_three(a, b)
}

/// Exchanges two folders by way of a third name: a crash in between leaves `b` missing, never half.
fn swap_in_three(a: &Path, b: &Path) -> Result<(), ArtifactError> {
    let aside = a.with_extension("swap");
    let step = |from: &Path, to: &Path| {
        fs::rename(from, to).map_err(|e| ArtifactError::io("rename to", to, e))
    };
    step(b, &aside)?;
    step(a, b)?;
    step(&aside, a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::ErrorCode;

    #[test]
    fn hashes_are_the_well_known_ones() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        fs::write(&path, "abc").unwrap();
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash_file(&path).unwrap().sha256, expected);
        assert_eq!(hash_file(&path).unwrap().size_bytes, 3);
        assert_eq!(hash_bytes(b"abc"), expected);
    }

    #[test]
    fn writing_to_a_full_device_is_disk_full() {
        let error = write_file(Path::new("/dev/full"), b"x").unwrap_err();
        assert_eq!(error.code(), ErrorCode::DiskFull);
    }

    #[test]
    fn a_folder_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join(".tmp-new"), dir.path().join("place"));
        for (folder, file) in [(&from, "new"), (&to, "old")] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join(file), file).unwrap();
        }
        replace_dir(&from, &to).unwrap();
        assert_eq!(files_under(&to).unwrap(), [PathBuf::from("new")]);
        assert!(!from.exists());

        fs::create_dir(&from).unwrap();
        swap_in_three(&from, &to).unwrap();
        assert_eq!(files_under(&from).unwrap(), [PathBuf::from("new")]);
        assert_eq!(entries(dir.path()).unwrap().len(), 2);
    }

    #[test]
    fn links_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("link")).unwrap();
        assert!(files_under(dir.path()).is_err());
    }
}

//! `chandler backup` and `chandler restore`.
//!
//! A backup is laid out like a data directory: the database, the manifest of every checkpoint and, with
//! `--with-files`, the datasets and checkpoints themselves; and `backup.json`, which lists every file with
//! its length and SHA-256. Without the files a restored server knows every job, event and metric, but has
//! neither models to serve nor data to train on until the files are put back; the manifests tell whether
//! they are the right ones. Logs, spools and fetched base models are not kept.

mod collect;
mod listing;
mod restore;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use crate::artifacts::{DataDir, sync_dir, sync_tree};
use crate::domain::{ErrorCode, JobError};
use crate::store;

use collect::Collector;
pub use restore::Restore;

/// Copy the database of a server, running or stopped, to a new folder
#[derive(Args, Debug)]
pub struct Backup {
    /// Folder to make
    dest: PathBuf,
    /// The server's data directory
    #[arg(
        long,
        env = "CHANDLER_DATA_DIR",
        value_name = "DIR",
        default_value = "chandler-data"
    )]
    data_dir: PathBuf,
    /// Keep datasets and checkpoints, too: as hard links where the file system can
    #[arg(long)]
    with_files: bool,
}

impl Backup {
    /// Makes the backup and says what is in it.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let data_dir = std::fs::canonicalize(&self.data_dir)
            .map(|path| DataDir::at(&path))
            .map_err(|e| failed("open", &self.data_dir, e))?;
        must_be_new(&self.dest)?;
        let folder = NewFolder::beside(&self.dest)?;
        let contents = database(&data_dir.database(), &DataDir::at(folder.path()).database())?;
        let gone = Collector::new(&data_dir, folder.path(), self.with_files).collect(&contents)?;
        let listing = listing::write(folder.path(), self.with_files)?;
        folder.publish(&self.dest)?;
        for name in gone {
            println!("not kept     {name}: removed while the backup was made");
        }
        println!("jobs         {}", contents.jobs);
        println!("datasets     {}", contents.datasets.len());
        println!("checkpoints  {}", contents.checkpoints.len());
        println!(
            "files        {} in {}",
            listing.files.len(),
            self.dest.display()
        );
        Ok(ExitCode::SUCCESS)
    }
}

/// Copies the database and checks the copy.
fn database(source: &Path, dest: &Path) -> anyhow::Result<store::DatabaseContents> {
    block_on(async {
        store::copy_database(source, dest).await?;
        Ok(store::check_database(dest).await?)
    })
}

fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

/// A folder under a temporary name: it comes to its place whole or not at all.
struct NewFolder {
    tmp: PathBuf,
    published: bool,
}

impl NewFolder {
    /// On the same file system as `dest`, so that a rename moves it.
    fn beside(dest: &Path) -> Result<Self, JobError> {
        let name = dest.file_name().unwrap_or_default().to_string_lossy();
        let tmp = dest.with_file_name(format!(".tmp-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&tmp).map_err(|e| failed("create", &tmp, e))?;
        Ok(Self {
            tmp,
            published: false,
        })
    }

    fn path(&self) -> &Path {
        &self.tmp
    }

    /// Durable, then visible.
    fn publish(mut self, dest: &Path) -> Result<(), JobError> {
        sync_tree(&self.tmp)?;
        // An empty folder gives way.
        std::fs::rename(&self.tmp, dest).map_err(|e| failed("rename to", dest, e))?;
        self.published = true;
        let parent = dest.parent().filter(|p| !p.as_os_str().is_empty());
        Ok(sync_dir(parent.unwrap_or(Path::new(".")))?)
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if !self.published {
            let _ = std::fs::remove_dir_all(&self.tmp);
        }
    }
}

/// Nothing is ever overwritten.
fn must_be_new(folder: &Path) -> Result<(), JobError> {
    let empty = std::fs::read_dir(folder).map(|mut entries| entries.next().is_none());
    match empty {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Ok(true) => Ok(()),
        Ok(false) => Err(JobError::new(
            ErrorCode::FolderNotEmpty,
            format!("{} is not empty", folder.display()),
        )
        .hint("name a folder that does not exist yet")),
        Err(error) => Err(failed("open", folder, error)),
    }
}

fn failed(action: &'static str, path: &Path, error: std::io::Error) -> JobError {
    crate::artifacts::ArtifactError::io(action, path, error).into()
}

fn invalid(path: &Path, reason: impl std::fmt::Display) -> JobError {
    JobError::new(
        ErrorCode::BackupInvalid,
        format!("{}: {reason}", path.display()),
    )
    .hint("nothing was restored; take another backup")
}

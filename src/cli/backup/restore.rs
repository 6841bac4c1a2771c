//! `chandler restore SRC --data-dir DIR`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::{NewFolder, block_on, collect, invalid, listing, must_be_new};
use crate::artifacts::{DataDir, hash_file};
use crate::domain::{FileRecord, JobError};
use crate::store::{self, DatabaseContents};

/// Make a data directory from a backup, after checking every byte of it
#[derive(Args, Debug)]
pub struct Restore {
    /// The backup's folder
    source: PathBuf,
    /// Data directory to make
    #[arg(long, env = "CHANDLER_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
}

impl Restore {
    /// Restores all or nothing.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        must_be_new(&self.data_dir)?;
        let listing = listing::read(&self.source)?;
        let folder = NewFolder::beside(&self.data_dir)?;
        for file in &listing.files {
            restore(&self.source, folder.path(), file)?;
        }
        let contents = check(&self.source, &DataDir::at(folder.path()).database())?;
        folder.publish(&self.data_dir)?;
        println!("backup of    {}", listing.created_at.to_rfc3339());
        println!("jobs         {}", contents.jobs);
        println!(
            "files        {} in {}",
            listing.files.len(),
            self.data_dir.display()
        );
        if !listing.with_files {
            println!(
                "without datasets and checkpoints: copy `datasets/` and `jobs/` back before you train or serve"
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Copies one file and hashes the copy: that is what will be used.
fn restore(source: &Path, dest: &Path, file: &FileRecord) -> Result<(), JobError> {
    let (from, to) = (source.join(&file.path), dest.join(&file.path));
    if !from.is_file() {
        return Err(invalid(&from, "the file is missing"));
    }
    collect::copy(&from, &to)?;
    let hashed = hash_file(&to)?;
    if hashed.size_bytes != file.size_bytes {
        let reason = format!("{} bytes instead of {}", hashed.size_bytes, file.size_bytes);
        return Err(invalid(&from, reason));
    }
    if hashed.sha256 != file.sha256 {
        return Err(invalid(&from, "content does not match its hash"));
    }
    Ok(())
}

fn check(source: &Path, database: &Path) -> anyhow::Result<DatabaseContents> {
    block_on(async {
        let checked = store::check_database(database).await;
        Ok(checked.map_err(|error| invalid(&DataDir::at(source).database(), error))?)
    })
}

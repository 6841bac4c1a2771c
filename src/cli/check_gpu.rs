//! `chandler check-gpu`: whether this program can train on a GPU here. The server asks it about every card before it
//! puts a job there.

use std::process::ExitCode;

use crate::train;

/// Prints the card's name.
///
/// # Errors
/// `device_failed`, with what is missing or wrong.
pub fn run() -> anyhow::Result<ExitCode> {
    println!("{}", train::check_gpu()?);
    Ok(ExitCode::SUCCESS)
}

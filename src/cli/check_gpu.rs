//! `chandler check-gpu`: whether this program can train on a GPU here. The server asks it about every card before it
//! puts a job there.

use std::process::ExitCode;

use clap::Args;

use crate::train;

/// Check that this program can train on the first GPU that CUDA_VISIBLE_DEVICES leaves
#[derive(Args, Debug)]
pub struct CheckGpu {}

impl CheckGpu {
    /// Prints the card's name.
    ///
    /// # Errors
    /// `device_failed`, with what is missing or wrong.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        println!("{}", train::check_gpu()?);
        Ok(ExitCode::SUCCESS)
    }
}

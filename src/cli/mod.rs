//! The command line: one subcommand per role of the one binary.

mod backup;
mod check_gpu;
mod demo;
mod healthcheck;
mod openapi;
mod predict;
mod serve;
mod server;
mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::telemetry::{self, LogFormat};

/// Fine-tunes BERT-family encoders: POST a job, watch it live, take a Hugging Face checkpoint.
#[derive(Parser, Debug)]
#[command(name = "chandler", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Start the server
    Serve(serve::Serve),
    /// Set everything up, train the embedded support-ticket data set through the HTTP API, show the result
    Demo(demo::Demo),
    /// Label texts with a trained model
    Predict(predict::Predict),
    /// Copy the database of a server, running or stopped, to a new folder
    Backup(backup::Backup),
    /// Make a data directory from a backup, after checking every byte of it
    Restore(backup::Restore),
    /// Ask a server whether it can do its work; the exit status is the answer
    Healthcheck(healthcheck::Healthcheck),
    /// Check that this program can train on the first GPU that CUDA_VISIBLE_DEVICES leaves
    CheckGpu,
    /// Print the OpenAPI document
    Openapi,
    /// Run one attempt at a job (started by the server)
    #[command(hide = true)]
    Train(train::Train),
}

/// Sets logging up: `RUST_LOG` if given, else `default`.
fn logs(json: bool, default: &str) -> anyhow::Result<()> {
    let format = if json {
        LogFormat::Json
    } else {
        LogFormat::Pretty
    };
    let filter = std::env::var("RUST_LOG").unwrap_or_else(|_| default.to_owned());
    Ok(telemetry::init(format, &filter)?)
}

/// Parses the process's arguments and runs what they ask for.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Serve(serve) => serve.run(),
        Command::Demo(demo) => demo.run(),
        Command::Predict(predict) => predict.run(),
        Command::Backup(backup) => backup.run(),
        Command::Restore(restore) => restore.run(),
        Command::Healthcheck(healthcheck) => healthcheck.run(),
        Command::CheckGpu => check_gpu::run(),
        Command::Openapi => openapi::run(),
        Command::Train(train) => return train.run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! `chandler serve`: the server until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::config::{Config, Settings};

use super::server::Server;

/// Start the server
#[derive(Args, Debug)]
pub struct Serve {
    /// TOML file with settings, named as the flags
    #[arg(long, env = "CHANDLER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

impl Serve {
    /// Serves until SIGTERM or Ctrl-C.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let file = match &self.config {
            Some(path) => Settings::from_file(path)?,
            None => Settings::default(),
        };
        let settings = self.settings.or(file);
        super::logs(settings.log_json.unwrap_or(false), "info")?;
        let config = Config::new(settings)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let server = Server::start(&config).await?;
            tracing::info!(address = %server.url(), data_dir = %config.data_dir.display(), "ready");
            let signal = stop_signal().await?;
            if config.drain || signal == StopSignal::Interrupt {
                server.drain().await;
            } else {
                server.leave().await;
            }
            anyhow::Ok(())
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Why to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopSignal {
    /// SIGTERM, from a service manager: perhaps only for a restart.
    Terminate,
    /// Ctrl-C, from a person who means everything.
    Interrupt,
}

/// Returns on SIGTERM or Ctrl-C.
pub async fn stop_signal() -> std::io::Result<StopSignal> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = term.recv() => StopSignal::Terminate,
        _ = interrupt.recv() => StopSignal::Interrupt,
    })
}

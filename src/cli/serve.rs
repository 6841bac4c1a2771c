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
            stop_signal().await?;
            tracing::info!("stopping: trainers save and leave");
            server.stop().await;
            anyhow::Ok(())
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns on SIGTERM or Ctrl-C.
pub async fn stop_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

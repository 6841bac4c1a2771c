//! `chandler serve`: the server until it is told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

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
            let mut stop = StopSignals::watch()?;
            let server = tokio::select! {
                server = Server::start(&config) => server?,
                _ = stop.next() => {
                    tracing::info!("stopped before it was ready");
                    return Ok(());
                }
            };
            tracing::info!(address = %server.url(), data_dir = %config.data_dir.display(), "ready");
            let signal = stop.next().await;
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

/// SIGTERM and Ctrl-C. Watched from before the server starts: in a container this process may be number 1,
/// to which the kernel delivers no signal that it does not watch.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// From now on they end nothing by themselves.
    ///
    /// # Errors
    /// If the system refuses, or outside a runtime.
    pub fn watch() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one of them.
    pub async fn next(&mut self) -> StopSignal {
        tokio::select! {
            _ = self.terminate.recv() => StopSignal::Terminate,
            _ = self.interrupt.recv() => StopSignal::Interrupt,
        }
    }
}

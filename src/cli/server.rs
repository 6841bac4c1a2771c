//! The server, put together: data directory, store, worker, HTTP.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::artifacts::{DataDir, DataDirLock};
use crate::config::Config;
use crate::domain::{Clock, ErrorCode, Ids, JobError, SystemClock, SystemIds};
use crate::http::{self, AppState};
use crate::store::Store;
use crate::worker::{Shutdown, Worker, WorkerHandle, WorkerOptions};

/// A running server.
pub struct Server {
    address: SocketAddr,
    store: Store,
    worker: WorkerHandle,
    shutdown: CancellationToken,
    http: JoinHandle<()>,
    stop_grace: Duration,
    _lock: DataDirLock,
}

impl Server {
    /// Starts everything; when this returns, requests are answered.
    ///
    /// # Errors
    /// `data_dir_not_writable`, `data_dir_locked`, `port_in_use`, or a database that cannot be opened.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let data_dir = DataDir::open(&config.data_dir)?;
        let lock = data_dir.lock()?;
        data_dir.sweep_tmp()?;
        let listener = bind(config.listen).await?;
        let address = listener.local_addr()?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let ids: Arc<dyn Ids> = Arc::new(SystemIds(SystemClock));
        let store = Store::open(&data_dir.database(), Arc::clone(&clock), Arc::clone(&ids))
            .await
            .context("failed to open the database")?;
        let worker = Worker::start(
            store.clone(),
            WorkerOptions {
                slots: config.slots,
                data_dir: data_dir.clone(),
                server_url: format!("http://{}", reachable(address)),
                trainer_program: std::env::current_exe()?,
                threads_per_trainer: config.threads,
                attempts: config.attempts.clone(),
            },
        );
        let shutdown = CancellationToken::new();
        let wake = worker.clone();
        let state = AppState::new(
            store.clone(),
            clock,
            ids,
            data_dir,
            Arc::new(move || wake.wake()),
            config.attempts.clone(),
            shutdown.clone(),
        );
        let http = tokio::spawn(http::serve(
            listener,
            http::router(state),
            shutdown.clone(),
        ));
        Ok(Self {
            address,
            store,
            worker,
            shutdown,
            http,
            stop_grace: Duration::from_millis(config.attempts.stop_grace_ms),
            _lock: lock,
        })
    }

    /// Base URL for clients on this machine.
    pub fn url(&self) -> String {
        format!("http://{}", reachable(self.address))
    }

    /// Stops: trainers save and leave first, as their last messages need the API; then the API; then the
    /// database.
    pub async fn stop(self) {
        self.worker
            .shutdown(Shutdown::Stop {
                grace: self.stop_grace,
            })
            .await;
        self.shutdown.cancel();
        if let Err(error) = self.http.await {
            tracing::error!(%error, "the HTTP server ended badly");
        }
        self.store.close().await;
    }
}

/// A wildcard address is no address to connect to.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(JobError::new(
            ErrorCode::PortInUse,
            format!("{address} is in use by another program"),
        )
        .hint("choose another with --listen, or port 0 for any free one")
        .into()),
        Err(error) => Err(error).with_context(|| format!("failed to listen on {address}")),
    }
}

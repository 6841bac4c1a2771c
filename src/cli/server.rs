//! The server, put together: data directory, store, worker, HTTP.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::artifacts::{DataDir, DataDirLock};
use crate::config::Config;
use crate::domain::{
    Clock, ErrorCode, Ids, JobError, ModelShape, RetryPolicy, SystemClock, SystemIds,
};
use crate::http::v1::jobs::{InFlight, Subscribers};
use crate::http::{self, AppState, Limits};
use crate::hub::{Hub, HubEnv, HubOptions};
use crate::store::Store;
use crate::worker::{Shutdown, Slots, Worker, WorkerHandle, WorkerOptions};

/// A running server.
pub struct Server {
    address: SocketAddr,
    store: Store,
    worker: WorkerHandle,
    draining: CancellationToken,
    shutdown: CancellationToken,
    http: JoinHandle<()>,
    stop_grace_ms: u64,
    _lock: DataDirLock,
}

impl Server {
    /// Starts everything; when this returns, requests are answered.
    ///
    /// # Errors
    /// `data_dir_not_writable`, `data_dir_locked`, `port_in_use`, or a database that cannot be opened.
    pub async fn start(config: &Config) -> anyhow::Result<Self> {
        let data_dir = DataDir::open(&config.data_dir).map_err(JobError::from)?;
        let lock = data_dir.lock().map_err(JobError::from)?;
        data_dir.sweep_tmp().map_err(JobError::from)?;
        let listener = bind(config.listen).await?;
        let address = listener.local_addr()?;
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let ids: Arc<dyn Ids> = Arc::new(SystemIds(SystemClock));
        let store = Store::open(&data_dir.database(), Arc::clone(&clock), Arc::clone(&ids))
            .await
            .context("failed to open the database")?;
        let trainer_program = std::env::current_exe()?;
        let slots = Slots::find(config.slots, config.jobs_per_gpu, &trainer_program);
        let listed = slots.list();
        for slot in &listed {
            tracing::info!(device = %slot.device, jobs = slot.jobs, memory_bytes = slot.memory_bytes, "slot");
        }
        let options = worker_options(config, slots, &data_dir, address, trainer_program);
        let worker = Worker::start(store.clone(), options, Arc::clone(&clock));
        let (draining, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let wake = worker.clone();
        let state = AppState {
            store: store.clone(),
            clock,
            ids,
            data_dir: data_dir.clone(),
            slots: listed.into(),
            worker: Arc::new(move || wake.wake()),
            limits: Limits {
                lease_ms: config.attempts.lease_ms,
                heartbeat_ms: config.attempts.heartbeat_ms,
                ..Limits::default()
            },
            draining: draining.clone(),
            shutdown: shutdown.clone(),
            subscribers: Subscribers::default(),
            in_flight: InFlight::default(),
        };
        let http = tokio::spawn(http::serve(listener, http::router(state), shutdown.clone()));
        Ok(Self {
            address,
            store,
            worker,
            draining,
            shutdown,
            http,
            stop_grace_ms: config.attempts.stop_grace_ms,
            _lock: lock,
        })
    }

    /// Base URL for clients on this machine.
    pub fn url(&self) -> String {
        format!("http://{}", reachable(self.address))
    }

    /// Stops, and the trainers with it: they save and leave, and their jobs are queued again.
    pub async fn drain(self) {
        let trainers = self.open_attempts().await;
        tracing::info!(trainers, "stopping: trainers save and leave");
        self.draining.cancel();
        let grace_ms = self.stop_grace_ms;
        // Before the API: their last messages need it.
        self.worker.shutdown(Shutdown::Stop { grace_ms }).await;
        let left = self.open_attempts().await;
        if left > 0 {
            tracing::warn!(
                trainers = left,
                "trainers of an earlier server did not leave"
            );
        }
        self.close().await;
    }

    /// Stops, and leaves the trainers running for the next server.
    pub async fn leave(self) {
        self.worker.shutdown(Shutdown::Leave).await;
        let trainers = self.open_attempts().await;
        tracing::info!(
            trainers,
            "stopping: trainers train on for the next server on this address and data directory"
        );
        self.close().await;
    }

    /// First the API, then the database under it.
    async fn close(self) {
        self.shutdown.cancel();
        if let Err(error) = self.http.await {
            tracing::error!(%error, "the HTTP server ended badly");
        }
        self.store.close().await;
    }

    async fn open_attempts(&self) -> usize {
        match self.store.open_attempts().await {
            Ok(open) => open.len(),
            Err(error) => {
                tracing::error!(%error, "open attempts cannot be counted");
                0
            }
        }
    }
}

fn worker_options(
    config: &Config,
    slots: Slots,
    data_dir: &DataDir,
    address: SocketAddr,
    trainer_program: PathBuf,
) -> WorkerOptions {
    let url = format!("http://{}", reachable(address));
    let jobs = slots.list().iter().map(|slot| slot.jobs).sum();
    WorkerOptions {
        threads_per_trainer: Some(config.threads_of_one(jobs)),
        slots,
        model_shape,
        lease_ms: config.attempts.lease_ms,
        heartbeat_ms: config.attempts.heartbeat_ms,
        retry: RetryPolicy {
            max_attempts: config.attempts.max_attempts,
            ..RetryPolicy::default()
        },
        ..WorkerOptions::new(data_dir.clone(), url, trainer_program)
    }
}

/// As the trainers would find it, without looking anywhere but on this machine.
fn model_shape(data_dir: &DataDir, model: &str) -> Option<ModelShape> {
    let options = HubOptions::new(data_dir.clone(), HubEnv::from_process());
    Hub::new(options).shape_at_hand(model)
}

/// A wildcard address is no address to connect to.
pub(super) fn reachable(mut address: SocketAddr) -> SocketAddr {
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

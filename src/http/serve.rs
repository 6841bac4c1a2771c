//! The accept loop. `axum::serve` has no time limit for request headers and waits for ever for open
//! streams at shutdown, so a half-sent header or one idle SSE client could hold the server.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Time limits and bounds of the accept loop.
#[derive(Clone, Copy, Debug)]
pub struct ServeOptions {
    /// A connection that has not sent a whole request header by then is closed; so is an idle one.
    pub header_read_timeout: Duration,
    /// How long requests may take to finish after shutdown began.
    pub shutdown_deadline: Duration,
    /// Open connections; more wait in the kernel's queue.
    pub max_connections: usize,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            header_read_timeout: Duration::from_secs(10),
            shutdown_deadline: Duration::from_secs(5),
            max_connections: 10_000,
        }
    }
}

/// Serves until `shutdown` is cancelled and every request has ended or the deadline has passed.
///
/// Cancel the same token as [`AppState::shutdown`](super::AppState), so that streams end too.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    serve_with(listener, router, shutdown, ServeOptions::default()).await;
}

/// [`serve`] with other limits.
pub async fn serve_with(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
    options: ServeOptions,
) {
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(options.max_connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = accept(&listener, &slots) => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, slot)) => {
                let connection =
                    serve_connection(stream, router.clone(), graceful.watcher(), options);
                connections.spawn(async move {
                    connection.await;
                    drop(slot);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: closing connections will free some.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(options.shutdown_deadline, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("requests still open at the deadline are cut off");
    }
    connections.shutdown().await;
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    // Without it a small SSE event may wait 40 ms for the acknowledgement of the one before.
    stream.set_nodelay(true)?;
    Ok((stream, slot))
}

async fn serve_connection(
    stream: TcpStream,
    router: Router,
    watcher: Watcher,
    options: ServeOptions,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_read_timeout)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    if let Err(error) = watcher.watch(connection).await {
        tracing::debug!(%error, "connection ended early");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn start(
        options: ServeOptions,
    ) -> (
        std::net::SocketAddr,
        CancellationToken,
        tokio::task::JoinHandle<()>,
    ) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/", get(|| async { "ok" }))
            .route("/hang", get(std::future::pending::<&'static str>));
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve_with(listener, router, shutdown.clone(), options));
        (address, shutdown, server)
    }

    #[tokio::test]
    async fn a_half_sent_header_is_closed() {
        let (address, shutdown, server) = start(ServeOptions {
            header_read_timeout: Duration::from_millis(100),
            ..ServeOptions::default()
        })
        .await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
        let mut answer = Vec::new();
        // Ends only because the server closes the connection.
        let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut answer));
        read.await
            .expect("the server keeps a half-sent header open")
            .ok();
        shutdown.cancel();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn shutdown_cuts_off_what_does_not_end() {
        let (address, shutdown, server) = start(ServeOptions {
            shutdown_deadline: Duration::from_millis(100),
            ..ServeOptions::default()
        })
        .await;
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut idle = TcpStream::connect(address).await.unwrap();
        idle.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut first = [0; 15];
        idle.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"HTTP/1.1 200 OK");
        let began = Instant::now();
        shutdown.cancel();
        server.await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}

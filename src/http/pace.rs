//! A time limit on request bodies that does not depend on their size. A client that sends a byte now and then
//! would otherwise hold a connection, and a handler, for as long as it likes.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, timeout};

use super::problem::Problem;
use crate::domain::ErrorCode;

/// How slowly a body may come.
///
/// A body has credit: time waited for the client uses it up, bytes earn it. It starts, and ends growing, at
/// `patience`; so that is also the longest silence, and a client that keeps up `bytes_per_s` never runs out.
/// What the server itself takes between two pieces costs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// The longest silence.
    pub patience: Duration,
    /// The lowest lasting rate.
    pub bytes_per_s: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(10),
            bytes_per_s: 1024,
        }
    }
}

/// The body came more slowly than its [`Pace`].
#[derive(Debug)]
struct TooSlow;

impl fmt::Display for TooSlow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the body came too slowly")
    }
}

impl Error for TooSlow {}

impl Pace {
    /// The same body; it ends with an error where it becomes too slow.
    pub fn keep(self, body: Body) -> Body {
        if body.is_end_stream() {
            return body;
        }
        let pieces = Box::pin(body.into_data_stream().map_err(axum::Error::new));
        let start = (pieces, self.patience);
        Body::from_stream(stream::try_unfold(
            start,
            move |(mut pieces, credit)| async move {
                let began = Instant::now();
                let piece: Option<Result<Bytes, _>> = timeout(credit, pieces.next())
                    .await
                    .map_err(|_| axum::Error::new(TooSlow))?;
                let Some(piece) = piece.transpose()? else {
                    return Ok::<_, axum::Error>(None);
                };
                let credit = self.after(credit, began.elapsed(), piece.len());
                Ok(Some((piece, (pieces, credit))))
            },
        ))
    }

    /// The credit that is left when a piece has come.
    fn after(self, credit: Duration, waited: Duration, bytes: usize) -> Duration {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a piece is far below 2^53 bytes"
        )]
        let earned = bytes as f64 / f64::from(self.bytes_per_s.max(1));
        let earned = Duration::from_secs_f64(earned.min(self.patience.as_secs_f64()));
        (credit.saturating_sub(waited) + earned).min(self.patience)
    }
}

/// What to answer when a body broke off with `error`: 408 if that was our doing, 400 otherwise.
pub fn broken_off(error: &(dyn Error + 'static)) -> Problem {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<TooSlow>() {
            return Problem::new(ErrorCode::RequestTimeout, error.to_string())
                .hint("send the body without long pauses, at 1 KiB/s or more");
        }
        cause = error.source();
    }
    Problem::new(ErrorCode::ValidationFailed, "the body ended early")
        .status(axum::http::StatusCode::BAD_REQUEST)
}

#[cfg(test)]
mod tests {
    use tokio::time::sleep;

    use super::*;
    use crate::http::Limits;
    use crate::http::testing::{JSON, TestApp};

    const STRICT: Pace = Pace {
        patience: Duration::from_millis(50),
        bytes_per_s: 1_000_000,
    };

    #[test]
    fn credit_is_used_by_waiting_and_earned_by_bytes() {
        let pace = Pace::default();
        let seconds = Duration::from_secs;
        assert_eq!(pace.after(seconds(10), seconds(2), 2048), seconds(10));
        assert_eq!(pace.after(seconds(10), seconds(2), 1024), seconds(9));
        assert_eq!(pace.after(seconds(1), seconds(1), 1 << 30), seconds(10));
        assert_eq!(pace.after(seconds(1), seconds(2), 0), Duration::ZERO);
    }

    #[tokio::test]
    async fn a_body_must_neither_pause_nor_drip() {
        let silent = Body::from_stream(stream::pending::<Result<Bytes, axum::Error>>());
        let drips = Body::from_stream(stream::repeat(()).then(async |()| {
            sleep(Duration::from_millis(5)).await;
            Ok::<_, axum::Error>(Bytes::from_static(b"x"))
        }));
        for body in [silent, drips] {
            let mut pieces = STRICT.keep(body).into_data_stream();
            // Ends only because it is ended.
            let error = loop {
                if let Some(Err(error)) = pieces.next().await {
                    break error;
                }
            };
            assert_eq!(broken_off(&error).0.status, 408);
        }
    }

    #[tokio::test]
    async fn what_the_server_takes_costs_nothing() {
        let mut pieces = STRICT.keep(Body::from("hello")).into_data_stream();
        sleep(3 * STRICT.patience).await;
        assert_eq!(pieces.next().await.unwrap().unwrap(), "hello");
        sleep(3 * STRICT.patience).await;
        assert!(pieces.next().await.is_none());
    }

    #[test]
    fn a_client_that_leaves_is_not_called_slow() {
        let left = axum::Error::new(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!(broken_off(&left).0.status, 400);
    }

    #[tokio::test]
    async fn half_a_request_is_answered_and_its_connection_closed() {
        let app = TestApp::with_limits(Limits {
            body_pace: STRICT,
            ..Limits::default()
        })
        .await;
        let socket = app.serve().await;
        let upload = "/v1/datasets?name=a";
        let form = "multipart/form-data; boundary=XX";
        for (path, kind, begun) in [
            ("/v1/jobs", JSON[0].1, "{\"model\":"),
            (upload, "text/csv", "text,label\na,"),
            (
                upload,
                form,
                "--XX\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.csv\"\r\n\r\ntext,",
            ),
        ] {
            let head = format!(
                "POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: 1000\r\n\r\n"
            );
            let answer = socket.send_and_read_to_end(&(head + begun)).await;
            assert!(answer.starts_with("HTTP/1.1 408 "), "{path}: {answer}");
            assert!(answer.contains("\"code\":\"request_timeout\""), "{answer}");
        }
        let left = std::fs::read_dir(app.state.data_dir.tmp_dir()).unwrap();
        assert_eq!(left.count(), 0, "half an upload stays");
        socket.stop().await;
    }
}

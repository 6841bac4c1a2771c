//! The trainer's side of the attempt protocol: events go in, commands come out, and nothing is lost while
//! the server is away.
//!
//! ```text
//!  event() → number → events.jsonl → outbox ──(sender thread: batches, retries)──► server
//!                                                   command() ◄── answer: acked_seq, command, jobs on the card
//! ```
//!
//! Synchronous: the training loop calls [`Reporter::event`] and never waits for the network.

mod client;
mod outbox;
mod sender;
mod spool;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use client::{ProtocolError, fetch_spec};

use client::Client;
use outbox::Outbox;
use spool::Spool;

use crate::domain::{AttemptId, Clock, Command, Event, MessagesResponse};

/// Reports what a trainer does.
#[derive(Debug)]
pub struct Reporter {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    outbox: Mutex<Outbox>,
    /// Something was put in, or acknowledged, or the end came.
    changed: Condvar,
    clock: Arc<dyn Clock>,
    command: AtomicU8,
    jobs_on_device: AtomicU32,
    fenced: AtomicBool,
}

impl Reporter {
    /// Starts the sender thread. The spool is `events.jsonl` in `attempt_dir`; if it cannot be opened,
    /// reports go to the server alone.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(
        server_url: &str,
        attempt_id: AttemptId,
        token: &str,
        attempt_dir: &Path,
        clock: Arc<dyn Clock>,
        heartbeat_ms: u64,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            outbox: Mutex::new(Outbox::new(Spool::open(attempt_dir))),
            changed: Condvar::new(),
            clock,
            command: AtomicU8::new(encode(Command::Continue)),
            jobs_on_device: AtomicU32::new(1),
            fenced: AtomicBool::new(false),
        });
        let sender = sender::Sender {
            shared: Arc::clone(&shared),
            client: Client::new(server_url, attempt_id, token),
            heartbeat: Duration::from_millis(heartbeat_ms),
        };
        std::thread::Builder::new()
            .name("reporter".to_owned())
            .spawn(move || sender.run())?;
        Ok(Self { shared })
    }

    /// Reports an event. Progress is thinned out: the newest one goes every quarter of a second, and none
    /// piles up while the server is away.
    pub fn event(&self, event: Event) {
        let at = self.shared.clock.now();
        let mut outbox = self.shared.lock();
        match event {
            Event::Progress(progress) => {
                outbox.hold(progress);
                outbox.release_held(at, Instant::now());
            }
            event => outbox.push(at, event),
        }
        if self.is_fenced() {
            outbox.forget();
        }
        drop(outbox);
        self.shared.changed.notify_all();
    }

    /// What the server wants, by its latest answer. A fenced attempt is told to cancel. Costs one atomic
    /// load.
    pub fn command(&self) -> Command {
        decode(self.shared.command.load(Ordering::Acquire))
    }

    /// Attempts on this one's card, itself included, by the server's latest answer.
    pub fn jobs_on_device(&self) -> u32 {
        self.shared.jobs_on_device.load(Ordering::Relaxed)
    }

    /// The server refused this attempt: it is over, and another one may be under way. Publish nothing.
    pub fn is_fenced(&self) -> bool {
        self.shared.fenced.load(Ordering::Acquire)
    }

    /// Waits until the server has everything reported so far. False if it was not reached in time or the
    /// attempt is fenced.
    pub fn flush(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        let mut outbox = self.shared.lock();
        outbox.force_held(self.shared.clock.now());
        outbox.hurry();
        self.shared.changed.notify_all();
        loop {
            if self.is_fenced() {
                return false;
            }
            if outbox.is_empty() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            outbox = self.shared.wait(outbox, left);
        }
    }
}

impl Drop for Reporter {
    /// Ends the sender thread after the request under way. What the server has not got stays in the spool.
    fn drop(&mut self) {
        self.shared.lock().close();
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        outbox: MutexGuard<'a, Outbox>,
        timeout: Duration,
    ) -> MutexGuard<'a, Outbox> {
        self.changed
            .wait_timeout(outbox, timeout)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    fn follow(&self, answer: &MessagesResponse) {
        self.jobs_on_device
            .store(answer.jobs_on_device, Ordering::Relaxed);
        self.set_command(answer.command);
    }

    fn set_command(&self, command: Command) {
        self.command.store(encode(command), Ordering::Release);
    }

    fn fence(&self) {
        self.set_command(Command::Cancel);
        self.fenced.store(true, Ordering::Release);
    }
}

fn encode(command: Command) -> u8 {
    match command {
        Command::Continue => 0,
        Command::Pause => 1,
        Command::Cancel => 2,
    }
}

fn decode(code: u8) -> Command {
    match code {
        0 => Command::Continue,
        1 => Command::Pause,
        _ => Command::Cancel,
    }
}

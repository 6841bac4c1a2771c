//! Where a step's time goes, op by op: for `benches/train_step`. Off unless switched on, and then one clock
//! reading at each end of an op, which lasts tens of microseconds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

static ON: AtomicBool = AtomicBool::new(false);
static TOTALS: Mutex<BTreeMap<&'static str, Total>> = Mutex::new(BTreeMap::new());

/// What all calls of one op took together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Total {
    /// Wall time.
    pub took: Duration,
    /// Floating-point operations of its matrix products.
    pub flop: u64,
    /// Bytes of the tensors it read and wrote, each counted once.
    pub bytes: u64,
    /// How often it ran.
    pub calls: u64,
}

/// One call of an op, which ends when this is dropped.
#[must_use = "the op ends when this is dropped"]
pub struct Op(Option<Running>);

struct Running {
    name: &'static str,
    flop: u64,
    bytes: u64,
    start: Instant,
}

/// Begins to count, from zero.
pub fn start() {
    totals().clear();
    ON.store(true, Ordering::Relaxed);
}

/// Stops counting; answers the totals by op.
pub fn stop() -> BTreeMap<&'static str, Total> {
    ON.store(false, Ordering::Relaxed);
    std::mem::take(&mut totals())
}

/// An op begins.
pub fn op(name: &'static str, flop: usize, bytes: usize) -> Op {
    if !ON.load(Ordering::Relaxed) {
        return Op(None);
    }
    Op(Some(Running {
        name,
        flop: flop as u64,
        bytes: bytes as u64,
        start: Instant::now(),
    }))
}

impl Drop for Op {
    fn drop(&mut self) {
        if let Some(running) = &self.0 {
            let took = running.start.elapsed();
            let mut totals = totals();
            let total = totals.entry(running.name).or_default();
            total.took += took;
            total.flop += running.flop;
            total.bytes += running.bytes;
            total.calls += 1;
        }
    }
}

fn totals() -> std::sync::MutexGuard<'static, BTreeMap<&'static str, Total>> {
    TOTALS.lock().unwrap_or_else(PoisonError::into_inner)
}

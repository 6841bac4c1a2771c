//! Timing a call, and a line about it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use chandler::kernels::device::Device;
use chandler::kernels::linear::Precision;
use chandler::kernels::pool::{parallel_for, threads};
use chandler::kernels::profile;

use crate::roof;

/// Bytes to copy: more than any cache holds.
const MEMORY: usize = 256 << 20;

pub struct Bench {
    /// Part of the names and shapes of the ops to run.
    pub only: String,
    /// Token rows.
    pub rows: usize,
    pub precision: Precision,
    /// How long an op is called.
    pub window: Duration,
    /// Whether times are this thread's on the processor.
    pub processor_time: bool,
    products: Vec<f64>,
    copies: Vec<f64>,
    /// Each thread's part of what is copied, and where to.
    memory: Vec<Mutex<[Vec<u8>; 2]>>,
}

impl Bench {
    pub fn new() -> Self {
        Self {
            only: String::new(),
            rows: 2048,
            precision: Precision::Bf16,
            window: Duration::from_millis(300),
            processor_time: false,
            products: vec![],
            copies: vec![],
            memory: vec![],
        }
    }

    /// Begins, when all options are known.
    pub fn head(&mut self) {
        let part = || Mutex::new([1, 2].map(|byte| vec![byte; MEMORY / threads()]));
        self.memory = (0..threads()).map(|_| part()).collect();
        println!(
            "{} threads, {:?}, {} rows\n",
            threads(),
            self.precision,
            self.rows
        );
        println!("| op | shape | µs | GFLOP/s | % of roof | GB/s | % of roof |");
        println!("|---|---|--:|--:|--:|--:|--:|");
    }

    /// Whether none of these ops is wanted, so that their tensors need not be made.
    pub fn skips(&self, ops: &[&str]) -> bool {
        let name = self.only.split(" | ").next().unwrap_or_default();
        !ops.iter().any(|op| op.contains(name))
    }

    /// Times `call`, which must run at least one op, unless it is not wanted.
    pub fn run(&mut self, op: &str, shape: &str, mut call: impl FnMut()) {
        if !format!("{op} | {shape}").contains(&self.only) {
            return;
        }
        let roof = roof::gflops(&Device::Cpu, self.precision);
        let copy = self.copy();
        let (flop, bytes) = work(&mut call);
        let seconds = if self.processor_time {
            mean_processor_time(self.window, &mut call)
        } else {
            median(self.window, &mut call)
        };
        let cells = |amount: f64, roof: f64| {
            let rate = amount / seconds / 1e9;
            let share = 100.0 * rate / roof;
            match amount {
                0.0 => [String::new(), String::new()],
                _ => [format!("{rate:.0}"), format!("{share:.0}")],
            }
        };
        let [gflops, of_roof] = cells(flop, roof);
        let [gigabytes, of_copy] = cells(bytes, copy);
        let micros = seconds * 1e6;
        println!(
            "| {op} | {shape} | {micros:.0} | {gflops} | {of_roof} | {gigabytes} | {of_copy} |"
        );
        self.products.push(roof);
        self.copies.push(copy);
    }

    /// What the roofs were.
    pub fn roofs(&mut self) {
        for (name, values) in [
            ("products on registers, GFLOP/s", &mut self.products),
            ("copies of 256 MiB, GB/s read and written", &mut self.copies),
        ] {
            values.sort_by(f64::total_cmp);
            if let [lowest, .., highest] = values[..] {
                let median = values[values.len() / 2];
                println!("\nRoof, {name}: {median:.0} ({lowest:.0} to {highest:.0})");
            }
        }
    }

    /// GB/s, read and written, of the fastest of three copies by all threads.
    fn copy(&self) -> f64 {
        let window = || {
            let started = Instant::now();
            parallel_for(self.memory.len(), |task| {
                let mut both = self.memory[task].lock().expect("nobody panics here");
                let [from, to] = &mut *both;
                to.copy_from_slice(from);
            });
            2.0 * MEMORY as f64 / started.elapsed().as_secs_f64() / 1e9
        };
        (0..3).map(|_| window()).fold(0.0, f64::max)
    }
}

/// Operations and bytes of one call, as its ops say.
fn work(call: &mut impl FnMut()) -> (f64, f64) {
    profile::start();
    call();
    let totals = profile::stop();
    let sum = |of: fn(&profile::Total) -> u64| totals.values().map(of).sum::<u64>() as f64;
    (sum(|total| total.flop), sum(|total| total.bytes))
}

/// The median time of a call, in seconds, over a while of calls after some that warm up.
pub fn median(window: Duration, call: &mut impl FnMut()) -> f64 {
    median_of(window, &mut || {
        let started = Instant::now();
        call();
        started.elapsed()
    })
}

/// The same of calls that say themselves what counts.
pub fn median_of(window: Duration, call: &mut impl FnMut() -> Duration) -> f64 {
    let warm = Instant::now();
    while warm.elapsed() < window / 5 {
        call();
    }
    let (begun, mut times) = (Instant::now(), Vec::new());
    while times.len() < 5 || begun.elapsed() < window {
        times.push(call().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The mean time of a call that this thread was on the processor, in seconds: the only one to go by on a machine
/// that others use, and only of an op that runs on one thread.
fn mean_processor_time(window: Duration, call: &mut impl FnMut()) -> f64 {
    assert_eq!(threads(), 1, "--processor-time needs --threads 1");
    call();
    let (begun, before, mut calls) = (Instant::now(), on_processor(), 0.0);
    while calls < 5.0 || begun.elapsed() < window {
        call();
        calls += 1.0;
    }
    (on_processor() - before).as_secs_f64() / calls
}

/// What this thread has been given, as Linux counts it.
fn on_processor() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux says");
    let nanos = text.split(' ').next().and_then(|word| word.parse().ok());
    Duration::from_nanos(nanos.expect("a number"))
}

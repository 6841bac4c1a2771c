//! What the processor's multiply-add units can do: a loop of products on registers, on all threads at once.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use chandler::kernels::linear::Precision;
use chandler::kernels::pool::{parallel_for, threads};
use chandler::kernels::roof::products;

/// GFLOP/s of the fastest of a few short windows.
pub fn gflops(precision: Precision) -> f64 {
    const ROUNDS: u64 = 100_000;
    let sink = AtomicU64::new(0);
    let window = || {
        let flop = AtomicU64::new(0);
        let started = Instant::now();
        parallel_for(threads(), |_| {
            let (done, sum) = products(precision, ROUNDS);
            flop.fetch_add(done, Ordering::Relaxed);
            sink.fetch_add(u64::from(sum.to_bits()), Ordering::Relaxed);
        });
        flop.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64() / 1e9
    };
    (0..3).map(|_| window()).fold(0.0, f64::max)
}

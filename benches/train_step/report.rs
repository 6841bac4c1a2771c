//! What was measured, for people and for scripts.

use std::collections::BTreeMap;

use chandler::kernels::profile::Total;
use serde_json::{Value, json};

use crate::model::peak_resident_mb;

/// All steps together.
pub struct Measured {
    /// By op.
    pub totals: BTreeMap<&'static str, Total>,
    /// Seconds of each step.
    pub times: Vec<f64>,
    /// GFLOP/s of the roof, now and then.
    pub roofs: Vec<f64>,
    pub samples: usize,
    pub tokens: usize,
    /// Of the GPU, if there is one: bytes in use, by everybody.
    pub device_memory_bytes: Option<usize>,
}

impl Measured {
    fn seconds(&self) -> f64 {
        self.times.iter().sum()
    }

    fn share_of_roof(&self) -> f64 {
        let flop: u64 = self.totals.values().map(|total| total.flop).sum();
        flop as f64 / self.seconds() / 1e9 / middle(&self.roofs)[1]
    }

    pub fn json(&self) -> Value {
        let (seconds, steps) = (self.seconds(), self.times.len() as f64);
        let ops = self.totals.iter().map(|(name, total)| {
            let took = total.took.as_secs_f64();
            let op = json!({
                "calls": total.calls as f64 / steps,
                "ms": took / steps * 1e3,
                "gflops": total.flop as f64 / took / 1e9,
                "gigabytes_per_second": total.bytes as f64 / took / 1e9,
            });
            ((*name).to_owned(), op)
        });
        json!({
            "samples_per_second": self.samples as f64 / seconds,
            "tokens_per_second": self.tokens as f64 / seconds,
            "tokens_per_step": self.tokens as f64 / steps,
            "median_step_ms": middle(&self.times)[1] * 1e3,
            "mean_step_ms": seconds / steps * 1e3,
            "roof_gflops": middle(&self.roofs)[1],
            "share_of_roof": self.share_of_roof(),
            "peak_resident_mb": peak_resident_mb(),
            "device_memory_bytes": self.device_memory_bytes,
            "ops": ops.collect::<serde_json::Map<_, _>>(),
        })
    }

    pub fn print(&self) {
        let (seconds, steps) = (self.seconds(), self.times.len() as f64);
        let [lowest, roof, highest] = middle(&self.roofs);
        println!(
            "{:.1} samples/s, {:.0} tokens/s, median step {:.1} ms, roof {roof:.0} GFLOP/s ({lowest:.0} to {highest:.0}), {:.1} % of it, peak {} MB",
            self.samples as f64 / seconds,
            self.tokens as f64 / seconds,
            middle(&self.times)[1] * 1e3,
            100.0 * self.share_of_roof(),
            peak_resident_mb(),
        );
        println!(
            "| op | calls | ms | % | GFLOP/s | % of roof | GB/s |\n|---|---|---|---|---|---|---|"
        );
        let mut rows: Vec<_> = self.totals.iter().collect();
        rows.sort_by_key(|(_, total)| std::cmp::Reverse(total.took));
        let mut rest = seconds;
        for (name, total) in rows {
            let took = total.took.as_secs_f64();
            rest -= took;
            let rate = total.flop as f64 / took / 1e9;
            println!(
                "| {name} | {:.0} | {:.2} | {:.1} | {rate:.0} | {:.0} | {:.1} |",
                total.calls as f64 / steps,
                took / steps * 1e3,
                100.0 * took / seconds,
                100.0 * rate / roof,
                total.bytes as f64 / took / 1e9,
            );
        }
        println!(
            "| rest | | {:.2} | {:.1} | | | |",
            rest / steps * 1e3,
            100.0 * rest / seconds
        );
    }
}

/// The smallest, the median and the largest.
fn middle(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    [
        sorted[0],
        sorted[sorted.len() / 2],
        sorted[sorted.len() - 1],
    ]
}

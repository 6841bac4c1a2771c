//! Attention over sequences of one length, of both sizes of head that models have.

use candle_core::DType;
use chandler::kernels::attention::{Attention, Queries};
use chandler::kernels::dropout::{Dropout, token_key};

use crate::measure::Bench;
use crate::tensors::{random, zeros};

const HEADS: usize = 12;

pub fn run(bench: &mut Bench) {
    if bench.skips(&["attention", "attention backward"]) {
        return;
    }
    for dim in [32, 64] {
        for length in [16, 128, 512] {
            let sequences = (bench.rows / length).max(1);
            one(bench, dim, length, sequences);
        }
    }
}

fn one(bench: &mut Bench, dim: usize, length: usize, sequences: usize) {
    let (rows, hidden) = (sequences * length, HEADS * dim);
    let dtype = bench.precision.storage();
    let cu_seqlens: Vec<u32> = (0..=sequences).map(|s| (s * length) as u32).collect();
    let keys = (0..rows).map(|row| token_key((row / length) as u64, (row % length) as u32));
    let keys: Vec<u64> = keys.collect();
    let attention = Attention {
        cu_seqlens: (&cu_seqlens).into(),
        token_keys: (&keys).into(),
        num_heads: HEADS,
        dropout: Dropout::new(0.1, 1, 1, 1),
        queries: Queries::All,
        precision: bench.precision,
    };
    let [q, k, v, dctx] = [(); 4].map(|()| random(&[rows, hidden], dtype));
    let [ctx, dq, dk, dv] = [(); 4].map(|()| zeros(&[rows, hidden], dtype));
    let lse = zeros(&[rows, HEADS], DType::F32);
    let shape = format!("{sequences} × {length} tokens, {HEADS} heads of {dim}");
    let forward = || attention.forward(&q, &k, &v, &ctx, &lse).unwrap();
    forward();
    bench.run("attention", &shape, forward);
    bench.run("attention backward", &shape, || {
        attention
            .backward(&dctx, &q, &k, &v, &ctx, &lse, &dq, &dk, &dv)
            .unwrap();
    });
}

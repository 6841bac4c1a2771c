//! Ops on rows of hidden states, on logits, and on parameters.

use candle_core::DType;
use chandler::kernels::activation::Activation;
use chandler::kernels::adamw::{AdamWUpdate, adamw};
use chandler::kernels::cross_entropy::cross_entropy;
use chandler::kernels::dropout::{Dropout, token_key};
use chandler::kernels::embedding::{Scatter, gather_sum, scatter_add};
use chandler::kernels::gradient::{sum_of_squares, zero};
use chandler::kernels::layer_norm::{self, Dropped, LayerNorm, Residual, Saved};
use chandler::kernels::parts::Parts;

use crate::measure::Bench;
use crate::tensors::{random, zeros};

const VOCABULARY: usize = 30_522;

pub fn run(bench: &mut Bench, model: &str, hidden: usize, intermediate: usize, parameters: usize) {
    norm(bench, hidden);
    activation(bench, intermediate);
    embedding(bench, hidden);
    loss(bench, hidden);
    optimizer(bench, model, parameters);
}

/// As between an encoder's parts: `LN(residual + dropout(x))`.
fn norm(bench: &mut Bench, hidden: usize) {
    let backward = "dropout, residual, layer norm backward";
    if bench.skips(&["dropout, residual, layer norm", backward]) {
        return;
    }
    let (rows, dtype) = (bench.rows, bench.precision.storage());
    let shape = format!("{rows} × {hidden}");
    let keys: Vec<u64> = (0..rows as u64).map(|row| token_key(row, 0)).collect();
    let [x, residual, d_out] = [(); 3].map(|()| random(&[rows, hidden], dtype));
    let [normalised, out, d_sum, d_x] = [(); 4].map(|()| zeros(&[rows, hidden], dtype));
    let [gamma, beta] = [(); 2].map(|()| random(&[hidden], DType::F32));
    let [d_gamma, d_beta] = [(); 2].map(|()| zeros(&[hidden], DType::F32));
    let rstd = zeros(&[rows, 1], DType::F32);
    let saved = Saved {
        normalised: &normalised,
        rstd: &rstd,
    };
    let parameters = LayerNorm {
        gamma: &gamma,
        beta: &beta,
        eps: 1e-12,
    };
    let dropout = Dropout::new(0.1, 1, 1, 1);
    let residual = Residual {
        tensor: &residual,
        dropout,
        keys: (&keys).into(),
    };
    let dropped = Dropped {
        d_x: &d_x,
        dropout,
        keys: (&keys).into(),
    };
    let forward = || layer_norm::forward(&parameters, &x, Some(&residual), &saved, &out).unwrap();
    forward();
    bench.run("dropout, residual, layer norm", &shape, forward);
    let mut partials = Vec::new();
    bench.run(backward, &shape, || {
        let dropped = Some(&dropped);
        let (d_gamma, d_beta) = (&d_gamma, &d_beta);
        layer_norm::backward(
            &gamma,
            &saved,
            &d_out,
            dropped,
            &d_sum,
            d_gamma,
            d_beta,
            &mut partials,
        )
        .unwrap();
    });
}

/// By itself, as heads have it; in an encoder it is part of the product before it.
fn activation(bench: &mut Bench, width: usize) {
    if bench.skips(&["GELU", "GELU backward"]) {
        return;
    }
    let rows = bench.rows;
    let shape = format!("{rows} × {width}");
    let x = random(&[rows, width], DType::F32);
    let out = zeros(&[rows, width], DType::F32);
    bench.run("GELU", &shape, || {
        Activation::Gelu.forward(&x, &out).unwrap()
    });
    bench.run("GELU backward", &shape, || {
        Activation::Gelu.backward(&x, &out).unwrap();
    });
}

fn embedding(bench: &mut Bench, hidden: usize) {
    if bench.skips(&["embedding", "embedding backward"]) {
        return;
    }
    let rows = bench.rows;
    let shape = format!("{rows} × {hidden}");
    let words = random(&[VOCABULARY, hidden], DType::F32);
    let positions = random(&[512, hidden], DType::F32);
    let gradient = zeros(&[VOCABULARY, hidden], DType::F32);
    let out = zeros(&[rows, hidden], DType::F32);
    // Spread over the vocabulary, some more often.
    let ids = (0..rows as u64).map(|row| (row * row * 7919 % VOCABULARY as u64) as u32);
    let (ids, places): (Vec<u32>, Vec<u32>) = ids.zip((0..512).cycle()).unzip();
    bench.run("embedding", &shape, || {
        gather_sum(
            [&words, &positions],
            [(&ids).into(), (&places).into()],
            &out,
        )
        .unwrap();
    });
    let mut scatter = Scatter::default();
    bench.run("embedding backward", &shape, || {
        scatter_add(&out, &ids, &mut scatter, &gradient).unwrap();
    });
}

/// Of a batch of sequences with two classes, and of one that tells a thousand apart.
fn loss(bench: &mut Bench, hidden: usize) {
    if hidden != 384 {
        return;
    }
    for (items, classes) in [(32, 2), (32, 1000)] {
        let logits = random(&[items, classes], DType::F32);
        let gradient = zeros(&[items, classes], DType::F32);
        let labels: Vec<u32> = (0..items as u32).map(|item| item % 2).collect();
        bench.run(
            "cross-entropy, backward",
            &format!("{items} × {classes}"),
            || {
                cross_entropy(&logits, &labels, 0.0, Some((&gradient, 1.0))).unwrap();
            },
        );
    }
}

/// Of all parameters as if they were one. Both smaller models fit no cache, so that a larger one tells no more.
fn optimizer(bench: &mut Bench, model: &str, parameters: usize) {
    if parameters > 100_000_000 || bench.skips(&["AdamW", "gradient norm", "zero gradients"]) {
        return;
    }
    let shape = format!("{parameters} ({model} without embeddings)");
    let [mut value, mut grad, mut m, mut v] = [(); 4].map(|()| vec![0.01f32; parameters]);
    let update = AdamWUpdate::new(1, 5e-5, 0.01, (0.9, 0.999), 1e-8, 1.0);
    bench.run("AdamW", &shape, || {
        adamw(&update, Parts::All, &mut value, &grad, &mut m, &mut v).unwrap();
    });
    bench.run("gradient norm", &shape, || {
        std::hint::black_box(sum_of_squares(&grad, Parts::All).unwrap());
    });
    bench.run("zero gradients", &shape, || {
        zero(&mut grad, Parts::All).unwrap()
    });
}

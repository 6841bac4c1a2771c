//! The linear layers of an encoder.

use candle_core::DType;
use chandler::kernels::activation::Activation;
use chandler::kernels::linear::{
    Activated, LinearWeight, Reactivated, backward_input, backward_input_activated,
    backward_weight, forward, forward_activated,
};

use crate::measure::Bench;
use crate::tensors::{random, zeros};

pub fn run(bench: &mut Bench, hidden: usize, intermediate: usize) {
    for (inputs, outputs) in [
        (hidden, hidden),
        (hidden, intermediate),
        (intermediate, hidden),
    ] {
        one(bench, inputs, outputs);
    }
    activated(bench, hidden, intermediate);
}

fn one(bench: &mut Bench, inputs: usize, outputs: usize) {
    if bench.skips(&["linear", "linear dX", "linear dW", "linear: pack weights"]) {
        return;
    }
    let (rows, precision) = (bench.rows, bench.precision);
    let dtype = precision.storage();
    let (x, dx) = (
        random(&[rows, inputs], dtype),
        zeros(&[rows, inputs], dtype),
    );
    let (y, dy) = (
        zeros(&[rows, outputs], dtype),
        random(&[rows, outputs], dtype),
    );
    let w = random(&[outputs, inputs], DType::F32);
    let dw = zeros(&[outputs, inputs], DType::F32);
    let (b, db) = (
        random(&[outputs], DType::F32),
        zeros(&[outputs], DType::F32),
    );
    let weight = LinearWeight::new(&w, precision).unwrap();
    let shape = format!("{rows} × {inputs} → {outputs}");
    bench.run("linear", &shape, || {
        forward(&x, &weight, Some(&b), &y).unwrap()
    });
    bench.run("linear dX", &shape, || {
        backward_input(&dy, &weight, &dx, false).unwrap();
    });
    bench.run("linear dW", &shape, || {
        backward_weight(&dy, &x, precision, &dw, Some(&db)).unwrap();
    });
}

/// With the activation and its derivative, as the feed-forward part has them.
fn activated(bench: &mut Bench, hidden: usize, intermediate: usize) {
    if bench.skips(&["linear, GELU", "linear dX, GELU"]) {
        return;
    }
    let (rows, precision) = (bench.rows, bench.precision);
    let dtype = precision.storage();
    let x = random(&[rows, hidden], dtype);
    let (inner, outer) = (
        zeros(&[rows, intermediate], dtype),
        zeros(&[rows, intermediate], dtype),
    );
    let up = random(&[intermediate, hidden], DType::F32);
    let up = LinearWeight::new(&up, precision).unwrap();
    let down = random(&[hidden, intermediate], DType::F32);
    let down = LinearWeight::new(&down, precision).unwrap();
    let to = Activated {
        activation: Activation::Gelu,
        inner: Some(&inner),
        activated: &outer,
    };
    let back = Reactivated {
        activation: Activation::Gelu,
        inner: &inner,
        activated: &outer,
        d_inner: &zeros(&[rows, intermediate], dtype),
    };
    bench.run(
        "linear, GELU",
        &format!("{rows} × {hidden} → {intermediate}"),
        || {
            forward_activated(&x, &up, None, &to).unwrap();
        },
    );
    bench.run(
        "linear dX, GELU",
        &format!("{rows} × {intermediate} → {hidden}"),
        || {
            backward_input_activated(&x, &down, &back).unwrap();
        },
    );
}

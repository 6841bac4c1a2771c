//! Products on request, for a script that lets several libraries take turns on one machine.
//!
//! Each line on standard input is `LIBRARY PRECISION PASS ROWS INPUTS OUTPUTS SECONDS`, with `chandler` or
//! `gemm` (the crate, f32 only), `bf16` or `f32`, and `forward`, `dX` or `dW` of a linear layer without bias.
//! The answer, one line each, is the median time of a call in seconds.

use std::io::{self, BufRead as _, Write as _};
use std::time::Duration;

use candle_core::DType;
use chandler::kernels::linear::{
    LinearWeight, Precision, backward_input, backward_weight, forward,
};
use chandler::kernels::pool::{flush_denormals, threads};
use chandler::kernels::profile;

use crate::measure::{median, median_of};
use crate::tensors::{random, zeros};

pub fn answer() {
    flush_denormals();
    for line in io::stdin().lock().lines() {
        let line = line.expect("text");
        let words: Vec<&str> = line.split_whitespace().collect();
        let [library, precision, pass, sizes @ .., seconds] = &words[..] else {
            panic!("LIBRARY PRECISION PASS ROWS INPUTS OUTPUTS SECONDS, not {line:?}");
        };
        let sizes: Vec<usize> = sizes.iter().map(|n| n.parse().expect("a number")).collect();
        let &[rows, inputs, outputs] = &sizes[..] else {
            panic!("ROWS INPUTS OUTPUTS, not {sizes:?}");
        };
        let product = Product {
            rows,
            inputs,
            outputs,
            window: Duration::from_secs_f64(seconds.parse().expect("a number")),
        };
        let took = match (*library, *precision) {
            ("chandler", "bf16") => product.chandler(Precision::Bf16, pass),
            ("chandler", "f32") => product.chandler(Precision::F32, pass),
            ("gemm", "f32") => product.gemm(pass),
            _ => panic!("no such library and precision: {line:?}"),
        };
        println!("{took:e}");
        io::stdout().flush().expect("someone listens");
    }
}

struct Product {
    rows: usize,
    inputs: usize,
    outputs: usize,
    window: Duration,
}

impl Product {
    /// As in training: activations of the precision, and f32 weight gradients that are added to. Packing the weight,
    /// which a step does as often whatever its rows, is a row of its own in the step's table and not counted here.
    fn chandler(&self, precision: Precision, pass: &str) -> f64 {
        let (t, k, n) = (self.rows, self.inputs, self.outputs);
        let dtype = precision.storage();
        let (x, dx) = (random(&[t, k], dtype), zeros(&[t, k], dtype));
        let (dy, y) = (random(&[t, n], dtype), zeros(&[t, n], dtype));
        let (w, dw) = (random(&[n, k], DType::F32), zeros(&[n, k], DType::F32));
        let weight = LinearWeight::new(&w, precision).unwrap();
        median_of(self.window, &mut || {
            profile::start();
            match pass {
                "forward" => forward(&x, &weight, None, &y).unwrap(),
                "dX" => backward_input(&dy, &weight, &dx, false).unwrap(),
                "dW" => backward_weight(&dy, &x, precision, &dw, None).unwrap(),
                _ => panic!("the passes are forward, dX and dW"),
            }
            let ops = profile::stop().into_iter();
            ops.filter(|(op, _)| *op != "pack weights")
                .map(|(_, total)| total.took)
                .sum()
        })
    }

    /// The crate, which packs both factors in every call.
    fn gemm(&self, pass: &str) -> f64 {
        let (t, k, n) = (self.rows, self.inputs, self.outputs);
        let numbers = |count: usize| vec![0.5f32; count];
        let (x, w, dy) = (numbers(t * k), numbers(n * k), numbers(t * n));
        // Rows, columns and depth of the product; its factors, each with its distances between rows and
        // between columns; whether it is added to what is there.
        let (m, columns, depth, left, right, add) = match pass {
            "forward" => (t, n, k, (&x, k, 1), (&w, 1, k), false),
            "dX" => (t, k, n, (&dy, n, 1), (&w, k, 1), false),
            "dW" => (n, k, t, (&dy, 1, n), (&x, k, 1), true),
            _ => panic!("the passes are forward, dX and dW"),
        };
        let mut out = numbers(m * columns);
        median(self.window, &mut || {
            // SAFETY: `out` is m × columns numbers, the factors m × depth and depth × columns, at the
            // distances given.
            unsafe {
                gemm::gemm(
                    m,
                    columns,
                    depth,
                    out.as_mut_ptr(),
                    1,
                    columns as isize,
                    add,
                    left.0.as_ptr(),
                    left.2 as isize,
                    left.1 as isize,
                    right.0.as_ptr(),
                    right.2 as isize,
                    right.1 as isize,
                    if add { 1.0 } else { 0.0 },
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::Rayon(threads()),
                );
            }
        })
    }
}

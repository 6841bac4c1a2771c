use crate::kernels::device::Device;
use candle_core::DType;

use super::*;

/// More rows than one partial sum holds, and a width that is no multiple of the lanes.
const ROWS: usize = 70;
const WIDTH: usize = 37;
const EPS: f32 = 1e-5;

fn noise(salt: u32, len: usize) -> Vec<f32> {
    let hash = |i: u32| (i.wrapping_mul(2_654_435_761) ^ salt).wrapping_mul(2_246_822_519) >> 8;
    (0..u32::try_from(len).unwrap())
        .map(|i| hash(i) as f32 / 8_388_608.0 - 1.0)
        .collect()
}

fn tensor(x: &[f32], rows: usize) -> Tensor {
    Tensor::from_slice(x, (rows, x.len() / rows), &Device::Cpu).unwrap()
}

fn zeros(rows: usize, width: usize) -> Tensor {
    Tensor::zeros((rows, width), DType::F32, &Device::Cpu).unwrap()
}

/// `Σ weights * LN(residual + factors * x)` of one row in f64.
fn reference(
    x: &[f64],
    residual: &[f64],
    factors: &[f32],
    gamma: &[f64],
    beta: &[f64],
    weights: &[f64],
) -> f64 {
    let sum: Vec<f64> = (0..WIDTH)
        .map(|i| residual[i] + f64::from(factors[i]) * x[i])
        .collect();
    let mean = sum.iter().sum::<f64>() / WIDTH as f64;
    let variance = sum.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / WIDTH as f64;
    let rstd = 1.0 / (variance + f64::from(EPS)).sqrt();
    (0..WIDTH)
        .map(|i| weights[i] * ((sum[i] - mean) * rstd * gamma[i] + beta[i]))
        .sum()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

fn slope(at: &[f64], i: usize, f: impl Fn(&[f64]) -> f64) -> f64 {
    let shifted = |h: f64| {
        let mut x = at.to_vec();
        x[i] += h;
        f(&x)
    };
    (shifted(1e-5) - shifted(-1e-5)) / 2e-5
}

fn near(a: f32, b: f64, what: &str) {
    assert!(
        (f64::from(a) - b).abs() < 2e-5 * (1.0 + b.abs()),
        "{what}: {a} {b}"
    );
}

/// What the op answers, and the numbers it was given.
struct Case {
    x: Vec<f32>,
    residual: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
    weights: Vec<f32>,
    dropout: Dropout,
    keys: Vec<u64>,
    out: Vec<Vec<f32>>,
    d_sum: Vec<Vec<f32>>,
    d_x: Vec<Vec<f32>>,
    d_gamma: Vec<f32>,
    d_beta: Vec<f32>,
}

/// Forward, and backward of `Σ weights * out`; the gradient of gamma starts at 1, that of beta at 0.
fn run() -> Case {
    run_as(DType::F32)
}

/// With rows of this type; their numbers are bf16's either way.
fn run_as(dtype: DType) -> Case {
    let [x, residual, weights] = [1, 2, 5].map(|salt| {
        let round = |x: f32| half::bf16::from_f32(x).to_f32();
        noise(salt, ROWS * WIDTH)
            .into_iter()
            .map(round)
            .collect::<Vec<_>>()
    });
    let (gamma, beta) = (noise(3, WIDTH), noise(4, WIDTH));
    let keys: Vec<u64> = (0..ROWS as u64).map(|t| t << 3).collect();
    let dropout = Dropout::new(0.2, 1, 2, 3);

    let vector = |x: &[f32]| Tensor::from_slice(x, x.len(), &Device::Cpu).unwrap();
    let typed = |x: Tensor| x.to_dtype(dtype).unwrap();
    let (g, b, r) = (
        vector(&gamma),
        vector(&beta),
        typed(tensor(&residual, ROWS)),
    );
    let [normalised, out, d_sum, d_x] = [0; 4].map(|_| typed(zeros(ROWS, WIDTH)));
    let rstd = zeros(ROWS, 1);
    let (d_gamma, d_beta) = (vector(&vec![1.0; g.elem_count()]), g.zeros_like().unwrap());
    let norm = LayerNorm {
        gamma: &g,
        beta: &b,
        eps: EPS,
    };
    let saved = Saved {
        normalised: &normalised,
        rstd: &rstd,
    };
    let branch = Residual {
        tensor: &r,
        dropout,
        keys: (&keys).into(),
    };
    let dropped = Dropped {
        d_x: &d_x,
        dropout,
        keys: (&keys).into(),
    };
    let (x_rows, d_out) = (typed(tensor(&x, ROWS)), typed(tensor(&weights, ROWS)));
    forward(&norm, &x_rows, Some(&branch), &saved, &out).unwrap();
    let partials = &mut Vec::new();
    backward(
        &g,
        &saved,
        &d_out,
        Some(&dropped),
        &d_sum,
        &d_gamma,
        &d_beta,
        partials,
    )
    .unwrap();

    let [out, d_sum, d_x] =
        [out, d_sum, d_x].map(|t| t.to_dtype(DType::F32).unwrap().to_vec2().unwrap());
    let [d_gamma, d_beta] = [d_gamma, d_beta].map(|t| t.to_vec1().unwrap());
    Case {
        x,
        residual,
        gamma,
        beta,
        weights,
        dropout,
        keys,
        out,
        d_sum,
        d_x,
        d_gamma,
        d_beta,
    }
}

#[test]
fn forward_and_backward_with_dropout_match_the_definition_and_its_differences() {
    let case = run();
    let (gamma, beta) = (wide(&case.gamma), wide(&case.beta));
    let (mut d_gamma, mut d_beta) = (vec![1f64; WIDTH], vec![0f64; WIDTH]);
    for row in 0..ROWS {
        let cut = |x: &[f32]| wide(&x[row * WIDTH..(row + 1) * WIDTH]);
        let (x, residual, weights) = (cut(&case.x), cut(&case.residual), cut(&case.weights));
        let mut factors = vec![0f32; WIDTH];
        case.dropout.factors(case.keys[row], &mut factors);
        let loss = |x: &[f64], r: &[f64], g: &[f64]| reference(x, r, &factors, g, &beta, &weights);
        for i in 0..WIDTH {
            let mut one = vec![0f64; WIDTH];
            one[i] = 1.0;
            let out = reference(&x, &residual, &factors, &gamma, &beta, &one);
            near(case.out[row][i], out, "out");
            let d_sum = slope(&residual, i, |r| loss(&x, r, &gamma));
            near(case.d_sum[row][i], d_sum, "d_residual");
            let d_x = slope(&x, i, |x| loss(x, &residual, &gamma));
            near(case.d_x[row][i], d_x, "d_x");
            d_gamma[i] += slope(&gamma, i, |g| loss(&x, &residual, g));
            d_beta[i] += weights[i];
        }
    }
    for i in 0..WIDTH {
        near(case.d_gamma[i], d_gamma[i], "d_gamma");
        near(case.d_beta[i], d_beta[i], "d_beta");
    }
}

#[test]
fn plain_rows_come_out_with_mean_beta_and_spread_gamma() {
    let (gamma, beta) = (
        Tensor::full(2.0, 4, &Device::Cpu).unwrap(),
        Tensor::full(1.0, 4, &Device::Cpu).unwrap(),
    );
    let norm = LayerNorm {
        gamma: &gamma,
        beta: &beta,
        eps: 0.0,
    };
    let (normalised, rstd, out) = (zeros(1, 4), zeros(1, 1), zeros(1, 4));
    let saved = Saved {
        normalised: &normalised,
        rstd: &rstd,
    };
    forward(&norm, &tensor(&[1., 1., 3., 3.], 1), None, &saved, &out).unwrap();
    assert_eq!(out.to_vec2::<f32>().unwrap(), [[-1., -1., 3., 3.]]);
    assert!(forward(&norm, &tensor(&[1., 2.], 1), None, &saved, &out).is_err());
}

#[test]
fn rows_of_bf16_give_what_their_numbers_give() {
    let (long, short) = (run(), run_as(DType::BF16));
    let pairs = [
        (&long.out, &short.out, 0.004),
        // Through the rounded normalised rows.
        (&long.d_sum, &short.d_sum, 0.02),
        (&long.d_x, &short.d_x, 0.02),
    ];
    for (long, short, share) in pairs {
        let scale = long.iter().flatten().fold(0f32, |m, x| m.max(x.abs()));
        for (x, y) in long.iter().flatten().zip(short.iter().flatten()) {
            assert!((x - y).abs() <= share * scale, "{x} {y}");
        }
    }
    for (x, y) in long.d_gamma.iter().zip(&short.d_gamma) {
        assert!((x - y).abs() < 0.02, "{x} {y}");
    }
    assert_eq!(long.d_beta, short.d_beta);
}

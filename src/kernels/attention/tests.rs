use candle_core::DType;

use super::*;
use crate::kernels::cpu::Cpu;
use crate::kernels::cuda::emulated;
use crate::kernels::device::Device;
use crate::kernels::dropout::{attention_key, token_key};
use crate::kernels::pool::set_threads;
use crate::kernels::testing::noise;

fn tensor(data: &[f32], columns: usize) -> Tensor {
    let dims = (data.len() / columns, columns);
    Tensor::from_vec(data.to_vec(), dims, &Device::Cpu).unwrap()
}

fn typed(data: &[f32], columns: usize, dtype: DType) -> Tensor {
    tensor(data, columns).to_dtype(dtype).unwrap()
}

fn on(device: &Device, data: &[f32], columns: usize, dtype: DType) -> Tensor {
    typed(data, columns, dtype).to_device(device).unwrap()
}

fn rounded(data: &[f32]) -> Vec<f32> {
    let round = |x: &f32| half::bf16::from_f32(*x).to_f32();
    data.iter().map(round).collect()
}

fn tolerance(engine: Engine) -> f64 {
    match engine.format() {
        super::super::gemm::Format::F32 => 1e-5,
        _ => 3e-2,
    }
}

#[derive(Clone)]
struct Case {
    cu: Vec<u32>,
    keys: Vec<u64>,
    heads: usize,
    dim: usize,
    dropout: Dropout,
    queries: Queries,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dctx: Vec<f32>,
}

/// `ctx, lse, dq, dk, dv`.
type Results = [Vec<f32>; 5];

impl Case {
    fn new(lengths: &[u32], heads: usize, dim: usize, queries: Queries) -> Self {
        let mut cu = vec![0];
        let mut keys = Vec::new();
        for (sequence, &length) in lengths.iter().enumerate() {
            cu.push(cu[sequence] + length);
            keys.extend((0..length).map(|position| token_key(40 + sequence as u64, position)));
        }
        let (rows, hidden) = (keys.len(), heads * dim);
        let asking = match queries {
            Queries::All => rows,
            Queries::First => lengths.len(),
        };
        Self {
            cu,
            keys,
            heads,
            dim,
            dropout: Dropout::new(0.25, 1, 2, 3),
            queries,
            q: noise(asking * hidden, 5).iter().map(|x| 3.0 * x).collect(),
            k: noise(rows * hidden, 6),
            v: noise(rows * hidden, 7),
            dctx: noise(asking * hidden, 8),
        }
    }

    fn hidden(&self) -> usize {
        self.heads * self.dim
    }

    fn run(&self, engine: Engine) -> Results {
        self.run_as(engine, DType::F32)
    }

    /// With tensors of this type.
    fn run_as(&self, engine: Engine, dtype: DType) -> Results {
        self.run_on(&Device::Cpu, engine, dtype)
    }

    /// On this device; a GPU has its own way to multiply.
    fn run_on(&self, device: &Device, engine: Engine, dtype: DType) -> Results {
        let attention = Attention {
            cu_seqlens: (&self.cu).into(),
            token_keys: (&self.keys).into(),
            num_heads: self.heads,
            dropout: self.dropout,
            queries: self.queries,
            precision: Precision::F32,
        };
        let [q, k, v, dctx] =
            [&self.q, &self.k, &self.v, &self.dctx].map(|x| on(device, x, self.hidden(), dtype));
        let rows = self.q.len() / self.hidden();
        let nan = |like: &Tensor| {
            on(
                device,
                &vec![f32::NAN; like.elem_count()],
                self.hidden(),
                dtype,
            )
        };
        let (ctx, lse) = (
            nan(&q),
            Tensor::zeros((rows, self.heads), DType::F32, device).unwrap(),
        );
        attention
            .forward_on(engine, [&q, &k, &v], &ctx, &lse)
            .unwrap();
        let (dq, dk, dv) = (nan(&q), nan(&k), nan(&v));
        attention
            .backward_on(engine, &dctx, [&q, &k, &v], [&ctx, &lse], [&dq, &dk, &dv])
            .unwrap();
        [ctx, lse, dq, dk, dv].map(|t| t.to_dtype(DType::F32).unwrap().to_vec1().unwrap())
    }

    /// The rows of the queries and of the keys of a sequence.
    fn rows(&self, sequence: usize) -> (Range<usize>, Range<usize>) {
        let keys = self.cu[sequence] as usize..self.cu[sequence + 1] as usize;
        match self.queries {
            Queries::All => (keys.clone(), keys),
            Queries::First => (sequence..sequence + 1, keys),
        }
    }

    fn at(&self, data: &[f32], row: usize, head: usize, i: usize) -> f64 {
        f64::from(data[row * self.hidden() + head * self.dim + i])
    }

    /// By the definition, in f64.
    fn reference(&self) -> [Vec<f64>; 5] {
        let (hidden, scale) = (self.hidden(), 1.0 / (self.dim as f64).sqrt());
        let [mut ctx, mut dq] = [vec![0f64; self.q.len()], vec![0f64; self.q.len()]];
        let [mut dk, mut dv] = [vec![0f64; self.k.len()], vec![0f64; self.k.len()]];
        let mut lse = vec![0f64; self.q.len() / self.dim];
        for sequence in 0..self.cu.len() - 1 {
            let (queries, keys) = self.rows(sequence);
            for (i, row) in queries.enumerate().filter(|_| !keys.is_empty()) {
                for head in 0..self.heads {
                    let dot = |a: &[f32], a_row: usize, b: &[f32], b_row: usize| -> f64 {
                        (0..self.dim)
                            .map(|d| self.at(a, a_row, head, d) * self.at(b, b_row, head, d))
                            .sum()
                    };
                    let scores: Vec<f64> = keys
                        .clone()
                        .map(|key| scale * dot(&self.q, row, &self.k, key))
                        .collect();
                    let sum: f64 = scores.iter().map(|s| s.exp()).sum();
                    lse[row * self.heads + head] = sum.ln();
                    let mut factors = vec![0f32; keys.len()];
                    let token = self.keys[keys.start + i];
                    self.dropout
                        .factors(attention_key(token, head as u32), &mut factors);
                    let p: Vec<f64> = scores.iter().map(|s| s.exp() / sum).collect();
                    let dp: Vec<f64> = keys
                        .clone()
                        .zip(&factors)
                        .map(|(key, &f)| f64::from(f) * dot(&self.dctx, row, &self.v, key))
                        .collect();
                    let delta: f64 = p.iter().zip(&dp).map(|(p, dp)| p * dp).sum();
                    for (j, key) in keys.clone().enumerate() {
                        let dropped = p[j] * f64::from(factors[j]);
                        let ds = scale * p[j] * (dp[j] - delta);
                        for d in 0..self.dim {
                            let (at, of_key) = (
                                row * hidden + head * self.dim + d,
                                key * hidden + head * self.dim + d,
                            );
                            ctx[at] += dropped * self.at(&self.v, key, head, d);
                            dq[at] += ds * self.at(&self.k, key, head, d);
                            dk[of_key] += ds * self.at(&self.q, row, head, d);
                            dv[of_key] += dropped * self.at(&self.dctx, row, head, d);
                        }
                    }
                }
            }
        }
        [ctx, lse, dq, dk, dv]
    }

    fn assert_matches_the_reference(&self) {
        let expected = self.reference();
        for engine in Engine::each() {
            let what = format!("{engine:?}");
            assert_near(&self.run(engine), &expected, tolerance(engine), &what);
        }
    }
}

fn assert_near(got: &Results, expected: &[Vec<f64>; 5], tolerance: f64, what: &str) {
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert_eq!(got.len(), expected.len());
        for (x, y) in got.iter().zip(expected) {
            let error = (f64::from(*x) - y).abs();
            assert!(error < tolerance * (1.0 + y.abs()), "{what} {i}: {x} {y}");
        }
    }
}

#[test]
fn results_and_gradients_match_the_definition() {
    for (heads, dim) in [(2, 32), (1, 64), (3, 8), (2, 5), (1, 80)] {
        Case::new(&[3, 0, 1, 70, 16], heads, dim, Queries::All).assert_matches_the_reference();
    }
    Case::new(&[150], 1, 32, Queries::All).assert_matches_the_reference();
}

#[test]
fn first_queries_match_the_definition() {
    for dim in [32, 64, 6] {
        Case::new(&[3, 0, 1, 70, 16], 2, dim, Queries::First).assert_matches_the_reference();
    }
}

#[test]
fn without_dropout_it_matches_too_and_nothing_is_fine() {
    let mut case = Case::new(&[9, 33], 2, 16, Queries::All);
    case.dropout = Dropout::NONE;
    case.assert_matches_the_reference();
    Case::new(&[], 2, 16, Queries::All).assert_matches_the_reference();
    Case::new(&[0, 0], 2, 16, Queries::First).assert_matches_the_reference();
}

#[test]
fn first_queries_give_the_bits_of_all_queries() {
    let all = Case::new(&[20, 5, 40], 2, 32, Queries::All);
    let mut first = Case::new(&[20, 5, 40], 2, 32, Queries::First);
    first.q = [0, 20, 25]
        .iter()
        .flat_map(|row| all.q[row * 64..(row + 1) * 64].to_vec())
        .collect();
    for engine in Engine::each() {
        let (all, first) = (all.run(engine), first.run(engine));
        for (i, row) in [0, 20, 25].into_iter().enumerate() {
            assert_eq!(
                first[0][i * 64..(i + 1) * 64],
                all[0][row * 64..(row + 1) * 64]
            );
        }
    }
}

#[test]
fn finite_differences_agree_with_the_gradients() {
    let engine = Engine::on(Cpu::best(), Precision::F32);
    let case = Case::new(&[7, 2], 2, 8, Queries::All);
    let loss = |case: &Case| -> f64 {
        let [ctx, ..] = case.run(engine);
        ctx.iter()
            .zip(&case.dctx)
            .map(|(x, w)| f64::from(*x) * f64::from(*w))
            .sum()
    };
    let [_, _, dq, dk, dv] = case.run(engine);
    type Field = fn(&mut Case) -> &mut Vec<f32>;
    let pick: [(Field, Vec<f32>); 3] = [(|c| &mut c.q, dq), (|c| &mut c.k, dk), (|c| &mut c.v, dv)];
    for (field, gradient) in pick {
        for i in (0..gradient.len()).step_by(5) {
            let step = 1e-2;
            let (mut up, mut down) = (case.clone(), case.clone());
            field(&mut up)[i] += step;
            field(&mut down)[i] -= step;
            let slope = (loss(&up) - loss(&down)) / f64::from(2.0 * step);
            assert!(
                (slope - f64::from(gradient[i])).abs() < 2e-3,
                "{i}: {slope} {}",
                gradient[i]
            );
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let case = Case::new(&[30, 7, 90, 1], 3, 32, Queries::All);
    for engine in Engine::each() {
        set_threads(1);
        let one = case.run(engine);
        set_threads(2);
        assert_eq!(one, case.run(engine));
    }
}

#[test]
fn a_sequence_does_not_depend_on_its_neighbours() {
    let many = Case::new(&[30, 70, 4], 2, 32, Queries::All);
    let rows = 30 * 64..100 * 64;
    let mut alone = Case::new(&[70], 2, 32, Queries::All);
    alone.keys = many.keys[30..100].to_vec();
    alone.q = many.q[rows.clone()].to_vec();
    alone.k = many.k[rows.clone()].to_vec();
    alone.v = many.v[rows.clone()].to_vec();
    alone.dctx = many.dctx[rows.clone()].to_vec();
    for engine in Engine::each() {
        let (many, alone) = (many.run(engine), alone.run(engine));
        for i in [0, 2, 3, 4] {
            assert_eq!(many[i][rows.clone()], alone[i]);
        }
    }
}

#[test]
fn nan_stays_in_its_row_and_is_not_hidden() {
    let mut case = Case::new(&[5, 5], 1, 16, Queries::All);
    case.q[2 * 16] = f32::NAN;
    for engine in Engine::each() {
        let [ctx, lse, ..] = case.run(engine);
        assert!(lse[2].is_nan() && ctx[2 * 16..3 * 16].iter().all(|x| x.is_nan()));
        assert!(
            ctx[..2 * 16]
                .iter()
                .chain(&ctx[3 * 16..])
                .all(|x| x.is_finite())
        );
    }
}

#[test]
fn sequences_that_do_not_cover_the_rows_are_errors() {
    let x = tensor(&[0.0; 16], 4);
    let lse = tensor(&[0.0; 8], 2);
    for cu in [&[][..], &[0], &[0, 3], &[1, 4], &[0, 5, 4]] {
        let attention = Attention {
            cu_seqlens: cu.into(),
            token_keys: (&[0; 4]).into(),
            num_heads: 2,
            dropout: Dropout::NONE,
            queries: Queries::All,
            precision: Precision::F32,
        };
        let out = tensor(&[0.0; 16], 4);
        assert!(attention.forward(&x, &x, &x, &out, &lse).is_err());
    }
}

/// Numbers that are bf16 already: the context is the same but for its own rounding, and the gradients are as
/// close as the rounded context lets them be.
#[test]
fn tensors_of_bf16_give_what_their_numbers_give() {
    for engine in Engine::each() {
        for queries in [Queries::All, Queries::First] {
            let mut case = Case::new(&[70, 1, 33, 0, 16], 3, 32, queries);
            for numbers in [&mut case.q, &mut case.k, &mut case.v, &mut case.dctx] {
                *numbers = rounded(numbers);
            }
            let long = case.run(engine);
            let short = case.run_as(engine, DType::BF16);
            assert_eq!(short[0], rounded(&long[0]), "{engine:?}");
            assert_eq!(short[1], long[1], "{engine:?}");
            for (long, short) in long.iter().zip(&short).skip(2) {
                let scale = long.iter().fold(0f32, |m, x| m.max(x.abs()));
                for (x, y) in long.iter().zip(short) {
                    assert!((x - y).abs() <= 0.01 * scale, "{engine:?}: {x} {y}");
                }
            }
        }
    }
}

/// On a GPU, every choice of kernels: any head, and the fast ones for bf16.
#[test]
fn gpus_match_the_definition() {
    let device = emulated::device();
    let engine = Engine::best(Precision::F32);
    for dim in [32, 64, 6] {
        for queries in [Queries::All, Queries::First] {
            let mut case = Case::new(&[3, 0, 1, 70, 130, 16], 2, dim, queries);
            for numbers in [&mut case.q, &mut case.k, &mut case.v, &mut case.dctx] {
                *numbers = rounded(numbers);
            }
            for dropout in [case.dropout, Dropout::NONE] {
                case.dropout = dropout;
                let expected = case.reference();
                for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 3e-2)] {
                    let got = case.run_on(&device, engine, dtype);
                    let what = format!("{dtype:?}, heads of {dim}, {queries:?}");
                    assert_near(&got, &expected, tolerance, &what);
                }
            }
        }
    }
    let nothing = Case::new(&[0, 0], 2, 32, Queries::First).run_on(&device, engine, DType::BF16);
    assert!(nothing.iter().flatten().all(|&x| x == 0.0));
    Case::new(&[], 2, 32, Queries::All).run_on(&device, engine, DType::BF16);
}

#[test]
fn gpus_refuse_heads_that_no_kernel_takes() {
    let case = Case::new(&[2], 1, 129, Queries::All);
    let device = emulated::device();
    let [q, ctx] = [0; 2].map(|_| on(&device, &case.q, 129, DType::F32));
    let lse = Tensor::zeros((2, 1), DType::F32, &device).unwrap();
    let attention = Attention {
        cu_seqlens: (&case.cu).into(),
        token_keys: (&case.keys).into(),
        num_heads: 1,
        dropout: Dropout::NONE,
        queries: Queries::All,
        precision: Precision::F32,
    };
    let error = attention.forward(&q, &q, &q, &ctx, &lse).unwrap_err();
    assert!(error.to_string().contains("up to 128"), "{error}");
}

use crate::kernels::cuda::emulated::device;
use crate::kernels::device::{Compute, Device};

use super::backward_weight::backward_weight_on;
use super::*;
use crate::kernels::activation::Activation;
use crate::kernels::cpu::Cpu;
use crate::kernels::gemm::Format;
use crate::kernels::pool::set_threads;
use crate::kernels::testing::noise;
use crate::kernels::view::write;

fn tensor(data: Vec<f32>, dims: &[usize]) -> Tensor {
    Tensor::from_vec(data, dims, &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    read(tensor, <[f32]>::to_vec).unwrap()
}

/// One layer's inputs, and its results by triple loops in f64.
struct Case {
    dims: [usize; 3],
    engine: Engine,
    x: Vec<f32>,
    w: Vec<f32>,
    b: Vec<f32>,
    dy: Vec<f32>,
}

/// `y, dx, dw, db`.
type Results = [Vec<f32>; 4];

impl Case {
    fn new(engine: Engine, [t, n, k]: [usize; 3]) -> Self {
        Self {
            dims: [t, n, k],
            engine,
            x: noise(t * k, 1),
            w: noise(n * k, 2),
            b: noise(n, 3),
            dy: noise(t * n, 4),
        }
    }

    /// Into buffers that hold ones.
    fn run(&self) -> Results {
        self.run_as(DType::F32)
    }

    /// With activations of this type.
    fn run_as(&self, dtype: DType) -> Results {
        let [t, n, k] = self.dims;
        let [y, dx, dw, db] = [vec![t, n], vec![t, k], vec![n, k], vec![n]]
            .map(|dims| Tensor::ones(dims, candle_core::DType::F32, &Device::Cpu).unwrap());
        let typed = |tensor: Tensor| tensor.to_dtype(dtype).unwrap();
        let x = typed(tensor(self.x.clone(), &[t, k]));
        let dy = typed(tensor(self.dy.clone(), &[t, n]));
        let (y, dx) = (typed(y), typed(dx));
        let w = LinearWeight::on(self.engine, &tensor(self.w.clone(), &[n, k])).unwrap();
        forward(&x, &w, Some(&tensor(self.b.clone(), &[n])), &y).unwrap();
        backward_input(&dy, &w, &dx, true).unwrap();
        let (dy, dw, db) = (&dy, &dw, Some(&db));
        let gradient = Gradient {
            dy,
            accumulate: true,
            dw,
            db,
        };
        backward_weight_on(self.engine, &[gradient], &x).unwrap();
        let wide = |tensor: &Tensor| tensor.to_dtype(DType::F32).unwrap();
        [&wide(&y), &wide(&dx), dw, db.unwrap()].map(values)
    }

    fn reference(&self) -> Results {
        let [t, n, k] = self.dims;
        let round = |x: f32| match self.engine.format() {
            Format::F32 => f64::from(x),
            _ => half::bf16::from_f32(x).to_f64(),
        };
        let sum = |count: usize, start: f32, term: &dyn Fn(usize) -> f64| {
            ((0..count).map(term).sum::<f64>() + f64::from(start)) as f32
        };
        let (x, w, dy) = (
            |i: usize, j: usize| round(self.x[i * k + j]),
            |i: usize, j: usize| round(self.w[i * k + j]),
            |i: usize, j: usize| round(self.dy[i * n + j]),
        );
        let each = |rows: usize, columns: usize, f: &dyn Fn(usize, usize) -> f32| {
            (0..rows * columns)
                .map(|i| f(i / columns, i % columns))
                .collect()
        };
        [
            each(t, n, &|i, j| sum(k, self.b[j], &|l| x(i, l) * w(j, l))),
            each(t, k, &|i, j| sum(n, 1.0, &|l| dy(i, l) * w(l, j))),
            each(n, k, &|i, j| sum(t, 1.0, &|l| dy(l, i) * x(l, j))),
            each(1, n, &|_, j| {
                sum(t, 1.0, &|l| f64::from(self.dy[l * n + j]))
            }),
        ]
    }
}

/// The same on a GPU, whose activations are of the precision's type.
fn run_on_gpu(case: &Case, precision: Precision) -> Results {
    let ([t, n, k], device) = (case.dims, device());
    let dtype = Compute {
        device: device.clone(),
        precision,
    }
    .storage();
    let on_gpu = |data: Vec<f32>, dims: &[usize], dtype| {
        let tensor = tensor(data, dims).to_dtype(dtype).unwrap();
        tensor.to_device(&device).unwrap()
    };
    let ones = |dims: &[usize], dtype| on_gpu(vec![1.0; dims.iter().product()], dims, dtype);
    let (y, dx) = (ones(&[t, n], dtype), ones(&[t, k], dtype));
    let (dw, db) = (ones(&[n, k], DType::F32), ones(&[n], DType::F32));
    let x = on_gpu(case.x.clone(), &[t, k], dtype);
    let dy = on_gpu(case.dy.clone(), &[t, n], dtype);
    let weight = on_gpu(case.w.clone(), &[n, k], DType::F32);
    let w = LinearWeight::new(&weight, precision).unwrap();
    let bias = on_gpu(case.b.clone(), &[n], dtype);
    forward(&x, &w, Some(&bias), &y).unwrap();
    backward_input(&dy, &w, &dx, true).unwrap();
    backward_weight(&dy, &x, precision, &dw, Some(&db)).unwrap();
    [&y, &dx, &dw, &db].map(|t| t.to_dtype(DType::F32).unwrap().to_vec1().unwrap())
}

#[test]
fn a_gpu_gives_what_triple_loops_give() {
    for precision in [Precision::F32, Precision::Bf16] {
        // Rounded to bf16: inputs, and what is kept as bf16.
        let engine = Engine::on(Cpu::each().next().unwrap(), precision);
        for dims in [
            [1, 2, 16],
            [5, 8, 24],
            [33, 1, 1],
            [70, 40, 56],
            [600, 33, 17],
        ] {
            let mut case = Case::new(engine, dims);
            if precision == Precision::Bf16 {
                // As it is on the GPU, for the sum that is the bias's gradient.
                let round = |x: &mut f32| *x = half::bf16::from_f32(*x).to_f32();
                case.dy.iter_mut().for_each(round);
            }
            let expected = case.reference();
            for (i, (got, expected)) in run_on_gpu(&case, precision)
                .iter()
                .zip(expected)
                .enumerate()
            {
                assert_eq!(got.len(), expected.len());
                for (x, y) in got.iter().zip(expected) {
                    let share = if precision == Precision::F32 {
                        1e-5
                    } else {
                        8e-3
                    };
                    let off = (x - y).abs();
                    assert!(
                        off < share * y.abs().max(4.0),
                        "{precision:?} {dims:?} {i}: {x} {y}"
                    );
                }
            }
        }
    }
}

fn assert_close(case: &Case) {
    for (i, (got, expected)) in case.run().iter().zip(case.reference()).enumerate() {
        assert_eq!(got.len(), expected.len());
        for (x, y) in got.iter().zip(expected) {
            let (engine, dims) = (case.engine, case.dims);
            assert!((x - y).abs() < 5e-4, "{engine:?} {dims:?} {i}: {x} {y}");
        }
    }
}

#[test]
fn results_and_gradients_match_triple_loops_on_every_engine() {
    for engine in Engine::each() {
        for dims in [
            [0, 8, 8],
            [1, 2, 16],
            [5, 8, 24],
            [33, 1, 1],
            [70, 40, 56],
            [11, 67, 131],
        ] {
            assert_close(&Case::new(engine, dims));
        }
    }
}

#[test]
fn activations_of_bf16_give_what_their_numbers_give() {
    let rounded = |numbers: &[f32]| {
        let round = |x: &f32| half::bf16::from_f32(*x).to_f32();
        numbers.iter().map(round).collect::<Vec<_>>()
    };
    for engine in Engine::each() {
        for dims in [[0, 8, 8], [1, 2, 16], [37, 96, 50], [9, 67, 131]] {
            let mut case = Case::new(engine, dims);
            (case.x, case.dy) = (rounded(&case.x), rounded(&case.dy));
            let [y, dx, dw, db] = case.run();
            let short = case.run_as(DType::BF16);
            let expected = [rounded(&y), rounded(&dx), dw, db];
            assert_eq!(short, expected, "{engine:?} {dims:?}");
        }
    }
}

/// Query, key and value of one input, and a layer behind an activation, against one layer at a time.
#[test]
fn layers_computed_together_are_those_computed_alone() {
    let (t, n, k) = (37, 56, 72);
    for engine in Engine::each() {
        for dtype in [DType::F32, DType::BF16] {
            let typed = |seed, dims: &[usize]| {
                let numbers = noise(dims.iter().product(), seed);
                tensor(numbers, dims).to_dtype(dtype).unwrap()
            };
            let zeros = |dims: &[usize]| Tensor::zeros(dims, dtype, &Device::Cpu).unwrap();
            let wide = |tensor: &Tensor| values(&tensor.to_dtype(DType::F32).unwrap());
            let x = typed(1, &[t, k]);
            let weights: Vec<_> = (2..5)
                .map(|seed| LinearWeight::on(engine, &tensor(noise(n * k, seed), &[n, k])).unwrap())
                .collect();
            let (alone, together) = (
                [0; 3].map(|_| zeros(&[t, n])),
                [0; 3].map(|_| zeros(&[t, n])),
            );
            for (weight, out) in weights.iter().zip(&alone) {
                forward(&x, weight, None, out).unwrap();
            }
            let layers = weights
                .iter()
                .zip(&together)
                .map(|(weight, out)| Projection {
                    weight,
                    bias: None,
                    out,
                });
            forward_all(&x, &layers.collect::<Vec<_>>()).unwrap();
            for (alone, together) in alone.iter().zip(&together) {
                assert_eq!(wide(alone), wide(together), "{engine:?}");
            }

            let (inner, activated) = (zeros(&[t, n]), zeros(&[t, n]));
            let to = Activated {
                activation: Activation::Relu,
                inner: Some(&inner),
                activated: &activated,
            };
            forward_activated(&x, &weights[0], None, &to).unwrap();
            assert_eq!(wide(&inner), wide(&alone[0]));
            let relu: Vec<f32> = wide(&inner).iter().map(|x| x.max(0.0)).collect();
            assert_eq!(wide(&activated), relu);

            // Back through a layer whose input that activation was.
            let (dy, behind) = (typed(9, &[t, k]), tensor(noise(k * n, 6), &[k, n]));
            let behind = LinearWeight::on(engine, &behind).unwrap();
            let d_plain = zeros(&[t, n]);
            backward_input(&dy, &behind, &d_plain, false).unwrap();
            let (again, d_inner) = (zeros(&[t, n]), zeros(&[t, n]));
            let back = Reactivated {
                activation: Activation::Relu,
                inner: &inner,
                activated: &again,
                d_inner: &d_inner,
            };
            backward_input_activated(&dy, &behind, &back).unwrap();
            let expected = wide(&d_plain).into_iter().zip(wide(&inner));
            let expected: Vec<f32> = expected
                .map(|(d, x)| if x > 0.0 { d } else { 0.0 })
                .collect();
            assert_eq!(wide(&d_inner), expected, "{engine:?}");
            assert_eq!(wide(&again), wide(&activated), "{engine:?}");

            // What was given is given again, of inputs that lost digits on their way to memory, too.
            let activation = Activation::Gelu;
            let to = Activated { activation, ..to };
            forward_activated(&x, &weights[0], None, &to).unwrap();
            let back = Reactivated { activation, ..back };
            backward_input_activated(&dy, &behind, &back).unwrap();
            assert_eq!(wide(&again), wide(&activated), "{engine:?}");
            assert_ne!(wide(&activated), relu);

            // And the same where nobody will ask what it was a function of.
            let alone = zeros(&[t, n]);
            let to = Activated {
                inner: None,
                activated: &alone,
                ..to
            };
            forward_activated(&x, &weights[0], None, &to).unwrap();
            assert_eq!(wide(&alone), wide(&activated), "{engine:?}");
        }
    }
}

/// As if it had been zero, to the bit, whatever it held.
#[test]
fn a_gradient_is_overwritten_on_request() {
    let devices = [Device::Cpu, device()];
    for dims in [[0, 8, 8], [3, 96, 64], [2500, 16, 8]] {
        for engine in Engine::each() {
            let case = Case::new(engine, dims);
            let run = |device: &Device, accumulate: bool, held: f32| {
                let [t, n, k] = dims;
                let on = |data: &[f32], dims: &[usize]| {
                    tensor(data.to_vec(), dims).to_device(device).unwrap()
                };
                let (x, dy) = (on(&case.x, &[t, k]), on(&case.dy, &[t, n]));
                let dw = on(&vec![held; n * k], &[n, k]);
                let gradient = Gradient {
                    dy: &dy,
                    accumulate,
                    dw: &dw,
                    db: None,
                };
                match device {
                    Device::Cpu => backward_weight_on(engine, &[gradient], &x).unwrap(),
                    Device::Gpu(_) => {
                        backward_weight_all(&[gradient], &x, Precision::F32).unwrap();
                    }
                }
                values(&dw)
                    .into_iter()
                    .map(f32::to_bits)
                    .collect::<Vec<_>>()
            };
            for device in &devices {
                if dims[0] == 0 && device.gpu().is_some() {
                    continue; // It refuses products without rows.
                }
                let expected = run(device, true, 0.0);
                assert_eq!(
                    run(device, false, f32::NAN),
                    expected,
                    "{engine:?} {dims:?}"
                );
            }
        }
    }
}

#[test]
fn many_rows_are_summed_in_parts() {
    for engine in Engine::each() {
        assert_close(&Case::new(engine, [2500, 16, 8]));
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    for engine in Engine::each() {
        for dims in [[3, 96, 64], [300, 56, 104]] {
            let case = Case::new(engine, dims);
            set_threads(1);
            let one = case.run();
            set_threads(2);
            assert_eq!(one, case.run(), "{engine:?} {dims:?}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_the_others() {
    for engine in Engine::each() {
        let all = Case::new(engine, [37, 56, 72]);
        let [y, dx, ..] = all.run();
        for row in [0, 8, 35, 36] {
            let mut alone = Case::new(engine, [1, 56, 72]);
            alone.x = all.x[row * 72..(row + 1) * 72].to_vec();
            alone.dy = all.dy[row * 56..(row + 1) * 56].to_vec();
            let [y_alone, dx_alone, ..] = alone.run();
            assert_eq!(y_alone, y[row * 56..(row + 1) * 56]);
            assert_eq!(dx_alone, dx[row * 72..(row + 1) * 72]);
        }
    }
}

#[test]
fn a_changed_weight_counts_at_once() {
    let weight = tensor(vec![1.0, 2.0], &[1, 2]);
    let packed = LinearWeight::new(&weight, Precision::Bf16).unwrap();
    let (x, y) = (tensor(vec![3.0, 4.0], &[1, 2]), tensor(vec![0.0], &[1, 1]));
    forward(&x, &packed, None, &y).unwrap();
    assert_eq!(values(&y), [11.0]);
    write(&weight, |w| {
        w.copy_from_slice(&[5.0, 6.0]);
        Ok(())
    })
    .unwrap();
    forward(&x, &packed, None, &y).unwrap();
    assert_eq!(values(&y), [39.0]);
    let dx = tensor(vec![9.0; 2], &[1, 2]);
    backward_input(&tensor(vec![2.0], &[1, 1]), &packed, &dx, false).unwrap();
    assert_eq!(values(&dx), [10.0, 12.0]);
}

#[test]
fn nan_is_not_hidden() {
    for engine in Engine::each() {
        let mut case = Case::new(engine, [2, 16, 8]);
        case.x[3] = f32::NAN;
        let [y, _, dw, _] = case.run();
        assert!(y[..16].iter().all(|x| x.is_nan()) && y[16..].iter().all(|x| x.is_finite()));
        assert!(
            dw.chunks(8)
                .all(|row| row[3].is_nan() && row[4].is_finite())
        );
    }
}

#[test]
fn shapes_that_do_not_fit_are_errors() {
    let w = LinearWeight::new(&tensor(vec![0.0; 6], &[2, 3]), Precision::F32).unwrap();
    let (x, y) = (tensor(vec![0.0; 8], &[2, 4]), tensor(vec![0.0; 4], &[2, 2]));
    assert!(forward(&x, &w, None, &y).is_err());
    assert!(backward_input(&x, &w, &x, false).is_err());
    assert!(backward_weight(&y, &x, Precision::F32, &y, None).is_err());
    assert!(LinearWeight::new(&tensor(vec![0.0; 6], &[6]), Precision::F32).is_err());
}

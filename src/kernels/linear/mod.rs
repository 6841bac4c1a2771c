//! The linear layer `y = x Wᵀ + b`, with W `[N, K]` as torch stores it, and its gradients.
//!
//! With [`Precision::Bf16`] the factors of each product are rounded to bf16, and sums are f32, as under
//! autocast. W is packed once per optimizer step, in one form for `y` and one for `dx`. Activations and their
//! gradients are f32 or bf16, all of a call alike; weights, biases and their gradients are f32.

mod pieces;
mod products;

use candle_core::{DType, Result, Tensor, bail};

use super::activation::Activation;
use super::cpu::Cpu;
use super::element::{Element, for_dtype};
use super::gemm::{Aligned, Engine, Format, Layout, Panels, pack_columns, pack_rows};
use super::pool::{Disjoint, parallel_for};
use super::profile;
use super::view::{self, read};
use pieces::{Piece, add_to, load, store};
use products::{Matrix, Sum, Term, WeightSum, columns_times_rows, rows_times_panels};

/// What the factors of matrix products are rounded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// Whether this CPU multiplies bf16 natively; elsewhere [`Self::Bf16`] is not faster than f32.
    pub fn native_bf16() -> bool {
        Engine::best(Self::Bf16).format() == Format::Pairs
    }

    /// What activations are kept as: bf16 only where products take it as it is.
    pub fn storage(self) -> DType {
        match Engine::best(self).format() {
            Format::Pairs => DType::BF16,
            Format::F32 | Format::Rounded => DType::F32,
        }
    }
}

/// A weight and what is packed from it.
#[derive(Debug)]
pub struct LinearWeight {
    weight: Tensor,
    engine: Engine,
    out_features: usize,
    in_features: usize,
    /// For `y`: depth K, width N.
    forward: Aligned,
    /// For `dx`: depth N, width K.
    backward: Aligned,
}

impl LinearWeight {
    /// Packs a `[N, K]` tensor, which it shares.
    ///
    /// # Errors
    /// If the tensor is not a contiguous f32 matrix on the CPU.
    pub fn new(weight: &Tensor, precision: Precision) -> Result<Self> {
        Self::on(Engine::best(precision), weight)
    }

    fn on(engine: Engine, weight: &Tensor) -> Result<Self> {
        let (out_features, in_features) = weight.dims2()?;
        let mut this = Self {
            weight: weight.clone(),
            engine,
            out_features,
            in_features,
            forward: Aligned::new(),
            backward: Aligned::new(),
        };
        this.refresh()?;
        Ok(this)
    }

    /// Packs anew, after the optimizer changed the tensor.
    ///
    /// # Errors
    /// If the tensor is not a contiguous f32 matrix on the CPU.
    pub fn refresh(&mut self) -> Result<()> {
        let (engine, n, k) = (self.engine, self.out_features, self.in_features);
        let (forward, backward) = (self.forward_layout(), self.backward_layout());
        let _op = profile::op("pack weights", 0, 8 * n * k);
        let along = Disjoint::new(self.forward.words(forward.len()));
        let down = Disjoint::new(self.backward.words(backward.len()));
        read(&self.weight, |weight| {
            parallel_for(forward.panels() + backward.panels(), |task| {
                if let Some(p) = task.checked_sub(forward.panels()) {
                    let (columns, padded) = (backward.columns(p), backward.padded(p));
                    // SAFETY: each task writes its own panel.
                    let out = unsafe { down.slice(backward.range(p)) };
                    let from = weight.get(columns.start..).unwrap_or_default();
                    pack_rows(engine, from, k, n, columns.len(), padded, out);
                } else {
                    let (columns, padded) = (forward.columns(task), forward.padded(task));
                    // SAFETY: each task writes its own panel.
                    let out = unsafe { along.slice(forward.range(task)) };
                    let from = &weight[columns.start * k..];
                    pack_columns(engine, from, k, columns.len(), k, padded, out);
                }
            });
        })
    }

    /// N.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// K.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Refuses a layer that cannot be computed together with this one.
    fn alike(&self, other: &Self) -> Result<()> {
        if self.engine != other.engine {
            bail!("layers of one input have different precisions")
        }
        Ok(())
    }

    fn flop(&self, rows: usize) -> usize {
        2 * rows * self.out_features * self.in_features
    }

    fn bytes(&self, rows: usize, size: usize) -> usize {
        size * rows * (self.out_features + self.in_features)
            + 4 * self.engine.words(self.in_features) * self.out_features
    }

    fn forward_layout(&self) -> Layout {
        Layout::new(self.engine.words(self.in_features), self.out_features)
    }

    fn backward_layout(&self) -> Layout {
        Layout::new(self.engine.words(self.out_features), self.in_features)
    }
}

/// One layer of several that read the same input.
#[derive(Clone, Copy)]
pub struct Projection<'a> {
    pub weight: &'a LinearWeight,
    /// [N]
    pub bias: Option<&'a Tensor>,
    /// [T, N]
    pub out: &'a Tensor,
}

/// A function of every element that follows a product while its result is in the cache: `inner` is before
/// it, `activated` behind it, both [T, N].
#[derive(Clone, Copy)]
pub struct Activated<'a> {
    pub activation: Activation,
    pub inner: &'a Tensor,
    pub activated: &'a Tensor,
}

/// `out [T, N] = x [T, K] Wᵀ + bias [N]`.
///
/// # Errors
/// If shapes do not fit or a tensor is not contiguous f32 on the CPU.
pub fn forward(x: &Tensor, w: &LinearWeight, bias: Option<&Tensor>, out: &Tensor) -> Result<()> {
    let weight = w;
    forward_all(x, &[Projection { weight, bias, out }])
}

/// Several layers of one input, which is converted once.
///
/// # Errors
/// As [`forward`].
pub fn forward_all(x: &Tensor, layers: &[Projection<'_>]) -> Result<()> {
    for_dtype!(x, forward_all_of(x, layers))
}

fn forward_all_of<T: Element>(x: &Tensor, layers: &[Projection<'_>]) -> Result<()> {
    let outs: Vec<&Tensor> = layers.iter().map(|layer| layer.out).collect();
    view::write_list(&outs, |outs: Vec<&mut [T]>| {
        let widths: Vec<usize> = layers.iter().map(|l| l.weight.out_features).collect();
        let outs: Vec<_> = outs.into_iter().map(Disjoint::new).collect();
        forward_into::<T>(x, layers, |cpu, piece| {
            store(cpu, &piece, widths[piece.sum], &outs[piece.sum]);
        })
    })
}

/// `activated = f(inner)`, `inner = x Wᵀ + bias`.
///
/// # Errors
/// As [`forward`].
pub fn forward_activated(
    x: &Tensor,
    weight: &LinearWeight,
    bias: Option<&Tensor>,
    to: &Activated<'_>,
) -> Result<()> {
    for_dtype!(x, forward_activated_of(x, weight, bias, to))
}

fn forward_activated_of<T: Element>(
    x: &Tensor,
    weight: &LinearWeight,
    bias: Option<&Tensor>,
    to: &Activated<'_>,
) -> Result<()> {
    expect(to.activated, to.inner.dims())?;
    let layer = Projection {
        weight,
        bias,
        out: to.inner,
    };
    view::write_list(&[to.inner, to.activated], |outs: Vec<&mut [T]>| {
        let outs: Vec<_> = outs.into_iter().map(Disjoint::new).collect();
        forward_into::<T>(x, &[layer], |cpu, piece| {
            store(cpu, &piece, weight.out_features, &outs[0]);
            // All of it, with whatever lies behind the columns.
            to.activation.apply(cpu, piece.data);
            store(cpu, &piece, weight.out_features, &outs[1]);
        })
    })
}

/// Computes layers' outputs, with all shapes checked, and hands them to `finish` piece by piece.
fn forward_into<T: Element>(
    x: &Tensor,
    layers: &[Projection<'_>],
    finish: impl Fn(Cpu, Piece<'_>) + Sync,
) -> Result<()> {
    let Some(first) = layers.first().map(|layer| layer.weight) else {
        return Ok(());
    };
    let rows = x.dim(0)?;
    let (mut flop, mut bytes) = (0, 0);
    for Projection { weight, bias, out } in layers {
        expect(x, &[rows, weight.in_features])?;
        expect(out, &[rows, weight.out_features])?;
        if let Some(bias) = bias {
            expect(bias, &[weight.out_features])?;
        }
        first.alike(weight)?;
        flop += weight.flop(rows);
        bytes += weight.bytes(rows, size_of::<T>());
    }
    let _op = profile::op("linear", flop, bytes);
    let biases: Vec<&Tensor> = layers.iter().filter_map(|layer| layer.bias).collect();
    view::read_as(x, |x: &[T]| {
        view::read_list(&biases, |biases: &[&[f32]]| {
            let mut biases = biases.iter().copied();
            let sums: Vec<_> = layers
                .iter()
                .map(|layer| {
                    let layout = layer.weight.forward_layout();
                    let term = Term {
                        left: x,
                        depth: layer.weight.in_features,
                        right: Panels::new(layer.weight.forward.get(layout.len()), layout),
                    };
                    Sum {
                        terms: vec![term],
                        bias: layer.bias.and_then(|_| biases.next()),
                    }
                })
                .collect();
            let cpu = first.engine.cpu();
            rows_times_panels(first.engine, rows, &sums, |piece| finish(cpu, piece));
        })
    })?
}

/// A layer's share in the gradient of its input.
#[derive(Clone, Copy)]
pub struct Share<'a> {
    /// [T, N]
    pub dy: &'a Tensor,
    pub weight: &'a LinearWeight,
}

/// `dx [T, K] = dy [T, N] W`, or `+=` if it accumulates.
///
/// # Errors
/// If shapes do not fit or a tensor is not contiguous on the CPU.
pub fn backward_input(dy: &Tensor, w: &LinearWeight, dx: &Tensor, accumulate: bool) -> Result<()> {
    backward_input_all(&[Share { dy, weight: w }], dx, accumulate)
}

/// The sum over several layers of one input, in order.
///
/// # Errors
/// As [`backward_input`].
pub fn backward_input_all(shares: &[Share<'_>], dx: &Tensor, accumulate: bool) -> Result<()> {
    for_dtype!(dx, backward_input_all_of(shares, dx, accumulate))
}

fn backward_input_all_of<T: Element>(
    shares: &[Share<'_>],
    dx: &Tensor,
    accumulate: bool,
) -> Result<()> {
    let width = dx.dim(1)?;
    view::write_as(dx, |out: &mut [T]| {
        let out = Disjoint::new(out);
        backward_into::<T>(shares, dx.dims(), |cpu, piece| {
            if accumulate {
                add_to(cpu, &piece, width, &out);
            } else {
                store(cpu, &piece, width, &out);
            }
        })
    })
}

/// `d_inner = (dy W) f'(inner)`: through a layer and the activation before it. `to.activated` is overwritten
/// with `d_inner`.
///
/// # Errors
/// As [`backward_input`].
pub fn backward_input_activated(
    dy: &Tensor,
    weight: &LinearWeight,
    to: &Activated<'_>,
) -> Result<()> {
    for_dtype!(dy, backward_input_activated_of(dy, weight, to))
}

fn backward_input_activated_of<T: Element>(
    dy: &Tensor,
    weight: &LinearWeight,
    to: &Activated<'_>,
) -> Result<()> {
    let width = weight.in_features;
    expect(to.inner, to.activated.dims())?;
    view::read_as(to.inner, |inner: &[T]| {
        view::write_as(to.activated, |out: &mut [T]| {
            let out = Disjoint::new(out);
            let shares = [Share { dy, weight }];
            backward_into::<T>(&shares, to.activated.dims(), |cpu, piece| {
                let mut x = vec![0.0; piece.data.len()];
                load(cpu, inner, &piece, width, &mut x);
                to.activation.apply_backward(cpu, &x, piece.data);
                store(cpu, &piece, width, &out);
            })
        })
    })?
}

/// Computes the sum of shares [T, K], with all shapes checked, and hands it to `finish` piece by piece.
fn backward_into<T: Element>(
    shares: &[Share<'_>],
    dims: &[usize],
    finish: impl Fn(Cpu, Piece<'_>) + Sync,
) -> Result<()> {
    let Some(first) = shares.first().map(|share| share.weight) else {
        return Ok(());
    };
    let rows = dims.first().copied().unwrap_or(0);
    let (mut flop, mut bytes) = (0, 0);
    for Share { dy, weight } in shares {
        expect(dy, &[rows, weight.out_features])?;
        if dims != [rows, weight.in_features] {
            let expected = [rows, weight.in_features];
            bail!("expected the shape {expected:?}, got {dims:?}")
        }
        first.alike(weight)?;
        flop += weight.flop(rows);
        bytes += weight.bytes(rows, size_of::<T>());
    }
    let _op = profile::op("linear dX", flop, bytes);
    let dys: Vec<&Tensor> = shares.iter().map(|share| share.dy).collect();
    view::read_list(&dys, |dys: &[&[T]]| {
        let terms = shares.iter().zip(dys).map(|(Share { weight, .. }, &dy)| {
            let layout = weight.backward_layout();
            Term {
                left: dy,
                depth: weight.out_features,
                right: Panels::new(weight.backward.get(layout.len()), layout),
            }
        });
        let sum = Sum {
            terms: terms.collect(),
            bias: None,
        };
        let cpu = first.engine.cpu();
        rows_times_panels(first.engine, rows, &[sum], |piece| finish(cpu, piece));
    })
}

/// Where the gradients of a layer's parameters are added.
#[derive(Clone, Copy)]
pub struct Gradient<'a> {
    /// [T, N]
    pub dy: &'a Tensor,
    /// [N, K]
    pub dw: &'a Tensor,
    /// [N]
    pub db: Option<&'a Tensor>,
}

/// `dw [N, K] += dyᵀ x` and `db [N] +=` the column sums of `dy`, for `dy [T, N]`, `x [T, K]`.
///
/// # Errors
/// If shapes do not fit or a tensor is not contiguous f32 on the CPU.
pub fn backward_weight(
    dy: &Tensor,
    x: &Tensor,
    precision: Precision,
    dw: &Tensor,
    db: Option<&Tensor>,
) -> Result<()> {
    backward_weight_all(&[Gradient { dy, dw, db }], x, precision)
}

/// Several layers of one input, which is packed once.
///
/// # Errors
/// As [`backward_weight`].
pub fn backward_weight_all(
    layers: &[Gradient<'_>],
    x: &Tensor,
    precision: Precision,
) -> Result<()> {
    backward_weight_on(Engine::best(precision), layers, x)
}

fn backward_weight_on(engine: Engine, layers: &[Gradient<'_>], x: &Tensor) -> Result<()> {
    for_dtype!(x, backward_weight_of(engine, layers, x))
}

fn backward_weight_of<T: Element>(
    engine: Engine,
    layers: &[Gradient<'_>],
    x: &Tensor,
) -> Result<()> {
    let (rows, k) = x.dims2()?;
    let (mut flop, mut bytes) = (0, size_of::<T>() * rows * k);
    for Gradient { dy, dw, db } in layers {
        let n = dy.dim(1)?;
        expect(dy, &[rows, n])?;
        expect(dw, &[n, k])?;
        if let Some(db) = db {
            expect(db, &[n])?;
        }
        flop += 2 * rows * n * k;
        bytes += size_of::<T>() * rows * n + 8 * n * k;
    }
    let _op = profile::op("linear dW", flop, bytes);
    let dys: Vec<&Tensor> = layers.iter().map(|layer| layer.dy).collect();
    let outs = layers.iter().flat_map(|layer| [Some(layer.dw), layer.db]);
    let outs: Vec<&Tensor> = outs.flatten().collect();
    view::read_as(x, |x: &[T]| {
        view::read_list(&dys, |dys: &[&[T]]| {
            view::write_list(&outs, |outs: Vec<&mut [f32]>| {
                let mut outs = outs.into_iter().map(Disjoint::new);
                let sums: Vec<_> = layers
                    .iter()
                    .zip(dys)
                    .filter_map(|(layer, dy)| {
                        Some(WeightSum {
                            dy: Matrix::new(dy, layer.dy.dim(1).ok()?),
                            dw: outs.next()?,
                            db: layer.db.and_then(|_| outs.next()),
                        })
                    })
                    .collect();
                columns_times_rows(engine, rows, &sums, Matrix::new(x, k));
                Ok(())
            })
        })?
    })?
}

fn expect(tensor: &Tensor, dims: &[usize]) -> Result<()> {
    if tensor.dims() != dims {
        bail!("expected the shape {dims:?}, got {:?}", tensor.dims());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernels::pool::set_threads;
    use crate::kernels::view::write;

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(seed | 1);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

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
            backward_weight_on(self.engine, &[Gradient { dy, dw, db }], &x).unwrap();
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

    fn engines() -> Vec<Engine> {
        [Precision::F32, Precision::Bf16]
            .into_iter()
            .flat_map(|precision| Cpu::each().map(move |cpu| Engine::on(cpu, precision)))
            .collect()
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
        for engine in engines() {
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
        for engine in engines() {
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
        for engine in engines() {
            for dtype in [DType::F32, DType::BF16] {
                let typed = |seed, dims: &[usize]| {
                    let numbers = noise(dims.iter().product(), seed);
                    tensor(numbers, dims).to_dtype(dtype).unwrap()
                };
                let zeros = |dims: &[usize]| Tensor::zeros(dims, dtype, &Device::Cpu).unwrap();
                let wide = |tensor: &Tensor| values(&tensor.to_dtype(DType::F32).unwrap());
                let x = typed(1, &[t, k]);
                let weights: Vec<_> = (2..5)
                    .map(|seed| {
                        LinearWeight::on(engine, &tensor(noise(n * k, seed), &[n, k])).unwrap()
                    })
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
                    inner: &inner,
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
                backward_input_activated(&dy, &behind, &to).unwrap();
                let expected = wide(&d_plain).into_iter().zip(wide(&inner));
                let expected: Vec<f32> = expected
                    .map(|(d, x)| if x > 0.0 { d } else { 0.0 })
                    .collect();
                assert_eq!(wide(&activated), expected, "{engine:?}");
            }
        }
    }

    #[test]
    fn many_rows_are_summed_in_parts() {
        for engine in engines() {
            assert_close(&Case::new(engine, [2500, 16, 8]));
        }
    }

    #[test]
    fn threads_do_not_change_a_bit() {
        for engine in engines() {
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
        for engine in engines() {
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
    fn a_changed_weight_counts_after_a_refresh() {
        let weight = tensor(vec![1.0, 2.0], &[1, 2]);
        let mut packed = LinearWeight::new(&weight, Precision::Bf16).unwrap();
        let (x, y) = (tensor(vec![3.0, 4.0], &[1, 2]), tensor(vec![0.0], &[1, 1]));
        forward(&x, &packed, None, &y).unwrap();
        assert_eq!(values(&y), [11.0]);
        write(&weight, |w| {
            w.copy_from_slice(&[5.0, 6.0]);
            Ok(())
        })
        .unwrap();
        packed.refresh().unwrap();
        forward(&x, &packed, None, &y).unwrap();
        assert_eq!(values(&y), [39.0]);
        let dx = tensor(vec![9.0; 2], &[1, 2]);
        backward_input(&tensor(vec![2.0], &[1, 1]), &packed, &dx, false).unwrap();
        assert_eq!(values(&dx), [10.0, 12.0]);
    }

    #[test]
    fn nan_is_not_hidden() {
        for engine in engines() {
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
}

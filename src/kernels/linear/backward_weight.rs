//! `dw = dyᵀ x`, or `+=`, and `db += Σ dy`, also of several layers of one input.

use candle_core::Result;

use super::products::{Matrix, WeightSum, columns_times_rows};
use super::{Precision, cuda, expect};
use crate::kernels::element::{Element, for_dtype};
use crate::kernels::gemm::Engine;
use crate::kernels::pool::Disjoint;
use crate::kernels::tensor::Tensor;
use crate::kernels::{profile, view};

/// Where the gradients of a layer's parameters are added.
#[derive(Clone, Copy)]
pub struct Gradient<'a> {
    /// [T, N]
    pub dy: &'a Tensor,
    /// Whether to add to `dw`; otherwise it is overwritten. (`db` is added to in any case.)
    pub accumulate: bool,
    /// [N, K]
    pub dw: &'a Tensor,
    /// [N]
    pub db: Option<&'a Tensor>,
}

/// `dw [N, K] += dyᵀ x` and `db [N] +=` the column sums of `dy`, for `dy [T, N]`, `x [T, K]`.
///
/// # Errors
/// If shapes do not fit or a tensor is not contiguous f32, or tensors are not on one device.
pub fn backward_weight(
    dy: &Tensor,
    x: &Tensor,
    precision: Precision,
    dw: &Tensor,
    db: Option<&Tensor>,
) -> Result<()> {
    let gradient = Gradient {
        dy,
        accumulate: true,
        dw,
        db,
    };
    backward_weight_all(&[gradient], x, precision)
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
    if let Some(gpu) = x.gpu() {
        return cuda::backward_weight_all(gpu, layers, x);
    }
    backward_weight_on(Engine::best(precision), layers, x)
}

pub(super) fn backward_weight_on(
    engine: Engine,
    layers: &[Gradient<'_>],
    x: &Tensor,
) -> Result<()> {
    for_dtype!(x, backward_weight_of(engine, layers, x))
}

fn backward_weight_of<T: Element>(
    engine: Engine,
    layers: &[Gradient<'_>],
    x: &Tensor,
) -> Result<()> {
    let (rows, k) = x.dims2()?;
    let (mut flop, mut bytes) = (0, size_of::<T>() * rows * k);
    for Gradient { dy, dw, db, .. } in layers {
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
                            accumulate: layer.accumulate,
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

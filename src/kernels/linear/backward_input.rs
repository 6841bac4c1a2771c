//! `dx = dy W`, also summed over several layers of one input, and through the activation before it.

use candle_core::{Result, bail};

use super::pieces::{Piece, add_to, load, store};
use super::products::{Sum, Term, rows_times_panels};
use super::{Activated, LinearWeight, cuda, expect};
use crate::kernels::cpu::Cpu;
use crate::kernels::element::{Element, for_dtype};
use crate::kernels::gemm::Panels;
use crate::kernels::pool::Disjoint;
use crate::kernels::tensor::Tensor;
use crate::kernels::{profile, view};

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
/// If shapes do not fit or a tensor is not contiguous, or tensors are not on one device.
pub fn backward_input(dy: &Tensor, w: &LinearWeight, dx: &Tensor, accumulate: bool) -> Result<()> {
    backward_input_all(&[Share { dy, weight: w }], dx, accumulate)
}

/// The sum over several layers of one input, in order.
///
/// # Errors
/// As [`backward_input`].
pub fn backward_input_all(shares: &[Share<'_>], dx: &Tensor, accumulate: bool) -> Result<()> {
    if let Some(gpu) = dx.gpu() {
        return cuda::backward_input_all(gpu, shares, dx, accumulate);
    }
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
    if let Some(gpu) = dy.gpu() {
        return cuda::backward_input_activated(gpu, dy, weight, to);
    }
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

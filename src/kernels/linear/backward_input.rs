//! `dx = dy W`, also summed over several layers of one input, and through the activation before it.

use candle_core::{Result, bail};

use super::pieces::{Piece, add_to, load, store};
use super::products::{MAX_PIECE, Sum, Term, rows_times_panels};
use super::{LinearWeight, Side, cuda, expect, with_packed};
use crate::kernels::activation::Activation;
use crate::kernels::cpu::Cpu;
use crate::kernels::element::{Element, for_dtype};
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

/// Back through a function of every element that came before a product, all [T, K]. What it gave is computed
/// anew, as no layer keeps it.
#[derive(Clone, Copy)]
pub struct Reactivated<'a> {
    pub activation: Activation,
    /// What it was a function of.
    pub inner: &'a Tensor,
    /// What it gave, to the bit.
    pub activated: &'a Tensor,
    /// The gradient of `inner`.
    pub d_inner: &'a Tensor,
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

/// `d_inner = (dy W) f'(inner)`, through a layer and the activation before it, and `activated = f(inner)` again.
///
/// # Errors
/// As [`backward_input`].
pub fn backward_input_activated(
    dy: &Tensor,
    weight: &LinearWeight,
    to: &Reactivated<'_>,
) -> Result<()> {
    if let Some(gpu) = dy.gpu() {
        return cuda::backward_input_activated(gpu, dy, weight, to);
    }
    for_dtype!(dy, backward_input_activated_of(dy, weight, to))
}

fn backward_input_activated_of<T: Element>(
    dy: &Tensor,
    weight: &LinearWeight,
    to: &Reactivated<'_>,
) -> Result<()> {
    let width = weight.in_features;
    expect(to.inner, to.d_inner.dims())?;
    expect(to.activated, to.d_inner.dims())?;
    view::read_as(to.inner, |inner: &[T]| {
        view::write_list(&[to.d_inner, to.activated], |outs: Vec<&mut [T]>| {
            let outs: Vec<_> = outs.into_iter().map(Disjoint::new).collect();
            let shares = [Share { dy, weight }];
            backward_into::<T>(&shares, to.d_inner.dims(), |cpu, piece| {
                let mut x = [0.0; MAX_PIECE];
                let x = &mut x[..piece.data.len()];
                load(cpu, inner, &piece, width, x);
                to.activation.apply_both(cpu, x, piece.data);
                store(cpu, &piece, width, &outs[0]);
                store(cpu, &Piece { data: x, ..piece }, width, &outs[1]);
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
    let dys: Vec<&Tensor> = shares.iter().map(|share| share.dy).collect();
    let weights: Vec<&LinearWeight> = shares.iter().map(|share| share.weight).collect();
    with_packed(&weights, Side::Output, |packed| {
        let _op = profile::op("linear dX", flop, bytes);
        view::read_list(&dys, |dys: &[&[T]]| {
            let terms = weights.iter().zip(dys).zip(packed);
            let terms = terms.map(|((weight, &left), right)| Term {
                left,
                depth: weight.out_features,
                right,
            });
            let sum = Sum {
                terms: terms.collect(),
                bias: None,
            };
            let cpu = first.engine.cpu();
            rows_times_panels(first.engine, rows, &[sum], |piece| finish(cpu, piece));
        })
    })
}

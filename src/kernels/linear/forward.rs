//! `y = x Wᵀ + b`, also of several layers at once, and with the activation behind it.

use candle_core::Result;

use super::pieces::{Piece, store, store_rounding};
use super::products::{Sum, Term, rows_times_panels};
use super::{LinearWeight, Side, cuda, expect, with_packed};
use crate::kernels::activation::Activation;
use crate::kernels::cpu::Cpu;
use crate::kernels::element::{Element, for_dtype};
use crate::kernels::pool::Disjoint;
use crate::kernels::tensor::Tensor;
use crate::kernels::{profile, view};

/// One layer of several that read the same input.
#[derive(Clone, Copy)]
pub struct Projection<'a> {
    pub weight: &'a LinearWeight,
    /// [N]
    pub bias: Option<&'a Tensor>,
    /// [T, N]
    pub out: &'a Tensor,
}

/// A function of every element that follows a product while its result is in the cache.
#[derive(Clone, Copy)]
pub struct Activated<'a> {
    pub activation: Activation,
    /// [T, N]: what it is a function of, if a backward pass will ask.
    pub inner: Option<&'a Tensor>,
    /// [T, N]: what it gives.
    pub activated: &'a Tensor,
}

impl Activated<'_> {
    /// Where the product goes: without a tensor of its own, to where the function's result takes its place.
    pub(super) fn product(&self) -> &Tensor {
        self.inner.unwrap_or(self.activated)
    }
}

/// `out [T, N] = x [T, K] Wᵀ + bias [N]`.
///
/// # Errors
/// If shapes do not fit or a tensor is not contiguous f32, or tensors are not on one device.
pub fn forward(x: &Tensor, w: &LinearWeight, bias: Option<&Tensor>, out: &Tensor) -> Result<()> {
    let weight = w;
    forward_all(x, &[Projection { weight, bias, out }])
}

/// Several layers of one input, which is converted once.
///
/// # Errors
/// As [`forward`].
pub fn forward_all(x: &Tensor, layers: &[Projection<'_>]) -> Result<()> {
    if let Some(gpu) = x.gpu() {
        return cuda::forward_all(gpu, x, layers);
    }
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
    if let Some(gpu) = x.gpu() {
        return cuda::forward_activated(gpu, x, weight, bias, to);
    }
    for_dtype!(x, forward_activated_of(x, weight, bias, to))
}

fn forward_activated_of<T: Element>(
    x: &Tensor,
    weight: &LinearWeight,
    bias: Option<&Tensor>,
    to: &Activated<'_>,
) -> Result<()> {
    let out = to.product();
    expect(to.activated, out.dims())?;
    let layer = Projection { weight, bias, out };
    let outs = [Some(to.activated), to.inner].into_iter().flatten();
    view::write_list(&outs.collect::<Vec<_>>(), |outs: Vec<&mut [T]>| {
        let outs: Vec<_> = outs.into_iter().map(Disjoint::new).collect();
        let activated = &outs[0];
        let inner = outs.get(1).unwrap_or(activated);
        forward_into::<T>(x, &[layer], |cpu, mut piece| {
            // The function of what is kept, so that the backward pass can compute it again; and of the same where nothing
            // is kept (the line is then overwritten before it has left the cache).
            store_rounding(cpu, &mut piece, weight.out_features, inner);
            // All of it, with whatever lies behind the columns.
            to.activation.apply(cpu, piece.data);
            store(cpu, &piece, weight.out_features, activated);
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
    let biases: Vec<&Tensor> = layers.iter().filter_map(|layer| layer.bias).collect();
    let weights: Vec<&LinearWeight> = layers.iter().map(|layer| layer.weight).collect();
    with_packed(&weights, Side::Input, |packed| {
        let _op = profile::op("linear", flop, bytes);
        view::read_as(x, |x: &[T]| {
            view::read_list(&biases, |biases: &[&[f32]]| {
                let mut biases = biases.iter().copied();
                let sums = layers.iter().zip(packed).map(|(layer, right)| {
                    let depth = layer.weight.in_features;
                    let term = Term {
                        left: x,
                        depth,
                        right,
                    };
                    Sum {
                        terms: vec![term],
                        bias: layer.bias.and_then(|_| biases.next()),
                    }
                });
                let (sums, cpu) = (sums.collect::<Vec<_>>(), first.engine.cpu());
                rows_times_panels(first.engine, rows, &sums, |piece| finish(cpu, piece));
            })
        })?
    })
}

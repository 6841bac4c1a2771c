//! The linear layer on a GPU: cuBLASLt, and sums of columns for the bias. Shapes are checked by the callers.

use std::sync::Arc;

use candle_core::{DType, Result};

use super::{Activated, Gradient, LinearWeight, Precision, Projection, Reactivated, Share, expect};
use crate::kernels::cuda::{ColumnSums, Epilogue, Factor, Gpu, Product};
use crate::kernels::first_rows::cast;
use crate::kernels::tensor::Tensor;

/// What products read of a weight: itself, or a copy in bf16.
#[derive(Debug)]
pub struct Weight(Tensor);

impl Weight {
    pub fn new(weight: &Tensor, precision: Precision) -> Result<Self> {
        Ok(Self(match precision {
            Precision::F32 => weight.clone(),
            Precision::Bf16 => Tensor::zeros(weight.dims(), DType::BF16, &weight.device())?,
        }))
    }

    /// The copy, if it is one.
    pub fn rounded(&self) -> Option<&Tensor> {
        (self.0.dtype() != DType::F32).then_some(&self.0)
    }

    /// Copies the weight after it has changed.
    pub fn refresh(&self, weight: &Tensor) -> Result<()> {
        self.rounded().map_or(Ok(()), |copy| cast(weight, copy))
    }
}

impl LinearWeight {
    fn on_gpu(&self) -> &Tensor {
        self.gpu.as_ref().map_or(&self.weight, |weight| &weight.0)
    }
}

fn factor(gpu: &Arc<Gpu>, tensor: &Tensor, dtype: DType, transposed: bool) -> Result<Factor> {
    Ok(Factor {
        address: gpu.address(tensor, dtype)?,
        dtype,
        transposed,
    })
}

pub fn forward_all(gpu: &Arc<Gpu>, x: &Tensor, layers: &[Projection<'_>]) -> Result<()> {
    for layer in layers {
        forward(gpu, x, layer)?;
    }
    Ok(())
}

fn forward(gpu: &Arc<Gpu>, x: &Tensor, layer: &Projection<'_>) -> Result<()> {
    let weight = layer.weight.on_gpu();
    let (dtype, rows) = (weight.dtype(), x.dim(0)?);
    let (columns, depth) = (layer.weight.out_features, layer.weight.in_features);
    expect(x, &[rows, depth])?;
    expect(layer.out, &[rows, columns])?;
    let product = Product {
        rows,
        columns,
        depth,
        left: factor(gpu, x, dtype, false)?,
        right: factor(gpu, weight, dtype, true)?,
        out: gpu.address(layer.out, dtype)?,
        out_dtype: dtype,
        epilogue: Epilogue::None,
    };
    let Some(bias) = layer.bias else {
        // SAFETY: the factors and the output are of these sizes, and not one tensor.
        return unsafe { gpu.multiply(&product) };
    };
    expect(bias, &[columns])?;
    // The library adds a bias of the output's type.
    let epilogue = Epilogue::Bias(gpu.address(bias, dtype)?);
    // SAFETY: as above; the bias has a number for each column.
    unsafe {
        gpu.multiply(&Product {
            epilogue,
            ..product
        })
    }
}

pub fn forward_activated(
    gpu: &Arc<Gpu>,
    x: &Tensor,
    weight: &LinearWeight,
    bias: Option<&Tensor>,
    to: &Activated<'_>,
) -> Result<()> {
    let out = to.product();
    forward(gpu, x, &Projection { weight, bias, out })?;
    to.activation.forward(out, to.activated)
}

pub fn backward_input_all(
    gpu: &Arc<Gpu>,
    shares: &[Share<'_>],
    dx: &Tensor,
    accumulate: bool,
) -> Result<()> {
    for (index, share) in shares.iter().enumerate() {
        let weight = share.weight.on_gpu();
        let (dtype, rows) = (weight.dtype(), dx.dim(0)?);
        let (columns, depth) = (share.weight.in_features, share.weight.out_features);
        expect(share.dy, &[rows, depth])?;
        expect(dx, &[rows, columns])?;
        let product = Product {
            rows,
            columns,
            depth,
            left: factor(gpu, share.dy, dtype, false)?,
            right: factor(gpu, weight, dtype, false)?,
            out: gpu.address(dx, dtype)?,
            out_dtype: dtype,
            epilogue: if accumulate || index > 0 {
                Epilogue::Accumulate
            } else {
                Epilogue::None
            },
        };
        // SAFETY: the factors and the output are of these sizes, and not one tensor.
        unsafe { gpu.multiply(&product) }?;
    }
    Ok(())
}

pub fn backward_input_activated(
    gpu: &Arc<Gpu>,
    dy: &Tensor,
    weight: &LinearWeight,
    to: &Reactivated<'_>,
) -> Result<()> {
    backward_input_all(gpu, &[Share { dy, weight }], to.d_inner, false)?;
    to.activation
        .backward_again(gpu, to.inner, to.d_inner, to.activated)
}

pub fn backward_weight_all(gpu: &Arc<Gpu>, layers: &[Gradient<'_>], x: &Tensor) -> Result<()> {
    let (rows, columns) = x.dims2()?;
    let dtype = x.dtype();
    for layer in layers {
        let Gradient { dy, dw, db, .. } = layer;
        let width = dy.dim(1)?;
        expect(dy, &[rows, width])?;
        expect(dw, &[width, columns])?;
        let product = Product {
            rows: width,
            columns,
            depth: rows,
            left: factor(gpu, dy, dtype, true)?,
            right: factor(gpu, x, dtype, false)?,
            out: gpu.address(dw, DType::F32)?,
            out_dtype: DType::F32,
            epilogue: match layer.accumulate {
                true => Epilogue::Accumulate,
                false => Epilogue::None,
            },
        };
        // SAFETY: the factors and the output are of these sizes, and not one tensor.
        unsafe { gpu.multiply(&product) }?;
        if let Some(db) = db {
            expect(db, &[width])?;
            let sums = ColumnSums {
                dtype,
                stride: width,
                rows,
                width,
            };
            let (dy, db) = (gpu.address(dy, dtype)?, gpu.address(db, DType::F32)?);
            gpu.with_scratch(sums.scratch_bytes(), |scratch| {
                // SAFETY: `dy` is [rows, width], `db` [width].
                unsafe { sums.add(gpu, dy, scratch, db) }
            })?;
        }
    }
    Ok(())
}

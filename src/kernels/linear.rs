//! `y = x Wᵀ + b` and its gradients. (Stand-in with the agreed signatures, over candle's matmul.)

use candle_core::{Result, Tensor};

use super::view;

/// In what numbers products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    F32,
    Bf16,
}

impl Precision {
    /// Whether this machine multiplies bf16 natively.
    pub fn native_bf16() -> bool {
        false
    }
}

/// A weight [N, K] in the form that products want.
pub struct LinearWeight {
    weight: Tensor,
}

impl LinearWeight {
    pub fn new(weight: &Tensor, _precision: Precision) -> Result<Self> {
        let weight = weight.clone();
        Ok(Self { weight })
    }

    /// Repacks after the weight has changed.
    pub fn refresh(&mut self) -> Result<()> {
        Ok(())
    }
}

fn store(value: &Tensor, out: &Tensor, accumulate: bool) -> Result<()> {
    let value = value.contiguous()?;
    view::read(&value, |value| {
        view::write(out, |out| {
            for (out, value) in out.iter_mut().zip(value) {
                *out = if accumulate { *out + value } else { *value };
            }
            Ok(())
        })
    })?
}

/// `out = x Wᵀ + bias`.
pub fn forward(x: &Tensor, w: &LinearWeight, bias: Option<&Tensor>, out: &Tensor) -> Result<()> {
    let y = x.matmul(&w.weight.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(bias)?,
        None => y,
    };
    store(&y, out, false)
}

/// `dx (+)= dy W`.
pub fn backward_input(dy: &Tensor, w: &LinearWeight, dx: &Tensor, accumulate: bool) -> Result<()> {
    store(&dy.matmul(&w.weight)?, dx, accumulate)
}

/// `dw += dyᵀ x`, `db += Σ dy`.
pub fn backward_weight(
    dy: &Tensor,
    x: &Tensor,
    _precision: Precision,
    dw: &Tensor,
    db: Option<&Tensor>,
) -> Result<()> {
    store(&dy.t()?.matmul(x)?, dw, true)?;
    match db {
        Some(db) => store(&dy.sum(0)?, db, true),
        None => Ok(()),
    }
}

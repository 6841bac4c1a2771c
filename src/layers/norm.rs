//! Layer normalisation with its parameters, alone or behind dropout and a residual.

use candle_core::Result;

use super::{Buffer, Loaded, Parameter, ParameterSource, Parameters};
use crate::kernels::device::Compute;
use crate::kernels::layer_norm::{self, Dropped, LayerNorm, Residual, Saved};
use crate::kernels::tensor::Tensor;

/// `LN(x)` or `LN(residual + dropout(x))`.
pub struct Norm {
    weight: Parameter,
    bias: Parameter,
    eps: f32,
    /// [T, D]
    normalised: Buffer,
    /// [T, 1]
    rstd: Buffer,
    /// [T, D]: the output, which lives until the next forward.
    out: Buffer,
    /// Scratch of the parameter gradients.
    partials: Vec<f32>,
}

impl Norm {
    /// Takes `{name}.weight` and `{name}.bias`, both [width]; the output is of the type that `compute` keeps.
    ///
    /// # Errors
    /// The source's.
    pub fn load<S: ParameterSource>(
        source: &mut S,
        name: &str,
        width: usize,
        eps: f32,
        compute: &Compute,
    ) -> Loaded<Self, S> {
        Ok(Self {
            weight: source.parameter(&format!("{name}.weight"), &[width])?,
            bias: source.parameter(&format!("{name}.bias"), &[width])?,
            eps,
            normalised: Buffer::new(compute, width),
            rstd: Buffer::new(&compute.in_f32(), 1),
            out: Buffer::new(compute, width),
            partials: Vec::new(),
        })
    }

    /// Gives the workspace's memory back.
    pub fn release(&mut self) {
        self.normalised.release();
        self.rstd.release();
        self.out.release();
    }

    /// Exchanges memory with a layer of the same width, but not the outputs; what either saved is lost to it.
    pub fn swap_buffers(&mut self, other: &mut Self) {
        std::mem::swap(&mut self.normalised, &mut other.normalised);
        std::mem::swap(&mut self.rstd, &mut other.rstd);
    }

    /// [T, D], in the layer's own buffer.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&mut self, x: &Tensor, residual: Option<&Residual>) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let (normalised, rstd) = (self.normalised.rows(rows)?, self.rstd.rows(rows)?);
        let saved = Saved {
            normalised: &normalised,
            rstd: &rstd,
        };
        let norm = LayerNorm {
            gamma: &self.weight.value,
            beta: &self.bias.value,
            eps: self.eps,
        };
        let out = self.out.rows(rows)?;
        layer_norm::forward(&norm, x, residual, &saved, &out)?;
        Ok(out)
    }

    /// Adds to the parameter gradients; overwrites `d_sum` with the gradient of the residual (or of `x`),
    /// and `dropped.d_x` with that of `x`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn backward(
        &mut self,
        d_out: &Tensor,
        d_sum: &Tensor,
        dropped: Option<&Dropped>,
    ) -> Result<()> {
        let rows = d_out.dim(0)?;
        let (normalised, rstd) = (self.normalised.rows(rows)?, self.rstd.rows(rows)?);
        let saved = Saved {
            normalised: &normalised,
            rstd: &rstd,
        };
        layer_norm::backward(
            &self.weight.value,
            &saved,
            d_out,
            dropped,
            d_sum,
            &self.weight.grad,
            &self.bias.grad,
            &mut self.partials,
        )
    }

    /// Appends weight and bias.
    pub fn parameters(&self, into: &mut Parameters) {
        into.extend([self.weight.clone(), self.bias.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;
    use candle_nn::{LayerNorm, Module};

    use crate::layers::testing::noise_rows;

    /// Why this module exists, and what the trainer's gradient gate must catch: candle's own layer runs a
    /// fused op without a backward, so neither its variables nor anything before it gets a gradient, and no
    /// error says so.
    #[test]
    fn the_stock_layer_norm_drops_gradients_silently() {
        let var = |x: f32| {
            Var::from_tensor(&candle_core::Tensor::full(x, 6, &candle_core::Device::Cpu).unwrap())
                .unwrap()
        };
        let (weight, bias, scale) = (var(1.0), var(0.0), var(0.5));
        let x = noise_rows("x", 3, 6)
            .to_candle()
            .unwrap()
            .broadcast_mul(&scale)
            .unwrap();
        let stock = LayerNorm::new(weight.as_tensor().clone(), bias.as_tensor().clone(), 1e-5);
        let grads = stock
            .forward(&x)
            .unwrap()
            .sqr()
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap();
        for dropped in [&weight, &bias, &scale] {
            assert!(grads.get(dropped).is_none());
        }
        let slow = candle_nn::ops::layer_norm_slow(&x, &weight, &bias, 1e-5).unwrap();
        let grads = slow.sqr().unwrap().sum_all().unwrap().backward().unwrap();
        for kept in [&weight, &bias, &scale] {
            assert!(grads.get(kept).is_some());
        }
    }
}

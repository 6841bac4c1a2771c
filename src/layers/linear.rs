//! A dense layer: weight and bias.

use candle_core::{Result, Tensor};

use super::{Loaded, Parameter, ParameterSource, Parameters};
use crate::kernels::linear::{self, LinearWeight, Precision};

/// `y = x Wᵀ + b`, W [N, K].
pub struct Linear {
    weight: Parameter,
    bias: Parameter,
    /// `weight` in the form that products want.
    packed: LinearWeight,
    precision: Precision,
}

impl Linear {
    /// Takes `{name}.weight` [outputs, inputs] and `{name}.bias` [outputs].
    ///
    /// # Errors
    /// The source's.
    pub fn load<S: ParameterSource>(
        source: &mut S,
        name: &str,
        outputs: usize,
        inputs: usize,
        precision: Precision,
    ) -> Loaded<Self, S> {
        let weight = source.parameter(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = source.parameter(&format!("{name}.bias"), &[outputs])?;
        let packed = LinearWeight::new(&weight.value, precision)?;
        Ok(Self {
            weight,
            bias,
            packed,
            precision,
        })
    }

    /// `out` [T, N] from `x` [T, K].
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, x: &Tensor, out: &Tensor) -> Result<()> {
        linear::forward(x, &self.packed, Some(&self.bias.value), out)
    }

    /// Adds to the parameter gradients, and writes (or adds) the gradient of `x` to `d_x`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn backward(
        &self,
        d_out: &Tensor,
        x: &Tensor,
        d_x: &Tensor,
        accumulate: bool,
    ) -> Result<()> {
        let (d_weight, d_bias) = (&self.weight.grad, &self.bias.grad);
        linear::backward_weight(d_out, x, self.precision, d_weight, Some(d_bias))?;
        linear::backward_input(d_out, &self.packed, d_x, accumulate)
    }

    /// Repacks the weight after it has changed.
    ///
    /// # Errors
    /// If the weight is no longer what it was packed from.
    pub fn weights_changed(&mut self) -> Result<()> {
        self.packed.refresh()
    }

    /// Appends weight and bias.
    pub fn parameters(&self, into: &mut Parameters) {
        into.extend([self.weight.clone(), self.bias.clone()]);
    }
}

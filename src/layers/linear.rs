//! A dense layer: weight and bias.

use candle_core::Result;

use super::{Loaded, Parameter, ParameterSource, Parameters, Stale};
use crate::kernels::activation::Activation;
use crate::kernels::device::Compute;
use crate::kernels::first_rows;
use crate::kernels::linear::{
    self, Activated, Gradient, LinearWeight, Precision, Projection, Reactivated, Share,
};
use crate::kernels::tensor::Tensor;

/// `y = x Wᵀ + b`, W [N, K].
pub struct Linear {
    weight: Parameter,
    bias: Parameter,
    /// `weight`, as products want it.
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
        compute: &Compute,
    ) -> Loaded<Self, S> {
        let mut weight = source.parameter(&format!("{name}.weight"), &[outputs, inputs])?;
        let mut bias = source.parameter(&format!("{name}.bias"), &[outputs])?;
        let packed = LinearWeight::new(&weight.value, compute.precision)?;
        weight.rounded = packed.rounded().cloned();
        weight.stale = Some(Stale::default());
        let dtype = compute.storage();
        if compute.device.gpu().is_some() && dtype != bias.value.dtype() {
            bias.rounded = Some(Tensor::zeros(outputs, dtype, &compute.device)?);
        }
        let this = Self {
            weight,
            bias,
            packed,
            precision: compute.precision,
        };
        this.refresh_bias()?;
        Ok(this)
    }

    /// What products add.
    fn bias(&self) -> &Tensor {
        self.bias.rounded.as_ref().unwrap_or(&self.bias.value)
    }

    fn refresh_bias(&self) -> Result<()> {
        match &self.bias.rounded {
            Some(rounded) => first_rows::cast(&self.bias.value, rounded),
            None => Ok(()),
        }
    }

    /// `out` [T, N] from `x` [T, K].
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(&self, x: &Tensor, out: &Tensor) -> Result<()> {
        linear::forward(x, &self.packed, Some(self.bias()), out)
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
        Self::backward_all(&[(self, d_out)], x, d_x, accumulate)
    }

    /// `inner` from `x`, if it is wanted, and `activated` = f(`inner`), all of them rows.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward_activated(
        &self,
        x: &Tensor,
        activation: Activation,
        inner: Option<&Tensor>,
        activated: &Tensor,
    ) -> Result<()> {
        let to = Activated {
            activation,
            inner,
            activated,
        };
        linear::forward_activated(x, &self.packed, Some(self.bias()), &to)
    }

    /// As [`Self::backward`] for the input f(`inner`), which is written again, and down to the gradient of `inner`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn backward_activated(&self, d_out: &Tensor, to: &Reactivated<'_>) -> Result<()> {
        linear::backward_input_activated(d_out, &self.packed, to)?;
        linear::backward_weight_all(&[self.gradient(d_out)], to.activated, self.precision)
    }

    /// Several layers of one input `x` [T, K], each with its output.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward_all(layers: &[(&Self, &Tensor)], x: &Tensor) -> Result<()> {
        let projections = layers.iter().map(|&(layer, out)| Projection {
            weight: &layer.packed,
            bias: Some(layer.bias()),
            out,
        });
        linear::forward_all(x, &projections.collect::<Vec<_>>())
    }

    /// As [`Self::backward`] for several layers of one input and one precision, each with the gradient of
    /// its output.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn backward_all(
        layers: &[(&Self, &Tensor)],
        x: &Tensor,
        d_x: &Tensor,
        accumulate: bool,
    ) -> Result<()> {
        let precision = layers
            .first()
            .map_or(Precision::F32, |(layer, _)| layer.precision);
        let gradients = layers.iter().map(|&(layer, d_out)| layer.gradient(d_out));
        linear::backward_weight_all(&gradients.collect::<Vec<_>>(), x, precision)?;
        let shares = layers.iter().map(|&(layer, dy)| Share {
            dy,
            weight: &layer.packed,
        });
        linear::backward_input_all(&shares.collect::<Vec<_>>(), d_x, accumulate)
    }

    /// To be used: a stale gradient is then taken to be overwritten.
    fn gradient<'a>(&'a self, dy: &'a Tensor) -> Gradient<'a> {
        Gradient {
            dy,
            accumulate: !self.weight.stale.iter().any(Stale::take),
            dw: &self.weight.grad,
            db: Some(&self.bias.grad),
        }
    }

    /// Copies what a GPU reads in bf16, after anything but the optimizer wrote to the parameters.
    ///
    /// # Errors
    /// If the GPU fails.
    pub fn weights_changed(&self) -> Result<()> {
        self.refresh_bias()?;
        self.packed.refresh()
    }

    /// Appends weight and bias.
    pub fn parameters(&self, into: &mut Parameters) {
        into.extend([self.weight.clone(), self.bias.clone()]);
    }
}

//! Two dense layers with an activation between (HF `BertIntermediate` and the dense half of `BertOutput`).

use candle_core::Result;

use super::{
    Buffer, EncoderLayerShape, Linear, Loaded, Names, ParameterSource, Parameters, Workspace,
};
use crate::kernels::activation::Activation;
use crate::kernels::device::Compute;
use crate::kernels::linear::Reactivated;
use crate::kernels::tensor::Tensor;

/// `output(activation(intermediate(x)))`.
pub struct FeedForward {
    intermediate: Linear,
    output: Linear,
    activation: Activation,
    /// [T, I]: before the activation, for the backward pass. What is behind it all layers keep in the workspace, one after
    /// the other.
    inner: Buffer,
}

impl FeedForward {
    /// Takes both dense layers.
    ///
    /// # Errors
    /// The source's.
    pub fn load<S: ParameterSource>(
        source: &mut S,
        names: &Names,
        shape: &EncoderLayerShape,
        compute: &Compute,
    ) -> Loaded<Self, S> {
        let (d, i) = (shape.hidden_size, shape.intermediate_size);
        Ok(Self {
            intermediate: Linear::load(source, &names.intermediate, i, d, compute)?,
            output: Linear::load(source, &names.output, d, i, compute)?,
            activation: shape.activation,
            inner: Buffer::new(compute, i),
        })
    }

    /// Gives the workspace's memory back.
    pub fn release(&mut self) {
        self.inner.release();
    }

    /// `out` [T, D] from `x` [T, D]. A backward may follow if `keep`.
    ///
    /// # Errors
    /// If shapes do not fit.
    pub fn forward(
        &mut self,
        x: &Tensor,
        out: &Tensor,
        keep: bool,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let rows = x.dim(0)?;
        let inner = keep.then(|| self.inner.rows(rows)).transpose()?;
        let activated = workspace.activated.rows(rows)?;
        self.intermediate
            .forward_activated(x, self.activation, inner.as_ref(), &activated)?;
        self.output.forward(&activated, out)
    }

    /// Adds to the parameter gradients and to `d_x`.
    ///
    /// # Errors
    /// If shapes do not fit the last forward's.
    pub fn backward(
        &mut self,
        d_out: &Tensor,
        x: &Tensor,
        d_x: &Tensor,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let rows = x.dim(0)?;
        let (inner, activated) = (self.inner.rows(rows)?, workspace.activated.rows(rows)?);
        let d_inner = workspace.d_intermediate.rows(rows)?;
        let to = Reactivated {
            activation: self.activation,
            inner: &inner,
            activated: &activated,
            d_inner: &d_inner,
        };
        self.output.backward_activated(d_out, &to)?;
        self.intermediate.backward(&d_inner, x, d_x, true)
    }

    /// To be called after anything but the optimizer wrote to the parameters.
    ///
    /// # Errors
    /// As [`Linear::weights_changed`].
    pub fn weights_changed(&self) -> Result<()> {
        self.intermediate.weights_changed()?;
        self.output.weights_changed()
    }

    /// Appends intermediate, output.
    pub fn parameters(&self, into: &mut Parameters) {
        self.intermediate.parameters(into);
        self.output.parameters(into);
    }
}

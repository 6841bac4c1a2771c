//! Ordered named parameters. The order is the model's own (embeddings first, head last), never a map's, so
//! that every sum over parameters has one fixed order.

use candle_core::Tensor;

/// One trainable tensor with its gradient; both f32, contiguous, of one shape, and alive for as long as the
/// model is. Cloning shares the storage.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Hugging Face's name of the tensor, such as `bert.encoder.layer.0.attention.self.query.weight`.
    pub name: String,
    /// The f32 master copy.
    pub value: Tensor,
    /// Sum of gradients since it was last zeroed.
    pub grad: Tensor,
}

impl Parameter {
    /// A parameter with a zero gradient.
    ///
    /// # Errors
    /// If the gradient cannot be allocated.
    pub fn new(name: impl Into<String>, value: Tensor) -> candle_core::Result<Self> {
        let grad = value.zeros_like()?;
        Ok(Self {
            name: name.into(),
            value,
            grad,
        })
    }
}

/// Where layers take their parameters from: a checkpoint, or fresh values.
pub trait ParameterSource {
    /// Why a parameter cannot be had.
    type Error: From<candle_core::Error>;

    /// The parameter of this Hugging Face name, which must have this shape.
    ///
    /// # Errors
    /// If there is none, or it has another shape.
    fn parameter(&mut self, name: &str, shape: &[usize]) -> Result<Parameter, Self::Error>;
}

/// A layer, or why its source could not give it.
pub type Loaded<T, S> = Result<T, <S as ParameterSource>::Error>;

/// All parameters of a model, in order.
#[derive(Clone, Debug, Default)]
pub struct Parameters(Vec<Parameter>);

impl Parameters {
    /// Appends one.
    pub fn push(&mut self, parameter: Parameter) {
        self.0.push(parameter);
    }

    /// In order.
    pub fn iter(&self) -> std::slice::Iter<'_, Parameter> {
        self.0.iter()
    }

    /// How many tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers in all.
    pub fn element_count(&self) -> usize {
        self.iter().map(|p| p.value.elem_count()).sum()
    }

    /// Sets every gradient to zero.
    ///
    /// # Errors
    /// If a gradient is not an f32 tensor on the CPU.
    pub fn zero_grad(&self) -> candle_core::Result<()> {
        let _op = crate::kernels::profile::op("zero gradients", 0, 4 * self.element_count());
        for parameter in self.iter() {
            crate::kernels::view::write(&parameter.grad, |g| {
                g.fill(0.0);
                Ok(())
            })?;
        }
        Ok(())
    }
}

impl<'a> IntoIterator for &'a Parameters {
    type Item = &'a Parameter;
    type IntoIter = std::slice::Iter<'a, Parameter>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Extend<Parameter> for Parameters {
    fn extend<I: IntoIterator<Item = Parameter>>(&mut self, parameters: I) {
        self.0.extend(parameters);
    }
}

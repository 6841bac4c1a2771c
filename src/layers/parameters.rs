//! Ordered named parameters. The order is the model's own (embeddings first, head last), never a map's, so
//! that every sum over parameters has one fixed order.

use candle_core::Result;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use super::TouchedRows;
use crate::kernels::cuda::{Gpu, Table};
use crate::kernels::parts::Parts;
use crate::kernels::tensor::Tensor;
use crate::kernels::{gradient, view};

/// One trainable tensor with its gradient; both f32, contiguous, of one shape, and alive for as long as the
/// model is. Cloning shares the storage.
#[derive(Clone, Debug)]
pub struct Parameter {
    /// Hugging Face's name of the tensor, such as `bert.encoder.layer.0.attention.self.query.weight`.
    pub name: String,
    /// The f32 master copy.
    pub value: Tensor,
    /// Sum of gradients since it was last zeroed. Call [`Self::settle`] before reading it where no backward may have come
    /// since.
    pub grad: Tensor,
    /// On a GPU that computes in bf16: a copy of the value that its products read. The optimizer writes it with the
    /// value; who writes the value otherwise calls the layer's `weights_changed`.
    pub rounded: Option<Tensor>,
    /// For tables: which rows of the gradient may be other than zero. `None` is all.
    pub rows: Option<TouchedRows>,
    /// For weights whose layer overwrites a stale gradient: whether this one is.
    pub stale: Option<Stale>,
}

/// Whether a gradient counts as zero, whatever its memory holds from the step before. It is overwritten by the next one that
/// the layer computes: nobody has to write zeros, and read them again to add to them. Clones share the mark, as clones of a
/// parameter share its gradient.
#[derive(Clone, Debug, Default)]
pub struct Stale(Arc<AtomicBool>);

impl Stale {
    /// Whether it is; the caller overwrites the gradient.
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }

    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Parameter {
    /// A parameter with a zero gradient.
    ///
    /// # Errors
    /// If the gradient cannot be allocated.
    pub fn new(name: impl Into<String>, value: Tensor) -> Result<Self> {
        let grad = value.zeros_like()?;
        Ok(Self {
            name: name.into(),
            value,
            grad,
            rounded: None,
            rows: None,
            stale: None,
        })
    }

    /// A table, whose layer marks the rows that it adds gradients to.
    ///
    /// # Errors
    /// If the gradient cannot be allocated.
    pub fn by_rows(self) -> Result<Self> {
        Ok(Self {
            grad: self.value.vacant_like()?,
            rows: Some(TouchedRows::default()),
            ..self
        })
    }

    /// Sets the gradient to zero, or leaves that to the next backward.
    ///
    /// # Errors
    /// If it is not an f32 tensor on the CPU.
    fn zero_grad(&self) -> Result<()> {
        match &self.stale {
            Some(stale) => stale.set(),
            None => self.write_zeros()?,
        }
        Ok(())
    }

    /// Writes the zeros that a stale gradient counts as.
    ///
    /// # Errors
    /// If it is not an f32 tensor on the CPU.
    pub fn settle(&self) -> Result<()> {
        match &self.stale {
            Some(stale) if stale.take() => self.write_zeros(),
            _ => Ok(()),
        }
    }

    fn write_zeros(&self) -> Result<()> {
        self.with_touched(|parts| view::write(&self.grad, |grad| gradient::zero(grad, parts)))?;
        self.rows.iter().for_each(TouchedRows::clear);
        Ok(())
    }

    /// The sum of the squares of the gradient's elements.
    ///
    /// # Errors
    /// If it is not an f32 tensor on the CPU.
    fn grad_sum_of_squares(&self) -> Result<f64> {
        self.settle()?;
        self.with_touched(|parts| {
            view::read(&self.grad, |grad| gradient::sum_of_squares(grad, parts))?
        })
    }

    /// Calls `f` with the parts of the gradient that may be other than zero.
    fn with_touched<R>(&self, f: impl FnOnce(Parts) -> Result<R>) -> Result<R> {
        match &self.rows {
            None => f(Parts::All),
            Some(touched) => f(Parts::Rows {
                rows: &touched.to_vec(),
                width: self.row_width(),
            }),
        }
    }

    /// Elements of a row.
    pub fn row_width(&self) -> usize {
        self.value.dims().iter().skip(1).product()
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
    fn parameter(
        &mut self,
        name: &str,
        shape: &[usize],
    ) -> std::result::Result<Parameter, Self::Error>;
}

/// A layer, or why its source could not give it.
pub type Loaded<T, S> = std::result::Result<T, <S as ParameterSource>::Error>;

/// All parameters of a model, in order.
#[derive(Clone, Debug, Default)]
pub struct Parameters {
    list: Vec<Parameter>,
    /// On a GPU: all gradients, for one launch.
    table: OnceLock<Arc<Table>>,
}

impl Parameters {
    /// Appends one.
    pub fn push(&mut self, parameter: Parameter) {
        self.list.push(parameter);
        self.table = OnceLock::new();
    }

    /// In order.
    pub fn iter(&self) -> std::slice::Iter<'_, Parameter> {
        self.list.iter()
    }

    /// How many tensors.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many numbers in all.
    pub fn element_count(&self) -> usize {
        self.iter().map(|p| p.value.elem_count()).sum()
    }

    /// Sets every gradient to zero.
    ///
    /// # Errors
    /// If a gradient is not an f32 tensor, or the GPU fails.
    pub fn zero_grad(&self) -> Result<()> {
        let Some(table) = self.table()? else {
            return self.iter().try_for_each(Parameter::zero_grad);
        };
        self.iter()
            .filter_map(|p| p.rows.as_ref())
            .for_each(TouchedRows::clear);
        gradient::cuda::zero(table)
    }

    /// The sum of the squares of each gradient's elements.
    ///
    /// # Errors
    /// If a gradient is not an f32 tensor, or the GPU fails.
    pub fn grad_sums_of_squares(&self) -> Result<Vec<f64>> {
        match self.table()? {
            None => self.iter().map(Parameter::grad_sum_of_squares).collect(),
            Some(table) => gradient::cuda::sums_of_squares(table),
        }
    }

    /// The GPU that they are on, if they are on one.
    pub fn gpu(&self) -> Option<&Arc<Gpu>> {
        self.list.first().and_then(|p| p.value.gpu())
    }

    /// All gradients, if they are on a GPU.
    ///
    /// # Errors
    /// If one is not an f32 tensor, or memory is short.
    pub fn table(&self) -> Result<Option<&Table>> {
        let Some(gpu) = self.gpu() else {
            return Ok(None);
        };
        if self.table.get().is_none() {
            let gradients = self.iter().map(|p| ([p.grad.clone()], []));
            let table = Arc::new(Table::new(gpu, gradients)?);
            // Another thread's is the same.
            let _ = self.table.set(table);
        }
        Ok(self.table.get().map(AsRef::as_ref))
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
        self.list.extend(parameters);
        self.table = OnceLock::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::device::Device;

    #[test]
    fn a_stale_gradient_counts_as_zero_until_it_is_overwritten() {
        let value = Tensor::from_vec(vec![1f32, 2.0], 2, &Device::Cpu).unwrap();
        let mut weight = Parameter::new("weight", value).unwrap();
        weight.stale = Some(Stale::default());
        let parameters = Parameters {
            list: vec![weight.clone()],
            ..Parameters::default()
        };
        let write = |numbers: [f32; 2]| {
            view::write(&weight.grad, |grad| {
                grad.copy_from_slice(&numbers);
                Ok(())
            })
            .unwrap();
        };
        let norm = || parameters.grad_sums_of_squares().unwrap()[0];
        write([3.0, 4.0]);
        assert_eq!(norm(), 25.0);

        parameters.zero_grad().unwrap();
        // As the layer does.
        assert!(weight.stale.iter().all(Stale::take));
        write([6.0, 8.0]);
        assert_eq!(norm(), 100.0);

        // No backward came.
        parameters.zero_grad().unwrap();
        assert_eq!(norm(), 0.0);
        assert_eq!(weight.grad.to_vec1::<f32>().unwrap(), [0.0, 0.0]);
        assert!(!weight.stale.iter().any(Stale::take));
    }
}

//! AdamW over a model's parameters, with HF's no-decay rule and state that is saved by name.

use std::collections::HashMap;

use candle_core::{DType, Result, bail};

use crate::kernels::adamw::{self, AdamWUpdate};
use crate::kernels::cuda::Table;
use crate::kernels::device::Device;
use crate::kernels::parts::Parts;
use crate::kernels::tensor::Tensor;
use crate::kernels::view;
use crate::layers::{Parameter, Parameters, RowSet};

use super::clip::GradScale;
use super::param_groups::decays;

/// HF's `adam_beta1`, `adam_beta2`, `adam_epsilon` and `weight_decay`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// First-moment decay, in [0, 1).
    pub beta1: f64,
    /// Second-moment decay, in [0, 1).
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Decoupled weight decay of the parameters that [`decays`] names.
    pub weight_decay: f64,
}

/// Why a saved state does not fit the model.
#[derive(Debug, thiserror::Error)]
pub enum OptimizerStateError {
    /// A parameter's moment is not there.
    #[error("optimizer state has no `{0}`")]
    Missing(String),
    /// A tensor belongs to no parameter.
    #[error("optimizer state has `{0}`, which no parameter of the model needs")]
    Unexpected(String),
    /// A moment has another shape or type than its parameter.
    #[error("optimizer state `{name}` is {found}, expected {expected}")]
    Mismatch {
        /// Its name.
        name: String,
        /// Type and shape it has.
        found: String,
        /// Type and shape it should have.
        expected: String,
    },
    /// candle failed.
    #[error("optimizer state cannot be copied")]
    Candle(#[from] candle_core::Error),
}

/// The optimizer: shares the parameters' storage, owns their moments.
#[derive(Debug)]
pub struct AdamW {
    slots: Vec<Slot>,
    /// On a GPU: all of them, for one launch.
    table: Option<Table>,
    options: AdamWOptions,
    step: u64,
}

#[derive(Debug)]
struct Slot {
    parameter: Parameter,
    decays: bool,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    /// Of a table without decay: the rows that ever had a gradient. The others' moments are zero, so updates
    /// leave them as they are.
    alive: Option<RowSet>,
}

impl AdamW {
    /// An optimizer that has taken no step. Allocates two f32 tensors per parameter.
    ///
    /// # Errors
    /// If a parameter is not an f32 tensor, or memory is short.
    pub fn new(parameters: &Parameters, options: AdamWOptions) -> Result<Self> {
        let slot = |parameter: &Parameter| {
            if parameter.value.dtype() != DType::F32 {
                bail!("parameter `{}` is not f32", parameter.name)
            }
            let decays = decays(&parameter.name);
            let on_cpu = parameter.value.gpu().is_none();
            let sparse =
                on_cpu && parameter.rows.is_some() && (!decays || options.weight_decay == 0.0);
            let moment = || match sparse {
                true => parameter.value.vacant_like(),
                false => parameter.value.zeros_like(),
            };
            Ok(Slot {
                decays,
                alive: sparse.then(RowSet::default),
                exp_avg: moment()?,
                exp_avg_sq: moment()?,
                parameter: parameter.clone(),
            })
        };
        let slots = parameters.iter().map(slot).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            table: table(&slots)?,
            slots,
            options,
            step: 0,
        })
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Updates every parameter with its gradient, scaled as clipping wants it, at learning rate `lr`. The gradients
    /// stay as they are. On a GPU rounded copies of the parameters are written along.
    ///
    /// # Errors
    /// If a tensor is not contiguous f32, or the GPU fails.
    pub fn step(&mut self, lr: f64, scale: impl Into<GradScale>) -> Result<()> {
        self.step += 1;
        let o = self.options;
        let (grad_scale, gate) = match scale.into() {
            GradScale::Known(scale) => (scale, None),
            GradScale::OnGpu(gate) => (1.0, Some(gate)),
        };
        let update = |weight_decay| {
            AdamWUpdate::new(
                self.step,
                lr,
                weight_decay,
                (o.beta1, o.beta2),
                o.epsilon,
                grad_scale,
            )
        };
        let (with_decay, without) = (update(o.weight_decay), update(0.0));
        if let Some(table) = &self.table {
            return adamw::cuda::adamw(table, with_decay, gate.as_ref());
        }
        if gate.is_some() {
            bail!("parameters on the host cannot be scaled by a GPU's number")
        }
        // From the last to the first: the last gradients were read last, for their norm, and the next forward pass begins
        // with the first weights. So more of both is still in the cache.
        for slot in self.slots.iter_mut().rev() {
            slot.apply(if slot.decays { &with_decay } else { &without })?;
        }
        Ok(())
    }

    /// The steps taken and every moment, named `<parameter>.exp_avg` and `<parameter>.exp_avg_sq`, in the model's
    /// order. The tensors share the optimizer's storage: the next step changes them.
    pub fn state(&self) -> (u64, Vec<(String, Tensor)>) {
        let moments = self
            .slots
            .iter()
            .flat_map(|slot| {
                let (first, second) = slot.names();
                [
                    (first, slot.exp_avg.clone()),
                    (second, slot.exp_avg_sq.clone()),
                ]
            })
            .collect();
        (self.step, moments)
    }

    /// Takes over a saved state; copies the tensors. Changes nothing if it fails.
    ///
    /// # Errors
    /// If a moment is missing, left over, or of another shape or type.
    pub fn load_state(
        &mut self,
        step: u64,
        mut moments: HashMap<String, Tensor>,
    ) -> std::result::Result<(), OptimizerStateError> {
        let mut loaded = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let (first, second) = slot.names();
            let exp_avg = take(&mut moments, first, &slot.exp_avg)?;
            let exp_avg_sq = take(&mut moments, second, &slot.exp_avg_sq)?;
            loaded.push(if slot.alive.is_some() {
                let width = slot.parameter.row_width();
                let alive = alive_rows(&exp_avg, &exp_avg_sq, width)?;
                let rows = alive.to_vec();
                let [exp_avg, exp_avg_sq] =
                    [&exp_avg, &exp_avg_sq].map(|moment| only_rows(moment, &rows, width));
                (exp_avg?, exp_avg_sq?, Some(alive))
            } else {
                (exp_avg, exp_avg_sq, None)
            });
        }
        if let Some(name) = moments.into_keys().min() {
            return Err(OptimizerStateError::Unexpected(name));
        }
        for (slot, (exp_avg, exp_avg_sq, alive)) in self.slots.iter_mut().zip(loaded) {
            slot.exp_avg = exp_avg;
            slot.exp_avg_sq = exp_avg_sq;
            slot.alive = alive;
        }
        self.table = table(&self.slots)?;
        self.step = step;
        Ok(())
    }
}

/// What one launch updates, if the slots are on a GPU. To be made anew when a slot gets other tensors.
fn table(slots: &[Slot]) -> Result<Option<Table>> {
    let device = slots.first().map(|slot| slot.exp_avg.device());
    let Some(Device::Gpu(gpu)) = device else {
        return Ok(None);
    };
    let group = |slot: &Slot| {
        let (value, grad) = (&slot.parameter.value, &slot.parameter.grad);
        let tensors = [value, grad, &slot.exp_avg, &slot.exp_avg_sq];
        let rounded = match &slot.parameter.rounded {
            Some(rounded) => gpu.address(rounded, DType::BF16)?.word(),
            None => 0,
        };
        Ok((tensors.map(Clone::clone), [u64::from(slot.decays), rounded]))
    };
    let groups = slots.iter().map(group).collect::<Result<Vec<_>>>()?;
    Table::new(&gpu, groups).map(Some)
}

impl Slot {
    fn names(&self) -> (String, String) {
        let name = &self.parameter.name;
        (format!("{name}.exp_avg"), format!("{name}.exp_avg_sq"))
    }

    fn apply(&mut self, update: &AdamWUpdate) -> Result<()> {
        if let (Some(alive), Some(touched)) = (&mut self.alive, &self.parameter.rows) {
            touched.add_to(alive);
        }
        let rows = self.alive.as_ref().map(RowSet::to_vec);
        let parts = rows.as_ref().map_or(Parts::All, |rows| Parts::Rows {
            rows,
            width: self.parameter.row_width(),
        });
        self.parameter.settle()?;
        view::read(&self.parameter.grad, |grad| {
            view::write(&self.exp_avg, |m| {
                view::write(&self.exp_avg_sq, |v| {
                    view::write(&self.parameter.value, |value| {
                        adamw::adamw(update, parts, value, grad, m, v)
                    })
                })
            })
        })?
    }
}

/// The rows of which any moment is other than zero, by its bits: an update turns -0 into 0.
fn alive_rows(exp_avg: &Tensor, exp_avg_sq: &Tensor, width: usize) -> Result<RowSet> {
    let alive = |row: &[f32]| row.iter().any(|x| x.to_bits() != 0);
    view::read_list(&[exp_avg, exp_avg_sq], |moments| {
        let rows = moments
            .iter()
            .flat_map(|moment| (0..).zip(moment.chunks(width.max(1))));
        rows.filter(|(_, row)| alive(row))
            .map(|(index, _)| index)
            .collect()
    })
}

/// The same numbers, where all other rows are zeros: these take no room.
fn only_rows(moment: &Tensor, rows: &[u32], width: usize) -> Result<Tensor> {
    let to = moment.vacant_like()?;
    view::read(moment, |from| {
        view::write(&to, |to| {
            for &row in rows {
                let place = row as usize * width..(row as usize + 1) * width;
                to[place.clone()].copy_from_slice(&from[place]);
            }
            Ok(())
        })
    })??;
    Ok(to)
}

/// A copy of the tensor called `name`, which must be like `like`.
fn take(
    moments: &mut HashMap<String, Tensor>,
    name: String,
    like: &Tensor,
) -> std::result::Result<Tensor, OptimizerStateError> {
    let Some(moment) = moments.remove(&name) else {
        return Err(OptimizerStateError::Missing(name));
    };
    if moment.dims() != like.dims() || moment.dtype() != like.dtype() {
        let describe = |tensor: &Tensor| format!("{:?} {:?}", tensor.dtype(), tensor.dims());
        return Err(OptimizerStateError::Mismatch {
            name,
            found: describe(&moment),
            expected: describe(like),
        });
    }
    Ok(moment.copy()?.to_device(&like.device())?)
}

#[cfg(test)]
mod row_tests;
#[cfg(test)]
mod tests;

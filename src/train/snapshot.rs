//! A copy of everything a checkpoint holds, taken between two steps, so that training goes on while it is
//! written. The copy's memory is used again by the next one.

use crate::kernels::tensor::Tensor;

use crate::domain::{ErrorCode, JobError};
use crate::kernels::view;

use super::state::TrainerState;
use super::step::{Learner, engine};

/// Weights, moments and counters of one moment.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The model's parameters, in its order.
    pub weights: Vec<Saved>,
    /// AdamW's moments; stale unless `resumable`.
    pub moments: Vec<Saved>,
    /// Updates AdamW has made.
    pub optimizer_step: u64,
    /// The trainer's counters.
    pub state: TrainerState,
    /// Whether training can go on from it: else the moments are left out.
    pub resumable: bool,
}

/// One f32 tensor.
#[derive(Debug)]
pub struct Saved {
    /// Its name in the file.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements.
    pub values: Vec<f32>,
}

impl Snapshot {
    /// Copies the learner as it is now.
    ///
    /// # Errors
    /// `non_finite_loss` if a number is NaN or infinite (a finite gradient can still overflow a weight):
    /// no checkpoint ever holds one. `out_of_memory` if there is no room for the copy.
    pub fn take(
        &mut self,
        learner: &Learner,
        state: &TrainerState,
        resumable: bool,
    ) -> Result<(), JobError> {
        self.state.clone_from(state);
        self.resumable = resumable;
        let weights = learner.model.parameters().iter();
        copy(
            &mut self.weights,
            weights.map(|p| (p.name.as_str(), &p.value)),
        )
        .map_err(|error| at_step(error, state.global_step))?;
        let (optimizer_step, moments) = learner.optimizer.state();
        self.optimizer_step = optimizer_step;
        if resumable {
            let moments = moments.iter().map(|(name, tensor)| (name.as_str(), tensor));
            copy(&mut self.moments, moments).map_err(|error| at_step(error, state.global_step))?;
        }
        Ok(())
    }

    /// Bytes of all tensors that will be written.
    pub fn tensor_bytes(&self) -> u64 {
        let moments: &[Saved] = if self.resumable { &self.moments } else { &[] };
        let tensors = self.weights.iter().chain(moments);
        tensors.map(|t| 4 * t.values.len() as u64).sum()
    }
}

fn at_step(mut error: JobError, step: u64) -> JobError {
    if error.code == ErrorCode::NonFiniteLoss {
        error.message = format!(
            "after step {step} {}; no checkpoint was taken",
            error.message
        );
    }
    error
}

/// Copies tensors over what `into` holds, which after the first time has just their room.
fn copy<'a>(
    into: &mut Vec<Saved>,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
) -> Result<(), JobError> {
    let mut count = 0;
    for (index, (name, tensor)) in tensors.enumerate() {
        if into.get(index).is_none_or(|saved| saved.name != name) {
            into.truncate(index);
            into.push(Saved::empty(name, tensor)?);
        }
        let saved = &mut into[index];
        let finite = view::read(tensor, |x| {
            saved.values.clear();
            saved.values.extend_from_slice(x);
            all_finite(x)
        });
        if !finite.map_err(engine)? {
            return Err(JobError::new(
                ErrorCode::NonFiniteLoss,
                format!("`{name}` is no longer finite"),
            )
            .at("/training_args/learning_rate")
            .hint("training has diverged: lower the learning rate or add warm-up"));
        }
        count = index + 1;
    }
    into.truncate(count);
    Ok(())
}

impl Saved {
    fn empty(name: &str, tensor: &Tensor) -> Result<Self, JobError> {
        let mut values = Vec::new();
        values.try_reserve_exact(tensor.elem_count()).map_err(|_| {
            JobError::new(
                ErrorCode::OutOfMemory,
                "there is no memory for the copy of the weights that a checkpoint is written from",
            )
        })?;
        Ok(Self {
            name: name.to_owned(),
            shape: tensor.dims().to_vec(),
            values,
        })
    }
}

/// Whether no element is NaN or infinite; without branches, as fast as memory is read.
fn all_finite(x: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7f80_0000;
    let bad = |acc: u32, v: &f32| acc | u32::from(v.to_bits() & EXPONENT == EXPONENT);
    x.iter().fold(0, bad) == 0
}

#[cfg(test)]
mod tests {
    use crate::kernels::device::Device;

    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap()
    }

    #[test]
    fn memory_is_used_again() {
        let (a, b) = (tensor(&[1.0, 2.0]), tensor(&[3.0]));
        let mut saved = Vec::new();
        copy(&mut saved, [("a", &a), ("b", &b)].into_iter()).unwrap();
        let places: Vec<*const f32> = saved.iter().map(|s| s.values.as_ptr()).collect();
        let c = tensor(&[5.0, 6.0]);
        copy(&mut saved, [("a", &c), ("b", &b)].into_iter()).unwrap();
        assert_eq!(saved[0].values, [5.0, 6.0]);
        let again: Vec<*const f32> = saved.iter().map(|s| s.values.as_ptr()).collect();
        assert_eq!(places, again);
        copy(&mut saved, [("b", &b)].into_iter()).unwrap();
        assert_eq!((saved.len(), saved[0].name.as_str()), (1, "b"));
    }

    #[test]
    fn a_number_that_is_not_finite_is_refused_and_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (fine, broken) = (tensor(&[f32::MAX, -0.0]), tensor(&[0.0, bad]));
            let error = copy(
                &mut Vec::new(),
                [("fine", &fine), ("w", &broken)].into_iter(),
            );
            let error = error.unwrap_err();
            assert_eq!(error.code, ErrorCode::NonFiniteLoss);
            assert_eq!(error.message, "`w` is no longer finite");
        }
    }
}

//! Everything a checkpoint holds, as it is between two steps: a copy, so that training goes on while it is written,
//! whose memory is used again by the next one. When training is over nothing changes any more, and on the CPU the
//! last checkpoint is written from the weights themselves.

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
    pub values: Values,
}

/// A tensor's elements.
#[derive(Debug)]
pub enum Values {
    /// As they were.
    Copied(Vec<f32>),
    /// As they are, on the host; nobody writes to them any more.
    Shared(Tensor),
}

impl Snapshot {
    /// Takes the learner as it is now. If training cannot go on from it, as nothing follows, its weights must stay
    /// as they are until the snapshot is written.
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
        take(
            &mut self.weights,
            weights.map(|p| (p.name.as_str(), &p.value)),
            !resumable,
        )
        .map_err(|error| at_step(error, state.global_step))?;
        let (optimizer_step, moments) = learner.optimizer.state();
        self.optimizer_step = optimizer_step;
        if resumable {
            let moments = moments.iter().map(|(name, tensor)| (name.as_str(), tensor));
            take(&mut self.moments, moments, false)
                .map_err(|error| at_step(error, state.global_step))?;
        }
        Ok(())
    }

    /// Bytes of all tensors that will be written.
    pub fn tensor_bytes(&self) -> u64 {
        let moments: &[Saved] = if self.resumable { &self.moments } else { &[] };
        let tensors = self.weights.iter().chain(moments);
        tensors.map(|t| 4 * t.elem_count() as u64).sum()
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

/// Copies tensors over what `into` holds, which after the first time has just their room; or shares those on the host.
fn take<'a>(
    into: &mut Vec<Saved>,
    tensors: impl Iterator<Item = (&'a str, &'a Tensor)>,
    share: bool,
) -> Result<(), JobError> {
    let mut count = 0;
    for (index, (name, tensor)) in tensors.enumerate() {
        if into.get(index).is_none_or(|saved| saved.name != name) {
            into.truncate(index);
            into.push(Saved::empty(name, tensor));
        }
        let saved = &mut into[index];
        let share = share && tensor.gpu().is_none();
        let finite = if share {
            saved.values = Values::Shared(tensor.clone());
            view::read(tensor, all_finite)
        } else {
            let mut room = saved.room()?;
            view::read(tensor, |x| {
                room.extend_from_slice(x);
                saved.values = Values::Copied(room);
                all_finite(x)
            })
        };
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
    fn empty(name: &str, tensor: &Tensor) -> Self {
        Self {
            name: name.to_owned(),
            shape: tensor.dims().to_vec(),
            values: Values::Copied(Vec::new()),
        }
    }

    /// How many elements.
    pub fn elem_count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Calls `f` with the elements.
    ///
    /// # Errors
    /// If they are not f32.
    pub fn read<R>(&self, f: impl FnOnce(&[f32]) -> R) -> Result<R, JobError> {
        match &self.values {
            Values::Copied(values) => Ok(f(values)),
            Values::Shared(tensor) => view::read(tensor, f).map_err(engine),
        }
    }

    /// Room for a copy of all elements: that of the copy before, if there was one.
    fn room(&mut self) -> Result<Vec<f32>, JobError> {
        let before = std::mem::replace(&mut self.values, Values::Copied(Vec::new()));
        let mut values = match before {
            Values::Copied(values) => values,
            Values::Shared(_) => Vec::new(),
        };
        values.clear();
        values.try_reserve_exact(self.elem_count()).map_err(|_| {
            JobError::new(
                ErrorCode::OutOfMemory,
                "there is no memory for the copy of the weights that a checkpoint is written from",
            )
        })?;
        Ok(values)
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
    use crate::kernels::cuda::emulated;
    use crate::kernels::device::Device;

    use super::*;

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_slice(values, values.len(), &Device::Cpu).unwrap()
    }

    fn copied(saved: &Saved) -> &[f32] {
        match &saved.values {
            Values::Copied(values) => values,
            Values::Shared(_) => panic!("{} is shared", saved.name),
        }
    }

    #[test]
    fn memory_is_used_again() {
        let (a, b) = (tensor(&[1.0, 2.0]), tensor(&[3.0]));
        let mut saved = Vec::new();
        take(&mut saved, [("a", &a), ("b", &b)].into_iter(), false).unwrap();
        let places: Vec<*const f32> = saved.iter().map(|s| copied(s).as_ptr()).collect();
        let c = tensor(&[5.0, 6.0]);
        take(&mut saved, [("a", &c), ("b", &b)].into_iter(), false).unwrap();
        assert_eq!(copied(&saved[0]), [5.0, 6.0]);
        let again: Vec<*const f32> = saved.iter().map(|s| copied(s).as_ptr()).collect();
        assert_eq!(places, again);
        take(&mut saved, [("b", &b)].into_iter(), false).unwrap();
        assert_eq!((saved.len(), saved[0].name.as_str()), (1, "b"));
    }

    #[test]
    fn only_the_hosts_tensors_are_shared_and_only_when_asked() {
        let host = tensor(&[1.0, 2.0]);
        let gpu = host.to_device(&emulated::device()).unwrap();
        let mut saved = Vec::new();
        for share in [false, true, false] {
            take(&mut saved, [("a", &host), ("b", &gpu)].into_iter(), share).unwrap();
            let shared = saved.iter().map(|s| matches!(s.values, Values::Shared(_)));
            assert_eq!(shared.collect::<Vec<_>>(), [share, false]);
            for saved in &saved {
                assert_eq!(saved.read(<[f32]>::to_vec).unwrap(), [1.0, 2.0]);
                assert_eq!(saved.elem_count(), 2);
            }
        }
    }

    #[test]
    fn a_number_that_is_not_finite_is_refused_and_named() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let (fine, broken) = (tensor(&[f32::MAX, -0.0]), tensor(&[0.0, bad]));
            for share in [false, true] {
                let tensors = [("fine", &fine), ("w", &broken)].into_iter();
                let error = take(&mut Vec::new(), tensors, share).unwrap_err();
                assert_eq!(error.code, ErrorCode::NonFiniteLoss);
                assert_eq!(error.message, "`w` is no longer finite");
            }
        }
    }
}

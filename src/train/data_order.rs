//! Which rows make up which step, from the step's number alone: resuming needs no position to be saved.

use crate::data::{Epoch, EpochSampler};

/// One optimizer step's rows.
#[derive(Clone, Debug, PartialEq)]
pub struct StepPlan {
    /// Row indexes of each micro-batch.
    pub micro_batches: Vec<Vec<u32>>,
    /// Epochs done after this step, fractional.
    pub epoch: f64,
    /// Whether the step is its epoch's last.
    pub ends_epoch: bool,
}

/// The order of the whole training; keeps the current epoch's shuffle.
#[derive(Clone, Debug)]
pub struct DataOrder {
    sampler: EpochSampler,
    current: Option<(u64, Epoch)>,
}

impl DataOrder {
    /// The order that `sampler` gives.
    pub fn new(sampler: EpochSampler) -> Self {
        Self {
            sampler,
            current: None,
        }
    }

    /// The rows of the step that follows `global_step` steps.
    pub fn step(&mut self, global_step: u64) -> StepPlan {
        let (epoch, step) = self.sampler.position(global_step);
        if self.current.as_ref().is_none_or(|(e, _)| *e != epoch) {
            self.current = Some((epoch, self.sampler.epoch(epoch)));
        }
        let micro_batches = self.current.as_ref().map_or_else(Vec::new, |(_, order)| {
            order.micro_batches(step).map(<[u32]>::to_vec).collect()
        });
        StepPlan {
            micro_batches,
            epoch: self.epochs_after(global_step + 1),
            ends_epoch: step + 1 == self.sampler.updates_per_epoch(),
        }
    }

    /// Epochs done after `global_step` steps, fractional.
    pub fn epochs_after(&self, global_step: u64) -> f64 {
        self.sampler.epochs_after(global_step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_does_not_depend_on_the_steps_asked_for_before() {
        let sampler = EpochSampler::new(42, 10, 2, 2, false).unwrap();
        let mut straight = DataOrder::new(sampler);
        let plans: Vec<StepPlan> = (0..9).map(|step| straight.step(step)).collect();
        for step in [7, 2, 8, 0] {
            let plan = DataOrder::new(sampler).step(step);
            assert_eq!(plan, plans[usize::try_from(step).unwrap()]);
        }
        // 10 rows are 5 micro-batches, so 3 steps: the last holds one micro-batch.
        let sizes: Vec<usize> = plans[..3].iter().map(|p| p.micro_batches.len()).collect();
        assert_eq!(sizes, [2, 2, 1]);
        let ends: Vec<bool> = plans.iter().map(|p| p.ends_epoch).collect();
        assert_eq!(ends, [false, false, true].repeat(3));
        assert_eq!(plans[2].epoch, 1.0);
        assert_eq!(plans[0].epoch, 0.4);
    }
}

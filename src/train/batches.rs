//! The training's batches, read ahead of the step that uses them.

use crate::data::{Batch, Prefetch, TokenizedDataset};
use crate::domain::{ErrorCode, JobError};

use super::data_order::{DataOrder, StepPlan};

/// A step's rows.
#[derive(Debug)]
pub struct StepBatches {
    /// Which they are.
    pub plan: StepPlan,
    /// They themselves, packed; micro-batches of the plan may be split into several.
    pub batches: Vec<Batch>,
}

/// Gives the batches of one step after the other. While the trainer is at one, the next are read.
#[derive(Debug)]
pub struct Batches {
    data: TokenizedDataset,
    order: DataOrder,
    total_steps: u64,
    ahead: Option<Ahead>,
}

/// What is being read.
#[derive(Debug)]
struct Ahead {
    /// The step that comes next out of it.
    next: u64,
    /// Most rows of a batch.
    size: usize,
    steps: Prefetch<StepBatches>,
}

impl Batches {
    /// Batches of `data` in the order given.
    pub fn new(data: TokenizedDataset, order: DataOrder, total_steps: u64) -> Self {
        Self {
            data,
            order,
            total_steps,
            ahead: None,
        }
    }

    /// The step that follows `global_step` steps, in batches of at most `size` rows. Any step may be asked for at
    /// any time; the one after the last is at hand.
    ///
    /// # Errors
    /// `internal_error` if rows cannot be read.
    pub fn step(&mut self, global_step: u64, size: usize) -> Result<StepBatches, JobError> {
        let fits = |ahead: &&mut Ahead| ahead.next == global_step && ahead.size == size;
        let ahead = match self.ahead.as_mut().filter(fits) {
            Some(ahead) => ahead,
            None => {
                // The thread before ends first.
                self.ahead = None;
                let steps = self.read(global_step, size)?;
                self.ahead.insert(Ahead {
                    next: global_step,
                    size,
                    steps,
                })
            }
        };
        ahead.next += 1;
        let step = ahead.steps.next();
        step.unwrap_or_else(|| {
            let message = format!("there is no step after {global_step}");
            Err(JobError::new(ErrorCode::InternalError, message))
        })
    }

    fn read(&self, first: u64, size: usize) -> Result<Prefetch<StepBatches>, JobError> {
        let (data, mut order) = (self.data.clone(), self.order.clone());
        let end = self.total_steps.max(first + 1);
        Prefetch::start((first..end).map(move |step| {
            let plan = order.step(step);
            let micro_batches = plan.micro_batches.iter();
            let pieces = micro_batches.flat_map(|rows| rows.chunks(size.max(1)));
            let batches = pieces
                .map(|rows| data.batch(rows))
                .collect::<Result<_, _>>()?;
            Ok(StepBatches { plan, batches })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::EpochSampler;
    use crate::data::testing::{Sample, short_rows};

    /// Ten rows, two steps of two micro-batches of two, then one of one.
    fn batches(total_steps: u64) -> (Batches, DataOrder) {
        let sampler = EpochSampler::new(42, 10, 2, 2, false).unwrap();
        let order = DataOrder::new(sampler);
        let data = Sample::new(&short_rows(10)).rows();
        (Batches::new(data, order.clone(), total_steps), order)
    }

    fn keys(step: &StepBatches) -> Vec<Vec<u32>> {
        let keys = |batch: &Batch| batch.sequence_keys.iter().map(|&key| key as u32).collect();
        step.batches.iter().map(keys).collect()
    }

    #[test]
    fn steps_are_those_of_the_plan_whatever_was_asked_for_before() {
        let (mut batches, mut order) = batches(9);
        for step in [0, 1, 2, 3, 4, 7, 8, 2, 3, 0] {
            let read = batches.step(step, 2).unwrap();
            assert_eq!(read.plan, order.step(step));
            assert_eq!(keys(&read), read.plan.micro_batches);
            for batch in &read.batches {
                let rows: Vec<u32> = batch.sequence_keys.iter().map(|&key| key as u32).collect();
                assert_eq!(*batch, batches.data.batch(&rows).unwrap());
            }
        }
    }

    #[test]
    fn smaller_batches_keep_the_rows_of_a_step_and_their_order() {
        let (mut batches, mut order) = batches(9);
        batches.step(0, 2).unwrap();
        let (whole, halved) = (order.step(1), batches.step(1, 1).unwrap());
        assert_eq!(halved.plan, whole);
        assert_eq!(keys(&halved).len(), 4);
        assert_eq!(keys(&halved).concat(), whole.micro_batches.concat());
        assert_eq!(keys(&batches.step(1, 0).unwrap()), keys(&halved));
    }

    #[test]
    fn nothing_is_read_beyond_the_end() {
        let (mut batches, _) = batches(2);
        batches.step(0, 2).unwrap();
        batches.step(1, 2).unwrap();
        let ahead = &mut batches.ahead.as_mut().unwrap().steps;
        assert!(ahead.next().is_none());
    }
}

//! The order of training rows: exactly that of HF Trainer (accelerate's `SeedableRandomSampler`), and a pure
//! function of seed and position, so that resuming needs no generator state.

use crate::domain::{ErrorCode, JobError};

/// The Mersenne Twister (Matsumoto and Nishimura 1998) as PyTorch's CPU generator uses it: 32-bit outputs,
/// `init_genrand` seeding.
#[derive(Clone, Debug)]
pub struct Mt19937 {
    state: [u32; Self::N],
    next: usize,
}

impl Mt19937 {
    const N: usize = 624;
    const M: usize = 397;

    /// A generator; like PyTorch's, it uses the low 32 bits of the seed.
    pub fn new(seed: u64) -> Self {
        let mut state = [0u32; Self::N];
        #[expect(
            clippy::cast_possible_truncation,
            reason = "PyTorch masks the seed too"
        )]
        let mut previous = seed as u32;
        state[0] = previous;
        for (i, word) in (1u32..).zip(&mut state[1..]) {
            previous = (previous ^ (previous >> 30))
                .wrapping_mul(1_812_433_253)
                .wrapping_add(i);
            *word = previous;
        }
        Self {
            state,
            next: Self::N,
        }
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == Self::N {
            self.twist();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9D2C_5680;
        y ^= (y << 15) & 0xEFC6_0000;
        y ^ (y >> 18)
    }

    /// Shuffles as `torch.randperm` does; for fewer than 2^32 / 20 items.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in 0..items.len().saturating_sub(1) {
            let draw = self.next_u32() as usize % (items.len() - i);
            items.swap(i, i + draw);
        }
    }

    fn twist(&mut self) {
        for i in 0..Self::N {
            let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % Self::N] & 0x7FFF_FFFF);
            let odd = if y & 1 == 1 { 0x9908_B0DF } else { 0 };
            self.state[i] = self.state[(i + Self::M) % Self::N] ^ (y >> 1) ^ odd;
        }
        self.next = 0;
    }
}

/// Which rows make up each micro-batch of each optimizer step of each epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochSampler {
    seed: u64,
    rows: u32,
    batch_size: u32,
    accumulation: u32,
    drop_last: bool,
}

impl EpochSampler {
    /// A sampler of `rows` rows: micro-batches of `batch_size`, `accumulation` of them to a step. With
    /// `drop_last` an incomplete last micro-batch of an epoch is left out.
    ///
    /// # Errors
    /// `value_invalid` if an epoch would hold no micro-batch, or more rows than 32 bits count.
    pub fn new(
        seed: u64,
        rows: usize,
        batch_size: u32,
        accumulation: u32,
        drop_last: bool,
    ) -> Result<Self, JobError> {
        let invalid = |message: String| {
            JobError::new(ErrorCode::ValueInvalid, message)
                .at("/training_args/per_device_train_batch_size")
        };
        let sampler = Self {
            seed,
            rows: u32::try_from(rows)
                .map_err(|_| invalid(format!("{rows} rows are more than can be sampled")))?,
            batch_size: batch_size.max(1),
            accumulation: accumulation.max(1),
            drop_last,
        };
        if sampler.batches_per_epoch() == 0 {
            let message = format!("{rows} rows do not fill one batch of {batch_size}");
            return Err(invalid(message));
        }
        Ok(sampler)
    }

    /// Micro-batches per epoch.
    pub fn batches_per_epoch(&self) -> u64 {
        let batches = if self.drop_last {
            self.rows / self.batch_size
        } else {
            self.rows.div_ceil(self.batch_size)
        };
        u64::from(batches)
    }

    /// Optimizer steps per epoch; the last may hold fewer micro-batches, since accumulation never crosses epochs.
    pub fn updates_per_epoch(&self) -> u64 {
        self.batches_per_epoch()
            .div_ceil(u64::from(self.accumulation))
    }

    /// Steps of the whole training: `max_steps` if positive, else `num_train_epochs`, which may be fractional.
    pub fn total_steps(&self, max_steps: i64, num_train_epochs: f64) -> u64 {
        match u64::try_from(max_steps) {
            Ok(steps) if steps > 0 => steps,
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "epochs are positive, and the product far below 2^53"
            )]
            _ => (num_train_epochs * self.updates_per_epoch() as f64).ceil() as u64,
        }
    }

    /// The epoch, and the step within it, that come after `global_step` steps.
    pub fn position(&self, global_step: u64) -> (u64, u64) {
        let updates = self.updates_per_epoch();
        (global_step / updates, global_step % updates)
    }

    /// Epochs passed after `global_step` steps, as HF logs them: full epochs plus the share of the
    /// epoch's micro-batches.
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^53")]
    pub fn epochs_after(&self, global_step: u64) -> f64 {
        let (epoch, step) = self.position(global_step);
        let batches = step * u64::from(self.accumulation);
        epoch as f64 + batches as f64 / self.batches_per_epoch() as f64
    }

    /// The order of one epoch, counted from 0. Costs one shuffle of all rows.
    pub fn epoch(&self, epoch: u64) -> Epoch {
        let mut order: Vec<u32> = (0..self.rows).collect();
        Mt19937::new(self.seed.wrapping_add(epoch)).shuffle(&mut order);
        if self.drop_last {
            order.truncate((self.rows - self.rows % self.batch_size) as usize);
        }
        Epoch {
            order,
            batch_size: self.batch_size as usize,
            rows_per_step: self.batch_size as usize * self.accumulation as usize,
        }
    }
}

/// One epoch's order of rows.
#[derive(Clone, Debug)]
pub struct Epoch {
    order: Vec<u32>,
    batch_size: usize,
    rows_per_step: usize,
}

impl Epoch {
    /// All rows in order.
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// The micro-batches of one step, counted from 0; none beyond the last step.
    pub fn micro_batches(&self, step: u64) -> std::slice::Chunks<'_, u32> {
        let start = usize::try_from(step)
            .ok()
            .and_then(|step| step.checked_mul(self.rows_per_step))
            .map_or(self.order.len(), |start| start.min(self.order.len()));
        let end = self
            .order
            .len()
            .min(start.saturating_add(self.rows_per_step));
        self.order[start..end].chunks(self.batch_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(rows: usize, batch: u32, accumulation: u32, drop_last: bool) -> EpochSampler {
        EpochSampler::new(42, rows, batch, accumulation, drop_last).unwrap()
    }

    /// mt19937ar.c with `init_genrand(5489)`; the 10,000th output is the one the C++ standard names.
    #[test]
    fn the_generator_gives_the_published_numbers() {
        let mut generator = Mt19937::new(5489);
        assert_eq!(generator.next_u32(), 3_499_211_612);
        assert_eq!(generator.next_u32(), 581_869_302);
        for _ in 2..9999 {
            generator.next_u32();
        }
        assert_eq!(generator.next_u32(), 4_123_659_995);
    }

    /// Recorded from HF Trainer 5.23 (accelerate's SeedableRandomSampler), n = 40, seed 42.
    #[test]
    fn the_order_is_that_of_hf_trainer() {
        let sampler = sampler(40, 4, 1, false);
        let first = [22, 9, 32, 15, 0, 3, 8, 18];
        assert_eq!(sampler.epoch(0).order()[..8], first);
        let second = [28, 34, 23, 35, 17, 15, 1, 19];
        assert_eq!(sampler.epoch(1).order()[..8], second);
    }

    #[test]
    fn an_epoch_is_every_row_once() {
        let mut order = sampler(1000, 7, 3, false).epoch(5).order().to_vec();
        order.sort_unstable();
        assert!(order.iter().copied().eq(0..1000));
    }

    #[test]
    fn steps_cut_the_epoch_into_micro_batches() {
        let sampler = sampler(22, 4, 2, false);
        assert_eq!(
            (sampler.batches_per_epoch(), sampler.updates_per_epoch()),
            (6, 3)
        );
        let epoch = sampler.epoch(0);
        let sizes = |step| {
            epoch
                .micro_batches(step)
                .map(<[u32]>::len)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            (sizes(0), sizes(1), sizes(2)),
            (vec![4, 4], vec![4, 4], vec![4, 2])
        );
        assert!(sizes(3).is_empty() && sizes(u64::MAX).is_empty());
        let joined: Vec<u32> = (0..3)
            .flat_map(|step| epoch.micro_batches(step).flatten().copied())
            .collect();
        assert_eq!(joined, epoch.order());
    }

    #[test]
    fn the_last_step_of_an_epoch_may_hold_fewer_micro_batches() {
        let sampler = sampler(20, 4, 2, false);
        assert_eq!(
            (sampler.batches_per_epoch(), sampler.updates_per_epoch()),
            (5, 3)
        );
        assert_eq!(sampler.epoch(0).micro_batches(2).count(), 1);
    }

    #[test]
    fn drop_last_leaves_the_remainder_out() {
        let sampler = sampler(22, 4, 2, true);
        assert_eq!(
            (sampler.batches_per_epoch(), sampler.updates_per_epoch()),
            (5, 3)
        );
        assert_eq!(sampler.epoch(0).order().len(), 20);
        assert!(EpochSampler::new(0, 3, 4, 1, true).is_err());
        assert!(EpochSampler::new(0, 0, 4, 1, false).is_err());
        let tiny = EpochSampler::new(0, 3, 4, 100, false).unwrap();
        assert_eq!(tiny.updates_per_epoch(), 1);
    }

    #[test]
    fn total_steps_are_max_steps_or_epochs() {
        let sampler = sampler(100, 8, 2, false); // 13 batches, 7 updates
        assert_eq!(sampler.total_steps(-1, 3.0), 21);
        assert_eq!(sampler.total_steps(0, 0.5), 4);
        assert_eq!(sampler.total_steps(-1, 0.01), 1);
        assert_eq!(sampler.total_steps(5, 3.0), 5);
    }

    #[test]
    fn positions_and_epochs_follow_the_step() {
        let sampler = sampler(20, 4, 2, false); // 5 batches, 3 updates
        assert_eq!(sampler.position(0), (0, 0));
        assert_eq!(sampler.position(2), (0, 2));
        assert_eq!(sampler.position(7), (2, 1));
        assert_eq!(sampler.epochs_after(2), 0.8);
        assert_eq!(sampler.epochs_after(3), 1.0);
        assert_eq!(sampler.epochs_after(7), 2.4);
    }
}

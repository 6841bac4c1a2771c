//! A packed micro-batch: where its sequences lie, what their tokens are called, and the step's dropout.

use candle_core::{Result, bail};

use crate::kernels::attention::Queries;
use crate::kernels::device::Device;
use crate::kernels::dropout::{Dropout, token_key};
use crate::kernels::numbers::{Array, Numbers};

/// What tells the dropout masks of one step apart from those of any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropoutSeed {
    /// The job's seed.
    pub seed: u64,
    /// The optimizer step, from 0. Micro-batches of one step differ by their sequences.
    pub step: u64,
}

/// T token rows of B sequences, one behind the other.
#[derive(Debug, Default)]
pub struct MicroBatch {
    device: Device,
    cu_seqlens: Array<u32>,
    token_keys: Array<u64>,
    first_keys: Array<u64>,
    positions: Array<u32>,
    dropout: Option<DropoutSeed>,
}

impl MicroBatch {
    /// An empty one, for ops on this device.
    pub fn on(device: &Device) -> Self {
        Self {
            device: device.clone(),
            ..Self::default()
        }
    }

    /// Takes over a micro-batch; memory of the last one is used again. `cu_seqlens` [B + 1] are the row
    /// numbers at which sequences start, and T; `sequence_keys` [B] name the sequences.
    ///
    /// # Errors
    /// If there is no sequence, one is empty or longer than `max_positions`, the lengths do not agree, or memory
    /// is short.
    pub fn set(
        &mut self,
        cu_seqlens: &[u32],
        sequence_keys: &[u64],
        max_positions: usize,
        dropout: Option<DropoutSeed>,
    ) -> Result<()> {
        if cu_seqlens.len() != sequence_keys.len() + 1 || sequence_keys.is_empty() {
            let (starts, keys) = (cu_seqlens.len(), sequence_keys.len());
            bail!("a micro-batch needs B + 1 sequence bounds and B keys, got {starts} and {keys}")
        }
        if cu_seqlens[0] != 0 || !cu_seqlens.windows(2).all(|w| w[0] < w[1]) {
            bail!("sequence bounds must start at 0 and rise")
        }
        if let Some(w) = cu_seqlens
            .windows(2)
            .find(|w| (w[1] - w[0]) as usize > max_positions)
        {
            bail!(
                "a sequence has {} tokens, the model takes {max_positions}",
                w[1] - w[0]
            )
        }
        self.dropout = dropout;
        let device = &self.device;
        let lengths = || cu_seqlens.windows(2).map(|w| w[1] - w[0]);
        let named = || lengths().zip(sequence_keys);
        self.cu_seqlens.set(cu_seqlens.iter().copied(), device)?;
        self.positions.set(lengths().flat_map(|n| 0..n), device)?;
        self.token_keys.set(
            named().flat_map(|(n, &sequence)| (0..n).map(move |p| token_key(sequence, p))),
            device,
        )?;
        self.first_keys
            .set(sequence_keys.iter().map(|&key| token_key(key, 0)), device)?;
        Ok(())
    }

    /// T.
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }

    /// B.
    pub fn sequences(&self) -> usize {
        self.first_keys.len()
    }

    /// [B + 1]: where sequences start, and T.
    pub fn cu_seqlens(&self) -> Numbers<'_, u32> {
        self.cu_seqlens.all()
    }

    /// [T]: every token's place in its sequence, from 0.
    pub fn positions(&self) -> Numbers<'_, u32> {
        self.positions.all()
    }

    /// [T]: names of the tokens.
    pub fn token_keys(&self) -> Numbers<'_, u64> {
        self.token_keys.all()
    }

    /// Names of the rows that `queries` selects: [T] or [B].
    pub fn keys(&self, queries: Queries) -> Numbers<'_, u64> {
        match queries {
            Queries::All => self.token_keys.all(),
            Queries::First => self.first_keys.all(),
        }
    }

    /// The masks of one dropout layer; all ones in evaluation.
    pub fn dropout(&self, probability: f32, site: u32) -> Dropout {
        match self.dropout {
            Some(DropoutSeed { seed, step }) => Dropout::new(probability, seed, step, site),
            None => Dropout::NONE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_restart_and_keys_name_sequence_and_position() {
        let mut batch = MicroBatch::default();
        batch.set(&[0, 2, 3], &[7, 9], 2, None).unwrap();
        assert_eq!(*batch.positions(), [0, 1, 0]);
        let keys = [token_key(7, 0), token_key(7, 1), token_key(9, 0)];
        assert_eq!(*batch.keys(Queries::All), keys);
        assert_eq!(*batch.keys(Queries::First), [keys[0], keys[2]]);
        assert_eq!((batch.tokens(), batch.sequences()), (3, 2));
        assert!(batch.dropout(0.5, 1).is_none());
    }

    #[test]
    fn bounds_that_make_no_sequences_are_refused() {
        let mut batch = MicroBatch::default();
        for bad in [
            &[0u32, 2][..],
            &[0, 2, 2],
            &[1, 2, 3],
            &[0, 4, 5],
            &[0, 3, 1],
        ] {
            assert!(batch.set(bad, &[1, 2], 3, None).is_err(), "{bad:?}");
        }
        assert!(batch.set(&[0], &[], 3, None).is_err());
    }
}

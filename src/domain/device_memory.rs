//! How much of a card's memory a training takes: an estimate, made before it starts, by which jobs are packed.
//!
//! With P parameters, D hidden size, I intermediate size, H heads, N layers, T tokens of a micro-batch and e
//! bytes of an activation (2 in bf16, 4 in f32), a training holds
//!
//! | what | bytes |
//! |---|---|
//! | master weights, gradients and AdamW's two moments in f32 | 16 P |
//! | the copy of the weights that products read, in bf16 | 2 P |
//! | kept for the backward by each layer: `q k v context`, two norms' normalised rows and outputs, the dense layer before its activation | T N e (8 D + I) |
//! | by each layer in f32: the attention's log-sum-exp, two norms' deviations | 4 T N (H + 2) |
//! | shared by all layers: the gradients on their way (seven of width D, one of I), what is behind an activation, and the embeddings' sum and norm | T (e (9 D + 2 I) + 4 D) |
//!
//! An evaluation keeps of each layer its two outputs, and one layer's memory serves all; where its batches are
//! larger than the training's, that comes on top. T is the most there can be, as micro-batches are packed: rows
//! times `max_seq_length`. What is left out (logits, the head, ids) is small; the margin covers it, and the
//! padding of the allocator. An estimate that is too low costs an attempt: who runs out of memory beside others is
//! tried again on a card of its own.

use super::{Bf16, JobSpec};

/// What the driver takes for a process that uses a card at all: context, code, the workspace of the matrix products.
const CONTEXT_BYTES: u64 = 1 << 30;

/// Parts of ten that the estimate is raised by.
const MARGIN_TENTHS: u64 = 1;

/// A model's size, as its files tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModelShape {
    /// P
    pub parameters: u64,
    /// N
    pub layers: u64,
    /// D
    pub hidden_size: u64,
    /// I
    pub intermediate_size: u64,
    /// H
    pub heads: u64,
}

impl ModelShape {
    /// Bytes of a card's memory that training this model by `spec` takes, with micro-batches in
    /// `micro_batch_divisor` parts. Sizes beyond all reason saturate: no card has room for them.
    pub fn training_bytes(&self, spec: &JobSpec, micro_batch_divisor: u32) -> u64 {
        let args = &spec.training_args;
        let element = if args.bf16 == Bf16::Off { 4 } else { 2 };
        let tokens = |rows: u32| u64::from(rows).saturating_mul(u64::from(spec.max_seq_length));
        let micro_batch = args.per_device_train_batch_size;
        let train = tokens(micro_batch.div_ceil(micro_batch_divisor.max(1)));
        let more = tokens(args.per_device_eval_batch_size).saturating_sub(train);

        let copies = if element == 2 { 18 } else { 16 };
        let layer = self.layer_bytes(element);
        let shared = self.shared_bytes(element);
        let outputs = element.saturating_mul(self.hidden_size.saturating_mul(2));
        let train_row = layer.saturating_mul(self.layers).saturating_add(shared);
        let eval_row = outputs
            .saturating_mul(self.layers)
            .saturating_add(layer)
            .saturating_add(shared);
        let bytes = self
            .parameters
            .saturating_mul(copies)
            .saturating_add(train.saturating_mul(train_row))
            .saturating_add(more.saturating_mul(eval_row));
        let margin = bytes / 10 * MARGIN_TENTHS;
        bytes.saturating_add(margin).saturating_add(CONTEXT_BYTES)
    }

    /// Of one token in one layer.
    fn layer_bytes(&self, element: u64) -> u64 {
        let d = self.hidden_size.saturating_mul(8);
        let f32s = self.heads.saturating_add(2);
        element
            .saturating_mul(d.saturating_add(self.intermediate_size))
            .saturating_add(f32s.saturating_mul(4))
    }

    /// Of one token, once.
    fn shared_bytes(&self, element: u64) -> u64 {
        let d = self.hidden_size.saturating_mul(9);
        let i = self.intermediate_size.saturating_mul(2);
        element
            .saturating_mul(d.saturating_add(i))
            .saturating_add(self.hidden_size.saturating_mul(4))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const GIB: f64 = (1u64 << 30) as f64;

    /// `bert-base-uncased`.
    const BASE: ModelShape = ModelShape {
        parameters: 109_483_778,
        layers: 12,
        hidden_size: 768,
        intermediate_size: 3072,
        heads: 12,
    };

    fn spec(max_seq_length: u32, args: &Value) -> JobSpec {
        JobSpec::parse(&json!({
            "model": "m",
            "task": "sequence_classification",
            "dataset": {"train": "01900000-0000-7000-8000-000000000001"},
            "max_seq_length": max_seq_length,
            "training_args": args,
        }))
        .unwrap()
    }

    fn bytes(max_seq_length: u32, args: Value, divisor: u32) -> u64 {
        BASE.training_bytes(&spec(max_seq_length, &args), divisor)
    }

    /// By hand, in bf16: 18 P = 1,970,708,004. A token of a layer 2 (6144 + 3072) + 4 · 14 = 18,488; shared
    /// 2 (6912 + 6144) + 3072 = 29,184; so a token of the training is 251,040, of an evaluation beyond it
    /// 12 · 2 · 1536 + 18,488 + 29,184 = 84,536.
    #[test]
    fn the_table_by_hand() {
        let args = json!({"per_device_train_batch_size": 32, "per_device_eval_batch_size": 8});
        let by_hand = 1_970_708_004 + 32 * 128 * 251_040;
        assert_eq!(bytes(128, args, 1), by_hand + by_hand / 10 + CONTEXT_BYTES);
        let args = json!({"per_device_train_batch_size": 8, "per_device_eval_batch_size": 24});
        let by_hand = 1_970_708_004 + 8 * 64 * 251_040 + 16 * 64 * 84_536;
        assert_eq!(bytes(64, args, 1), by_hand + by_hand / 10 + CONTEXT_BYTES);
    }

    #[test]
    fn what_is_asked_for_moves_it() {
        let args = |rows: u32, bf16: Value| json!({"per_device_train_batch_size": rows, "per_device_eval_batch_size": 1, "bf16": bf16});
        let plain = bytes(128, args(32, json!("auto")), 1);
        // A slip of a factor would show.
        assert!((3.0..6.0).contains(&(plain as f64 / GIB)), "{plain}");
        assert!(bytes(512, args(32, json!("auto")), 1) > plain);
        assert!(bytes(128, args(32, json!(false)), 1) > plain);
        assert_eq!(
            bytes(128, args(32, json!("auto")), 2),
            bytes(128, args(16, json!("auto")), 1),
            "after running out of memory, micro-batches are smaller"
        );
    }

    #[test]
    fn nonsense_saturates() {
        let endless = ModelShape {
            parameters: u64::MAX,
            layers: u64::MAX,
            hidden_size: u64::MAX,
            intermediate_size: u64::MAX,
            heads: u64::MAX,
        };
        assert_eq!(endless.training_bytes(&spec(8, &json!({})), 0), u64::MAX);
    }
}

//! Encoders by `model_type`: configuration, parameters by Hugging Face's names, forward and backward.
//!
//! Shapes in comments: T token rows of a packed micro-batch, B sequences, D hidden, C classes.

mod bert;
mod config;
mod error;
mod initializer;
mod loading;

pub use bert::Bert;
pub use config::BertConfig;
pub use error::ModelError;
pub use loading::Checkpoint;

pub use crate::layers::DropoutSeed;

/// Families that can be trained.
pub const SUPPORTED_MODEL_TYPES: &[&str] = &["bert"];

/// One packed micro-batch: B sequences of T tokens in all, one behind the other, no padding.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// [T]
    pub input_ids: &'a [u32],
    /// [T]
    pub token_type_ids: &'a [u32],
    /// [B + 1]: where each sequence starts, and T.
    pub cu_seqlens: &'a [u32],
    /// [B]: the row of the dataset that a sequence is; names it to dropout whatever batch it is in.
    pub sequence_keys: &'a [u64],
}

//! The parts encoders are composed of: each with `forward`, which leaves what its backward needs in its
//! workspace, and `backward`, which consumes it and adds to the parameter gradients.
//!
//! Shapes in comments: T token rows of a packed micro-batch, B sequences, D hidden, I intermediate, H heads.

mod buffer;
mod embeddings;
mod encoder_layer;
mod feed_forward;
mod linear;
mod micro_batch;
mod norm;
mod parameters;
mod self_attention;
#[cfg(test)]
pub mod testing;
mod touched_rows;

pub use buffer::{Buffer, Workspace, is_device_failure, is_out_of_memory};
pub use embeddings::{Embeddings, EmbeddingsShape};
pub use encoder_layer::{EncoderLayer, EncoderLayerShape, Names};
pub use feed_forward::FeedForward;
pub use linear::Linear;
pub use micro_batch::{DropoutSeed, MicroBatch};
pub use norm::Norm;
pub use parameters::{Loaded, Parameter, ParameterSource, Parameters, Stale};
pub use self_attention::SelfAttention;
pub use touched_rows::{RowSet, TouchedRows};

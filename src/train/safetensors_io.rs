//! f32 tensors to and from safetensors files.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use candle_core::Tensor;
use safetensors::{Dtype, View};

use crate::domain::{ErrorCode, JobError};
use crate::kernels::view;

use super::step::engine;

/// A tensor's bytes, little-endian as the format demands.
struct Bytes {
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl View for Bytes {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }
    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// Writes `tensors` to `path`, not synced: publishing a checkpoint syncs all its files.
///
/// # Errors
/// `disk_full` or `checkpoint_failed`.
pub fn write(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: HashMap<String, String>,
) -> Result<(), JobError> {
    let views = tensors
        .iter()
        .map(|(name, tensor)| {
            let data = view::read(tensor, |x| x.iter().flat_map(|v| v.to_le_bytes()).collect())?;
            let shape = tensor.dims().to_vec();
            Ok((name.as_str(), Bytes { shape, data }))
        })
        .collect::<candle_core::Result<Vec<_>>>()
        .map_err(engine)?;
    safetensors::serialize_to_file(views, Some(metadata), path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(io) => {
            crate::artifacts::ArtifactError::io("write", path, io).into()
        }
        other => engine(other),
    })
}

/// A file's tensors by name, and its metadata.
pub type Contents = (HashMap<String, Tensor>, HashMap<String, String>);

/// What a file holds. It was verified by hash, so it is what we wrote.
///
/// # Errors
/// `checkpoint_failed` if it cannot be read.
pub fn read(path: &Path) -> Result<Contents, JobError> {
    let unreadable = |error: &dyn std::fmt::Display| {
        JobError::new(
            ErrorCode::CheckpointFailed,
            format!("a checkpoint file could not be read: {error}"),
        )
    };
    let bytes = std::fs::read(path).map_err(|e| unreadable(&e))?;
    let (_, header) =
        safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| unreadable(&e))?;
    let tensors = candle_core::safetensors::load_buffer(&bytes, &candle_core::Device::Cpu)
        .map_err(|e| unreadable(&e))?;
    Ok((tensors, header.metadata().clone().unwrap_or_default()))
}

//! f32 tensors to and from safetensors files (<https://huggingface.co/docs/safetensors>).

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::artifacts::DiskFile;
use crate::domain::{ErrorCode, JobError};
use crate::kernels::tensor::Tensor;

use super::checkpoint::Failure;
use super::snapshot::Saved;

/// Elements that go to the file at a time.
const PIECE: usize = 64 * 1024;
/// The format wants the data to begin at a multiple of this.
const ALIGN: usize = 8;

/// Writes `tensors`, piece by piece, so that no second copy of them is made. `going_on` is asked before each.
///
/// # Errors
/// `disk_full` or `checkpoint_failed`, and what `going_on` answers.
pub fn write(
    file: &mut DiskFile<'_>,
    tensors: &[Saved],
    metadata: &[(&str, String)],
    going_on: &dyn Fn() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let header = header(tensors, metadata)?;
    file.append(&(header.len() as u64).to_le_bytes())?;
    file.append(&header)?;
    let mut bytes = Vec::with_capacity(4 * PIECE);
    for tensor in tensors {
        let written = tensor.read(|values| {
            values.chunks(PIECE).try_for_each(|piece| {
                going_on()?;
                bytes.clear();
                bytes.extend(piece.iter().flat_map(|x| x.to_le_bytes()));
                Ok::<_, Failure>(file.append(&bytes)?)
            })
        });
        written.map_err(Failure::Job)??;
    }
    Ok(())
}

/// The JSON that says where each tensor lies, padded with blanks.
fn header(tensors: &[Saved], metadata: &[(&str, String)]) -> Result<Vec<u8>, serde_json::Error> {
    let mut entries = Map::new();
    let metadata: Map<String, Value> = metadata
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    entries.insert("__metadata__".to_owned(), Value::Object(metadata));
    let mut start = 0;
    for tensor in tensors {
        let end = start + 4 * tensor.elem_count();
        let entry = json!({"dtype": "F32", "shape": tensor.shape, "data_offsets": [start, end]});
        entries.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut header = serde_json::to_vec(&entries)?;
    header.resize(header.len().next_multiple_of(ALIGN), b' ');
    Ok(header)
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
    let tensors = tensors
        .into_iter()
        .map(|(name, tensor)| (name, tensor.into()));
    Ok((
        tensors.collect(),
        header.metadata().clone().unwrap_or_default(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::artifacts::CheckpointWriter;
    use crate::train::snapshot::Values;

    #[test]
    fn what_is_written_piece_by_piece_is_what_the_safetensors_crate_reads() {
        let temp = tempfile::tempdir().unwrap();
        let mut writer = CheckpointWriter::begin(temp.path(), 1).unwrap();
        let saved = |name: &str, shape: &[usize]| Saved {
            name: name.to_owned(),
            shape: shape.to_vec(),
            values: Values::Copied(
                (0..shape.iter().product::<usize>())
                    .map(|i| i as f32 - 0.5)
                    .collect(),
            ),
        };
        let tensors = [
            saved("b", &[2, 3]),
            saved("a", &[PIECE + 7]),
            saved("empty", &[0, 4]),
        ];
        let metadata = [("step", "12".to_owned())];
        writer
            .write("t.safetensors", |file| {
                write(file, &tensors, &metadata, &|| Ok(()))
            })
            .unwrap();
        let path = writer.dir().join("t.safetensors");
        let (read, metadata) = read(&path).unwrap();
        assert_eq!(metadata["step"], "12");
        assert_eq!(read.len(), 3);
        for tensor in &tensors {
            assert_eq!(read[&tensor.name].dims(), tensor.shape);
            let values = read[&tensor.name].to_vec1::<f32>().unwrap();
            assert_eq!(values, tensor.read(<[f32]>::to_vec).unwrap());
        }
        let record = writer
            .publish(1.0, std::collections::BTreeMap::new(), false)
            .unwrap();
        let path = temp.path().join("checkpoint-1/t.safetensors");
        let hashed = crate::artifacts::hash_file(&path).unwrap();
        assert_eq!(
            record.files[0].sha256, hashed.sha256,
            "hashed while it was written"
        );
    }

    #[test]
    fn a_write_nobody_waits_for_ends() {
        let temp = tempfile::tempdir().unwrap();
        let mut writer = CheckpointWriter::begin(temp.path(), 1).unwrap();
        let tensors = [Saved {
            name: "a".to_owned(),
            shape: vec![1],
            values: Values::Copied(vec![1.0]),
        }];
        let stop = || {
            Err(Failure::Job(JobError::new(
                ErrorCode::CheckpointFailed,
                "enough",
            )))
        };
        let ended = writer.write("t", |file| write(file, &tensors, &[], &stop));
        assert!(matches!(ended, Err(Failure::Job(_))));
    }
}

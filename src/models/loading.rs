//! Reads `model.safetensors` (<https://huggingface.co/docs/safetensors>) tensor by tensor: only tensors that
//! the model asks for, each after its shape was compared, so memory is bounded by the config's own bounds.
//! The file is read, not mapped: a mapped file that is cut short kills the process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::ModelError;
use crate::kernels::device::Device;
use crate::kernels::tensor::Tensor;
use crate::layers::{Parameter, ParameterSource};

/// A header may be this long. The format allows 100 MB, which takes seconds and a gigabyte to parse.
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// The tensors of a model folder.
pub struct Checkpoint {
    path: PathBuf,
    file: File,
    /// Where the header ends.
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
    used: BTreeSet<String>,
    /// What a checkpoint of a bare encoder leaves out of its names, such as `bert.`.
    prefix: &'static str,
    /// Where parameters go.
    device: Device,
}

impl Checkpoint {
    /// Opens `model.safetensors` in `dir` and reads its header.
    ///
    /// # Errors
    /// If it is missing or its header is wrong.
    pub fn open(dir: &Path, prefix: &'static str) -> Result<Self, ModelError> {
        let path = dir.join("model.safetensors");
        if !path.is_file() {
            return Err(missing_weights(dir));
        }
        let io = |source| ModelError::Io {
            path: path.clone(),
            source,
        };
        let mut file = File::open(&path).map_err(io)?;
        let file_bytes = file.metadata().map_err(io)?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length)
            .map_err(|_| corrupt("it has no header"))?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES || length > file_bytes {
            return Err(corrupt(&format!("its header claims {length} bytes")));
        }
        let mut header = vec![0; usize::try_from(length).map_err(|_| corrupt("header"))?];
        file.read_exact(&mut header)
            .map_err(|_| corrupt("its header is cut short"))?;
        let metadata: Metadata =
            serde_json::from_slice(&header).map_err(|e| corrupt(&e.to_string()))?;
        let data_start = 8 + length;
        if data_start.checked_add(metadata.data_len() as u64) != Some(file_bytes) {
            return Err(corrupt("its length is not what its header says"));
        }
        let tensors = metadata.tensors().into_iter();
        Ok(Self {
            path,
            file,
            data_start,
            tensors: tensors.map(|(name, info)| (name, info.clone())).collect(),
            used: BTreeSet::new(),
            prefix,
            device: Device::Cpu,
        })
    }

    /// Parameters go to this device.
    #[must_use]
    pub fn on(self, device: &Device) -> Self {
        Self {
            device: device.clone(),
            ..self
        }
    }

    /// The shape of a tensor, if there is one of this name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        let found = self.find(name)?;
        Some(&self.tensors.get(&found)?.shape)
    }

    /// Tensors that nobody asked for, by name.
    pub fn ignored(&self) -> Vec<String> {
        let names = self.tensors.keys();
        names.filter(|n| !self.used.contains(*n)).cloned().collect()
    }

    /// What the file calls the tensor: with or without the prefix, and with the names that layer
    /// normalisation had in TensorFlow.
    fn find(&self, name: &str) -> Option<String> {
        let bare = name.strip_prefix(self.prefix).unwrap_or(name);
        let old = |name: &str| {
            name.replace("LayerNorm.weight", "LayerNorm.gamma")
                .replace("LayerNorm.bias", "LayerNorm.beta")
        };
        [name.to_owned(), bare.to_owned(), old(name), old(bare)]
            .into_iter()
            .find(|n| self.tensors.contains_key(n))
    }

    fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, ModelError> {
        let Some((found, info)) = self
            .find(name)
            .and_then(|found| self.tensors.get_key_value(&found))
        else {
            return Err(ModelError::Invalid(format!(
                "model.safetensors has no tensor {name:?}"
            )));
        };
        if info.shape != shape {
            return Err(ModelError::Invalid(format!(
                "tensor {found:?} has shape {:?}, config.json makes it {shape:?}",
                info.shape
            )));
        }
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        let at = self.data_start + start as u64;
        let mut read = || {
            self.file.seek(SeekFrom::Start(at))?;
            self.file.read_exact(&mut bytes)
        };
        read().map_err(|source| ModelError::Io {
            path: self.path.clone(),
            source,
        })?;
        let values = to_f32(&bytes, info.dtype).ok_or_else(|| {
            let dtype = info.dtype;
            ModelError::Invalid(format!(
                "tensor {found:?} is {dtype:?}, not F32, F16 or BF16"
            ))
        })?;
        if !values.iter().all(|x| x.is_finite()) {
            return Err(ModelError::Invalid(format!(
                "tensor {found:?} has values that are not finite"
            )));
        }
        self.used.insert(found.clone());
        Ok(values)
    }
}

impl ParameterSource for Checkpoint {
    type Error = ModelError;

    fn parameter(&mut self, name: &str, shape: &[usize]) -> Result<Parameter, ModelError> {
        let values = self.read(name, shape)?;
        let value = Tensor::from_vec(values, shape, &self.device)?;
        Ok(Parameter::new(name, value)?)
    }
}

/// A file that must be there, and short.
pub(super) fn read_small_file(path: &Path, max_bytes: u64) -> Result<Vec<u8>, ModelError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let io = |source| ModelError::Io {
        path: path.to_owned(),
        source,
    };
    if !path.is_file() {
        return Err(ModelError::Invalid(format!("{name} is missing")));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io)?;
    file.take(max_bytes + 1)
        .read_to_end(&mut bytes)
        .map_err(io)?;
    if bytes.len() as u64 > max_bytes {
        return Err(ModelError::Invalid(format!(
            "{name} is longer than {max_bytes} bytes"
        )));
    }
    Ok(bytes)
}

fn to_f32(bytes: &[u8], dtype: Dtype) -> Option<Vec<f32>> {
    let pairs = || bytes.as_chunks::<2>().0.iter();
    match dtype {
        Dtype::F32 => Some(
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|b| f32::from_le_bytes(*b))
                .collect(),
        ),
        Dtype::F16 => Some(pairs().map(|b| f16::from_le_bytes(*b).to_f32()).collect()),
        Dtype::BF16 => Some(pairs().map(|b| bf16::from_le_bytes(*b).to_f32()).collect()),
        _ => None,
    }
}

fn corrupt(why: &str) -> ModelError {
    ModelError::Invalid(format!("model.safetensors is corrupt: {why}"))
}

/// Says what the folder has instead of `model.safetensors`.
fn missing_weights(dir: &Path) -> ModelError {
    let names: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let pickle = |name: &String| {
        name.starts_with("pytorch_model")
            || [".pt", ".pth", ".pkl", ".ckpt"]
                .iter()
                .any(|end| name.ends_with(end))
    };
    if names.iter().any(|n| n == "model.safetensors.index.json") {
        ModelError::Invalid(
            "weights spread over several safetensors files are not supported".into(),
        )
    } else if names.iter().any(pickle) {
        ModelError::PickleOnly
    } else {
        ModelError::Invalid("model.safetensors is missing".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with this header and as many zero bytes of data.
    fn write(dir: &Path, header: &str, data: &[u8]) {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        std::fs::write(dir.join("model.safetensors"), bytes).unwrap();
    }

    fn one(name: &str, dtype: &str, len: usize) -> String {
        format!(r#"{{"{name}":{{"dtype":"{dtype}","shape":[1,2],"data_offsets":[0,{len}]}}}}"#)
    }

    fn values(dir: &Path, name: &str) -> Result<Vec<Vec<f32>>, ModelError> {
        let parameter = Checkpoint::open(dir, "bert.")?.parameter(name, &[1, 2])?;
        assert_eq!(parameter.name, name);
        Ok(parameter.value.to_vec2()?)
    }

    #[test]
    fn all_float_types_and_old_names_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let f32s: Vec<u8> = [1.5f32, -2.0]
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect();
        let f16s: Vec<u8> = [1.5f32, -2.0]
            .iter()
            .flat_map(|&x| f16::from_f32(x).to_le_bytes())
            .collect();
        let bf16s: Vec<u8> = [1.5f32, -2.0]
            .iter()
            .flat_map(|&x| bf16::from_f32(x).to_le_bytes())
            .collect();
        for (name, asked) in [
            ("bert.x.weight", "bert.x.weight"),
            ("x.weight", "bert.x.weight"),
            ("bert.x.LayerNorm.gamma", "bert.x.LayerNorm.weight"),
            ("x.LayerNorm.beta", "bert.x.LayerNorm.bias"),
        ] {
            for (dtype, data) in [("F32", &f32s), ("F16", &f16s), ("BF16", &bf16s)] {
                write(dir.path(), &one(name, dtype, data.len()), data);
                assert_eq!(
                    values(dir.path(), asked).unwrap(),
                    [[1.5, -2.0]],
                    "{name} {dtype}"
                );
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_tensor_is_said_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let message = |asked| values(dir.path(), asked).unwrap_err().to_string();
        write(dir.path(), &one("x", "I64", 16), &[0; 16]);
        assert_eq!(message("x"), r#"tensor "x" is I64, not F32, F16 or BF16"#);
        assert_eq!(message("y"), r#"model.safetensors has no tensor "y""#);
        write(dir.path(), &one("x", "F32", 8), &[0xFF; 8]);
        assert_eq!(message("x"), r#"tensor "x" has values that are not finite"#);
        let mut checkpoint = Checkpoint::open(dir.path(), "bert.").unwrap();
        let error = checkpoint.parameter("x", &[2, 1]).unwrap_err().to_string();
        assert_eq!(
            error,
            r#"tensor "x" has shape [1, 2], config.json makes it [2, 1]"#
        );
        assert_eq!(checkpoint.ignored(), ["x"]);
    }

    #[test]
    fn corrupt_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let good = one("x", "F32", 8);
        for (header, data) in [
            (good.as_str(), 7),
            (&good, 9),
            (&one("x", "F32", 12), 12),
            (&good.replace('1', "18446744073709551615"), 8),
            ("{", 0),
            ("", 0),
        ] {
            write(dir.path(), header, &vec![0; data]);
            let error = Checkpoint::open(dir.path(), "bert.")
                .err()
                .unwrap()
                .to_string();
            assert!(error.starts_with("model.safetensors is corrupt"), "{error}");
        }
        for bytes in [
            vec![],
            vec![1, 2, 3],
            u64::MAX.to_le_bytes().to_vec(),
            (2u64 << 20).to_le_bytes().to_vec(),
        ] {
            std::fs::write(&path, bytes).unwrap();
            assert!(Checkpoint::open(dir.path(), "bert.").is_err());
        }
    }

    #[test]
    fn a_folder_without_safetensors_says_what_it_has() {
        let dir = tempfile::tempdir().unwrap();
        let error = || Checkpoint::open(dir.path(), "bert.").err().unwrap();
        assert_eq!(error().to_string(), "model.safetensors is missing");
        std::fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
        assert!(matches!(error(), ModelError::PickleOnly));
        std::fs::write(dir.path().join("model.safetensors.index.json"), "").unwrap();
        assert!(error().to_string().contains("several"));
    }
}

//! Reads `model.safetensors` by Hugging Face's tensor names. The file is untrusted: its header is bounded,
//! and a tensor is taken only with the shape that the configuration demands.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{Device, Tensor};
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};

use super::{ModelError, initializer};
use crate::layers::{Parameter, ParameterSource};

/// A legal header may have 100 MB; no encoder needs one.
const MAX_HEADER_BYTES: u64 = 1 << 20;
/// Prefix of the encoder's tensors; checkpoints of the bare encoder lack it.
const PREFIX: &str = "bert.";

/// A checkpoint's tensors, taken one by one by name.
pub struct Checkpoint {
    bytes: Vec<u8>,
    taken: BTreeSet<String>,
    initialized: Vec<String>,
    seed: u64,
    initializer_range: f64,
}

impl Checkpoint {
    /// Reads `model.safetensors` in `dir`. `seed` and `initializer_range` are for what it lacks.
    ///
    /// # Errors
    /// `PickleOnly` if there are only pickle weights, `Invalid` if the file is corrupt.
    pub fn open(dir: &Path, seed: u64, initializer_range: f64) -> Result<Self, ModelError> {
        let path = dir.join("model.safetensors");
        if !path.exists() && dir.join("pytorch_model.bin").exists() {
            return Err(ModelError::PickleOnly);
        }
        let unreadable = |source| ModelError::Io {
            file: "model.safetensors",
            source,
        };
        let bytes = std::fs::read(&path).map_err(unreadable)?;
        let header = bytes
            .first_chunk::<8>()
            .map_or(u64::MAX, |length| u64::from_le_bytes(*length));
        if header > MAX_HEADER_BYTES {
            return Err(invalid("its header is missing or larger than 1 MiB"));
        }
        SafeTensors::deserialize(&bytes).map_err(|e| invalid(&e.to_string()))?;
        Ok(Self {
            bytes,
            taken: BTreeSet::new(),
            initialized: Vec::new(),
            seed,
            initializer_range,
        })
    }

    /// A head's parameter: the checkpoint's if it has one of this shape, else fresh (weights from a normal
    /// distribution, biases 0), as HF does.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn or_initialize(&mut self, name: &str, shape: &[usize]) -> Result<Parameter, ModelError> {
        let fits = self.find(name)?.is_some_and(|(_, found)| found == shape);
        if fits {
            return self.parameter(name, shape);
        }
        self.initialized.push(name.to_owned());
        let count = shape.iter().product();
        let values = if name.ends_with(".bias") {
            vec![0.0; count]
        } else {
            initializer::normal(self.seed, name, count, self.initializer_range)
        };
        let value = Tensor::from_vec(values, shape, &Device::Cpu)?;
        Ok(Parameter::new(name, value)?)
    }

    /// Parameters that the checkpoint lacks and that were made fresh.
    pub fn newly_initialized(&self) -> &[String] {
        &self.initialized
    }

    /// Tensors that nothing asked for.
    ///
    /// # Errors
    /// If the header cannot be read again.
    pub fn ignored(&self) -> Result<Vec<String>, ModelError> {
        let file = self.file()?;
        let mut names: Vec<String> = file
            .names()
            .into_iter()
            .filter(|name| !self.taken.contains(*name))
            .map(str::to_owned)
            .collect();
        names.sort();
        Ok(names)
    }

    fn file(&self) -> Result<SafeTensors<'_>, ModelError> {
        SafeTensors::deserialize(&self.bytes).map_err(|e| invalid(&e.to_string()))
    }

    /// The name under which the file has the tensor, and its shape.
    fn find(&self, name: &str) -> Result<Option<(String, Vec<usize>)>, ModelError> {
        let file = self.file()?;
        Ok(aliases(name).into_iter().find_map(|alias| {
            let view = file.tensor(&alias).ok()?;
            Some((alias, view.shape().to_vec()))
        }))
    }
}

impl ParameterSource for Checkpoint {
    type Error = ModelError;

    fn parameter(&mut self, name: &str, shape: &[usize]) -> Result<Parameter, ModelError> {
        let Some((alias, found)) = self.find(name)? else {
            return Err(invalid(&format!("tensor {name} is missing")));
        };
        if found != shape {
            return Err(invalid(&format!(
                "tensor {alias} has shape {found:?}, but config.json demands {shape:?}"
            )));
        }
        let values = {
            let file = self.file()?;
            let view = file.tensor(&alias).map_err(|e| invalid(&e.to_string()))?;
            to_f32(view.dtype(), view.data())
                .ok_or_else(|| invalid(&format!("tensor {alias} is no float tensor")))?
        };
        if !values.iter().all(|x| x.is_finite()) {
            return Err(invalid(&format!("tensor {alias} has values that are not finite")));
        }
        self.taken.insert(alias);
        let value = Tensor::from_vec(values, shape, &Device::Cpu)?;
        Ok(Parameter::new(name, value)?)
    }
}

/// Names under which checkpoints have a tensor: with and without the prefix, and the oldest checkpoints
/// call LayerNorm's parameters gamma and beta.
fn aliases(name: &str) -> Vec<String> {
    let bare = name.strip_prefix(PREFIX).unwrap_or(name);
    let mut names = vec![name.to_owned()];
    if bare != name {
        names.push(bare.to_owned());
    }
    for (new, old) in [
        ("LayerNorm.weight", "LayerNorm.gamma"),
        ("LayerNorm.bias", "LayerNorm.beta"),
    ] {
        if bare.ends_with(new) {
            names.extend(names.clone().iter().map(|n| n.replace(new, old)));
        }
    }
    names
}

fn to_f32(dtype: Dtype, bytes: &[u8]) -> Option<Vec<f32>> {
    let halves = || bytes.as_chunks::<2>().0.iter();
    Some(match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::F16 => halves().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::BF16 => halves().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        _ => return None,
    })
}

fn invalid(what: &str) -> ModelError {
    ModelError::Invalid(format!("model.safetensors: {what}"))
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn write(dir: &Path, tensors: &[(&str, Dtype, Vec<u8>)]) {
        let views = tensors.iter().map(|(name, dtype, bytes)| {
            let count = bytes.len() * 8 / dtype.bitsize();
            (*name, TensorView::new(*dtype, vec![count], bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    }

    fn read(checkpoint: &mut Checkpoint, name: &str) -> Vec<f32> {
        let parameter = checkpoint.parameter(name, &[2]).unwrap();
        assert_eq!(parameter.name, name);
        parameter.value.to_vec1().unwrap()
    }

    #[test]
    fn names_and_types_of_all_vintages_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let f32s: Vec<u8> = [1f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let f16s: Vec<u8> = [3.0, 4.0].iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        let bf16s: Vec<u8> = [5.0, 6.0].iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
        write(
            dir.path(),
            &[
                ("embeddings.LayerNorm.gamma", Dtype::F32, f32s),
                ("bert.embeddings.LayerNorm.beta", Dtype::F16, f16s),
                ("pooler.dense.bias", Dtype::BF16, bf16s),
                ("cls.predictions.bias", Dtype::F32, vec![0; 8]),
            ],
        );
        let mut checkpoint = Checkpoint::open(dir.path(), 0, 0.02).unwrap();
        assert_eq!(read(&mut checkpoint, "bert.embeddings.LayerNorm.weight"), [1.0, 2.0]);
        assert_eq!(read(&mut checkpoint, "bert.embeddings.LayerNorm.bias"), [3.0, 4.0]);
        assert_eq!(read(&mut checkpoint, "bert.pooler.dense.bias"), [5.0, 6.0]);
        assert_eq!(checkpoint.ignored().unwrap(), ["cls.predictions.bias"]);
        let missing = checkpoint.parameter("bert.nothing", &[2]).unwrap_err();
        assert!(missing.to_string().contains("bert.nothing is missing"));
        let shape = checkpoint.parameter("bert.pooler.dense.bias", &[3]).unwrap_err();
        assert!(shape.to_string().contains("[2]") && shape.to_string().contains("[3]"));
    }

    #[test]
    fn what_a_head_lacks_is_made_fresh() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[("classifier.weight", Dtype::F32, vec![0; 8])]);
        let mut checkpoint = Checkpoint::open(dir.path(), 7, 0.02).unwrap();
        checkpoint.or_initialize("classifier.weight", &[2]).unwrap();
        let fresh = checkpoint.or_initialize("classifier.other", &[4]).unwrap();
        assert!(fresh.value.to_vec1::<f32>().unwrap().iter().all(|&x| x != 0.0));
        let bias = checkpoint.or_initialize("classifier.bias", &[4]).unwrap();
        assert_eq!(bias.value.to_vec1::<f32>().unwrap(), [0.0; 4]);
        assert_eq!(checkpoint.newly_initialized(), ["classifier.other", "classifier.bias"]);
    }

    #[test]
    fn corrupt_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let nan: Vec<u8> = [f32::NAN, 0.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        write(dir.path(), &[("a", Dtype::F32, nan)]);
        let mut checkpoint = Checkpoint::open(dir.path(), 0, 0.02).unwrap();
        assert!(checkpoint.parameter("a", &[2]).is_err());
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 4, 8, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Checkpoint::open(dir.path(), 0, 0.02).is_err(), "{length} bytes");
        }
        let mut huge = (2u64 << 20).to_le_bytes().to_vec();
        huge.resize(3 << 20, b' ');
        std::fs::write(&path, huge).unwrap();
        assert!(Checkpoint::open(dir.path(), 0, 0.02).is_err());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(dir.path().join("pytorch_model.bin"), "").unwrap();
        assert!(matches!(Checkpoint::open(dir.path(), 0, 0.02), Err(ModelError::PickleOnly)));
    }
}

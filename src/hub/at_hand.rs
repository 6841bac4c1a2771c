//! The size of a model that is on this machine already, by a glance at its files: what a job will take of a GPU is
//! estimated from it before the job starts. Nothing is fetched, and nothing hashed: a second per gigabyte would be too
//! long where it is asked again and again. What is damaged is found by the trainer, which resolves the model in earnest.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::folder::WEIGHTS;
use super::request::Request;
use super::{Hub, cache};
use crate::artifacts;
use crate::domain::ModelShape;

/// The largest header that `safetensors` itself takes.
const MAX_HEADER_BYTES: u64 = 100_000_000;

impl Hub {
    /// The shape of the model that `requested` names, if its files are at hand; of a job, of any of its checkpoints.
    /// Takes a millisecond or so.
    pub fn shape_at_hand(&self, requested: &str) -> Option<ModelShape> {
        let request = Request::parse(requested).ok()?;
        let folders = self.folders_at_hand(&request);
        folders.iter().find_map(|dir| read_shape(dir))
    }

    /// Where the model may lie, in the order in which [`Hub::resolve`] looks.
    fn folders_at_hand(&self, request: &Request) -> Vec<PathBuf> {
        let data_dir = &self.options.data_dir;
        let mut folders: Vec<PathBuf> = request.path.iter().cloned().collect();
        if let Some(job) = &request.job {
            let steps = artifacts::list_steps(&data_dir.checkpoints_dir(job.id));
            let dirs = steps.unwrap_or_default().into_iter().rev();
            folders.extend(dirs.map(|step| data_dir.checkpoint_dir(job.id, step)));
        }
        if let Some(Ok(repo)) = &request.repo {
            let snapshot = cache::snapshot(&self.options.env.cache_dir(), repo);
            folders.extend(snapshot.ok().map(|(dir, _)| dir));
            if repo.id == self.package.repo {
                folders.push(self.package.place(&data_dir.models_dir()));
            }
        }
        folders
    }
}

/// The sizes in `config.json`, by the names of the BERT family and by DistilBERT's.
#[derive(Deserialize)]
struct Sizes {
    #[serde(alias = "n_layers")]
    num_hidden_layers: u64,
    #[serde(alias = "dim")]
    hidden_size: u64,
    #[serde(alias = "hidden_dim")]
    intermediate_size: u64,
    #[serde(alias = "n_heads")]
    num_attention_heads: u64,
}

fn read_shape(dir: &Path) -> Option<ModelShape> {
    let config = fs::read(dir.join("config.json")).ok()?;
    let sizes: Sizes = serde_json::from_slice(&config).ok()?;
    Some(ModelShape {
        parameters: count_parameters(&dir.join(WEIGHTS))?,
        layers: sizes.num_hidden_layers,
        hidden_size: sizes.hidden_size,
        intermediate_size: sizes.intermediate_size,
        heads: sizes.num_attention_heads,
    })
}

/// Elements of all tensors, from the header of the file (8 bytes of length, then JSON).
fn count_parameters(weights: &Path) -> Option<u64> {
    let mut file = File::open(weights).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return None;
    }
    let mut header = Vec::new();
    let read = file.take(length).read_to_end(&mut header).ok()?;
    if read as u64 != length {
        return None;
    }
    let header: Value = serde_json::from_slice(&header).ok()?;
    let tensors = header.as_object()?.iter();
    tensors
        .filter(|(name, _)| *name != "__metadata__")
        .try_fold(0u64, |sum, (_, tensor)| sum.checked_add(elements(tensor)?))
}

fn elements(tensor: &Value) -> Option<u64> {
    let dimensions = tensor["shape"].as_array()?.iter();
    dimensions
        .map(Value::as_u64)
        .try_fold(1u64, |product, size| product.checked_mul(size?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use uuid::Uuid;

    use super::*;
    use crate::artifacts::CheckpointWriter;
    use crate::domain::JobId;
    use crate::hub::testing::{COMMIT, Machine, write_model};

    const CONFIG: &str = r#"{"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16,
        "num_attention_heads": 4, "vocab_size": 30}"#;
    const SHAPE: ModelShape = ModelShape {
        parameters: 8 * 30 + 8,
        layers: 2,
        hidden_size: 8,
        intermediate_size: 16,
        heads: 4,
    };

    fn write(dir: &Path, config: &str) {
        let header = r#"{"__metadata__": {"format": "pt"},
            "w": {"dtype": "F32", "shape": [30, 8], "data_offsets": [0, 960]},
            "b": {"dtype": "F32", "shape": [8], "data_offsets": [960, 992]}}"#;
        let mut weights = (header.len() as u64).to_le_bytes().to_vec();
        weights.extend_from_slice(header.as_bytes());
        write_model(dir, "");
        fs::write(dir.join(WEIGHTS), weights).unwrap();
        fs::write(dir.join("config.json"), config).unwrap();
    }

    #[test]
    fn a_model_is_seen_wherever_it_may_lie() {
        let machine = Machine::new();
        let hub = machine.hub();
        let dir = machine.temp.path().join("bert");
        let folder = dir.display().to_string();
        assert_eq!(hub.shape_at_hand(&folder), None);
        write(&dir, CONFIG);
        assert_eq!(hub.shape_at_hand(&folder), Some(SHAPE));

        assert_eq!(hub.shape_at_hand("org/name"), None);
        let place = machine.env.cache_dir().join("models--org--name");
        write(&place.join("snapshots").join(COMMIT), CONFIG);
        fs::create_dir_all(place.join("refs")).unwrap();
        fs::write(place.join("refs/main"), COMMIT).unwrap();
        assert_eq!(hub.shape_at_hand("org/name"), Some(SHAPE));

        assert_eq!(hub.shape_at_hand("all-MiniLM-L6-v2"), None);
        write(&hub.package.place(&machine.data_dir().models_dir()), CONFIG);
        assert_eq!(hub.shape_at_hand("all-MiniLM-L6-v2"), Some(SHAPE));

        let job = JobId(Uuid::from_u128(9));
        assert_eq!(hub.shape_at_hand(&format!("job:{job}")), None);
        let checkpoints = machine.data_dir().checkpoints_dir(job);
        let writer = CheckpointWriter::begin(&checkpoints, 5).unwrap();
        write(writer.dir(), CONFIG);
        writer.publish(1.0, BTreeMap::new(), true).unwrap();
        for name in [format!("job:{job}"), format!("job:{job}@best")] {
            assert_eq!(hub.shape_at_hand(&name), Some(SHAPE));
        }
        assert_eq!(hub.shape_at_hand("../x"), None, "no name of anything");
    }

    #[test]
    fn distilbert_has_other_names_for_the_same() {
        let machine = Machine::new();
        let dir = machine.temp.path().join("m");
        let config = r#"{"model_type": "distilbert", "n_layers": 2, "dim": 8, "hidden_dim": 16, "n_heads": 4}"#;
        write(&dir, config);
        let shape = machine.hub().shape_at_hand(&dir.display().to_string());
        assert_eq!(shape, Some(SHAPE));
    }

    #[test]
    fn what_cannot_be_read_has_no_shape() {
        let machine = Machine::new();
        let dir = machine.temp.path().join("m");
        let shape = || machine.hub().shape_at_hand(&dir.display().to_string());
        write(&dir, r#"{"hidden_size": 8}"#);
        assert_eq!(shape(), None);
        write(&dir, CONFIG);
        let huge = br#"{"w": {"shape": [4294967296, 4294967296]}}"#;
        let huge = [&(huge.len() as u64).to_le_bytes(), &huge[..]].concat();
        for weights in [&[][..], &[0xff; 8], b"\x03\0\0\0\0\0\0\0{}", &huge] {
            fs::write(dir.join(WEIGHTS), weights).unwrap();
            assert_eq!(shape(), None);
        }
    }
}

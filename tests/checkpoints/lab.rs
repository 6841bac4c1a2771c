//! Trainings inside this process: a tiny BERT, a few reviews, every event kept.

use std::path::{Path, PathBuf};

use chandler::domain::{
    DatasetFormat, DatasetLayout, DatasetLocation, DeviceKind, JobError, JobId, JobSpec,
};
use chandler::faults::Faults;
use chandler::train::{self, Outcome, TrainJob};
use serde_json::{Value, json};

pub use crate::support::lane::Random;
pub use crate::support::recorder::Recorder;
use crate::support::{reviews, tiny_bert};

/// A folder with a model, one without dropout, and a dataset.
pub struct Lab {
    pub dir: PathBuf,
}

impl Lab {
    pub fn set_up(dir: &Path, rows: usize) -> Self {
        tiny_bert::write(&dir.join("dropout"));
        tiny_bert::write(&dir.join("no-dropout"));
        let config = dir.join("no-dropout/config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, text.replace("_prob\": 0.1", "_prob\": 0.0")).unwrap();
        std::fs::write(dir.join("train.csv"), reviews(rows)).unwrap();
        Self::at(dir)
    }

    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    /// A training whose checkpoints go to `run`.
    pub fn job(&self, run: &Path, spec: &Value) -> TrainJob {
        let mut body = json!({
            "model": "tiny",
            "task": "sequence_classification",
            "dataset": {"train": "00000000-0000-0000-0000-000000000001"},
            "max_seq_length": 32,
            "training_args": spec["training_args"],
        });
        if !spec["eval_split"].is_null() {
            body["dataset"]["eval_split"] = spec["eval_split"].clone();
        }
        let model = if spec["dropout"] == json!(false) {
            "no-dropout"
        } else {
            "dropout"
        };
        TrainJob {
            job_id: "00000000-0000-0000-0000-000000000002"
                .parse::<JobId>()
                .unwrap(),
            spec: JobSpec::parse(&body).unwrap(),
            train: DatasetLocation {
                path: self.dir.join("train.csv"),
                layout: DatasetLayout {
                    format: DatasetFormat::Csv,
                    header: true,
                    columns: vec!["text".to_owned(), "label".to_owned()],
                },
                sha256: String::new(),
            },
            eval: None,
            model_dir: self.dir.join(model),
            checkpoints_dir: run.join("checkpoints"),
            micro_batch_divisor: 1,
            device: DeviceKind::Cpu,
            faults: Faults::default(),
        }
    }
}

pub fn run(job: &TrainJob) -> (Result<Outcome, JobError>, Recorder) {
    let recorder = Recorder::default();
    (train::run(job, &recorder), recorder)
}

pub fn file(job: &TrainJob, step: u64, name: &str) -> Vec<u8> {
    let path = job
        .checkpoints_dir
        .join(format!("checkpoint-{step}"))
        .join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names in a training's folder of checkpoints, sorted.
pub fn names(job: &TrainJob) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(&job.checkpoints_dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_tree(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// A number a lane is asked to do, and its seed.
pub fn lane(count: usize) -> (usize, u64) {
    let of = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let count = of("CHANDLER_LANE_COUNT").map_or(count, |n| usize::try_from(n).unwrap());
    let seed = of("CHANDLER_LANE_SEED").unwrap_or(1);
    println!("count {count}, seed {seed}");
    (count, seed)
}

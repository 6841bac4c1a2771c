//! Trainers killed at random points end with the bits of one that was left alone (rows 14 and 15).

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::child::{Fate, TIMED, attempt, model_step};
use super::lab::{Lab, Random, lane};

/// What differs between configurations, and the values it takes.
const DIMENSIONS: [(&str, &[&str]); 8] = [
    ("dropout", &["on", "off"]),
    ("accumulation", &["1", "2", "3"]),
    ("last batch", &["whole", "partial"]),
    ("warm-up", &["none", "some"]),
    ("evaluation", &["none", "steps", "best", "early stopping"]),
    ("save", &["every step", "every third", "epoch"]),
    ("log", &["every step", "every third"]),
    ("left by", &["kills", "kills and pauses"]),
];

type Config = [usize; DIMENSIONS.len()];

/// At least 24 configurations in which every two values meet.
fn configs() -> Vec<Config> {
    let mut random = Random(7);
    let mut missing: BTreeSet<(usize, usize, usize, usize)> = BTreeSet::new();
    for a in 0..DIMENSIONS.len() {
        for b in a + 1..DIMENSIONS.len() {
            for x in 0..DIMENSIONS[a].1.len() {
                missing.extend((0..DIMENSIONS[b].1.len()).map(|y| (a, x, b, y)));
            }
        }
    }
    let mut configs = Vec::new();
    while !missing.is_empty() || configs.len() < 24 {
        let config: Config = std::array::from_fn(|d| {
            usize::try_from(random.below(DIMENSIONS[d].1.len() as u64)).unwrap()
        });
        let before = missing.len();
        missing.retain(|(a, x, b, y)| config[*a] != *x || config[*b] != *y);
        if missing.len() < before || missing.is_empty() {
            configs.push(config);
        }
    }
    configs
}

fn value(config: &Config, name: &str) -> &'static str {
    let index = DIMENSIONS.iter().position(|(n, _)| *n == name).unwrap();
    DIMENSIONS[index].1[config[index]]
}

fn describe(config: &Config) -> String {
    let parts = DIMENSIONS
        .iter()
        .map(|(name, _)| format!("{name} {}", value(config, name)));
    parts.collect::<Vec<_>>().join(", ")
}

/// The job: about 20 to 50 steps.
fn spec(config: &Config) -> Value {
    let accumulation: u64 = value(config, "accumulation").parse().unwrap();
    let mut args = json!({
        "num_train_epochs": 3 + accumulation,
        "per_device_train_batch_size": if value(config, "last batch") == "whole" { 3 } else { 4 },
        "gradient_accumulation_steps": accumulation,
        "learning_rate": 3e-3,
        "warmup_steps": if value(config, "warm-up") == "some" { 4 } else { 0 },
        "logging_steps": if value(config, "log") == "every step" { 1 } else { 3 },
        "seed": 11,
    });
    let (strategy, every) = match value(config, "save") {
        "every step" => ("steps", 1),
        "every third" => ("steps", 3),
        _ => ("epoch", 1),
    };
    args["save_strategy"] = json!(strategy);
    args["save_steps"] = json!(every);
    let evaluation = value(config, "evaluation");
    if evaluation != "none" {
        args["eval_strategy"] = json!(strategy);
        args["eval_steps"] = json!(every);
    }
    if evaluation == "best" || evaluation == "early stopping" {
        args["load_best_model_at_end"] = json!(true);
        args["save_total_limit"] = json!(3);
    }
    if evaluation == "early stopping" {
        args["early_stopping_patience"] = json!(2);
        args["early_stopping_threshold"] = json!(0.02);
    }
    json!({
        "training_args": args,
        "dropout": value(config, "dropout") == "on",
        "eval_split": if evaluation == "none" { Value::Null } else { json!(0.25) },
    })
}

/// One configuration's folder: a reference, and as many runs as the kills need.
struct Arena<'a> {
    lab: &'a Path,
    dir: PathBuf,
    config: Config,
    reference: Reference,
}

struct Reference {
    run: PathBuf,
    took: Duration,
    steps: u64,
}

/// What was done.
#[derive(Debug, Default)]
struct Tally {
    kills: usize,
    pauses: usize,
    runs: usize,
    early: usize,
}

impl<'a> Arena<'a> {
    fn new(lab: &'a Path, dir: PathBuf, config: Config) -> Self {
        let run = dir.join("reference");
        begin(&run, &config);
        let started = Instant::now();
        assert!(attempt(lab, &run, &Fate::default()).success());
        let took = started.elapsed();
        let steps = newest(&run);
        Self {
            lab,
            dir,
            config,
            reference: Reference { run, took, steps },
        }
    }

    fn fate(&self, run: &Path, random: &mut Random) -> Fate {
        let (done, steps) = (newest(run), self.reference.steps);
        let pauses = value(&self.config, "left by") == "kills and pauses";
        match random.below(if pauses { 4 } else { 3 }) {
            0 => Fate {
                faults: format!("train.step@{}=kill", done + 1 + random.below(steps - done)),
                ..Fate::default()
            },
            1 => Fate {
                faults: format!("checkpoint.write@{}=kill", 1 + random.below(700)),
                ..Fate::default()
            },
            2 => {
                let micros = u64::try_from(self.reference.took.as_micros()).unwrap();
                let delay = Duration::from_micros(random.below(micros));
                Fate {
                    kill_after: Some(delay),
                    ..Fate::default()
                }
            }
            _ => Fate {
                pause_at: Some(1 + random.below(steps - done.min(steps - 1))),
                ..Fate::default()
            },
        }
    }

    /// Kills trainers until `kills` were; every run is finished and compared.
    fn fight(&self, kills: usize, random: &mut Random, tally: &mut Tally) {
        let goal = tally.kills + kills;
        while tally.kills < goal {
            let run = self.dir.join(format!("run-{}", tally.runs));
            begin(&run, &self.config);
            while tally.kills < goal && model_step(&run).is_none() {
                let fate = self.fate(&run, random);
                let status = attempt(self.lab, &run, &fate);
                tally.pauses += usize::from(fate.pause_at.is_some());
                match status.signal() {
                    Some(9) => tally.kills += 1,
                    _ => assert!(status.success(), "{fate:?}: {status}"),
                }
            }
            if model_step(&run).is_none() {
                assert!(attempt(self.lab, &run, &Fate::default()).success());
            }
            if let Err(difference) = compare(&self.reference.run, &run) {
                panic!(
                    "{}: {difference}\n{}",
                    describe(&self.config),
                    run.display()
                );
            }
            tally.runs += 1;
            std::fs::remove_dir_all(&run).unwrap();
        }
        let spool = std::fs::read_to_string(self.reference.run.join("spool")).unwrap();
        tally.early += usize::from(spool.contains("log stopped early"));
    }
}

fn begin(run: &Path, config: &Config) {
    std::fs::create_dir_all(run).unwrap();
    std::fs::write(run.join("job.json"), spec(config).to_string()).unwrap();
}

/// The step of the newest checkpoint; 0 if there is none.
fn newest(run: &Path) -> u64 {
    let found = chandler::artifacts::newest_valid(&run.join("checkpoints"))
        .unwrap()
        .found;
    found.map_or(0, |(step, _, _)| step)
}

/// Whether both trainings ended alike, bit for bit.
fn compare(a: &Path, b: &Path) -> Result<(), String> {
    let steps = (model_step(a), model_step(b));
    same("model step", steps.0, steps.1)?;
    let step = newest(a);
    same("last step", step, newest(b))?;
    for step in [Some(step), steps.0].into_iter().flatten() {
        let weights = |run: &Path| file(run, step, "model.safetensors");
        same("weights", weights(a), weights(b))?;
    }
    if let Some(step) = last_resumable(a, b)? {
        let moments = |run: &Path| file(run, step, "optimizer.safetensors");
        same("optimizer state", moments(a), moments(b))?;
    }
    same("progress", progress(a, step), progress(b, step))?;
    let (series, other) = (series(a)?, series(b)?);
    same("series", series, other)
}

fn same<T: PartialEq>(what: &str, a: T, b: T) -> Result<(), String> {
    if a == b {
        Ok(())
    } else {
        Err(format!("{what} differs"))
    }
}

fn file(run: &Path, step: u64, name: &str) -> Option<Vec<u8>> {
    std::fs::read(
        run.join(format!("checkpoints/checkpoint-{step}"))
            .join(name),
    )
    .ok()
}

/// The newest resumable checkpoint of both. A pause leaves one more, and rotation one less for it.
fn last_resumable(a: &Path, b: &Path) -> Result<Option<u64>, String> {
    let steps = |run: &Path| -> Vec<u64> {
        let all = chandler::artifacts::list_steps(&run.join("checkpoints")).unwrap();
        let resumable = |step: &u64| file(run, *step, "optimizer.safetensors").is_some();
        all.into_iter().filter(resumable).collect()
    };
    let (a, b) = (steps(a), steps(b));
    let common = a.iter().rfind(|step| b.contains(step)).copied();
    // Checkpoints of pauses count for `save_total_limit`: two of them may have displaced all the others.
    if b.is_empty() && !a.is_empty() {
        return Err(format!("resumable steps {b:?} instead of {a:?}"));
    }
    Ok(common)
}

/// The trainer's counters and log, line by line, without what depends on the time.
fn progress(run: &Path, step: u64) -> Vec<String> {
    let text = String::from_utf8(file(run, step, "trainer_progress.json").unwrap()).unwrap();
    let timed = |line: &str| TIMED.iter().any(|word| line.contains(word));
    text.lines()
        .filter(|line| !timed(line))
        .map(str::to_owned)
        .collect()
}

/// Every number that was logged. A step taken again must log the same.
fn series(run: &Path) -> Result<BTreeMap<(u64, String), String>, String> {
    let text = std::fs::read_to_string(run.join("spool")).unwrap();
    let mut series = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with("log ")) {
        let mut words = line.split(' ').map(str::to_owned);
        let (step, name, bits) = (words.next(), words.next(), words.next());
        let key = (step.unwrap().parse().unwrap(), name.unwrap());
        if let Some(before) = series.insert(key.clone(), bits.clone().unwrap())
            && Some(&before) != bits.as_ref()
        {
            return Err(format!("{key:?} was logged as {before} and as {bits:?}"));
        }
    }
    Ok(series)
}

fn kill_trainers(configs: &[Config], kills: usize, seed: u64) -> Tally {
    let temp = tempfile::tempdir().unwrap();
    let lab = temp.path().join("lab");
    Lab::set_up(&lab, 36);
    let mut random = Random(seed);
    let mut tally = Tally::default();
    for (index, config) in configs.iter().enumerate() {
        let share = (kills - tally.kills).div_ceil(configs.len() - index);
        let arena = Arena::new(&lab, temp.path().join(index.to_string()), *config);
        arena.fight(share, &mut random, &mut tally);
        std::fs::remove_dir_all(&arena.dir).unwrap();
    }
    println!("{} configurations, {tally:?}", configs.len());
    tally
}

#[test]
fn ten_killed_trainers_end_like_one_left_alone() {
    let tally = kill_trainers(&configs()[..4], 10, 3);
    assert_eq!(tally.kills, 10);
}

#[test]
#[ignore = "minutes: 200 kills over all configurations"]
fn killed_trainers_end_like_one_left_alone() {
    let (kills, seed) = lane(200);
    let configs = configs();
    assert!(configs.len() >= 24);
    let tally = kill_trainers(&configs, kills, seed);
    assert!(
        tally.kills >= kills && tally.pauses > 0 && tally.early > 0,
        "{tally:?}"
    );
}

/// The control: a trainer that forgets its place in the data after a kill is found out.
#[test]
fn a_trainer_that_forgets_its_place_ends_with_other_weights() {
    let temp = tempfile::tempdir().unwrap();
    let lab = temp.path().join("lab");
    Lab::set_up(&lab, 36);
    let arena = Arena::new(&lab, temp.path().join("arena"), [0, 0, 0, 0, 0, 1, 0, 0]);
    for (forget, expected) in [
        ("", Ok(())),
        (",train.order@1=restart", Err("weights differs".to_owned())),
    ] {
        let run = temp.path().join(format!("run{}", forget.len()));
        begin(&run, &arena.config);
        let fate = Fate {
            faults: "train.step@8=kill".to_owned(),
            ..Fate::default()
        };
        assert_eq!(attempt(&lab, &run, &fate).signal(), Some(9));
        let fate = Fate {
            faults: forget.trim_start_matches(',').to_owned(),
            ..Fate::default()
        };
        assert!(attempt(&lab, &run, &fate).success());
        assert_eq!(compare(&arena.reference.run, &run), expected);
    }
}

//! `save_total_limit` holds even when a trainer dies between publishing a checkpoint and removing older ones, and
//! what the server lists is there.

use chandler::domain::{Command, Event};
use chandler::train::{Observer, Outcome, TrainJob};
use serde_json::{Value, json};

use super::lab::{Lab, Recorder, names, run};

fn spec(limit: Option<u64>) -> Value {
    json!({"training_args": {
        "max_steps": 8, "learning_rate": 3e-3, "logging_steps": 1, "seed": 3, "save_steps": 2,
        "save_total_limit": limit,
    }})
}

fn removed(recorder: &Recorder) -> Vec<u64> {
    let step = |event: &Event| match event {
        Event::CheckpointRemoved { step } => Some(*step),
        _ => None,
    };
    let events = recorder.events.lock().unwrap();
    events.iter().filter_map(step).collect()
}

/// Looks at the disk whenever it is told something.
struct Witness<'a>(&'a TrainJob);

impl Observer for Witness<'_> {
    fn event(&self, event: Event) {
        let step = match event {
            Event::Checkpoint(record) => record.step,
            Event::CheckpointRemoved { step } => step,
            _ => return,
        };
        let dir = self.0.checkpoints_dir.join(format!("checkpoint-{step}"));
        assert!(
            dir.exists(),
            "{}: who is told now, is told wrong",
            dir.display()
        );
    }

    fn command(&self) -> Command {
        Command::Continue
    }
}

/// A trainer may die, or be given up, at any moment between telling and doing.
#[test]
fn a_checkpoint_is_told_of_as_long_as_it_is_there_and_no_longer() {
    let temp = tempfile::tempdir().unwrap();
    let lab = Lab::set_up(&temp.path().join("lab"), 24);
    let job = lab.job(&temp.path().join("job"), &spec(Some(1)));
    let outcome = chandler::train::run(&job, &Witness(&job));
    assert_eq!(outcome, Ok(Outcome::Finished { model_step: 8 }));
    assert_eq!(names(&job), ["checkpoint-8"]);
}

#[test]
fn who_goes_on_removes_what_the_one_before_could_not() {
    let temp = tempfile::tempdir().unwrap();
    let lab = Lab::set_up(&temp.path().join("lab"), 24);
    let finished = Ok(Outcome::Finished { model_step: 8 });
    for died_after in [6, 8] {
        let place = temp.path().join(format!("died-after-{died_after}"));
        // Without a limit nothing is removed, as if the trainer had died before it could.
        let job = lab.job(&place, &spec(None));
        assert_eq!(run(&job).0, finished);
        for step in (2..=8).step_by(2).filter(|step| *step > died_after) {
            let dir = job.checkpoints_dir.join(format!("checkpoint-{step}"));
            std::fs::remove_dir_all(dir).unwrap();
        }
        let (outcome, recorder) = run(&lab.job(&place, &spec(Some(2))));
        assert_eq!(outcome, finished);
        assert_eq!(names(&job), ["checkpoint-6", "checkpoint-8"]);
        assert_eq!(removed(&recorder), [2, 4], "and says so, once");
    }
}

#[test]
fn a_damaged_checkpoint_takes_no_sound_ones_place() {
    let temp = tempfile::tempdir().unwrap();
    let lab = Lab::set_up(&temp.path().join("lab"), 24);
    let job = lab.job(&temp.path().join("job"), &spec(None));
    run(&job).0.unwrap();
    std::fs::remove_dir_all(job.checkpoints_dir.join("checkpoint-8")).unwrap();
    std::fs::write(
        job.checkpoints_dir.join("checkpoint-6/model.safetensors"),
        "",
    )
    .unwrap();
    let pausing = Recorder::pausing_at(0);
    let outcome =
        chandler::train::run(&lab.job(&temp.path().join("job"), &spec(Some(2))), &pausing);
    assert_eq!(outcome, Ok(Outcome::Paused));
    // Training would go on from 4, and from 2 if that were damaged, too.
    assert_eq!(
        names(&job),
        ["checkpoint-2", "checkpoint-4", "checkpoint-6"]
    );
    assert_eq!(removed(&pausing), [0; 0]);
}

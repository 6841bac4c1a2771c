//! `--slots auto` from end to end: the real program opens a library that answers like NVIDIA's (`cuda/nvml.c`), hands its
//! cards out to real trainers, which train on the emulated GPU, and the jobs say what they had and what it cost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::trainers::Trainers;
use crate::support::{ServerOptions, TestServer, chandler, emulated_gpu, reviews, spec, tiny_bert};

const A: &str = "GPU-aaaaaaaa-0000-0000-0000-000000000001";
const B: &str = "GPU-bbbbbbbb-0000-0000-0000-000000000002";

/// A folder with the library and a data directory.
pub struct Machine {
    temp: TempDir,
    /// Variables that describe the cards.
    cards: Vec<(String, String)>,
}

impl Machine {
    /// Cards, each as `cuda/nvml.c` takes them.
    fn new(cards: &[(&str, String)]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/nvml.c");
        let status = Command::new("gcc")
            .args(["-O1", "-shared", "-fPIC", "-Wall", "-Werror", "-o"])
            .arg(temp.path().join("libnvidia-ml.so.1"))
            .arg(source)
            .status()
            .unwrap();
        assert!(status.success());
        let cards = cards
            .iter()
            .map(|(name, card)| (format!("FAKE_GPU_{name}"), card.clone()));
        let cards = cards.collect();
        Self { temp, cards }
    }

    /// Two whole cards of 300 and 100 watts.
    pub fn of_two() -> Self {
        Self::new(&[
            ("0", format!("{A},Fake H100,81920,1024,300,70")),
            ("1", format!("{B},Fake L4,24576,512,100,40")),
        ])
    }

    fn data_dir(&self) -> PathBuf {
        self.temp.path().join("data")
    }

    pub fn options(&self) -> ServerOptions {
        let (nvml, cuda) = (self.temp.path(), emulated_gpu::libraries());
        let folders = format!("{}:{}", nvml.display(), cuda.display());
        let mut options = ServerOptions::new(&self.data_dir())
            .slots("auto")
            .env("LD_LIBRARY_PATH", folders);
        for (name, card) in &self.cards {
            options = options.env(name, card);
        }
        options
    }
}

/// A job that only ends when it is told to.
fn endless(server: &TestServer) -> Value {
    let model = server.data_dir.join("tiny");
    if !model.exists() {
        tiny_bert::write(&model);
    }
    let mut body = spec(&model, &server.csv(&reviews(64)));
    body["training_args"]["max_steps"] = json!(1_000_000);
    body["training_args"]["logging_steps"] = json!(20);
    body["training_args"]["save_strategy"] = json!("no");
    body
}

fn act(server: &TestServer, job: &str, action: &str) {
    let response = server.post(&format!("/v1/jobs/{job}/{action}"), &json!({}));
    assert!(
        response.status().is_success(),
        "{}",
        response.text().unwrap()
    );
}

/// Waits until the nth attempt trains; answers the UUID of its card.
fn card_of(server: &TestServer, job: &str, attempt: u32) -> String {
    let view = server.wait_until(job, |view| {
        view["attempt"] == attempt && view["phase"] == "training" && !view["progress"].is_null()
    });
    assert_eq!(view["device"]["type"], "cuda", "{view}");
    view["device"]["uuid"].as_str().unwrap().to_owned()
}

fn status(server: &TestServer, job: &str) -> (String, u64) {
    let view = server.get_json(&format!("/v1/jobs/{job}"));
    let status = view["status"].as_str().unwrap().to_owned();
    (status, view["attempt"].as_u64().unwrap())
}

/// What a trainer was started with.
fn environment(trainers: &Trainers, job: &str) -> BTreeMap<String, String> {
    let pid = trainers.of_attempt(job, 1).expect("the trainer runs");
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let variables = text.split('\0').filter_map(|line| line.split_once('='));
    variables
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn devices(server: &TestServer) -> Vec<Value> {
    let ready = server.get_json("/readyz");
    ready["slots"].as_array().unwrap().clone()
}

fn uuids(server: &TestServer) -> Vec<String> {
    let slots = devices(server);
    let uuid = |slot: &Value| slot["device"]["uuid"].as_str().unwrap_or("cpu").to_owned();
    slots.iter().map(uuid).collect()
}

fn series(server: &TestServer, job: &str, name: &str) -> Vec<f64> {
    let metrics = server.get_json(&format!("/v1/jobs/{job}/metrics?names={name}"));
    let points = metrics["data"][name]
        .as_array()
        .cloned()
        .unwrap_or_default();
    points
        .iter()
        .map(|point| point["value"].as_f64().unwrap())
        .collect()
}

#[test]
fn each_card_trains_a_job_and_one_that_dies_takes_nobody_with_it() {
    let machine = Machine::of_two();
    let server = machine.options().start();
    let slot = json!({
        "device": {"type": "cuda", "name": "Fake H100", "uuid": A}, "jobs": 1, "memory_bytes": 80u64 << 30,
    });
    assert_eq!(devices(&server)[0], slot);
    assert_eq!(uuids(&server), [A, B]);
    let said = server.log();
    let slots = said.iter().filter(|line| line.contains("\"slot\""));
    assert!(slots.clone().any(|line| line.contains(A)), "{said:?}");
    assert_eq!(slots.count(), 2);

    let trainers = Trainers::of(&server.data_dir);
    let body = endless(&server);
    let (first, second) = (server.job(&body), server.job(&body));
    assert_eq!(card_of(&server, &first, 1), A, "the one with most room");
    assert_eq!(card_of(&server, &second, 1), B);
    for (job, uuid) in [(&first, A), (&second, B)] {
        let environment = environment(&trainers, job);
        assert_eq!(environment["CUDA_VISIBLE_DEVICES"], uuid);
        assert_eq!(environment["CHANDLER_DEVICE"], "cuda");
        let events = server.events(job);
        let started = events
            .iter()
            .find(|event| event["type"] == "started")
            .unwrap();
        assert_eq!(started["data"]["device"]["uuid"], uuid);
    }
    let third = server.job(&body);
    assert_eq!(status(&server, &third), ("queued".to_owned(), 0));

    // As a fault of CUDA would end it.
    kill(trainers.of_job(&first)[0], Signal::SIGABRT).unwrap();
    assert_eq!(card_of(&server, &third, 1), A, "the card is free at once");
    assert_eq!(status(&server, &second), ("running".to_owned(), 1));
    act(&server, &second, "pause");
    assert_eq!(card_of(&server, &first, 2), B);
    for job in [&first, &third] {
        act(&server, job, "cancel");
        assert_eq!(server.wait(job)["status"], "cancelled");
    }
}

#[test]
fn an_adopted_trainer_keeps_its_card() {
    let machine = Machine::of_two();
    let options = machine.options().fixed_port().leave();
    let _trainers = Trainers::of(&options.data_dir);
    let server = options.start();
    let body = endless(&server);
    let first = server.job(&body);
    assert_eq!(card_of(&server, &first, 1), A);
    server.kill();
    let server = options.start();
    let second = server.job(&body);
    assert_eq!(card_of(&server, &second, 1), B);
    let third = server.job(&body);
    assert_eq!(card_of(&server, &first, 1), A, "it trains on");
    assert_eq!(status(&server, &third), ("queued".to_owned(), 0));
    act(&server, &first, "cancel");
    assert_eq!(card_of(&server, &third, 1), A);
    for job in [&second, &third] {
        act(&server, job, "cancel");
        server.wait(job);
    }
}

#[test]
fn a_job_says_what_its_card_did_and_what_it_cost_over_all_attempts() {
    // One card only: with two, an attempt gets the other one if the process before it is not gone yet.
    let machine = Machine::new(&[("0", format!("{A},Fake H100,81920,1024,300,70"))]);
    let server = machine.options().start();
    let mut began = Instant::now();
    let job = server.job(&endless(&server));
    let mut spent_before = 0.0;
    for attempt in 1..=2 {
        assert_eq!(card_of(&server, &job, attempt), A);
        act(&server, &job, "pause");
        let paused = server.wait_until(&job, |view| view["status"] == "paused");
        let metrics = &paused["metrics"];
        assert_eq!(metrics["gpu_utilization_percent"], 70.0, "{metrics}");
        assert_eq!(metrics["gpu_power_w"], 300.0);
        assert_eq!(metrics["gpu_memory_bytes"], f64::from(512 << 20));
        let spent = metrics["gpu_energy_j"].as_f64().unwrap();
        assert!(
            spent > spent_before,
            "{spent} J are not more than {spent_before} J"
        );
        let most = 300.0 * began.elapsed().as_secs_f64();
        assert!(
            spent - spent_before <= most,
            "{spent} J in an attempt that can have had {most}"
        );
        spent_before = spent;
        began = Instant::now();
        act(&server, &job, "resume");
    }
    card_of(&server, &job, 3);
    act(&server, &job, "cancel");
    server.wait(&job);
    let energy = series(&server, &job, "gpu_energy_j");
    assert!(energy.len() >= 3 && energy.is_sorted(), "{energy:?}");
    let loss = server.get_json(&format!("/v1/jobs/{job}/metrics?names=loss"));
    assert!(!loss["data"]["loss"].as_array().unwrap().is_empty());
}

#[test]
fn jobs_that_fit_share_a_card_and_its_energy() {
    // A tiny BERT takes little more than the 1 GiB that every process of CUDA is taken to need.
    let machine = Machine::new(&[("0", format!("{A},Fake L4,24576,21504,100,40"))]);
    let server = machine.options().env("CHANDLER_JOBS_PER_GPU", 3).start();
    assert_eq!(devices(&server)[0]["jobs"], 3);
    let body = endless(&server);
    let began = Instant::now();
    let jobs = [server.job(&body), server.job(&body)];
    for job in &jobs {
        assert_eq!(card_of(&server, job, 1), A);
    }
    // A third would fit, but not one whose model is not here, and nobody overtakes that one.
    let mut elsewhere = body.clone();
    elsewhere["model"] = json!("org/elsewhere");
    let whole = server.job(&elsewhere);
    let small = server.job(&body);
    std::thread::sleep(Duration::from_secs(2));
    for job in [&whole, &small] {
        assert_eq!(status(&server, job), ("queued".to_owned(), 0));
        act(&server, job, "cancel");
    }
    let spent = jobs.iter().map(|job| {
        act(&server, job, "cancel");
        let view = server.wait(job);
        view["metrics"]["gpu_energy_j"].as_f64().unwrap()
    });
    let spent: f64 = spent.sum();
    let most = 100.0 * began.elapsed().as_secs_f64();
    assert!(
        spent > 0.0 && spent < 1.4 * most,
        "{spent} J for two, where one card can have spent {most}"
    );
}

#[test]
fn only_cards_that_are_left_to_the_server_are_used() {
    let instance = |uuid: &str| format!("{uuid},Fake A100 MIG 1g.5gb,4864,0,0,0");
    let machine = Machine::new(&[
        ("0", format!("{A},Fake H100,81920,1024,300,70")),
        ("1", format!("{B},Fake A100,40960,512,100,40")),
        ("1_MIG_0", instance("MIG-1")),
        ("1_MIG_4", instance("MIG-2")),
    ]);
    let server = machine.options().start();
    assert_eq!(uuids(&server), [A, "MIG-1", "MIG-2"]);
    server.stop();
    let options = machine.options();
    for (visible, left) in [
        ("0", vec![A]),
        ("1", vec!["MIG-1", "MIG-2"]),
        ("MIG-2,GPU-aaaa", vec!["MIG-2", A]),
        ("", vec!["cpu"]),
    ] {
        let server = options.clone().env("CUDA_VISIBLE_DEVICES", visible).start();
        assert_eq!(uuids(&server), left, "{visible}");
        server.stop();
    }
    let server = options.env("FAKE_GPU_LOST", A).start();
    assert_eq!(uuids(&server), ["MIG-1", "MIG-2"]);
}

#[test]
fn without_a_driver_the_processor_trains_and_the_log_says_why() {
    let temp = tempfile::tempdir().unwrap();
    // Found first, and no library.
    std::fs::write(temp.path().join("libnvidia-ml.so.1"), "").unwrap();
    let server = ServerOptions::new(&temp.path().join("data"))
        .slots("auto")
        .env("LD_LIBRARY_PATH", temp.path().display())
        .start();
    assert_eq!(
        devices(&server),
        [json!({"device": {"type": "cpu"}, "jobs": 1, "memory_bytes": null})]
    );
    let log = server.log();
    let told = log.iter().find(|line| line.contains("no GPU to train on"));
    let told: Value = serde_json::from_str(told.unwrap()).unwrap();
    assert_eq!(told["level"], "WARN");
    let reason = told["reason"].as_str().unwrap();
    assert!(
        reason.contains("no driver") && reason.contains("libnvidia-ml.so.1"),
        "{reason}"
    );

    let trainers = Trainers::of(&server.data_dir);
    let job = server.job(&endless(&server));
    let view = server.wait_until(&job, |view| !view["progress"].is_null());
    assert_eq!(view["device"], json!({"type": "cpu"}));
    assert_eq!(environment(&trainers, &job)["CHANDLER_DEVICE"], "cpu");
    act(&server, &job, "cancel");
    let view = server.wait(&job);
    assert_eq!(view["metrics"]["gpu_energy_j"], Value::Null);
}

#[test]
fn a_card_that_this_program_cannot_train_on_gets_no_jobs() {
    let machine = Machine::of_two();
    let server = machine
        .options()
        .env("CHANDLER_FAKE_GPU_CAPABILITY", "7.5")
        .start();
    assert_eq!(uuids(&server), ["cpu"]);
    let log = server.log();
    let refused = |uuid| {
        let line = log.iter().find(|line| line.contains(uuid)).unwrap();
        let line: Value = serde_json::from_str(line).unwrap();
        (line["level"] == "ERROR").then(|| line["reason"].as_str().unwrap().to_owned())
    };
    for uuid in [A, B] {
        let reason = refused(uuid).unwrap();
        assert!(reason.contains("compute capability 7.5"), "{reason}");
    }
    assert!(
        log.iter()
            .any(|line| line.contains("none of 2 can be used")),
        "{log:?}"
    );

    let folders = emulated_gpu::libraries().display().to_string();
    let mut check = chandler();
    let output = check
        .arg("check-gpu")
        .env("LD_LIBRARY_PATH", folders)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!output.stdout.is_empty());
    // A card that is there, and breaks at the first work.
    let output = check
        .env("CHANDLER_FAKE_GPU_FAULT", "cast_f32_bf16:1")
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("CUDA"), "{said}");
}

#[test]
fn a_wrong_number_of_slots_is_named() {
    for (args, named) in [
        (["--slots", "many"], "`many`"),
        (["--slots", "300"], "slots is 300"),
        (["--jobs-per-gpu", "0"], "jobs_per_gpu is 0"),
    ] {
        let output = chandler().arg("serve").args(args).output().unwrap();
        assert!(!output.status.success());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(named), "{error}");
    }
}

//! Jobs on cards that a test makes up: who gets which, who shares, and what becomes of whom when one dies.

use super::super::gpus::testing::{FakeGpus, GIB, card};
use super::super::slots::GpuSlots;
use super::*;
use crate::domain::{Device, ModelShape};

/// `bert-base-uncased`.
const BASE: ModelShape = ModelShape {
    parameters: 109_483_778,
    layers: 12,
    hidden_size: 768,
    intermediate_size: 3072,
    heads: 12,
};

struct Machine {
    f: Fixture,
    gpus: Arc<FakeGpus>,
    executor: Arc<FakeExecutor>,
}

impl Machine {
    /// Cards by name and size.
    async fn new(jobs_per_gpu: u32, cards: &[(&str, u64)]) -> Self {
        let mut f = Fixture::new().await;
        let gpus = Arc::new(FakeGpus::default());
        for (uuid, bytes) in cards {
            gpus.set_free(uuid, Some(*bytes));
        }
        let cards = cards
            .iter()
            .map(|(uuid, bytes)| card(uuid, *bytes))
            .collect();
        f.options.slots = Slots::Gpus(GpuSlots::new(gpus.clone(), cards, jobs_per_gpu));
        f.options.model_shape = |_, model| (model == "org/model").then_some(BASE);
        Self {
            f,
            gpus,
            executor: Arc::default(),
        }
    }

    /// A job of so many rows of 128 tokens at a time, on a model that is at hand or not.
    async fn job(&self, model: &str, rows: u32) -> JobId {
        let spec = json!({
            "model": model,
            "task": "sequence_classification",
            "dataset": {"train": self.f.dataset},
            "training_args": {"per_device_train_batch_size": rows},
        });
        let spec = JobSpec::parse(&spec).unwrap();
        self.f.store.create_job(spec, None).await.unwrap().0.id
    }

    fn dispatcher(&self) -> Dispatcher {
        self.f.dispatcher(&self.executor)
    }

    /// Trainers started so far: job and card.
    fn started(&self) -> Vec<(JobId, String)> {
        let started = self.executor.started.lock().unwrap();
        let card = |claimed: &ClaimedAttempt| match &claimed.device {
            Device::Cuda { uuid, .. } => uuid.clone(),
            Device::Cpu => "cpu".to_owned(),
        };
        started.iter().map(|c| (c.job_id, card(c))).collect()
    }

    /// The process of the nth trainer started is gone.
    fn gone(&self, index: usize) {
        let attempt = self.executor.claimed(index).attempt_id;
        self.executor.live.lock().unwrap().remove(&attempt);
    }
}

#[tokio::test]
async fn every_card_is_a_slot_and_an_attempt_says_which_it_has() {
    let machine = Machine::new(1, &[("GPU-a", 24 * GIB), ("GPU-b", 80 * GIB)]).await;
    let jobs = [
        machine.job("org/unknown", 8).await,
        machine.job("org/unknown", 8).await,
        machine.job("org/unknown", 8).await,
    ];
    let mut dispatcher = machine.dispatcher();
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    assert_eq!(dispatcher.tick().await, Tick::NoSlot);
    let (a, b) = ("GPU-a".to_owned(), "GPU-b".to_owned());
    assert_eq!(
        machine.started(),
        [(jobs[0], b.clone()), (jobs[1], a.clone())]
    );

    let device = Device::Cuda {
        name: "Test Card".to_owned(),
        uuid: b,
    };
    let job = machine.f.read(jobs[0]).await;
    assert_eq!(job.device, Some(device.clone()));
    assert_eq!(machine.f.read(jobs[2]).await.device, None);
    let events = machine.f.store.events(jobs[0], 0, 10).await.unwrap();
    assert_eq!(events[1].event, Event::Started { attempt: 1, device });

    // Its report ends the attempt, but the process still has the card's memory.
    let claimed = machine.executor.claimed(1);
    machine.f.report(&claimed, 1, Event::Cancelled {}).await;
    assert_eq!(dispatcher.tick().await, Tick::NoSlot);
    machine.gone(1);
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    assert_eq!(machine.started()[2], (jobs[2], a));
}

#[tokio::test]
async fn the_next_server_knows_which_cards_are_taken() {
    let machine = Machine::new(2, &[("GPU-a", 40 * GIB), ("GPU-b", 80 * GIB)]).await;
    let small = machine.job("org/model", 8).await;
    let whole = machine.job("org/unknown", 8).await;
    let mut dispatcher = machine.dispatcher();
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    let (a, b) = ("GPU-a".to_owned(), "GPU-b".to_owned());
    assert_eq!(machine.started(), [(small, b.clone()), (whole, a)]);

    // It has none of their processes, and looks at the same rows.
    let next = Arc::new(FakeExecutor::default());
    let mut dispatcher = machine.f.dispatcher(&next);
    let another = machine.job("org/unknown", 8).await;
    assert_eq!(dispatcher.tick().await, Tick::NoSlot);
    machine.f.store.cancel_job(another).await.unwrap();
    machine.job("org/model", 8).await;
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    let device = next.claimed(0).device;
    assert!(matches!(device, Device::Cuda { uuid, .. } if uuid == b));
}

#[tokio::test]
async fn small_jobs_share_and_a_large_one_is_not_overtaken() {
    // About 3.5 GiB for eight rows, 37 for a thousand.
    let machine = Machine::new(3, &[("GPU-a", 12 * GIB)]).await;
    let first = machine.job("org/model", 8).await;
    machine.job("org/model", 8).await;
    let large = machine.job("org/model", 1000).await;
    let late = machine.job("org/model", 8).await;
    let mut dispatcher = machine.dispatcher();
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    assert_eq!(dispatcher.tick().await, Tick::NoSlot, "the large one waits");
    machine.gone(0);
    machine
        .f
        .report(&machine.executor.claimed(0), 1, Event::Cancelled {})
        .await;
    assert_eq!(machine.f.read(first).await.status, Status::Cancelled);
    assert_eq!(dispatcher.tick().await, Tick::NoSlot, "for an empty card");
    assert_eq!(machine.f.read(late).await.status, Status::Queued);
    machine.gone(1);
    machine
        .f
        .report(&machine.executor.claimed(1), 1, Event::Cancelled {})
        .await;
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    assert_eq!(machine.started()[2].0, large);
    assert_eq!(
        dispatcher.tick().await,
        Tick::NoSlot,
        "it has the whole card"
    );
}

#[tokio::test]
async fn who_runs_out_of_memory_beside_others_is_tried_again_alone() {
    let machine = Machine::new(2, &[("GPU-a", 40 * GIB)]).await;
    let neighbour = machine.job("org/model", 8).await;
    let unlucky = machine.job("org/model", 8).await;
    let mut dispatcher = machine.dispatcher();
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    let error = JobError::new(ErrorCode::OutOfMemory, "the GPU has no memory left");
    let failed = || Event::Failed {
        error: error.clone(),
    };
    machine
        .f
        .report(&machine.executor.claimed(1), 1, failed())
        .await;
    machine.gone(1);
    assert_eq!(machine.f.read(unlucky).await.status, Status::Queued);
    let events = machine.f.store.events(unlucky, 0, 10).await.unwrap();
    let Event::Requeued { reason } = &events.last().unwrap().event else {
        panic!("{events:?}")
    };
    assert_eq!(
        reason,
        "the GPU has no memory left; trying again on a GPU of its own"
    );
    assert_eq!(machine.f.read(neighbour).await.status, Status::Running);

    assert_eq!(
        dispatcher.tick().await,
        Tick::NoSlot,
        "there is room, but not a card"
    );
    machine
        .f
        .report(&machine.executor.claimed(0), 1, Event::Cancelled {})
        .await;
    machine.gone(0);
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    machine.job("org/model", 8).await;
    assert_eq!(dispatcher.tick().await, Tick::NoSlot);
    // Alone, and still too little: that is the job's own.
    machine
        .f
        .report(&machine.executor.claimed(2), 1, failed())
        .await;
    let job = machine.f.read(unlucky).await;
    assert_eq!((job.status, job.error), (Status::Failed, Some(error)));
}

#[tokio::test]
async fn a_cancel_or_a_pause_comes_before_trying_again() {
    let machine = Machine::new(2, &[("GPU-a", 40 * GIB)]).await;
    let cancelled = machine.job("org/model", 8).await;
    let paused = machine.job("org/model", 8).await;
    let mut dispatcher = machine.dispatcher();
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    machine.f.store.cancel_job(cancelled).await.unwrap();
    machine.f.store.pause_job(paused).await.unwrap();
    for index in [0, 1] {
        let error = JobError::new(ErrorCode::OutOfMemory, "no memory");
        let claimed = machine.executor.claimed(index);
        machine.f.report(&claimed, 1, Event::Failed { error }).await;
    }
    assert_eq!(machine.f.read(cancelled).await.status, Status::Cancelled);
    assert_eq!(machine.f.read(paused).await.status, Status::Paused);
}

#[tokio::test]
async fn trainers_are_told_how_many_share_their_card() {
    let machine = Machine::new(2, &[("GPU-a", 40 * GIB), ("GPU-b", 30 * GIB)]).await;
    for _ in 0..3 {
        machine.job("org/model", 8).await;
    }
    let mut dispatcher = machine.dispatcher();
    while dispatcher.tick().await == Tick::Claimed {}
    let cards: Vec<String> = machine.started().into_iter().map(|s| s.1).collect();
    assert_eq!(cards, ["GPU-a", "GPU-a", "GPU-b"]);
    let told = async |index| {
        let claimed = machine.executor.claimed(index);
        let (id, token) = (claimed.attempt_id, &claimed.token);
        let answer = machine.f.store.record_messages(id, token, vec![], 1000);
        answer.await.unwrap().jobs_on_device
    };
    assert_eq!((told(0).await, told(1).await, told(2).await), (2, 2, 1));
    machine
        .f
        .report(&machine.executor.claimed(0), 1, Event::Cancelled {})
        .await;
    assert_eq!(told(1).await, 1);
}

#[tokio::test]
async fn a_card_that_falls_off_the_bus_gets_no_more_jobs() {
    let machine = Machine::new(1, &[("GPU-a", 40 * GIB), ("GPU-b", 30 * GIB)]).await;
    for _ in 0..2 {
        machine.job("org/model", 8).await;
    }
    machine.gpus.lose("GPU-a");
    let mut dispatcher = machine.dispatcher();
    assert_eq!(dispatcher.tick().await, Tick::Claimed);
    assert_eq!(machine.started()[0].1, "GPU-b");
    assert_eq!(dispatcher.tick().await, Tick::NoSlot);
}

#[tokio::test]
#[expect(
    clippy::await_holding_lock,
    reason = "a driver that hangs is a lock that is held"
)]
async fn a_driver_that_hangs_holds_up_no_tick_and_is_asked_once() {
    let mut machine = Machine::new(1, &[("GPU-a", 40 * GIB)]).await;
    machine.f.options.driver_patience_ms = 20;
    machine.job("org/model", 8).await;
    let mut dispatcher = machine.dispatcher();
    let stuck = machine.gpus.hang();
    for _ in 0..50 {
        assert_eq!(dispatcher.tick().await, Tick::NoSlot);
    }
    assert_eq!(Arc::strong_count(&machine.gpus), 4, "one thread asks");
    drop(stuck);
    while dispatcher.tick().await != Tick::Claimed {
        tokio::task::yield_now().await;
    }
    assert_eq!(machine.started()[0].1, "GPU-a");
}

/// What a fault of CUDA does to its process (an abort, here) is that attempt's alone: the neighbour on the same card and
/// the one on the other train on, and the card is used again.
#[tokio::test]
async fn a_fault_kills_its_attempt_alone_and_frees_its_place() {
    let mut machine = Machine::new(2, &[("GPU-a", 9 * GIB), ("GPU-b", 8 * GIB)]).await;
    machine.f.options.retry.max_attempts = 9;
    // The third trainer's first attempt aborts when told to; all others end well when told to.
    let cancelled = serde_json::to_string(&Message {
        seq: 1,
        at: Timestamp(0),
        event: Event::Cancelled {},
    })
    .unwrap();
    executor::write_script(
        machine.f.folder.path(),
        &format!(
            "echo \"$CUDA_VISIBLE_DEVICES\" > card\n\
             while :; do\n\
             [ -e ../../abort ] && [ \"$(basename $PWD)\" = 1 ] && kill -ABRT $$\n\
             [ -e ../../end ] && printf '%s' '{cancelled}' > events.jsonl && exit 0\n\
             sleep 0.01\n\
             done"
        ),
    );
    let mut jobs = Vec::new();
    for _ in 0..4 {
        jobs.push(machine.job("org/model", 8).await);
    }
    let (f, data_dir) = (&machine.f, &machine.f.options.data_dir);
    let worker = Worker::start(f.store.clone(), f.options.clone(), f.clock.clone());
    let card = async |job: JobId, attempt| {
        let path = data_dir.attempt_dir(job, attempt).join("card");
        loop {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            if let Some(card) = text.strip_suffix('\n') {
                return card.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let tell = |job: JobId, what: &str| {
        std::fs::write(data_dir.job_dir(job).join(what), "").unwrap();
    };
    let first: Vec<String> = vec![
        card(jobs[0], 1).await,
        card(jobs[1], 1).await,
        card(jobs[2], 1).await,
        card(jobs[3], 1).await,
    ];
    assert_eq!(first, ["GPU-a", "GPU-b", "GPU-a", "GPU-b"]);

    tell(jobs[2], "abort");
    assert_eq!(card(jobs[2], 2).await, "GPU-a", "the room it left");
    let events = f.store.events(jobs[2], 0, 100).await.unwrap();
    let reasons: Vec<&str> = events
        .iter()
        .filter_map(|event| match &event.event {
            Event::Requeued { reason } => Some(reason.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(
        reasons,
        ["the trainer process was killed by signal 6 (SIGABRT); trying again in 0.0 s"]
    );
    for (job, attempts) in [(0, 1), (1, 1), (2, 2), (3, 1)] {
        let view = f.read(jobs[job]).await;
        assert_eq!((view.status, view.attempt), (Status::Running, attempts));
    }
    for &job in &jobs {
        tell(job, "end");
    }
    for &job in &jobs {
        f.until(job, Status::Cancelled).await;
    }
    worker.shutdown(Shutdown::Leave).await;
}

//! The worker with real processes: shell scripts in place of the trainer.

use super::*;

fn script(f: &Fixture, text: &str) {
    executor::write_script(f.folder.path(), text);
}

#[tokio::test]
async fn a_trainer_killed_from_outside_fails_its_job_in_the_end() {
    let f = Fixture::new().await;
    script(&f, "kill -9 $$");
    let job = f.job().await;
    let worker = Worker::start(f.store.clone(), f.options.clone(), f.clock.clone());
    let failed = f.until(job, Status::Failed).await;
    assert_eq!(failed.attempt, 2);
    let error = failed.error.unwrap();
    assert_eq!(error.code, ErrorCode::Poisoned);
    let last = "the trainer process was killed by signal 9 (SIGKILL)";
    assert!(error.message.ends_with(last), "{}", error.message);
    worker.shutdown(Shutdown::Leave).await;
}

#[tokio::test]
async fn a_trainer_that_ignores_everything_ends_with_the_worker() {
    let f = Fixture::new().await;
    script(
        &f,
        "trap '' TERM; echo $$ > pid; while :; do sleep 0.01; done",
    );
    let job = f.job().await;
    let worker = Worker::start(f.store.clone(), f.options.clone(), f.clock.clone());
    f.until(job, Status::Running).await;
    let pid_file = f.options.data_dir.attempt_dir(job, 1).join("pid");
    let pid = loop {
        let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
        if let Ok(pid) = text.trim().parse() {
            break nix::unistd::Pid::from_raw(pid);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    worker.shutdown(Shutdown::Stop { grace_ms: 1 }).await;
    assert!(nix::sys::signal::kill(pid, None).is_err());
    let queued = f.read(job).await;
    assert_eq!((queued.status, queued.attempt), (Status::Queued, 1));
}

#[tokio::test]
async fn a_cancelled_trainer_that_dies_is_cancelled() {
    let f = Fixture::new().await;
    script(&f, "while ! [ -e go ]; do sleep 0.01; done; exit 3");
    let job = f.job().await;
    let worker = Worker::start(f.store.clone(), f.options.clone(), f.clock.clone());
    f.until(job, Status::Running).await;
    f.store.cancel_job(job).await.unwrap();
    let dir = f.options.data_dir.attempt_dir(job, 1);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("go"), "").unwrap();
    f.until(job, Status::Cancelled).await;
    worker.shutdown(Shutdown::Leave).await;
}

#[tokio::test]
async fn what_a_killed_trainer_had_not_sent_is_found_in_its_spool() {
    let f = Fixture::new().await;
    let said = |seq, event| {
        serde_json::to_string(&Message {
            seq,
            at: Timestamp(0),
            event,
        })
        .unwrap()
    };
    let checkpoint = Event::Log {
        level: crate::domain::LogLevel::Info,
        message: "step 400".to_owned(),
    };
    let spool = [said(1, checkpoint), said(2, Event::Cancelled {})].join("\n");
    script(
        &f,
        &format!("printf '%s' '{spool}' > events.jsonl; kill -9 $$"),
    );
    let job = f.job().await;
    let worker = Worker::start(f.store.clone(), f.options.clone(), f.clock.clone());
    f.until(job, Status::Cancelled).await;
    let events = f.store.events(job, 0, 100).await.unwrap();
    let kinds: Vec<_> = events.iter().map(|e| e.event.kind()).collect();
    assert_eq!(kinds, ["queued", "started", "log", "cancelled"]);
    worker.shutdown(Shutdown::Leave).await;
}

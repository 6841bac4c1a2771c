use super::*;
use crate::domain::{
    Command, ErrorCode, FileRecord, JobError, LogLevel, LossCause, Phase, Placement, Progress,
    RetryPolicy,
};

fn died() -> JobError {
    JobError::new(ErrorCode::TrainerDied, "the trainer died")
}

fn requeue(max_attempts: u32) -> AttemptEnd {
    AttemptEnd::Lost {
        cause: LossCause::Died,
        error: died(),
        policy: RetryPolicy {
            max_attempts,
            first_delay_ms: 0,
            max_delay_ms: 0,
        },
    }
}

fn open(claimed: &ClaimedAttempt) -> OpenAttempt {
    OpenAttempt {
        attempt_id: claimed.attempt_id,
        attempt: claimed.attempt,
        job_id: claimed.job_id,
        placement: Placement::default(),
    }
}

fn log(text: &str) -> Event {
    Event::Log {
        level: LogLevel::Info,
        message: text.to_owned(),
    }
}

#[tokio::test]
async fn everything_a_trainer_reports_is_read_back() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    f.clock.advance_ms(100);
    let claimed = f.claim().await;
    assert_eq!((claimed.job_id, claimed.attempt), (job, 1));
    let input = f
        .store
        .attempt_input(claimed.attempt_id, &claimed.token)
        .await
        .unwrap();
    assert_eq!((input.job_id, input.attempt), (job, 1));
    assert_eq!(input.spec, f.spec());
    assert_eq!((input.train.id, input.eval), (f.dataset, None));

    let progress = Progress {
        global_step: 3,
        total_steps: 10,
        ..Progress::default()
    };
    let phase = Phase::Training;
    let said = vec![
        message(1, Event::Phase { phase }),
        message(2, log("hello")),
        message(3, Event::Progress(progress.clone())),
        message(4, metrics(3, "loss", 0.7)),
        message(5, metrics(3, "eval_loss", 0.6)),
        message(6, metrics(6, "loss", 0.5)),
        message(7, Event::Checkpoint(checkpoint(3))),
        message(8, Event::Checkpoint(checkpoint(6))),
        message(9, Event::CheckpointRemoved { step: 3 }),
    ];
    let answer = f.say(&claimed, said).await.unwrap();
    assert_eq!((answer.acked_seq, answer.command), (9, Command::Continue));

    let running = f.store.job(job).await.unwrap().unwrap();
    assert_eq!(running.status, Status::Running);
    assert_eq!(running.phase, Some(phase));
    assert_eq!(running.progress, Some(progress));
    assert_eq!(running.started_at, Some(Timestamp(1_000_100)));
    let newest = [("eval_loss".to_owned(), 0.6), ("loss".to_owned(), 0.5)];
    assert_eq!(running.metrics, BTreeMap::from(newest));
    check_series(&f, job).await;
    let kept = f.store.checkpoints(job).await.unwrap();
    assert_eq!(kept.len(), 1);
    assert_eq!((kept[0].attempt, &kept[0].record), (1, &checkpoint(6)));

    f.clock.advance_ms(900);
    let done = vec![message(10, Event::Succeeded { model_step: 6 })];
    f.say(&claimed, done).await.unwrap();
    let job = f.store.job(job).await.unwrap().unwrap();
    assert_eq!((job.status, job.phase), (Status::Succeeded, None));
    assert_eq!(job.model_step, Some(6));
    assert_eq!(job.finished_at, Some(Timestamp(1_001_000)));
    let events = f.store.events(job.id, 2, 100).await.unwrap();
    assert_eq!(events[0].seq, 3);
    assert_eq!(events[0].event, Event::Phase { phase });
    assert_eq!(events[0].attempt, Some(1));
    // A trainer's clock is not believed before the attempt began.
    assert_eq!(events[0].created_at, Timestamp(1_000_100));
    let kinds = f.kinds(job.id).await;
    assert_eq!(kinds.last(), Some(&"succeeded"));
    assert_eq!(kinds.len(), 11);
    assert!(!kinds.contains(&"progress"));
}

async fn check_series(f: &Fixture, job: JobId) {
    let points = f.store.metric_points(job, &[], 0).await.unwrap();
    let points: Vec<_> = points.iter().map(|p| (p.step, &*p.name, p.value)).collect();
    let expected = [(3, "loss", 0.7), (3, "eval_loss", 0.6), (6, "loss", 0.5)];
    assert_eq!(points, expected);
    let names = ["loss".to_owned()];
    let points = f.store.metric_points(job, &names, 4).await.unwrap();
    assert_eq!(points.len(), 1);
}

#[tokio::test]
async fn a_message_counts_once_and_never_out_of_order() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    let claimed = f.claim().await;
    let two = vec![message(1, log("1")), message(2, log("2"))];
    assert_eq!(f.say(&claimed, two.clone()).await.unwrap().acked_seq, 2);
    assert_eq!(f.say(&claimed, two).await.unwrap().acked_seq, 2);
    let gap = vec![message(3, log("3")), message(5, log("5"))];
    assert_eq!(f.say(&claimed, gap).await.unwrap().acked_seq, 3);
    let gap_only = vec![message(9, log("9"))];
    assert_eq!(f.say(&claimed, gap_only).await.unwrap().acked_seq, 3);
    let overlap = (2..=4).map(|n| message(n, log("n"))).collect();
    assert_eq!(f.say(&claimed, overlap).await.unwrap().acked_seq, 4);
    let kinds = f.kinds(job).await;
    assert_eq!(kinds, ["queued", "started", "log", "log", "log", "log"]);
}

#[tokio::test]
async fn a_wrong_token_and_an_ended_attempt_are_fenced() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    let claimed = f.claim().await;
    let id = claimed.attempt_id;
    let wrong = f.store.record_messages(id, "wrong", vec![], LEASE_MS).await;
    assert_eq!(wrong, Err(StoreError::Fenced));
    let wrong = f.store.attempt_input(id, "wrong").await;
    assert_eq!(wrong.err(), Some(StoreError::Fenced));

    assert!(f.store.end_attempt(id, requeue(3)).await.unwrap());
    assert!(!f.store.end_attempt(id, requeue(3)).await.unwrap());
    assert_eq!(f.status(job).await, Status::Queued);
    let heartbeat = f.say(&claimed, vec![]).await;
    assert_eq!(heartbeat, Err(StoreError::Fenced));
    let late = f.say(&claimed, vec![message(1, log("late"))]).await;
    assert_eq!(late, Err(StoreError::Fenced));
    let input = f.store.attempt_input(id, &claimed.token).await;
    assert_eq!(input.err(), Some(StoreError::Fenced));

    let second = f.claim().await;
    assert_eq!((second.job_id, second.attempt), (job, 2));
    assert_ne!(second.token, claimed.token);
    let late = f.say(&claimed, vec![message(1, log("late"))]).await;
    assert_eq!(late, Err(StoreError::Fenced));
    let kinds = f.kinds(job).await;
    assert_eq!(kinds, ["queued", "started", "requeued", "started"]);
}

#[tokio::test]
async fn a_final_message_whose_answer_was_lost_is_answered_again() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    let claimed = f.claim().await;
    let last = vec![message(1, Event::Failed { error: died() })];
    let first = f.say(&claimed, last.clone()).await.unwrap();
    assert_eq!(first.acked_seq, 1);
    assert_eq!(f.say(&claimed, last).await.unwrap(), first);
    let more = f.say(&claimed, vec![message(2, log("more"))]).await;
    assert_eq!(more, Err(StoreError::Fenced));
    let job = f.store.job(job).await.unwrap().unwrap();
    assert_eq!((job.status, job.error), (Status::Failed, Some(died())));
}

#[tokio::test]
async fn what_follows_a_final_message_is_not_applied() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    let claimed = f.claim().await;
    let said = vec![
        message(1, Event::Cancelled {}),
        message(2, Event::Checkpoint(checkpoint(1))),
    ];
    assert_eq!(f.say(&claimed, said).await.unwrap().acked_seq, 1);
    assert_eq!(f.kinds(job).await, ["queued", "started", "cancelled"]);
}

#[tokio::test]
async fn lost_trainers_count_and_returned_ones_do_not() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    let mut last = f.claim().await;
    let returned = Event::Requeued {
        reason: "told to leave".to_owned(),
    };
    f.say(&last, vec![message(1, returned)]).await.unwrap();
    last = f.claim().await;
    let reason = "the server stops".to_owned();
    let end = AttemptEnd::Return { reason };
    assert!(f.store.end_attempt(last.attempt_id, end).await.unwrap());
    last = f.claim().await;
    let end = requeue(2);
    assert!(f.store.end_attempt(last.attempt_id, end).await.unwrap());
    assert_eq!(f.status(job).await, Status::Queued);
    last = f.claim().await;
    assert_eq!(last.attempt, 4);
    let end = requeue(2);
    assert!(f.store.end_attempt(last.attempt_id, end).await.unwrap());
    let job = f.store.job(job).await.unwrap().unwrap();
    assert_eq!(job.status, Status::Failed);
    let error = job.error.unwrap();
    assert_eq!(error.code, ErrorCode::Poisoned);
    assert!(error.message.ends_with(&died().message), "{error}");
    assert_eq!(f.store.open_attempts().await.unwrap(), []);
}

#[tokio::test]
async fn a_cancel_reaches_the_trainer_and_takes_effect_once() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    let claimed = f.claim().await;
    let marked = f.store.cancel_job(job).await.unwrap();
    assert_eq!(marked.status, Status::Running);
    assert!(marked.cancel_requested);
    assert_eq!(f.store.overdue_stops(10).await.unwrap(), []);
    f.clock.advance_ms(11);
    f.store.cancel_job(job).await.unwrap();
    let overdue = f.store.overdue_stops(10).await.unwrap();
    assert_eq!(overdue, [open(&claimed)]);
    let answer = f.say(&claimed, vec![]).await.unwrap();
    assert_eq!(answer.command, Command::Cancel);
    let last = vec![message(1, Event::Cancelled {})];
    f.say(&claimed, last).await.unwrap();
    let cancelled = f.store.job(job).await.unwrap().unwrap();
    assert_eq!(cancelled.status, Status::Cancelled);
    assert!(!cancelled.cancel_requested);
    assert_eq!(f.store.overdue_stops(10).await.unwrap(), []);
    assert_eq!(f.kinds(job).await, ["queued", "started", "cancelled"]);
}

#[tokio::test]
async fn a_success_before_the_cancel_took_effect_wins() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    let claimed = f.claim().await;
    f.store.cancel_job(job).await.unwrap();
    f.say(&claimed, success(2)).await.unwrap();
    assert_eq!(f.status(job).await, Status::Succeeded);
    let kinds = f.kinds(job).await;
    assert_eq!(kinds, ["queued", "started", "checkpoint", "succeeded"]);
}

#[tokio::test]
async fn a_success_without_its_checkpoint_is_a_failure() {
    let f = Fixture::new().await;
    for removed in [false, true] {
        let job = f.job().await.id;
        let claimed = f.claim().await;
        let other = if removed { 2 } else { 1 };
        let said = vec![
            message(1, Event::Checkpoint(checkpoint(other))),
            message(2, Event::CheckpointRemoved { step: 2 }),
            message(3, Event::Succeeded { model_step: 2 }),
        ];
        assert_eq!(f.say(&claimed, said).await.unwrap().acked_seq, 3);
        let job = f.store.job(job).await.unwrap().unwrap();
        assert_eq!((job.status, job.model_step), (Status::Failed, None));
        let error = job.error.unwrap();
        assert_eq!(error.code, ErrorCode::CheckpointFailed);
        assert!(error.message.contains("step 2"), "{error}");
    }
}

#[tokio::test]
async fn a_cancelled_job_is_not_queued_again() {
    let f = Fixture::new().await;
    for end in [
        Some(requeue(9)),
        Some(out_of_memory()),
        Some(AttemptEnd::Fail(died())),
        None, // the trainer gives the job back itself
    ] {
        let job = f.job().await.id;
        let claimed = f.claim().await;
        f.store.cancel_job(job).await.unwrap();
        if let Some(end) = end {
            f.store.end_attempt(claimed.attempt_id, end).await.unwrap();
        } else {
            let reason = "told to leave".to_owned();
            let left = vec![message(1, Event::Requeued { reason })];
            f.say(&claimed, left).await.unwrap();
        }
        assert_eq!(f.status(job).await, Status::Cancelled);
    }
}

#[tokio::test]
async fn leases_expire_unless_renewed() {
    let f = Fixture::new().await;
    f.job().await;
    let claimed = f.claim().await;
    let id = claimed.attempt_id;
    f.clock.advance_ms(LEASE_MS);
    assert_eq!(f.store.expired_attempts().await.unwrap(), []);
    f.clock.advance_ms(1);
    let expired = f.store.expired_attempts().await.unwrap();
    assert_eq!(expired, [open(&claimed)]);
    // It was only slow: its next message renews the lease, and the rescuer comes too late.
    f.say(&claimed, vec![]).await.unwrap();
    assert!(!f.store.end_expired_attempt(id, requeue(3)).await.unwrap());
    assert_eq!(f.store.expired_attempts().await.unwrap(), []);

    f.clock.advance_ms(LEASE_MS + 1);
    f.store.extend_leases(5).await.unwrap();
    assert_eq!(f.store.expired_attempts().await.unwrap(), []);
    f.clock.advance_ms(6);
    assert!(f.store.end_expired_attempt(id, requeue(3)).await.unwrap());
    assert_eq!(f.status(claimed.job_id).await, Status::Queued);
}

#[tokio::test]
async fn a_later_attempt_replaces_a_checkpoint_of_the_same_step() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    // The third finds what the second left and reports it again.
    for (content, from) in [("a", 1), ("b", 2), ("b", 2)] {
        let claimed = f.claim().await;
        let mut record = checkpoint(5);
        record.files.push(FileRecord {
            path: "model.safetensors".to_owned(),
            size_bytes: 1,
            sha256: content.repeat(64),
        });
        let said = vec![message(1, Event::Checkpoint(record.clone()))];
        assert_eq!(f.say(&claimed, said).await.unwrap().acked_seq, 1);
        let kept = f.store.checkpoints(job).await.unwrap();
        assert_eq!((kept.len(), kept[0].attempt), (1, from));
        assert_eq!(kept[0].record, record);
        let id = claimed.attempt_id;
        f.store.end_attempt(id, requeue(9)).await.unwrap();
    }
    let kinds = f.kinds(job).await;
    let told = kinds.iter().filter(|kind| **kind == "checkpoint").count();
    assert_eq!(told, 2);
}

#[tokio::test]
async fn numbers_that_are_none_are_left_out() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    let claimed = f.claim().await;
    let said = vec![message(1, metrics(1, "loss", f64::NAN))];
    assert_eq!(f.say(&claimed, said).await.unwrap().acked_seq, 1);
    assert_eq!(f.store.metric_points(job, &[], 0).await.unwrap(), []);
    assert_eq!(f.kinds(job).await, ["queued", "started", "metrics"]);
}

fn out_of_memory() -> AttemptEnd {
    AttemptEnd::Lost {
        cause: LossCause::OutOfMemory,
        error: died(),
        policy: RetryPolicy::default(),
    }
}

#[tokio::test]
async fn a_lost_job_waits_before_it_is_claimed_again() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    let policy = RetryPolicy::default();
    let end = AttemptEnd::Lost {
        cause: LossCause::Died,
        error: died(),
        policy,
    };
    let claimed = f.claim().await;
    f.store.end_attempt(claimed.attempt_id, end).await.unwrap();
    let waiting = f.store.job(job).await.unwrap().unwrap();
    let wait_ms = waiting.not_before.unwrap().0 - 1_000_000;
    assert!((1_000..=1_250).contains(&wait_ms), "{wait_ms}");
    f.clock.advance_ms(wait_ms - 1);
    assert!(f.store.claim_next(LEASE_MS).await.unwrap().is_none());
    // Others do not wait for it.
    let other = f.job().await.id;
    assert_eq!(f.claim().await.job_id, other);
    f.clock.advance_ms(1);
    assert_eq!(f.claim().await.job_id, job);
    let running = f.store.job(job).await.unwrap().unwrap();
    assert_eq!(running.not_before, None);
}

#[tokio::test]
async fn running_out_of_memory_halves_micro_batches_and_is_no_trainer_death() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    for divisor in [1, 2, 4, 8] {
        let claimed = f.claim().await;
        let (id, token) = (claimed.attempt_id, &claimed.token);
        let input = f.store.attempt_input(id, token).await.unwrap();
        assert_eq!(input.micro_batch_divisor, divisor);
        f.store.end_attempt(id, out_of_memory()).await.unwrap();
    }
    let failed = f.store.job(job).await.unwrap().unwrap();
    assert_eq!(failed.error.unwrap().code, ErrorCode::OutOfMemory);
    // By hand it gets the whole size again.
    f.store.retry_job(job).await.unwrap();
    let claimed = f.claim().await;
    let input = f
        .store
        .attempt_input(claimed.attempt_id, &claimed.token)
        .await;
    assert_eq!(input.unwrap().micro_batch_divisor, 1);
}

#[tokio::test]
async fn a_retried_job_has_all_its_retries_again() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    for round in 0..3 {
        for _ in 0..2 {
            let claimed = f.claim().await;
            let id = claimed.attempt_id;
            f.store.end_attempt(id, requeue(2)).await.unwrap();
        }
        assert_eq!(f.status(job).await, Status::Failed, "round {round}");
        f.store.retry_job(job).await.unwrap();
    }
    let kinds = f.kinds(job).await;
    assert_eq!(kinds.iter().filter(|kind| **kind == "failed").count(), 3);
}

#[tokio::test]
async fn time_that_ran_is_counted_over_attempts_and_waiting_is_not() {
    let f = Fixture::new().await;
    let mut spec = f.spec();
    spec.max_runtime_s = Some(10);
    f.store.create_job(spec, None).await.unwrap();
    f.clock.advance_ms(60_000);
    let first = f.claim().await;
    f.clock.advance_ms(4_000);
    let end = AttemptEnd::Return {
        reason: "stop".to_owned(),
    };
    f.store.end_attempt(first.attempt_id, end).await.unwrap();
    f.clock.advance_ms(60_000);
    let second = f.claim().await;
    f.clock.advance_ms(5_999);
    assert_eq!(f.store.overrun_attempts().await.unwrap(), []);
    f.clock.advance_ms(1);
    let overrun = f.store.overrun_attempts().await.unwrap();
    assert_eq!(overrun, [open(&second)]);
}

#[tokio::test]
async fn a_pause_takes_effect_however_the_attempt_ends_and_a_cancel_wins() {
    let f = Fixture::new().await;
    let report = |event| vec![message(1, event)];
    let gave_back = Event::Requeued {
        reason: "told to".to_owned(),
    };
    let job = f.job().await.id;
    let claimed = f.claim().await;
    f.store.pause_job(job).await.unwrap();
    f.clock.advance_ms(11);
    let overdue = f.store.overdue_stops(10).await.unwrap();
    assert_eq!(overdue, [open(&claimed)]);
    f.say(&claimed, report(gave_back.clone())).await.unwrap();
    assert_eq!(f.status(job).await, Status::Paused);

    f.store.resume_job(job).await.unwrap();
    let claimed = f.claim().await;
    f.store.pause_job(job).await.unwrap();
    let id = claimed.attempt_id;
    f.store.end_attempt(id, requeue(1)).await.unwrap();
    assert_eq!(f.status(job).await, Status::Paused, "a death while pausing");

    f.store.resume_job(job).await.unwrap();
    let claimed = f.claim().await;
    f.store.pause_job(job).await.unwrap();
    f.store.cancel_job(job).await.unwrap();
    let answer = f.say(&claimed, vec![]).await.unwrap();
    assert_eq!(answer.command, Command::Cancel);
    f.say(&claimed, report(gave_back)).await.unwrap();
    assert_eq!(f.status(job).await, Status::Cancelled);

    let job = f.job().await.id;
    let claimed = f.claim().await;
    f.store.pause_job(job).await.unwrap();
    f.say(&claimed, success(3)).await.unwrap();
    assert_eq!(f.status(job).await, Status::Succeeded);
}

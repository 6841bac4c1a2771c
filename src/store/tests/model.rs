//! Random operations against the store and against a model small enough to be read, side by side.

use super::*;
use crate::domain::{Device, ErrorCode, JobError, LogLevel, LossCause, RetryPolicy};

const OPERATIONS: u64 = 3000;
const OPERATIONS_OF_THE_LANE: u64 = 100_000;
const MAX_ATTEMPTS: u32 = 3;
/// Losses do not delay a job here: the clock stands still.
const POLICY: RetryPolicy = RetryPolicy {
    max_attempts: MAX_ATTEMPTS,
    first_delay_ms: 0,
    max_delay_ms: 0,
};
/// As the specs of this test say.
const MICRO_BATCH: u32 = 8;

/// SplitMix64 (Steele, Lea, Flood 2014): enough to pick operations.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % n as u64).unwrap()
    }
}

struct ModelJob {
    id: JobId,
    status: Status,
    attempt: u32,
    priority: i32,
    lost: u32,
    divisor: u32,
    cancel_requested: bool,
    pause_requested: bool,
    kinds: Vec<&'static str>,
    /// The newest attempt, over or not.
    claimed: Option<ClaimedAttempt>,
    acked: u64,
}

impl ModelJob {
    fn finish(&mut self, status: Status, kind: &'static str) {
        self.status = status;
        self.cancel_requested = false;
        self.pause_requested = false;
        self.kinds.push(kind);
    }

    fn leave_or_requeue(&mut self) {
        if self.cancel_requested {
            self.finish(Status::Cancelled, "cancelled");
        } else if self.pause_requested {
            self.finish(Status::Paused, "paused");
        } else {
            self.finish(Status::Queued, "requeued");
        }
    }
}

#[tokio::test]
async fn random_operations_agree_with_the_model() {
    agree(OPERATIONS).await;
}

#[tokio::test]
#[ignore = "a minute; see tests/LANES.md"]
async fn a_hundred_thousand_random_operations_agree_with_the_model() {
    agree(OPERATIONS_OF_THE_LANE).await;
}

async fn agree(operations: u64) {
    let seed = std::env::var("CHANDLER_TEST_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(20_261_123);
    println!("seed {seed} (set CHANDLER_TEST_SEED to replay another), {operations} operations");
    let f = Fixture::new().await;
    let mut random = Random(seed);
    let mut jobs: Vec<ModelJob> = Vec::new();
    for operation in 0..operations {
        let changed = step(&f, &mut random, &mut jobs).await;
        if let Some(index) = changed {
            compare(&f, &jobs[index], operation).await;
        }
    }
    for job in &jobs {
        compare(&f, job, operations).await;
    }
    let newest_first: Vec<JobId> = jobs.iter().rev().map(|job| job.id).collect();
    let listed = f.store.jobs(None, None, 100_000).await.unwrap();
    let listed: Vec<JobId> = listed.iter().map(|job| job.id).collect();
    assert_eq!(listed, newest_first);
}

async fn compare(f: &Fixture, job: &ModelJob, operation: u64) {
    let stored = f.store.job(job.id).await.unwrap().unwrap();
    let context = format!("operation {operation}, job {}", job.id);
    assert_eq!(stored.status, job.status, "{context}");
    assert_eq!(stored.attempt, job.attempt, "{context}");
    assert_eq!(stored.cancel_requested, job.cancel_requested, "{context}");
    assert_eq!(stored.pause_requested, job.pause_requested, "{context}");
    assert_eq!(stored.spec.priority, job.priority, "{context}");
    assert_eq!(f.kinds(job.id).await, job.kinds, "{context}");
}

/// Does one operation on both sides; answers which job it was about.
async fn step(f: &Fixture, random: &mut Random, jobs: &mut Vec<ModelJob>) -> Option<usize> {
    let operation = random.below(100);
    if jobs.is_empty() || operation < 8 {
        let id = f.job().await.id;
        jobs.push(ModelJob {
            id,
            status: Status::Queued,
            attempt: 0,
            priority: 0,
            lost: 0,
            divisor: 1,
            cancel_requested: false,
            pause_requested: false,
            kinds: vec!["queued"],
            claimed: None,
            acked: 0,
        });
        return Some(jobs.len() - 1);
    }
    // Mostly recent jobs: old ones are mostly over.
    let index = jobs.len() - 1 - random.below(jobs.len().min(12));
    match operation {
        8..20 => claim(f, jobs).await,
        20..26 => {
            cancel(f, &mut jobs[index]).await;
            Some(index)
        }
        26..32 => {
            end(f, random, &mut jobs[index]).await;
            Some(index)
        }
        36..46 => {
            lifecycle(f, random, &mut jobs[index]).await;
            Some(index)
        }
        32..36 => {
            let result = f.store.delete_job(jobs[index].id).await;
            if jobs[index].status.is_final() {
                assert_eq!(result, Ok(()));
                jobs.remove(index);
                return None;
            }
            assert_eq!(result, Err(StoreError::StateConflict(jobs[index].status)));
            Some(index)
        }
        _ => {
            report(f, random, &mut jobs[index]).await;
            Some(index)
        }
    }
}

async fn claim(f: &Fixture, jobs: &mut [ModelJob]) -> Option<usize> {
    let queued = jobs.iter().filter(|job| job.status == Status::Queued);
    let highest = queued.map(|job| job.priority).max();
    // Jobs stand in order of age.
    let oldest = jobs
        .iter()
        .position(|job| job.status == Status::Queued && Some(job.priority) == highest);
    let claimed = f.store.claim_next(LEASE_MS).await.unwrap();
    assert_eq!(
        claimed.as_ref().map(|c| c.job_id),
        oldest.map(|index| jobs[index].id)
    );
    let job = &mut jobs[oldest?];
    job.status = Status::Running;
    job.attempt += 1;
    job.kinds.push("started");
    job.claimed = claimed;
    job.acked = 0;
    oldest
}

async fn cancel(f: &Fixture, job: &mut ModelJob) {
    let result = f.store.cancel_job(job.id).await;
    match job.status {
        Status::Queued | Status::Paused => job.finish(Status::Cancelled, "cancelled"),
        Status::Running => job.cancel_requested = true,
        Status::Succeeded | Status::Failed => {
            assert_eq!(result, Err(StoreError::StateConflict(job.status)));
        }
        _ => assert!(result.is_ok()),
    }
}

/// Pause, resume, retry, a new priority.
async fn lifecycle(f: &Fixture, random: &mut Random, job: &mut ModelJob) {
    let conflict = Err(StoreError::StateConflict(job.status));
    match random.below(4) {
        0 => {
            let result = f.store.pause_job(job.id).await.map(|_| ());
            match job.status {
                Status::Queued => job.finish(Status::Paused, "paused"),
                Status::Running => job.pause_requested = true,
                Status::Paused => {}
                _ => return assert_eq!(result, conflict),
            }
            assert_eq!(result, Ok(()));
        }
        1 => {
            let result = f.store.resume_job(job.id).await.map(|_| ());
            match job.status {
                Status::Paused => job.finish(Status::Queued, "resumed"),
                Status::Running => job.pause_requested = false,
                Status::Queued => {}
                _ => return assert_eq!(result, conflict),
            }
            assert_eq!(result, Ok(()));
        }
        2 => {
            let result = f.store.retry_job(job.id).await.map(|_| ());
            if !matches!(job.status, Status::Failed | Status::Cancelled) {
                return assert_eq!(result, conflict);
            }
            job.finish(Status::Queued, "retried");
            (job.lost, job.divisor) = (0, 1);
        }
        _ => {
            let priority = i32::try_from(random.below(3)).unwrap() - 1;
            let patch = JobPatch {
                priority: Some(priority),
                ..JobPatch::default()
            };
            let result = f.store.update_job(job.id, patch).await.map(|_| ());
            if !matches!(job.status, Status::Queued | Status::Paused) {
                return assert_eq!(result, conflict);
            }
            job.priority = priority;
        }
    }
}

async fn end(f: &Fixture, random: &mut Random, job: &mut ModelJob) {
    let Some(claimed) = job.claimed.clone() else {
        return;
    };
    let error = JobError::new(ErrorCode::TrainerDied, "gone");
    let choice = random.below(5);
    let end = match choice {
        0 => AttemptEnd::Fail(error),
        1 => AttemptEnd::Return {
            reason: "stop".to_owned(),
        },
        2 => AttemptEnd::Lost {
            cause: LossCause::OutOfMemory,
            error,
            policy: POLICY,
        },
        _ => AttemptEnd::Lost {
            cause: LossCause::Died,
            error,
            policy: POLICY,
        },
    };
    let was_open = f.store.end_attempt(claimed.attempt_id, end).await.unwrap();
    assert_eq!(was_open, job.status == Status::Running);
    if !was_open {
        return;
    }
    if job.cancel_requested {
        return job.finish(Status::Cancelled, "cancelled");
    }
    if choice == 0 {
        return job.finish(Status::Failed, "failed");
    }
    if job.pause_requested {
        return job.finish(Status::Paused, "paused");
    }
    let fails = match choice {
        1 => false,
        2 => job.divisor >= MICRO_BATCH,
        _ => job.lost + 1 >= MAX_ATTEMPTS,
    };
    if fails {
        return job.finish(Status::Failed, "failed");
    }
    match choice {
        1 => {}
        2 => job.divisor *= 2,
        _ => job.lost += 1,
    }
    job.finish(Status::Queued, "requeued");
}

fn random_event(random: &mut Random) -> Event {
    match random.below(12) {
        0 => Event::Succeeded { model_step: 3 },
        1 => Event::Failed {
            error: JobError::new(ErrorCode::NonFiniteLoss, "NaN"),
        },
        2 => Event::Cancelled {},
        3 => Event::Requeued {
            reason: "told to".to_owned(),
        },
        4 => Event::Progress(crate::domain::Progress::default()),
        5 => Event::Started {
            attempt: 9,
            device: Device::Cpu,
        },
        6 => metrics(3, "loss", 0.5),
        7 => Event::Checkpoint(checkpoint(3)),
        _ => Event::Log {
            level: LogLevel::Info,
            message: "hello".to_owned(),
        },
    }
}

/// Sends one message: the next one, an old one, one after a gap, or the next with a wrong token.
async fn report(f: &Fixture, random: &mut Random, job: &mut ModelJob) {
    let Some(mut claimed) = job.claimed.clone() else {
        return;
    };
    let seq = match random.below(8) {
        0 => job.acked.max(1),
        1 => job.acked + 2,
        _ => job.acked + 1,
    };
    let wrong_token = random.below(10) == 0;
    if wrong_token {
        claimed.token.push('x');
    }
    let event = random_event(random);
    let result = f.say(&claimed, vec![message(seq, event.clone())]).await;
    let is_open = job.status == Status::Running;
    if wrong_token || (!is_open && seq > job.acked) {
        assert_eq!(result, Err(StoreError::Fenced));
        return;
    }
    if is_open && seq == job.acked + 1 {
        job.acked = seq;
        match event {
            Event::Succeeded { .. } if job.kinds.contains(&"checkpoint") => {
                job.finish(Status::Succeeded, "succeeded");
            }
            // A success without the model it names.
            Event::Succeeded { .. } => job.finish(Status::Failed, "failed"),
            Event::Failed { .. } => job.finish(Status::Failed, "failed"),
            Event::Cancelled {} => job.finish(Status::Cancelled, "cancelled"),
            Event::Requeued { .. } => job.leave_or_requeue(),
            Event::Progress(_) | Event::Started { .. } => {}
            // Always the same one: told once.
            Event::Checkpoint(_) if job.kinds.contains(&"checkpoint") => {}
            other => job.kinds.push(other.kind()),
        }
    }
    assert_eq!(result.unwrap().acked_seq, job.acked);
}

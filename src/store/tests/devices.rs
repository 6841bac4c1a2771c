//! What attempts are on, and who is claimed for it.

use sqlx::Row as _;

use super::*;
use crate::domain::{Device, ErrorCode, JobError, LossCause, Placement, RetryPolicy};

fn on(uuid: &str, reserved_bytes: Option<u64>) -> Placement {
    Placement {
        device: Device::Cuda {
            name: "Test Card".to_owned(),
            uuid: uuid.to_owned(),
        },
        reserved_bytes,
    }
}

impl Fixture {
    async fn claim_on(&self, placement: Placement) -> ClaimedAttempt {
        let next = self.store.next_queued().await.unwrap().unwrap();
        let claimed = self.store.claim(next.job_id, placement, LEASE_MS).await;
        claimed.unwrap().unwrap()
    }

    async fn lose(&self, claimed: &ClaimedAttempt, cause: LossCause) {
        let end = AttemptEnd::Lost {
            cause,
            error: JobError::new(ErrorCode::TrainerDied, "gone"),
            policy: RetryPolicy {
                first_delay_ms: 0,
                ..RetryPolicy::default()
            },
        };
        assert!(
            self.store
                .end_attempt(claimed.attempt_id, end)
                .await
                .unwrap()
        );
    }

    async fn has_run_out(&self) -> bool {
        self.store
            .next_queued()
            .await
            .unwrap()
            .unwrap()
            .ran_out_of_memory
    }
}

#[tokio::test]
async fn only_a_job_that_is_still_queued_is_claimed() {
    let f = Fixture::new().await;
    assert!(f.store.next_queued().await.unwrap().is_none());
    let (first, second) = (f.job().await.id, f.job().await.id);
    let next = f.store.next_queued().await.unwrap().unwrap();
    assert_eq!((next.job_id, &next.spec), (first, &f.spec()));
    assert_eq!(next.micro_batch_divisor, 1);
    let claim = async |job| {
        let claimed = f.store.claim(job, Placement::default(), LEASE_MS);
        claimed.await.unwrap().map(|claimed| claimed.job_id)
    };
    f.store.cancel_job(first).await.unwrap();
    assert_eq!(claim(first).await, None);
    assert_eq!(f.kinds(first).await, ["queued", "cancelled"]);
    assert_eq!(claim(second).await, Some(second));
    assert_eq!(claim(second).await, None);
    assert_eq!(f.store.open_attempts().await.unwrap().len(), 1);
}

#[tokio::test]
async fn places_outlive_the_server_that_gave_them() {
    let mut f = Fixture::new().await;
    let jobs = [f.job().await, f.job().await, f.job().await];
    assert_eq!(jobs[0].device, None);
    let places = [
        on("GPU-a", Some(7)),
        on("GPU-a", None),
        Placement::default(),
    ];
    for place in &places {
        assert_eq!(f.claim_on(place.clone()).await.device, place.device);
    }
    f.reopen().await;
    let mut open = f.store.open_attempts().await.unwrap();
    open.sort_by_key(|attempt| attempt.job_id);
    for ((open, place), job) in open.iter().zip(&places).zip(&jobs) {
        assert_eq!((&open.placement, open.job_id), (place, job.id));
        let job = f.store.job(job.id).await.unwrap().unwrap();
        assert_eq!(job.device.as_ref(), Some(&place.device));
    }
    let listed = f.store.jobs(None, None, 9).await.unwrap();
    assert_eq!(listed[0].device, Some(Device::Cpu));

    // The next attempt may be elsewhere, and then that is what the job says.
    let first = &open[0];
    let end = AttemptEnd::Return {
        reason: "stop".to_owned(),
    };
    f.store.end_attempt(first.attempt_id, end).await.unwrap();
    let device = |job: Job| job.device.unwrap().to_string();
    let queued = f.store.job(jobs[0].id).await.unwrap().unwrap();
    assert_eq!(device(queued), "Test Card (GPU-a)");
    f.claim_on(on("GPU-b", None)).await;
    let running = f.store.job(jobs[0].id).await.unwrap().unwrap();
    assert_eq!(device(running), "Test Card (GPU-b)");
}

#[tokio::test]
async fn running_out_of_memory_is_remembered_until_the_job_is_retried_by_hand() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    let claimed = f.claim().await;
    f.lose(&claimed, LossCause::Died).await;
    assert!(!f.has_run_out().await);
    let claimed = f.claim().await;
    f.lose(&claimed, LossCause::OutOfMemory).await;
    assert!(f.has_run_out().await);
    let claimed = f.claim().await;
    f.lose(&claimed, LossCause::Died).await;
    assert!(f.has_run_out().await, "not only the last attempt counts");
    f.store.cancel_job(job).await.unwrap();
    f.store.retry_job(job).await.unwrap();
    assert!(!f.has_run_out().await);
}

#[tokio::test]
async fn attempts_of_an_earlier_release_were_on_the_processor() {
    let f = Fixture::new().await;
    let sql = "SELECT dflt_value FROM pragma_table_info('attempt') WHERE name = 'device'";
    let row = sqlx::query(sql).fetch_one(f.store.readers()).await.unwrap();
    let default: &str = row.get(0);
    let device = default.trim_matches('\'');
    assert_eq!(serde_json::from_str::<Device>(device).unwrap(), Device::Cpu);
    // As text, too: attempts on one device are found by it.
    assert_eq!(device, serde_json::to_string(&Device::Cpu).unwrap());
}

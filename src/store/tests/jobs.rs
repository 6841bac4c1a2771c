use uuid::Uuid;

use super::*;

async fn position(f: &Fixture, id: JobId) -> Option<u64> {
    let job = f.store.job(id).await.unwrap().unwrap();
    let positions = f.store.queue_positions(&[job]).await.unwrap();
    positions.into_values().next()
}

#[tokio::test]
async fn a_job_is_read_back_as_it_was_created() {
    let f = Fixture::new().await;
    let (job, existed) = f.store.create_job(f.spec(), None).await.unwrap();
    assert!(!existed);
    assert_eq!(job.status, Status::Queued);
    assert_eq!(job.spec, f.spec());
    assert_eq!(job.created_at, Timestamp(1_000_000));
    assert_eq!(
        (job.attempt, job.started_at, job.finished_at),
        (0, None, None)
    );
    assert_eq!(f.store.job(job.id).await.unwrap(), Some(job.clone()));
    assert_eq!(f.kinds(job.id).await, ["queued"]);
    assert_eq!(f.store.job(JobId(Uuid::nil())).await.unwrap(), None);
    f.store.ping().await.unwrap();
}

#[tokio::test]
async fn a_job_needs_its_datasets() {
    let f = Fixture::new().await;
    let missing = DatasetId(Uuid::from_u128(7));
    let refused = f.store.create_job(spec(missing), None).await;
    assert_eq!(refused, Err(StoreError::DatasetNotFound(missing)));
    let mut with_eval = f.spec();
    with_eval.dataset.eval = Some(missing);
    let refused = f.store.create_job(with_eval, None).await;
    assert_eq!(refused, Err(StoreError::DatasetNotFound(missing)));
    assert_eq!(f.store.jobs(None, None, 10).await.unwrap(), []);
}

#[tokio::test]
async fn jobs_are_listed_newest_first_in_pages() {
    let f = Fixture::new().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.insert(0, f.job().await.id);
    }
    f.store.cancel_job(ids[1]).await.unwrap();
    let listed = async |status, after, limit| -> Vec<JobId> {
        let jobs = f.store.jobs(status, after, limit).await.unwrap();
        jobs.iter().map(|job| job.id).collect()
    };
    assert_eq!(listed(None, None, 2).await, ids[..2]);
    assert_eq!(listed(None, Some(ids[1]), 10).await, ids[2..]);
    assert_eq!(listed(Some(Status::Cancelled), None, 10).await, [ids[1]]);
    assert_eq!(
        listed(Some(Status::Queued), Some(ids[0]), 2).await,
        ids[2..4]
    );
    // Oldest first in the queue.
    assert_eq!(position(&f, ids[4]).await, Some(1));
    assert_eq!(position(&f, ids[0]).await, Some(4));
    assert_eq!(position(&f, ids[1]).await, None);
    assert_eq!(f.claim().await.job_id, ids[4]);
    assert_eq!(position(&f, ids[0]).await, Some(3));
}

#[tokio::test]
async fn a_key_makes_one_job() {
    let f = Fixture::new().await;
    let key = |sha: &str| {
        Some(Idempotency {
            key: "k1".to_owned(),
            request_sha256: sha.to_owned(),
        })
    };
    let (first, existed) = f.store.create_job(f.spec(), key("a")).await.unwrap();
    assert!(!existed);
    let (again, existed) = f.store.create_job(f.spec(), key("a")).await.unwrap();
    assert!(existed);
    assert_eq!(again, first);
    let other = f.store.create_job(f.spec(), key("b")).await;
    assert_eq!(other, Err(StoreError::IdempotencyKeyReused));

    f.store.cancel_job(first.id).await.unwrap();
    f.store.delete_job(first.id).await.unwrap();
    let (fresh, existed) = f.store.create_job(f.spec(), key("b")).await.unwrap();
    assert!(!existed && fresh.id != first.id);
}

#[tokio::test]
async fn a_queued_job_is_cancelled_at_once_and_for_good() {
    let f = Fixture::new().await;
    let job = f.job().await;
    f.clock.advance_ms(50);
    let cancelled = f.store.cancel_job(job.id).await.unwrap();
    assert_eq!(cancelled.status, Status::Cancelled);
    assert_eq!(cancelled.finished_at, Some(Timestamp(1_000_050)));
    assert!(!cancelled.cancel_requested);
    assert_eq!(f.store.cancel_job(job.id).await.unwrap(), cancelled);
    assert_eq!(f.kinds(job.id).await, ["queued", "cancelled"]);
    assert!(f.store.claim_next(LEASE_MS).await.unwrap().is_none());
    let unknown = f.store.cancel_job(JobId(Uuid::nil())).await;
    assert_eq!(unknown, Err(StoreError::NotFound));
}

#[tokio::test]
async fn only_final_jobs_are_deleted_and_leave_nothing() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    let refused = f.store.delete_job(job).await;
    assert_eq!(refused, Err(StoreError::StateConflict(Status::Queued)));
    let claimed = f.claim().await;
    let refused = f.store.delete_job(job).await;
    assert_eq!(refused, Err(StoreError::StateConflict(Status::Running)));
    let said = vec![
        message(1, metrics(1, "loss", 0.5)),
        message(2, Event::Checkpoint(checkpoint(1))),
        message(3, Event::Succeeded { model_step: 1 }),
    ];
    f.say(&claimed, said).await.unwrap();
    let over = f.store.cancel_job(job).await;
    assert_eq!(over, Err(StoreError::StateConflict(Status::Succeeded)));

    f.store.delete_job(job).await.unwrap();
    assert_eq!(f.store.delete_job(job).await, Err(StoreError::NotFound));
    assert_eq!(f.store.job(job).await.unwrap(), None);
    assert_eq!(f.store.events(job, 0, 10).await.unwrap(), []);
    assert_eq!(f.store.metric_points(job, &[], 0).await.unwrap(), []);
    assert_eq!(f.store.checkpoints(job).await.unwrap(), []);
    let late = f.say(&claimed, vec![message(4, Event::Cancelled {})]).await;
    assert_eq!(late, Err(StoreError::Fenced));
}

#[tokio::test]
async fn datasets_come_and_go_unless_needed() {
    let f = Fixture::new().await;
    let second = dataset(&*f.ids);
    f.store.create_dataset(second.clone()).await.unwrap();
    assert!(f.store.create_dataset(second.clone()).await.is_err());
    let read = f.store.dataset(second.id).await.unwrap();
    assert_eq!(read, Some(second.clone()));
    let listed = f.store.datasets(None, 10).await.unwrap();
    assert_eq!(listed[0], second);
    assert_eq!(listed[1].id, f.dataset);
    let older = f.store.datasets(Some(second.id), 10).await.unwrap();
    assert_eq!(older, listed[1..]);

    let mut spec = f.spec();
    spec.dataset.eval = Some(second.id);
    let job = f.store.create_job(spec, None).await.unwrap().0.id;
    for id in [f.dataset, second.id] {
        let refused = f.store.delete_dataset(id).await;
        assert_eq!(refused, Err(StoreError::DatasetInUse(job)));
    }
    f.store.cancel_job(job).await.unwrap();
    f.store.delete_dataset(second.id).await.unwrap();
    let gone = f.store.delete_dataset(second.id).await;
    assert_eq!(gone, Err(StoreError::NotFound));
}

use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use tokio::task::JoinSet;

use super::*;
use crate::domain::LogLevel;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn sixty_four_posts_with_one_key_make_one_job() {
    let f = Fixture::new().await;
    let mut posts = JoinSet::new();
    for _ in 0..64 {
        let (store, spec) = (f.store.clone(), f.spec());
        let key = Idempotency {
            key: "same".to_owned(),
            request_sha256: "body".to_owned(),
        };
        posts.spawn(async move { store.create_job(spec, Some(key)).await.unwrap() });
    }
    let answers = posts.join_all().await;
    let ids: HashSet<JobId> = answers.iter().map(|(job, _)| job.id).collect();
    assert_eq!(ids.len(), 1);
    let made = answers.iter().filter(|(_, existed)| !existed).count();
    assert_eq!(made, 1);
    assert_eq!(f.store.jobs(None, None, 100).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thirty_two_claims_never_share_a_job() {
    let f = Fixture::new().await;
    for _ in 0..20 {
        f.job().await;
    }
    let mut claims = JoinSet::new();
    for _ in 0..32 {
        let store = f.store.clone();
        claims.spawn(async move { store.claim_next(LEASE_MS).await.unwrap() });
    }
    let claimed: Vec<_> = claims.join_all().await.into_iter().flatten().collect();
    assert_eq!(claimed.len(), 20);
    let jobs: HashSet<JobId> = claimed.iter().map(|c| c.job_id).collect();
    assert_eq!(jobs.len(), 20);
    assert_eq!(f.store.open_attempts().await.unwrap().len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn event_numbers_have_no_gaps_under_concurrency() {
    let f = Fixture::new().await;
    let mut trainers = JoinSet::new();
    let mut jobs = Vec::new();
    for _ in 0..8 {
        jobs.push(f.job().await.id);
        let (store, claimed) = (f.store.clone(), f.claim().await);
        trainers.spawn(async move {
            for seq in 1..=25 {
                let event = Event::Log {
                    level: LogLevel::Info,
                    message: seq.to_string(),
                };
                // Two copies race; one of them is the duplicate.
                let send = || {
                    let messages = vec![message(seq, event.clone())];
                    store.record_messages(claimed.attempt_id, &claimed.token, messages, LEASE_MS)
                };
                let (a, b) = tokio::join!(send(), send());
                assert_eq!((a.unwrap().acked_seq, b.unwrap().acked_seq), (seq, seq));
            }
        });
    }
    trainers.join_all().await;
    for job in jobs {
        assert_eq!(f.kinds(job).await.len(), 27);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn cancel_finish_and_death_race_to_exactly_one_end() {
    race_to_the_end(20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "lane: 1,000 races"]
async fn lane_cancel_finish_and_death_race() {
    let rounds = std::env::var("CHANDLER_LANE_COUNT").ok();
    race_to_the_end(rounds.and_then(|n| n.parse().ok()).unwrap_or(1_000)).await;
}

async fn race_to_the_end(rounds: u32) {
    let f = Fixture::new().await;
    let mut statuses = std::collections::HashMap::<Status, u32>::new();
    for round in 0..rounds {
        let job = f.job().await.id;
        let claimed = f.claim().await;
        let mut racers = JoinSet::new();
        let store = f.store.clone();
        racers.spawn(async move {
            store.cancel_job(job).await.ok();
        });
        let (store, c) = (f.store.clone(), claimed.clone());
        racers.spawn(async move {
            let done = success(1);
            store
                .record_messages(c.attempt_id, &c.token, done, LEASE_MS)
                .await
                .ok();
        });
        let (store, id) = (f.store.clone(), claimed.attempt_id);
        racers.spawn(async move {
            let error = crate::domain::JobError::new(crate::domain::ErrorCode::TrainerDied, "gone");
            store
                .end_attempt(id, AttemptEnd::Fail(error))
                .await
                .unwrap();
        });
        racers.join_all().await;
        let kinds = f.kinds(job).await;
        let ends = |kind: &&&str| matches!(**kind, "succeeded" | "failed" | "cancelled");
        assert_eq!(
            kinds.iter().filter(ends).count(),
            1,
            "round {round}: {kinds:?}"
        );
        let status = f.status(job).await;
        assert_eq!(kinds.last().copied(), Some(status.as_str()));
        *statuses.entry(status).or_default() += 1;
    }
    println!("{rounds} races, each with one terminal event: {statuses:?}");
    assert_eq!(statuses.values().sum::<u32>(), rounds);
}

#[tokio::test]
async fn a_dropped_request_leaves_the_store_healthy() {
    let f = Fixture::new().await;
    for _ in 0..50 {
        // Polled once, the request is on its way; then its caller goes.
        let mut request = Box::pin(f.store.create_job(f.spec(), None));
        poll_once(request.as_mut()).await;
        drop(request);
    }
    let last = f.job().await.id;
    let jobs = f.store.jobs(None, None, 100).await.unwrap();
    assert_eq!(jobs.len(), 51);
    assert_eq!(jobs[0].id, last);
    for job in jobs {
        assert_eq!(f.kinds(job.id).await, ["queued"]);
    }
}

#[tokio::test]
async fn subscribers_wake_after_the_commit() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    let other = f.job().await.id;
    let mut news = f.store.subscribe(job);
    let silence = f.store.subscribe(other);
    let claimed = f.claim().await;
    assert_eq!(claimed.job_id, job);
    news.changed().await.unwrap();
    assert_eq!(f.kinds(job).await, ["queued", "started"]);
    let progress = Event::Progress(crate::domain::Progress::default());
    f.say(&claimed, vec![message(1, progress)]).await.unwrap();
    assert!(news.has_changed().unwrap());
    assert!(!silence.has_changed().unwrap());
    f.store.close().await;
    assert!(silence.has_changed().is_err());
}

async fn poll_once<F: Future>(mut future: Pin<&mut F>) {
    poll_fn(|context| {
        let _ = future.as_mut().poll(context);
        Poll::Ready(())
    })
    .await;
}

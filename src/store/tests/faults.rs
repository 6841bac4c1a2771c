use super::*;

#[tokio::test]
async fn closing_and_opening_again_keeps_everything() {
    let mut f = Fixture::new().await;
    let job = f.job().await.id;
    let claimed = f.claim().await;
    let said = vec![
        message(1, metrics(1, "loss", 0.5)),
        message(2, Event::Checkpoint(checkpoint(1))),
    ];
    f.say(&claimed, said).await.unwrap();
    let before = f.store.job(job).await.unwrap();
    let events = f.store.events(job, 0, 10).await.unwrap();
    f.reopen().await;
    assert_eq!(f.store.job(job).await.unwrap(), before);
    assert_eq!(f.store.events(job, 0, 10).await.unwrap(), events);
    // The trainer of the earlier server goes on where it was.
    let done = vec![message(3, Event::Succeeded { model_step: 1 })];
    assert_eq!(f.say(&claimed, done).await.unwrap().acked_seq, 3);
    assert_eq!(f.status(job).await, Status::Succeeded);
}

#[tokio::test]
async fn a_closed_store_answers_with_an_error() {
    let f = Fixture::new().await;
    f.store.close().await;
    f.store.close().await;
    assert!(f.store.create_job(f.spec(), None).await.is_err());
    assert!(f.store.jobs(None, None, 1).await.is_err());
    assert!(f.store.ping().await.is_err());
}

#[tokio::test]
async fn a_file_that_is_no_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("test.db");
    std::fs::write(&path, "this is not a database, however long it may be").unwrap();
    let clock = Arc::new(FixedClock::new(Timestamp(0)));
    let opened = Store::open(&path, clock, Arc::new(SequentialIds::default())).await;
    assert!(matches!(opened, Err(StoreError::Database(_))));
}

#[tokio::test]
async fn a_full_disk_fails_the_write_alone_and_passes() {
    let f = Fixture::new().await;
    let kept = f.job().await.id;
    limit_pages(&f.store, 1).await;
    let mut failed = None;
    for _ in 0..200 {
        if let Err(error) = f.store.create_job(f.spec(), None).await {
            failed = Some(error);
            break;
        }
    }
    assert_eq!(failed, Some(StoreError::DiskFull));
    assert_eq!(f.status(kept).await, Status::Queued);
    let before = f.store.jobs(None, None, 500).await.unwrap().len();
    limit_pages(&f.store, 1_000_000).await;
    f.job().await;
    let after = f.store.jobs(None, None, 500).await.unwrap().len();
    assert_eq!(after, before + 1);
}

/// SQLite raises a limit below the present size to the present size.
async fn limit_pages(store: &Store, pages: u32) {
    store
        .write(move |tx| {
            Box::pin(async move {
                let sql = format!("PRAGMA max_page_count = {pages}");
                sqlx::query(sqlx::AssertSqlSafe(sql))
                    .fetch_one(&mut tx.conn)
                    .await?;
                Ok(())
            })
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_request_that_fails_does_not_undo_its_neighbours() {
    let f = Fixture::new().await;
    let missing = DatasetId(uuid::Uuid::from_u128(1));
    // Sent together, they share a transaction.
    let (a, b, c) = tokio::join!(
        f.store.create_job(f.spec(), None),
        f.store.create_job(spec(missing), None),
        f.store.create_job(f.spec(), None),
    );
    assert!(a.is_ok() && b.is_err() && c.is_ok());
    assert_eq!(f.store.jobs(None, None, 10).await.unwrap().len(), 2);
}

#[tokio::test]
async fn the_schema_refuses_rows_that_make_no_sense() {
    let f = Fixture::new().await;
    f.job().await;
    let nonsense = [
        "UPDATE job SET status = 'done'",
        "UPDATE job SET status = 'running'",
        "UPDATE job SET status = 'succeeded', finished_at = 1",
        "UPDATE job SET status = 'failed', finished_at = 1",
        "UPDATE job SET status = 'cancelled'",
        "UPDATE job SET error = '{}'",
        "UPDATE job SET phase = 'training'",
        "UPDATE job SET model_step = 3",
        "UPDATE job SET finished_at = 3",
        "UPDATE job SET cancel_requested_at = 3",
        "UPDATE job SET attempt = 1",
        "UPDATE job SET created_at = 'yesterday'",
        "INSERT INTO event (job_id, seq, kind, body, created_at) VALUES ('nobody', 1, 'log', '{}', 0)",
    ];
    for sql in nonsense {
        let refused = f
            .store
            .write(move |tx| {
                Box::pin(async move {
                    sqlx::query(sql).execute(&mut tx.conn).await?;
                    Ok(())
                })
            })
            .await;
        assert!(refused.is_err(), "{sql}");
    }
}

#[tokio::test]
async fn a_request_that_fails_after_it_wrote_leaves_nothing_behind() {
    let f = Fixture::new().await;
    let job = f.job().await.id;
    let half_done = f.store.write(move |tx| {
        Box::pin(async move {
            sqlx::query("UPDATE job SET metrics = 'half done', last_seq = 99")
                .execute(&mut tx.conn)
                .await?;
            tx.touch(job);
            Err::<(), _>(StoreError::NotFound)
        })
    });
    let news = f.store.subscribe(job);
    // Sent together, they share a transaction.
    let (refused, neighbour) = tokio::join!(half_done, f.store.create_job(f.spec(), None));
    assert_eq!(refused, Err(StoreError::NotFound));
    assert!(neighbour.is_ok());
    assert!(!news.has_changed().unwrap());
    f.claim().await;
    assert_eq!(f.kinds(job).await, ["queued", "started"]);
}

#[tokio::test]
async fn commits_reach_the_disk_and_readers_cannot_write() {
    let f = Fixture::new().await;
    let (journal, synchronous) = f
        .store
        .write(|tx| {
            Box::pin(async move {
                let journal: String = sqlx::query_scalar("PRAGMA journal_mode")
                    .fetch_one(&mut tx.conn)
                    .await?;
                let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous")
                    .fetch_one(&mut tx.conn)
                    .await?;
                Ok((journal, synchronous))
            })
        })
        .await
        .unwrap();
    // 2 is FULL.
    assert_eq!((journal.as_str(), synchronous), ("wal", 2));
    let written = sqlx::query("DELETE FROM job")
        .execute(f.store.readers())
        .await;
    assert!(written.is_err());
}

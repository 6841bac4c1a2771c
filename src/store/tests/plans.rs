//! Every query that runs often finds its rows through an index, in order.

use sqlx::Row;

use super::*;
use crate::store::{attempts, checkpoints, claim, datasets, events, jobs, metrics, queue};

const HOT: [&str; 18] = [
    jobs::SELECT,
    jobs::LIST,
    jobs::LIST_BY_STATUS,
    queue::AHEAD,
    queue::LOAD,
    claim::NEXT,
    claim::CLAIM,
    events::PAGE,
    metrics::ALL,
    metrics::ONE,
    checkpoints::LIST,
    datasets::SELECT,
    datasets::LIST,
    datasets::USED_BY,
    attempts::EXPIRED,
    attempts::OVERDUE_CANCELS,
    attempts::OVERDUE_PAUSES,
    attempts::OVERRUN,
];

#[tokio::test]
async fn hot_queries_use_an_index() {
    let f = Fixture::new().await;
    for sql in HOT {
        let plan = plan(&f.store, sql).await;
        assert!(!plan.is_empty(), "{sql}");
        for step in plan {
            // A subquery has a LIMIT, and its own steps are looked at as well.
            let bounded = ["CONSTANT ROW", "(subquery", "recent", "running"]
                .iter()
                .any(|name| step.starts_with(&format!("SCAN {name}")));
            let whole_table = step.starts_with("SCAN") && !bounded;
            assert!(
                !whole_table && !step.contains("TEMP B-TREE"),
                "{sql}\n{step}"
            );
        }
    }
    // The list of open attempts is the index of open attempts, read in order.
    let open = plan(&f.store, attempts::OPEN).await;
    assert_eq!(open, ["SCAN attempt USING INDEX attempt_open_by_lease"]);
}

async fn plan(store: &Store, sql: &str) -> Vec<String> {
    let explain = sqlx::AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}"));
    let rows = sqlx::query(explain)
        .fetch_all(store.readers())
        .await
        .unwrap();
    rows.iter().map(|row| row.get("detail")).collect()
}

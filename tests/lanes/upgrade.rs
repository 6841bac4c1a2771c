//! A server that is killed while it brings an old database up to date leaves one schema or the next, never
//! something between, and every row.

use std::path::{Path, PathBuf};

use sqlx::ConnectOptions as _;
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteConnectOptions;

use crate::support::database::{integrity, texts};
use crate::support::lane::Lane;
use crate::support::submitters::listed;
use crate::support::{ServerOptions, await_some};

const JOBS: usize = 500;

/// The migrations there are, by name, oldest first.
fn migrations() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "sql"))
        .collect();
    found.sort();
    found
}

/// Makes a database as a release with only these migrations would have left it.
fn database_of(path: &Path, migrations: &[PathBuf]) {
    let folder = tempfile::tempdir().unwrap();
    for migration in migrations {
        let name = migration.file_name().unwrap();
        std::fs::copy(migration, folder.path().join(name)).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let migrator = Migrator::new(folder.path()).await.unwrap();
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true);
        let mut connection = options.connect().await.unwrap();
        migrator.run(&mut connection).await.unwrap();
    });
}

/// Rows of the first schema, in every status that a job can be in when a server stops.
fn fill(database: &Path) {
    let dataset = "00000000-0000-7000-8000-00000000d5e7";
    let spec = include_str!("spec_of_schema_1.json").trim();
    assert!(spec.contains(dataset));
    let layout = r#"{"format":"csv","header":true,"columns":["text","label"]}"#;
    let hash = "ab".repeat(32);
    let id = "printf('00000000-0000-7000-8000-%012d', n)";
    let rows =
        format!("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {JOBS})");
    for sql in [
        format!(
            "INSERT INTO dataset VALUES ('{dataset}', 'd', '{layout}', 20, '{hash}', 2, 1000) RETURNING id"
        ),
        format!(
            "{rows} INSERT INTO job (id, status, spec, train_dataset_id, created_at, started_at, attempt, \
                 finished_at, last_seq, error, model_step) \
             SELECT {id}, \
                 CASE n % 4 WHEN 0 THEN 'queued' WHEN 1 THEN 'succeeded' WHEN 2 THEN 'failed' ELSE 'cancelled' END, \
                 '{spec}', '{dataset}', 1000 + n, IIF(n % 4 = 0, NULL, 2000), n % 4 <> 0, \
                 IIF(n % 4 = 0, NULL, 3000), 1, \
                 IIF(n % 4 = 2, '{{\"code\":\"trainer_died\",\"message\":\"gone\"}}', NULL), \
                 IIF(n % 4 = 1, 7, NULL) FROM c RETURNING id"
        ),
        format!(
            "{rows} INSERT INTO event (job_id, seq, kind, body, created_at) \
             SELECT {id}, 1, 'queued', '{{\"type\":\"queued\",\"data\":{{}}}}', 1000 + n FROM c RETURNING job_id"
        ),
    ] {
        texts(database, &sql);
    }
}

/// The tables and indexes, and which migrations are recorded as done.
fn schema(database: &Path) -> (Vec<String>, Vec<String>) {
    let tables = "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name";
    let done = "SELECT CAST(version AS TEXT) FROM _sqlx_migrations WHERE success ORDER BY version";
    (texts(database, tables), texts(database, done))
}

/// Jobs with their status and number of events.
fn rows(database: &Path) -> Vec<String> {
    let sql = "SELECT id || ' ' || status || ' ' || spec || ' ' || \
         (SELECT COUNT(*) FROM event WHERE event.job_id = job.id) FROM job ORDER BY id";
    texts(database, sql)
}

fn kill_upgrades(mut lane: Lane) {
    let temp = tempfile::tempdir().unwrap();
    let migrations = migrations();
    let schemas: Vec<_> = (1..=migrations.len())
        .map(|count| {
            let path = temp.path().join(format!("schema-{count}.db"));
            database_of(&path, &migrations[..count]);
            schema(&path)
        })
        .collect();
    let old = temp.path().join("old.db");
    database_of(&old, &migrations[..1]);
    fill(&old);
    let expected = rows(&old);
    assert_eq!(expected.len(), JOBS);

    let options = ServerOptions::new(&temp.path().join("data")).slots(0);
    std::fs::create_dir_all(&options.data_dir).unwrap();
    let database = options.data_dir.join("chandler.db");
    let put_old = || {
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(options.data_dir.join(format!("chandler.db{suffix}")));
        }
        std::fs::copy(&old, &database).unwrap();
    };
    // How long a start takes, so that the kills are spread over it.
    put_old();
    let began = std::time::Instant::now();
    options.start().stop();
    let start = u64::try_from(began.elapsed().as_millis()).unwrap();

    let mut found = vec![0; schemas.len()];
    for round in 0..lane.count {
        put_old();
        let mut server = options.spawn();
        std::thread::sleep(lane.random.millis(0, start));
        server.kill().unwrap();
        server.wait().unwrap();
        let now = schema(&database);
        let version = schemas.iter().position(|schema| *schema == now);
        let version = version.unwrap_or_else(|| panic!("round {round}: between schemas: {now:?}"));
        found[version] += 1;
        assert_eq!(integrity(&database), ["ok"]);
        assert!(rows(&database) == expected, "round {round}: rows are gone");
        // Half-way or not, the next start brings it to the newest.
        let server = options.start();
        assert_eq!(listed(server.address()).len(), JOBS);
        server.stop();
        await_some("the newest schema", || {
            (schema(&database) == *schemas.last().unwrap()).then_some(())
        });
        assert!(rows(&database) == expected, "round {round}: rows are gone");
    }
    println!(
        "{} upgrades killed: found at schema 1..{} this often: {found:?}; {JOBS} jobs intact each time",
        lane.count,
        schemas.len()
    );
}

#[test]
fn a_killed_upgrade_is_old_or_new() {
    kill_upgrades(Lane::short("upgrade", 5));
}

#[test]
#[ignore = "lane: 50 upgrades killed"]
fn lane_upgrade() {
    kill_upgrades(Lane::long("upgrade", 50));
}

/// Known-bad control: half of a migration is told apart from every whole one.
#[test]
fn half_a_migration_is_seen() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("half.db");
    database_of(&path, &migrations());
    let whole = schema(&path);
    texts(&path, "DROP INDEX job_by_status");
    assert_ne!(schema(&path), whole);
}

/// Versions up to 3.51.2 can corrupt a database when two connections write and checkpoint at once.
#[test]
fn the_bundled_sqlite_has_no_known_corruption() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("empty.db");
    database_of(&path, &[]);
    let version = texts(&path, "SELECT sqlite_version()").remove(0);
    let parts: Vec<u32> = version
        .split('.')
        .map(|part| part.parse().unwrap())
        .collect();
    assert!(parts >= vec![3, 51, 3], "{version}");
}

//! One suite for all serving stores, against real servers: loads that are whole or nothing, flips that no reader notices.

use crate::servers::{self, Kind, Running};
use crate::shop::{DATE, NEXT, SECRET, Shop, block_on};
use async_trait::async_trait;
use nightmarket::deliver::{self, Ad, Delivered, Dialect, Question, Release, Settings, Shelf, State, User};
use nightmarket::error::{self, Result};
use nightmarket::platform::engine;
use nightmarket::platform::server::Server;
use nightmarket::platform::table;
use nightmarket::targeting::arms::Arm;
use redis::AsyncCommands;
use sqlx::{Connection, Row};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const JOB: &str = "shop";
const ADS: usize = 30;

/// A table whose every segment is named after its run, so that a mixture shows.
fn release(run: &str, users: usize) -> Release {
    let segments = |user: usize| (0..=user % 3).map(|place| format!("{run}:{}", (user + place) % 7)).collect();
    let user = |user: usize| User { user_id: format!("{user:032x}"), segments: segments(user) };
    let ad = |row: usize| Ad {
        segment_id: format!("{run}:{}", row / ADS),
        arm: ["champion", "explore", "holdout"][row % ADS / 10].to_owned(),
        rank: (row % 10) as i64 + 1,
        ad_id: format!("ad {row} '\"广告"),
        propensity: 1.0 / (row as f64 + 1.0),
        bid_multiplier: row.is_multiple_of(2).then_some(1.25),
        frequency_cap: (!row.is_multiple_of(5)).then_some(3),
        valid_from: "2026-11-22T16:00:00Z".into(),
        valid_to: "2026-11-23T16:00:00Z".into(),
    };
    Release {
        job: JOB.into(),
        run: run.into(),
        generation: 1,
        policy_version: format!("shop-{run}"),
        may_stay: ["a1", "b2", "c3"].map(str::to_owned).to_vec(),
        users: (0..users).map(user).collect(),
        ads: (0..7 * ADS).map(ad).collect(),
    }
}

/// What a user sees who is in the champion arm.
fn of(user: &str) -> Question {
    Question::User { pseudonym: user.to_owned(), arm: Arm::Champion }
}

fn server(running: &Running) -> Server {
    let user = match running.kind {
        Kind::Redis => None,
        Kind::Postgres => Some("nightmarket".to_owned()),
        Kind::MariaDb => Some("root".to_owned()),
    };
    Server { url: running.url.clone(), user, password: None }
}

async fn load(server: &Server, release: &Release) -> Result<Delivered> {
    deliver::deliver(server, &Settings::default(), release, false).await
}

async fn shelf(server: &Server) -> Box<dyn Shelf> {
    for _ in 0..100 {
        if let Ok(mut shelf) = deliver::open(server, &Settings::default()).await
            && shelf.current(JOB).await.is_ok()
        {
            return shelf;
        }
        // It recovers from its death.
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("{server} does not answer");
}

/// A store with whom something happens in the middle of a load.
struct Interrupted<'a> {
    inner: Box<dyn Shelf>,
    half_way: Box<dyn FnMut() + Send + 'a>,
}

#[async_trait]
impl Shelf for Interrupted<'_> {
    async fn lock(&mut self, job: &str) -> Result<()> {
        self.inner.lock(job).await
    }
    async fn unlock(&mut self, job: &str) -> Result<()> {
        self.inner.unlock(job).await
    }
    async fn current(&mut self, job: &str) -> Result<Option<String>> {
        self.inner.current(job).await
    }
    async fn holds(&mut self, release: &Release) -> Result<bool> {
        self.inner.holds(release).await
    }
    async fn load(&mut self, release: &Release) -> Result<()> {
        let half = Release { users: release.users[..release.users.len() / 2].to_vec(), ..release.clone() };
        self.inner.load(&half).await?;
        (self.half_way)();
        self.inner.load(release).await
    }
    async fn flip(&mut self, release: &Release, from: Option<&str>) -> Result<bool> {
        self.inner.flip(release, from).await
    }
    async fn retire(&mut self, release: &Release, before: Option<&str>) -> Result<()> {
        self.inner.retire(release, before).await
    }
    async fn segments_of(&mut self, job: &str, run: &str, user: &str) -> Result<Vec<String>> {
        self.inner.segments_of(job, run, user).await
    }
    async fn ads(&mut self, job: &str, run: &str) -> Result<Vec<Ad>> {
        self.inner.ads(job, run).await
    }
}

/// An ad server's own connection, which knows the documented keys and views and nothing of ours.
enum Reader {
    Redis(redis::aio::MultiplexedConnection),
    Postgres(sqlx::PgConnection),
    MariaDb(sqlx::MySqlConnection),
}

impl Reader {
    async fn connect(kind: Kind, server: &Server) -> Self {
        let url = server.with_credentials().expect("a URL");
        match kind {
            Kind::Redis => {
                let client = redis::Client::open(url).expect("a client");
                Self::Redis(client.get_multiplexed_async_connection().await.expect("connects"))
            }
            Kind::Postgres => Self::Postgres(sqlx::PgConnection::connect(url.as_str()).await.expect("connects")),
            Kind::MariaDb => Self::MariaDb(sqlx::MySqlConnection::connect(url.as_str()).await.expect("connects")),
        }
    }

    /// The run that serves and a user's segments in it.
    async fn ask(&mut self, user: &str) -> (String, Vec<String>) {
        let sql = "SELECT run, segment_id FROM nightmarket_serving_users WHERE job = 'shop' AND user_id = ";
        let rows: Vec<(String, String)> = match self {
            Self::Redis(connection) => {
                let run: String = connection.get(format!("nm:{JOB}:current")).await.expect("a pointer");
                let found: String = connection.get(format!("nm:{JOB}:{run}:user:{user}")).await.expect("a user");
                return (run, serde_json::from_str(&found).expect("JSON"));
            }
            Self::Postgres(connection) => {
                let mut query = sqlx::QueryBuilder::<sqlx::Postgres>::new(sql);
                query.push_bind(user).push(" ORDER BY place");
                let rows = query.build().fetch_all(connection).await.expect("answers");
                rows.iter().map(|row| (row.get(0), row.get(1))).collect()
            }
            Self::MariaDb(connection) => {
                let mut query = sqlx::QueryBuilder::<sqlx::MySql>::new(sql);
                query.push_bind(user).push(" ORDER BY place");
                let rows = query.build().fetch_all(connection).await.expect("answers");
                rows.iter().map(|row| (row.get(0), row.get(1))).collect()
            }
        };
        let run = rows.first().map(|(run, _)| run.clone()).unwrap_or_default();
        (run, rows.into_iter().map(|(_, segment)| segment).collect())
    }

    /// What somebody does who should not.
    async fn move_pointer(&mut self, to: &str) {
        match self {
            Self::Redis(connection) => connection.set::<_, _, ()>(format!("nm:{JOB}:current"), to).await.expect("set"),
            _ => self.run(format!("UPDATE nightmarket_current SET run = '{to}' WHERE job = '{JOB}'")).await,
        }
    }

    /// And worse: a user of a run is gone.
    async fn damage(&mut self, run: &str, user: &str) {
        match self {
            Self::Redis(connection) => connection.del::<_, ()>(format!("nm:{JOB}:{run}:user:{user}")).await.expect("deleted"),
            _ => self.run(format!("DELETE FROM nightmarket_user_segments WHERE run = '{run}' AND user_id = '{user}'")).await,
        }
    }

    async fn run(&mut self, statement: String) {
        let statement = sqlx::raw_sql(sqlx::AssertSqlSafe(statement));
        match self {
            Self::Redis(_) => panic!("no SQL"),
            Self::Postgres(connection) => drop(statement.execute(connection).await.expect("runs")),
            Self::MariaDb(connection) => drop(statement.execute(connection).await.expect("runs")),
        }
    }
}

const USERS: usize = 3_000;
const READS: usize = 2_000;

/// Loads a second table under a reader that never stops.
async fn flip_under_a_reader(kind: Kind, server: &Server, first: &Release, second: &Release) {
    let done = Arc::new(AtomicBool::new(false));
    let reading = {
        let (done, server, tables) = (done.clone(), server.clone(), [first.clone(), second.clone()]);
        tokio::spawn(async move {
            let mut reader = Reader::connect(kind, &server).await;
            let (mut reads, mut by_run) = (0, [0_usize, 0]);
            while !(done.load(Ordering::Acquire) && reads >= READS) {
                let user = (reads * 997) % USERS;
                let (run, segments) = reader.ask(&tables[0].users[user].user_id).await;
                let table = tables.iter().position(|table| table.run == run).unwrap_or_else(|| panic!("read {reads}: run {run:?}"));
                assert_eq!(segments, tables[table].users[user].segments, "read {reads} of run {run}: nothing missing, nothing mixed");
                by_run[table] += 1;
                reads += 1;
            }
            by_run
        })
    };
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    let loaded = load(server, second).await.expect("loads");
    assert_eq!((loaded.state, loaded.replaced.as_deref()), (State::Loaded, Some(first.run.as_str())));
    done.store(true, Ordering::Release);
    let by_run = reading.await.expect("the reader saw no fault");
    assert!(by_run[0] > 0 && by_run.iter().sum::<usize>() >= READS, "{by_run:?}");
}

fn suite(kind: Kind) {
    let Some(mut running) = servers::start(kind) else { return };
    let server = server(&running);
    let (first, second, third) = (release("a1", USERS), release("b2", USERS), release("c3", USERS));
    block_on(async {
        drop(shelf(&server).await);
        let loaded = load(&server, &first).await.expect("loads");
        assert_eq!((loaded.state, loaded.replaced, loaded.users), (State::Loaded, None, USERS as u64));
        assert_eq!(load(&server, &first).await.expect("again").state, State::AlreadyServes, "a load is idempotent");
        let dry = deliver::deliver(&server, &Settings::default(), &second, true).await.expect("looks");
        assert_eq!((dry.state, dry.replaced.as_deref()), (State::WouldLoad, Some("a1")));
        assert_eq!(shelf(&server).await.current(JOB).await.expect("answers").as_deref(), Some("a1"), "a dry run moves nothing");

        flip_under_a_reader(kind, &server, &first, &second).await;
        let back = load(&server, &first).await.expect("goes back");
        assert_eq!((back.state, back.replaced.as_deref()), (State::Loaded, Some("b2")));

        let user = &first.users[2];
        for question in [of(&user.user_id), Question::Segment("a1:3".into()), Question::Ad(first.ads[40].ad_id.clone())] {
            let from_release = deliver::ask_release(&first, "here".into(), &question);
            let from_store = deliver::ask_store(shelf(&server).await.as_mut(), JOB, "here".into(), &question).await.expect("answers");
            assert_eq!(from_store, from_release, "the store answers as object storage does");
            assert!(!from_store.ads.is_empty() && from_store.to_string().contains("run a1"), "{from_store}");
        }
        let stranger = of(&"f".repeat(32));
        let answer = deliver::ask_store(shelf(&server).await.as_mut(), JOB, "here".into(), &stranger).await.expect("answers");
        assert!(answer.to_string().contains("in no segment"), "{answer}");

        let mut meddler = Reader::connect(kind, &server).await;
        let runtime = tokio::runtime::Handle::current();
        let half_way = || tokio::task::block_in_place(|| runtime.block_on(meddler.move_pointer("b2")));
        let mut shelf = Interrupted { inner: shelf(&server).await, half_way: Box::new(half_way) };
        let error = deliver::load(&mut shelf, &server, &third).await.expect_err("the pointer was moved");
        assert_eq!((error.kind, error.kind.exit_code()), (error::Kind::LostRace, 60), "{error}");
        assert_eq!(shelf.inner.current(JOB).await.expect("answers").as_deref(), Some("b2"), "what they chose still serves");
    });
    let inner = block_on(async { shelf(&server).await });
    drop(inner);
    block_on(async {
        let mut shelf = Interrupted { inner: shelf(&server).await, half_way: Box::new(|| running.kill()) };
        let error = deliver::load(&mut shelf, &server, &third).await.expect_err("the server died");
        assert_eq!((error.kind, error.kind.exit_code()), (error::Kind::Transient, 10), "{error}");
        assert!(!error.to_string().contains('\n') && error.next_action().contains("run again"), "{error}");
    });
    running.start();
    block_on(async {
        drop(shelf(&server).await);
        let (run, segments) = Reader::connect(kind, &server).await.ask(&second.users[5].user_id).await;
        assert_eq!((run.as_str(), &segments), ("b2", &second.users[5].segments), "what served before still serves");
        let loaded = load(&server, &third).await.expect("loads after all");
        assert_eq!(loaded.state, State::Loaded);
        let (run, segments) = Reader::connect(kind, &server).await.ask(&third.users[5].user_id).await;
        assert_eq!((run.as_str(), &segments), ("c3", &third.users[5].segments));

        // Somebody was forgotten, whatever was committed since: the runs in which they are go at once, the run of the load that died, too.
        let fourth = Release { may_stay: vec!["d4".to_owned()], ..release("d4", USERS) };
        assert_eq!(load(&server, &fourth).await.expect("loads").state, State::Loaded);
        let mut shelf = shelf(&server).await;
        for run in ["a1", "b2", "c3"] {
            let left = shelf.segments_of(JOB, run, &third.users[5].user_id).await.expect("answers");
            assert!(left.is_empty() && shelf.ads(JOB, run).await.expect("answers").is_empty(), "{run} is still there");
        }
        let user = &fourth.users[5];
        assert_eq!(shelf.segments_of(JOB, "d4", &user.user_id).await.expect("answers"), user.segments);
        Reader::connect(kind, &server).await.damage("d4", &user.user_id).await;
        assert_eq!(load(&server, &fourth).await.expect("mends").state, State::AlreadyServes);
        let segments = shelf.segments_of(JOB, "d4", &user.user_id).await.expect("answers");
        assert_eq!(segments, user.segments, "a load of the table that serves mends it");
    });
}

#[test]
fn valkey_serves_one_table_whole() {
    suite(Kind::Redis);
}

#[test]
fn postgresql_serves_one_table_whole() {
    suite(Kind::Postgres);
}

#[test]
fn mariadb_serves_one_table_whole() {
    suite(Kind::MariaDb);
}

#[test]
fn postgresql_is_loaded_beside_readers_who_stay_in_a_transaction() {
    let Some(running) = servers::start(Kind::Postgres) else { return };
    let server = server(&running);
    let releases = ["a1", "b2", "c3", "d4"].map(|run| Release { may_stay: Vec::new(), ..release(run, 50) });
    block_on(async {
        drop(shelf(&server).await);
        load(&server, &releases[0]).await.expect("loads");
        let user = &releases[0].users[2].user_id;
        let mut patient = Reader::connect(Kind::Postgres, &server).await;
        patient.run("BEGIN ISOLATION LEVEL REPEATABLE READ".into()).await;
        assert_eq!(patient.ask(user).await.0, "a1");
        for release in &releases[1..3] {
            assert_eq!(load(&server, release).await.expect("loads").state, State::Loaded, "nobody waits for a reader");
            assert_eq!(Reader::connect(Kind::Postgres, &server).await.ask(user).await.0, release.run, "nor does a reader wait");
        }
        assert_eq!(patient.ask(user).await.0, "a1", "the reader's table stays as long as the reader");
        patient.run("COMMIT".into()).await;
        load(&server, &releases[3]).await.expect("loads");
        assert_eq!(shelf(&server).await.segments_of(JOB, "a1", user).await.expect("answers"), [""; 0], "and goes with the next load");
    });
}

#[test]
fn the_night_loads_after_its_commit_and_a_dead_store_costs_no_table() {
    let Some(mut running) = servers::start(Kind::Redis) else { return };
    let mut shop = Shop::served();
    shop.spec.deliver.to = Some(running.url.to_string());
    let facts = shop.night(NEXT).expect("the night runs");
    let delivered = facts.deliver.expect("a load");
    assert_eq!((delivered.state, delivered.generation), (State::Loaded, 2));
    assert_eq!(facts.publish.expect("a finding").policy_version, Some(delivered.policy_version));

    let job = shop.spec_file().display().to_string();
    let command = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
        command.arg(arguments[0]).arg(&job).args(&arguments[1..]).env("NIGHTMARKET_PSEUDONYM_KEY", SECRET);
        let output = command.output().expect("starts");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let from = running.url.to_string();
    let segment = block_on(Release::read(&shop.run(NEXT).output, None)).expect("a table serves").ads[0].segment_id.clone();
    let (code, here, _) = command(&["lookup", "--segment", &segment, "--output", "json"]);
    let (_, there, _) = command(&["lookup", "--segment", &segment, "--output", "json", "--from", &from]);
    let json = |text: &str| -> serde_json::Value { serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}")) };
    assert_eq!(code, Some(0));
    assert_eq!(json(&here)["ads"], json(&there)["ads"], "object storage and the store agree");
    assert!(json(&here)["ads"].as_array().is_some_and(|ads| !ads.is_empty()), "{here}");
    let (_, said, _) = command(&["lookup", "--segment", &segment]);
    let arms: Vec<&str> = said.lines().map(str::trim).filter(|line| ["champion", "explore", "holdout"].contains(line)).collect();
    assert_eq!(arms, ["champion", "explore", "holdout"], "each arm by itself: {said}");
    let (code, said, _) = command(&["publish", "--to", &from, "--run", "1", "--dry-run"]);
    assert!(code == Some(0) && said.contains("would be loaded") && said.contains("generation 1"), "{said}");
    let (code, _, log) = command(&["publish", "--to", &from, "--run", "1"]);
    assert!(code == Some(2) && log.contains("nightmarket rollback"), "users suppressed since may be in it: {log}");

    running.kill();
    let (code, _, log) = command(&["publish", "--to", &from]);
    assert!(code == Some(10) && log.lines().last().is_some_and(|line| line.contains("run again")), "{code:?}: {log}");
    let before = shop.history();
    let error = shop.night(NEXT).err().expect("the load is owed");
    assert_eq!((error.kind.exit_code(), shop.history()), (10, before), "the commit stands: {error}");
    let report = std::fs::read_to_string(shop.root.join(format!("out/reports/dt={NEXT}/report.json"))).expect("a report all the same");
    assert_eq!(json(&report)["deliver"]["state"], "failed");
    running.start();
    assert_eq!(shop.night(NEXT).expect("runs again").deliver.expect("a load").state, State::AlreadyServes);
    assert_eq!(shop.history().last().expect("a commit").run_date, DATE.succ_opt().expect("a date"));

    let (code, said, log) = command(&["publish", "--to", "redis://somebody:a-secret-word@127.0.0.1:1/"]);
    assert!(code == Some(2) && !format!("{said}{log}").contains("a-secret-word"), "a password in a URL is refused and not repeated: {log}");
}

#[test]
fn other_engines_are_told_where_the_serving_tables_are() {
    let shop = Shop::served();
    let store = shop.run(DATE).output;
    let script = |dialect| block_on(deliver::ddl(&store, dialect)).expect("a script");
    let (duckdb, trino, spark) = (script(Dialect::Duckdb), script(Dialect::Trino), script(Dialect::Spark));
    let commit = shop.history().pop().expect("a table serves");
    let folder = store.locate(&commit.tables).to_file_path().expect("a local folder");
    for name in ["segments", "user_segments", "segment_ads", "shadow_ads"] {
        let file = folder.join(format!("{name}.parquet"));
        assert!(file.exists(), "{}", file.display());
        assert!(spark.contains(&format!("VIEW {name} USING parquet OPTIONS (path 'file://{}')", file.display())), "{spark}");
        assert!(trino.contains(&format!("VIEW {name} AS SELECT ")) && trino.contains(&format!("LIKE '%/{name}.parquet'")), "{trino}");
        assert!(duckdb.contains(&format!("getvariable('served') || '/{name}.parquet'")), "{duckdb}");
    }
    assert!(trino.contains(&format!("external_location = 'file://{}'", folder.display())), "{trino}");
    assert!(trino.contains("propensity double") && trino.contains("run_date date") && trino.contains("valid_to timestamp(6)"), "{trino}");
    let commits = folder.parent().and_then(|day| day.parent()?.parent()).expect("a root").join("_commits");
    assert!(duckdb.contains(&format!("read_json('{}/*.json')", commits.display())) && commits.is_dir(), "{duckdb}");
    // The query to begin with is the same for all, and this engine, too, reads it.
    let query = |script: &str| script.split_once("\n\n").expect("a query").1.to_owned();
    assert!(query(&duckdb) == query(&trino) && query(&duckdb) == query(&spark));
    let rows = block_on(async {
        let context = engine::session(&engine::Settings::default()).expect("an engine");
        for name in ["segments", "user_segments", "segment_ads"] {
            let rows = table::open(&context, &folder.join(format!("{name}.parquet")).display().to_string()).await.expect("a table");
            context.register_table(name, rows.into_view()).expect("registers");
        }
        engine::collect(context.sql(&query(&duckdb)).await.expect("plans")).await.expect("answers")
    });
    assert!(rows.num_rows() > 0 && rows.num_rows() <= 50);
}

#[test]
fn a_store_is_loaded_over_tls_and_only_where_its_certificate_is_trusted() {
    let shop = Shop::served();
    let job = shop.spec_file().display().to_string();
    for kind in [Kind::Redis, Kind::Postgres, Kind::MariaDb] {
        let Some(running) = servers::start_encrypted(kind) else { continue };
        let to = running.url.to_string();
        let user = server(&running).user.unwrap_or_default();
        let command = |authorities: &str, arguments: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
            command
                .args(arguments)
                .env("NIGHTMARKET_PSEUDONYM_KEY", SECRET)
                .env("NIGHTMARKET_STORE_USER", &user)
                .env("SSL_CERT_FILE", authorities);
            let output = command.output().expect("starts");
            (
                output.status.code(),
                String::from_utf8_lossy(&output.stdout).into_owned(),
                String::from_utf8_lossy(&output.stderr).into_owned(),
            )
        };
        // The server's own certificate is no authority: nothing is loaded through a connection that nobody vouches for.
        let (code, said, log) = command("testdata/tls/server.pem", &["publish", &job, "--to", &to]);
        assert!(code == Some(10) && log.to_lowercase().contains("certificate"), "{kind:?} {code:?}: {said}{log}");
        let (code, said, log) = command("testdata/tls/ca.pem", &["publish", &job, "--to", &to]);
        assert!(code == Some(0) && said.contains("serves now"), "{kind:?} {code:?}: {said}{log}");
        let segment = block_on(Release::read(&shop.run(DATE).output, None)).expect("a table serves").ads[0].segment_id.clone();
        let (code, said, log) = command("testdata/tls/ca.pem", &["lookup", &job, "--segment", &segment, "--from", &to]);
        assert!(code == Some(0) && said.contains("champion"), "{kind:?} {code:?}: {said}{log}");
    }
}

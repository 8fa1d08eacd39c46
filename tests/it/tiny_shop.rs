//! testdata/shop: a tiny shop whose planted facts testdata/README.md states, and what the night makes of each.

use crate::shop::{block_on, key};
use arrow::array::{Array, ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use chrono::NaiveDate;
use datafusion::physical_plan::displayable;
use nightmarket::features;
use nightmarket::generate;
use nightmarket::ingest::{self, Staged};
use nightmarket::pipeline::{self, Stage};
use nightmarket::platform::catalog::{Catalog, IdDomain};
use nightmarket::platform::engine;
use nightmarket::platform::run::Run;
use nightmarket::platform::storage::{Store, parquet_table};
use nightmarket::spec::Spec;
use nightmarket::types::column;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;

const SHOP: &str = "testdata/shop";
pub const DATE: NaiveDate = NaiveDate::from_ymd_opt(2026, 11, 22).expect("a date");
const DAYS: u64 = 24;
const OPTED_OUT: &str = "u_0000007";
const ERASED: &str = "u_0000005";
const LATE_QUERY: &str = "迟到的搜索";
const BOT_EVENTS: usize = 1_200;

pub fn spec(out: &Path) -> Spec {
    let mut spec = Spec::read(Path::new("jobs/shop.toml")).expect("the shop's job reads");
    spec.store.raw = SHOP.to_owned();
    spec.store.output = out.display().to_string();
    spec.ingest.history_days = DAYS;
    spec.engine.buckets = 1;
    spec.model.threads = 1;
    spec.model.epochs = 1;
    spec.interest.threads = 1;
    spec.gate.replicates = 20;
    spec
}

fn run(spec: &Spec) -> Run {
    let (raw, out) = (Store::open(&spec.store.raw).expect("a store"), Store::open(&spec.store.output).expect("a store"));
    Run::new(spec.job().expect("a job"), DATE, raw, out, Catalog::load(Path::new(&spec.sql)).expect("SQL loads"), spec.engine.clone())
}

/// The rows of a query over the canonical events as known at the night's cut-off.
fn asked(run: &Run, staged: &Staged, sql: &str) -> i64 {
    let rows = block_on(async {
        let context = staged.as_of(run, DATE, None, ["events", "users"])?;
        engine::collect(engine::plan_sql(&context, sql, run.as_of()).await?).await
    });
    column::<Int64Array>(&rows.expect("answers"), "n").expect("a count").value(0)
}

#[test]
fn planted_facts_are_seen_as_they_should_be() {
    let out = TempDir::new().expect("a temporary folder");
    let spec = spec(out.path());
    let run = run(&spec);
    let staged = block_on(ingest::run(&run, &spec.ingest, &key())).expect("the tiny shop is accepted");
    let of = |user: &str| {
        let pseudonym = key().pseudonym(IdDomain::User, user);
        asked(&run, &staged, &format!("SELECT COUNT(*) AS n FROM events WHERE user_id = '{pseudonym}'"))
    };
    assert_eq!((of(OPTED_OUT), of(ERASED)), (0, 0), "who opted out or is to be erased did nothing that we know of");
    assert_eq!((of("A"), of("B"), of("C")), (8, 2, 1), "the article's three users");
    let raw = staged.facts.raw.iter().find(|table| table.name == "events").expect("raw events");
    assert_eq!(raw.duplicates, 9, "nine events of the last day were delivered twice");
    let count = |what: &str| asked(&run, &staged, &format!("SELECT COUNT(*) AS n FROM events WHERE {what}"));
    assert_eq!(count(&format!("query = '{LATE_QUERY}'")), 0, "what arrived after the cut-off is not known yet");
    assert_eq!(count("price <= 0"), 0, "a price below zero is no price");
    let most =
        "SELECT MAX(n) AS n FROM (SELECT COUNT(*) AS n FROM events WHERE occurred_at >= $as_of - INTERVAL '1 day' GROUP BY device_id)";
    assert!(asked(&run, &staged, most) < 1_000, "the machine under a browser's name is gone");
}

/// The physical layout is what makes features fast: a user's rows lie together in the order of their time, and the plans must see it.
#[test]
fn a_bucket_of_users_is_computed_without_a_shuffle_and_without_sorting_events() {
    let out = TempDir::new().expect("a temporary folder");
    let mut spec = spec(out.path());
    (spec.engine.threads, spec.engine.buckets) = (2, 4);
    let run = run(&spec);
    let plans = block_on(async {
        let staged = ingest::run(&run, &spec.ingest, &key()).await?;
        let snapshots = features::run(&run, &staged, &BTreeSet::from([DATE])).await?;
        let mut plans = Vec::new();
        for query in run.catalog.features.iter().filter(|query| query.grain.first().is_some_and(|column| column == "user_id")) {
            let plan = features::planned(&run, &staged, &snapshots, query, DATE, Some(1)).await?.create_physical_plan().await?;
            plans.push((query, displayable(plan.as_ref()).indent(false).to_string()));
        }
        Ok::<_, nightmarket::error::Error>(plans)
    });
    let plans = plans.expect("the features are planned");
    assert!(plans.len() >= 6, "{plans:?}");
    for (query, plan) in plans {
        assert!(!plan.contains("RepartitionExec"), "{} shuffles rows:\n{plan}", query.name);
        // A small table beside the log is joined from either side, as its size says: the order of the log may not last.
        let reads_features = run.catalog.features.iter().any(|other| query.reads.contains(&other.name));
        if query.grain == ["user_id"] && !reads_features {
            assert!(!plan.contains(" SortExec") && !plan.starts_with("SortExec"), "{} sorts rows:\n{plan}", query.name);
            let aggregates = plan.lines().filter(|line| line.contains("AggregateExec"));
            let streams = |line: &str| line.contains("mode=Single") && line.contains("ordering_mode=Sorted");
            assert!(aggregates.clone().all(streams), "{} does not stream users:\n{plan}", query.name);
            let sorts_lists =
                plan.match_indices("array_agg(").any(|(at, _)| plan[at..].split(')').next().is_some_and(|of| of.contains("ORDER BY")));
            assert!(!sorts_lists, "{} sorts lists of rows that lie sorted:\n{plan}", query.name);
        }
    }
}

#[test]
fn the_articles_three_users_get_their_labels_in_the_tiny_shop_too() {
    let out = TempDir::new().expect("a temporary folder");
    let spec = spec(out.path());
    let facts = block_on(pipeline::run(&run(&spec), &spec, &key(), Stage::Segments)).expect("runs up to the segments");
    let segments = facts.segments.expect("segments").to_string();
    assert!(segments.contains("rule:cart_left_behind"), "the shop's rule is released or withheld, and said to be: {segments}");
    let folder = out.path().join(format!("segments/dt={DATE}"));
    let step = std::fs::read_dir(&folder).expect("segments").next().expect("one step").expect("an entry").path();
    let rows = read(&step.join("labels_before_floor.parquet"));
    let users = column::<StringArray>(&rows, "user_id").expect("users");
    let (labels, ranks) = (column::<StringArray>(&rows, "label").expect("labels"), column::<Int64Array>(&rows, "rank").expect("ranks"));
    let first: BTreeMap<&str, &str> =
        (0..rows.num_rows()).filter(|row| ranks.value(*row) == 1).map(|row| (users.value(row), labels.value(row))).collect();
    let label = |user: &str| first[key().pseudonym(IdDomain::User, user).as_str()];
    assert_eq!(["A", "B", "C"].map(label), ["鞋子", "鞋子配件", "手机配件"]);
}

// ------------------------------------------------------------------------------------------------------------ how it was made

/// `cargo test --release --test it make_the_tiny_shop -- --ignored`
#[test]
#[ignore = "writes testdata/shop anew"]
fn make_the_tiny_shop() {
    let made = TempDir::new().expect("a temporary folder");
    let raw = Store::open(&made.path().display().to_string()).expect("a store");
    block_on(async {
        generate::generate(&raw, &generate::Plan { users: 60, days: DAYS, seed: 11, until: DATE }).await.expect("generates");
        generate::plant_article_users(&raw, false).await.expect("plants");
    });
    std::fs::remove_dir_all(made.path().join("truth")).expect("the truth is nobody's input");
    std::fs::remove_file(made.path().join("_world.json")).expect("it cannot be continued without its truth");
    // The records of the first and of the last day say all: a night reads the latest.
    let first = DATE - chrono::Days::new(DAYS - 1);
    for table in ["users", "consents", "identities", "items", "categories", "campaigns", "ads", "suppressions"] {
        for day in first.iter_days().take_while(|day| *day < DATE).skip(1) {
            std::fs::remove_dir_all(made.path().join(format!("{table}/dt={day}"))).expect("a day of records");
        }
    }
    for day in first.iter_days().take_while(|day| *day <= DATE) {
        rewrite(&part(made.path(), "events", day), |rows| without_bots(&rows, if day == DATE { BOT_EVENTS } else { 0 }));
    }
    rewrite(&part(made.path(), "events", DATE), plant_events);
    rewrite(&part(made.path(), "consents", DATE), |rows| {
        let uids = column::<StringArray>(&rows, "uid").expect("uid").clone();
        let answers = column::<StringArray>(&rows, "profile_ok").expect("profile_ok").clone();
        let answers = uids.iter().zip(&answers).map(|(uid, answer)| if uid == Some(OPTED_OUT) { Some("N") } else { answer });
        with(&rows, "profile_ok", Arc::new(answers.collect::<StringArray>()))
    });
    rewrite(&part(made.path(), "suppressions", DATE), |rows| {
        let since = TimestampMicrosecondArray::from(vec![midnight_utc()]).with_timezone("UTC");
        let columns: Vec<ArrayRef> =
            vec![Arc::new(StringArray::from(vec![ERASED])), Arc::new(StringArray::from(vec!["erasure"])), Arc::new(since)];
        concat_batches(&rows.schema(), [&rows, &RecordBatch::try_new(rows.schema(), columns).expect("a row")]).expect("one table")
    });
    let _ = std::fs::remove_dir_all(SHOP);
    copy_files(made.path(), Path::new(SHOP));
}

/// Of devices that do more than 500 things a day, at most `keep` rows of the busiest.
fn without_bots(rows: &RecordBatch, keep: usize) -> RecordBatch {
    let devices = column::<StringArray>(rows, "device_id").expect("device_id");
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    devices.iter().flatten().for_each(|device| *counts.entry(device).or_default() += 1);
    let busiest = counts.iter().max_by_key(|(_, count)| **count).map(|(device, _)| *device).expect("somebody did something");
    let mut left = keep;
    let kept = (0..rows.num_rows()).filter(|&row| {
        let device = devices.value(row);
        let bot = counts[device] > 500;
        let stays = !bot || (device == busiest && left > 0);
        left -= usize::from(bot && stays);
        stays
    });
    take_record_batch(rows, &kept.map(|row| row as u32).collect::<UInt32Array>()).expect("rows")
}

/// The last event twice, a price below zero, and a search that arrived five hours after midnight.
fn plant_events(rows: RecordBatch) -> RecordBatch {
    let actions = column::<StringArray>(&rows, "action").expect("action");
    let find = |wanted: &str| (0..rows.num_rows()).rfind(|row| actions.is_valid(*row) && actions.value(*row) == wanted).expect(wanted);
    let (viewed, searched) = (find("view"), find("search"));
    let row = |row: usize| take_record_batch(&rows, &UInt32Array::from(vec![row as u32])).expect("a row");
    let text = |value: &str| -> ArrayRef { Arc::new(StringArray::from(vec![value])) };
    let cheap = with(&row(viewed), "event_id", text("e_planted_price"));
    let cheap = with(&cheap, "price", Arc::new(Float64Array::from(vec![-1.0])));
    let late = with(&row(searched), "event_id", text("e_planted_late"));
    let late = with(&late, "keyword", text(LATE_QUERY));
    let arrived = TimestampMicrosecondArray::from(vec![midnight_utc() + 5 * 3_600_000_000]).with_timezone("UTC");
    let late = with(&late, "recv_ts", Arc::new(arrived));
    concat_batches(&rows.schema(), [&rows, &row(searched), &cheap, &late]).expect("one table")
}

/// The end of the last local day (Asia/Shanghai), microseconds.
fn midnight_utc() -> i64 {
    DATE.and_hms_opt(16, 0, 0).expect("a time").and_utc().timestamp_micros()
}

fn with(rows: &RecordBatch, name: &str, values: ArrayRef) -> RecordBatch {
    let mut columns = rows.columns().to_vec();
    columns[rows.schema().index_of(name).expect(name)] = values;
    RecordBatch::try_new(rows.schema(), columns).expect("the same columns")
}

fn part(root: &Path, table: &str, day: NaiveDate) -> PathBuf {
    root.join(format!("{table}/dt={day}/part-0.parquet"))
}

fn read(path: &Path) -> RecordBatch {
    parquet_table(std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).into()).expect("Parquet")
}

fn rewrite(path: &Path, change: impl FnOnce(RecordBatch) -> RecordBatch) {
    let rows = change(read(path));
    let (folder, name) = (path.parent().expect("a folder"), path.file_name().expect("a name").to_string_lossy().into_owned());
    let store = Store::open(&folder.display().to_string()).expect("a store");
    block_on(store.write_parquet(&name, rows.schema(), &[rows])).expect("written");
}

/// Copies a folder.
fn copy_files(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_files(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("copied");
        }
    }
}

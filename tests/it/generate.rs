//! The generated shop: the same bytes from the same plan, a world as hard as it claims to be, logs that ingest accepts, and days
//! that obey the table which serves them.

use crate::shop::{block_on, key};
use arrow::array::{Array, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use chrono::{Days, NaiveDate};
use nightmarket::error::Kind;
use nightmarket::generate::{Continue, Plan, continue_day, generate, generate_on, plant_article_users};
use nightmarket::ingest;
use nightmarket::platform::catalog::{Catalog, IdDomain};
use nightmarket::platform::engine;
use nightmarket::platform::job::Job;
use nightmarket::platform::run::Run;
use nightmarket::platform::storage::{Store, parquet_bytes, parquet_table};
use nightmarket::statistics::metrics::auc;
use nightmarket::targeting::arms::{Arm, Shares, arm_of};
use nightmarket::types::column;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use tempfile::TempDir;

const UNTIL: NaiveDate = NaiveDate::from_ymd_opt(2026, 11, 22).expect("a date");
const DAY: i64 = 86_400_000_000;

fn plan(users: u64, days: u64, seed: u64) -> Plan {
    Plan { users, days, seed, until: UNTIL }
}

fn store(folder: &Path) -> Store {
    Store::open(&folder.display().to_string()).expect("a store")
}

fn shop(plan: &Plan) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    block_on(generate(&store(folder.path()), plan)).expect("generates");
    folder
}

/// Every file below a folder: path and bytes.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let store = store(folder);
    block_on(async {
        let mut files = BTreeMap::new();
        for object in store.list("").await.expect("lists") {
            let bytes = store.get(&object.path).await.expect("reads");
            files.insert(object.path, bytes.to_vec());
        }
        files
    })
}

/// The rows of a raw table, day by day; with `of`, of that day alone.
fn table(folder: &Path, name: &str, of: Option<NaiveDate>) -> RecordBatch {
    let prefix = of.map_or(name.to_owned(), |day| format!("{name}/dt={day}"));
    let mut paths: Vec<_> = walk(&folder.join(prefix));
    paths.sort();
    let days: Vec<RecordBatch> = paths.iter().map(|path| parquet_table(std::fs::read(path).unwrap().into()).unwrap()).collect();
    arrow::compute::concat_batches(&days[0].schema(), &days).unwrap()
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

fn text<'a>(table: &'a RecordBatch, name: &str) -> &'a StringArray {
    column(table, name).unwrap()
}

fn number<'a>(table: &'a RecordBatch, name: &str) -> &'a Float64Array {
    column(table, name).unwrap()
}

fn times<'a>(table: &'a RecordBatch, name: &str) -> &'a TimestampMicrosecondArray {
    column(table, name).unwrap()
}

#[test]
fn the_same_plan_gives_the_same_bytes_whatever_the_threads() {
    let [one, two, other] = [(5, 1), (5, 2), (6, 2)].map(|(seed, threads)| {
        let folder = TempDir::new().expect("a temporary folder");
        block_on(generate_on(&store(folder.path()), &plan(80, 9, seed), threads)).expect("generates");
        folder
    });
    assert_eq!(files(one.path()), files(two.path()));
    let (one_files, other_files) = (files(one.path()), files(other.path()));
    assert_eq!(one_files.keys().collect::<Vec<_>>(), other_files.keys().collect::<Vec<_>>());
    assert!(one_files.iter().filter(|(path, _)| path.starts_with("events/")).all(|(path, bytes)| other_files[path] != *bytes));
    let error = block_on(generate(&store(one.path()), &plan(80, 9, 6))).expect_err("another shop is not overwritten");
    assert_eq!(error.kind, Kind::Usage, "{error}");

    // A shop that was never finished is no place for another either; the same goes on.
    let begun = TempDir::new().expect("a temporary folder");
    let plan_of_other = serde_json::to_vec(&plan(80, 9, 6)).expect("a plan is JSON");
    block_on(store(begun.path()).put("_begun.json", plan_of_other.into())).expect("puts");
    let error = block_on(generate(&store(begun.path()), &plan(80, 9, 5))).expect_err("two worlds are no shop");
    assert!(error.kind == Kind::Usage && error.to_string().contains("a part of another shop"), "{error}");
    block_on(generate(&store(begun.path()), &plan(80, 9, 6))).expect("goes on");
    assert_eq!(files(begun.path()), files(other.path()));
}

/// 3,000 users over 14 days.
fn measured() -> &'static Path {
    static SHOP: OnceLock<TempDir> = OnceLock::new();
    SHOP.get_or_init(|| shop(&plan(3000, 14, 1))).path()
}

/// One ad impression with its truth.
struct Shown {
    ts: i64,
    device: String,
    ad: String,
    arm: String,
    clicked: bool,
    p_click: f64,
    p_conversion: f64,
    position: f64,
}

/// Every impression once.
fn shown(folder: &Path) -> Vec<Shown> {
    let truth = table(folder, "truth/impressions", None);
    let probabilities = number(&truth, "p_click").iter().zip(number(&truth, "p_conversion"));
    let probabilities = probabilities.map(|(click, conversion)| (click.unwrap(), conversion.unwrap()));
    let truth: HashMap<&str, (f64, f64)> = text(&truth, "impression_id").iter().flatten().zip(probabilities).collect();
    let clicks = table(folder, "ad_clicks", None);
    let clicked: HashSet<&str> = text(&clicks, "impression_id").iter().flatten().collect();
    let rows = table(folder, "ad_impressions", None);
    let (ids, devices, ads) = (text(&rows, "impression_id"), text(&rows, "device_id"), text(&rows, "ad_id"));
    let (at, arms, slots) = (times(&rows, "ts"), text(&rows, "arm"), column::<Int64Array>(&rows, "slot").unwrap());
    let mut seen = HashSet::new();
    let first = (0..rows.num_rows()).filter(|&row| seen.insert(ids.value(row)));
    let one = |row: usize| Shown {
        ts: at.value(row),
        device: devices.value(row).to_owned(),
        ad: ads.value(row).to_owned(),
        arm: arms.value(row).to_owned(),
        clicked: clicked.contains(ids.value(row)),
        p_click: truth[ids.value(row)].0,
        p_conversion: truth[ids.value(row)].1,
        position: slots.value(row) as f64,
    };
    first.map(one).collect()
}

/// Device -> user, as the shop's last record says.
fn owners(folder: &Path, day: NaiveDate) -> HashMap<String, String> {
    let rows = table(folder, "identities", Some(day));
    let pairs = text(&rows, "device_id").iter().zip(text(&rows, "uid"));
    pairs.map(|(device, user)| (device.unwrap().to_owned(), user.unwrap().to_owned())).collect()
}

#[test]
#[expect(clippy::type_complexity, reason = "a list of named closures reads better than a type for it")]
fn the_world_is_as_hard_as_it_claims() {
    let folder = measured();
    let all = shown(folder);
    let n = all.len() as f64;
    let clicks = all.iter().filter(|row| row.clicked).count();
    let ctr = clicks as f64 / n;
    let true_ctr = all.iter().map(|row| row.p_click).sum::<f64>() / n;
    let cvr = all.iter().map(|row| row.p_click * row.p_conversion).sum::<f64>() / (n * true_ctr);
    assert!((0.01..0.03).contains(&ctr) && (ctr - true_ctr).abs() < 5.0 * (ctr / n).sqrt(), "CTR {ctr}, true {true_ctr}");
    assert!((0.02..0.05).contains(&cvr), "CVR {cvr}");
    assert!(clicks >= 450 * 14, "{clicks} clicks in 14 days");

    // The last 4 days are judged, by what the 10 days before show.
    let cut = all.iter().map(|row| row.ts).max().unwrap() - 4 * DAY;
    let owners = owners(folder, UNTIL);
    let user = |device: &str| owners.get(device).cloned().unwrap_or_else(|| device.to_owned());
    let items = table(folder, "items", Some(UNTIL));
    let category: HashMap<&str, &str> = text(&items, "sku").iter().flatten().zip(text(&items, "cat").iter().flatten()).collect();
    let ads = table(folder, "ads", Some(UNTIL));
    let ad_category: HashMap<&str, &str> = text(&ads, "ad_id").iter().flatten().zip(text(&ads, "cat").iter().flatten()).collect();
    let mut touched: HashMap<(String, &str), f64> = HashMap::new();
    let mut events: HashMap<String, f64> = HashMap::new();
    let log = table(folder, "events", None);
    for row in (0..log.num_rows()).filter(|&row| times(&log, "ts").value(row) < cut && text(&log, "sku").is_valid(row)) {
        let who = user(text(&log, "device_id").value(row));
        if let Some(category) = category.get(text(&log, "sku").value(row)) {
            *touched.entry((who.clone(), category)).or_default() += 1.0;
            *events.entry(who).or_default() += 1.0;
        }
    }
    let mut of_user: HashMap<String, (f64, f64)> = HashMap::new();
    let mut of_ad: HashMap<&str, (f64, f64)> = HashMap::new();
    for row in all.iter().filter(|row| row.ts < cut) {
        for sum in [of_user.entry(user(&row.device)).or_default(), of_ad.entry(&row.ad).or_default()] {
            *sum = (sum.0 + f64::from(u8::from(row.clicked)), sum.1 + 1.0);
        }
    }
    let judged: Vec<&Shown> = all.iter().filter(|row| row.ts >= cut).collect();
    let labels: Vec<bool> = judged.iter().map(|row| row.clicked).collect();
    let area = |score: &dyn Fn(&Shown) -> f64| auc(&labels, &judged.iter().map(|row| score(row)).collect::<Vec<_>>()).unwrap();
    let truth = area(&|row| row.p_click);
    assert!((0.70..0.80).contains(&truth), "AUC of the true p(click) {truth}");
    let rate = |sum: Option<&(f64, f64)>, weight: f64| sum.map_or(ctr, |(clicks, n)| (clicks + weight * ctr) / (n + weight));
    let count = |row: &Shown| touched.get(&(user(&row.device), ad_category[row.ad.as_str()])).copied().unwrap_or(0.0);
    let share = |row: &Shown| count(row) / (events.get(&user(&row.device)).copied().unwrap_or(0.0) + 3.0);
    let features: [(&str, &dyn Fn(&Shown) -> f64); 7] = [
        ("the user's CTR so far", &|row| rate(of_user.get(&user(&row.device)), 30.0)),
        ("the ad's CTR so far", &|row| rate(of_ad.get(row.ad.as_str()), 200.0)),
        ("whether the user touched the ad's category", &|row| f64::from(u8::from(count(row) > 0.0))),
        ("how often the user touched the ad's category", &count),
        ("the category's share of what the user touched", &share),
        ("how active the user is", &|row| events.get(&user(&row.device)).copied().unwrap_or(0.0)),
        ("the position", &|row| -row.position),
    ];
    let areas = features.map(|(name, score)| (name, area(score)));
    eprintln!("CTR {ctr:.4} CVR {cvr:.4} AUC of truth {truth:.3}, of single features {areas:.3?}");
    for (name, area) in areas {
        assert!(area < truth - 0.03, "{name} alone has an AUC of {area}, the truth {truth}");
    }
    // Yet there is something to learn.
    assert!(areas.iter().filter(|(_, area)| *area > 0.55).count() >= 4, "{areas:?}");
}

#[test]
fn targeting_has_a_true_lift_that_the_logs_show() {
    let folder = measured();
    let lift: serde_json::Value = serde_json::from_slice(&std::fs::read(folder.join("truth/lift.json")).unwrap()).unwrap();
    let mut sums: BTreeMap<String, (f64, f64, f64)> = BTreeMap::new();
    for row in shown(folder) {
        let sum = sums.entry(row.arm).or_default();
        *sum = (sum.0 + 1.0, sum.1 + row.p_click, sum.2 + f64::from(u8::from(row.clicked)));
    }
    for (arm, (n, p_click, clicks)) in &sums {
        let truth = lift["arms"][arm]["shown_ctr"].as_f64().unwrap();
        assert!((truth - p_click / n).abs() < 1e-9, "{arm}: {truth}");
        assert!((clicks / n - truth).abs() < 5.0 * (truth / n).sqrt(), "{arm}: {} of {n}, true {truth}", clicks / n);
    }
    let (shown, policy) = (lift["shown_lift"].as_f64().unwrap(), lift["policy_lift"].as_f64().unwrap());
    assert!((0.05..1.0).contains(&shown) && (0.05..1.0).contains(&policy), "{lift}");
    let users = sums.values().map(|(n, _, _)| n).sum::<f64>();
    for (arm, share) in [("champion", 0.8), ("explore", 0.1), ("holdout", 0.1)] {
        assert!((sums[arm].0 / users - share).abs() < 0.03, "{arm} has {} of {users}", sums[arm].0);
    }
}

#[test]
fn logs_are_messy_and_people_change_their_minds() {
    let folder = measured();
    let log = table(folder, "events", None);
    let share = |count: usize| count as f64 / log.num_rows() as f64;
    let distinct: HashSet<_> = text(&log, "event_id").iter().collect();
    assert!((0.003..0.008).contains(&(1.0 - share(distinct.len()))), "{} of {} events are new", distinct.len(), log.num_rows());
    let late = |least: i64| {
        let delays = times(&log, "recv_ts").iter().zip(times(&log, "ts")).map(|(arrived, at)| arrived.unwrap() - at.unwrap());
        share(delays.filter(|delay| *delay >= least).count())
    };
    assert!(
        late(0) == 1.0 && (0.01..0.06).contains(&late(DAY / 24)) && (0.001..0.01).contains(&late(DAY)),
        "{} {}",
        late(DAY / 24),
        late(DAY)
    );
    assert!(number(&log, "price").iter().flatten().any(f64::is_nan) && number(&log, "price").iter().flatten().any(|price| price == -1.0));
    for (name, odd) in [("action", "hover"), ("channel", "小程序"), ("sku", "sku_gone")] {
        assert!(text(&log, name).iter().flatten().any(|value| value == odd), "{odd}");
    }
    let keywords: HashSet<&str> = text(&log, "keyword").iter().flatten().collect();
    assert!(["鞋子", "  鞋子", "SHOES", "running shoes"].into_iter().all(|word| keywords.contains(word)));
    assert!((0.3..0.7).contains(&share(log.num_rows() - text(&log, "uid").null_count())), "signed in now and then");
    let mut by_device: HashMap<&str, usize> = HashMap::new();
    text(&log, "device_id").iter().flatten().for_each(|device| *by_device.entry(device).or_default() += 1);
    assert_eq!(by_device.values().filter(|count| **count > 14 * 1000).count(), 2, "bots");

    let (first, last) = (UNTIL - Days::new(13), UNTIL);
    let people = |day| table(folder, "users", Some(day)).num_rows();
    let refusals = |day| text(&table(folder, "consents", Some(day)), "profile_ok").iter().flatten().filter(|answer| *answer == "N").count();
    let suppressed = |day| table(folder, "suppressions", Some(day)).num_rows();
    assert!(people(first) < people(last) && people(last) < 3000, "{} to {}", people(first), people(last));
    assert!(0 < refusals(first) && refusals(first) < refusals(last));
    assert!(0 < suppressed(first) && suppressed(first) < suppressed(last));
    let ads = table(folder, "ads", Some(last));
    let ended = times(&ads, "last_day").iter().flatten().filter(|at| *at < times(&log, "ts").value(0)).count();
    let new = times(&ads, "first_day").iter().flatten().filter(|at| *at > times(&log, "ts").value(log.num_rows() - 1) - 3 * DAY).count();
    assert!((60..=84).contains(&ads.num_rows()) && new > 0 && ended < ads.num_rows());
    let hours = table(folder, "bid_hours", None);
    let left = number(&hours, "budget_left");
    assert!(left.iter().flatten().all(|left| left >= 0.0), "no campaign spends more than its day's budget");
    assert!(left.iter().flatten().any(|left| left < 2.0), "some are exhausted");
}

fn night(raw: &Path, out: &Path, date: NaiveDate) -> Run {
    let job = Job { name: "shop".into(), timezone: chrono_tz::Asia::Shanghai, sql: "sql/shop".into(), arrival_lag_hours: 3, seed: 1 };
    let catalog = Catalog::load(Path::new("sql/shop")).expect("the shop's SQL loads");
    Run::new(job, date, store(raw), store(out), catalog, engine::Settings { buckets: 2, ..engine::Settings::default() })
}

#[test]
fn ingest_accepts_the_shop_and_cleans_it() {
    let (raw, out) = (shop(&plan(600, 8, 2)), TempDir::new().unwrap());
    let run = night(raw.path(), out.path(), UNTIL);
    let settings = ingest::Settings { history_days: 8, ..ingest::Settings::default() };
    let staged = block_on(ingest::run(&run, &settings, &key())).expect("the contract holds");
    assert!(staged.facts.skipped.is_empty(), "{:?}", staged.facts.skipped);
    let rows = |sql: &'static str| {
        let context = staged.as_of(&run, UNTIL, None, ["events", "impressions", "identities", "users", "ads"]).expect("a session");
        block_on(async { engine::collect(engine::plan_sql(&context, sql, run.as_of()).await?).await }).expect("answers")
    };
    let count = |sql: &'static str| column::<Int64Array>(&rows(sql), "n").unwrap().value(0);
    let people = staged.people.as_ref().expect("consents were asked for");
    assert!((400..600).contains(&people.target.len()), "{} users may be targeted", people.target.len());
    for fact in &staged.facts.tables {
        assert!(fact.rows > 0 || fact.name == "suppressions", "{fact:?}");
    }
    assert!(staged.facts.raw.iter().any(|raw| raw.name == "events" && raw.duplicates > 0), "{:?}", staged.facts.raw);
    let events = staged.facts.tables.iter().find(|table| table.name == "events").unwrap();
    assert!(events.dropped_no_consent > 0 && events.dropped_suppressed > 0, "{events:?}");
    assert!(count("SELECT COUNT(*) - COUNT(DISTINCT event_id) AS n FROM events") == 0);
    assert!(count("SELECT COUNT(*) - COUNT(DISTINCT impression_id) AS n FROM impressions") == 0);
    assert!(
        count("SELECT MAX(per_day) AS n FROM (SELECT COUNT(*) AS per_day FROM events GROUP BY device_id, DATE_TRUNC('day', occurred_at))")
            < 1000
    );
    assert!(
        count("SELECT COUNT(*) AS n FROM events WHERE event_type IN ('view', 'click') AND query IS NOT NULL AND category_id IS NOT NULL")
            > 100
    );
    assert!(
        count("SELECT COUNT(*) AS n FROM (SELECT user_id FROM events GROUP BY user_id HAVING COUNT(DISTINCT platform) > 1)") > 10,
        "cross-device"
    );
    assert!(
        count("SELECT COUNT(*) AS n FROM impressions WHERE converted AND (NOT clicked OR converted_at < clicked_at OR revenue IS NULL)")
            == 0
    );
    assert!(count("SELECT COUNT(*) AS n FROM impressions WHERE clicked") > 100);
    assert_eq!(count("SELECT COUNT(DISTINCT platform) AS n FROM impressions"), 3);
    assert_eq!(count("SELECT COUNT(*) AS n FROM impressions WHERE propensity IS NULL OR arm NOT IN ('champion', 'explore', 'holdout')"), 0);
}

// ------------------------------------------------------------------------------------------------------------- one more day

const SHARES: Shares = Shares { champion: 0.5, explore: 0.3, holdout: 0.2 };

fn user_ids(users: usize) -> impl Iterator<Item = (String, String)> {
    let key = key();
    (0..users).map(move |user| format!("u_{user:07}")).map(move |uid| (key.pseudonym(IdDomain::User, &uid), uid))
}

/// A table that serves every second user by segment `s`, the others by `everyone`, and writes it into a folder.
fn publish(folder: &Path, users: usize, version: &str) {
    let known: Vec<String> = user_ids(users).step_by(2).map(|(pseudonym, _)| pseudonym).collect();
    let n = known.len();
    let strings = |of: Vec<&str>| Arc::new(StringArray::from(of)) as Arc<dyn Array>;
    let user_segments = RecordBatch::try_from_iter([
        ("user_id", Arc::new(StringArray::from(known)) as Arc<dyn Array>),
        ("segment_id", strings(vec!["s"; n])),
        ("score", Arc::new(Float64Array::from(vec![0.5; n])) as _),
        ("rank", Arc::new(Int64Array::from(vec![1; n])) as _),
    ])
    .unwrap();
    let mut rows: Vec<(&str, &str, &str, f64, Option<i64>)> = Vec::new();
    for arm in ["champion", "explore", "holdout"] {
        rows.extend([
            ("s", arm, "ad_001", 0.5, Some(1)),
            ("s", arm, "ad_004", 0.2, None),
            ("s", arm, "ad_999", 0.1, None),
            ("s", arm, "no_ad", 0.2, None),
        ]);
        rows.extend([("everyone", arm, "ad_003", 0.25, Some(2)), ("everyone", arm, "no_ad", 0.75, None)]);
    }
    let segment_ads = RecordBatch::try_from_iter([
        ("policy_version", strings(vec![version; rows.len()])),
        ("segment_id", strings(rows.iter().map(|row| row.0).collect())),
        ("arm", strings(rows.iter().map(|row| row.1).collect())),
        ("ad_id", strings(rows.iter().map(|row| row.2).collect())),
        ("propensity", Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.3))) as _),
        ("frequency_cap", Arc::new(rows.iter().map(|row| row.4).collect::<Int64Array>()) as _),
    ])
    .unwrap();
    std::fs::create_dir_all(folder).unwrap();
    for (name, table) in [("user_segments", user_segments), ("segment_ads", segment_ads)] {
        std::fs::write(folder.join(format!("{name}.parquet")), parquet_bytes(table.schema(), &[table]).unwrap()).unwrap();
    }
}

#[test]
fn a_published_table_serves_one_more_day_and_is_obeyed() {
    let raw = shop(&plan(600, 8, 3));
    let folder = TempDir::new().unwrap();
    publish(&folder.path().join("one"), 600, "v1");
    publish(&folder.path().join("two"), 600, "v2");
    let serve = |date: NaiveDate, policy: &str| {
        let plan = Continue { date, salt: "test".into(), shares: SHARES };
        block_on(continue_day(&store(raw.path()), &plan, &store(&folder.path().join(policy)), &key()))
    };
    let before = files(raw.path());
    let next = UNTIL + Days::new(1);
    assert_eq!(serve(UNTIL, "one").unwrap_err().kind, Kind::Usage, "history stays");
    assert_eq!(serve(next + Days::new(1), "one").unwrap_err().kind, Kind::Usage, "no gaps");
    assert_eq!(files(raw.path()), before, "a refusal leaves nothing behind");
    serve(next, "one").expect("serves");
    let after = files(raw.path());
    assert!(before.iter().all(|(path, bytes)| after[path] == *bytes), "earlier days stay");
    assert!(after.keys().filter(|path| !before.contains_key(*path)).all(|path| path.contains(&format!("dt={next}"))));
    serve(next, "one").expect("serves again");
    assert_eq!(files(raw.path()), after, "the same table gives the same bytes");
    assert_eq!(serve(next, "two").unwrap_err().kind, Kind::Usage, "another table is refused");

    let owners = owners(raw.path(), next);
    let segment: HashMap<String, &str> =
        user_ids(600).enumerate().map(|(i, (_, uid))| (uid, if i % 2 == 0 { "s" } else { "everyone" })).collect();
    let pseudonyms: HashMap<String, String> = user_ids(600).map(|(pseudonym, uid)| (uid, pseudonym)).collect();
    let rows = table(raw.path(), "ad_impressions", Some(next));
    let (mut seen, mut times_seen) = (HashSet::new(), BTreeMap::<(String, String), u32>::new());
    let mut in_segment: BTreeMap<(&str, &str), u32> = BTreeMap::new();
    for row in 0..rows.num_rows() {
        assert_eq!(text(&rows, "policy_version").value(row), "v1");
        let (ad, of) = (text(&rows, "ad_id").value(row), text(&rows, "segment_id").value(row));
        let propensity = BTreeMap::from([(("s", "ad_001"), 0.5), (("s", "ad_004"), 0.2), (("everyone", "ad_003"), 0.25)]);
        assert_eq!(Some(&number(&rows, "propensity").value(row)), propensity.get(&(of, ad)), "{of} {ad}");
        let Some(user) = owners.get(text(&rows, "device_id").value(row)) else { continue };
        assert_eq!(segment[user], of);
        assert_eq!(arm_of(&pseudonyms[user], "test", &SHARES).as_str(), text(&rows, "arm").value(row));
        if seen.insert(text(&rows, "impression_id").value(row)) {
            *times_seen.entry((user.clone(), ad.to_owned())).or_default() += 1;
            *in_segment.entry((of, ad)).or_default() += 1;
        }
    }
    let most = |ad: &str| times_seen.iter().filter(|((_, of), _)| of == ad).map(|(_, times)| *times).max().unwrap_or(0);
    assert_eq!((most("ad_001"), most("ad_003")), (1, 2), "caps");
    assert!(most("ad_004") > 2, "no cap");
    assert!(in_segment.values().all(|count| *count > 50), "{in_segment:?}");
    assert!(Arm::ALL.iter().all(|arm| text(&rows, "arm").iter().flatten().any(|of| of == arm.as_str())));
    let hours = table(raw.path(), "bid_hours", Some(next));
    assert!(number(&hours, "budget_left").iter().flatten().all(|left| left >= 0.0));

    // Orders of the day follow from clicks of it and of the days before.
    let clicks = table(raw.path(), "ad_clicks", None);
    let clicked: BTreeSet<&str> = text(&clicks, "impression_id").iter().flatten().collect();
    let orders = table(raw.path(), "ad_conversions", Some(next));
    assert!(text(&orders, "impression_id").iter().flatten().all(|id| clicked.contains(id)));
    let today = format!("i{}", next.format("%Y%m%d"));
    assert!(text(&orders, "impression_id").iter().flatten().any(|id| !id.starts_with(&today)), "{} orders", orders.num_rows());
    // And every table has its day: the next night can run.
    let out = TempDir::new().unwrap();
    let settings = ingest::Settings { history_days: 9, ..ingest::Settings::default() };
    block_on(ingest::run(&night(raw.path(), out.path(), next), &settings, &key())).expect("the contract holds");
}

#[test]
fn a_table_whose_propensities_are_none_is_refused() {
    let (raw, policy) = (shop(&plan(20, 3, 4)), TempDir::new().unwrap());
    publish(policy.path(), 20, "v1");
    let path = policy.path().join("segment_ads.parquet");
    let rows = parquet_table(std::fs::read(&path).unwrap().into()).unwrap();
    let mut columns = rows.columns().to_vec();
    let wrong = rows.schema().index_of("propensity").unwrap();
    columns[wrong] = Arc::new(Float64Array::from(vec![0.6; rows.num_rows()]));
    let rows = RecordBatch::try_new(rows.schema(), columns).unwrap();
    std::fs::write(&path, parquet_bytes(rows.schema(), &[rows]).unwrap()).unwrap();
    let plan = Continue { date: UNTIL + Days::new(1), salt: "test".into(), shares: SHARES };
    let before = files(raw.path());
    let error = block_on(continue_day(&store(raw.path()), &plan, &store(policy.path()), &key())).unwrap_err();
    assert_eq!(error.kind, Kind::Contract, "{error}");
    assert_eq!(files(raw.path()), before, "a refusal leaves nothing behind");
}

#[test]
fn the_articles_users_are_rows_like_all_others() {
    let raw = shop(&plan(50, 4, 5));
    let did = |swap: bool| {
        block_on(plant_article_users(&store(raw.path()), swap)).expect("plants");
        let log = table(raw.path(), "events", None);
        let mut did: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for row in
            (0..log.num_rows()).filter(|&row| text(&log, "uid").is_valid(row) && ["A", "B", "C"].contains(&text(&log, "uid").value(row)))
        {
            let what = if text(&log, "sku").is_valid(row) { text(&log, "sku") } else { text(&log, "keyword") }.value(row);
            did.entry(text(&log, "uid").value(row).to_owned()).or_default().push(format!("{} {what}", text(&log, "action").value(row)));
        }
        did
    };
    let (plain, swapped) = (did(false), did(true));
    assert_eq!(plain["A"].len(), 8, "{plain:?}");
    assert!(plain["A"].contains(&"search 鞋子".to_owned()) && plain["A"].contains(&"search 服装".to_owned()));
    assert_eq!(plain["B"], ["search 鞋子", "search 鞋子配件"]);
    assert_eq!(plain["C"], ["search 手机配件"]);
    assert_eq!((&swapped["A"], &swapped["B"], &swapped["C"]), (&plain["C"], &plain["B"], &plain["A"]));
    for (name, day) in [("users", UNTIL), ("consents", UNTIL - Days::new(3)), ("identities", UNTIL)] {
        let rows = table(raw.path(), name, Some(day));
        assert_eq!(text(&rows, "uid").iter().flatten().filter(|uid| ["A", "B", "C"].contains(uid)).count(), 3, "{name}");
    }
}

/// `cargo test --release --test it a_large_shop -- --ignored --nocapture`
#[test]
#[ignore = "a measurement: writes about a gigabyte"]
fn a_large_shop_is_made_in_little_memory() {
    let folder = TempDir::new().unwrap();
    let started = std::time::Instant::now();
    let summary = block_on(generate_on(&store(folder.path()), &plan(100_000, 28, 7), 2)).expect("generates");
    let seconds = started.elapsed().as_secs_f64();
    let logged = ["events", "ad_impressions", "ad_clicks"].iter().map(|table| summary.rows[*table]).sum::<u64>();
    eprintln!("{summary}\n{logged} rows of logs in {seconds:.1} s: {:.0} a second", logged as f64 / seconds);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    eprintln!("peak memory {peak:?} kB");
    assert!(peak.is_none_or(|kilobytes| kilobytes < 1 << 20), "{peak:?} kB");
}

//! The leak test finds what knows the future, whichever file lets it through, and finds nothing where nothing leaks.

use crate::shop::{SECRET, block_on, copy, key};
use crate::small::{self, REMOVALS, Small};
use chrono::NaiveDate;
use nightmarket::error::Kind;
use nightmarket::pipeline::{self, Stage};
use nightmarket::platform::catalog::Catalog;
use nightmarket::platform::run::Run;
use nightmarket::platform::storage::Store;
use nightmarket::spec::Spec;
use nightmarket::workbench::leak::{self, Case, Leaks, Other};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

const DAY: NaiveDate = NaiveDate::from_ymd_opt(2026, 11, 21).expect("a date");
const UNTIL: NaiveDate = NaiveDate::from_ymd_opt(2026, 11, 22).expect("a date");
const ALL: [Other; 3] = [Other::Happened, Other::Arrived, Other::Shuffled];

const SOURCES: &str = "\
[shown]
location = \"shown\"
kind = \"log\"
partition = \"dt\"
required = true
key = [\"id\"]
occurred_at = \"ts\"
arrived_at = \"recv\"

[shown.columns]
id = { type = \"string\", nullable = false }
uid = { type = \"string\", id = \"user\" }
ad = { type = \"string\" }
ts = { type = \"timestamp\" }
recv = { type = \"timestamp\" }

[orders]
location = \"orders\"
kind = \"log\"
partition = \"dt\"
required = true
key = [\"order_id\"]
arrived_at = \"recv\"

[orders.columns]
order_id = { type = \"string\", nullable = false }
uid = { type = \"string\", id = \"user\" }
shown = { type = \"string\" }
ts = { type = \"timestamp\" }
recv = { type = \"timestamp\" }
";

const IMPRESSIONS: &str = "\
-- Ads shown, and what came of them.
-- grain: impression_id
-- owner: ads
-- daily: shown
WITH bought AS (
    SELECT shown, MIN(recv) AS known_at
    FROM raw.orders
    GROUP BY shown
)
SELECT
    shown.id AS impression_id,
    shown.uid AS user_id,
    shown.ad AS ad_id,
    shown.ts AS occurred_at,
    shown.recv AS arrived_at,
    bought.shown IS NOT NULL AS converted,
    bought.known_at AS converted_at
FROM raw.shown AS shown
LEFT JOIN bought ON bought.shown = shown.id
";

const ORDERS: &str = "\
-- Orders, whenever they were made: no cut-off knows this table.
-- grain: order_id
-- owner: shop
SELECT order_id, uid AS user_id, ts AS ordered_at, recv AS known_at FROM raw.orders
";

/// Smoothed, as a rate should be.
const CVR: &str = "\
-- How often an ad sells.
-- grain: ad_id
-- owner: ads
SELECT
    ad_id,
    COUNT(*) AS n_shown_30d,                                                  -- count
    (COUNT(*) FILTER (WHERE converted) + 0.6) / (COUNT(*) + 20.0) AS cvr_30d  -- drawn to 3 %
FROM impressions
WHERE occurred_at >= $as_of - INTERVAL '30 days'
GROUP BY ad_id
";

const BOUGHT: &str = "\
-- What a user bought.
-- grain: user_id
-- owner: shop
SELECT user_id, COUNT(*) AS n_orders  -- count
FROM orders
WHERE known_at < $as_of
GROUP BY user_id
";

/// Logs of four UTC days: on each, four users are shown six ads; some buy the day after; one showing is delivered five hours late.
impl Small {
    fn of_showings() -> Self {
        let small = Self::empty();
        small.write("sql/sources.toml", &format!("{SOURCES}{REMOVALS}"));
        small.write("sql/staging/impressions.sql", IMPRESSIONS);
        small.write("sql/staging/orders.sql", ORDERS);
        small.write("sql/features/ad__cvr.sql", CVR);
        small.write("sql/features/user__bought.sql", BOUGHT);
        for day in 19..=22 {
            let mut shown = "id,uid,ad,ts,recv\n".to_owned();
            for n in 0..24 {
                let at = format!("2026-11-{day}T{n:02}:10:00Z");
                shown += &format!("s{day}{n:02},u{},a{},{at},{at}\n", n % 4, n % 6);
            }
            shown += &format!("s{day}late,u1,a2,2026-11-{day}T23:50:00Z,2026-11-{}T05:00:00Z\n", day + 1);
            small.write(&format!("raw/shown/dt=2026-11-{day}/a.csv"), &shown);
            let mut orders = "order_id,uid,shown,ts,recv\n".to_owned();
            for n in [3, 9, 14] {
                let at = format!("2026-11-{day}T{n:02}:30:00Z");
                orders += &format!("o{day}{n:02},u{},s{}{n:02},{at},{at}\n", n % 4, day - 1);
            }
            small.write(&format!("raw/orders/dt=2026-11-{day}/a.csv"), &orders);
            small.removed(day, "u9");
        }
        small.job("UTC", 3);
        small
    }

    /// Changes a file of the shop.
    fn plant(&self, path: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path(path)).expect("a file");
        assert!(text.contains(from), "{path} has {from}");
        self.write(path, &text.replace(from, to));
    }

    fn leaks(&self, others: &[Other]) -> Leaks {
        tested(&self.spec(), 1.0, others)
    }
}

/// Tests all features of a job as of the day before the last.
fn tested(spec: &Spec, share: f64, others: &[Other]) -> Leaks {
    let run = small::run(spec, UNTIL);
    let features: BTreeSet<String> = run.catalog.features.iter().map(|query| query.name.clone()).collect();
    let case = Case { run: &run, ingest: &spec.ingest, key: &key(), day: DAY, share, features, others };
    block_on(leak::test(&case)).unwrap_or_else(|error| panic!("{error}"))
}

/// The one table that leaks, its columns and the raw table that does it.
fn only(found: &Leaks) -> (&str, Vec<&str>, &str) {
    assert_eq!(found.leaks.len(), 1, "{}", found.text());
    let leak = &found.leaks[0];
    let source = leak.source.as_ref().unwrap_or_else(|| panic!("no source: {}", found.text()));
    assert_eq!(source.count, 1, "one row is enough: {}", found.text());
    assert!(!leak.examples.is_empty() && leak.examples.len() <= 3);
    (&leak.table, leak.columns.iter().map(String::as_str).collect(), &source.table)
}

#[test]
fn what_asks_for_its_dates_leaks_nothing() {
    let found = Small::of_showings().leaks(&ALL);
    assert_eq!(found.leaks, [], "{}", found.text());
    assert_eq!((found.others.as_slice(), found.tables.len()), (ALL.as_slice(), 2), "all was tried on both");
    // 25 shown on the last day, one delivered late, and the last day's three orders.
    assert_eq!(found.later_rows, 25 + 1 + 3);
    assert!(found.rows > 0);
}

#[test]
fn a_file_without_the_date_filter_is_found() {
    let small = Small::of_showings();
    small.plant("sql/features/user__bought.sql", "WHERE known_at < $as_of\n", "");
    let found = small.leaks(&ALL);
    assert_eq!(only(&found), ("user__bought", vec!["n_orders"], "orders"));
    let leak = &found.leaks[0];
    assert_eq!(leak.other, Other::Arrived);
    assert_eq!(leak.through.len(), 1, "{:?}", leak.through);
    // Users 1, 2 and 3 buy once a day: four times with the last day, three times without.
    let values: Vec<(&str, &str)> = leak.examples.iter().map(|of| (of.values[0].with.as_str(), of.values[0].without.as_str())).collect();
    assert!(values.iter().all(|(with, without)| (*with, *without) == ("4", "3")), "{values:?}");
}

#[test]
fn a_smoothed_rate_that_sees_later_conversions_is_found() {
    let small = Small::of_showings();
    small.plant("sql/staging/impressions.sql", "AS converted,\n    bought.known_at AS converted_at", "AS converted");
    let found = small.leaks(&ALL);
    assert_eq!(only(&found), ("ad__cvr", vec!["cvr_30d"], "orders"));
    let text = found.text();
    assert!(text.contains("features/ad__cvr.sql knows the future: cvr_30d"), "{text}");
    assert!(text.contains("staging/impressions.sql") && text.contains("raw.orders") && text.contains("o22"), "{text}");
}

#[test]
fn a_late_arrival_is_found() {
    let small = Small::of_showings();
    small.plant("sql/staging/impressions.sql", "    shown.recv AS arrived_at,\n", "");
    let found = small.leaks(&[Other::Arrived]);
    assert_eq!(only(&found), ("ad__cvr", vec!["n_shown_30d", "cvr_30d"], "shown"));
    let source = found.leaks[0].source.as_ref().expect("a source");
    assert!(source.rows[0].contains(&"s21late".to_owned()), "{source:?}");
}

#[test]
fn a_slip_of_time_zones_is_found() {
    let small = Small::of_showings();
    // The folders are days of UTC, the job's day ends eight hours earlier, and somebody makes the time "local".
    small.job("Asia/Shanghai", 3);
    assert_eq!(small.leaks(&ALL).leaks, []);
    small.plant("sql/staging/impressions.sql", "shown.ts AS occurred_at", "shown.ts - INTERVAL '8 hours' AS occurred_at");
    let found = small.leaks(&[Other::Happened]);
    assert_eq!(only(&found).2, "shown");
    assert_eq!(found.leaks[0].table, "ad__cvr");
}

#[test]
fn shuffling_the_future_finds_what_it_decides() {
    let small = Small::of_showings();
    small.plant("sql/staging/impressions.sql", "AS converted,\n    bought.known_at AS converted_at", "AS converted");
    let found = small.leaks(&[Other::Shuffled]);
    assert_eq!(found.leaks.len(), 1, "{}", found.text());
    assert_eq!((found.leaks[0].table.as_str(), found.leaks[0].other), ("ad__cvr", Other::Shuffled));
}

#[test]
fn the_shops_own_features_know_nothing_of_the_future() {
    let out = TempDir::new().expect("a temporary folder");
    let mut spec = Spec::read(Path::new("jobs/shop.toml")).expect("the shop's job reads");
    spec.store.raw = "testdata/shop".to_owned();
    spec.store.output = out.path().display().to_string();
    spec.ingest.history_days = 24;
    let found = tested(&spec, 1.0, &ALL);
    assert_eq!(found.leaks, [], "{}", found.text());
    assert_eq!((found.others.as_slice(), found.skipped.len()), (ALL.as_slice(), 0), "{}", found.text());
    assert!(found.later_rows > 100 && found.rows > 100, "{}", found.text());
    assert_eq!(std::fs::read_dir(out.path()).expect("a folder").count(), 0, "a test leaves nothing in the job's output");
    // A sample is a part of the same.
    let sample = tested(&spec, 0.3, &[Other::Known]);
    assert_eq!(sample.leaks, []);
    assert!(sample.rows > 0 && sample.rows < found.rows, "{} of {}", sample.rows, found.rows);
}

#[test]
fn the_command_names_the_file_and_ends_with_30() {
    let small = Small::of_showings();
    small.plant("sql/features/user__bought.sql", "WHERE known_at < $as_of\n", "");
    let leak = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
        command.args(["sql", "leak", "--job"]).arg(small.path("job.toml")).arg("--shop").arg(small.path("sql")).args(arguments);
        command.env("NIGHTMARKET_PSEUDONYM_KEY", SECRET).output().expect("it runs")
    };
    let found = leak(&["--as-of", "2026-11-21"]);
    let (out, log) = (String::from_utf8_lossy(&found.stdout), String::from_utf8_lossy(&found.stderr));
    assert_eq!(found.status.code(), Some(30), "{out}{log}");
    assert!(out.contains("user__bought.sql knows the future: n_orders") && log.contains("user__bought.sql"), "{out}{log}");
    let found = leak(&["ad__cvr", "--output", "json"]);
    assert_eq!(found.status.code(), Some(0), "the day before the last is the default, and the other file is sound");
    let json: serde_json::Value = serde_json::from_slice(&found.stdout).expect("JSON");
    assert_eq!((&json["day"], &json["tables"][0]), (&"2026-11-21".into(), &"ad__cvr".into()));
    let found = leak(&["--as-of", "2026-11-22"]);
    assert_eq!(found.status.code(), Some(0), "late rows of the last day are later, too");
}

#[test]
fn the_night_tests_a_sample_and_ends_when_something_leaks() {
    let folder = TempDir::new().expect("a temporary folder");
    copy(Path::new("sql/shop"), &folder.path().join("sql"));
    let mut spec = Spec::read(Path::new("jobs/shop.toml")).expect("the shop's job reads");
    spec.sql = folder.path().join("sql").display().to_string();
    spec.store.raw = "testdata/shop".to_owned();
    spec.store.output = folder.path().join("out").display().to_string();
    spec.ingest.history_days = 24;
    spec.features.leak_share = 1.0;
    let night = || {
        let open = |place: &str| Store::open(place).expect("a store");
        let catalog = Catalog::load(Path::new(&spec.sql)).expect("it loads");
        let (raw, out) = (open(&spec.store.raw), open(&spec.store.output));
        let run = Run::new(spec.job().expect("a job"), UNTIL, raw, out, catalog, spec.engine.clone());
        block_on(pipeline::run(&run, &spec, &key(), Stage::Features))
    };
    let facts = night().unwrap_or_else(|error| panic!("{error}"));
    let found = facts.leak.expect("a fact");
    assert_eq!((found.day, found.leaks.len(), found.others.as_slice()), (DAY, 0, [Other::Known].as_slice()));
    assert!(found.later_rows > 0 && found.rows > 0);
    // Clicks without the time from which they are known. The files of the copy are those of the shop: no one may write into them.
    std::fs::remove_dir_all(folder.path().join("sql/checks")).expect("they ask for that time");
    let path = folder.path().join("sql/staging/impressions.sql");
    let text = std::fs::read_to_string(&path).expect("a file");
    let planted: Vec<&str> = text.lines().filter(|line| !line.starts_with("    outcomes.clicked_at,")).collect();
    assert_eq!(planted.len() + 1, text.lines().count());
    std::fs::remove_file(&path).expect("a link less");
    std::fs::write(&path, planted.join("\n")).expect("written");
    let error = night().err().expect("refused");
    assert_eq!(error.kind, Kind::Contract, "{error}");
    assert!(error.to_string().contains("ad__performance.sql (ctr_14d, cvr_14d)") && error.next_action().contains("sql leak"), "{error}");
}

//! Snapshots of earlier nights are taken over where nothing that they are made of changed, and what comes of it is what a night without
//! any earlier one computes, row for row: with late rows, suppressed users, changed SQL and lost folders.

use crate::shop::{block_on, key};
use crate::small::{REMOVALS, Small};
use arrow::array::{Array, Float64Array, ListArray, RecordBatch, StringArray};
use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use nightmarket::error::Result;
use nightmarket::features::ledger::{Entry, Way};
use nightmarket::features::{self, Snapshots};
use nightmarket::ingest;
use nightmarket::platform::catalog::IdDomain;
use nightmarket::platform::engine;
use nightmarket::platform::run::Run;
use nightmarket::platform::storage::Store;
use nightmarket::publish::{self, Privacy};
use nightmarket::types::column;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt::Write;

const SOURCES: &str = "\
[sales]
location = \"sales\"
kind = \"log\"
partition = \"dt\"
required = true
key = [\"id\"]
occurred_at = \"ts\"
arrived_at = \"recv\"

[sales.columns]
id = { type = \"string\" }
uid = { type = \"string\", id = \"user\" }
item = { type = \"string\" }
price = { type = \"float64\" }
ts = { type = \"timestamp\" }
recv = { type = \"timestamp\" }
";

const SALES: &str = "\
-- What was sold.
-- grain: sale_id
-- owner: shop
-- daily: sales
SELECT id AS sale_id, uid AS user_id, item AS item_id, CAST(price AS DECIMAL(18, 2)) AS price, ts AS occurred_at, recv AS arrived_at
FROM raw.sales
";

const SPENT: &str = "\
-- What a user spent, and on what.
-- grain: user_id
-- owner: growth
-- window: 5 days
SELECT
    user_id,
    COUNT(*) AS n_5d,                                                         -- count
    SUM(price) AS spent_5d,                                                   -- CNY
    MAX(price) FILTER (WHERE occurred_at >= $as_of - INTERVAL '2 days') AS most_2d,  -- CNY
    ARRAY_AGG(item_id ORDER BY occurred_at, sale_id) AS items                 -- most recent last
FROM sales
WHERE occurred_at >= $as_of - INTERVAL '5 days'
GROUP BY user_id
";

const SOLD: &str = "\
-- How often an item is sold.
-- grain: item_id
-- owner: shop
-- window: 3 days
SELECT item_id, COUNT(*) AS n_3d, COUNT(DISTINCT user_id) AS n_users_3d  -- count
FROM sales
WHERE occurred_at >= $as_of - INTERVAL '3 days'
GROUP BY item_id
";

const TASTE: &str = "\
-- Whether a user buys what everybody buys.
-- grain: user_id
-- owner: shop
-- window: 3 days
SELECT sales.user_id, MAX(sold.n_users_3d) AS most_3d  -- users
FROM sales
JOIN item__sold AS sold ON sold.item_id = sales.item_id
WHERE sales.occurred_at >= $as_of - INTERVAL '3 days'
GROUP BY sales.user_id
";

const LEVEL: &str = "\
-- How much that is.
-- grain: user_id
-- owner: growth
SELECT user_id, n_5d > 2 AS often
FROM user__spent
";

#[derive(Clone, Debug)]
struct Sale {
    id: String,
    user: String,
    item: String,
    cents: i64,
    at: DateTime<Utc>,
    arrived: DateTime<Utc>,
}

fn day(day: u32) -> NaiveDate {
    NaiveDate::from_ymd_opt(2026, 11, day).expect("a date")
}

/// Hours after midnight UTC of a day of November.
fn at(of: u32, hours: i64) -> DateTime<Utc> {
    day(of).and_hms_opt(0, 0, 0).expect("midnight").and_utc() + TimeDelta::hours(hours)
}

const FIRST: u32 = 10;
const USERS: usize = 24;
const LAG_HOURS: i64 = 3;

impl Small {
    fn of_late_sales() -> Self {
        let small = Self::empty();
        small.write("sql/sources.toml", &format!("{SOURCES}{REMOVALS}"));
        small.write("sql/staging/sales.sql", SALES);
        small.write("sql/features/user__spent.sql", SPENT);
        small.write("sql/features/item__sold.sql", SOLD);
        small.write("sql/features/user__taste.sql", TASTE);
        small.write("sql/features/user__level.sql", LEVEL);
        small.job("UTC", LAG_HOURS as u32);
        small
    }

    /// The logs as they lie there on the night of a day: what has arrived by its cut-off, and the list of who is suppressed.
    fn deliver(&self, sales: &[Sale], night: u32, suppressed: &BTreeSet<String>) {
        for of in FIRST..=night {
            let mut text = "id,uid,item,price,ts,recv\n".to_owned();
            let arrived = |sale: &&Sale| sale.at.date_naive() == day(of) && sale.arrived < at(night + 1, LAG_HOURS);
            for Sale { id, user, item, cents, at, arrived } in sales.iter().filter(arrived) {
                let (at, arrived) = (at.format("%FT%TZ"), arrived.format("%FT%TZ"));
                writeln!(text, "{id},{user},{item},{}.{:02},{at},{arrived}", cents / 100, cents % 100).expect("a string");
            }
            self.write(&format!("raw/sales/dt=2026-11-{of}/a.csv"), &text);
        }
        let list: String = suppressed.iter().map(|user| format!("{user}\n")).collect();
        self.write(&format!("raw/removals/dt=2026-11-{night}/a.csv"), &format!("uid\n{list}"));
    }

    /// The features of a night, as of its day and the days before, in an output of the name.
    fn features(&self, night: u32, output: &str) -> (Run, Snapshots) {
        let mut spec = self.spec();
        spec.store.output = self.path(output).display().to_string();
        let run = crate::small::run(&spec, day(night));
        let days = (FIRST + 2..=night).map(day).collect();
        let made = block_on(async {
            let staged = ingest::run(&run, &spec.ingest, &key()).await?;
            features::run(&run, &staged, &days).await
        });
        let snapshots = made.unwrap_or_else(|error| panic!("the night of {night}: {error}"));
        (run, snapshots)
    }
}

/// Sales of all days; most arrive at once, some hours or days late.
fn random_sales(random: &mut ChaCha8Rng, until: u32) -> Vec<Sale> {
    let mut sales = Vec::new();
    for of in FIRST..=until {
        for n in 0..random.random_range(20..30) {
            let happened = at(of, 0) + TimeDelta::minutes(random.random_range(0..24 * 60));
            let late = match random.random_range(0..10) {
                0 => TimeDelta::hours(random.random_range(24..80)),
                1 | 2 => TimeDelta::hours(random.random_range(1..24)),
                _ => TimeDelta::seconds(5),
            };
            sales.push(Sale {
                id: format!("s{of}-{n}"),
                user: format!("u{}", random.random_range(0..USERS)),
                item: format!("i{}", random.random_range(0..5)),
                cents: random.random_range(1..10_000),
                at: happened,
                arrived: happened + late,
            });
        }
    }
    sales
}

fn table(run: &Run, snapshots: &Snapshots, name: &str, of: NaiveDate) -> RecordBatch {
    let rows = async {
        let context = engine::session(&run.engine)?;
        snapshots.register(&context, of, None, |table| table == name)?;
        let keys = snapshots.tables[name].key.clone();
        engine::collect(context.table(name).await?.sort(engine::ascending(&keys))?).await
    };
    let rows: Result<RecordBatch> = block_on(rows);
    rows.unwrap_or_else(|error| panic!("{name} of {of}: {error}"))
}

/// Every table of both is the same on every day.
fn same(night: u32, (run, some): &(Run, Snapshots), (other_run, others): &(Run, Snapshots)) {
    assert_eq!(some.tables, others.tables, "night {night}");
    assert_eq!(some.facts(), others.facts(), "night {night}");
    for entry in &others.ledger {
        let (a, b) = (table(run, some, &entry.table, entry.day), table(other_run, others, &entry.table, entry.day));
        assert_eq!(a, b, "night {night}: {} of {}", entry.table, entry.day);
    }
    assert!((FIRST + 2..=night).all(|of| some.keys(day(of)) == others.keys(day(of))), "night {night}: the same folders");
}

/// What one user bought in the five days before the end of a day, as known three hours later: every sale is held against every bound.
fn window_join(sales: &[Sale], of: NaiveDate, suppressed: &BTreeSet<String>) -> BTreeMap<String, (f64, f64, Option<f64>, Vec<String>)> {
    let end = (of + Days::new(1)).and_hms_opt(0, 0, 0).expect("midnight").and_utc();
    let mut seen: BTreeMap<String, Vec<&Sale>> = BTreeMap::new();
    for sale in sales {
        let in_window = sale.at < end && sale.at >= end - TimeDelta::days(5);
        if in_window && sale.arrived < end + TimeDelta::hours(LAG_HOURS) && !suppressed.contains(&sale.user) {
            seen.entry(key().pseudonym(IdDomain::User, &sale.user)).or_default().push(sale);
        }
    }
    let value = |mut sales: Vec<&Sale>| {
        sales.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
        let spent = sales.iter().map(|sale| sale.cents).sum::<i64>() as f64 / 100.0;
        let lately = sales.iter().filter(|sale| sale.at >= end - TimeDelta::days(2)).map(|sale| sale.cents).max();
        (sales.len() as f64, spent, lately.map(|cents| cents as f64 / 100.0), sales.iter().map(|sale| sale.item.clone()).collect())
    };
    seen.into_iter().map(|(user, sales)| (user, value(sales))).collect()
}

fn spent(rows: &RecordBatch) -> BTreeMap<String, (f64, f64, Option<f64>, Vec<String>)> {
    let users = column::<StringArray>(rows, "user_id").expect("users");
    let number = |name: &str| column::<Float64Array>(rows, name).expect("a number");
    let (count, spent, most) = (number("n_5d"), number("spent_5d"), number("most_2d"));
    let items = column::<ListArray>(rows, "items").expect("lists");
    let texts = |row: usize| {
        let list = items.value(row);
        let list = list.as_any().downcast_ref::<StringArray>().expect("texts");
        list.iter().flatten().map(str::to_owned).collect::<Vec<_>>()
    };
    let value = |row: usize| (count.value(row), spent.value(row), most.is_valid(row).then(|| most.value(row)), texts(row));
    (0..rows.num_rows()).map(|row| (users.value(row).to_owned(), value(row))).collect()
}

/// Nights on random logs, one after the other in one output, and each again in an empty one.
#[test]
fn with_reuse_every_night_is_as_if_it_were_the_first() {
    for seed in 1..=3 {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let small = Small::of_late_sales();
        let until = FIRST + 9;
        let sales = random_sales(&mut random, until);
        let mut suppressed = BTreeSet::new();
        let mut ways: BTreeMap<Way, usize> = BTreeMap::new();
        for night in FIRST + 4..=until {
            match night - FIRST {
                // Nothing changes but the date and what arrived.
                4 | 5 => {}
                6 => drop(suppressed.insert(format!("u{}", random.random_range(0..USERS)))),
                7 => small.write("sql/features/user__spent.sql", &SPENT.replace("MAX(price) FILTER", "-- of late\n    MAX(price) FILTER")),
                8 => small.write("sql/features/item__sold.sql", &SOLD.replace("COUNT(*) AS n_3d", "2 * COUNT(*) AS n_3d")),
                _ => drop(suppressed.insert(format!("u{}", random.random_range(0..USERS)))),
            }
            small.deliver(&sales, night, &suppressed);
            let (kept, fresh) = (small.features(night, "out"), small.features(night, &format!("fresh-{night}")));
            assert!(fresh.1.ledger.iter().all(|entry| entry.way == Way::Recomputed), "there is nothing to reuse: {:?}", fresh.1.ledger);
            same(night, &kept, &fresh);
            for entry in &kept.1.ledger {
                *ways.entry(entry.way).or_default() += 1;
            }
            // The exact window join is what the daily snapshot says.
            for of in (FIRST + 2..=night).map(day) {
                assert_eq!(spent(&table(&kept.0, &kept.1, "user__spent", of)), window_join(&sales, of, &suppressed), "{seed} {night} {of}");
            }
        }
        assert!(ways.len() == 3 && ways[&Way::Reused] > 30, "seed {seed}: {ways:?}");
    }
}

/// The way of each snapshot of a table, oldest first.
fn ways(snapshots: &Snapshots, table: &str) -> Vec<(Way, String)> {
    let of = |entry: &&Entry| entry.table == table;
    snapshots.ledger.iter().filter(of).map(|entry| (entry.way, entry.why.clone().unwrap_or_default())).collect()
}

#[test]
fn a_late_row_touches_the_days_whose_cut_off_lies_after_its_arrival() {
    let small = Small::of_late_sales();
    let mut sales = random_sales(&mut ChaCha8Rng::seed_from_u64(5), 17);
    sales.iter_mut().for_each(|sale| sale.arrived = sale.at);
    small.deliver(&sales, 17, &BTreeSet::new());
    small.features(17, "out");
    // It happened on the 14th, was under way for two days, and is found only now.
    sales.push(Sale { at: at(14, 9), arrived: at(16, 20), id: "late".into(), ..sales[0].clone() });
    small.deliver(&sales, 17, &BTreeSet::new());
    let (run, found) = small.features(17, "out");
    let because = |way| (way, "rows of sales changed".to_owned());
    let reused = (Way::Reused, String::new());
    let last = |way| [vec![reused.clone(); 4], vec![because(way); 2]].concat();
    assert_eq!(ways(&found, "user__spent"), last(Way::Mended), "the days from the 12th to the 15th ended before");
    let mended = found.ledger.iter().filter(|entry| entry.table == "user__spent" && entry.way == Way::Mended);
    assert!(mended.clone().all(|entry| entry.users == Some(1)), "{:?}", mended.collect::<Vec<_>>());
    // Of the last three days it lies in the 16th's alone.
    let sold = ways(&found, "item__sold");
    assert_eq!((&sold[..4], &sold[4]), (&vec![reused.clone(); 4][..], &because(Way::Recomputed)));
    assert_eq!(sold[5], reused, "the 17th looks back to the 15th");
    same(17, &(run, found), &small.features(17, "fresh"));
}

#[test]
fn a_changed_file_makes_itself_and_what_reads_it_anew_and_a_comment_nothing() {
    let small = Small::of_late_sales();
    let sales = random_sales(&mut ChaCha8Rng::seed_from_u64(6), 15);
    small.deliver(&sales, 15, &BTreeSet::new());
    small.features(15, "out");
    let all = |way, why: &str| vec![(way, why.to_owned()); 4];
    small.write("sql/features/item__sold.sql", &SOLD.replace("-- count", "-- of sales").replace("FROM", "\nFROM"));
    small.write("sql/staging/sales.sql", &SALES.replace("uid AS user_id", "TRIM(uid) AS user_id"));
    let (_, found) = small.features(15, "out");
    assert!(found.ledger.iter().all(|entry| entry.way == Way::Reused), "staging gives the same rows: {:?}", found.ledger);
    small.write("sql/features/item__sold.sql", &SOLD.replace("DISTINCT user_id)", "DISTINCT user_id) + 1"));
    let (run, found) = small.features(15, "out");
    assert_eq!(ways(&found, "item__sold"), all(Way::Recomputed, "its SQL changed"));
    assert_eq!(ways(&found, "user__taste"), all(Way::Recomputed, "rows of item__sold changed"));
    assert_eq!(ways(&found, "user__spent"), all(Way::Reused, ""));
    same(15, &(run, found), &small.features(15, "fresh"));
    small.write("sql/features/user__spent.sql", &SPENT.replace("'5 days'", "'4 days'").replace("5 days", "4 days"));
    let (_, found) = small.features(15, "out");
    assert_eq!(ways(&found, "user__spent"), all(Way::Recomputed, "its SQL changed"));
    assert_eq!(ways(&found, "item__sold"), all(Way::Reused, ""));
    assert_eq!(ways(&found, "user__level").len(), 4);
}

#[test]
fn who_is_suppressed_or_forgotten_is_in_no_snapshot_that_is_reused() {
    let small = Small::of_late_sales();
    let sales = random_sales(&mut ChaCha8Rng::seed_from_u64(8), 16);
    small.deliver(&sales, 15, &BTreeSet::new());
    let before = small.features(15, "out");
    let (gone, forgotten) = (key().pseudonym(IdDomain::User, "u3"), key().pseudonym(IdDomain::User, "u4"));
    let holds = |(run, snapshots): &(Run, Snapshots), user: &str| {
        let of = |entry: &Entry| spent(&table(run, snapshots, "user__spent", entry.day)).contains_key(user);
        snapshots.ledger.iter().filter(|entry| entry.table == "user__spent").filter(|entry| of(entry)).count()
    };
    assert!(holds(&before, &gone) > 0 && holds(&before, &forgotten) > 0);
    small.deliver(&sales, 16, &BTreeSet::from(["u3".to_owned()]));
    let after = small.features(16, "out");
    assert_eq!(holds(&after, &gone), 0);
    assert!(ways(&after.1, "user__spent").iter().any(|(way, _)| *way == Way::Mended), "{:?}", after.1.ledger);
    same(16, &after, &small.features(16, "fresh"));

    // `forget` takes every folder that holds them, the views of earlier nights too; what is gone is made again.
    let (nobody, output) = (HashSet::new(), Store::open(&small.path("out").display().to_string()).expect("a store"));
    for user in [&gone, &forgotten] {
        block_on(publish::forget(&output, user, Privacy { suppressed: &nobody, floor: None }, false)).expect("forgets");
    }
    small.deliver(&sales, 16, &BTreeSet::from(["u3".to_owned(), "u4".to_owned()]));
    let last = small.features(16, "out");
    assert_eq!((holds(&last, &gone), holds(&last, &forgotten)), (0, 0));
    same(16, &last, &small.features(16, "fresh-again"));
    let left = block_on(publish::forget(&output, &forgotten, Privacy { suppressed: &nobody, floor: None }, true)).expect("looks");
    assert_eq!(left.rows, 0, "{left}");
}

#[test]
fn a_damaged_file_is_not_reused() {
    let small = Small::of_late_sales();
    let sales = random_sales(&mut ChaCha8Rng::seed_from_u64(9), 15);
    small.deliver(&sales, 14, &BTreeSet::new());
    let (_, made) = small.features(14, "out");
    let key = made.keys(day(13))["user__spent"].to_owned();
    small.write(&format!("out/features/user__spent/dt=2026-11-13/{key}/bucket=0.parquet"), "half a fi");
    small.deliver(&sales, 15, &BTreeSet::from(["u1".to_owned()]));
    let kept = small.features(15, "out");
    let spent = ways(&kept.1, "user__spent");
    assert_eq!((spent[1].0, spent[2].0), (Way::Recomputed, Way::Mended), "{spent:?}");
    same(15, &kept, &small.features(15, "fresh"));
}

#[test]
fn a_window_says_what_the_query_does() {
    let small = Small::of_late_sales();
    assert_eq!(small.check().diagnostics, []);
    let says = |file: &str, text: &str| {
        small.write(file, text);
        small.check().diagnostics.iter().map(|found| found.message.clone()).collect::<Vec<_>>().join("; ")
    };
    let spent = "sql/features/user__spent.sql";
    assert_eq!(says(spent, &SPENT.replace("window: 5", "window: 7")), "the header says window: 7 days, but the query looks 5 days back");
    let endless =
        "-- A.\n-- grain: user_id\n-- owner: o\n-- window: 5 days\nSELECT user_id, COUNT(*) AS n_5d FROM sales GROUP BY user_id\n";
    assert!(says(spent, endless).contains("has no $as_of - INTERVAL '5 days'"));
    let across = "-- A.\n-- grain: user_id\n-- owner: o\n-- window: 5 days\nWITH recent AS (SELECT * FROM sales WHERE occurred_at >= $as_of - INTERVAL '5 days'), \
                  everybody AS (SELECT item_id, COUNT(*) AS n FROM recent GROUP BY item_id) \
                  SELECT recent.user_id, SUM(everybody.n) AS n_5d FROM recent JOIN everybody USING (item_id) GROUP BY recent.user_id\n";
    assert!(says(spent, across).contains("across users"), "it is said");
    assert!(small.check().sound().is_err(), "users are computed anew by themselves, so it is wrong");
    small.write(spent, SPENT);
    let said = says("sql/staging/sales.sql", &SALES.replace("-- owner: shop", "-- owner: shop\n-- window: 5 days"));
    assert_eq!(said, "a window is of a feature, and this file is in staging/");
}

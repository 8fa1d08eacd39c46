//! What a shop says of its raw tables and of its columns is asked every night: errors end it with 30 and show query and rows, warnings
//! are told.

use crate::shop::{block_on, key};
use crate::small::{REMOVALS, Small};
use chrono::{Days, NaiveDate};
use nightmarket::error::{Error, Kind};
use nightmarket::features::drift::{Drift, Reference, against};
use nightmarket::platform::checks::{Checks, Violation};
use nightmarket::platform::expectation::Severity;
use nightmarket::{features, ingest};
use std::collections::BTreeSet;

const DATE: NaiveDate = NaiveDate::from_ymd_opt(2026, 11, 22).expect("a date");

/// `TABLE` and `PRICE` stand for what a test adds to a contract.
const SOURCES: &str = "\
[sales]
location = \"sales\"
kind = \"log\"
partition = \"dt\"
required = true
key = [\"id\"]
occurred_at = \"ts\"
TABLE

[sales.columns]
id = { type = \"string\" }
uid = { type = \"string\", id = \"user\" }
item = { type = \"string\" }
channel = { type = \"string\" CHANNEL }
price = { type = \"float64\" PRICE }
ts = { type = \"timestamp\" }
";

const SALES: &str = "\
-- What was sold.
-- grain: sale_id
-- owner: shop
-- daily: sales
HEADER
SELECT id AS sale_id, uid AS user_id, item AS item_id, channel, price, ts AS occurred_at FROM raw.sales
";

const ITEMS: &str = "\
-- What there is to sell.
-- grain: item_id
-- owner: shop
SELECT DISTINCT item AS item_id FROM raw.sales WHERE item <> 'i4'
";

const SPENT: &str = "\
-- What a user spent.
-- grain: user_id
-- owner: growth
HEADER
SELECT user_id, SUM(price) AS spent_30d  -- CNY
FROM sales
WHERE occurred_at >= $as_of - INTERVAL '30 days'
GROUP BY user_id
";

/// A shop of six days, ten sales each: users u0 to u4, items i0 to i4, prices 0 to 9.
impl Small {
    fn of_sales() -> Self {
        let small = Self::empty();
        small.contract("", "", "");
        small.headers("", "");
        small.write("sql/staging/items.sql", ITEMS);
        for day in 17..=22 {
            small.day(day, 10, "");
            small.removed(day, "u9");
        }
        small.job("UTC", 0);
        small
    }

    fn contract(&self, table: &str, channel: &str, price: &str) {
        let sources = SOURCES.replace("TABLE", table).replace("CHANNEL", channel).replace("PRICE", price);
        self.write("sql/sources.toml", &(sources + REMOVALS));
    }

    fn headers(&self, sales: &str, spent: &str) {
        self.write("sql/staging/sales.sql", &SALES.replace("HEADER\n", sales));
        self.write("sql/features/user__spent.sql", &SPENT.replace("HEADER\n", spent));
    }

    /// So many sales of a day up to 19:00, and more lines.
    fn day(&self, day: u32, rows: u32, more: &str) {
        let mut text = "id,uid,item,channel,price,ts\n".to_owned();
        for n in 0..rows {
            text += &format!("s{day}{n:02},u{},i{},web,{},2026-11-{day}T{:02}:00:00Z\n", n % 5, n % 5, n % 10, 10 + n % 10);
        }
        self.write(&format!("raw/sales/dt=2026-11-{day}/a.csv"), &(text + more));
    }

    /// All that a night asks.
    fn asked(&self) -> Result<Checks, Error> {
        let (run, spec) = self.run(DATE);
        block_on(async {
            let staged = ingest::run(&run, &spec.ingest, &key()).await?;
            let mut all = staged.checks.clone();
            let snapshots = features::run(&run, &staged, &BTreeSet::from([DATE])).await?;
            all.add(ingest::check(&run, &staged).await?);
            all.add(features::check(&run, &staged, &snapshots).await?);
            Ok(all)
        })
    }

    /// The one warning.
    fn warned(&self) -> Violation {
        let mut found = self.asked().unwrap_or_else(|error| panic!("{error}")).violations;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].severity, Severity::Warn);
        found.remove(0)
    }

    fn refused(&self) -> String {
        let error = self.asked().expect_err("refused");
        assert_eq!((error.kind, error.kind.exit_code()), (Kind::Contract, 30));
        error.to_string()
    }
}

#[test]
fn a_contract_that_holds_says_nothing() {
    let small = Small::of_sales();
    small.contract("unique = true\nfreshness_hours = 6\nrows_within = [0.5, 2.0]", ", accepted = [\"web\", \"app\"]", ", min = 0, max = 9");
    let header = "-- not_null: user_id\n-- unique: sale_id\n-- accepted: channel = web | app\n-- range: price = 0 .. 9\n";
    small.headers(header, "-- not_null: spent_30d\n-- relationship: user_id = sales.user_id\n");
    assert_eq!(small.asked().expect("all holds"), Checks { asked: 5 + 4 + 2, violations: Vec::new() });
}

#[test]
fn a_value_out_of_its_range_or_list_is_shown_with_query_and_rows() {
    let small = Small::of_sales();
    small.contract("", "", ", max = 8, severity = \"warn\"");
    let found = small.warned();
    assert_eq!((found.check.as_str(), found.rows), ("raw.sales: price range .. 8", 1));
    assert_eq!(found.query, "SELECT * FROM raw.sales WHERE \"price\" > 8");
    assert!(found.columns.contains(&"price".to_owned()) && found.sample[0].contains(&"s2209".to_owned()), "{found:?}");
    small.contract("", ", accepted = [\"app\"]", "");
    let told = small.refused();
    assert!(told.contains("raw.sales: channel accepted app: 10 violations") && told.contains("NOT IN ('app')"), "{told}");
    assert_eq!(told.matches("id=s22").count(), 5, "five rows are shown: {told}");
}

#[test]
fn a_key_of_an_earlier_day_counts_as_a_duplicate() {
    let small = Small::of_sales();
    small.contract("unique = true\nseverity = \"warn\"", "", "");
    small.day(22, 10, "s1903,u1,i1,web,1,2026-11-22T11:00:00Z\n");
    let found = small.warned();
    assert_eq!((found.check.as_str(), found.rows), ("raw.sales: unique id", 1));
    assert_eq!(found.sample, [["s1903", "2"]]);
    // What came twice before is another night's matter.
    small.day(22, 10, "");
    small.day(21, 10, "s1903,u1,i1,web,1,2026-11-21T11:00:00Z\n");
    assert_eq!(small.asked().expect("no error").violations, []);
}

#[test]
fn a_day_that_is_stale_or_of_another_size_is_told() {
    let small = Small::of_sales();
    small.contract("freshness_hours = 4.5", "", "");
    let told = small.refused();
    assert!(told.contains("raw.sales: freshness_hours = 4.5") && told.contains("newest=2026-11-22T19:00:00Z"), "{told}");
    small.contract("rows_within = [0.5, 2.0]\nseverity = \"warn\"", "", "");
    small.day(22, 21, "");
    let found = small.warned();
    assert_eq!(found.check, "raw.sales: rows_within = [0.5, 2] of the median 10 of the 5 nights before");
    assert_eq!((found.rows, found.sample.last().expect("days")), (21, &vec!["2026-11-22".to_owned(), "21".to_owned()]));
    small.day(22, 4, "");
    assert_eq!(small.warned().rows, 4);
    small.day(22, 5, "");
    assert_eq!(small.asked().expect("no error").violations, [], "the ends are included");
}

#[test]
fn what_a_header_says_of_its_columns_is_asked_every_night() {
    let cases = [
        ("-- not_null: channel (warn)\n", "channel not_null", 1),
        ("-- unique: item_id (warn)\n", "item_id unique", 5),
        ("-- accepted: channel = web | app (warn)\n", "channel accepted web | app", 1),
        ("-- range: price = 1 .. (warn)\n", "price range 1 ..", 6),
        ("-- relationship: item_id = items.item_id (warn)\n", "item_id relationship items.item_id", 12),
    ];
    let small = Small::of_sales();
    small.day(22, 10, "s2290,u1,i1,,5,2026-11-22T11:00:00Z\ns2291,u1,i2,fax,5,2026-11-22T11:00:00Z\n");
    for (header, check, rows) in cases {
        small.headers(header, "");
        let found = small.warned();
        assert!(found.check.ends_with(&format!("staging/sales.sql: {check}")), "{}", found.check);
        assert_eq!(found.rows, rows, "{check}");
    }
    small.headers("-- not_null: channel\n-- range: price = 1 ..\n", "");
    let told = small.refused();
    assert!(told.contains("channel not_null: 1 violations") && told.contains("price range 1 ..: 6 violations"), "all at once: {told}");
    small.headers("", "-- range: spent_30d = .. 5 (warn)\n");
    assert!(small.warned().check.ends_with("features/user__spent.sql: spent_30d range .. 5"));
}

#[test]
fn a_checks_rows_are_violations() {
    let small = Small::of_sales();
    let check = "-- Nothing is for free.\n-- grain: sale_id\n-- owner: shop\nSEVERITYSELECT sale_id, price FROM sales WHERE price = 0\n";
    small.write("sql/checks/free.sql", &check.replace("SEVERITY", "-- severity: warn\n"));
    let found = small.warned();
    assert_eq!((found.rows, found.columns, found.sample.len()), (6, vec!["sale_id".to_owned(), "price".to_owned()], 5));
    small.write("sql/checks/free.sql", &check.replace("SEVERITY", ""));
    let told = small.refused();
    assert!(told.contains("checks/free.sql: 6 violations") && told.contains("WHERE price = 0") && told.contains("sale_id=s1700"), "{told}");
}

#[test]
fn a_contract_or_header_that_cannot_hold_is_found_before_the_night() {
    let small = Small::of_sales();
    let messages = || {
        let checked = small.check();
        checked.diagnostics.into_iter().map(|found| found.message).collect::<Vec<_>>()
    };
    assert_eq!(messages(), [""; 0]);
    small.headers("-- range: price = cheap\n", "-- severity: harsh\n");
    let found = messages();
    assert!(found.iter().any(|message| message == "price = cheap is no range"), "{found:?}");
    assert!(found.iter().any(|message| message == "no severity is called harsh"), "{found:?}");
    small.headers("-- not_null: chanel\n-- relationship: item_id = items.id\n", "");
    let found = messages();
    assert!(found.contains(&"the header's not_null names chanel, which the query does not return".to_owned()), "{found:?}");
    assert!(found.contains(&"the header's relationship names items.id, which there is not".to_owned()), "{found:?}");
    small.headers("", "");
    small.contract("unique = true\narrived_at = \"price\"", "", "");
    assert_eq!(messages(), ["raw table sales: arrived_at names price, which is no timestamp column of it"]);
}

/// What a user bought last, and for how much; a third has no price on the drifted day.
const LAST: &str = "\
-- A user's last purchase.
-- grain: user_id
-- owner: growth
SELECT user_id, LAST_VALUE(channel ORDER BY occurred_at, sale_id) AS channel, LAST_VALUE(price ORDER BY occurred_at, sale_id) AS price,
       COUNT(*) AS sales, ARRAY_AGG(item_id ORDER BY occurred_at, sale_id) AS items
FROM sales WHERE occurred_at >= $as_of - INTERVAL '1 day'
GROUP BY user_id
";

/// Tonight's features against those of the day before.
fn drift(small: &Small) -> Vec<Drift> {
    let (run, spec) = small.run(DATE);
    let days = BTreeSet::from([DATE - Days::new(1), DATE]);
    let found = block_on(async {
        let staged = ingest::run(&run, &spec.ingest, &key()).await?;
        let snapshots = features::run(&run, &staged, &days).await?;
        // Of the day before that there is no snapshot, and nothing is said.
        let references = [1, 2].map(|back| (Reference::LastWeek, DATE - Days::new(back)));
        against(&run, &spec.features.drift, &snapshots, &references).await
    });
    found.unwrap_or_else(|error: Error| panic!("{error}"))
}

#[test]
fn a_feature_that_moved_went_missing_or_has_new_values_is_told() {
    let small = Small::of_sales();
    small.write("sql/features/user__last.sql", LAST);
    // Two hundred users of a channel and a price each, u9 of them suppressed; on the drifted day every third has no price, and everybody
    // another channel.
    let day = |day: u32, channel: &str, price: &dyn Fn(u32) -> String| {
        let rows: String =
            (0..200).map(|n| format!("s{day}{n:03},u{n},i{},{channel},{},2026-11-{day}T10:00:00Z\n", n % 7, price(n))).collect();
        small.write(&format!("raw/sales/dt=2026-11-{day}/a.csv"), &format!("id,uid,item,channel,price,ts\n{rows}"));
    };
    let usual = |n: u32| (n % 50).to_string();
    day(21, "web", &usual);
    day(22, "web", &usual);
    let still = drift(&small);
    let of_last: Vec<_> = still.iter().filter(|drift| drift.table == "user__last").collect();
    assert_eq!(of_last.len(), 4, "{still:?}");
    assert!(of_last.iter().all(|drift| drift.finding.is_none() && drift.psi == Some(0.0)), "{of_last:?}");

    day(22, "kiosk", &|n| if n % 3 == 0 { String::new() } else { usual(n) });
    let found = drift(&small);
    let of = |column: &str| found.iter().find(|drift| drift.table == "user__last" && drift.column == column).expect("the column");
    let (channel, price) = (of("channel"), of("price"));
    assert_eq!((channel.distinct_before, channel.distinct, channel.unseen), (Some(1), Some(1), Some(1.0)));
    assert!(channel.psi > Some(1.0) && channel.finding.as_ref().is_some_and(|text| text.contains("never seen before")), "{channel:?}");
    assert_eq!((price.missing_before, price.missing), (0.0, 66.0 / 199.0));
    assert!(price.finding.as_ref().is_some_and(|text| text.contains("33.2 % without a value, before 0.0 %")), "{price:?}");
    assert_eq!((of("sales").finding.as_ref(), of("items").finding.as_ref()), (None, None));
    assert!(found[0].finding.is_some() && found[0].psi >= found[1].psi, "the most moved first");
}

//! `nightmarket check`: whatever is wrong with a shop's files is found at once, at its place, in plain words, without a panic and
//! without reading a row.

use nightmarket::platform::diagnostic::{Diagnostic, Severity};
use nightmarket::workbench::{self, Checked};
use std::path::Path;
use tempfile::TempDir;

const SOURCES: &str = "\
[event_log]
location = \"events\"
kind = \"log\"
partition = \"dt\"

[event_log.columns]
event_id = { type = \"string\" }
user_id = { type = \"string\" }
item_id = { type = \"string\" }
kind = { type = \"string\" }
ts = { type = \"timestamp\" }
price = { type = \"float64\" }
";

const EVENTS: &str = "\
-- What people did.
-- grain: event_id
-- owner: data
SELECT event_id, user_id, item_id, kind AS event_type, ts AS occurred_at, price FROM raw.event_log
";

const ITEMS: &str = "\
-- Items that were seen.
-- grain: item_id
-- owner: data
SELECT item_id, MAX(price) AS price FROM raw.event_log GROUP BY item_id
";

/// A shop of one raw table, two canonical ones, and the files given.
fn shop(files: &[(&str, &str)]) -> TempDir {
    let shop = tempfile::tempdir().expect("a folder");
    let given = [("sources.toml", SOURCES), ("staging/events.sql", EVENTS), ("staging/items.sql", ITEMS)];
    for (path, text) in given.iter().chain(files) {
        let path = shop.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("written");
    }
    shop
}

async fn checked(shop: &TempDir) -> Checked {
    workbench::check(shop.path()).await.expect("the folder is there")
}

/// What is found in a shop with one feature file of a sound header.
async fn found(sql: &str) -> Vec<Diagnostic> {
    checked(&shop(&[("features/user__a.sql", &feature(sql))])).await.diagnostics
}

fn feature(sql: &str) -> String {
    format!("-- A feature.\n-- grain: user_id\n-- owner: us\n{sql}\n")
}

/// As printed, without the folder that the test happens to lie in.
fn printed(shop: &TempDir, found: &[Diagnostic]) -> String {
    let text = found.iter().map(|found| found.render(false)).collect::<Vec<_>>().join("\n\n");
    text.replace(&format!("{}/", shop.path().display()), "")
}

#[tokio::test]
async fn every_wrong_name_of_a_file_is_found_at_once_with_what_was_meant() {
    let sql = "SELECT\n    user_id,\n    SUM(pirce) AS spent_cny,\n    COUNTT(event_id) AS n,\n    MAX(ev.occurred_at) AS last_at\nFROM events\nWHERE evnt_type = 'view'\nGROUP BY user_id";
    let shop = shop(&[("features/user__a.sql", &feature(sql))]);
    let expected = "\
error[unknown-column]: there is no column pirce of events
 --> features/user__a.sql:6:9
  |
6 |     SUM(pirce) AS spent_cny,
  |         ^^^^^ unknown column
  |
help: a column of a similar name exists
  |
6 -     SUM(pirce) AS spent_cny,
6 +     SUM(price) AS spent_cny,
  |

error[unknown-function]: there is no function countt
 --> features/user__a.sql:7:5
  |
7 |     COUNTT(event_id) AS n,
  |     ^^^^^^ unknown function
  |
help: a function of a similar name exists
  |
7 -     COUNTT(event_id) AS n,
7 +     COUNT(event_id) AS n,
  |

error[unknown-table]: ev.occurred_at: nothing is named ev here
 --> features/user__a.sql:8:9
  |
8 |     MAX(ev.occurred_at) AS last_at
  |         ^^ the FROM names events

error[unknown-column]: there is no column evnt_type of events
  --> features/user__a.sql:10:7
   |
10 | WHERE evnt_type = 'view'
   |       ^^^^^^^^^ unknown column
   |
help: a column of a similar name exists
   |
10 | WHERE event_type = 'view'
   |         +";
    assert_eq!(printed(&shop, &checked(&shop).await.diagnostics), expected);
}

#[tokio::test]
async fn a_cycle_is_shown_whole_and_told_once() {
    let shop = shop(&[
        ("features/user__a.sql", &feature("SELECT user_id FROM user__b")),
        ("features/user__b.sql", &feature("SELECT user_id FROM user__c")),
        ("features/user__c.sql", &feature("SELECT user_id FROM user__a")),
        ("features/user__d.sql", &feature("SELECT user_id FROM user__c")),
    ]);
    let checked = checked(&shop).await;
    let expected = "\
error[cycle]: a cycle: user__a reads user__b reads user__c reads user__a
 --> features/user__a.sql:4:21
  |
4 | SELECT user_id FROM user__b
  |                     ^^^^^^^ the cycle starts here
  |
  = note: user__b is features/user__b.sql
  = note: user__c is features/user__c.sql
  = help: take what two tables share into a third that both read";
    assert_eq!(printed(&shop, &checked.diagnostics), expected);
    assert_eq!(checked.unplanned.iter().collect::<Vec<_>>(), ["user__d"], "who reads a broken file is not to blame");
}

#[tokio::test]
async fn a_header_that_lies_is_told_at_the_header() {
    let shop = shop(&[(
        "features/user__a.sql",
        "-- A feature.\n-- grain: user_id, itm_id\n-- owner: us\nSELECT user_id, item_id, COUNT(*) AS n_events FROM events GROUP BY user_id, item_id\n",
    )]);
    let expected = "\
error[grain]: the header's grain names itm_id, which the query does not return
 --> features/user__a.sql:2:20
  |
2 | -- grain: user_id, itm_id
  |                    ^^^^^^ no such column
  |
help: write instead
  |
2 | -- grain: user_id, item_id
  |                      +";
    assert_eq!(printed(&shop, &checked(&shop).await.diagnostics), expected);

    let narrow = found("SELECT user_id, item_id, COUNT(*) AS n_events FROM events GROUP BY user_id, item_id").await;
    assert_eq!(narrow[0].message, "the header says one row a user_id, but the query groups by user_id, item_id");
    assert_eq!((narrow[0].severity, narrow[0].line), (Severity::Warning, Some(2)));
}

/// SQL of a feature, the rule it breaks, what the message says, and what the caret is at.
const WRONG: &[(&str, &str, &str, &str)] = &[
    // Not one SELECT.
    ("SELECT user_id FORM events", "syntax", "expected the end of the query, found events", "events"),
    ("SELECT user_id FROM events WHERE (price > 1", "syntax", "expected ), found the end of the file", "("),
    ("SELECT user_id FROM events WHERE event_type = 'view", "syntax", "unterminated string literal", "'view"),
    ("SELECT user_id FROM events; SELECT user_id FROM events", "one-select", "a second statement", "SELECT"),
    ("COPY (SELECT user_id FROM events) TO 'x.csv'", "one-select", "COPY is not a query", "COPY"),
    ("CREATE TABLE t AS SELECT user_id FROM events", "one-select", "CREATE is not a query", "CREATE"),
    ("SET datafusion.execution.time_zone = '+08:00'", "one-select", "SET is not a query", "SET"),
    ("EXPLAIN SELECT user_id FROM events", "one-select", "EXPLAIN is not a query", "EXPLAIN"),
    ("SELECT user_id INTO t FROM events", "one-select", "SELECT INTO writes", "t"),
    (
        "WITH RECURSIVE n AS (SELECT user_id FROM events UNION ALL SELECT user_id FROM n) SELECT user_id FROM n",
        "recursion",
        "may never end",
        "n",
    ),
    // Tables.
    ("SELECT user_id FROM evnets", "unknown-table", "evnets is no table of this shop", "evnets"),
    ("SELECT user_id FROM 's3://bucket/x.parquet'", "unknown-table", "s3://bucket/x.parquet is no table", "s3://bucket/x.parquet"),
    ("SELECT user_id FROM '/etc/passwd'", "unknown-table", "/etc/passwd is no table", "/etc/passwd"),
    ("SELECT user_id FROM raw.event_log", "raw", "only staging may read raw tables", "raw.event_log"),
    ("SELECT user_id FROM events TABLESAMPLE (10 PERCENT)", "impure", "TABLESAMPLE is chance", "events"),
    // Columns and functions.
    ("SELECT user_id, events.pirce FROM events", "unknown-column", "there is no column pirce of events", "events.pirce"),
    (
        "SELECT user_id FROM events JOIN items ON items.item_id = events.itemid",
        "unknown-column",
        "no column itemid of events",
        "events.itemid",
    ),
    ("SELECT user_id, price FROM events JOIN items USING (item_id)", "ambiguous-column", "price could be of several tables", "price"),
    ("SELECT user_id, price AS n, item_id AS n FROM events", "same-column", "two columns are named n", "n"),
    (
        "SELECT user_id, events.item_id, items.item_id FROM events JOIN items USING (item_id)",
        "same-column",
        "two columns are named item_id",
        "item_id",
    ),
    ("SELECT user_id, MEDIANN(price) AS p FROM events GROUP BY user_id", "unknown-function", "there is no function mediann", "MEDIANN"),
    ("SELECT user_id, item_id FROM events GROUP BY user_id", "grouping", "neither grouped by nor aggregated", "item_id"),
    // Types.
    ("SELECT user_id, SUM(item_id) AS n FROM events GROUP BY user_id", "types", "there is no sum(VARCHAR)", "SUM(item_id)"),
    (
        "SELECT user_id FROM events WHERE occurred_at > 5",
        "types",
        "these types cannot be compared: TIMESTAMPTZ > BIGINT",
        "occurred_at > 5",
    ),
    ("SELECT user_id FROM events WHERE event_type AND price > 1", "types", "not a condition", "event_type AND price > 1"),
    ("SELECT user_id, CAST('x' AS BIGINT) AS n FROM events", "types", "cannot cast string 'x' to value of BIGINT", "'x'"),
    // Clock and chance.
    ("SELECT user_id FROM events WHERE occurred_at < NOW()", "impure", "now() depends on when", "NOW"),
    ("SELECT user_id FROM events WHERE occurred_at < CURRENT_TIMESTAMP", "impure", "depends on when", "CURRENT_TIMESTAMP"),
    ("SELECT user_id, CURRENT_DATE AS d FROM events", "impure", "current_date() depends on when", "CURRENT_DATE"),
    ("SELECT user_id FROM events WHERE RANDOM() < 0.5", "impure", "random() depends on when", "RANDOM"),
    ("SELECT user_id, UUID() AS u FROM events", "impure", "uuid() depends on when", "UUID"),
    ("SELECT user_id FROM events WHERE price > (SELECT MAX(price) FROM events WHERE RANDOM() > 0.5)", "impure", "random()", "RANDOM"),
    ("SELECT user_id FROM events WHERE occurred_at < $until", "parameter", "there is no parameter $until", "$until"),
    // Joins without a key.
    ("SELECT user_id FROM events, items", "cartesian", "nothing relates items to events", "items"),
    ("SELECT e.user_id FROM events AS e JOIN items AS i ON TRUE", "cartesian", "nothing relates items AS i to events AS e", "i"),
];

#[tokio::test]
async fn each_mistake_is_named_at_its_place() {
    let mut complaints = Vec::new();
    for (sql, rule, says, caret) in WRONG {
        let text = feature(sql);
        let found = found(sql).await;
        let right = |found: &Diagnostic| {
            let at = found.span().map(|span| &text[span.clone()]);
            found.rule == *rule && found.message.contains(says) && at == Some(*caret) && found.severity == Severity::Error
        };
        if !found.iter().any(right) {
            complaints.push(format!("{sql}\n{}", found.iter().map(|found| found.render(false)).collect::<Vec<_>>().join("\n")));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n\n"));
}

/// What is allowed, but not without a word.
const DOUBTFUL: &[(&str, &str, &str)] = &[
    ("SELECT e.user_id FROM events AS e CROSS JOIN items AS i", "cartesian", "every row of one meets every row of the other"),
    (
        "SELECT e.user_id FROM events AS e JOIN items AS i ON e.price < i.price",
        "cartesian",
        "no equality relates items AS i to events AS e",
    ),
    ("SELECT user_id, ARRAY_AGG(item_id) AS items FROM events GROUP BY user_id", "order", "ARRAY_AGG without ORDER BY"),
    ("SELECT user_id, FIRST_VALUE(item_id) AS item_id FROM events GROUP BY user_id", "order", "FIRST_VALUE without ORDER BY"),
    ("SELECT user_id, ROW_NUMBER() OVER (PARTITION BY user_id) AS n FROM events", "order", "ROW_NUMBER without ORDER BY"),
    ("SELECT user_id FROM events LIMIT 10", "order", "LIMIT without ORDER BY"),
    ("SELECT user_id, COUNT(*) FROM events GROUP BY user_id", "unnamed-column", "a column has no name"),
    ("SELECT * FROM events", "star", "hides what the table holds"),
    ("SELECT item_id AS user_id FROM events GROUP BY item_id, price", "grain", "one row a user_id, but the query groups by item_id, price"),
    // A per-user table is computed one bucket of users at a time.
    (
        "WITH p AS (SELECT item_id, COUNT(*) AS n FROM events GROUP BY item_id) SELECT user_id, n FROM events JOIN p USING (item_id)",
        "across-users",
        "aggregates across users",
    ),
    ("SELECT user_id, price / (SELECT AVG(price) FROM events) AS p FROM events", "across-users", "aggregates across users"),
    ("SELECT a.user_id FROM events AS a JOIN events AS b ON a.item_id = b.item_id", "across-users", "joins across users"),
    ("SELECT user_id, RANK() OVER (ORDER BY price) AS r FROM events", "across-users", "looks, in a window, across users"),
    ("SELECT DISTINCT ON (item_id) user_id FROM events ORDER BY item_id, user_id", "across-users", "aggregates across users"),
];

#[tokio::test]
async fn what_is_doubtful_is_allowed_with_a_warning() {
    let mut complaints = Vec::new();
    for (sql, rule, says) in DOUBTFUL {
        let found = found(sql).await;
        let errors = found.iter().any(|found| found.severity == Severity::Error);
        if errors || !found.iter().any(|found| found.rule == *rule && found.message.contains(says) && found.help.is_some()) {
            complaints.push(format!("{sql}\n{}", found.iter().map(|found| found.render(false)).collect::<Vec<_>>().join("\n")));
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n\n"));
}

#[tokio::test]
async fn what_is_right_is_left_alone() {
    for sql in [
        "SELECT user_id, COUNT(*) AS n FROM events WHERE occurred_at >= $as_of - INTERVAL '30 days' GROUP BY user_id",
        "SELECT user_id, ARRAY_AGG(item_id ORDER BY occurred_at, event_id) AS items FROM events GROUP BY user_id",
        // One row joined to all is no product.
        "SELECT i.item_id AS user_id FROM items AS i CROSS JOIN (SELECT MAX(price) AS most FROM items) AS m WHERE i.price < m.most",
        // Users meet themselves alone.
        "WITH a AS (SELECT user_id, COUNT(*) AS n FROM events GROUP BY user_id), b AS (SELECT user_id, MAX(price) AS p FROM events GROUP BY user_id)
         SELECT COALESCE(a.user_id, b.user_id) AS user_id, SUM(n) AS n, MAX(p) AS p FROM a FULL JOIN b ON a.user_id = b.user_id GROUP BY COALESCE(a.user_id, b.user_id)",
        "SELECT user_id, COUNT(*) AS n FROM (SELECT DISTINCT user_id, item_id FROM events) AS pairs GROUP BY user_id",
        "SELECT user_id, MAX(rank) AS n FROM (SELECT user_id, ROW_NUMBER() OVER (PARTITION BY user_id ORDER BY occurred_at, event_id) AS rank FROM events) AS r GROUP BY user_id",
        "SELECT e.user_id, MAX(i.price) AS p FROM events AS e JOIN items AS i ON i.item_id = e.item_id GROUP BY e.user_id",
        "SELECT e.user_id, COUNT(*) AS n FROM events AS e WHERE EXISTS (SELECT 1 FROM events AS o WHERE o.user_id = e.user_id AND o.price > 9) GROUP BY e.user_id",
    ] {
        let found = found(sql).await;
        assert!(found.is_empty(), "{sql}\n{}", found.iter().map(|found| found.render(false)).collect::<Vec<_>>().join("\n"));
    }
}

#[tokio::test]
async fn all_errors_of_all_files_come_at_once() {
    let shop = shop(&[
        ("features/user__a.sql", &feature("SELECT user_id, pirce FROM events WHERE RANDOM() < 0.1")),
        ("features/user__b.sql", "SELECT user_id FROM events\n"),
        ("features/user__c.sql", &feature("SELECT user_id FROM events;;SELECT 1")),
        ("features/user__d.sql", "-- D.\n-- grian: user_id\n-- owner: us\nSELECT user_id FROM events\n"),
        ("features/events.sql", &feature("SELECT user_id FROM items")),
        ("features/user__good.sql", &feature("SELECT user_id, COUNT(*) AS n FROM events GROUP BY user_id")),
        ("features/Bad Name.sql", &feature("SELECT user_id FROM events")),
        ("features/deeper/user__e.sql", &feature("SELECT user_id FROM events")),
        ("feature/user__f.sql", &feature("SELECT user_id FROM events")),
        ("staging/other.sql", "-- O.\n-- grain: event_id\n-- owner: us\n-- daily: event_lg\nSELECT event_id FROM raw.event_log\n"),
        ("segments/buyers.sql", "-- B.\n-- grain: item_id\n-- owner: us\nSELECT item_id FROM items\n"),
        ("staging/wrong.sql", "-- W.\n-- grain: event_id\n-- owner: us\nSELECT event_id FROM event_log\n"),
    ]);
    std::fs::write(shop.path().join("features/user__bytes.sql"), [0xff, 0x00]).expect("written");
    let checked = checked(&shop).await;
    let mut rules: Vec<(String, &str)> = checked
        .diagnostics
        .iter()
        .map(|found| (found.file.file_name().expect("a file").to_string_lossy().into_owned(), found.rule))
        .collect();
    rules.sort();
    let expected = [
        ("Bad Name.sql", "name"),
        ("buyers.sql", "header"),
        ("events.sql", "same-name"),
        ("other.sql", "header"),
        ("user__a.sql", "impure"),
        ("user__a.sql", "unknown-column"),
        ("user__b.sql", "header"),
        ("user__b.sql", "header"),
        ("user__bytes.sql", "file"),
        ("user__c.sql", "one-select"),
        ("user__d.sql", "header"),
        ("user__e.sql", "stray"),
        ("user__f.sql", "stray"),
        ("wrong.sql", "unknown-table"),
    ];
    let rules: Vec<(&str, &str)> = rules.iter().map(|(file, rule)| (file.as_str(), *rule)).collect();
    assert_eq!(rules, expected);
    let planned: Vec<&str> = checked.tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(planned, ["events", "items", "user__good"], "what is right plans beside what is wrong");
    let raw = checked.diagnostics.iter().find(|found| found.file.ends_with("wrong.sql")).expect("told");
    assert_eq!(raw.suggestion.as_ref().expect("a table of a similar name").replacement, "raw.event_log");
}

#[tokio::test]
async fn wrong_contracts_are_told_at_their_line() {
    let shop = shop(&[]);
    std::fs::write(shop.path().join("sources.toml"), SOURCES.replace("partition", "partiton")).expect("written");
    let checked = checked(&shop).await;
    let found = &checked.diagnostics[0];
    assert_eq!((found.rule, found.line), ("toml", Some(4)), "{found}");
    assert_eq!(found.suggestion.as_ref().expect("a key of a similar name").replacement, "partition");

    std::fs::write(shop.path().join("sources.toml"), SOURCES.replace("partition = \"dt\"\n", "")).expect("written");
    let found = &self::checked(&shop).await.diagnostics[0];
    assert_eq!((found.rule, found.line), ("sources", Some(1)), "{found}");
}

/// Texts that would exhaust the stack of whoever climbs them.
#[tokio::test]
async fn monstrous_queries_are_refused_without_a_panic() {
    let n = 10_000;
    for sql in [
        format!("SELECT user_id, {}1{} AS n FROM events", "(".repeat(n), ")".repeat(n)),
        format!("SELECT user_id FROM {}events{}", "(".repeat(n), ")".repeat(n)),
        format!("SELECT user_id, 1{} AS n FROM events", " + 1".repeat(n)),
        format!("SELECT user_id FROM events WHERE price = 1{}", " OR price = 2".repeat(n)),
        format!("SELECT user_id FROM events{}", " UNION ALL SELECT user_id FROM events".repeat(n)),
        format!("SELECT user_id, {}price FROM events", "- ".repeat(n)),
        format!("SELECT user_id, {}price{} AS n FROM events", "ABS(".repeat(n), ")".repeat(n)),
    ] {
        let found = found(&sql).await;
        assert!(found.iter().any(|found| found.severity == Severity::Error), "{}", &sql[..60]);
    }
    // What is long without being deep is fine, and what is as deep as is allowed too.
    for sql in [
        format!("SELECT user_id FROM events WHERE price IN (1{})", ", 1".repeat(n)),
        format!("SELECT user_id, 1{} AS n FROM events", " + 1".repeat(400)),
        format!("SELECT user_id FROM events{}", " UNION ALL SELECT user_id FROM events".repeat(100)),
    ] {
        let found = found(&sql).await;
        assert!(found.is_empty(), "{}: {}", &sql[..60], found[0]);
    }
}

#[test]
fn the_command_prints_carets_or_data_and_exits_with_2() {
    let shop = shop(&[
        ("features/user__a.sql", &feature("SELECT user_id, pirce FROM events")),
        ("features/user__b.sql", &feature("SELECT user_id FROM user__a")),
    ]);
    let check = |more: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nightmarket"));
        let output = command.arg("check").arg(shop.path()).args(more).output().expect("starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, err) = check(&[]);
    assert_eq!(code, Some(2), "{err}");
    assert!(out.contains("error[unknown-column]") && out.contains("^^^^^") && !out.contains('\u{1b}'), "{out}");
    assert!(
        out.contains("1 error and 0 warnings in 1 file; 2 tables plan\nnot planned, because they read a broken file: user__b"),
        "{out}"
    );
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.contains("next: correct what is printed above"), "{err}");

    let (code, out, _) = check(&["--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &json["errors"], &json["unplanned"][0]), (Some(2), &1.into(), &"user__b".into()));
    let found = &json["diagnostics"][0];
    assert_eq!(
        (&found["severity"], &found["rule"], &found["line"], &found["column"]),
        (&"error".into(), &"unknown-column".into(), &4.into(), &17.into())
    );
    assert_eq!(found["suggestion"]["replacement"], "price");

    std::fs::remove_file(shop.path().join("features/user__a.sql")).expect("removed");
    std::fs::remove_file(shop.path().join("features/user__b.sql")).expect("removed");
    let (code, out, _) = check(&[]);
    assert_eq!((code, out.as_str()), (Some(0), "2 tables: all plan\n"));
    let absent = Path::new(env!("CARGO_BIN_EXE_nightmarket"));
    let output = std::process::Command::new(absent).args(["check", "jobs/absent.toml"]).output().expect("starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stdout).contains("jobs/absent.toml"), "the job is named");
}

//! The analyst's room: every query plans, has a test beside it that passes, and can do nothing but read its tables.

use nightmarket::error::{Error, Kind};
use nightmarket::platform::catalog::{Catalog, Query};
use nightmarket::platform::diagnostic::Diagnostic;
use nightmarket::workbench;
use std::path::{Path, PathBuf};

#[tokio::test]
async fn every_query_has_a_test_that_passes() {
    let mut complaints = Vec::new();
    for shop in shops() {
        let tested = workbench::test(&shop, &[], None, false).await.expect("the folder is readable");
        let queries = sql_files(&shop);
        assert!(!queries.is_empty(), "{} holds no query", shop.display());
        let untested = queries.iter().filter(|query| !tested.iter().any(|test| test.file == query.with_extension("slt")));
        complaints.extend(untested.map(|query| format!("{}: no .slt beside it", query.display())));
        let failures = tested.iter().filter_map(|test| test.failure.as_ref().map(|failure| format!("{}: {failure}", test.file.display())));
        complaints.extend(failures);
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[tokio::test]
async fn every_query_plans_and_says_what_it_is() {
    for shop in shops().into_iter().filter(|shop| shop.join("sources.toml").exists()) {
        let checked = workbench::check(&shop).await.unwrap_or_else(|error| panic!("{error}"));
        let found: Vec<String> = checked.diagnostics.iter().map(Diagnostic::to_string).collect();
        assert!(found.is_empty(), "neither errors nor warnings in the shops that others learn from:\n{}", found.join("\n"));
        let catalog = Catalog::load(&shop).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(checked.tables.len(), catalog.queries().count(), "{}: every query is planned", shop.display());
        for Query { path, sql, .. } in &catalog.features {
            assert!(!sql.contains("SELECT *"), "{}: SELECT * past staging hides what a query returns", path.display());
        }
    }
}

#[tokio::test]
async fn what_is_not_a_pure_select_over_known_tables_is_refused() {
    let refused = [
        // Writing, in every disguise.
        ("COPY (SELECT user_id FROM events) TO 'stolen.csv'", "exactly one SELECT"),
        ("CREATE TABLE stolen AS SELECT user_id FROM events", "exactly one SELECT"),
        ("CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION 'x.parquet'", "exactly one SELECT"),
        ("INSERT INTO events SELECT user_id FROM events", "exactly one SELECT"),
        ("DROP TABLE events", "exactly one SELECT"),
        ("SET datafusion.execution.time_zone = '+08:00'", "exactly one SELECT"),
        ("SELECT user_id FROM events; DROP TABLE events", "exactly one SELECT"),
        ("SELECT user_id FROM events; SELECT user_id FROM events", "exactly one SELECT"),
        ("SELECT user_id INTO stolen FROM events", "SELECT INTO writes"),
        ("", "holds no query"),
        // Clock and chance, wherever they hide.
        ("SELECT user_id FROM events WHERE occurred_at < NOW()", "now()"),
        ("SELECT user_id FROM events WHERE occurred_at < CURRENT_TIMESTAMP", "current_timestamp()"),
        ("SELECT user_id, CURRENT_DATE AS today FROM events", "current_date()"),
        ("SELECT user_id FROM events ORDER BY RANDOM()", "random()"),
        ("SELECT user_id, UUID() AS id FROM events", "uuid()"),
        ("WITH late AS (SELECT user_id FROM events WHERE RANDOM() < 0.5) SELECT user_id FROM late", "random()"),
        ("SELECT user_id FROM events WHERE occurred_at IN (SELECT MAX(occurred_at) FROM events WHERE occurred_at < NOW())", "now()"),
        // Tables that are none of the shop's.
        ("SELECT user_id FROM 'x.parquet'", "x.parquet is no table of this shop"),
        ("SELECT user_id FROM '/tmp/x.csv'", "/tmp/x.csv is no table of this shop"),
        ("SELECT user_id FROM evnets", "did you mean events?"),
        ("SELECT user_id FROM raw.event_log", "only staging may read raw tables"),
        ("SELECT user_id FROM information_schema.tables", "information_schema.tables is no table of this shop"),
        ("SELECT user_id FROM user__bad", "a cycle"),
        // Slips.
        ("SELECT user_id FROM events WHERE occurred_at < $until", "$until"),
        ("SELECT user_id FROM events WHERE occurred_at < $1", "$1"),
        ("SELECT user_id, pirce FROM events", "pirce"),
        ("SELECT event_id FROM events", "the header's grain names user_id"),
        ("SELECT user_id FORM events", "did you mean FROM?"),
    ];
    let mut complaints = Vec::new();
    for (sql, fragment) in refused {
        match plan_feature(&format!("-- A feature.\n-- grain: user_id\n{sql}\n")).await {
            Ok(()) => complaints.push(format!("accepted: {sql}")),
            Err(error) => complaints.extend(wrong(&error, fragment).map(|wrong| format!("{sql}: {wrong}"))),
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[tokio::test]
async fn a_header_without_grain_is_refused() {
    let error = plan_feature("-- A feature.\nSELECT user_id FROM events\n").await.expect_err("no grain");
    assert_eq!(wrong(&error, "-- grain:"), None);
}

#[tokio::test]
async fn as_of_alone_is_bound() {
    plan_feature("-- A feature.\n-- grain: user_id\nSELECT user_id FROM events WHERE occurred_at < $as_of - INTERVAL '30 days'\n")
        .await
        .unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test]
async fn a_wrong_answer_is_named_and_blessing_rights_it() {
    let shop = tempfile::tempdir().expect("a folder");
    write(
        &shop.path().join("features/user__one.sql"),
        "-- One.\n-- grain: user_id\n-- owner: us\nSELECT user_id FROM events WHERE occurred_at < $as_of\n",
    );
    let test = shop.path().join("features/user__one.slt");
    let question = "# as_of: 2026-11-22T16:00:00Z\n\nstatement ok\nCREATE TABLE events (user_id VARCHAR, occurred_at TIMESTAMPTZ) AS VALUES\n    \
         ('before', '2026-11-22T15:59:59.999999Z'),\n    ('at', '2026-11-22T16:00:00Z')\n\nquery T\nSELECT user_id FROM user__one\n----\n";
    write(&test, &format!("{question}at\n"));

    let select = |name: &str| vec![name.to_owned()];
    let failure = async || workbench::test(shop.path(), &select("user__one"), None, false).await.expect("readable").remove(0).failure;
    let before = failure().await.expect("the answer is wrong");
    assert!(before.contains("user__one.slt:8") && before.contains("+   before"), "{before}");
    let slip = workbench::test(shop.path(), &select("user__on"), None, false).await.expect_err("no such table");
    assert!(slip.to_string().contains("did you mean user__one?"), "{slip}");

    let blessed = workbench::test(shop.path(), &select("user__*"), None, true).await.expect("blessed");
    assert!(blessed[0].blessed, "other answers were written");
    assert_eq!(failure().await, None);
    assert_eq!(std::fs::read_to_string(&test).expect("still there").trim_end(), format!("{question}before"));
}

/// The folders of sql/.
fn shops() -> Vec<PathBuf> {
    let mut shops: Vec<PathBuf> = entries(Path::new("sql")).into_iter().filter(|path| path.is_dir()).collect();
    shops.sort();
    assert!(!shops.is_empty(), "sql/ holds no shop");
    shops
}

fn sql_files(folder: &Path) -> Vec<PathBuf> {
    let (folders, files): (Vec<_>, Vec<_>) = entries(folder).into_iter().partition(|path| path.is_dir());
    let mut found: Vec<PathBuf> = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "sql")).collect();
    found.extend(folders.iter().flat_map(|folder| sql_files(folder)));
    found
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.expect("a readable entry").path()).collect()
}

/// Loads and plans a shop of one raw table, one canonical table and the feature file `user__bad.sql`.
async fn plan_feature(text: &str) -> Result<(), Error> {
    let shop = tempfile::tempdir().expect("a folder");
    let sources = "[event_log]\nlocation = \"events\"\nkind = \"log\"\npartition = \"dt\"\n\n[event_log.columns]\nuser_id = { type = \"string\" }\n\
         occurred_at = { type = \"timestamp\" }\nprice = { type = \"float64\" }\nevent_id = { type = \"string\" }\n";
    write(&shop.path().join("sources.toml"), sources);
    write(&shop.path().join("staging/events.sql"), "-- Events.\n-- grain: event_id\nSELECT * FROM raw.event_log\n");
    write(&shop.path().join("features/user__bad.sql"), text);
    Catalog::load(shop.path())?;
    workbench::check(shop.path()).await?.sound().map(drop)
}

/// What is wrong with a refusal: it must be the analyst's (exit 2), name the file and say what the matter is.
fn wrong(error: &Error, fragment: &str) -> Option<String> {
    let text = error.to_string();
    let right = error.kind == Kind::Usage && text.contains("user__bad.sql") && text.contains(fragment);
    (!right).then(|| format!("{:?}: {text}", error.kind))
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    std::fs::write(path, text).expect("written");
}

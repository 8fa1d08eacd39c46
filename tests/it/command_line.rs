//! The command line: its flags and their variables, and how a command ends when what it was given is wrong.

use crate::shop::{DATE, NEXT, SECRET, Shop};
use std::path::Path;
use std::process::Command;

/// Code, stdout and stderr of a command.
fn nightmarket(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
    let command = command.args(arguments).env("NIGHTMARKET_PSEUDONYM_KEY", SECRET).env("NIGHTMARKET_LOG", "error");
    let output = command.output().expect("starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// A path as an argument.
fn at(path: &Path) -> String {
    path.display().to_string()
}

/// The flags without a variable, each with its command.
fn without_variable(command: &clap::Command, path: &str, found: &mut Vec<String>) {
    for flag in command.get_arguments().filter(|flag| flag.get_long().is_some_and(|long| !["help", "version"].contains(&long))) {
        let variable = flag.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if !variable.starts_with("NIGHTMARKET_") {
            found.push(format!("{path} --{} {variable}", flag.get_long().unwrap_or_default()));
        }
    }
    for below in command.get_subcommands() {
        without_variable(below, &format!("{path} {}", below.get_name()), found);
    }
}

#[test]
fn every_flag_has_a_variable() {
    let mut command = nightmarket::cli::command();
    command.build();
    let mut found = Vec::new();
    without_variable(&command, "nightmarket", &mut found);
    assert!(found.is_empty(), "flags without a NIGHTMARKET_* variable:\n{}", found.join("\n"));
}

#[test]
fn a_published_table_tells_its_arms_so_that_a_day_is_served_without_a_job() {
    let shop = Shop::served();
    let (raw, table) = (at(&shop.root.join("raw")), at(&shop.root.join("out").join(&shop.history()[0].tables)));
    let impressions = shop.raw("ad_impressions");
    std::fs::read_dir(shop.root.join("raw")).expect("tables").for_each(|table| {
        let _ = std::fs::remove_dir_all(table.expect("a table").path().join(format!("dt={NEXT}")));
    });
    let date = NEXT.to_string();
    let serve = ["generate", "--continue", &raw, "--date", &date, "--policy", &table];
    let (code, _, error) = nightmarket(&serve);
    assert_eq!(code, Some(0), "{error}");
    let bytes = || std::fs::read(impressions.join(format!("dt={NEXT}/part-0.parquet"))).expect("the day is logged");
    let without_job = bytes();
    // The same day once more: other arms or another key would be refused.
    let (code, _, error) = nightmarket(&[&serve[..], &["--job", &at(&shop.spec_file())]].concat());
    assert_eq!(code, Some(0), "{error}");
    assert_eq!(bytes(), without_job);

    let mut command = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
    let stranger = command.args(serve).env("NIGHTMARKET_PSEUDONYM_KEY", "some other key of the tests").output().expect("starts");
    let line = String::from_utf8_lossy(&stranger.stderr).into_owned();
    assert_eq!(stranger.status.code(), Some(2), "{line}");
    assert!(line.contains("pseudonyms come from key"), "{line}");
}

/// One line of stderr, and the code.
fn refused(arguments: &[&str], code: i32) -> String {
    let (found, _, line) = nightmarket(arguments);
    assert_eq!((found, line.lines().count()), (Some(code), 1), "{arguments:?}: {line}");
    line
}

/// A job with some text of its spec replaced.
fn job_with(shop: &Shop, old: &str, new: &str) -> String {
    let text = std::fs::read_to_string(shop.spec_file()).expect("a spec");
    assert!(text.contains(old), "{old} is in no line of {text}");
    let path = shop.root.join("changed.toml");
    std::fs::write(&path, text.replace(old, new)).expect("written");
    at(&path)
}

/// A shop whose SQL is a copy with one file of its own.
fn with_query(shop: &mut Shop, path: &str, sql: &str) {
    let folder = shop.root.join("sql");
    crate::shop::copy(Path::new("sql/shop"), &folder);
    let _ = std::fs::remove_file(folder.join(path));
    std::fs::write(folder.join(path), sql).expect("written");
    shop.spec.sql = at(&folder);
}

#[test]
fn a_panic_ends_in_one_line_that_says_what_was_running() {
    // tokio panics over this; nothing of ours is known to.
    let run = |backtrace: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
        let command = command.args(["check", "jobs/shop.toml"]).env("TOKIO_WORKER_THREADS", "0").env("RUST_BACKTRACE", backtrace);
        let output = command.output().expect("starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, line) = run("0");
    assert_eq!((code, line.lines().count()), (Some(50), 1), "{line}");
    assert!(
        line.contains("a bug in nightmarket while running `check jobs/shop.toml`") && line.contains("next: report this line"),
        "{line}"
    );
    let (code, lines) = run("1");
    assert_eq!(code, Some(50), "{lines}");
    assert!(
        lines.contains("stack backtrace") && lines.trim_end().lines().last().is_some_and(|last| last.contains("a bug in nightmarket")),
        "{lines}"
    );
}

#[test]
fn a_wrong_store_is_a_usage_error() {
    let shop = Shop::small();
    let file = shop.root.join("file");
    std::fs::write(&file, "no folder").expect("written");
    let (spec, date) = (at(&shop.spec_file()), DATE.to_string());
    let (absent, no_folder, below_a_file) = (at(&shop.root.join("no/such/folder")), at(&file), at(&file.join("out")));
    for (flag, store) in [
        ("--raw", absent.as_str()),
        ("--raw", no_folder.as_str()),
        ("--out", below_a_file.as_str()),
        ("--out", "nowhere://bucket/out"),
        ("--out", "s3://"),
        ("--out", "http://[/out"),
    ] {
        let line = refused(&["run", &spec, "--date", &date, flag, store], 2);
        assert!(line.contains(store), "{flag} {store}: {line}");
    }
    assert!(!shop.root.join("no").exists(), "a place to read from is not made");
}

#[test]
fn a_slip_in_a_spec_is_one_line_with_its_place() {
    let shop = Shop::small();
    let spec = job_with(&shop, "history_days", "histroy_days");
    let line = refused(&["run", &spec, "--date", "2026-11-21"], 2);
    let number =
        std::fs::read_to_string(&spec).expect("a spec").lines().position(|line| line.starts_with("histroy_days")).expect("a line") + 1;
    assert!(line.contains(&format!("{spec}:{number}:1: unknown key histroy_days; did you mean history_days?")), "{line}");
    let spec = job_with(&shop, "seed = ", "seed = \"one\" #");
    let line = refused(&["run", &spec, "--date", "2026-11-21"], 2);
    assert!(line.contains(&format!("{spec}:")) && line.contains("string \"one\""), "{line}");
}

#[test]
fn broken_sql_is_found_before_anything_is_read() {
    let mut shop = Shop::small();
    with_query(
        &mut shop,
        "features/user__wrong.sql",
        "-- W.\n-- grain: user_id\n-- owner: us\nSELECT user_id, SUM(pirce) AS spent FROM events GROUP BY user_id\n",
    );
    let line = refused(&["run", &at(&shop.spec_file()), "--date", "2026-11-21"], 2);
    assert!(line.contains("features/user__wrong.sql:4:21: there is no column pirce") && line.contains("did you mean price?"), "{line}");
    assert!(!shop.root.join("out/staging").exists(), "nothing is staged");
}

#[test]
fn sql_that_fails_on_its_rows_names_its_file() {
    for (path, sql, complaint) in [
        (
            "features/user__wrong.sql",
            "SELECT user_id, SUM(1 / (CAST(quantity AS BIGINT) * 0)) AS n FROM events WHERE user_id IS NOT NULL GROUP BY user_id",
            "ivide by zero",
        ),
        (
            "features/user__wrong.sql",
            "SELECT user_id, SUM(CAST(event_type AS BIGINT)) AS n FROM events WHERE user_id IS NOT NULL GROUP BY user_id",
            "Cannot cast string",
        ),
        ("checks/wrong.sql", "SELECT user_id FROM events WHERE CAST(event_type AS BIGINT) > 0", "Cannot cast string"),
    ] {
        let mut shop = Shop::small();
        let sql = format!("-- W.\n-- grain: user_id\n-- owner: us\n{sql}\n");
        with_query(&mut shop, path, &sql);
        let line = refused(&["run", &at(&shop.spec_file()), "--date", "2026-11-21", "--until", "features"], 30);
        assert!(line.contains(path) && line.contains(complaint) && line.contains("next: guard the query"), "{path}: {line}");
    }
}

#[test]
fn a_feature_table_has_no_rows_of_nobody() {
    let mut shop = Shop::small();
    with_query(
        &mut shop,
        "features/item__wrong.sql",
        "-- W.\n-- grain: item_id\n-- owner: us\nSELECT item_id, COUNT(*) AS n FROM events GROUP BY item_id\n",
    );
    let line = refused(&["run", &at(&shop.spec_file()), "--date", "2026-11-21", "--until", "features"], 2);
    assert!(
        line.contains("item__wrong.sql") && line.contains("item_id of the header's grain is NULL") && line.contains("IS NOT NULL"),
        "{line}"
    );
}

#[test]
fn a_run_tells_of_the_stages_that_ran_and_a_backfill_is_one_document() {
    let shop = Shop::served();
    let (spec, date) = (at(&shop.spec_file()), DATE.to_string());
    let (code, out, error) = nightmarket(&["run", &spec, "--date", &date, "--until", "features"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.starts_with("shop 2026-11-21: stopped after features\n") && out.lines().count() == 3, "{out}");
    assert!(out.contains(" reused") && !out.contains("computed"), "everything stands: {out}");
    let (code, out, error) = nightmarket(&["backfill", &spec, "--start", &date, "--end", &date, "--until", "features"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.starts_with("shop 2026-11-21: stopped after features\n") && out.contains(" reused"), "{out}");
    let (_, help, _) = nightmarket(&["run", "--help"]);
    for stage in ["ingest", "features", "dataset", "model", "gate", "segments", "targeting", "publish", "report"] {
        assert!(help.contains(stage), "{stage} is in no line of {help}");
    }
    let (code, out, error) = nightmarket(&["backfill", &spec, "--start", &date, "--end", &NEXT.to_string(), "--output", "json"]);
    assert_eq!(code, Some(0), "{error}");
    let nights: serde_json::Value = serde_json::from_str(&out).expect("one JSON document");
    let dates: Vec<&str> = nights.as_array().expect("nights").iter().filter_map(|night| night["run"]["date"].as_str()).collect();
    assert_eq!(dates, [DATE.to_string(), NEXT.to_string()]);
}

#[test]
fn an_unknown_user_is_said_to_be_in_no_segment() {
    let shop = Shop::served();
    let (code, out, error) = nightmarket(&["lookup", &at(&shop.spec_file()), "--user", "nobody of that name"]);
    assert_eq!(code, Some(0), "{error}");
    assert!(out.contains("This user is in no segment"), "{out}");
    assert!(!out.contains("nobody of that name") && !error.contains("nobody of that name"), "an id is repeated: {out}{error}");
}

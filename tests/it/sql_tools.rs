//! The analyst's tools on a small shop of CSV files with known rows: list, show, preview, test, diff, graph, new, shell.

use crate::shop::{SECRET, block_on, key};
use crate::small::{REMOVALS, Small};
use chrono::NaiveDate;
use nightmarket::features;
use nightmarket::ingest;
use nightmarket::platform::run::Run;
use nightmarket::platform::storage::Store;
use nightmarket::spec::Spec;
use nightmarket::workbench::{self, Answer, Checked, Desk, Shell, select};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

const DATE: NaiveDate = NaiveDate::from_ymd_opt(2026, 11, 22).expect("a date");

const SOURCES: &str = "\
[event_log]
location = \"events\"
kind = \"log\"
partition = \"dt\"
required = true

[event_log.columns]
event_id = { type = \"string\" }
uid = { type = \"string\", id = \"user\" }
item = { type = \"string\" }
kind = { type = \"string\" }
ts = { type = \"timestamp\" }
price = { type = \"float64\" }
";

const EVENTS: &str = "\
-- What people did.
-- grain: event_id
-- owner: data
-- tags: core
-- daily: event_log
SELECT event_id, uid AS user_id, item AS item_id, kind AS event_type, ts AS occurred_at, price FROM raw.event_log
";

const SPENT: &str = "\
-- What a user spent.
-- grain: user_id
-- owner: growth
-- tags: growth, money
SELECT
    user_id,
    SUM(price) AS spent_30d,                                       -- CNY
    COUNT(*) FILTER (WHERE event_type = 'view') AS n_views_30d,    -- count
    ARRAY_AGG(item_id ORDER BY occurred_at, event_id) AS items     -- most recent last
FROM events
WHERE occurred_at >= $as_of - INTERVAL '30 days'
GROUP BY user_id
";

const SPENT_TEST: &str = "\
# as_of: 2026-11-23T00:00:00Z

statement ok
CREATE TABLE events (event_id VARCHAR, user_id VARCHAR, item_id VARCHAR, event_type VARCHAR, occurred_at TIMESTAMPTZ, price DOUBLE) AS VALUES
    ('e1', 'u1', 'i1', 'view', '2026-11-20T00:00:00Z', 1.5);

query
SELECT * FROM user__spent
----
u1 1.5 1 [i1]
";

const LEVEL: &str = "\
-- How much a user is worth.
-- grain: user_id
-- owner: growth
SELECT user_id, CASE WHEN spent_30d > 100 THEN 'gold' ELSE 'base' END AS level  -- gold, base
FROM user__spent
";

/// A shop's folder with logs of three days, an output, and a job.
impl Small {
    fn of_events() -> Self {
        let small = Self::empty();
        small.write("sql/sources.toml", &format!("{SOURCES}{REMOVALS}"));
        small.write("sql/staging/events.sql", EVENTS);
        small.write("sql/features/user__spent.sql", SPENT);
        small.write("sql/features/user__spent.slt", SPENT_TEST);
        small.write("sql/features/user__level.sql", LEVEL);
        for day in 20..=22 {
            let mut rows = "event_id,uid,item,kind,ts,price\n".to_owned();
            for n in 0..40 {
                let (user, item) = (n % 20, n % 7);
                rows += &format!("e{day}{n:02},u{user:02},i{item},view,2026-11-{day}T{:02}:00:00Z,{}\n", n % 24, user * 2);
            }
            small.write(&format!("raw/events/dt=2026-11-{day}/a.csv"), &rows);
            small.removed(day, "u19");
        }
        small.job("UTC", 0);
        small
    }

    fn checked(&self) -> Checked {
        self.check().sound().unwrap_or_else(|error| panic!("{error}"))
    }

    fn desk(&self) -> Desk {
        let (run, spec) = self.run(DATE);
        Desk { run, ingest: spec.ingest, key: key() }
    }

    /// The night up to its features, as far as these tools look.
    fn night(&self) {
        let (run, spec) = self.run(DATE);
        block_on(async {
            let staged = ingest::run(&run, &spec.ingest, &key()).await.expect("staged");
            features::run(&run, &staged, &BTreeSet::from([DATE])).await.expect("computed");
        });
    }

    /// The program itself: exit status, stdout, stderr.
    fn nightmarket(&self, args: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
        command.args(args).env("NIGHTMARKET_PSEUDONYM_KEY", SECRET).env("NIGHTMARKET_JOB", self.path("job.toml"));
        let output = command.output().expect("starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    fn files(&self, folder: &str) -> Vec<PathBuf> {
        let mut open = vec![self.path(folder)];
        let mut found = Vec::new();
        while let Some(folder) = open.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.path().is_dir() { open.push(entry.path()) } else { found.push(entry.path()) }
            }
        }
        found.sort();
        found
    }
}

#[test]
fn a_list_tells_columns_with_their_comments_and_where_they_come_from_and_go() {
    let small = Small::of_events();
    let checked = small.checked();
    let spent = checked.table("user__spent").expect("planned");
    assert_eq!((spent.owner.as_deref(), spent.tested, spent.tags.len()), (Some("growth"), true, 2));
    assert_eq!(spent.read_by, BTreeSet::from(["the night's dataset".to_owned(), "user__level".to_owned()]));
    let column = |name: &str| spent.columns.iter().find(|column| column.name == name).expect(name);
    assert_eq!((column("spent_30d").kind.as_str(), column("spent_30d").comment.as_deref()), ("DOUBLE", Some("CNY")));
    assert_eq!(column("n_views_30d").kind, "DOUBLE", "features hold every number as DOUBLE");
    assert_eq!((column("items").kind.as_str(), column("items").comment.as_deref()), ("VARCHAR[]", Some("most recent last")));
    assert_eq!(column("user_id").comment, None);
    let from = |name: &str| column(name).from.iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(from("spent_30d"), ["events.price"]);
    assert_eq!(from("n_views_30d"), ["events.event_type"]);
    assert_eq!(from("items"), ["events.event_id", "events.item_id", "events.occurred_at"]);
    assert_eq!(spent.rows_by.iter().collect::<Vec<_>>(), ["events.occurred_at", "events.user_id"]);
    assert_eq!(column("spent_30d").used_by, BTreeSet::from(["user__level.level".to_owned()]));

    let (code, out, _) = small.nightmarket(&["sql", "list", "tag:money+"]);
    assert_eq!(code, Some(0));
    assert!(out.starts_with("user__spent  one row a user_id  owner: growth  tags: growth, money\n"), "{out}");
    assert!(out.contains("  spent_30d    DOUBLE     CNY\n") && out.contains("user__level") && !out.contains("suppressions"), "{out}");
    let (_, json, _) = small.nightmarket(&["sql", "list", "user__level", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!((&json[0]["name"], &json[0]["columns"][1]["from"][0]), (&"user__level".into(), &"user__spent.spent_30d".into()));
}

#[test]
fn show_prints_the_query_and_its_plan() {
    let small = Small::of_events();
    let (code, out, err) = small.nightmarket(&["sql", "show", &small.path("sql/features/user__spent.sql").display().to_string()]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("<- events.price") && out.ends_with("GROUP BY user_id\n"), "{out}");
    let (_, out, _) = small.nightmarket(&["sql", "show", "user__spent", "--plan"]);
    assert!(out.starts_with("logical plan\n") && out.contains("TableScan: events"), "{out}");
    let (_, out, _) = small.nightmarket(&["sql", "show", "user__spent", "--plan", "--as-of", "2026-11-22"]);
    assert!(out.contains("physical plan\n") && out.contains("DataSourceExec"), "{out}");
    let (code, _, err) = small.nightmarket(&["sql", "show", "user__spnt"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("did you mean user__spent?"), "{err}");
}

#[test]
fn a_preview_counts_profiles_and_leaves_nothing_of_the_features_behind() {
    let small = Small::of_events();
    let desk = small.desk();
    let query = select::one(&desk.run.catalog, "features/user__spent.sql").expect("there").clone();
    let preview = block_on(workbench::preview(&desk, &query, 3)).expect("computed");
    // 20 users, of whom one is suppressed; each 6 events.
    assert_eq!((preview.rows, preview.rows_of_no_key, preview.head.num_rows()), (19, 0, 3));
    let profile = |name: &str| preview.profile.iter().find(|profile| profile.column == name).expect(name);
    let spent = profile("spent_30d");
    assert_eq!((spent.nulls, spent.distinct, spent.min.as_deref(), spent.max.as_deref()), (0, 19, Some("0"), Some("216")));
    assert_eq!(spent.quantiles, Some([48.0, 108.0, 156.0]));
    assert_eq!((profile("n_views_30d").distinct, profile("items").quantiles), (1, Some([6.0, 6.0, 6.0])));
    assert!(!small.files("out").iter().any(|path| path.to_string_lossy().contains("features")), "a preview is no run");

    // As of the day before, the last day is not there.
    let (code, out, err) = small.nightmarket(&["sql", "preview", "user__spent", "--as-of", "2026-11-21", "--output", "json"]);
    assert_eq!(code, Some(0), "{err}");
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&json["rows"], &json["date"], &json["head"][0]["n_views_30d"]), (&19.into(), &"2026-11-21".into(), &4.0.into()));
    assert_eq!(json["profile"][1]["max"], "144");

    // Without a date it is the last day of the logs.
    let (_, out, _) = small.nightmarket(&["sql", "preview", "user__spent", "--limit", "1"]);
    assert!(out.starts_with("user__spent as of the end of 2026-11-22: 19 rows, one a user_id\n"), "{out}");
    assert!(out.contains("… 18 rows more\n") && out.contains("VARCHAR[] length"), "{out}");
}

#[test]
fn a_key_that_is_none_is_told_by_preview_and_by_test() {
    let small = Small::of_events();
    small.write("sql/features/user__spent.sql", &SPENT.replace("GROUP BY user_id", "GROUP BY user_id, item_id"));
    let desk = small.desk();
    let query = select::one(&desk.run.catalog, "user__spent").expect("there").clone();
    let preview = block_on(workbench::preview(&desk, &query, 3)).expect("computed");
    assert!(preview.rows_of_no_key > 0 && preview.text().expect("text").contains("NOT one a user_id"));

    let twice = SPENT_TEST.replace("1.5);", "1.5),\n    ('e2', 'u1', 'i2', 'view', '2026-11-20T00:00:00Z', 2.5);");
    small.write("sql/features/user__spent.slt", &twice);
    let tested = block_on(workbench::test(&small.path("sql"), &[], None, false)).expect("readable");
    let failure = tested[0].failure.as_ref().expect("the key is none");
    assert!(failure.contains("says one row a user_id, but 2 rows of the test share theirs"), "{failure}");
}

#[test]
fn a_broken_file_is_shown_with_its_caret_by_every_tool_and_breaks_no_other() {
    let small = Small::of_events();
    small.write("sql/features/user__level.sql", &LEVEL.replace("spent_30d >", "spnt_30d >"));
    for args in [["sql", "preview", "user__level"], ["sql", "show", "user__level"], ["sql", "diff", "user__level"]] {
        let (code, out, err) = small.nightmarket(&args);
        assert_eq!(code, Some(2), "{err}");
        assert!(out.contains("error[unknown-column]") && out.contains("^^^^^^^^"), "{args:?}: {out}");
    }
    let (code, out, err) = small.nightmarket(&["sql", "preview", "user__spent"]);
    assert_eq!((code, out.contains("19 rows")), (Some(0), true), "{err}");
}

#[test]
fn what_changed_since_the_last_run_is_modified() {
    let small = Small::of_events();
    let modified = || block_on(workbench::last_run::modified(&small.desk().run.output, &small.checked().catalog)).expect("read");
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(modified(), names(&["events", "suppressions", "user__level", "user__spent"]), "before the first run all is new");
    small.night();
    assert_eq!(modified(), names(&[]));

    small.write("sql/features/user__spent.sql", &SPENT.replace("'30 days'", "'9 days'"));
    small.write("sql/staging/events.sql", &EVENTS.replace("kind AS", "UPPER(kind) AS"));
    assert_eq!(modified(), names(&["events", "user__spent"]));
    // Looking at the changed files is no run of them.
    let (code, out, err) = small.nightmarket(&["sql", "preview", "user__spent"]);
    assert_eq!((code, out.contains("19 rows")), (Some(0), true), "{err}");
    assert_eq!(modified(), names(&["events", "user__spent"]));

    let (_, out, _) = small.nightmarket(&["sql", "list", "modified", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(
        json.as_array().expect("a list").iter().map(|table| table["name"].as_str().expect("a name")).collect::<Vec<_>>(),
        ["events", "user__spent"]
    );
    let (code, out, err) = small.nightmarket(&["sql", "test", "modified"]);
    assert_eq!((code, out.as_str()), (Some(0), "1 file, 0 failed\n"), "{err}");
}

#[test]
fn a_diff_against_the_last_run_counts_rows_and_weighs_columns() {
    let small = Small::of_events();
    small.night();
    let diff = || {
        let desk = small.desk();
        let query = select::one(&desk.run.catalog, "user__spent").expect("there").clone();
        block_on(workbench::diff::against_run(&desk, &query)).expect("compared")
    };
    let same = diff();
    assert_eq!((same.rows_before, same.rows_after, same.added, same.removed, same.changed), (19, 19, 0, 0, 0));
    assert!(same.columns.iter().all(|column| column.psi.is_none_or(|psi| psi == 0.0) && column.before == column.after), "{same:?}");

    // u00 spends nothing and goes; the prices of u10 and up double; a column goes and one comes.
    let changed = SPENT
        .replace("SUM(price) AS", "SUM(CASE WHEN price >= 20 THEN 2 * price ELSE price END) AS")
        .replace("COUNT(*) FILTER (WHERE event_type = 'view') AS n_views_30d", "MAX(price) AS most_30d")
        .replace("WHERE ", "WHERE price > 0 AND ");
    small.write("sql/features/user__spent.sql", &changed);
    small.write("sql/features/user__level.sql", &LEVEL.replace("gold'", "silver'"));
    let diff = diff();
    assert_eq!((diff.rows_before, diff.rows_after, diff.added, diff.removed, diff.changed), (19, 18, 0, 1, 9));
    let column = |name: &str| diff.columns.iter().find(|column| column.column == name).expect(name);
    assert_eq!(column("spent_30d").changed, 9);
    assert!(column("spent_30d").psi.expect("numbers") > 0.25 && column("items").psi == Some(0.0), "{diff:?}");
    assert!(column("n_views_30d").after.is_none() && column("most_30d").before.is_none());
    let text = diff.text();
    assert!(text.lines().count() < 20, "one screen: {text}");
    assert!(text.contains("rows  19 -> 18   added 0   removed 1   changed 9") && text.contains("moved") && text.contains("gone"), "{text}");
    assert!(text.contains("removed ") && text.contains("spent_30d 156 -> 312"), "{text}");

    let (code, _, err) = small.nightmarket(&["sql", "diff", "user__spent", "--against", "run", "--as-of", "2026-11-21"]);
    assert_eq!(code, Some(2));
    assert!(err.contains("no run has left a snapshot") && err.contains("--as-of 2026-11-22"), "{err}");
}

#[test]
fn a_diff_against_a_revision_shows_what_the_change_does() {
    let small = Small::of_events();
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.arg("-C").arg(small.folder.path()).args(["-c", "user.name=a", "-c", "user.email=a@example.com"]).args(args);
        assert!(git.output().expect("git starts").status.success(), "{args:?}");
    };
    git(&["init", "-q"]);
    git(&["add", "sql"]);
    git(&["commit", "-q", "-m", "first"]);
    small.write("sql/features/user__spent.sql", &SPENT.replace("'30 days'", "'2 days'"));
    let (code, out, err) = small.nightmarket(&["sql", "diff", "user__spent"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("user__spent as of the end of 2026-11-22, against HEAD of ") && out.contains("changed 19"), "{out}");
    let (_, json, _) = small.nightmarket(&["sql", "diff", "user__spent", "--against", "HEAD", "--output", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(
        (&json["changed"], &json["columns"][2]["column"], &json["columns"][2]["changed"]),
        (&19.into(), &"n_views_30d".into(), &19.into())
    );

    // A canonical table is staged anew for it, aside.
    small.write("sql/staging/events.sql", &EVENTS.replace("kind AS", "UPPER(kind) AS"));
    let (code, out, err) = small.nightmarket(&["sql", "diff", "events"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("added 0   removed 0   changed 114") && out.contains("event_type view -> VIEW"), "{out}");

    for (revision, why) in [("nowhere", "nowhere"), ("--output=/tmp/x", "no revision")] {
        let (code, _, err) = small.nightmarket(&["sql", "diff", "user__spent", &format!("--against={revision}")]);
        assert_eq!(code, Some(2), "{err}");
        assert!(err.contains(why), "{err}");
    }
}

#[test]
fn the_graph_has_every_edge_in_every_form() {
    let small = Small::of_events();
    let checked = small.checked();
    let graph = |selectors: &[&str]| {
        let selectors: Vec<String> = selectors.iter().map(|selector| (*selector).to_owned()).collect();
        workbench::graph(&checked, &select::select(&checked.catalog, &selectors, None).expect("chosen"))
    };
    let whole = graph(&[]);
    let edges: Vec<String> = whole.edges.iter().map(|(from, to)| format!("{from} {to}")).collect();
    assert_eq!(edges, ["events user__spent", "raw.event_log events", "raw.removals suppressions", "user__spent user__level"]);
    for (from, to) in
        [("raw.event_log.uid", "events.user_id"), ("events.price", "user__spent.spent_30d"), ("user__spent.spent_30d", "user__level.level")]
    {
        assert!(whole.column_edges.contains(&(from.to_owned(), to.to_owned())), "{from} -> {to}");
    }
    let part = graph(&["+user__spent"]);
    assert_eq!(part.tables.iter().map(|table| table.name.as_str()).collect::<Vec<_>>(), ["raw.event_log", "events", "user__spent"]);

    assert!(part.text(false).contains("user__spent    features  events         -"), "{}", part.text(false));
    assert!(part.text(true).contains("  spent_30d    <- events.price\n"), "{}", part.text(true));
    let dot = part.dot(true);
    assert!(
        dot.contains(r#""events":"price" -> "user__spent":"spent_30d";"#) && dot.matches('{').count() == dot.matches('}').count(),
        "{dot}"
    );
    for columns in [false, true] {
        let svg = whole.svg(columns);
        for name in ["raw.event_log", "events", "user__spent", "user__level"] {
            assert!(svg.contains(&format!(">{name}</text>")), "{name}");
        }
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "every place is a number");
        assert!(svg.matches("<path").count() >= 4 && svg.ends_with("</svg>"));
        assert_eq!(boxes_that_overlap(&svg), 0);
    }
    let nothing = graph(&["user__level"]);
    assert_eq!((nothing.tables.len(), nothing.edges.len()), (1, 0));
    assert!(nothing.svg(true).contains("user__level"));
}

/// Pairs of drawn boxes that share a point.
fn boxes_that_overlap(svg: &str) -> usize {
    let number = |line: &str, name: &str| -> f64 {
        line.split(&format!(" {name}=\"")).nth(1).expect(name).split('"').next().expect("a value").parse().expect("a number")
    };
    let boxes: Vec<[f64; 4]> = svg
        .lines()
        .filter(|line| line.contains("class=\"box\""))
        .map(|line| {
            [number(line, "x"), number(line, "y"), number(line, "x") + number(line, "width"), number(line, "y") + number(line, "height")]
        })
        .collect();
    let overlap = |a: &[f64; 4], b: &[f64; 4]| a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
    (0..boxes.len()).flat_map(|i| (i + 1..boxes.len()).map(move |j| (i, j))).filter(|(i, j)| overlap(&boxes[*i], &boxes[*j])).count()
}

#[test]
fn a_new_feature_plans_and_passes_its_test_at_once() {
    let small = Small::of_events();
    for name in ["user__carts", "item__views", "user_item__affinity"] {
        let written = workbench::new(&small.path("sql"), &small.checked(), name).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(written.query.ends_with(format!("features/{name}.sql")) && written.test.is_file());
    }
    let checked = small.checked();
    assert!(checked.diagnostics.is_empty(), "{}", checked.diagnostics[0]);
    assert_eq!(checked.table("user_item__affinity").expect("planned").grain, ["user_id", "item_id"]);
    let tested = block_on(workbench::test(&small.path("sql"), &["tag:new".to_owned()], None, false)).expect("readable");
    assert_eq!((tested.len(), tested.iter().filter_map(|test| test.failure.as_ref()).next()), (3, None));

    for (name, why) in [
        ("user__carts", "exists"),
        ("carts", "no name of a feature table"),
        ("User__x", "no name"),
        ("user__../x", "no name"),
        ("ad__x", "no canonical table has ad_id"),
    ] {
        let error = workbench::new(&small.path("sql"), &checked, name).expect_err(name);
        assert!(error.to_string().contains(why), "{name}: {error}");
    }
}

#[test]
fn the_shell_answers_over_the_catalog_as_of_the_date() {
    let small = Small::of_events();
    let mut shell = Shell::new(small.desk(), small.checked()).expect("opened");
    let mut ask = |question: &str| block_on(shell.answer(question));
    let Ok(Answer::Rows(rows)) = ask("SELECT level, COUNT(*) AS n FROM user__level GROUP BY level ORDER BY level;") else { panic!("rows") };
    assert_eq!(workbench::text::cells(&rows).expect("cells"), [["base", "9"], ["gold", "10"]]);
    let Ok(Answer::Rows(rows)) = ask("SELECT COUNT(*) AS n, MAX(occurred_at) < $as_of AS before FROM events") else { panic!("rows") };
    assert_eq!(workbench::text::cells(&rows).expect("cells"), [["114", "true"]]);
    assert!(matches!(ask("\\as_of 2026-11-20"), Ok(Answer::Text(_))));
    let Ok(Answer::Rows(rows)) = ask("SELECT COUNT(*) AS n FROM events") else { panic!("rows") };
    assert_eq!(workbench::text::cells(&rows).expect("cells"), [["38"]]);
    let Ok(Answer::Text(text)) = ask("\\d user__spent") else { panic!("columns") };
    assert!(text.contains("spent_30d    DOUBLE     CNY"), "{text}");
    for (question, rule) in [
        ("SELECT pirce FROM events", "unknown-column"),
        ("SELECT 1 FROM raw.event_log", "unknown-table"),
        ("SELECT 1 FROM '/etc/passwd'", "unknown-table"),
        ("SELECT NOW()", "impure"),
        ("DROP TABLE events", "one-select"),
        ("SELECT (1", "syntax"),
    ] {
        let Ok(Answer::Wrong(found)) = ask(question) else { panic!("{question} is wrong") };
        assert_eq!(found[0].rule, rule, "{question}");
    }
    assert!(ask("\\nonsense").is_err() && matches!(ask("\\q"), Ok(Answer::End)));

    let (code, out, err) = small.nightmarket(&["sql", "shell", "-c", "SELECT event_type, COUNT(*) AS n FROM events GROUP BY event_type"]);
    assert_eq!((code, out.as_str()), (Some(0), "event_type    n\nview        114\n1 row\n"), "{err}");
    let (code, out, _) = small.nightmarket(&["sql", "shell", "-c", "SELECT pirce FROM events"]);
    assert_eq!(code, Some(2));
    assert!(out.contains("--> question:1:8"), "{out}");
}

/// The guide's own feature: each block of SQL and each test in `sql/README.md` does what the text says.
#[test]
fn the_guide_keeps_its_word() {
    let guide = std::fs::read_to_string("sql/README.md").expect("the guide");
    let blocks = fenced(&guide);
    let sql: Vec<&str> = blocks.iter().filter(|(kind, _)| *kind == "sql").map(|(_, text)| *text).collect();
    let whole: Vec<&&str> = sql.iter().filter(|text| text.contains("-- grain:") && !text.contains('…')).collect();
    assert!(whole.len() >= 4, "the guide shows whole files");
    let shop = tempfile::tempdir().expect("a folder");
    crate::shop::copy(Path::new("sql/shop"), shop.path());
    for (number, text) in whole.iter().enumerate() {
        let file = text.lines().next().and_then(|line| line.strip_prefix("-- ")).expect("a description");
        let name = named(&guide, text).unwrap_or_else(|| panic!("block {number} ({file}) follows the name of its file"));
        std::fs::create_dir_all(shop.path().join(&name).parent().expect("a room")).expect("a folder");
        let _ = std::fs::remove_file(shop.path().join(&name));
        std::fs::write(shop.path().join(&name), text).expect("written");
    }
    let tests: Vec<&str> = blocks.iter().filter(|(_, text)| text.starts_with("# as_of:")).map(|(_, text)| *text).collect();
    assert!(!tests.is_empty(), "the guide shows a test");
    for text in tests {
        let name = named(&guide, text).expect("a test follows the name of its file");
        std::fs::write(shop.path().join(&name), text).expect("written");
    }
    let checked = block_on(workbench::check(shop.path())).expect("read");
    assert!(
        checked.diagnostics.is_empty(),
        "{}",
        checked.diagnostics.iter().map(|found| found.render(false)).collect::<Vec<_>>().join("\n")
    );
    let tested = block_on(workbench::test(shop.path(), &[], None, false)).expect("readable");
    let failed: Vec<_> = tested.iter().filter_map(|test| test.failure.as_ref()).collect();
    assert!(failed.is_empty(), "{failed:?}");
    // They run, too, on rows of a shop.
    let made = tempfile::tempdir().expect("a folder");
    let store = |name: &str| Store::open(&made.path().join(name).display().to_string()).expect("a store");
    let plan = nightmarket::generate::Plan { users: 60, days: 12, seed: 7, until: DATE };
    block_on(nightmarket::generate::generate(&store("raw"), &plan)).expect("generated");
    let spec = Spec::read(Path::new("jobs/shop.toml")).expect("the shop's job");
    let run = Run::new(spec.job().expect("a job"), DATE, store("raw"), store("out"), checked.catalog.clone(), spec.engine.clone());
    let names: Vec<String> =
        whole.iter().filter_map(|text| Some(Path::new(&named(&guide, text)?).file_stem()?.to_str()?.to_owned())).collect();
    let desk = Desk { run, ingest: spec.ingest.clone(), key: key() };
    let context = block_on(workbench::tables::open(&desk, names.iter().map(String::as_str))).expect("computed");
    for name in &names {
        let rows = block_on(async { context.table(name.as_str()).await?.count().await }).expect("counted");
        let grain = &checked.table(name).expect("planned").grain;
        let twice = block_on(workbench::rows_of_no_key(&context, name, grain)).expect("counted");
        assert!(rows > 0 && twice == 0, "{name}: {rows} rows, {twice} of no key");
    }
    // The fields that the header may have are those of the guide's table.
    for (field, _) in nightmarket::platform::header::FIELDS {
        assert!(guide.contains(&format!("| `{field}`")), "the guide does not explain {field}");
    }
    // Every command of the guide is one.
    for line in guide.lines().filter(|line| line.trim_start().starts_with("nightmarket ")) {
        // As a shell takes them: what stands in quotes is one word.
        let parts = line.split('#').next().expect("a line").split('"').enumerate();
        let words = parts.flat_map(|(at, part)| if at % 2 == 1 { vec![part] } else { part.split_whitespace().collect() });
        let parsed = nightmarket::cli::command().try_get_matches_from(words);
        assert!(parsed.is_ok(), "{line}: {}", parsed.err().map(|error| error.to_string()).unwrap_or_default());
    }
}

/// The fenced blocks of a page: what they are, and their text.
fn fenced(page: &str) -> Vec<(&str, &str)> {
    let mut blocks = Vec::new();
    let mut rest = page;
    while let Some((_, after)) = rest.split_once("\n```") {
        let (kind, after) = after.split_once('\n').expect("a fence ends its line");
        let (text, after) = after.split_once("\n```").expect("a fence is closed");
        blocks.push((kind, &page[text.as_ptr() as usize - page.as_ptr() as usize..][..text.len() + 1]));
        rest = after;
    }
    blocks
}

/// The file that the text before a block names last: `features/user__carts.sql`.
fn named(page: &str, block: &str) -> Option<String> {
    let before = &page[..block.as_ptr() as usize - page.as_ptr() as usize];
    before
        .rsplit('`')
        .find(|text| text.contains('/') && (text.ends_with(".sql") || text.ends_with(".slt")) && !text.contains(char::is_whitespace))
        .map(str::to_owned)
}

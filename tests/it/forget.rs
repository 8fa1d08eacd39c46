//! Nobody stays who must go: `forget`, `gc`, the suppression list's age, and canaries through a whole night.

use crate::shop::{DATE, NEXT, SECRET, Shop, block_on, copy, key};
use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::DataType;
use chrono::{Days, TimeDelta};
use nightmarket::deliver::Release;
use nightmarket::error::Kind;
use nightmarket::ingest;
use nightmarket::platform::catalog::IdDomain;
use nightmarket::platform::storage::{Store, parquet_table};
use nightmarket::publish::{self, Commit, CommitKind, Privacy, State, Tables};
use nightmarket::targeting::tables;
use nightmarket::types::column;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

fn output(shop: &Shop) -> Store {
    Store::open(&shop.spec.store.output).expect("a store")
}

/// A pseudonym of the table that serves, the last of its column.
fn somebody(shop: &Shop) -> String {
    let head = shop.history().pop().expect("a table serves");
    let rows = block_on(output(shop).child(&head.tables).read_parquet("user_segments.parquet")).expect("a table");
    let users = column::<StringArray>(&rows, "user_id").expect("users");
    users.value(users.len() - 1).to_owned()
}

fn tables_of(shop: &Shop, commit: &Commit) -> Tables {
    block_on(Tables::read(&output(shop).child(&commit.tables))).expect("tables")
}

/// The users of the table of a commit, which breaks none of its own rules.
fn sound_users(shop: &Shop, commit: &Commit, floor: u64) -> BTreeSet<String> {
    let Tables { segments, user_segments, segment_ads, shadow_ads } = &tables_of(shop, commit);
    let whole = tables::Tables { segments, user_segments, segment_ads, shadow_ads, weights: None, floor };
    assert_eq!(tables::check(&whole), [""; 0], "generation {}", commit.generation);
    column::<StringArray>(user_segments, "user_id").expect("users").iter().flatten().map(str::to_owned).collect()
}

/// A user of the table that serves: the shop's own id, and the pseudonym.
fn targeted(shop: &Shop) -> (String, String) {
    let served = sound_users(shop, &shop.history().pop().expect("a table serves"), 50);
    let rows = parquet_table(std::fs::read(shop.raw(&format!("users/dt={NEXT}/part-0.parquet"))).expect("users").into()).expect("Parquet");
    let ids = column::<StringArray>(&rows, "uid").expect("ids").iter().flatten();
    let mut named = ids.map(|id| (id.to_owned(), key().pseudonym(IdDomain::User, id)));
    named.find(|(_, pseudonym)| served.contains(pseudonym)).expect("somebody is served")
}

fn rewrite(folder: &Path, change: impl FnOnce(RecordBatch) -> RecordBatch) {
    let rows = change(parquet_table(std::fs::read(folder.join("part-0.parquet")).expect("a file").into()).expect("Parquet"));
    let store = Store::open(&folder.display().to_string()).expect("a store");
    block_on(store.write_parquet("part-0.parquet", rows.schema(), &[rows])).expect("written");
}

/// Adds a user to the list of the second night.
fn suppress(shop: &Shop, id: &str) {
    let since = TimestampMicrosecondArray::from(vec![shop.run(DATE).as_of().timestamp_micros()]).with_timezone("UTC");
    let text = |value: &str| Arc::new(StringArray::from(vec![value])) as ArrayRef;
    rewrite(&shop.raw(&format!("suppressions/dt={NEXT}")), |rows| {
        let row = RecordBatch::try_new(rows.schema(), vec![text(id), text("erasure"), Arc::new(since)]).expect("a row");
        concat_batches(&rows.schema(), [&rows, &row]).expect("one table")
    });
}

/// Every file below a folder.
fn files(root: &Path) -> Vec<PathBuf> {
    let (mut open, mut found) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() { open.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// Files below a folder that hold a text: in a row of a Parquet file, or in the bytes of another.
fn holding(root: &Path, text: &str) -> Vec<String> {
    let holds = |path: &PathBuf| {
        let bytes = std::fs::read(path).expect("a file");
        let in_bytes = bytes.windows(text.len()).any(|window| window == text.as_bytes());
        in_bytes || (path.extension().is_some_and(|ending| ending == "parquet") && in_rows(bytes, text))
    };
    files(root).iter().filter(|path| holds(path)).map(|path| path.strip_prefix(root).expect("below").display().to_string()).collect()
}

fn in_rows(bytes: Vec<u8>, text: &str) -> bool {
    let table = parquet_table(bytes.into()).expect("Parquet");
    let texts = table.columns().iter().filter(|column| *column.data_type() == DataType::Utf8);
    texts.into_iter().any(|column| column.as_string::<i32>().iter().flatten().any(|value| value.contains(text)))
}

#[test]
fn a_forgotten_user_is_in_no_retained_output_and_the_rest_still_serves() {
    let shop = Shop::served();
    let second = shop.night(NEXT).expect("the second night runs").publish.expect("a finding");
    let (before, user) = (shop.history(), somebody(&shop));
    let root = shop.root.join("out");
    let delta = second.delta.expect("a table served before");
    let told = block_on(output(&shop).child(&before[1].tables).read_parquet("delta.parquet")).expect("a delta");
    assert_eq!((delta.against, delta.added + delta.removed + delta.changed), (before[0].policy_version.clone(), told.num_rows() as u64));
    // Somebody's export in the store's root: it goes, and nothing beside it.
    let serving = root.join(&before[1].tables).join("user_segments.parquet");
    std::fs::copy(serving, root.join("export.parquet")).expect("copied");
    let held = holding(&root, &user);
    assert!(
        held.iter().any(|path| path.starts_with("features/")) && held.iter().any(|path| path.starts_with("targeting/tables/")),
        "{held:?}"
    );

    let nobody = HashSet::new();
    let privacy = Privacy { suppressed: &nobody, floor: shop.spec.floor() };
    let seen = block_on(publish::forget(&output(&shop), &user, privacy, true)).expect("looks");
    assert_eq!(
        (seen.found.iter().map(|trace| trace.files.len()).sum::<usize>(), holding(&root, &user)),
        (held.len(), held),
        "a dry run removes nothing"
    );
    let gone = block_on(publish::forget(&output(&shop), &user, privacy, false)).expect("forgets");
    assert_eq!(gone.rows, seen.rows);
    assert_eq!(holding(&root, &user), [""; 0]);

    let after = shop.history();
    let head = after.last().expect("a table serves");
    assert_eq!((head.kind, head.generation, &head.policy_version), (CommitKind::Forget, 3, &before[1].policy_version));
    for (old, new) in before.iter().zip(&after) {
        assert_eq!((old.generation, &old.policy_version), (new.generation, &new.policy_version), "the history stays");
        assert!(!root.join(&old.tables).join("_manifest.json").exists(), "the old tables are deleted");
        let manifest = std::fs::read_to_string(root.join(&new.tables).join("_manifest.json")).expect("a manifest");
        assert!(manifest.contains("tombstone"), "{manifest}");
        assert!(!manifest.contains("delta.parquet"), "a copy follows no table: {manifest}");
        assert!(!sound_users(&shop, new, shop.spec.segments.floor).contains(&user));
    }
    let serving = block_on(Release::read(&output(&shop), None)).expect("reads");
    assert!(serving.users.len() > 100 && serving.users.iter().all(|other| other.user_id != user), "the others are still served");
    let back = block_on(publish::rollback(&shop.run(NEXT), "1", privacy)).expect("an old table serves again");
    assert_eq!(back.tables, after[0].tables);
    // Whatever was committed since: no store may hold a table with the user.
    let may_stay = block_on(Release::read(&output(&shop), None)).expect("reads").may_stay;
    assert_eq!(may_stay, [head.run(), back.run()]);
    let again = block_on(publish::forget(&output(&shop), &user, privacy, false)).expect("forgets again");
    assert_eq!((again.rows, again.generation), (0, None));
}

#[test]
fn a_segment_that_a_removal_leaves_below_the_floor_goes_and_its_users_are_served_by_the_next() {
    let shop = Shop::served();
    let before = tables_of(&shop, &shop.history()[0]);
    let texts = |rows: &RecordBatch, name: &str| -> Vec<String> {
        column::<StringArray>(rows, name).expect("a column").iter().flatten().map(str::to_owned).collect()
    };
    let ranks = column::<Int64Array>(&before.user_segments, "rank").expect("ranks");
    let mut served: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let rows = texts(&before.user_segments, "segment_id").into_iter().zip(texts(&before.user_segments, "user_id"));
    for ((segment, user), _) in rows.zip(ranks).filter(|(_, rank)| *rank == Some(1)) {
        served.entry(segment).or_default().push(user);
    }
    let (smallest, users) = served.iter().min_by_key(|(_, users)| users.len()).expect("a segment");
    let (nobody, floor) = (HashSet::new(), users.len() as u64);
    assert!(floor >= shop.spec.segments.floor && served.len() > 1, "{floor} {}", served.len());
    block_on(publish::forget(&output(&shop), &users[0], Privacy { suppressed: &nobody, floor: Some(floor) }, false)).expect("forgets");
    let head = shop.history().pop().expect("a table serves");
    let left = sound_users(&shop, &head, floor);
    assert!(!left.contains(&users[0]) && served.iter().filter(|(id, _)| *id != smallest).all(|(_, users)| left.contains(&users[0])));
    let after = tables_of(&shop, &head);
    for (rows, before) in [
        (&after.segments, &before.segments),
        (&after.user_segments, &before.user_segments),
        (&after.segment_ads, &before.segment_ads),
        (&after.shadow_ads, &before.shadow_ads),
    ] {
        assert!(texts(before, "segment_id").contains(smallest) && !texts(rows, "segment_id").contains(smallest));
    }
}

#[test]
fn an_old_table_serves_again_without_who_is_on_the_newest_list_whatever_the_date() {
    let shop = Shop::served();
    let (id, pseudonym) = targeted(&shop);
    shop.night(NEXT).expect("the second night runs");
    suppress(&shop, &id);
    let run = shop.run(DATE);
    let suppressed = block_on(ingest::suppressed_on(&run, &shop.spec.ingest, &key())).expect("a list");
    assert!(suppressed.contains(&pseudonym), "the list of a later day has arrived");
    assert!(block_on(ingest::suppressed_at_last(&run, &shop.spec.ingest, &key())).expect("a list").contains(&pseudonym));
    let privacy = Privacy { suppressed: &suppressed, floor: shop.spec.floor() };
    let commit = block_on(publish::rollback(&run, "1", privacy)).expect("rolls back");
    assert_eq!((commit.kind, commit.generation, commit.run_date), (CommitKind::Rollback, 3, DATE));
    let users = sound_users(&shop, &commit, shop.spec.segments.floor);
    assert!(users.len() > 100 && !users.contains(&pseudonym), "{}", users.len());
}

#[test]
fn a_night_that_keeps_the_table_serves_it_without_who_was_suppressed_since() {
    let shop = Shop::served();
    let before = shop.history();
    let (id, pseudonym) = targeted(&shop);
    suppress(&shop, &id);
    rewrite(&shop.raw(&format!("campaigns/dt={NEXT}")), |rows| {
        let mut columns = rows.columns().to_vec();
        columns[rows.schema().index_of("daily_budget").expect("budgets")] = Arc::new(Float64Array::from(vec![0.0; rows.num_rows()]));
        RecordBatch::try_new(rows.schema(), columns).expect("the same columns")
    });
    let kept = shop.night(NEXT).expect("the night runs").publish.expect("a finding");
    assert_eq!(kept.state, State::Kept);
    assert!(kept.reason.contains("generation 2 serves what stays"), "{}", kept.reason);
    let after = shop.history();
    assert_eq!((after.len(), &after[0]), (2, &before[0]));
    assert_eq!((after[1].kind, &after[1].policy_version), (CommitKind::Forget, &before[0].policy_version));
    let users = sound_users(&shop, &after[1], shop.spec.segments.floor);
    assert!(users.len() > 100 && !users.contains(&pseudonym), "{}", users.len());
    // No serving store may hold the table before.
    assert_eq!(block_on(Release::read(&output(&shop), None)).expect("reads").may_stay, [after[1].run()]);
    shop.night(NEXT).expect("runs again");
    assert_eq!(shop.history(), after);
}

#[test]
fn gc_keeps_what_serves_and_what_served_before() {
    let shop = Shop::served();
    shop.night(NEXT).expect("the second night runs");
    let (before, root) = (shop.history(), shop.root.join("out"));
    let all = files(&root);
    let listed = block_on(publish::gc(&output(&shop), 1, true)).expect("lists");
    assert!(listed.folders.is_empty() || listed.folders.iter().all(|folder| !folder.path.contains(&format!("dt={NEXT}"))));
    // An old night of no commit, beside the ones that served.
    let old = format!("segments/dt={}/0000", DATE - Days::new(9));
    block_on(output(&shop).put(&format!("{old}/x.parquet"), "x".into())).expect("written");
    let listed = block_on(publish::gc(&output(&shop), 1, true)).expect("lists");
    assert!(listed.folders.iter().any(|folder| folder.path == old), "{listed}");
    assert_eq!(files(&root).len(), all.len() + 1, "a dry run removes nothing");
    let removed = block_on(publish::gc(&output(&shop), 1, false)).expect("collects");
    assert_eq!(removed.folders, listed.folders);
    assert!(!root.join(&old).join("x.parquet").exists());
    for commit in &before {
        assert!(root.join(&commit.tables).join("_manifest.json").exists(), "generation {} stays", commit.generation);
    }
    assert_eq!(shop.history(), before);
    assert_eq!(shop.night(NEXT).expect("runs again").publish.expect("a finding").state, State::AlreadyPublished);
}

#[test]
fn a_broken_suppression_list_stops_the_night_with_exit_40() {
    let list = |shop: &Shop| shop.raw(&format!("suppressions/dt={NEXT}"));
    let files = |shop: &Shop| files(&list(shop));
    let truncate = |shop: &Shop| {
        for path in files(shop) {
            let bytes = std::fs::read(&path).expect("a list");
            std::fs::remove_file(&path).expect("a link");
            std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("written");
        }
    };
    let rename = |shop: &Shop| {
        files(shop).iter().for_each(|path| std::fs::remove_file(path).expect("removed"));
        std::fs::remove_dir_all(shop.raw("suppressions")).expect("removed");
        std::fs::create_dir_all(list(shop)).expect("a folder");
        std::fs::write(list(shop).join("part-0.csv"), "user,reason,since\n").expect("written");
    };
    // Yesterday's list alone.
    let yesterday = |shop: &Shop| std::fs::remove_dir_all(list(shop)).expect("removed");
    // A list in one piece, written 30 hours before the cut-off.
    let old = |shop: &mut Shop| {
        let sql = shop.root.join("sql");
        copy(Path::new(&shop.spec.sql), &sql);
        shop.spec.sql = sql.display().to_string();
        let contracts = std::fs::read_to_string(sql.join("sources.toml")).expect("contracts");
        let (before, list) = contracts.split_once("[suppressions]").expect("a list");
        std::fs::remove_file(sql.join("sources.toml")).expect("a link");
        std::fs::write(
            sql.join("sources.toml"),
            format!("{before}[suppressions]{}", list.replacen("partition = \"dt\"", "whole = true", 1)),
        )
        .expect("written");
        let whole = shop.raw("suppressions/part-0.parquet");
        std::fs::copy(&files(shop)[0], &whole).expect("copied");
        for day in std::fs::read_dir(shop.raw("suppressions")).expect("days").map(|day| day.expect("a day").path()) {
            if day.is_dir() {
                std::fs::remove_dir_all(day).expect("removed");
            }
        }
        let written = shop.run(NEXT).cut_off() - TimeDelta::hours(30);
        File::options().append(true).open(&whole).expect("opens").set_modified(written.into()).expect("dated");
    };
    type Break<'a> = (&'a str, &'a dyn Fn(&mut Shop));
    let breaks: [Break; 4] = [
        ("truncated", &|shop| truncate(shop)),
        ("renamed", &|shop| rename(shop)),
        ("yesterday's", &|shop| yesterday(shop)),
        ("h old", &old),
    ];
    for (what, spoil) in breaks {
        let mut shop = Shop::served();
        spoil(&mut shop);
        let before = shop.history();
        let error = shop.night(NEXT).err().unwrap_or_else(|| panic!("{what}: the night must not run"));
        assert_eq!((error.kind, error.kind.exit_code()), (Kind::Privacy, 40), "{what}: {error}");
        assert!(error.to_string().contains("suppressions"), "{what}: {error}");
        assert!(what != "h old" || error.to_string().contains("30 h old"), "{error}");
        assert_eq!(shop.history(), before, "{what}: yesterday's table stays");
    }
}

fn nightmarket(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nightmarket"))
        .args(arguments)
        .args(["--log", "trace"])
        .env("NIGHTMARKET_PSEUDONYM_KEY", SECRET)
        .output()
        .expect("starts")
}

/// Planted in testdata/shop: who is to be erased, and who opted out.
const ERASED: &str = "u_0000005";
const OPTED_OUT: &str = "u_0000007";

#[test]
fn neither_the_erased_nor_the_secret_is_in_any_output_log_or_error() {
    let folder = tempfile::TempDir::new().expect("a temporary folder");
    let out = folder.path().join("out");
    let mut spec = crate::tiny_shop::spec(&out);
    (spec.segments.floor, spec.segments.enter) = (50, 50);
    let job = folder.path().join("job.toml");
    std::fs::write(&job, toml::to_string(&spec).expect("a spec is TOML")).expect("written");
    let job = job.display().to_string();
    let date = crate::tiny_shop::DATE.to_string();
    let night = nightmarket(&["run", &job, "--date", &date]);
    let ended = String::from_utf8_lossy(&night.stderr).into_owned();
    // The tiny shop may publish or keep; a floor it cannot reach is the end of a night too.
    assert!(night.status.success(), "{}", ended.lines().last().unwrap_or_default());
    let failed = nightmarket(&["run", &job, "--date", "2026-11-23"]);
    assert_eq!(failed.status.code(), Some(20), "nothing of that day has arrived");
    let forgot = nightmarket(&["forget", &job, "--user", ERASED]);
    let seen = nightmarket(&["forget", &job, "--user", "A", "--dry-run", "--output", "json"]);
    assert!(forgot.status.success() && seen.status.success(), "{}", String::from_utf8_lossy(&seen.stderr));
    let seen_rows: serde_json::Value = serde_json::from_slice(&seen.stdout).expect("JSON");
    assert!(seen_rows["rows"].as_u64() > Some(0), "A is known: {seen_rows}");

    let said: String = [night, failed, forgot, seen]
        .iter()
        .flat_map(|output| [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
        .collect();
    let pseudonym = |user: &str| key().pseudonym(IdDomain::User, user);
    for canary in [SECRET, ERASED, OPTED_OUT, &pseudonym(ERASED)] {
        assert_eq!(said.lines().find(|line| line.contains(canary)), None, "a log or an error tells {canary}");
    }
    for canary in [SECRET, ERASED, OPTED_OUT] {
        assert_eq!(holding(&out, canary), [""; 0], "{canary}");
    }
    // The two lists that say who must not be processed name them, as pseudonyms, for that purpose.
    let processed = |user: &str| -> Vec<String> {
        let held = holding(&out, &pseudonym(user));
        held.into_iter().filter(|path| !path.starts_with("staging/suppressions/") && !path.starts_with("staging/consents/")).collect()
    };
    assert_eq!(processed(ERASED), [""; 0]);
    // Who consented to ads but to no profile is one of everyone, and of nothing that is made of what people did.
    let known = processed(OPTED_OUT);
    assert!(known.iter().all(|path| path.ends_with("/user_segments.parquet")), "{known:?}");
    assert!(!processed("A").is_empty(), "the search finds who is processed");
}

#[test]
fn under_another_key_nobody_is_looked_for() {
    let shop = Shop::served();
    let job = shop.spec_file().display().to_string();
    for arguments in [["forget", &job, "--user", "u_0000011"], ["lookup", &job, "--user", "u_0000011"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
        let output = command.args(arguments).env("NIGHTMARKET_PSEUDONYM_KEY", "another key, quite as long").output().expect("starts");
        let line = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && line.contains("key"), "{arguments:?}: {:?} {line}", output.status);
        assert!(output.stdout.is_empty(), "no answer is better than a wrong one");
    }
}

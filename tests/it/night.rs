//! The whole night: what it publishes, twice the same, whatever interrupts it.

use crate::shop::{DATE, NEXT, SECRET, Shop, block_on, key};
use arrow::array::{BooleanArray, Float64Array, RecordBatch, StringArray};
use chrono::{Days, NaiveDate};
use nightmarket::generate;
use nightmarket::pipeline::{self, Stage};
use nightmarket::platform::catalog::{Catalog, IdDomain};
use nightmarket::platform::run::Run;
use nightmarket::platform::storage::Store;
use nightmarket::publish::State;
use nightmarket::spec::Spec;
use nightmarket::targeting::TargetingFacts;
use nightmarket::types::column;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn two_runs_with_one_and_two_threads_publish_the_same_bytes() {
    let (mut one, mut two) = (Shop::small(), Shop::small());
    one.spec.engine.threads = 1;
    two.spec.engine.threads = 2;
    two.spec.engine.memory_mib = 1024;
    for shop in [&one, &two] {
        let facts = shop.night(DATE).expect("the night runs");
        assert_eq!(facts.publish.expect("published").state, State::Published);
    }
    let (first, second) = (one.history(), two.history());
    assert_eq!(first, second, "the commits are the same");
    assert_eq!(one.published(&first[0]), two.published(&second[0]), "the tables are the same");
}

#[test]
fn a_second_run_of_a_published_night_changes_nothing() {
    let shop = Shop::served();
    let before = shop.history();
    let facts = shop.night(DATE).expect("runs again");
    assert_eq!(facts.publish.expect("a finding").state, State::AlreadyPublished);
    assert!(facts.timings.iter().all(|timing| timing.reused), "every step is taken from the first run: {:?}", facts.timings);
    assert_eq!(shop.history(), before);
}

/// The folders of the steps that were done, not taken from an earlier run.
fn done_anew(facts: &pipeline::Facts) -> Vec<&str> {
    facts.timings.iter().filter(|timing| !timing.reused).map(|timing| timing.stage.split('/').next().unwrap_or_default()).collect()
}

#[test]
fn from_a_stage_on_the_steps_are_done_again_but_what_is_committed_stays() {
    let shop = Shop::served();
    let before = (shop.history(), shop.published(&shop.history()[0]));
    let written = |shop: &Shop| {
        std::fs::metadata(shop.root.join("out").join(&shop.history()[0].tables).join("_manifest.json")).unwrap().modified().unwrap()
    };
    let untouched = written(&shop);
    let run = shop.run(DATE);
    let discarded = block_on(pipeline::discard(&run, &shop.spec, Stage::Model)).expect("discards");
    assert!(discarded >= 3, "gate, diagnosis, segments, plan: {discarded}");
    let facts = shop.night(DATE).expect("runs again");
    let mut anew = done_anew(&facts);
    anew.sort();
    anew.dedup();
    // The commit refers to the model and to the tables; a folder of its own has the rest.
    assert_eq!(anew, ["diagnosis", "gate", "segments", "targeting"]);
    assert_eq!(facts.publish.as_ref().expect("a finding").state, State::AlreadyPublished);
    assert_eq!((shop.history(), shop.published(&shop.history()[0])), before);
    assert_eq!(written(&shop), untouched, "the committed folder is not written again");
}

#[test]
fn a_night_without_a_commit_begins_again_where_it_is_told_to() {
    let shop = Shop::small();
    let until = |stage| block_on(pipeline::run(&shop.run(DATE), &shop.spec, &key(), stage)).expect("runs");
    until(Stage::Features);
    assert_eq!(done_anew(&until(Stage::Features)), Vec::<&str>::new());
    block_on(pipeline::discard(&shop.run(DATE), &shop.spec, Stage::Features)).expect("discards");
    let facts = until(Stage::Features);
    let anew = done_anew(&facts);
    let of_features = |stage: &&str| ["features", "leak", "drift"].contains(stage);
    assert!(!anew.is_empty() && anew.iter().all(of_features), "{anew:?}");
    let all = facts.timings.iter().filter(|timing| of_features(&timing.stage.split('/').next().unwrap_or_default())).count();
    assert_eq!(anew.len(), all, "every snapshot of the night is made again, and what is said of them");
}

/// A shop of few ads lets each segment see all of them; told to choose, it names those that are likely its own.
#[test]
fn of_many_ads_a_segment_sees_some_and_the_plan_keeps_most_of_its_worth() {
    let mut shop = Shop::served();
    let planned = |shop: &Shop| {
        let facts = block_on(pipeline::run(&shop.run(DATE), &shop.spec, &key(), Stage::Targeting)).expect("runs");
        serde_json::from_value::<TargetingFacts>(facts.targeting.expect("a plan")).expect("its facts")
    };
    let all = planned(&shop);
    assert_eq!(all.candidates_from, None);
    shop.spec.targeting.candidate_ads_per_segment = 20;
    let few = planned(&shop);
    let from = few.candidates_from.expect("there are more than 20 ads");
    assert!(from.collaborative > 0 && from.content > 0, "{from:?}");
    assert_eq!(few.ads_live, all.ads_live);
    assert!(few.candidates < all.candidates && few.candidates == 20 * few.segments, "{} of {}", few.candidates, all.candidates);
    let kept = few.certificate.value_whole / all.certificate.value_whole;
    assert!(kept > 0.8 && kept < 1.0 + 1e-3, "{kept}");
}

#[test]
fn killed_ten_times_and_run_again_it_publishes_the_same_bytes_once() {
    let (whole, killed) = (Shop::small(), Shop::small());
    let night = |shop: &Shop| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
        command
            .args(["run", &shop.spec_file().display().to_string(), "--date", &DATE.to_string()])
            .env("NIGHTMARKET_PSEUDONYM_KEY", SECRET);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command
    };
    let started = Instant::now();
    assert!(night(&whole).status().expect("starts").success());
    let whole_takes = started.elapsed();
    let mut random = xxhash_rust::xxh3::xxh3_64(b"moments of death");
    for _ in 0..10 {
        let mut child = night(&killed).spawn().expect("starts");
        random = xxhash_rust::xxh3::xxh3_64(&random.to_le_bytes());
        std::thread::sleep(whole_takes.mul_f64((random % 1000) as f64 / 3000.0).max(Duration::from_millis(50)));
        child.kill().expect("killed, or already gone");
        child.wait().expect("reaped");
        assert!(killed.history().len() <= 1);
    }
    assert!(night(&killed).status().expect("starts").success());
    assert_eq!(whole.history(), killed.history());
    assert_eq!(killed.history().len(), 1, "one commit");
    let commit = &whole.history()[0];
    assert_eq!(whole.published(commit), killed.published(commit));
}

/// Whether a folder or one below holds a file of a name that begins so, or any file.
fn holds(folder: &Path, name: &str) -> bool {
    std::fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| match entry.path() {
        path if path.is_dir() => holds(&path, name),
        path => path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name)),
    })
}

#[test]
fn killed_at_each_moment_of_the_commit_it_publishes_the_same_bytes_once() {
    let (whole, killed) = (Shop::served(), Shop::small());
    let out = killed.root.join("out");
    // In the order in which a night writes them, each for the first time.
    let moments = [
        (out.join(format!("targeting/tables/dt={DATE}")), ""),
        (out.join(format!("targeting/tables/dt={DATE}")), "_manifest.json"),
        (out.join("targeting/_commits"), ""),
        (out.join("reports"), ""),
    ];
    let night = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
        command.args(["run", &killed.spec_file().display().to_string(), "--date", &DATE.to_string()]);
        command.env("NIGHTMARKET_PSEUDONYM_KEY", SECRET).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        command
    };
    for (folder, name) in moments {
        let mut child = night().spawn().expect("starts");
        while !holds(&folder, name) && child.try_wait().expect("waited").is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().expect("killed, or already gone");
        child.wait().expect("reaped");
        assert!(holds(&folder, name), "the night ended before it wrote {name} in {}", folder.display());
        // A reader sees no commit, or one whose tables are whole.
        for commit in killed.history() {
            assert_eq!(whole.published(&commit), killed.published(&commit), "{}", folder.display());
        }
    }
    assert!(night().status().expect("starts").success());
    assert_eq!(whole.history(), killed.history());
    assert_eq!(killed.history().len(), 1, "one commit");
}

/// Labels of a user before the floor, best first.
fn labels(shop: &Shop, user: &str) -> Vec<String> {
    let pseudonym = key().pseudonym(IdDomain::User, user);
    let folder = shop.root.join(format!("out/segments/dt={DATE}"));
    let step = std::fs::read_dir(&folder).expect("segments were made").next().expect("one step").expect("an entry").path();
    let rows = read(&step.join("labels_before_floor.parquet"));
    let (users, labels) = (column::<StringArray>(&rows, "user_id").unwrap(), column::<StringArray>(&rows, "label").unwrap());
    let ranks = column::<arrow::array::Int64Array>(&rows, "rank").unwrap();
    let mut found: Vec<(i64, String)> = (0..rows.num_rows())
        .filter(|&row| users.value(row) == pseudonym)
        .map(|row| (ranks.value(row), labels.value(row).to_owned()))
        .collect();
    found.sort();
    found.into_iter().map(|(_, label)| label).collect()
}

fn read(path: &Path) -> RecordBatch {
    nightmarket::platform::storage::parquet_table(std::fs::read(path).expect("a file").into()).expect("Parquet")
}

#[test]
fn the_articles_three_users_get_the_labels_of_their_logs() {
    let shop = Shop::served();
    let swapped = Shop::small();
    block_on(generate::plant_article_users(&Store::open(&swapped.spec.store.raw).unwrap(), true)).expect("swaps");
    block_on(pipeline::run(&swapped.run(DATE), &swapped.spec, &key(), Stage::Segments)).expect("runs");
    let top = |shop: &Shop, user: &str| labels(shop, user).first().cloned().unwrap_or_else(|| panic!("{user} has no label"));
    let [a, b, c] = generate::ARTICLE_USERS;
    assert_eq!([top(&shop, a), top(&shop, b), top(&shop, c)], ["鞋子", "鞋子配件", "手机配件"]);
    assert_eq!([top(&swapped, a), top(&swapped, b), top(&swapped, c)], ["手机配件", "鞋子配件", "鞋子"]);
}

#[test]
fn three_nights_close_the_loop() {
    let mut shop = Shop::served();
    shop.spec.segments.count_epsilon = 1.0;
    let raw = Store::open(&shop.spec.store.raw).unwrap();
    // The shop's own log already holds NEXT under the launch policy; these days are served by the published tables instead.
    std::fs::read_dir(shop.root.join("raw")).unwrap().for_each(|table| {
        let day = table.unwrap().path().join(format!("dt={NEXT}"));
        let _ = std::fs::remove_dir_all(day);
    });
    let _ = std::fs::remove_dir_all(shop.raw(&format!("truth/impressions/dt={NEXT}")));
    for (night, date) in [NEXT, NEXT + Days::new(1)].into_iter().enumerate() {
        let served = shop.history().last().expect("a table serves").clone();
        let tables = Store::open(&shop.root.join("out").join(&served.tables).display().to_string()).unwrap();
        let plan = generate::Continue { date, salt: shop.spec.targeting.salt.clone(), shares: shop.spec.targeting.shares };
        block_on(generate::continue_day(&raw, &plan, &tables, &key())).expect("serves the day");
        let facts = shop.night(date).expect("the night runs");
        assert_eq!(facts.publish.as_ref().expect("a finding").state, State::Published, "{}", serde_json::to_value(&facts.admit).unwrap());
        assert_eq!(shop.history().len(), night + 2);
        let published = shop.root.join("out").join(&shop.history()[night + 1].tables);
        let manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(published.join("_manifest.json")).unwrap()).unwrap();
        assert_eq!(manifest["facts"]["counts"]["epsilon_so_far"], night as f64 + 1.0);
        let counted = read(&published.join("segment_counts.parquet"));
        assert_eq!(counted.num_rows(), read(&published.join("segments.parquet")).num_rows());
        let segments = facts.segments.expect("segments");
        let clusters = segments["clusters"]["clusters"].as_array().expect("clusters");
        let of_last_night = clusters.iter().filter(|cluster| cluster["stability"].is_number()).count();
        assert!(clusters.len() >= 2 && 2 * of_last_night >= clusters.len(), "clusters keep their ids: {}", segments["clusters"]);
        assert!(segments["rank_overlap"].as_f64().is_some_and(|overlap| overlap > 0.3 && overlap <= 1.0), "{}", segments["rank_overlap"]);
        let like = &segments["lookalikes"][0];
        assert_eq!(like["segment_id"], "lookalike:like_recent_buyers");
        assert!(like["size"].is_number() != like["withheld"].is_string(), "found, or it is said why not: {like}");
        let measured = facts.evaluate.expect("measured");
        assert_eq!(measured.policy_version.as_deref(), Some(served.policy_version.as_str()), "last night's table is measured");
        let json = serde_json::to_value(&measured).unwrap();
        let arms = json["arms"].as_array().expect("arms");
        let truth = true_ctr(&shop, date);
        // What targeting really did, as the world knows it, lies about the interval that the report gives; of an arm without a click it
        // gives none.
        let lift = json["lift"].as_array().expect("lifts").iter().find(|lift| lift["metric"] == "ctr").expect("of the CTR");
        let clicks = |name: &str| arms.iter().find(|arm| arm["arm"] == name).expect("the arm")["clicks"].as_u64().unwrap();
        if clicks("champion") > 0 && clicks("holdout") > 0 {
            let (low, high) = (lift["absolute"]["interval"]["low"].as_f64(), lift["absolute"]["interval"]["high"].as_f64());
            let true_lift = truth["champion"] - truth["holdout"];
            let (low, high, estimate) = (low.unwrap(), high.unwrap(), lift["absolute"]["estimate"].as_f64().unwrap());
            assert!((estimate - true_lift).abs() <= 1.6 * (high - low), "{date}: true lift {true_lift}, reported {lift}");
        } else {
            assert!(lift["absolute"]["interval"].is_null() && lift["absolute"]["p"].is_null(), "{lift}");
        }
        for arm in arms {
            let (name, ctr) = (arm["arm"].as_str().unwrap(), &arm["ctr"]);
            let truth = truth[name];
            // About six standard errors: the seed is fixed, the bound is no test of luck.
            if let (Some(low), Some(high), Some(value)) =
                (ctr["interval"]["low"].as_f64(), ctr["interval"]["high"].as_f64(), ctr["value"].as_f64())
            {
                let slack = 1.6 * (high - low).max(0.01);
                assert!((value - truth).abs() <= slack, "{date} {name}: measured {value} [{low}, {high}], true {truth}");
            }
        }
    }
}

/// Mean true p(click) of the impressions logged on a day, by arm.
fn true_ctr(shop: &Shop, date: NaiveDate) -> BTreeMap<String, f64> {
    let all = |table: &str| {
        let folder = shop.raw(&format!("{table}/dt={date}"));
        let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        files.map(|file| read(&file.unwrap().path())).collect::<Vec<_>>()
    };
    let mut p_click = BTreeMap::new();
    for rows in all("truth/impressions") {
        let (ids, p) = (column::<StringArray>(&rows, "impression_id").unwrap(), column::<Float64Array>(&rows, "p_click").unwrap());
        p_click.extend(ids.iter().zip(p).map(|(id, p)| (id.unwrap().to_owned(), p.unwrap())));
    }
    let mut sums: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    let mut seen = std::collections::BTreeSet::new();
    for rows in all("ad_impressions") {
        let (ids, arms) = (column::<StringArray>(&rows, "impression_id").unwrap(), column::<StringArray>(&rows, "arm").unwrap());
        for (id, arm) in ids.iter().zip(arms) {
            let (id, arm) = (id.unwrap(), arm.unwrap_or_default());
            if let (true, Some(p)) = (seen.insert(id.to_owned()), p_click.get(id)) {
                let sum = sums.entry(arm.to_owned()).or_default();
                *sum = (sum.0 + p, sum.1 + 1.0);
            }
        }
    }
    sums.into_iter().map(|(arm, (sum, n))| (arm, sum / n)).collect()
}

#[test]
fn open_bandit_runs_and_says_what_it_cannot_know() {
    let out = tempfile::TempDir::new().expect("a temporary folder");
    let mut spec = Spec::read(Path::new("jobs/open_bandit.toml")).expect("the job reads");
    spec.model.threads = 1;
    let date = NaiveDate::from_ymd_opt(2019, 11, 30).expect("a date");
    let catalog = Catalog::load(Path::new(&spec.sql)).expect("SQL loads");
    let (raw, output) = (Store::open(&spec.store.raw).unwrap(), Store::open(&out.path().display().to_string()).unwrap());
    let run = Run::new(spec.job().unwrap(), date, raw, output, catalog, spec.engine.clone());
    let facts = block_on(pipeline::run(&run, &spec, &key(), Stage::Report)).expect("the night runs");
    let json = serde_json::to_value(&facts).unwrap();
    assert_eq!(json["gate"]["kind"], "too_little_data", "{}", json["gate"]);
    assert_eq!(json["publish"]["state"], "published", "{}", json["admit"]);
    let estimates = json["off_policy"]["estimates"].as_array().expect("off-policy estimates");
    let ips = estimates.iter().find(|estimate| estimate["estimator"] == "ips").expect("IPS");
    let (low, value, high) = (ips["interval"]["low"].as_f64(), ips["value"].as_f64(), ips["interval"]["high"].as_f64());
    assert!(low.unwrap() <= value.unwrap() && value.unwrap() <= high.unwrap(), "{ips}");
    assert!(json["off_policy"]["diagnostics"]["effective_rows"].as_f64().unwrap() > 0.0);
    assert!(["identified", "not_identified"].contains(&json["off_policy"]["verdict"]["kind"].as_str().unwrap()));
    let skipped = json["skipped"].to_string();
    assert!(skipped.contains("no persons") && skipped.contains("no events") && skipped.contains("no campaigns"), "{skipped}");
    assert!(skipped.contains("clusters of behaviour: there is no interest network"), "{skipped}");
    let impressions = column::<BooleanArray>(&read(&find(out.path(), "train.parquet")), "clicked").map(|clicked| clicked.len()).unwrap();
    assert!(impressions > 8_000, "four days of both policies: {impressions}");
}

fn find(root: &Path, name: &str) -> std::path::PathBuf {
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.ends_with(name) {
                return path;
            }
        }
    }
    panic!("no {name} below {}", root.display());
}

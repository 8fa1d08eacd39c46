//! The night at scale: generates a shop, runs the whole job on it and prints rows, seconds and peak memory by stage.
//!
//! `cargo bench --bench night -- [users] [days]`, by default 100,000 users over 28 days: about ten million rows of logs. The shop is
//! kept in the target folder and made once; what the night wrote is removed first, so that every step is done. With `twice` behind the
//! numbers the features are also made after those of the night before, as on any but the first night.

use arrow::array::{BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use chrono::NaiveDate;
use nightmarket::features::ledger;
use nightmarket::generate;
use nightmarket::model::{Artifact, Response};
use nightmarket::pipeline::{self, Facts, Stage};
use nightmarket::platform::catalog::{Catalog, IdDomain};
use nightmarket::platform::pseudonym::Key;
use nightmarket::platform::run::Run;
use nightmarket::platform::storage::Store;
use nightmarket::spec::Spec;
use nightmarket::statistics::metrics;
use nightmarket::types::column;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::time::Instant;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "a bench prints its table")]
async fn main() -> nightmarket::error::Result<()> {
    tracing_subscriber::fmt().with_env_filter("nightmarket=info").with_writer(std::io::stderr).init();
    let mut numbers = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let (users, days) = (numbers.next().unwrap_or(100_000), numbers.next().unwrap_or(28));
    let date = NaiveDate::from_ymd_opt(2026, 11, 22).expect("a date");
    let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
    let root = format!("{target}/bench/{users}x{days}");

    let raw = Store::open(&format!("{root}/raw"))?;
    if raw.get_optional("_world.json").await?.is_none() {
        reset_peak();
        let started = Instant::now();
        let summary = generate::generate(&raw, &generate::Plan { users, days, seed: 7, until: date }).await?;
        println!("{} rows, CTR {:.4}, CVR {:.4}", summary.rows.values().sum::<u64>(), summary.ctr, summary.cvr);
        println!("generated in {:.1} s, peak {} MiB\n", started.elapsed().as_secs_f64(), peak_mib());
    }

    let _ = std::fs::remove_dir_all(format!("{root}/out"));
    let mut spec = Spec::read(Path::new("jobs/shop.toml"))?;
    spec.engine.buckets = usize::try_from(users / 10_000).unwrap_or(1).max(4);
    let out = Store::open(&format!("{root}/out"))?;
    let run = Run::new(spec.job()?, date, raw.clone(), out, Catalog::load(Path::new(&spec.sql))?, spec.engine.clone());
    let key = Key::new("the key of the bench", 1)?;
    reset_peak();
    let started = Instant::now();
    let facts = pipeline::run(&run, &spec, &key, Stage::Report).await?;
    let total = started.elapsed().as_secs_f64();

    let mut stages: BTreeMap<String, (usize, f64)> = BTreeMap::new();
    for timing in &facts.timings {
        let stage = timing.stage.split("/dt=").next().unwrap_or_default().split('/').next().unwrap_or_default();
        let entry = stages.entry(stage.to_owned()).or_default();
        *entry = (entry.0 + 1, entry.1 + timing.seconds);
    }
    println!("| stage | steps | seconds |\n|---|---|---|");
    for (stage, (steps, seconds)) in &stages {
        println!("| {stage} | {steps} | {seconds:.1} |");
    }
    println!(
        "| whole night | | {total:.1} |\n\npeak memory {} MiB, {} cores\n",
        peak_mib(),
        std::thread::available_parallelism().map_or(0, |n| n.get())
    );
    println!("digests {:.1} s, snapshots {:.1} s", seconds(&facts, "features/_seen/"), snapshots(&facts));
    if std::env::args().any(|argument| argument == "twice") {
        let after = Store::open(&format!("{root}/after"))?;
        let _ = std::fs::remove_dir_all(format!("{root}/after"));
        let night = |date| Run::new(run.job.clone(), date, raw.clone(), after.clone(), run.catalog.clone(), run.engine.clone());
        pipeline::run(&night(date.pred_opt().expect("a date")), &spec, &key, Stage::Features).await?;
        let again = pipeline::run(&night(date), &spec, &key, Stage::Features).await?;
        let (digests, again_snapshots) = (seconds(&again, "features/_seen/"), snapshots(&again));
        println!("after the night before: digests {digests:.1} s, snapshots {again_snapshots:.1} s; {}", ledger::summary(&again.ledger));
        println!("together {:.1} times faster\n", seconds(&facts, "features/") / seconds(&again, "features/"));
    }
    println!("{}\n", pipeline::summary(&facts, Stage::Report)?);
    against_truth(&run, &facts, &key).await
}

fn seconds(facts: &Facts, of: &str) -> f64 {
    facts.timings.iter().filter(|timing| timing.stage.starts_with(of)).map(|timing| timing.seconds).sum()
}

fn snapshots(facts: &Facts) -> f64 {
    seconds(facts, "features/") - seconds(facts, "features/_seen/")
}

/// What the truth itself scores on the gate's rows, and whether people's true top interest is among their labels.
#[expect(clippy::print_stdout, reason = "a bench prints its table")]
async fn against_truth(run: &Run, facts: &Facts, key: &Key) -> nightmarket::error::Result<()> {
    let test = only(run, &format!("dataset/response/dt={}", run.date), "test.parquet").await?;
    let (ids, clicked) = (column::<StringArray>(&test, "impression_id")?, column::<BooleanArray>(&test, "clicked")?);
    let wanted: HashSet<&str> = ids.iter().flatten().collect();
    let mut true_rates = HashMap::new();
    for rows in all(&run.raw, "truth/impressions").await? {
        let (ids, p_click) = (column::<StringArray>(&rows, "impression_id")?, column::<Float64Array>(&rows, "p_click")?);
        let rates = p_click.iter().flatten().zip(column::<Float64Array>(&rows, "p_conversion")?.iter().flatten());
        true_rates.extend(ids.iter().flatten().map(str::to_owned).zip(rates).filter(|(id, _)| wanted.contains(id.as_str())));
    }
    let labels: Vec<bool> = clicked.iter().map(|clicked| clicked.unwrap_or(false)).collect();
    let (truth, true_conversion): (Vec<f64>, Vec<f64>) = ids.iter().flatten().map(|id| true_rates[id]).unzip();
    println!("| scores on {} rows | AUC | logloss | calibration ratio |\n|---|---|---|---|", truth.len());
    for score in facts.gate.iter().flat_map(|judged| &judged.verdict.scores) {
        println!("| {:?} | {:.4} | {:.5} | {:.3} |", score.name, value(score.auc), value(score.logloss), value(score.calibration_ratio));
    }
    let (auc, logloss) = (metrics::auc(&labels, &truth), metrics::logloss(&labels, &truth));
    let ratio = metrics::calibration_ratio(&labels, &truth);
    println!("| truth | {:.4} | {:.5} | {:.3} |\n", value(auc), value(logloss), value(ratio));

    // Over all rows, each weighted by its true P(click): conversions themselves are too few to tell.
    let total = |p: &[f64]| truth.iter().zip(p).map(|(click, conversion)| click * conversion).sum::<f64>();
    for name in ["network", "baseline"] {
        let scores = Response::from_artifact(&artifact(run, name).await?)?.score_logged(&test)?;
        let ratio = scores.p_conversion.map(|p| total(&p) / total(&true_conversion));
        println!("P(conversion) of the {name} over the truth's: {:.3}", value(ratio));
    }
    let late = facts.model.as_ref().map(|model| &model.response["late_conversions"]).filter(|late| !late.is_null());
    if let Some((arrived, expected)) = late.and_then(|late| Some((late["arrived"].as_f64()?, late["expected"].as_f64()?))) {
        println!(
            "it would be {:.3} of that without the conversions still expected: {arrived} arrived of {expected:.1}\n",
            arrived / expected
        );
    }

    let labelled = only(run, &format!("segments/dt={}", run.date), "labels_before_floor.parquet").await?;
    let (users, categories) = (column::<StringArray>(&labelled, "user_id")?, column::<StringArray>(&labelled, "category_id")?);
    let given: HashSet<(&str, &str)> = users.iter().flatten().zip(categories.iter().flatten()).collect();
    let known: HashSet<&str> = users.iter().flatten().collect();
    let (mut hits, mut people) = (0_u64, 0_u64);
    for rows in all(&run.raw, "truth/interests").await? {
        let (users, categories) = (column::<StringArray>(&rows, "user_id")?, column::<StringArray>(&rows, "category_id")?);
        let ranks = column::<Int64Array>(&rows, "rank")?;
        for row in (0..rows.num_rows()).filter(|&row| ranks.value(row) == 1) {
            let pseudonym = key.pseudonym(IdDomain::User, users.value(row));
            people += u64::from(known.contains(pseudonym.as_str()));
            hits += u64::from(given.contains(&(pseudonym.as_str(), categories.value(row))));
        }
    }
    println!(
        "true top interest among the labels of {hits} of {people} labelled users: {:.1} %",
        100.0 * hits as f64 / people.max(1) as f64
    );
    Ok(())
}

fn value(value: Option<f64>) -> f64 {
    value.unwrap_or(f64::NAN)
}

/// The file of that name of a folder's only step.
async fn only(run: &Run, folder: &str, name: &str) -> nightmarket::error::Result<RecordBatch> {
    let objects = run.output.list(folder).await?;
    let path = objects.iter().map(|object| &object.path).find(|path| path.ends_with(name)).expect("the step was done");
    run.output.read_parquet(path).await
}

/// A model of the night.
async fn artifact(run: &Run, name: &str) -> nightmarket::error::Result<Artifact> {
    let mut files = BTreeMap::new();
    for object in run.output.list(&format!("model/dt={}", run.date)).await? {
        if let Some((_, file)) = object.path.split_once(&format!("/{name}/")) {
            files.insert(file.to_owned(), run.output.get(&object.path).await?);
        }
    }
    Artifact::from_files(&files)
}

/// Every table below a folder.
async fn all(store: &Store, folder: &str) -> nightmarket::error::Result<Vec<RecordBatch>> {
    let mut tables = Vec::new();
    for object in store.list(folder).await? {
        tables.push(store.read_parquet(&object.path).await?);
    }
    Ok(tables)
}

/// Lets the kernel's record of the highest memory start anew (Linux); elsewhere the record is of the whole process.
fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Highest resident memory since then, MiB; 0 where the system does not say.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).map_or(0, |kib| kib / 1024)
}

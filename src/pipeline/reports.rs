//! The reports in the output store: tonight's page and facts, the pages over many nights.
//!
//! ```text
//! reports/dt=D/report.html   the night for people        reports/index.html   all nights
//! reports/dt=D/report.json   the same facts              reports/trend.html   how the numbers went
//! reports/dt=D/digest.json   what is followed over nights
//! ```
//!
//! A night reads the digests of the fourteen nights before it, so its history is the same on a rerun. Durations are in `timings`
//! and `took`, and in the digest's `seconds`, `took` and `files`; everything else depends on the night's inputs alone.

use super::facts::Facts;
use crate::error::{Error, Result};
use crate::platform::engine::Cost;
use crate::platform::run::{Run, peak_memory_bytes};
use crate::platform::storage::Store;
use crate::report::changes::changes;
use crate::report::digest::{digest, stage_of};
use crate::{report, spec::Spec};
use chrono::{Days, NaiveDate};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

const FOLDER: &str = "reports";
/// Nights whose numbers a report draws, and nights whose durations say what is usual.
const HISTORY: u64 = 14;
const USUAL: usize = 7;
/// Digests read at a time.
const AT_ONCE: usize = 16;

/// How long the night took, what that costs, and what is usual.
#[derive(Clone, Debug, Serialize)]
pub struct Took {
    pub seconds: f64,
    /// Median of so many nights before.
    pub usual_seconds: Option<f64>,
    pub nights: usize,
    /// In the currency of the job's setting; none without one.
    pub cost_per_hour: Option<f64>,
    pub cost: Option<f64>,
    pub peak_memory_bytes: Option<u64>,
    pub stages: Vec<StageTook>,
    pub files: Vec<FileTook>,
    pub history: Vec<Value>,
}

#[derive(Clone, Debug, Serialize)]
pub struct StageTook {
    pub stage: String,
    pub steps: u64,
    /// Of them, taken from an earlier run.
    pub reused: u64,
    pub rows: u64,
    pub seconds: f64,
    pub usual_seconds: Option<f64>,
    /// Of the night.
    pub share: f64,
    pub cost: Option<f64>,
}

/// What tonight's snapshot of one feature file took.
#[derive(Clone, Debug, Serialize)]
pub struct FileTook {
    pub table: String,
    pub rows: u64,
    pub usual_rows: Option<f64>,
    pub bytes: u64,
    pub seconds: f64,
    pub reused: bool,
    #[serde(flatten)]
    pub cost: Option<Cost>,
    pub usual_cpu_seconds: Option<f64>,
}

/// What no step does: measuring, valuing, admitting, writing the report.
const REST: &str = "outside steps";

/// Completes the facts with their history and writes the night's report.
pub async fn write(run: &Run, spec: &Spec, facts: &mut Facts) -> Result<()> {
    let earlier = digests(&run.output, |date| date < run.date && date >= run.date - Days::new(HISTORY - 1)).await?;
    facts.timings = run.timings();
    facts.took = Some(took(run, spec, facts, &earlier));
    let mut tonight = digest(&serde_json::to_value(&*facts)?);
    facts.history = earlier.iter().chain([&tonight]).map(without_durations).collect();
    if let Some(date) = earlier.last().and_then(date_of) {
        let before = run.output.get_optional(&format!("{FOLDER}/dt={date}/report.json")).await?;
        let before: Value = before.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        facts.changes = changes(&serde_json::to_value(&*facts)?, &tonight, &before, &earlier);
        facts.compared_with = Some(date);
    }
    let folder = format!("{FOLDER}/dt={}", run.date);
    let json = serde_json::to_value(&*facts)?;
    run.output.put(&format!("{folder}/report.json"), serde_json::to_vec_pretty(&json)?.into()).await?;
    run.output.put(&format!("{folder}/report.html"), report::render(&json)?.into()).await?;
    if let Some(first) = run.output.get_optional(&format!("{folder}/digest.json")).await? {
        keep_durations(&mut tonight, &serde_json::from_slice(&first).unwrap_or_default());
    }
    run.output.put(&format!("{folder}/digest.json"), serde_json::to_vec_pretty(&tonight)?.into()).await?;
    write_index(&run.output).await?;
    facts.report = Some(run.output.locate(&format!("{folder}/report.html")).to_string());
    Ok(())
}

fn took(run: &Run, spec: &Spec, facts: &Facts, earlier: &[Value]) -> Took {
    let seconds = run.elapsed_seconds();
    let price = Some(spec.report.machine_cost_per_hour).filter(|price| *price > 0.0);
    let cost = |seconds: f64| price.map(|price| price * seconds / 3600.0);
    let usual = |of: &dyn Fn(&Value) -> Option<f64>| {
        let mut last: Vec<f64> = earlier.iter().rev().filter_map(of).take(USUAL).collect();
        last.sort_by(f64::total_cmp);
        (last.get(last.len() / 2).copied(), last.len())
    };
    let mut stages: Vec<StageTook> = Vec::new();
    let mut add = |stage: String, seconds: f64, rows: u64, reused: bool, steps: u64| {
        let at = stages.iter().position(|other| other.stage == stage).unwrap_or_else(|| {
            let (usual_seconds, _) = usual(&|digest| digest["seconds"][&stage].as_f64());
            stages.push(StageTook { stage, steps: 0, reused: 0, rows: 0, seconds: 0.0, usual_seconds, share: 0.0, cost: None });
            stages.len() - 1
        });
        let stage = &mut stages[at];
        stage.seconds += seconds;
        stage.rows += rows;
        stage.steps += steps;
        stage.reused += u64::from(reused);
    };
    for step in &facts.timings {
        add(stage_of(&step.stage), step.seconds, step.rows, step.reused, 1);
    }
    let in_steps: f64 = facts.timings.iter().map(|step| step.seconds).sum();
    add(REST.to_owned(), (seconds - in_steps).max(0.0), 0, false, 0);
    for stage in &mut stages {
        stage.share = if seconds > 0.0 { stage.seconds / seconds } else { 0.0 };
        stage.cost = cost(stage.seconds);
    }
    let mut files = Vec::new();
    for step in &facts.timings {
        let of_tonight = step.stage.strip_prefix("features/").and_then(|step| step.strip_suffix(&format!("/dt={}", run.date)));
        let Some(table) = of_tonight.filter(|table| !table.contains('/')) else { continue };
        let usual = |key: &str| usual(&|digest| digest["files"][table][key].as_f64()).0;
        files.push(FileTook {
            table: table.to_owned(),
            rows: step.rows,
            usual_rows: usual("rows"),
            bytes: step.bytes,
            seconds: step.seconds,
            reused: step.reused,
            cost: step.cost,
            usual_cpu_seconds: usual("cpu_seconds"),
        });
    }
    let (usual_seconds, nights) = usual(&|digest| digest["took"].as_f64());
    let night = |digest: &Value| Some(json!({"date": digest["date"], "seconds": digest["took"].as_f64()?}));
    let history = earlier.iter().filter_map(night).chain([json!({"date": run.date, "seconds": seconds})]).collect();
    Took {
        seconds,
        usual_seconds,
        nights,
        cost_per_hour: price,
        cost: cost(seconds),
        peak_memory_bytes: peak_memory_bytes(),
        stages,
        files,
        history,
    }
}

fn without_durations(digest: &Value) -> Value {
    let mut digest = digest.clone();
    if let Some(map) = digest.as_object_mut() {
        map.remove("seconds");
        map.remove("took");
        map.remove("files");
    }
    digest
}

/// A rerun that takes steps from the first run says nothing of how long they take: what the first run said stays.
fn keep_durations(tonight: &mut Value, first: &Value) {
    let mut seconds = first["seconds"].as_object().cloned().unwrap_or_default();
    let whole = seconds.keys().all(|stage| !tonight["seconds"][stage].is_null());
    seconds.extend(tonight["seconds"].as_object().cloned().unwrap_or_default());
    tonight["seconds"] = Value::Object(seconds);
    let mut files = first["files"].as_object().cloned().unwrap_or_default();
    files.extend(tonight["files"].as_object().cloned().unwrap_or_default());
    if !files.is_empty() {
        tonight["files"] = Value::Object(files);
    }
    if !whole && first["took"].as_f64() > tonight["took"].as_f64() {
        tonight["took"] = first["took"].clone();
    }
}

fn date_of(digest: &Value) -> Option<NaiveDate> {
    digest["date"].as_str()?.parse().ok()
}

/// The digests of the nights that are wanted, oldest first; one that cannot be read is left out.
async fn digests(output: &Store, wanted: impl Fn(NaiveDate) -> bool) -> Result<Vec<Value>> {
    let mut dates = BTreeMap::new();
    for object in output.list(FOLDER).await? {
        let folder = object.path.strip_suffix("/digest.json").and_then(|folder| folder.rsplit_once("dt="));
        if let Some(date) = folder.and_then(|(_, date)| date.parse().ok()).filter(|date| wanted(*date)) {
            dates.insert(date, object.path);
        }
    }
    let read = futures::stream::iter(dates.into_values()).map(async |path: String| output.get(&path).await).buffered(AT_ONCE);
    let found: Vec<bytes::Bytes> = read.try_collect().await?;
    Ok(found.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect())
}

/// Renders the report of a night again from its stored facts; gives its place.
pub async fn render_again(output: &Store, date: NaiveDate) -> Result<String> {
    let folder = format!("{FOLDER}/dt={date}");
    let json = output
        .get(&format!("{folder}/report.json"))
        .await
        .map_err(|error| error.context(format_args!("the report of {date}")).action("run the night of this date first"))?;
    output.put(&format!("{folder}/report.html"), report::render(&serde_json::from_slice(&json)?)?.into()).await?;
    Ok(output.locate(&format!("{folder}/report.html")).to_string())
}

/// Renders the page over all nights; gives its place.
pub async fn write_index(output: &Store) -> Result<String> {
    let path = format!("{FOLDER}/index.html");
    output.put(&path, report::render_index(&digests(output, |_| true).await?)?.into()).await?;
    Ok(output.locate(&path).to_string())
}

/// Renders how the numbers of the last `nights` nights went; gives its place.
///
/// # Errors
/// `InputMissing` before the first night.
pub async fn write_trend(output: &Store, nights: usize) -> Result<String> {
    let all = digests(output, |_| true).await?;
    if all.is_empty() {
        return Err(Error::new(crate::error::Kind::InputMissing, "there is no report yet").action("run a night first"));
    }
    let path = format!("{FOLDER}/trend.html");
    output.put(&path, report::render_trend(&all[all.len().saturating_sub(nights)..])?.into()).await?;
    Ok(output.locate(&path).to_string())
}

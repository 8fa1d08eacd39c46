//! What the night found, section by section: the JSON behind the report, and the ten lines a person reads first.

use super::Stage;
use super::diagnosis::Diagnosis;
use super::learning::{Judged, ModelFacts};
use super::lineage::{Configuration, Lineage, Written};
use super::money::MoneyFacts;
use super::reports::Took;
use super::serving::Movers;
use crate::admit::Admission;
use crate::dataset::DatasetFacts;
use crate::deliver::Delivered;
use crate::evaluate::EvaluationFacts;
use crate::features::drift::Drift;
use crate::features::ledger::{self, Entry};
use crate::features::{FeatureFacts, Snapshots};
use crate::ingest::{IngestFacts, Staged};
use crate::platform::checks::Checks;
use crate::platform::run::{Done, GIT_SHA, Run, Timing, VERSION};
use crate::publish::PublishFacts;
use crate::report::changes::Change;
use crate::statistics::ope;
use crate::workbench::leak::Leaks;
use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;
use serde_json::Value;

/// The shape of `report.json`, as `report/facts.md` describes it. It grows where facts are renamed, moved or taken away; new ones
/// may come at any time.
const SCHEMA_VERSION: u32 = 2;

/// Everything the report shows. Only `timings`, `took` and `ledger` differ between two runs of the same night.
#[derive(Serialize)]
pub struct Facts {
    pub schema_version: u32,
    pub run: RunFacts,
    pub checks: Checks,
    pub ingest: Option<IngestFacts>,
    pub features: Vec<FeatureFacts>,
    /// What was taken from earlier nights: not the same when the night is run again.
    pub ledger: Vec<Entry>,
    pub leak: Option<Leaks>,
    pub drift: Vec<Drift>,
    pub dataset: Option<Datasets>,
    pub model: Option<ModelFacts>,
    pub gate: Option<Judged>,
    pub diagnosis: Option<Diagnosis>,
    pub segments: Option<Value>,
    pub targeting: Option<Value>,
    pub admit: Option<Admission>,
    pub off_policy: Option<ope::Evaluation>,
    pub publish: Option<PublishFacts>,
    pub deliver: Option<Delivered>,
    pub written: Option<Written>,
    pub evaluate: Option<EvaluationFacts>,
    pub money: Option<MoneyFacts>,
    pub movers: Option<Movers>,
    pub lineage: Option<Lineage>,
    pub configuration: Option<Configuration>,
    /// Digests of the last nights, oldest first, tonight's last.
    pub history: Vec<Value>,
    /// Against the latest night before, most surprising first.
    pub changes: Vec<Change>,
    pub compared_with: Option<NaiveDate>,
    /// Stages and tables left out, each with its reason.
    pub skipped: Vec<String>,
    pub timings: Vec<Timing>,
    pub took: Option<Took>,
    /// Where the report of these facts lies.
    #[serde(skip)]
    pub report: Option<String>,
}

#[derive(Serialize)]
pub struct RunFacts {
    pub job: String,
    pub date: NaiveDate,
    pub as_of: DateTime<Utc>,
    pub cut_off: DateTime<Utc>,
    pub timezone: String,
    pub seed: u64,
    pub version: &'static str,
    pub git_sha: &'static str,
    pub policy_version: Option<String>,
}

#[derive(Serialize)]
pub struct Datasets {
    pub response: DatasetFacts,
    pub interest: Option<DatasetFacts>,
}

impl Facts {
    pub(super) fn new(run: &Run) -> Self {
        let job = &run.job;
        let facts = RunFacts {
            job: job.name.clone(),
            date: run.date,
            as_of: run.as_of(),
            cut_off: run.cut_off(),
            timezone: job.timezone.name().to_owned(),
            seed: job.seed,
            version: VERSION,
            git_sha: GIT_SHA,
            policy_version: None,
        };
        Self {
            schema_version: SCHEMA_VERSION,
            run: facts,
            checks: Checks::default(),
            ingest: None,
            features: Vec::new(),
            ledger: Vec::new(),
            leak: None,
            drift: Vec::new(),
            dataset: None,
            model: None,
            gate: None,
            diagnosis: None,
            segments: None,
            targeting: None,
            admit: None,
            off_policy: None,
            publish: None,
            deliver: None,
            written: None,
            evaluate: None,
            money: None,
            movers: None,
            lineage: None,
            configuration: None,
            history: Vec::new(),
            changes: Vec::new(),
            compared_with: None,
            skipped: Vec::new(),
            timings: Vec::new(),
            took: None,
            report: None,
        }
    }

    pub(super) fn ingested(&mut self, staged: &Staged, policy_version: &str) {
        self.run.policy_version = Some(policy_version.to_owned());
        self.skipped.extend(staged.facts.skipped.iter().cloned());
        if staged.people.is_none() {
            self.skipped.push("clustering by user, GAUC, per-user caps and user history: the rows belong to no persons".to_owned());
        }
        if !staged.has("events") {
            self.skipped.push("interest model: there are no events; interests come from responses to ads".to_owned());
        }
        if !staged.has("campaigns") {
            self.skipped.push("budgets: there are no campaigns".to_owned());
        }
        self.ingest = Some(staged.facts.clone());
    }

    pub(super) fn featured(&mut self, snapshots: &Snapshots) {
        self.skipped.extend(snapshots.skipped.iter().cloned());
        self.features = snapshots.facts();
        self.ledger.clone_from(&snapshots.ledger);
    }

    pub(super) fn prepared(&mut self, response: &Done<DatasetFacts>, interest: Option<&Done<DatasetFacts>>) {
        self.dataset = Some(Datasets { response: response.facts.clone(), interest: interest.map(|done| done.facts.clone()) });
    }
}

/// The night in ten lines; fewer when it stopped on the way.
pub fn summary(facts: &Facts, until: Stage) -> Result<String, serde_json::Error> {
    let json = serde_json::to_value(facts)?;
    let text = |path: &str| match json.pointer(path) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    let sum = |list: &str, key: &str| {
        let rows = json.pointer(list).and_then(Value::as_array);
        rows.into_iter().flatten().filter_map(|row| row[key].as_f64()).fold(0.0, |sum, value| sum + value)
    };
    let count = |list: &str| json.pointer(list).and_then(Value::as_array).map_or(0, Vec::len);
    let find = |list: &str, key: &str, name: &str| {
        json.pointer(list).and_then(Value::as_array).and_then(|rows| rows.iter().find(|row| row[key] == name)).cloned().unwrap_or_default()
    };
    let score = |name: &str| {
        let row = find("/gate/scores", "name", name);
        match (row["auc"].as_f64(), row["logloss"].as_f64()) {
            (auc, Some(logloss)) => format!("{name} AUC {} logloss {logloss:.5}", auc.map_or("-".into(), |auc| format!("{auc:.4}"))),
            _ => format!("{name} -"),
        }
    };
    let splits = |name: &str| {
        let row = find("/dataset/response/splits", "name", name);
        format!("{} {} ({} clicks)", name, row["rows"], row["clicks"])
    };
    let rate = |arm: &str| {
        let row = find("/evaluate/arms", "arm", arm);
        row["ctr"]["value"].as_f64().map(|value| format!("{arm} {:.2} % of {}", 100.0 * value, row["impressions"]))
    };
    let arms: Vec<String> = json
        .pointer("/evaluate/arms")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|row| rate(row["arm"].as_str()?))
        .collect();
    let dropped = sum("/ingest/tables", "dropped_suppressed") + sum("/ingest/tables", "dropped_no_consent");
    let seconds: f64 = facts.timings.iter().map(|timing| timing.seconds).sum();
    let served = match text("/evaluate/policy_version") {
        none if none == "-" => "the arms of the logs, before any table".to_owned(),
        version => version,
    };
    let delta = facts
        .publish
        .as_ref()
        .and_then(|publish| publish.delta.as_ref())
        .map(|delta| format!("; rows of ads: {} new, {} changed, {} gone", delta.added, delta.changed, delta.removed));
    let ended = match until >= Stage::Publish {
        true => format!("{} {}", text("/publish/state"), text("/publish/reason")),
        false => format!("stopped after {}", format!("{until:?}").to_lowercase()),
    };
    let lines = [
        (Stage::Ingest, format!("{} {}: {ended}", text("/run/job"), text("/run/date"))),
        (
            Stage::Ingest,
            format!(
                "input      {} raw rows in {} tables; {dropped} rows of suppressed or unconsenting people dropped",
                sum("/ingest/raw", "rows"),
                count("/ingest/raw")
            ),
        ),
        (
            Stage::Features,
            format!("features   {} snapshots, {} rows; {}", count("/features"), sum("/features", "rows"), ledger::summary(&facts.ledger)),
        ),
        (Stage::Dataset, format!("examples   {}; {}; {}", splits("train"), splits("valid"), splits("test"))),
        (Stage::Gate, format!("model      {}; {}; {}", score("challenger"), score("baseline"), score("champion"))),
        (Stage::Gate, format!("gate       {}: {}", text("/gate/kind"), text("/gate/reason"))),
        (
            Stage::Segments,
            format!("segments   {} segments, {} users released", count("/segments/segments"), text("/segments/users_released")),
        ),
        (
            Stage::Targeting,
            format!(
                "targeting  {} campaigns, {} impressions planned, {} of {} budget{}",
                count("/targeting/campaigns"),
                text("/targeting/planned_impressions"),
                sum("/targeting/campaigns", "planned_spend").round(),
                sum("/targeting/campaigns", "budget").round(),
                delta.unwrap_or_default()
            ),
        ),
        (
            Stage::Report,
            format!(
                "measured   {served}: {}",
                if arms.is_empty() { "nothing was shown".to_owned() } else { format!("CTR of {}", arms.join(", ")) }
            ),
        ),
        (
            Stage::Publish,
            format!("report     {} ({seconds:.0} s; {} skipped)", facts.report.as_deref().unwrap_or("-"), facts.skipped.len()),
        ),
    ];
    let lines: Vec<String> = lines.into_iter().filter(|(stage, _)| *stage <= until).map(|(_, line)| line).collect();
    Ok(lines.join("\n"))
}

//! A job's spec, whole: the settings of every stage in one TOML file, parsed once and trusted from then on.

use crate::error::{Context, Error, Result};
use crate::platform::job::{Job, parse_toml};
use crate::platform::{engine, pseudonym};
use crate::{dataset, deliver, evaluate, features, gate, ingest, model, report, segments, targeting};
use serde::{Deserialize, Serialize};
use std::path::Path;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Goes into every policy version.
    pub name: String,
    /// IANA time zone whose days the job means.
    pub timezone: String,
    /// Folder of the shop's SQL.
    pub sql: String,
    /// Hours after midnight for which a snapshot still waits for late rows.
    pub arrival_lag_hours: u32,
    pub seed: u64,
    pub store: Stores,
    #[serde(default)]
    pub engine: engine::Settings,
    #[serde(default)]
    pub privacy: pseudonym::Settings,
    #[serde(default)]
    pub ingest: ingest::Settings,
    #[serde(default)]
    pub features: features::Settings,
    #[serde(default)]
    pub dataset: dataset::Settings,
    #[serde(default)]
    pub model: model::ModelSettings,
    #[serde(default)]
    pub interest: model::InterestSettings,
    #[serde(default)]
    pub gate: gate::GateSettings,
    #[serde(default)]
    pub segments: segments::Settings,
    #[serde(default)]
    pub targeting: targeting::Settings,
    #[serde(default)]
    pub evaluate: evaluate::EvaluateSettings,
    #[serde(default)]
    pub deliver: deliver::Settings,
    #[serde(default)]
    pub report: report::Settings,
}

/// Where the job reads and writes: `file://`, `s3://`, `gs://`, `az://` or a path from the working directory.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Stores {
    pub raw: String,
    pub output: String,
}

/// A week: the run of a date cannot wait longer for its rows.
const LONGEST_LAG_HOURS: u32 = 168;

impl Spec {
    /// Reads and checks a spec.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|error| Error::usage(format_args!("reading {}: {error}", path.display())))?;
        let spec: Self = parse_toml(&text, &path.display().to_string())?;
        spec.check().with_context(|| path.display().to_string())?;
        Ok(spec)
    }

    fn check(&self) -> Result<()> {
        // It is part of policy versions, of lock names and of keys, where other signs have a meaning of their own.
        if self.name.is_empty() || !self.name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')) {
            return Err(Error::usage(format_args!("name = {:?}: a job is named by letters, digits, _ and -", self.name)));
        }
        if self.ingest.consent == ingest::Consent::NotApplicable
            && self.ingest.consent_reason.as_deref().unwrap_or_default().trim().is_empty()
        {
            return Err(Error::usage("[ingest] consent = \"not_applicable\" needs its reason in consent_reason"));
        }
        if self.engine.buckets == 0 {
            return Err(Error::usage("[engine] buckets must be at least 1"));
        }
        if !(0.0..=1.0).contains(&self.features.leak_share) {
            return Err(Error::usage("[features] leak_share must lie between 0 and 1"));
        }
        self.dataset.check()?;
        self.model.check()?;
        self.interest.check()?;
        self.gate.check()?;
        self.evaluate.check()?;
        if self.engine.memory_mib == 0 {
            return Err(Error::usage("[engine] memory_mib must be at least 1"));
        }
        if self.arrival_lag_hours > LONGEST_LAG_HOURS {
            return Err(Error::usage(format_args!("arrival_lag_hours = {} is more than {LONGEST_LAG_HOURS}", self.arrival_lag_hours))
                .action("rows that arrive later than a week are taken by the night that finds them"));
        }
        let needed = self.dataset.train_days + 3 * (self.dataset.label_window_days + 1);
        if needed > self.ingest.history_days {
            return Err(Error::usage(format_args!(
                "[dataset] needs {needed} days of impressions, but [ingest] history_days = {}",
                self.ingest.history_days
            )));
        }
        self.segments.check()?;
        self.targeting.check()?;
        self.deliver.check()?;
        self.job().map(drop)
    }

    /// Fewest users whom a segment may serve; `None` where rows belong to no persons.
    pub fn floor(&self) -> Option<u64> {
        (self.ingest.consent == ingest::Consent::Required).then_some(self.segments.floor)
    }

    /// What every stage must know of the job.
    pub fn job(&self) -> Result<Job> {
        let timezone = self.timezone.parse().map_err(|_| Error::usage(format_args!("timezone {} is not an IANA name", self.timezone)))?;
        Ok(Job { name: self.name.clone(), timezone, sql: self.sql.clone(), arrival_lag_hours: self.arrival_lag_hours, seed: self.seed })
    }

    /// The settings that may change a published byte: not where the job reads and writes, nor how much of the machine it uses.
    pub fn decisive(&self) -> serde_json::Value {
        let mut value = serde_json::to_value(self).expect("settings serialise");
        let sections = value.as_object_mut().expect("a spec is a table");
        sections.remove("store");
        sections.remove("report");
        sections.remove("deliver");
        // Tests alone.
        sections.remove("features");
        if let Some(engine) = sections.get_mut("engine").and_then(serde_json::Value::as_object_mut) {
            engine.retain(|key, _| key == "buckets");
        }
        value
    }
}

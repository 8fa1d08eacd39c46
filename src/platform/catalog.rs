//! The analyst's room as the program sees it: `sql/<shop>/`, one file = one SELECT = one table named like the file.
//!
//! A file's header comment says its grain and owner; its dependencies are the tables its FROM names, so the order of execution
//! needs no configuration. `sources.toml` holds the contract of each raw table.

use crate::error::{Error, Result};
use crate::platform::diagnostic;
use crate::platform::expectation::{Expectation, Severity};
use crate::platform::survey::{Survey, survey};
use arrow::datatypes::{DataType, TimeUnit};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Everything under `sql/<shop>/`.
#[derive(Clone, Debug)]
pub struct Catalog {
    pub sources: BTreeMap<String, Source>,
    /// The canonical tables, in an order in which each comes after those it reads.
    pub staging: Vec<Query>,
    /// The feature tables, ordered likewise.
    pub features: Vec<Query>,
    /// Rules and seed lists: the users whom one returns are a segment, or those like them are.
    pub segments: Vec<Query>,
    /// Rows returned are violations; run on the staged tables.
    pub checks: Vec<Query>,
}

/// The contract of one raw table.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Folder or file below the raw root; Parquet, or CSV with a header line.
    pub location: String,
    pub kind: SourceKind,
    /// The Hive key of the day folders, `dt` in `dt=2026-11-22`.
    #[serde(default)]
    pub partition: Option<String>,
    /// Instead of day folders: the timestamp column by whose local date rows belong to a day.
    #[serde(default)]
    pub day_column: Option<String>,
    /// Or neither: the table is the same on every day.
    #[serde(default)]
    pub whole: bool,
    /// Without the run date's day of a required table the night does not start (exit 20).
    #[serde(default)]
    pub required: bool,
    /// Duplicates of it are counted and reported; staging removes them.
    #[serde(default)]
    pub key: Vec<String>,
    /// A key of the run date that comes twice, in a log also on an earlier day, is a violation.
    #[serde(default)]
    pub unique: bool,
    /// Fewest and most rows of the run date's day.
    #[serde(default)]
    pub min_rows: Option<u64>,
    #[serde(default)]
    pub max_rows: Option<u64>,
    /// The column that says when a row's event happened; later ones are not known yet. An outcome (a click, an order) has none: it
    /// counts from its arrival.
    #[serde(default)]
    pub occurred_at: Option<String>,
    /// The column that says when a row was delivered.
    #[serde(default)]
    pub arrived_at: Option<String>,
    /// The newest row of the run date is at most so much older than its end.
    #[serde(default)]
    pub freshness_hours: Option<f64>,
    /// Fewest and most rows of the run date, as shares of the median of the seven nights before.
    #[serde(default)]
    pub rows_within: Option<[f64; 2]>,
    /// What a violation of `unique`, `freshness_hours` and `rows_within` does.
    #[serde(default)]
    pub severity: Severity,
    pub columns: BTreeMap<String, Column>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// Every day adds rows.
    Log,
    /// Every day holds the full state; the latest day not after the as-of date counts.
    Snapshot,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Column {
    #[serde(rename = "type")]
    pub kind: ColumnKind,
    /// A personal identifier of this domain: no SQL ever sees it, only its keyed pseudonym.
    #[serde(default)]
    pub id: Option<IdDomain>,
    #[serde(default = "yes")]
    pub nullable: bool,
    /// An optional column may be absent; it is then all NULL.
    #[serde(default)]
    pub optional: bool,
    /// The numbers between which it lies, ends included; NULL does.
    #[serde(default)]
    pub min: Option<f64>,
    #[serde(default)]
    pub max: Option<f64>,
    /// The values it may have beside NULL; of a number, as it is written.
    #[serde(default)]
    pub accepted: Vec<String>,
    /// What a violation of these does.
    #[serde(default)]
    pub severity: Severity,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ColumnKind {
    String,
    Int64,
    Float64,
    Bool,
    Timestamp,
    Date,
}

impl ColumnKind {
    /// The plain Arrow type in which SQL sees a column of this kind.
    pub fn data_type(self) -> DataType {
        match self {
            ColumnKind::String => DataType::Utf8,
            ColumnKind::Int64 => DataType::Int64,
            ColumnKind::Float64 => DataType::Float64,
            ColumnKind::Bool => DataType::Boolean,
            ColumnKind::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            ColumnKind::Date => DataType::Date32,
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum IdDomain {
    User,
    Device,
}

/// One SQL file.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// The file's stem, which is the table's name.
    pub name: String,
    pub path: PathBuf,
    /// The text as in the file.
    pub sql: String,
    pub description: String,
    pub grain: Vec<String>,
    pub owner: Option<String>,
    /// Words to select tables by.
    pub tags: BTreeSet<String>,
    /// A staging query that runs once a day of this raw table.
    pub daily: Option<String>,
    /// What its FROM names: `raw.events`, `events`.
    pub reads: BTreeSet<String>,
    /// How far before the as-of date its text looks, days; `None` where it does not say.
    pub looks_back_days: Option<u64>,
    /// Of a feature: how far before the as-of date it is shown logs, days; without it, as far as the night reads.
    pub window_days: Option<u64>,
    /// What the header says of the columns.
    pub expectations: Vec<Expectation>,
    /// Of a check: what its rows do.
    pub severity: Severity,
    /// Of a segment: its name for people.
    pub label: Option<String>,
    /// Of a segment: whether it comes before the interests of its users.
    pub leads: bool,
    /// Of a segment: what is wanted of those who are like its users; `None` where the users themselves are the segment.
    pub seeds: Option<Seeds>,
    pub sha256: String,
    /// Of what decides the rows: grain, window and the statement without its comments and blanks.
    pub statement_sha256: String,
}

/// What a header says of lookalikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    /// Users wanted.
    pub size: Option<u64>,
    /// Whether the seeds are in their own segment.
    pub kept: bool,
}

impl Query {
    /// The entity of a feature table: `user_category` of `user_category__affinity`.
    pub fn entity(&self) -> &str {
        self.name.split_once("__").map_or(self.name.as_str(), |(entity, _)| entity)
    }

    /// The folder it stands in: `features`.
    pub fn room(&self) -> &str {
        self.path.parent().and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default()
    }

    /// The raw tables it reads.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.reads.iter().filter_map(|name| name.strip_prefix("raw."))
    }
}

impl Catalog {
    /// Reads `sql/<shop>/`.
    ///
    /// # Errors
    /// `Usage`, naming file and line, for a file that is not one SELECT, lies about its header or stands in a cycle.
    pub fn load(folder: &Path) -> Result<Self> {
        let Survey { catalog, diagnostics, .. } = survey(folder)?;
        let mut errors = diagnostics.into_iter().filter(|found| found.severity == diagnostic::Severity::Error);
        match errors.next() {
            None => Ok(catalog),
            Some(first) => Err(match errors.count() {
                0 => first.into(),
                more => {
                    Error::from(first).context(format_args!("{} files or lines of {} are wrong, the first", more + 1, folder.display()))
                }
            }),
        }
    }

    /// Every query, in the order of the night.
    pub fn queries(&self) -> impl Iterator<Item = &Query> {
        self.staging.iter().chain(&self.features).chain(&self.segments).chain(&self.checks)
    }

    pub fn staged(&self, name: &str) -> Option<&Query> {
        self.staging.iter().find(|query| query.name == name)
    }

    /// The raw tables that a canonical table is made of, directly or through other canonical tables.
    pub fn sources_of(&self, table: &str) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut open = vec![table];
        while let Some(query) = open.pop().and_then(|name| self.staged(name)) {
            found.extend(query.sources());
            open.extend(query.reads.iter().map(String::as_str).filter(|name| !name.starts_with("raw.")));
        }
        found
    }
}

/// The candidate nearest to `name`, when it is near enough to be a slip of the finger.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(name.len()) / 3)
        .min()
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_its_neighbour() {
        assert_eq!(nearest("evnets", ["users", "events"].into_iter()), Some("events"));
        assert_eq!(nearest("zebra", ["users", "events"].into_iter()), None);
    }
}

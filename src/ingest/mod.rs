//! Raw logs -> canonical tables. Are the date's inputs here, whole and as contracted? Then each staging query runs, over rows
//! whose personal ids are already pseudonyms, and people who are suppressed or did not consent are dropped from its output
//! before anything else reads it.
//!
//! What must hold afterwards: every staged row belongs to somebody who may be profiled; every later stage sees the tables only
//! through [`Staged::as_of`], which shows what was known at a day's cut-off and nothing later.

mod contract;
mod known;
mod people;
mod raw;
mod replay;
mod staging;

use crate::error::Result;
use crate::platform::catalog::{Catalog, Query, SourceKind};
use crate::platform::checks::{Check, Checks};
use crate::platform::pseudonym::Key;
use crate::platform::run::Run;
use crate::platform::storage::Store;
use arrow::datatypes::SchemaRef;
use chrono::NaiveDate;
pub use known::{Known, TIMES};
use people::Allowed;
use people::suppressed;
use raw::RawTables;
pub use replay::{Logs, Part};
use serde::{Deserialize, Serialize};
pub use staging::bucket_of;
use staging::stage;
use std::collections::{BTreeMap, BTreeSet, HashSet};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Days of logs that the night reads, the run date included: enough for the longest feature window before the oldest snapshot.
    pub history_days: u64,
    pub consent: Consent,
    /// Why no consent is needed, when it is `not_applicable`.
    pub consent_reason: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { history_days: 28, consent: Consent::Required, consent_reason: None }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Consent {
    /// Without a consent to `profile` nothing of a user is read: default deny.
    Required,
    /// The rows belong to no identifiable person.
    NotApplicable,
}

/// The canonical tables of one night.
#[derive(Clone, Debug)]
pub struct Staged {
    tables: BTreeMap<String, Table>,
    /// Who may be targeted and measured; absent when consent is not applicable.
    pub people: Option<People>,
    pub facts: IngestFacts,
    /// What was asked of the raw tables, and what is only worth a warning.
    pub checks: Checks,
    /// Hash of every input byte, contract and staging query.
    pub fingerprint: String,
}

#[derive(Clone, Debug)]
struct Table {
    /// What the days of a daily table mean; `None` for a table made once from everything.
    kind: Option<SourceKind>,
    schema: SchemaRef,
    store: Store,
    files: Vec<StagedFile>,
    bucketed: bool,
    /// The columns by which each file is sorted.
    order: Vec<String>,
    key: String,
}

#[derive(Clone, Debug, PartialEq)]
struct StagedFile {
    path: String,
    /// `None`: of all days.
    day: Option<NaiveDate>,
    bucket: Option<usize>,
}

/// Users by the purposes they consented to, suppressed ones left out.
#[derive(Clone, Debug, Default)]
pub struct People {
    pub target: BTreeSet<String>,
    pub measure: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct IngestFacts {
    pub raw: Vec<RawFacts>,
    pub tables: Vec<TableFacts>,
    pub skipped: Vec<String>,
}

/// One raw table as it arrived.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct RawFacts {
    pub name: String,
    pub kind: SourceKind,
    pub days: usize,
    pub rows: u64,
    pub bytes: u64,
    /// Rows of the run date whose key another row of that day, or of the folders just before it, already has.
    pub duplicates: u64,
}

/// One canonical table as it was staged.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct TableFacts {
    pub name: String,
    pub rows: u64,
    pub dropped_suppressed: u64,
    pub dropped_no_consent: u64,
}

/// Tables that say who may be processed at all: they are staged first, and their absence is a matter of privacy.
const PEOPLE_TABLES: [&str; 2] = ["suppressions", "consents"];

pub async fn run(run: &Run, settings: &Settings, key: &Key) -> Result<Staged> {
    let raw = RawTables::discover(run, settings, |_| true).await?;
    let (duplicates, checks) = raw.check_day(run, key).await?;
    let mut staged = Staged { checks, ..Staged::nothing(raw.fingerprint()) };
    let (first, rest): (Vec<_>, Vec<_>) = run.catalog.staging.iter().partition(|query| decides_people(&run.catalog, &query.name));
    for query in first {
        stage(run, &raw, &mut staged, query, key, &Allowed::Everybody).await?;
    }
    let people = People::read(run, settings, &staged).await?;
    let allowed = match settings.consent {
        Consent::Required => Allowed::Consenting { suppressed: &people.suppressed, profile: &people.profile },
        Consent::NotApplicable => Allowed::Unless { suppressed: &people.suppressed },
    };
    for query in rest {
        stage(run, &raw, &mut staged, query, key, &allowed).await?;
    }
    staged.people = (settings.consent == Consent::Required).then_some(People { target: people.target, measure: people.measure });
    staged.facts.raw = raw.facts(&duplicates);
    staged.facts.skipped = raw.skipped;
    Ok(staged)
}

/// Asks what the headers of the canonical tables say of their columns, and the shop's own checks, as of the run date.
///
/// # Errors
/// `Contract`, with the query and some rows of every violation that is an error.
pub async fn check(run: &Run, staged: &Staged) -> Result<Checks> {
    let mut checks = Checks::default();
    for query in run.catalog.staging.iter().filter(|query| staged.has(&query.name)) {
        for expected in query.expectations.iter().filter(|expected| expected.reads().is_none_or(|other| staged.has(other))) {
            let tables = [query.name.as_str()].into_iter().chain(expected.reads());
            let context = staged.as_of(run, run.date, None, tables)?;
            checks.ask(&context, &expected.of(query), run.as_of()).await?;
        }
    }
    for query in run.catalog.checks.iter().filter(|query| query.reads.iter().all(|table| staged.has(table))) {
        let context = staged.as_of(run, run.date, None, query.reads.iter().map(String::as_str))?;
        let check = Check { name: query.path.display().to_string(), severity: query.severity, sql: query.sql.clone() };
        checks.ask(&context, &check, run.as_of()).await?;
    }
    checks.judge()?;
    Ok(checks)
}

/// The pseudonyms on the run date's suppression list and on the newest one, where a later day's has arrived since. Nothing else of these
/// days need have arrived.
pub async fn suppressed_on(run: &Run, settings: &Settings, key: &Key) -> Result<HashSet<String>> {
    let mut suppressed = suppression_list(run, settings, key).await?;
    if let Some(newest) = raw::newest_suppressions(run).await?.filter(|newest| *newest > run.date) {
        suppressed.extend(suppression_list(&run.on(newest), settings, key).await?);
    }
    Ok(suppressed)
}

/// The pseudonyms on the newest suppression list, however old it is.
pub async fn suppressed_at_last(run: &Run, settings: &Settings, key: &Key) -> Result<HashSet<String>> {
    match raw::newest_suppressions(run).await? {
        Some(newest) => suppression_list(&run.on(newest), settings, key).await,
        None => suppression_list(run, settings, key).await,
    }
}

async fn suppression_list(run: &Run, settings: &Settings, key: &Key) -> Result<HashSet<String>> {
    let sources = run.catalog.sources_of("suppressions");
    let raw = RawTables::discover(run, settings, |name| sources.contains(name)).await?;
    let mut staged = Staged::nothing(raw.fingerprint());
    let feeds = |query: &Query| !query.sources().any(|source| !sources.contains(source));
    for query in run.catalog.staging.iter().filter(|query| decides_people(&run.catalog, &query.name) && feeds(query)) {
        stage(run, &raw, &mut staged, query, key, &Allowed::Everybody).await?;
    }
    suppressed(run, &staged).await
}

/// Whether a canonical table is one of the people tables or feeds one.
fn decides_people(catalog: &Catalog, name: &str) -> bool {
    let feeds = |table: &str| catalog.staged(table).is_some_and(|query| query.reads.contains(name));
    PEOPLE_TABLES.contains(&name) || PEOPLE_TABLES.iter().any(|table| feeds(table))
}

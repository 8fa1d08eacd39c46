//! Canonical tables -> feature snapshots: every feature query of the shop, as of each day asked for.
//!
//! The queries see the tables through [`Staged::as_of`], so a snapshot of day d holds nothing that was not known at d's cut-off.
//! A table keyed by user runs bucket by bucket: memory is bounded by the largest bucket, and the rows stay in bucket order. What an
//! earlier night computed from the same rows is not computed again: see [`ledger`].

pub mod drift;
pub mod ledger;
mod seen;

use crate::error::{Context, Error, Result};
use crate::ingest::Staged;
use crate::platform::catalog::Query;
use crate::platform::checks::Checks;
use crate::platform::engine::{self, Cost, Format};
use crate::platform::run::{Done, Run, Step};
use arrow::array::{Array, RecordBatch};
use arrow::datatypes::SchemaRef;
use chrono::NaiveDate;
use datafusion::prelude::{DataFrame, SessionContext, ident, lit};
use futures::stream::{self, StreamExt, TryStreamExt};
use ledger::{Entry, Inputs, Mend, Way};
use seen::{Seen, View};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::Arc;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The share of the devices and users on whom the night tests that no feature knows the future; 0 = no test.
    pub leak_share: f64,
    pub drift: drift::Limits,
}

impl Default for Settings {
    fn default() -> Self {
        Self { leak_share: 0.02, drift: drift::Limits::default() }
    }
}

/// The feature tables of the night, by day.
#[derive(Clone, Debug)]
pub struct Snapshots {
    /// Table -> its key columns and feature columns; the same on every day.
    pub tables: BTreeMap<String, FeatureTable>,
    days: BTreeMap<NaiveDate, BTreeMap<String, Done<Made>>>,
    pub skipped: Vec<String>,
    /// What became of each snapshot, in the order in which they were made.
    pub ledger: Vec<Entry>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct FeatureTable {
    pub entity: String,
    pub key: Vec<String>,
    pub columns: Vec<String>,
    schema: SchemaRef,
}

/// One feature table on one day.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct FeatureFacts {
    pub table: String,
    pub day: NaiveDate,
    pub rows: u64,
}

/// What a snapshot's step leaves beside its files.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Made {
    facts: FeatureFacts,
    columns: String,
    /// The digest of its rows, for those who read it.
    content: String,
}

const SCHEMA_FILE: &str = "_schema.parquet";

/// Computes every feature table as of each of `days`.
pub async fn run(run: &Run, staged: &Staged, days: &BTreeSet<NaiveDate>) -> Result<Snapshots> {
    only(run, staged, days, |_| true).await
}

/// Computes the feature tables that are wanted; these must come with those they read.
pub async fn only(run: &Run, staged: &Staged, days: &BTreeSet<NaiveDate>, wanted: impl Fn(&str) -> bool) -> Result<Snapshots> {
    let mut snapshots = Snapshots { tables: BTreeMap::new(), days: BTreeMap::new(), skipped: Vec::new(), ledger: Vec::new() };
    let mut queries: Vec<&Query> = Vec::new();
    for query in run.catalog.features.iter().filter(|query| wanted(&query.name)) {
        let there = |name: &String| staged.has(name) || queries.iter().any(|earlier| earlier.name == *name);
        match query.reads.iter().find(|name| !there(name)) {
            Some(absent) => {
                snapshots.skipped.push(format!("feature table {}: it reads {absent}, which this shop does not have", query.name))
            }
            None => queries.push(query),
        }
    }
    let (mut digests, all_days) = (BTreeMap::new(), days.iter().copied().collect::<Vec<_>>());
    for query in &queries {
        for name in query.reads.iter().filter(|name| staged.has(name)) {
            let view = View { name, window_days: query.window_days };
            if digests.contains_key(&view) {
                continue;
            }
            let mends = |other: &&&Query| other.window_days.is_some() && by_user(&other.grain);
            let users = queries.iter().filter(mends).any(|other| other.window_days == view.window_days && other.reads.contains(name));
            let read = view.digests(run, staged, &all_days, users).await;
            digests.insert(view, read.with_context(|| format!("features {}: reading {name}", query.name))?);
        }
    }
    for &day in days {
        for query in &queries {
            let of = |name: &str| {
                let view = View { name, window_days: query.window_days };
                match digests.get(&view) {
                    Some(done) => Seen::staged(&view, staged, done, day),
                    None => Seen::feature(&snapshots, name, day),
                }
            };
            let seen = query.reads.iter().map(|name| Ok((name.as_str(), of(name)?))).collect::<Result<_>>()?;
            snapshot(run, staged, &mut snapshots, query, day, &seen).await.with_context(|| format!("features {} for {day}", query.name))?;
        }
    }
    Ok(snapshots)
}

/// A sentence where features look further back than the night reads logs for the oldest snapshot: training then sees shorter windows
/// than tonight's table is made of.
pub fn short_windows(run: &Run, history_days: u64, snapshot_days: &BTreeSet<NaiveDate>) -> Option<String> {
    let looks_back = run.catalog.features.iter().filter_map(|query| query.looks_back_days.map(|days| (days, &query.name)));
    let (window, table) = looks_back.max_by_key(|(days, _)| *days)?;
    let oldest = *snapshot_days.first()?;
    let back = (run.date - oldest).num_days().unsigned_abs();
    (window + back > history_days).then(|| {
        format!(
            "days of feature windows: {table} looks {window} days back, and the oldest snapshot, of {oldest}, sees {} days of logs; [ingest] \
             history_days = {} reads them all",
            history_days.saturating_sub(back),
            window + back
        )
    })
}

/// Asks what the headers of the feature files say of their columns, of the run date's snapshot.
///
/// # Errors
/// `Contract`, with the query and some rows of every violation that is an error.
pub async fn check(run: &Run, staged: &Staged, snapshots: &Snapshots) -> Result<Checks> {
    let mut checks = Checks::default();
    let context = engine::session(&run.engine)?;
    snapshots.register(&context, run.date, None, |_| true)?;
    let there = |context: &SessionContext, name: &str| context.table_exist(name).unwrap_or(false);
    for query in run.catalog.features.iter().filter(|query| there(&context, &query.name)) {
        for expected in &query.expectations {
            if let Some(other) = expected.reads().filter(|other| !there(&context, other)) {
                staged.register(&context, run, other, run.date, None)?;
            }
            if expected.reads().is_none_or(|other| there(&context, other)) {
                checks.ask(&context, &expected.of(query), run.as_of()).await?;
            }
        }
    }
    checks.judge()?;
    Ok(checks)
}

async fn snapshot(
    run: &Run,
    staged: &Staged,
    snapshots: &mut Snapshots,
    query: &Query,
    day: NaiveDate,
    seen: &BTreeMap<&str, Seen>,
) -> Result<()> {
    let inputs = Inputs {
        sql: query.statement_sha256.clone(),
        as_of: run.job.as_of(day),
        cut_off: run.job.cut_off(day),
        reads: seen.iter().map(|(name, seen)| ((*name).to_owned(), seen.content.clone())).collect(),
        buckets: run.engine.buckets,
    };
    let buckets: Vec<Option<usize>> = if by_user(&query.grain) { (0..run.engine.buckets).map(Some).collect() } else { vec![None] };
    let folder = folder(&query.name, day);
    let mut entry = Entry { table: query.name.clone(), day, way: Way::Reused, why: None, users: None };
    let done = run
        .step(&folder, &inputs, async |step: &Step| {
            let kept = run.kept(&folder).await?;
            let mend = ledger::mend(run, query, &inputs, seen, &kept).await?;
            entry.why = Some(ledger::why(&inputs, &kept));
            entry.way = if mend.is_some() { Way::Mended } else { Way::Recomputed };
            entry.users = mend.as_ref().map(Mend::users);
            let (mut rows_made, mut columns, mut sum) = (0, String::new(), 0_u128);
            let (snapshots, mend) = (&*snapshots, mend.as_ref());
            let answer = async |bucket: Option<usize>| {
                let (rows, cost) = match (mend, bucket) {
                    (Some(mend), Some(bucket)) => mended(run, staged, snapshots, query, day, bucket, mend).await?,
                    _ => rows(planned(run, staged, snapshots, query, day, bucket).await?, query).await?,
                };
                step.took(cost);
                Ok::<_, Error>((bucket, rows))
            };
            let mut answers = pin!(stream::iter(buckets).map(answer).buffered(run.engine.buckets_at_once()));
            while let Some((bucket, rows)) = answers.try_next().await? {
                if bucket.unwrap_or(0) == 0 {
                    step.write_parquet(SCHEMA_FILE, rows.schema(), &[]).await?;
                }
                (rows_made, sum) = (rows_made + rows.num_rows() as u64, sum.wrapping_add(seen::sum(&rows)?));
                columns = seen::titles(&rows.schema());
                step.write_table(&bucket.map_or("all.parquet".to_owned(), file), &rows).await?;
            }
            let content = seen::content(&columns, run.engine.buckets, rows_made, sum);
            Ok(Made { facts: FeatureFacts { table: query.name.clone(), day, rows: rows_made }, columns, content })
        })
        .await?;
    if !snapshots.tables.contains_key(&query.name) {
        let schema = done.store.read_parquet(SCHEMA_FILE).await?.schema();
        let columns = schema.fields().iter().map(|field| field.name().clone()).filter(|name| !query.grain.contains(name)).collect();
        let table = FeatureTable { entity: query.entity().to_owned(), key: query.grain.clone(), columns, schema };
        snapshots.tables.insert(query.name.clone(), table);
    }
    snapshots.days.entry(day).or_default().insert(query.name.clone(), done);
    snapshots.ledger.push(entry);
    Ok(())
}

/// A bucket of an earlier snapshot, with the rows of the users who changed computed anew.
async fn mended(
    run: &Run,
    staged: &Staged,
    snapshots: &Snapshots,
    query: &Query,
    day: NaiveDate,
    bucket: usize,
    mend: &Mend,
) -> Result<(RecordBatch, Cost)> {
    let changed = &mend.changed[bucket];
    let frame = planned_for(run, staged, snapshots, query, day, Some(bucket), Some(changed)).await?;
    let schema: SchemaRef = Arc::new(engine::plain_schema(frame.schema().as_arrow()));
    let (anew, cost) =
        if changed.is_empty() { (RecordBatch::new_empty(schema.clone()), Cost::default()) } else { rows(frame, query).await? };
    Ok((mend.with(bucket, &file(bucket), anew, &schema, &query.grain).await?, cost))
}

/// The query as it runs: as of `day`, over one bucket of users or over everybody, sorted by its key.
pub async fn planned(
    run: &Run,
    staged: &Staged,
    snapshots: &Snapshots,
    query: &Query,
    day: NaiveDate,
    bucket: Option<usize>,
) -> Result<DataFrame> {
    planned_for(run, staged, snapshots, query, day, bucket, None).await
}

/// As [`planned`], over some users alone.
async fn planned_for(
    run: &Run,
    staged: &Staged,
    snapshots: &Snapshots,
    query: &Query,
    day: NaiveDate,
    bucket: Option<usize>,
    users: Option<&BTreeSet<String>>,
) -> Result<DataFrame> {
    let context = engine::session(&bucket.map_or(run.engine.clone(), |_| run.engine.of_one_bucket()))?;
    for name in &query.reads {
        let view = View { name, window_days: query.window_days };
        let mut rows = view.rows(run, staged, snapshots, &context, day, bucket)?;
        if let (Some(users), true) = (users, view.is_of_users(staged, snapshots)) {
            rows = rows.filter(ident("user_id").in_list(users.iter().map(lit).collect(), false))?;
        }
        context.register_table(name.as_str(), rows.into_view())?;
    }
    let frame = engine::numbers_as_float64(engine::plan(&context, query, run.job.as_of(day)).await?)?;
    Ok(frame.sort(engine::ascending(&query.grain))?)
}

/// The rows of a planned query, whose key must be unique.
async fn rows(frame: DataFrame, query: &Query) -> Result<(RecordBatch, Cost)> {
    let (rows, cost) = engine::collect_measured_apart(frame).await.map_err(|error| engine::of_query(error, query.path.display()))?;
    let key = query.grain.iter().map(|name| rows.column_by_name(name).cloned().ok_or(name));
    let key = key.collect::<std::result::Result<Vec<_>, _>>().map_err(|absent| {
        Error::usage(format_args!("{}: the header's grain names {absent}, which the query does not return", query.path.display()))
    })?;
    if let Some((column, values)) = query.grain.iter().zip(&key).find(|(_, values)| values.null_count() > 0) {
        return Err(Error::usage(format_args!(
            "{}: {column} of the header's grain is NULL in {} rows",
            query.path.display(),
            values.null_count()
        ))
        .action(format_args!("leave these rows out: WHERE {column} IS NOT NULL")));
    }
    let distinct = arrow::compute::partition(&key)?.len();
    if distinct < rows.num_rows() {
        return Err(Error::usage(format_args!(
            "{}: the header says one row a {}, but {} rows share theirs with another",
            query.path.display(),
            query.grain.join(", "),
            rows.num_rows() - distinct
        )));
    }
    Ok((rows, cost))
}

fn folder(table: &str, day: NaiveDate) -> String {
    format!("features/{table}/dt={day}")
}

fn file(bucket: usize) -> String {
    format!("bucket={bucket}.parquet")
}

/// Whether a table of this key is computed and stored by bucket of users.
fn by_user(grain: &[String]) -> bool {
    grain.first().is_some_and(|column| column == "user_id")
}

impl Snapshots {
    /// Adds the feature tables of a day to a session; with a bucket, only that bucket's rows of the per-user ones.
    pub fn register(&self, context: &SessionContext, day: NaiveDate, bucket: Option<usize>, wanted: impl Fn(&str) -> bool) -> Result<()> {
        for name in self.days.get(&day).into_iter().flat_map(BTreeMap::keys).filter(|name| wanted(name)) {
            context.register_table(name.as_str(), self.rows(context, name, day, bucket)?.into_view())?;
        }
        Ok(())
    }

    fn made(&self, name: &str, day: NaiveDate) -> Result<&Done<Made>> {
        let made = self.days.get(&day).and_then(|tables| tables.get(name));
        made.ok_or_else(|| Error::internal(format_args!("{name} was not made for {day}")))
    }

    /// The rows of one table of a day.
    fn rows(&self, context: &SessionContext, name: &str, day: NaiveDate, bucket: Option<usize>) -> Result<DataFrame> {
        let done = self.made(name, day)?;
        let table = &self.tables[name];
        let bucket = bucket.filter(|_| by_user(&table.key)).map(file);
        let paths = done.files.iter().map(|file| &file.path).filter(|path| *path != SCHEMA_FILE);
        let paths: Vec<String> = paths.filter(|path| bucket.as_ref().is_none_or(|bucket| *path == bucket)).cloned().collect();
        match bucket {
            Some(_) => engine::sorted_files(context, &done.store, &paths, &table.schema, &table.key),
            None => engine::files(context, &done.store, &paths, Format::Parquet, table.schema.clone()),
        }
    }

    /// Logs how many snapshots were taken from earlier nights.
    pub fn log(&self) {
        let count = |way| self.ledger.iter().filter(|entry| entry.way == way).count();
        let users: u64 = self.ledger.iter().filter_map(|entry| entry.users).sum();
        let (reused, mended, recomputed) = (count(Way::Reused), count(Way::Mended), count(Way::Recomputed));
        tracing::info!(reused, mended, recomputed, users_mended = users, "snapshots");
    }

    /// Whether there are snapshots of a day.
    pub fn has(&self, day: NaiveDate) -> bool {
        self.days.contains_key(&day)
    }

    fn rows_of(&self, table: &str, day: NaiveDate) -> Option<u64> {
        Some(self.made(table, day).ok()?.facts.facts.rows)
    }

    /// What decides the content of a day's snapshot.
    pub fn keys(&self, day: NaiveDate) -> BTreeMap<&str, &str> {
        let tables = self.days.get(&day).into_iter().flatten();
        tables.map(|(name, done)| (name.as_str(), done.key.as_str())).collect()
    }

    pub fn facts(&self) -> Vec<FeatureFacts> {
        self.days.values().flat_map(|tables| tables.values().map(|done| done.facts.facts.clone())).collect()
    }
}

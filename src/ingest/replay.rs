//! The raw rows of a window in memory, so that the night can be run again on other logs: without what came after a moment, or with
//! that changed. What is written here is read again by the same ingest; only ids are pseudonyms already and nothing is contracted.

use super::raw::{RawTables, Scope};
use super::{PEOPLE_TABLES, Settings};
use crate::error::Result;
use crate::platform::catalog::{Column, IdDomain, Query, Source, SourceKind};
use crate::platform::engine;
use crate::platform::pseudonym::Key;
use crate::platform::run::Run;
use crate::platform::storage::Store;
use crate::types::column;
use arrow::array::{BooleanArray, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use chrono::NaiveDate;
use object_store::memory::InMemory;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use url::Url;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The raw tables of a run's window.
pub struct Logs {
    pub parts: Vec<Part>,
}

/// The rows of one raw table of one day, or of all days.
pub struct Part {
    pub table: String,
    pub source: Source,
    pub day: Option<NaiveDate>,
    /// Of tables that say who may be processed: what they say tonight holds for every day, so nothing of them is later than another.
    pub decides_people: bool,
    pub rows: RecordBatch,
}

impl Logs {
    /// Reads the run's window; of a share below 1, the rows of so many devices or users and of everybody these are known as.
    pub async fn read(run: &Run, settings: &Settings, key: &Key, share: f64) -> Result<Self> {
        let raw = RawTables::discover(run, settings, |_| true).await?;
        let deciding: BTreeSet<&str> = PEOPLE_TABLES.iter().flat_map(|table| run.catalog.sources_of(table)).collect();
        let mut names: Vec<&String> = raw.tables.keys().collect();
        // Who is in the sample: first those of the logs, then those who share a device with them, then what is known of all these.
        names.sort_by_key(|name| (!raw.tables[*name].source.is_log(), raw.tables[*name].source.ids().count() < 2));
        let mut chosen = HashSet::new();
        let mut parts = Vec::new();
        for name in names {
            let table = &raw.tables[name];
            let days: BTreeSet<Option<NaiveDate>> = table.files.iter().map(|file| file.day).collect();
            let mut of_table: Vec<Part> = Vec::new();
            for day in days {
                let context = engine::session(&run.engine)?;
                let scope = day.map_or(Scope::UpTo(run.date), Scope::Day);
                let Some(rows) = table.scan(run, &context, key, scope)? else { continue };
                let rows = sampled(&engine::collect(rows).await?, &table.source, share, run.job.seed, &chosen)?;
                let decides_people = deciding.contains(name.as_str());
                of_table.push(Part { table: name.clone(), source: table.source.clone(), day, decides_people, rows });
            }
            for part in &of_table {
                for id in part.source.ids() {
                    chosen.extend(column::<StringArray>(&part.rows, id)?.iter().flatten().map(str::to_owned));
                }
            }
            parts.extend(of_table);
        }
        Ok(Self { parts })
    }

    /// A run on these logs, each part's rows as `rows` gives them, that computes the queries `wanted` and leaves nothing behind.
    pub async fn run(&self, run: &Run, wanted: &BTreeSet<String>, rows: impl Fn(usize, &Part) -> Result<RecordBatch>) -> Result<Run> {
        let memory = Store::over(Arc::new(InMemory::new()), Url::parse("memory:///").expect("a URL"));
        let raw = memory.child("raw");
        for (at, part) in self.parts.iter().enumerate() {
            let folder = match (part.day, &part.source.partition) {
                (Some(day), Some(partition)) => format!("{}/{partition}={day}", part.table),
                _ => part.table.clone(),
            };
            let rows = rows(at, part)?;
            raw.write_parquet(&format!("{folder}/rows.parquet"), rows.schema(), &[rows]).await?;
        }
        let mut catalog = run.catalog.clone();
        catalog.staging.retain(|query| wanted.contains(&query.name));
        catalog.features.retain(|query| wanted.contains(&query.name));
        catalog.segments.clear();
        catalog.checks.clear();
        let sources: BTreeSet<String> = catalog.staging.iter().flat_map(Query::sources).map(str::to_owned).collect();
        let kept = catalog.sources.iter().filter(|(name, _)| sources.contains(*name));
        catalog.sources = kept.map(|(name, source)| (name.clone(), uncontracted(name, source))).collect::<BTreeMap<_, _>>();
        // One thread and one bucket: sums of floats come out the same whatever else the files hold.
        let settings = engine::Settings { threads: 1, buckets: 1, ..run.engine.clone() };
        Ok(Run::new(run.job.clone(), run.date, raw, memory.child("out"), catalog, settings))
    }
}

/// The rows of the sample.
fn sampled(rows: &RecordBatch, source: &Source, share: f64, seed: u64, chosen: &HashSet<String>) -> Result<RecordBatch> {
    let ids: Vec<&str> = source.ids().collect();
    if share >= 1.0 || ids.is_empty() {
        return Ok(rows.clone());
    }
    let drawn = |id: &str| (xxh3_64_with_seed(id.as_bytes(), seed) as f64) < share * u64::MAX as f64;
    let mut keep = vec![false; rows.num_rows()];
    // A log goes by its device, if it has one, and else by its user.
    let ids = if source.is_log() { &ids[..1] } else { &ids[..] };
    for id in ids {
        for (row, id) in column::<StringArray>(rows, id)?.iter().enumerate() {
            keep[row] |= id.is_some_and(|id| if source.is_log() { drawn(id) } else { chosen.contains(id) });
        }
    }
    Ok(filter_record_batch(rows, &BooleanArray::from(keep))?)
}

/// A contract that a changed day may break: what is tested is what the queries do with it.
fn uncontracted(name: &str, source: &Source) -> Source {
    let column = |column: &Column| Column { id: None, nullable: true, min: None, max: None, accepted: Vec::new(), ..column.clone() };
    let columns = source.columns.iter().map(|(name, of)| (name.clone(), column(of))).collect();
    let location = name.to_owned();
    let free = Source { location, min_rows: Some(0), max_rows: None, unique: false, freshness_hours: None, ..source.clone() };
    Source { rows_within: None, columns, ..free }
}

impl Source {
    fn is_log(&self) -> bool {
        self.kind == SourceKind::Log
    }

    /// The columns of pseudonyms, devices first.
    fn ids(&self) -> impl Iterator<Item = &str> {
        let of = |domain| self.columns.iter().filter(move |(_, column)| column.id == Some(domain)).map(|(name, _)| name.as_str());
        of(IdDomain::Device).chain(of(IdDomain::User))
    }
}

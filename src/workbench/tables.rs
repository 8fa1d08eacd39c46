//! The shop's tables as of a date, for people to look at: only what was asked for and what it is made of is computed.
//!
//! Canonical tables are staged as the night stages them, and the night's own files are used where they are there. Features are
//! computed in memory and leave nothing behind, so that looking at a changed file never passes for a run of it.

use crate::error::{Context, Error, Result};
use crate::ingest;
use crate::platform::catalog::{Catalog, Query, nearest};
use crate::platform::engine;
use crate::platform::pseudonym::Key;
use crate::platform::run::Run;
use crate::platform::storage::Store;
use crate::workbench::last_run;
use chrono::NaiveDate;
use datafusion::prelude::SessionContext;
use std::collections::BTreeSet;

/// What is needed to look at a job's data.
pub struct Desk {
    pub run: Run,
    pub ingest: ingest::Settings,
    pub key: Key,
}

impl Desk {
    /// The same desk with another version of one query, whose staging goes aside.
    pub fn with(&self, query: Query) -> Self {
        let run = &self.run;
        let output = if query.room() == "staging" { run.output.child(ASIDE) } else { run.output.clone() };
        let mut catalog = run.catalog.clone();
        let queries = catalog.staging.iter_mut().chain(&mut catalog.features).chain(&mut catalog.segments).chain(&mut catalog.checks);
        queries.filter(|other| other.name == query.name).for_each(|other| *other = query.clone());
        let run = Run::new(run.job.clone(), run.date, run.raw.clone(), output, catalog, run.engine.clone());
        Self { run, ingest: self.ingest.clone(), key: self.key.clone() }
    }
}

/// Where changed canonical tables are staged, below the job's output: in the night's own place they would pass for a run.
const ASIDE: &str = "preview";

/// A session in which the tables named can be asked, each as it was known as of the run's date.
pub async fn open(desk: &Desk, names: impl IntoIterator<Item = &str>) -> Result<SessionContext> {
    let context = engine::session(&desk.run.engine)?;
    open_more(desk, &context, names).await?;
    Ok(context)
}

/// Adds tables to a session.
pub async fn open_more(desk: &Desk, context: &SessionContext, names: impl IntoIterator<Item = &str>) -> Result<()> {
    let run = &desk.run;
    let mut wanted = BTreeSet::new();
    for name in names {
        closure(&run.catalog, name, &mut wanted)?;
    }
    wanted.retain(|name| !context.table_exist(name.as_str()).unwrap_or(false));
    if wanted.is_empty() {
        return Ok(());
    }
    let staging = staging_run(run, &wanted).await?;
    let staged = ingest::run(&staging, &desk.ingest, &desk.key).await?;
    for name in &wanted {
        staged.register(context, run, name, run.date, None)?;
    }
    for query in
        run.catalog.features.iter().chain(&run.catalog.segments).chain(&run.catalog.checks).filter(|query| wanted.contains(&query.name))
    {
        let absent = query.reads.iter().find(|read| !context.table_exist(read.as_str()).unwrap_or(false));
        if let Some(absent) = absent {
            let why = staged.facts.skipped.iter().find(|why| why.contains(&format!("table {absent}"))).cloned().unwrap_or_default();
            return Err(Error::usage(format_args!("{} reads {absent}, which is not there as of {}: {why}", query.name, run.date)));
        }
        register(context, query, run).await?;
    }
    Ok(())
}

/// Adds a query's table to a session that has what it reads.
pub async fn register(context: &SessionContext, query: &Query, run: &Run) -> Result<()> {
    let mut rows = engine::plan(context, query, run.as_of()).await?;
    if query.room() == "features" {
        rows = engine::numbers_as_float64(rows)?;
    }
    context.register_table(query.name.as_str(), rows.into_view())?;
    Ok(())
}

/// A table and everything of the shop it is made of.
pub(super) fn closure(catalog: &Catalog, name: &str, found: &mut BTreeSet<String>) -> Result<()> {
    let Some(query) = catalog.queries().find(|query| query.name == name) else {
        let hint = nearest(name, catalog.queries().map(|query| query.name.as_str())).map(|near| format!("; did you mean {near}?"));
        return Err(Error::usage(format_args!("no table {name}{}", hint.unwrap_or_default())));
    };
    if found.insert(query.name.clone()) {
        for read in query.reads.iter().filter(|read| !read.starts_with("raw.")) {
            closure(catalog, read, found).with_context(|| format!("what {name} reads"))?;
        }
    }
    Ok(())
}

/// A run that stages what is wanted and the tables that say who may be looked at, and nothing else.
async fn staging_run(run: &Run, wanted: &BTreeSet<String>) -> Result<Run> {
    let mut staged = wanted.clone();
    for people in ["suppressions", "consents"] {
        if run.catalog.staged(people).is_some() {
            closure(&run.catalog, people, &mut staged)?;
        }
    }
    let mut catalog = run.catalog.clone();
    catalog.staging.retain(|query| staged.contains(&query.name));
    catalog.features.clear();
    catalog.segments.clear();
    catalog.checks.clear();
    let sources: BTreeSet<String> = catalog.staging.iter().flat_map(Query::sources).map(str::to_owned).collect();
    catalog.sources.retain(|name, _| sources.contains(name));
    let mut output = run.output.clone();
    for query in &catalog.staging {
        if last_run::last(&run.output, query, None).await?.is_some_and(|last| !last.is_of(query)) {
            output = run.output.child(ASIDE);
        }
    }
    Ok(Run::new(run.job.clone(), run.date, run.raw.clone(), output, catalog, run.engine.clone()))
}

/// The last day for which every required log has arrived.
pub async fn latest_day(raw: &Store, catalog: &Catalog) -> Result<NaiveDate> {
    let mut newest: Vec<(bool, NaiveDate)> = Vec::new();
    for source in catalog.sources.values() {
        let Some(partition) = &source.partition else { continue };
        let days = raw.list(&source.location).await?.into_iter().filter_map(|object| {
            let part = |part: &str| part.replace("%3D", "=").strip_prefix(partition.as_str())?.strip_prefix('=')?.parse().ok();
            object.path.split('/').find_map(part)
        });
        newest.extend(days.max().map(|day: NaiveDate| (source.required, day)));
    }
    let required = newest.iter().filter(|(required, _)| *required).map(|(_, day)| *day).min();
    let any = newest.iter().map(|(_, day)| *day).max();
    required.or(any).ok_or_else(|| {
        Error::usage(format_args!("no table below {} lies in folders of days, so the last day is not known", raw.locate("")))
            .action("say the day: --as-of 2026-11-22")
    })
}

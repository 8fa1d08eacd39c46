//! Does a feature know the future? Each feature is computed as of a day from the raw logs as they are, and again from logs in which
//! what could not have been known that day is taken away or shuffled; the tables must be the same.
//!
//! The two nights differ in their raw rows alone and run everything in between: staging, the cut-off of [`ingest::Staged::as_of`],
//! and the feature's own SQL. So it does not matter which of them lets a row through: an outcome that staging leaves without its
//! time, a time in another zone, a table that no cut-off knows and whose date the feature does not ask for.

mod source;
mod text;
mod world;

use crate::error::{Error, Result};
use crate::features;
use crate::ingest::{self, Logs};
use crate::platform::catalog::Query;
use crate::platform::engine;
use crate::platform::pseudonym::Key;
use crate::platform::run::Run;
use crate::workbench::diff::{self, Diff};
use crate::workbench::tables::closure;
use arrow::array::RecordBatch;
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
pub use world::Other;
use world::World;

/// What a leak test found.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Leaks {
    /// The features are those of the end of this day.
    pub day: NaiveDate,
    /// The last day of the logs.
    pub until: NaiveDate,
    /// Of the devices and users.
    pub share: f64,
    /// What the logs were compared with.
    pub others: Vec<Other>,
    /// Raw rows that could not have been known.
    pub later_rows: u64,
    pub tables: Vec<String>,
    /// Of these tables as of the day.
    pub rows: u64,
    pub skipped: Vec<String>,
    pub leaks: Vec<Leak>,
}

/// One feature table that knows the future.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Leak {
    pub table: String,
    pub path: String,
    /// Which other logs gave another table.
    pub other: Other,
    /// Columns whose value differs in some row.
    pub columns: Vec<String>,
    /// Rows that differ, those included that only one of the tables has.
    pub rows: u64,
    pub examples: Vec<Example>,
    /// Canonical tables that it reads and through which later rows come.
    pub through: Vec<String>,
    pub source: Option<Leaked>,
}

/// A row that differs.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Example {
    pub key: Vec<String>,
    pub values: Vec<Differs>,
}

/// One value of a row that differs; NULL when that table has no such row.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Differs {
    pub column: String,
    pub with: String,
    pub without: String,
}

/// The fewest raw rows found that make the difference by themselves.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Leaked {
    pub table: String,
    pub count: u64,
    /// The first of them.
    pub columns: Vec<String>,
    pub rows: Vec<Vec<String>>,
}

/// What is tested: some features as of a day, on the logs of a run up to its date.
pub struct Case<'a> {
    pub run: &'a Run,
    pub ingest: &'a ingest::Settings,
    pub key: &'a Key,
    pub day: NaiveDate,
    pub share: f64,
    pub features: BTreeSet<String>,
    pub others: &'a [Other],
}

/// Examples of each leak.
const EXAMPLES: usize = 3;

/// Runs the test.
///
/// # Errors
/// `Usage` when the logs hold nothing later than the day, so that nothing could be found.
pub async fn test(case: &Case<'_>) -> Result<Leaks> {
    let queries: Vec<&Query> = case.run.catalog.features.iter().filter(|query| case.features.contains(&query.name)).collect();
    let back = case.run.date.signed_duration_since(case.day).num_days();
    if back < 0 || queries.is_empty() {
        return Err(Error::usage(format_args!("no feature to test as of {} on logs up to {}", case.day, case.run.date)));
    }
    // The features of an earlier day want as long a history.
    let settings = ingest::Settings { history_days: case.ingest.history_days + back.unsigned_abs(), ..case.ingest.clone() };
    let logs = Logs::read(case.run, &settings, case.key, case.share).await?;
    let world = World::new(case, &settings, &logs)?;
    let mut found = Leaks {
        day: case.day,
        until: case.run.date,
        share: case.share,
        others: case.others.iter().copied().filter(|other| world.later(*other) > 0).collect(),
        later_rows: world.later(Other::Known),
        tables: Vec::new(),
        rows: 0,
        skipped: Vec::new(),
        leaks: Vec::new(),
    };
    if found.later_rows == 0 && case.share >= 1.0 {
        return Err(Error::usage(format_args!("the logs up to {} hold nothing that came after {}", case.run.date, case.day))
            .action("test an earlier day: --as-of, or say in sources.toml which columns are occurred_at and arrived_at"));
    }
    let names = queries.iter().map(|query| query.name.as_str()).collect::<BTreeSet<_>>();
    let whole = Night::run(&world, &names, &[], None).await?;
    found.skipped = whole.skipped.clone();
    found.tables = queries.iter().filter(|query| whole.tables.contains_key(&query.name)).map(|query| query.name.clone()).collect();
    found.rows = found.tables.iter().map(|table| whole.tables[table].num_rows() as u64).sum();
    for other in found.others.clone() {
        let reduced = Night::run(&world, &names, &[], Some(other)).await?;
        for query in queries.iter().filter(|query| found.tables.contains(&query.name)) {
            // One kind of proof is enough for a table.
            if found.leaks.iter().any(|leak| leak.table == query.name) {
                continue;
            }
            let (with, without) = (&whole.tables[&query.name], &reduced.tables[&query.name]);
            let diff = diff::compare(query, case.day, String::new(), without, with)?;
            if diff.added + diff.removed + diff.changed > 0 {
                let mut leak = describe(query, other, &diff);
                leak.through = through(case, query, &whole, &reduced).await?;
                leak.source = source::find(&world, query, other).await?;
                found.leaks.push(leak);
            }
        }
    }
    Ok(found)
}

/// The features of one night on some logs.
pub(super) struct Night {
    run: Run,
    staged: ingest::Staged,
    tables: BTreeMap<String, RecordBatch>,
    skipped: Vec<String>,
}

impl Night {
    /// Computes features as of the case's day. Of the `other` logs those later rows that are `back` are as they were.
    pub(super) async fn run(world: &World<'_>, names: &BTreeSet<&str>, back: &[world::Row], other: Option<Other>) -> Result<Self> {
        let case = world.case;
        let mut wanted = BTreeSet::new();
        let people = ["suppressions", "consents"].into_iter().filter(|name| case.run.catalog.staged(name).is_some());
        for name in names.iter().copied().chain(people) {
            closure(&case.run.catalog, name, &mut wanted)?;
        }
        let run = world.logs.run(case.run, &wanted, |at, part| world.rows(at, part, back, other)).await?;
        let staged = ingest::run(&run, world.settings, case.key).await?;
        let snapshots = features::run(&run, &staged, &BTreeSet::from([case.day])).await?;
        let context = engine::session(&run.engine)?;
        snapshots.register(&context, case.day, None, |_| true)?;
        let mut tables = BTreeMap::new();
        for name in names.iter().filter(|name| snapshots.tables.contains_key(**name)) {
            tables.insert((*name).to_owned(), engine::collect(context.table(*name).await?).await?);
        }
        Ok(Self { run, staged, tables, skipped: snapshots.skipped.clone() })
    }

    /// A canonical table as of a day.
    async fn canonical(&self, name: &str, day: NaiveDate) -> Result<RecordBatch> {
        let context = self.staged.as_of(&self.run, day, None, [name])?;
        engine::collect(context.table(name).await?).await
    }
}

fn describe(query: &Query, other: Other, diff: &Diff) -> Leak {
    let value = |(column, without, with): &(String, String, String)| Differs {
        column: column.clone(),
        with: with.clone(),
        without: without.clone(),
    };
    let (there, absent) = ("there".to_owned(), "absent".to_owned());
    let row = |with: &str, without: &str| vec![Differs { column: "row".into(), with: with.to_owned(), without: without.to_owned() }];
    let example = |example: &diff::Example| Example {
        key: example.key.clone(),
        values: match example.kind {
            "added" => row(&there, &absent),
            "removed" => row(&absent, &there),
            _ => example.values.iter().map(value).collect(),
        },
    };
    // What changed says more than what came or went.
    let (changed, moved): (Vec<_>, Vec<_>) = diff.examples.iter().partition(|example| example.kind == "changed");
    Leak {
        table: query.name.clone(),
        path: query.path.display().to_string(),
        other,
        columns: diff.columns.iter().filter(|column| column.changed > 0).map(|column| column.column.clone()).collect(),
        rows: diff.added + diff.removed + diff.changed,
        examples: changed.into_iter().chain(moved).take(EXAMPLES).map(example).collect(),
        through: Vec::new(),
        source: None,
    }
}

/// The canonical tables a feature is made of that are themselves not the same as of the day.
async fn through(case: &Case<'_>, query: &Query, whole: &Night, reduced: &Night) -> Result<Vec<String>> {
    let mut made_of = BTreeSet::new();
    closure(&case.run.catalog, &query.name, &mut made_of)?;
    let mut through = Vec::new();
    for staged in case.run.catalog.staging.iter().filter(|staged| made_of.contains(&staged.name) && whole.staged.has(&staged.name)) {
        let (with, without) = (whole.canonical(&staged.name, case.day).await?, reduced.canonical(&staged.name, case.day).await?);
        let diff = diff::compare(staged, case.day, String::new(), &without, &with)?;
        if diff.added + diff.removed + diff.changed > 0 {
            through.push(staged.path.display().to_string());
        }
    }
    Ok(through)
}

impl Leaks {
    /// Fails, naming the files, when something leaks.
    pub fn refuse(&self) -> Result<()> {
        if self.leaks.is_empty() {
            return Ok(());
        }
        let named: Vec<String> = self.leaks.iter().map(|leak| format!("{} ({})", leak.path, leak.what())).collect();
        Err(Error::contract(format_args!("features as of {} know what came later: {}", self.day, named.join("; ")))
            .action(format_args!("see the rows with `nightmarket sql leak {} --as-of {}`", self.leaks[0].table, self.day)))
    }
}

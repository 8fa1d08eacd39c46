//! What a raw table's contract says beyond its columns' types: what values are acceptable, how fresh and how large a day is, and that
//! no key comes twice.

use super::raw::{RawTable, Scope};
use crate::error::Result;
use crate::platform::catalog::SourceKind;
use crate::platform::checks::{Check, Checks};
use crate::platform::expectation::{Expectation, Rule, quoted};
use crate::platform::pseudonym::Key;
use crate::platform::run::Run;
use arrow::array::{ArrayRef, Date32Array, Int64Array, RecordBatch};
use arrow::datatypes::Date32Type;
use chrono::NaiveDate;
use datafusion::catalog::MemorySchemaProvider;
use datafusion::common::TableReference;
use datafusion::logical_expr::ident;
use datafusion::prelude::SessionContext;
use std::collections::BTreeMap;
use std::sync::Arc;

/// So many nights before the run date say how large a day is; fewer than `FEWEST` say nothing.
const NIGHTS: u64 = 7;
const FEWEST: usize = 3;

/// Asks all that the contract of `name` says of the run date's rows.
pub(super) async fn ask(run: &Run, context: &SessionContext, key: &Key, name: &str, table: &RawTable, checks: &mut Checks) -> Result<()> {
    let Some(day) = table.scan(run, context, key, Scope::Delivered(run.date))? else { return Ok(()) };
    let catalog = context.catalog("datafusion").expect("the default catalog exists");
    catalog.register_schema("raw", Arc::new(MemorySchemaProvider::new()))?;
    context.register_table(TableReference::partial("raw", name), day.into_view())?;
    for check in questions(name, table) {
        checks.ask(context, &check, run.as_of()).await?;
    }
    match table.source.unique {
        true => repeated(run, context, key, name, table, checks).await?,
        false => table.look_for_old_rows(run, context, key, name, checks).await?,
    }
    size(run, name, table, checks)
}

/// What is asked of the day by itself.
fn questions(name: &str, table: &RawTable) -> Vec<Check> {
    let source = &table.source;
    let mut asked = Vec::new();
    for (column, contract) in &source.columns {
        let range = contract.min.is_some() || contract.max.is_some();
        let rules = [
            range.then_some(Rule::Range(contract.min, contract.max)),
            (!contract.accepted.is_empty()).then(|| Rule::Accepted(contract.accepted.clone())),
        ];
        for rule in rules.into_iter().flatten() {
            let expected = Expectation { column: column.clone(), rule, severity: contract.severity };
            let sql = expected.sql(&format!("raw.{name}"));
            asked.push(Check { name: format!("raw.{name}: {}", expected.what()), severity: contract.severity, sql });
        }
    }
    let time = source.arrived_at.as_ref().or(source.occurred_at.as_ref());
    if let (Some(hours), Some(time)) = (source.freshness_hours, time) {
        asked.push(Check {
            name: format!("raw.{name}: freshness_hours = {hours}"),
            severity: source.severity,
            sql: format!(
                "SELECT MAX({0}) AS newest FROM raw.{name} HAVING MAX({0}) < $as_of - INTERVAL '{1} minutes'",
                quoted(time),
                (60.0 * hours).round()
            ),
        });
    }
    asked
}

/// Keys of the run date that another row of it, or of an earlier day of a log, has too.
async fn repeated(run: &Run, context: &SessionContext, key: &Key, name: &str, table: &RawTable, checks: &mut Checks) -> Result<()> {
    let source = &table.source;
    let columns = source.key.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ");
    let mut rows = format!("SELECT {columns} FROM raw.{name}");
    if source.kind == SourceKind::Log {
        let mut window = table.scan(run, context, key, Scope::UpTo(run.date))?.expect("the day is part of it");
        window = window.select(source.key.iter().map(|column| ident(column.as_str())).collect::<Vec<_>>())?;
        let all = format!("{name}_of_all_days");
        context.register_table(TableReference::partial("raw", all.as_str()), window.into_view())?;
        let same = source.key.iter().map(|column| format!("own.{0} = whole.{0}", quoted(column))).collect::<Vec<_>>().join(" AND ");
        rows = format!("SELECT whole.* FROM raw.{all} AS whole LEFT SEMI JOIN raw.{name} AS own ON {same}");
    }
    let check = Check {
        name: format!("raw.{name}: unique {}", source.key.join(", ")),
        severity: source.severity,
        sql: format!("SELECT {columns}, COUNT(*) AS n FROM ({rows}) AS keys GROUP BY {columns} HAVING COUNT(*) > 1"),
    };
    checks.ask(context, &check, run.as_of()).await
}

/// Whether the day has about as many rows as the nights before it.
fn size(run: &Run, name: &str, table: &RawTable, checks: &mut Checks) -> Result<()> {
    let Some([low, high]) = table.source.rows_within else { return Ok(()) };
    let counts: BTreeMap<NaiveDate, u64> = table.rows_by_day();
    let mut before: Vec<u64> = (1..=NIGHTS).filter_map(|back| counts.get(&run.day(back)).copied()).collect();
    checks.asked += 1;
    before.sort_unstable();
    if before.len() < FEWEST {
        return Ok(());
    }
    let median = (before[(before.len() - 1) / 2] + before[before.len() / 2]) as f64 / 2.0;
    let rows = counts.get(&run.date).copied().unwrap_or(0);
    if (low * median..=high * median).contains(&(rows as f64)) {
        return Ok(());
    }
    let shown: Vec<(&NaiveDate, &u64)> = counts.range(run.day(NIGHTS)..=run.date).collect();
    let days: ArrayRef = Arc::new(shown.iter().map(|(day, _)| Some(Date32Type::from_naive_date(**day))).collect::<Date32Array>());
    let counts: ArrayRef = Arc::new(shown.iter().map(|(_, rows)| **rows as i64).collect::<Int64Array>());
    let check = Check {
        name: format!("raw.{name}: rows_within = [{low}, {high}] of the median {median} of the {} nights before", before.len()),
        severity: table.source.severity,
        sql: format!("SELECT COUNT(*) AS rows FROM raw.{name}"),
    };
    checks.found(&check, rows, &RecordBatch::try_from_iter([("day", days), ("rows", counts)])?)
}

//! How far tonight's features have moved: from the newest ones that tonight's model learned from, and from last week's.
//!
//! A model is as good as its inputs are like those it has seen. A column that moved, went missing or has values nobody has seen is a
//! warning with its numbers; nothing is stopped, for shops do change, and what decides is the gate.

use super::Snapshots;
use crate::error::{Context, Result};
use crate::platform::engine;
use crate::platform::run::Run;
use crate::statistics::shift;
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use chrono::NaiveDate;
use datafusion::functions_nested::expr_fn::array_length;
use datafusion::prelude::{SessionContext, col, ident};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// From where on a change is a warning.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Population stability index. By the field's custom above 0.25 something happened.
    pub psi: f64,
    /// Change of the share of rows without a value.
    pub missing: f64,
    /// Share of rows with a text that the earlier snapshot has nowhere.
    pub unseen: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { psi: 0.25, missing: 0.1, unseen: 0.2 }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Reference {
    Training,
    LastWeek,
}

/// One column of tonight's snapshot against an earlier one.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Drift {
    pub table: String,
    pub column: String,
    pub reference: Reference,
    pub day: NaiveDate,
    /// Of lists, of their lengths. None where a side has no rows.
    pub psi: Option<f64>,
    pub missing_before: f64,
    pub missing: f64,
    /// Different values of a text.
    pub distinct_before: Option<u64>,
    pub distinct: Option<u64>,
    pub unseen: Option<f64>,
    /// What lies beyond which limit.
    pub finding: Option<String>,
}

/// Beyond so many rows one bucket of users stands for all: users fall into buckets by a hash.
const ROWS_ENOUGH: u64 = 500_000;

/// Every feature column against each reference of which there are snapshots; the most moved first.
pub async fn against(run: &Run, limits: &Limits, snapshots: &Snapshots, references: &[(Reference, NaiveDate)]) -> Result<Vec<Drift>> {
    let mut found = Vec::new();
    for (name, table) in &snapshots.tables {
        let many = snapshots.rows_of(name, run.date).is_some_and(|rows| rows > ROWS_ENOUGH);
        let bucket = many.then_some(0);
        let opened = |day: NaiveDate| -> Result<SessionContext> {
            let context = engine::session(&run.engine)?;
            snapshots.register(&context, day, bucket, |wanted| wanted == name)?;
            Ok(context)
        };
        let tonight = opened(run.date)?;
        for &(reference, day) in references.iter().filter(|(_, day)| snapshots.has(*day)) {
            let earlier = opened(day)?;
            for column in &table.columns {
                let compared = async {
                    let (before, after) = (values(&earlier, name, column).await?, values(&tonight, name, column).await?);
                    compare(limits, &before, &after)
                };
                let (moved, finding) = compared.await.with_context(|| format!("drift of {name}.{column} since {day}"))?;
                if let Some(finding) = &finding {
                    tracing::warn!(table = name, column, since = %day, "drift: {finding}");
                }
                found.push(Drift { table: name.clone(), column: column.clone(), reference, day, finding, ..moved });
            }
        }
    }
    let moved = |drift: &Drift| (drift.finding.is_some(), drift.psi.unwrap_or(0.0));
    found.sort_by(|a, b| moved(b).0.cmp(&moved(a).0).then(moved(b).1.total_cmp(&moved(a).1)));
    Ok(found)
}

/// A column in one piece; of a list its length.
async fn values(context: &SessionContext, table: &str, column: &str) -> Result<ArrayRef> {
    let frame = context.table(table).await?;
    let is_list = matches!(frame.schema().field_with_unqualified_name(column)?.data_type(), DataType::List(_));
    let wanted = if is_list { array_length(ident(column)) } else { ident(column) };
    let rows = engine::collect(frame.select(vec![wanted.alias("value")])?.select(vec![col("value")])?).await?;
    Ok(rows.column(0).clone())
}

fn compare(limits: &Limits, before: &ArrayRef, after: &ArrayRef) -> Result<(Drift, Option<String>)> {
    let missing = |column: &ArrayRef| if column.is_empty() { 0.0 } else { column.logical_null_count() as f64 / column.len() as f64 };
    let texts = [texts(before)?, texts(after)?];
    let distinct = |side: usize| Some(texts[side].as_ref()?.iter().flatten().collect::<HashSet<_>>().len() as u64);
    let drift = Drift {
        table: String::new(),
        column: String::new(),
        reference: Reference::Training,
        day: NaiveDate::default(),
        psi: shift::index(before, after)?,
        missing_before: missing(before),
        missing: missing(after),
        distinct_before: distinct(0),
        distinct: distinct(1),
        unseen: unseen(&texts),
        finding: None,
    };
    let beyond = [
        // Ten bins of so few rows move by this much by chance alone.
        drift
            .psi
            .filter(|psi| *psi > limits.psi + 9.0 * (1.0 / before.len() as f64 + 1.0 / after.len() as f64))
            .map(|psi| format!("PSI {psi:.2}")),
        ((drift.missing - drift.missing_before).abs() > limits.missing)
            .then(|| format!("{:.1} % without a value, before {:.1} %", 100.0 * drift.missing, 100.0 * drift.missing_before)),
        drift.unseen.filter(|share| *share > limits.unseen).map(|share| format!("{:.1} % have a value never seen before", 100.0 * share)),
    ];
    let beyond: Vec<String> = beyond.into_iter().flatten().collect();
    Ok((drift, (!beyond.is_empty()).then(|| beyond.join("; "))))
}

/// The texts of a column; `None` when it holds none.
fn texts(column: &ArrayRef) -> Result<Option<Vec<Option<String>>>> {
    if !matches!(column.data_type(), DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 | DataType::Dictionary(..)) {
        return Ok(None);
    }
    let column = cast(column, &DataType::Utf8)?;
    Ok(Some(column.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect()))
}

/// Share of tonight's texts that the reference has nowhere.
fn unseen([before, after]: &[Option<Vec<Option<String>>>; 2]) -> Option<f64> {
    let known: HashSet<&str> = before.as_ref()?.iter().flatten().map(String::as_str).collect();
    let tonight: Vec<&str> = after.as_ref()?.iter().flatten().map(String::as_str).collect();
    let new = tonight.iter().filter(|text| !known.contains(**text)).count();
    (!tonight.is_empty() && !known.is_empty()).then(|| new as f64 / tonight.len() as f64)
}

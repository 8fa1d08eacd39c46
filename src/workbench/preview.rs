//! One table as of a date: its first rows, what its columns are like, and whether its key is one.

use crate::error::Result;
use crate::platform::catalog::Query;
use crate::platform::engine;
use crate::workbench::profile::{Profile, profile, profile_as_text};
use crate::workbench::tables::{Desk, open};
use crate::workbench::text::{count, rows_as_json, rows_as_text};
use arrow::array::RecordBatch;
use chrono::NaiveDate;
use datafusion::logical_expr::ident;
use datafusion::prelude::SessionContext;
use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub struct Preview {
    pub table: String,
    pub date: NaiveDate,
    pub grain: Vec<String>,
    /// Of the whole table.
    pub rows: u64,
    /// Rows whose key another row has too: the header lies, and the night would refuse the table.
    pub rows_of_no_key: u64,
    /// How many rows the profile is of, the first by key.
    pub profiled: u64,
    pub profile: Vec<Profile>,
    #[serde(rename = "head")]
    json: serde_json::Value,
    #[serde(skip)]
    pub head: RecordBatch,
}

/// A profile is of at most so many rows, the first by key: keys are pseudonyms, so these are a fair sample.
const PROFILED: usize = 1_000_000;

/// Computes a table and looks at it.
pub async fn preview(desk: &Desk, query: &Query, limit: usize) -> Result<Preview> {
    let context = open(desk, [query.name.as_str()]).await?;
    let table = context.table(query.name.as_str()).await?;
    let order = query.grain.iter().map(|column| ident(column).sort(true, true)).collect();
    let sample = engine::answer(table.clone().sort(order)?.limit(0, Some(PROFILED))?, query).await?;
    let (rows, rows_of_no_key) = match sample.num_rows() {
        PROFILED => (table.count().await? as u64, rows_of_no_key(&context, &query.name, &query.grain).await?),
        fewer => (fewer as u64, sharing_their_key(&sample, &query.grain)?),
    };
    let head = sample.slice(0, limit.min(sample.num_rows()));
    Ok(Preview {
        table: query.name.clone(),
        date: desk.run.date,
        grain: query.grain.clone(),
        rows,
        rows_of_no_key,
        profiled: sample.num_rows() as u64,
        profile: profile(&sample)?,
        json: rows_as_json(&head)?,
        head,
    })
}

/// Rows of a table whose key is not theirs alone; a NULL is a value here, as in the night.
pub async fn rows_of_no_key(context: &SessionContext, table: &str, grain: &[String]) -> Result<u64> {
    let key = grain.iter().map(|column| format!("\"{column}\"")).collect::<Vec<_>>().join(", ");
    let sql = format!("SELECT SUM(n) AS n FROM (SELECT COUNT(*) AS n FROM \"{table}\" GROUP BY {key}) WHERE n > 1");
    let found = engine::collect(context.sql(&sql).await?).await?;
    let counts = crate::types::column::<arrow::array::Int64Array>(&found, "n")?;
    Ok(counts.iter().flatten().map(i64::unsigned_abs).sum())
}

/// As [`rows_of_no_key`], of rows in the order of their key.
fn sharing_their_key(rows: &RecordBatch, grain: &[String]) -> Result<u64> {
    let key: Vec<_> = grain.iter().map(|column| rows[column.as_str()].clone()).collect();
    let groups = arrow::compute::partition(&key)?.ranges();
    Ok(groups.into_iter().map(|group| group.len() as u64).filter(|rows| *rows > 1).sum())
}

impl Preview {
    pub fn text(&self) -> Result<String> {
        let of = match self.profiled < self.rows {
            true => format!(", profile of the first {} by key", count(self.profiled)),
            false => String::new(),
        };
        let key = match self.rows_of_no_key {
            0 => format!("one a {}", self.grain.join(", ")),
            n => format!("NOT one a {}: {} rows share theirs, and the night would refuse the table", self.grain.join(", "), count(n)),
        };
        let rest = self.rows - self.head.num_rows() as u64;
        let more = if rest > 0 { format!("\n… {} rows more", count(rest)) } else { String::new() };
        Ok(format!(
            "{} as of the end of {}: {} rows, {key}{of}\n\n{}{more}\n\n{}",
            self.table,
            self.date,
            count(self.rows),
            rows_as_text(&self.head)?,
            profile_as_text(&self.profile)
        ))
    }
}

//! Queries whose rows are violations: what is run, and what becomes of what it finds.
//!
//! An error stops the night, with all that is wrong in one message; a warning stands in the log and in the report. Either shows its
//! query and a few of the rows.

use crate::error::{Error, Result};
use crate::platform::engine;
use crate::platform::expectation::Severity;
use crate::types::column;
use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, Utc};
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::{ident, lit};
use datafusion::prelude::SessionContext;
use serde::{Deserialize, Serialize};

/// A question to which no row is the right answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// Where it is said and what: `sql/shop/staging/ads.sql: bid range 0 ..`.
    pub name: String,
    pub severity: Severity,
    pub sql: String,
}

/// What was asked of a night's tables.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Checks {
    /// How many questions.
    pub asked: u64,
    pub violations: Vec<Violation>,
}

/// A check with another answer than none.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Violation {
    pub check: String,
    pub severity: Severity,
    pub rows: u64,
    pub query: String,
    pub columns: Vec<String>,
    /// The first rows in the order of their columns.
    pub sample: Vec<Vec<String>>,
}

/// Rows of a sample.
const SAMPLE: usize = 5;

impl Checks {
    /// Asks one question.
    pub async fn ask(&mut self, context: &SessionContext, check: &Check, as_of: DateTime<Utc>) -> Result<()> {
        self.asked += 1;
        let found = async {
            let frame = engine::plan_sql(context, &check.sql, as_of).await?;
            let rows = engine::collect(frame.clone().aggregate(vec![], vec![count(lit(1)).alias("n")])?).await?;
            let rows = column::<Int64Array>(&rows, "n")?.value(0).unsigned_abs();
            if rows == 0 {
                return Ok(None);
            }
            let fields = frame.schema().fields().iter();
            let sortable = fields.filter(|field| !field.data_type().is_nested() && *field.data_type() != DataType::Null);
            let order = sortable.map(|field| ident(field.name()).sort(true, true)).collect();
            Ok(Some((rows, engine::collect(frame.sort(order)?.limit(0, Some(SAMPLE))?).await?)))
        };
        let found = found.await.map_err(|error: Error| engine::of_query(error, &check.name))?;
        if let Some((rows, sample)) = found {
            self.found(check, rows, &sample)?;
        }
        Ok(())
    }

    /// Takes over what was asked elsewhere.
    pub fn add(&mut self, more: Self) {
        self.asked += more.asked;
        self.violations.extend(more.violations);
    }

    /// Takes down a violation.
    pub fn found(&mut self, check: &Check, rows: u64, sample: &RecordBatch) -> Result<()> {
        let options = FormatOptions::default().with_null("NULL");
        let cells = sample.columns().iter().map(|column| ArrayFormatter::try_new(column, &options));
        let cells = cells.collect::<std::result::Result<Vec<_>, _>>()?;
        let row = |row: usize| cells.iter().map(|column| unnamed(column.value(row).to_string())).collect();
        self.violations.push(Violation {
            check: check.name.clone(),
            severity: check.severity,
            rows,
            query: check.sql.clone(),
            columns: sample.schema().fields().iter().map(|field| field.name().clone()).collect(),
            sample: (0..sample.num_rows()).map(row).collect(),
        });
        Ok(())
    }

    /// Logs the warnings; what is left of them after errors is a failure.
    ///
    /// # Errors
    /// `Contract`, in one line with every error's query and rows.
    pub fn judge(&self) -> Result<()> {
        for found in self.violations.iter().filter(|found| found.severity == Severity::Warn) {
            tracing::warn!(check = found.check, rows = found.rows, query = found.query, sample = found.rows_as_text(), "check");
        }
        let errors: Vec<String> = self.violations.iter().filter(|found| found.severity == Severity::Error).map(Violation::text).collect();
        match errors.is_empty() {
            true => Ok(()),
            false => {
                Err(Error::contract(errors.join("; ")).action("mend the input, or what sources.toml or the SQL says of it, and run again"))
            }
        }
    }
}

/// A pseudonym cut short: the rows of a sample can be told apart, and neither log nor report names anybody.
fn unnamed(cell: String) -> String {
    let pseudonym = cell.len() == 32 && cell.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if pseudonym { format!("{}…", &cell[..8]) } else { cell }
}

impl Violation {
    fn text(&self) -> String {
        let query = self.query.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("check {}: {} violations ({query}): {}", self.check, self.rows, self.rows_as_text())
    }

    /// `a=1, b=2; a=2, b=3`
    fn rows_as_text(&self) -> String {
        let cell = |(column, cell): (&String, &String)| format!("{column}={cell}");
        let row = |row: &Vec<String>| self.columns.iter().zip(row).map(cell).collect::<Vec<_>>().join(", ");
        self.sample.iter().map(row).collect::<Vec<_>>().join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_names_nobody() {
        assert_eq!(unnamed("c3b250cfcda867f9edae66ed572fbb83".into()), "c3b250cf…");
        for other in ["e20261122000377095", "-1.0", "C3B250CFCDA867F9EDAE66ED572FBB83", "手机配件"] {
            assert_eq!(unnamed(other.into()), other);
        }
    }
}

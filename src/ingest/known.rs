//! What was known when: the canonical tables as of a day's cut-off.

use super::{Checks, IngestFacts, Staged, StagedFile, Table};
use crate::error::Result;
use crate::platform::catalog::SourceKind;
use crate::platform::engine::{self, Format};
use crate::platform::run::Run;
use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use chrono::NaiveDate;
use datafusion::common::ScalarValue;
use datafusion::functions::expr_fn::coalesce;
use datafusion::logical_expr::{Expr, ident, lit, when};
use datafusion::prelude::{DataFrame, SessionContext};
use std::collections::BTreeMap;

impl Staged {
    pub(super) fn nothing(fingerprint: String) -> Self {
        Self { tables: BTreeMap::new(), people: None, facts: IngestFacts::default(), checks: Checks::default(), fingerprint }
    }

    pub fn has(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    /// The key of a table's content.
    pub fn key(&self, table: &str) -> Option<&str> {
        self.tables.get(table).map(|table| table.key.as_str())
    }

    pub fn schema(&self, table: &str) -> Option<&SchemaRef> {
        self.tables.get(table).map(|table| &table.schema)
    }

    /// A session in which the canonical tables named are what was known at the cut-off of `day`: rows that happened on or before
    /// it and had arrived by then, outcomes known by then, snapshots of then. With a bucket, only that bucket's users.
    pub fn as_of<'a>(
        &self,
        run: &Run,
        day: NaiveDate,
        bucket: Option<usize>,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<SessionContext> {
        let context = engine::session(&run.engine)?;
        for name in names {
            self.register(&context, run, name, day, bucket)?;
        }
        Ok(context)
    }

    /// Adds one canonical table, as known at the cut-off of `day`, to a session. A table that the shop does not have is left out.
    pub fn register(&self, context: &SessionContext, run: &Run, name: &str, day: NaiveDate, bucket: Option<usize>) -> Result<()> {
        if let Some(rows) = self.known(context, run, name, day, bucket)? {
            context.register_table(name, rows.into_view())?;
        }
        Ok(())
    }

    /// The rows of one canonical table as known at the cut-off of `day`; `None` when the shop does not have it.
    pub fn known(
        &self,
        context: &SessionContext,
        run: &Run,
        name: &str,
        day: NaiveDate,
        bucket: Option<usize>,
    ) -> Result<Option<DataFrame>> {
        let Some(table) = self.tables.get(name) else { return Ok(None) };
        known_at(table.as_of_day(context, day, bucket)?, run, day).map(Some)
    }

    /// One canonical table as known at the cut-offs of several days, in as few readings as that takes; nothing where the shop does not
    /// have it. Most rows of a log are the same on every day on which they are known: a bucket is read once for these, and for each day
    /// only those that have an outcome with a time of its own.
    pub async fn known_on(
        &self,
        context: &SessionContext,
        run: &Run,
        name: &str,
        days: &[NaiveDate],
        bucket: Option<usize>,
    ) -> Result<Vec<Known>> {
        let Some(table) = self.tables.get(name) else { return Ok(Vec::new()) };
        let Some(bucket) = bucket.filter(|_| table.is_joined()) else {
            let of_day = |&day| Ok(Known { rows: known_at(table.as_of_day(context, day, bucket)?, run, day)?, on: vec![(day, lit(true))] });
            return days.iter().map(of_day).collect();
        };
        // A joined bucket holds the rows of all days.
        let rows = table.as_of_day(context, run.date, Some(bucket))?;
        let times = OUTCOMES.iter().map(|outcome| outcome.known).filter(|known| table.schema.field_with_name(known).is_ok());
        let Some(changes) = times.map(|known| ident(known).is_not_null()).reduce(Expr::or) else {
            return Ok(vec![Known::whenever(rows, run, &table.schema, days)]);
        };
        let mut known = vec![Known::whenever(rows.clone().filter(changes.clone().is_false())?, run, &table.schema, days)];
        // Few of many: read once, they are kept.
        let changing = rows.filter(changes)?.cache().await?;
        for &day in days {
            known.push(Known { rows: known_at(changing.clone(), run, day)?, on: vec![(day, lit(true))] });
        }
        Ok(known)
    }

    /// Whether a table's rows lie in buckets of users.
    pub fn is_of_users(&self, name: &str) -> bool {
        self.tables.get(name).is_some_and(|table| table.bucketed)
    }
}

/// Rows of a table, and for some days the condition under which they are known at the day's cut-off, as they stand there.
pub struct Known {
    pub rows: DataFrame,
    pub on: Vec<(NaiveDate, Expr)>,
}

impl Known {
    /// Rows that are as they are whenever they are known.
    fn whenever(rows: DataFrame, run: &Run, schema: &Schema, days: &[NaiveDate]) -> Self {
        let on = |&day: &NaiveDate| (day, has_come(schema, run, day).into_iter().fold(lit(true), Expr::and));
        Self { rows, on: days.iter().map(on).collect() }
    }
}

impl Table {
    /// Whether each bucket's days also lie in one file.
    fn is_joined(&self) -> bool {
        self.bucketed && self.kind == Some(SourceKind::Log) && self.files.iter().any(|file| file.day.is_none())
    }

    /// The rows of a day's view: a log up to the day, the latest snapshot not after it, or everything. Of a log's bucket the rows of
    /// later days come with it, for [`known_at`] to take away.
    pub(super) fn as_of_day(&self, context: &SessionContext, day: NaiveDate, bucket: Option<usize>) -> Result<DataFrame> {
        let bucket = bucket.filter(|_| self.bucketed);
        let joined = self.is_joined();
        let mut files: Vec<&StagedFile> = match self.kind {
            None => self.files.iter().collect(),
            Some(_) if joined && bucket.is_some() => self.files.iter().filter(|file| file.day.is_none()).collect(),
            Some(_) => self.files.iter().filter(|file| file.day.is_some_and(|of| of <= day)).collect(),
        };
        if self.kind == Some(SourceKind::Snapshot) {
            let latest = files.iter().filter_map(|file| file.day).max();
            files.retain(|file| file.day == latest);
        }
        files.retain(|file| bucket.is_none() || file.bucket == bucket);
        if files.is_empty() {
            return Ok(context.read_batch(RecordBatch::new_empty(self.schema.clone()))?);
        }
        let paths: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
        match bucket {
            Some(_) => engine::sorted_files(context, &self.store, &paths, &self.schema, &self.order),
            None => engine::files(context, &self.store, &paths, Format::Parquet, self.schema.clone()),
        }
    }
}

/// The columns that say when a row of a log happened.
pub const TIMES: [&str; 2] = ["occurred_at", "hour"];

/// An outcome of a row, the column that says when it came to be known, and the values that come with it.
struct Outcome {
    name: &'static str,
    known: &'static str,
    values: &'static [&'static str],
}

const OUTCOMES: [Outcome; 2] = [
    Outcome { name: "clicked", known: "clicked_at", values: &[] },
    Outcome { name: "converted", known: "converted_at", values: &["revenue"] },
];

/// The conditions under which a row is there at the cut-off of `day`: it had happened, and had arrived.
fn has_come(schema: &Schema, run: &Run, day: NaiveDate) -> Vec<Expr> {
    let has = |name: &str| schema.field_with_name(name).is_ok();
    let happened = TIMES.into_iter().filter(|time| has(time)).map(|time| engine::before(time, run.job.as_of(day)));
    let arrived = engine::before("arrived_at", run.job.cut_off(day)).or(ident("arrived_at").is_null());
    happened.chain(has("arrived_at").then_some(arrived)).collect()
}

/// Cuts a canonical table at the cut-off of `day`: rows and outcomes that were not known then are not there.
fn known_at(rows: DataFrame, run: &Run, day: NaiveDate) -> Result<DataFrame> {
    let cut_off = run.job.cut_off(day);
    let schema = rows.schema().as_arrow().clone();
    let has = |name: &str| schema.field_with_name(name).is_ok();
    let mut rows = has_come(&schema, run, day).into_iter().try_fold(rows, DataFrame::filter)?;
    for Outcome { name, known, values } in OUTCOMES.iter().filter(|outcome| has(outcome.name) && has(outcome.known)) {
        // An outcome without a time of its own is known with its row.
        let is_known = coalesce(vec![engine::before(known, cut_off), lit(true)]);
        rows = rows.with_column(name, ident(*name).and(is_known.clone()))?;
        for value in values.iter().filter(|value| has(value)) {
            let data_type = schema.field_with_name(value)?.data_type();
            let none = lit(ScalarValue::try_from(data_type)?);
            rows = rows.with_column(value, when(is_known.clone(), ident(*value)).otherwise(none)?)?;
        }
        let never = lit(ScalarValue::try_from(schema.field_with_name(known)?.data_type())?);
        rows = rows.with_column(known, when(is_known, ident(*known)).otherwise(never)?)?;
    }
    Ok(rows)
}

//! What was known when: the canonical tables as of a day's cut-off.

use super::{Checks, IngestFacts, Staged, StagedFile, Table};
use crate::error::Result;
use crate::platform::catalog::SourceKind;
use crate::platform::engine::{self, Format};
use crate::platform::run::Run;
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use chrono::NaiveDate;
use datafusion::common::ScalarValue;
use datafusion::functions::expr_fn::coalesce;
use datafusion::logical_expr::{ident, lit, when};
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

    /// Whether a table's rows lie in buckets of users.
    pub fn is_of_users(&self, name: &str) -> bool {
        self.tables.get(name).is_some_and(|table| table.bucketed)
    }
}

impl Table {
    /// The rows of a day's view: a log up to the day, the latest snapshot not after it, or everything. Of a log's bucket the rows of
    /// later days come with it, for [`known_at`] to take away.
    pub(super) fn as_of_day(&self, context: &SessionContext, day: NaiveDate, bucket: Option<usize>) -> Result<DataFrame> {
        let bucket = bucket.filter(|_| self.bucketed);
        let joined = self.kind == Some(SourceKind::Log) && self.files.iter().any(|file| file.day.is_none());
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

/// Cuts a canonical table at the cut-off of `day`: rows and outcomes that were not known then are not there.
fn known_at(rows: DataFrame, run: &Run, day: NaiveDate) -> Result<DataFrame> {
    let (as_of, cut_off) = (run.job.as_of(day), run.job.cut_off(day));
    let schema = rows.schema().as_arrow().clone();
    let has = |name: &str| schema.field_with_name(name).is_ok();
    let mut rows = rows;
    for column in TIMES {
        if has(column) {
            rows = rows.filter(engine::before(column, as_of))?;
        }
    }
    if has("arrived_at") {
        rows = rows.filter(engine::before("arrived_at", cut_off).or(ident("arrived_at").is_null()))?;
    }
    for (outcome, known, values) in [("clicked", "clicked_at", &[][..]), ("converted", "converted_at", &["revenue"][..])] {
        if !(has(outcome) && has(known)) {
            continue;
        }
        // An outcome without a time of its own is known with its row.
        let is_known = coalesce(vec![engine::before(known, cut_off), lit(true)]);
        rows = rows.with_column(outcome, ident(outcome).and(is_known.clone()))?;
        for value in values.iter().filter(|value| has(value)) {
            let data_type = schema.field_with_name(value)?.data_type();
            let none = lit(ScalarValue::try_from(data_type)?);
            rows = rows.with_column(value, when(is_known.clone(), ident(*value)).otherwise(none)?)?;
        }
        let never = lit(ScalarValue::try_from(schema.field_with_name(known)?.data_type())?);
        rows = rows.with_column(known, when(is_known, ident(known)).otherwise(never)?)?;
    }
    Ok(rows)
}

//! Raw tables -> canonical tables: each staging query, day by day where its header says so, kept in files by bucket of users.

use super::people::Allowed;
use super::raw::{RawTables, Scope};
use super::{Staged, StagedFile, Table, TableFacts};
use crate::error::{Error, Result};
use crate::platform::catalog::{Query, SourceKind};
use crate::platform::engine;
use crate::platform::pseudonym::Key;
use crate::platform::run::{Run, Step};
use crate::platform::storage::day_of;
use crate::types::optional_column;
use arrow::array::{Array, RecordBatch, StringArray, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use chrono::NaiveDate;
use datafusion::catalog::MemorySchemaProvider;
use datafusion::common::TableReference;
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

/// Runs one staging query, day by day if its header says so, and keeps the rows of people who may be processed.
pub(super) async fn stage(run: &Run, raw: &RawTables, staged: &mut Staged, query: &Query, key: &Key, allowed: &Allowed<'_>) -> Result<()> {
    if let Some(absent) = query.reads.iter().find(|read| match read.strip_prefix("raw.") {
        Some(source) => !raw.tables.contains_key(source),
        None => !staged.tables.contains_key(*read),
    }) {
        staged.facts.skipped.push(format!("table {}: it reads {absent}, which this shop does not have", query.name));
        return Ok(());
    }
    let daily = query.daily.as_ref().map(|source| &raw.tables[source]);
    let days: Vec<Option<NaiveDate>> = match daily {
        None => vec![None],
        Some(table) if table.source.day_column.is_some() => (0..raw.history_days).rev().map(|back| Some(run.day(back))).collect(),
        Some(table) => table.files.iter().filter_map(|file| file.day).collect::<BTreeSet<_>>().into_iter().map(Some).collect(),
    };
    #[derive(Serialize)]
    struct Inputs<'a> {
        sql: &'a str,
        raw: BTreeMap<&'a str, String>,
        staged: BTreeMap<&'a str, &'a str>,
        allowed: String,
        pseudonym_key: String,
        /// The end of the day, which the job's time zone decides.
        as_of: chrono::DateTime<chrono::Utc>,
        buckets: usize,
        days: &'a [Option<NaiveDate>],
    }
    let inputs = Inputs {
        sql: &query.sha256,
        raw: query.sources().map(|source| (source, raw.tables[source].fingerprint())).collect(),
        staged: query.reads.iter().filter_map(|read| staged.tables.get(read).map(|table| (read.as_str(), table.key.as_str()))).collect(),
        allowed: allowed.fingerprint(),
        pseudonym_key: key.fingerprint(),
        as_of: run.as_of(),
        buckets: run.engine.buckets,
        days: &days,
    };
    let folder = format!("staging/{}/dt={}", query.name, run.date);
    let done = run
        .step(&folder, &inputs, async |step: &Step| {
            let mut facts = TableFacts { name: query.name.clone(), rows: 0, dropped_suppressed: 0, dropped_no_consent: 0 };
            let (mut schema, mut files) = (None, Vec::new());
            for day in &days {
                let rows = staged_rows(run, raw, staged, query, key, *day).await?;
                schema = Some(rows.schema());
                let rows = allowed.keep(rows, &mut facts)?;
                for (bucket, rows) in buckets(rows, run.engine.buckets)? {
                    let file = StagedFile::new(*day, bucket);
                    step.write_table(&file.path, &rows).await?;
                    files.push(file);
                }
            }
            // One empty file carries the schema, so that a table without rows is still a table.
            let schema = schema.ok_or_else(|| Error::internal(format_args!("table {} has no day", query.name)))?;
            step.write_parquet(SCHEMA_FILE, schema.clone(), &[]).await?;
            let by_time = schema.field_with_name("occurred_at").is_ok();
            if by_time && daily.is_some_and(|table| table.source.kind == SourceKind::Log) {
                join_days(run, step, &files, &schema, &order(query, &schema)).await?;
            }
            Ok(facts)
        })
        .await?;
    let schema = done.store.read_parquet(SCHEMA_FILE).await?.schema();
    let table = Table {
        kind: daily.map(|table| table.source.kind),
        bucketed: schema.field_with_name("user_id").is_ok(),
        order: order(query, &schema),
        schema,
        files: done.files.iter().filter_map(|file| StagedFile::parse(&file.path)).collect(),
        store: done.store,
        key: done.key,
    };
    staged.facts.tables.push(done.facts);
    staged.tables.insert(query.name.clone(), table);
    Ok(())
}

const SCHEMA_FILE: &str = "_schema.parquet";

/// The columns by which the rows of a canonical table are sorted: a user's rows lie together, in the order of their time.
fn order(query: &Query, schema: &Schema) -> Vec<String> {
    let first = ["user_id", "occurred_at"].into_iter().filter(|column| schema.field_with_name(column).is_ok());
    let mut order: Vec<String> = first.map(str::to_owned).collect();
    for column in &query.grain {
        if !order.contains(column) {
            order.push(column.clone());
        }
    }
    order
}

/// Writes the days of each bucket once more, as one sorted file: what is computed per user reads it on end, without merging days. Later
/// days are told by their time.
async fn join_days(run: &Run, step: &Step, files: &[StagedFile], schema: &SchemaRef, order: &[String]) -> Result<()> {
    let buckets: BTreeSet<usize> = files.iter().filter_map(|file| file.bucket).collect();
    let joined = async |bucket: usize| {
        let days = files.iter().filter(|file| file.bucket == Some(bucket)).map(|file| file.path.clone()).collect::<Vec<_>>();
        let context = engine::session(&run.engine.of_one_bucket())?;
        let rows = engine::collect_apart(engine::sorted_files(&context, step.store(), &days, schema, order)?).await?;
        step.write_table(&StagedFile::new(None, Some(bucket)).path, &rows).await
    };
    stream::iter(buckets).map(joined).buffered(run.engine.buckets_at_once()).try_collect().await
}

/// One day's output of a staging query (or all of it), in a fixed order.
async fn staged_rows(run: &Run, raw: &RawTables, staged: &Staged, query: &Query, key: &Key, day: Option<NaiveDate>) -> Result<RecordBatch> {
    let context = engine::session(&run.engine)?;
    let catalog = context.catalog("datafusion").expect("the default catalog exists");
    catalog.register_schema("raw", Arc::new(MemorySchemaProvider::new()))?;
    let until = day.unwrap_or(run.date);
    for source in query.sources() {
        let scope = match day {
            Some(day) if query.daily.as_deref() == Some(source) => Scope::Day(day),
            // A log is read to its end, because outcomes come later; a snapshot as it was on the day.
            _ => Scope::UpTo(until),
        };
        let rows = match raw.tables[source].scan(run, &context, key, scope)? {
            Some(rows) => rows,
            None => raw.tables[source].empty(&context, key)?,
        };
        context.register_table(TableReference::partial("raw", source), rows.into_view())?;
    }
    for (name, table) in query.reads.iter().filter_map(|read| staged.tables.get_key_value(read)) {
        context.register_table(name.as_str(), table.as_of_day(&context, until, None)?.into_view())?;
    }
    let rows = engine::plan(&context, query, run.as_of()).await?;
    let names: Vec<String> = rows.schema().fields().iter().map(|field| field.name().clone()).collect();
    if let Some(absent) = query.grain.iter().find(|column| !names.contains(column)) {
        return Err(Error::usage(format_args!(
            "{}: the header's grain names {absent}, which the query does not return",
            query.path.display()
        )));
    }
    let order = order(query, rows.schema().as_arrow());
    let day = day.map(|day| format!(" for {day}")).unwrap_or_default();
    let rows = match engine::answer(rows.sort(engine::ascending(&order))?, query).await {
        Ok(rows) => rows,
        Err(error) => return Err(raw.blame(run, query.sources(), error).await.context(format_args!("table {}{day}", query.name))),
    };
    let twice = rows.num_rows() - distinct(&rows, &query.grain)?;
    if twice > 0 {
        let grain = query.grain.join(", ");
        return Err(Error::contract(format_args!("table {}{day}: {twice} rows share their {grain} with another row", query.name))
            .action(format_args!("let {} keep one row a {grain}, or mend the input", query.path.display())));
    }
    Ok(rows)
}

/// How many different keys the rows have; a NULL is a value here.
fn distinct(rows: &RecordBatch, key: &[String]) -> Result<usize> {
    let columns: Vec<_> = key.iter().map(|name| rows[name.as_str()].clone()).collect();
    let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let encoded = RowConverter::new(fields)?.convert_columns(&columns)?;
    Ok(encoded.iter().collect::<HashSet<_>>().len())
}

/// Rows by bucket of their user, in bucket order; rows without users stay together. A day without rows gives one empty file,
/// because an empty snapshot is still the latest one.
fn buckets(rows: RecordBatch, buckets: usize) -> Result<Vec<(Option<usize>, RecordBatch)>> {
    if rows.num_rows() == 0 {
        return Ok(vec![(None, rows)]);
    }
    let Some(users) = optional_column::<StringArray>(&rows, "user_id")? else { return Ok(vec![(None, rows)]) };
    let mut indices = vec![Vec::new(); buckets];
    for (row, user) in users.iter().enumerate() {
        indices[bucket_of(user.unwrap_or_default(), buckets)].push(row as u32);
    }
    let filled = indices.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty());
    filled.map(|(bucket, indices)| Ok((Some(bucket), take_record_batch(&rows, &UInt32Array::from(indices))?))).collect()
}

/// The bucket of a user: xxh3-64 of the pseudonym, modulo.
pub fn bucket_of(user: &str, buckets: usize) -> usize {
    (xxh3_64(user.as_bytes()) % buckets as u64) as usize
}

impl StagedFile {
    /// `dt=2026-11-22/bucket=3.parquet`
    fn new(day: Option<NaiveDate>, bucket: Option<usize>) -> Self {
        let folder = day.map(|day| format!("dt={day}/")).unwrap_or_default();
        let name = bucket.map_or("all".to_owned(), |bucket| format!("bucket={bucket}"));
        Self { path: format!("{folder}{name}.parquet"), day, bucket }
    }

    fn parse(path: &str) -> Option<Self> {
        let file = path.rsplit('/').next()?.strip_suffix(".parquet")?;
        let bucket = match file.strip_prefix("bucket=") {
            Some(number) => Some(number.parse().ok()?),
            None if file == "all" => None,
            None => return None,
        };
        Some(Self { path: path.to_owned(), day: day_of(path, "dt"), bucket })
    }
}

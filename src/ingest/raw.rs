//! Raw tables: what lies under the raw root for the window of the night, checked against its contract, read with pseudonyms for ids.

use super::{RawFacts, Settings, contract};
use crate::error::{Context, Error, Kind, Result};
use crate::platform::catalog::{ColumnKind, Source, SourceKind};
use crate::platform::checks::{Check, Checks};
use crate::platform::engine::{self, Format};
use crate::platform::expectation::Severity;
use crate::platform::pseudonym::Key;
use crate::platform::run::Run;
use crate::platform::storage::{day_of, parquet_table};
use crate::types::column;
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use chrono::{DateTime, Days, NaiveDate, TimeDelta, Utc};
use datafusion::common::{JoinType, ScalarValue};
use datafusion::functions::expr_fn::{btrim, isnan, nullif};
use datafusion::logical_expr::{Expr, cast, ident, lit, when};
use datafusion::prelude::{DataFrame, SessionContext};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// What lies under the raw root for the window of the night.
pub(super) struct RawTables {
    pub tables: BTreeMap<String, RawTable>,
    pub history_days: u64,
    pub skipped: Vec<String>,
}

pub(super) struct RawTable {
    pub source: Source,
    format: Format,
    schema: SchemaRef,
    pub files: Vec<RawFile>,
}

pub(super) struct RawFile {
    path: String,
    /// Absent when a file holds several days.
    pub day: Option<NaiveDate>,
    rows: u64,
    bytes: u64,
    modified: DateTime<Utc>,
    /// xxh3-128 of the content.
    fingerprint: u128,
}

/// Hours that a suppression list may be old.
const OLDEST_SUPPRESSIONS: i64 = 24;

impl RawTables {
    pub async fn discover(run: &Run, settings: &Settings, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let mut tables = BTreeMap::new();
        let mut skipped = Vec::new();
        let decisive = run.catalog.sources_of("suppressions");
        if run.catalog.staged("suppressions").is_none() {
            return Err(Error::privacy(format_args!("{}/staging/suppressions.sql is absent: nobody could be suppressed", run.job.sql))
                .action("add the suppression list, an empty one if nobody asked, and run again"));
        }
        for (name, source) in run.catalog.sources.iter().filter(|(name, _)| wanted(name)) {
            let source = Source { required: source.required || decisive.contains(name.as_str()), ..source.clone() };
            let found = RawTable::discover(run, settings, name, &source).await;
            match found.map_err(|error| if decisive.contains(name.as_str()) { as_privacy(error) } else { error })? {
                Some(table) => {
                    if decisive.contains(name.as_str()) {
                        table.check_age(run, name)?;
                    }
                    skipped.extend(table.hole().map(|day| format!("raw table {name}: nothing for {day}, in the midst of its days")));
                    tables.insert(name.clone(), table);
                }
                None => skipped.push(format!("raw table {name}: nothing under {}", source.location)),
            }
        }
        Ok(Self { tables, history_days: settings.history_days, skipped })
    }

    /// Checks the run date's rows against the contracts; gives the duplicates by table, and what is no error but worth a warning.
    pub async fn check_day(&self, run: &Run, key: &Key) -> Result<(BTreeMap<String, u64>, Checks)> {
        let mut duplicates = BTreeMap::new();
        let decisive = run.catalog.sources_of("suppressions");
        let mut checks = Checks::default();
        for (name, table) in &self.tables {
            let context = engine::session(&run.engine)?;
            let Some(rows) = table.scan(run, &context, key, Scope::Delivered(run.date))? else {
                duplicates.insert(name.clone(), 0);
                continue;
            };
            let checked = async {
                let found = table.check(rows, name, run.date).await? + table.delivered_again(run, &context, key).await?;
                contract::ask(run, &context, key, name, table, &mut checks).await?;
                Ok(found)
            };
            match checked.await {
                Ok(found) => duplicates.insert(name.clone(), found),
                Err(error) => {
                    let error = self.blame(run, [name.as_str()], error).await.context(format_args!("raw table {name}, {}", run.date));
                    return Err(if decisive.contains(name.as_str()) { as_privacy(error) } else { error });
                }
            };
        }
        checks.judge()?;
        Ok((duplicates, checks))
    }

    /// An error met while reading the tables named, put down to the file that cannot be read when there is one: the engine does
    /// not say which it was reading.
    pub async fn blame<'a>(&self, run: &Run, names: impl IntoIterator<Item = &'a str>, error: Error) -> Error {
        if !matches!(error.kind, Kind::Contract | Kind::Internal) {
            return error;
        }
        for table in names.into_iter().filter_map(|name| self.tables.get(name)).filter(|table| table.format == Format::Parquet) {
            for file in &table.files {
                let Ok(bytes) = run.raw.get(&file.path).await else { continue };
                // The decoder may panic over what it was promised never to see.
                let read = tokio::task::spawn_blocking(move || parquet_table(bytes).map(drop)).await;
                if let Err(why) = read.unwrap_or_else(|_| Err(Error::contract("its pages are damaged"))) {
                    return Error::contract(format_args!("{} is damaged: {why}", run.raw.locate(&file.path)))
                        .action("deliver the file again and run again");
                }
            }
        }
        error
    }

    pub fn facts(&self, duplicates: &BTreeMap<String, u64>) -> Vec<RawFacts> {
        let facts = |(name, table): (&String, &RawTable)| RawFacts {
            name: name.clone(),
            kind: table.source.kind,
            days: table.files.iter().filter_map(|file| file.day).collect::<BTreeSet<_>>().len().max(1),
            rows: table.files.iter().map(|file| file.rows).sum(),
            bytes: table.files.iter().map(|file| file.bytes).sum(),
            duplicates: duplicates[name],
        };
        self.tables.iter().map(facts).collect()
    }

    pub fn fingerprint(&self) -> String {
        let mut text = String::new();
        for (name, table) in &self.tables {
            text.push_str(&format!("{name} {}\n", table.fingerprint()));
        }
        format!("{:032x}", xxh3_128(text.as_bytes()))
    }
}

/// The last day of whose suppression list every part has arrived; `None` where no part lies in folders of days.
pub(super) async fn newest_suppressions(run: &Run) -> Result<Option<NaiveDate>> {
    let mut newest: Option<NaiveDate> = None;
    for name in run.catalog.sources_of("suppressions") {
        let Some(source) = run.catalog.sources.get(name) else { continue };
        let Some(partition) = &source.partition else { continue };
        let files = run.raw.list(&source.location).await?;
        let last = files.iter().filter(|file| format_of(&file.path).is_some()).filter_map(|file| day_of(&file.path, partition)).max();
        newest = newest.map_or(last, |newest| last.map(|last| last.min(newest)));
    }
    Ok(newest)
}

/// Whatever is wrong with the suppression list's input, nobody may be processed without it; a store that did not answer is asked again.
fn as_privacy(error: Error) -> Error {
    if !matches!(error.kind, Kind::InputMissing | Kind::Contract) {
        return error;
    }
    Error::privacy(error)
        .action("deliver the suppression list of the date (an empty one if nobody asked) and run again; yesterday's table stays")
}

/// Folders of so many days before a day's are searched for rows that it delivers again: a repeated delivery comes the next day, or the one
/// after a night that failed. Each costs a reading of its keys for every day of the history.
const REDELIVERY_DAYS: u64 = 2;

/// At most so many rows are counted that an older folder delivered.
const OLD_ROWS: usize = 1_000_000;

/// Which rows of a raw table a staging query sees.
#[derive(Clone, Copy)]
pub(super) enum Scope {
    Day(NaiveDate),
    /// As [`Scope::Day`], with the rows that an earlier day delivered already.
    Delivered(NaiveDate),
    /// A log whole; a snapshot as of the day.
    UpTo(NaiveDate),
}

impl RawTable {
    /// Lists, reads and checks the files of one raw table; `None` when an optional one is absent.
    async fn discover(run: &Run, settings: &Settings, name: &str, source: &Source) -> Result<Option<Self>> {
        let oldest = run.day(settings.history_days - 1);
        let mut files = Vec::new();
        let mut found: Option<(Format, SchemaRef)> = None;
        for object in run.raw.list(&source.location).await? {
            let Some(format) = format_of(&object.path) else { continue };
            let day = match &source.partition {
                Some(partition) => match day_of(&object.path, partition) {
                    Some(day) if day < oldest || day > run.date => continue,
                    Some(day) => Some(day),
                    None => return Err(Error::contract(format_args!("{} is in no {partition}= folder", run.raw.locate(&object.path)))),
                },
                None => None,
            };
            let bytes = run.raw.get(&object.path).await?;
            let location = run.raw.locate(&object.path);
            let (schema, rows) = read_schema(format, &bytes).with_context(|| format!("raw table {name}: {location}"))?;
            check_schema(source, format, &schema).with_context(|| format!("raw table {name}: {location}"))?;
            // One reader reads all files of a table, and CSV goes by position: another order of columns would put ids in the wrong place.
            if let Some((first_format, first)) = &found
                && (*first_format != format || (format == Format::Csv && *first != schema))
            {
                return Err(Error::contract(format_args!(
                    "raw table {name}: {location} has another header or format than the table's other files"
                ))
                .action("deliver all files of the table with the same columns in the same order"));
            }
            if found.as_ref().is_none_or(|(_, first)| first.fields().len() < schema.fields().len()) {
                found = Some((format, schema));
            }
            let modified = object.modified;
            files.push(RawFile { path: object.path, day, rows, bytes: bytes.len() as u64, modified, fingerprint: xxh3_128(&bytes) });
        }
        let here = files.iter().any(|file| file.day.is_none_or(|day| day == run.date));
        if source.required && !here {
            let folder = match &source.partition {
                Some(partition) => format!("{}/{partition}={}", source.location, run.date),
                None => source.location.clone(),
            };
            return Err(Error::new(
                Kind::InputMissing,
                format_args!("raw table {name} has nothing for {}: no file below {}", run.date, run.raw.locate(&folder)),
            ));
        }
        let Some((format, schema)) = found else { return Ok(None) };
        let table = Self { source: source.clone(), format, schema, files };
        match table.hole().filter(|_| source.required) {
            None => Ok(Some(table)),
            Some(day) => Err(Error::new(
                Kind::InputMissing,
                format_args!(
                    "raw table {name} has days before and after {day}, but nothing for it below {}",
                    run.raw.locate(&source.location)
                ),
            )
            .action(format_args!("deliver {day} (a file without rows if nothing happened) and run again"))),
        }
    }

    /// The first day without files between the first and the last of a log's days. Features that count backwards would be too low over
    /// it, and nobody would see why.
    fn hole(&self) -> Option<NaiveDate> {
        if self.source.kind == SourceKind::Snapshot {
            return None;
        }
        let days: BTreeSet<NaiveDate> = self.files.iter().filter_map(|file| file.day).collect();
        let (first, last) = (days.first()?, days.last()?);
        first.iter_days().take_while(|day| day < last).find(|day| !days.contains(day))
    }

    /// Rows of each day that lies in a folder of its own.
    pub fn rows_by_day(&self) -> BTreeMap<NaiveDate, u64> {
        let mut rows = BTreeMap::new();
        for file in &self.files {
            if let Some(day) = file.day {
                *rows.entry(day).or_default() += file.rows;
            }
        }
        rows
    }

    /// The suppression list must be young. A day's folder states the end of its day, and the day must be the run's or the one before,
    /// however late logs may arrive; a list in one piece is as old as its youngest file at the cut-off.
    fn check_age(&self, run: &Run, name: &str) -> Result<()> {
        let age = |file: &RawFile| match file.day {
            Some(day) => run.as_of() - run.job.as_of(day),
            None => run.cut_off() - file.modified,
        };
        let age = self.files.iter().map(age).min().unwrap_or(TimeDelta::MAX);
        if age <= TimeDelta::hours(OLDEST_SUPPRESSIONS) {
            return Ok(());
        }
        Err(as_privacy(Error::contract(format_args!(
            "raw table {name} of {} is {} h old, and a suppression list may be {OLDEST_SUPPRESSIONS} h old",
            run.date,
            age.num_hours()
        ))))
    }

    pub fn fingerprint(&self) -> String {
        let contract = serde_json::to_string(&self.source).expect("a contract serialises");
        let text: String = self.files.iter().map(|file| format!("{} {:032x}\n", file.path, file.fingerprint)).collect();
        let text = format!("{contract}\n{text}");
        format!("{:032x}", xxh3_128(text.as_bytes()))
    }

    /// The rows in scope, ids pseudonymised, columns of the contract alone; `None` when there is no file.
    pub fn scan(&self, run: &Run, context: &SessionContext, key: &Key, scope: Scope) -> Result<Option<DataFrame>> {
        let snapshot = self.source.kind == SourceKind::Snapshot;
        let wanted = |day: NaiveDate| match scope {
            Scope::Day(of) | Scope::Delivered(of) => day == of,
            Scope::UpTo(of) if snapshot => day <= of,
            Scope::UpTo(_) => true,
        };
        let mut files: Vec<&RawFile> = self.files.iter().filter(|file| file.day.is_none_or(wanted)).collect();
        if snapshot && matches!(scope, Scope::UpTo(_)) {
            let latest = files.iter().filter_map(|file| file.day).max();
            files.retain(|file| file.day == latest);
        }
        if files.is_empty() {
            return Ok(None);
        }
        let mut frame = self.read(run, context, key, &files)?;
        if let Scope::Day(day) = scope
            && let Some(earlier) = self.delivered_before(run, context, key, day)?
        {
            frame = self.join_by_key(frame, earlier, JoinType::LeftAnti)?;
        }
        if let Some(column) = &self.source.day_column {
            let (Scope::Day(last) | Scope::Delivered(last) | Scope::UpTo(last)) = scope;
            frame = frame.filter(engine::before(column, run.job.as_of(last)))?;
            if let Scope::Day(day) | Scope::Delivered(day) = scope {
                frame = frame.filter(engine::before(column, run.job.as_of(day - Days::new(1))).is_false())?;
            }
        }
        Ok(Some(frame))
    }

    /// The contract's columns of some files.
    fn read(&self, run: &Run, context: &SessionContext, key: &Key, files: &[&RawFile]) -> Result<DataFrame> {
        let paths: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
        let frame = engine::files(context, &run.raw, &paths, self.format, self.schema.clone())?;
        Ok(frame.select(self.source.columns.keys().map(|name| self.expression(name, key)).collect::<Vec<_>>())?)
    }

    /// Rows of the run date's folder that an earlier one had.
    async fn delivered_again(&self, run: &Run, context: &SessionContext, key: &Key) -> Result<u64> {
        let Some(earlier) = self.delivered_before(run, context, key, run.date)? else { return Ok(0) };
        let Some(rows) = self.scan(run, context, key, Scope::Delivered(run.date))? else { return Ok(0) };
        Ok(self.join_by_key(rows, earlier, JoinType::LeftSemi)?.count().await? as u64)
    }

    /// Warns of rows that the run date's folder has from a folder too long ago to be searched on every day: they count twice.
    pub(super) async fn look_for_old_rows(
        &self,
        run: &Run,
        context: &SessionContext,
        key: &Key,
        name: &str,
        checks: &mut Checks,
    ) -> Result<()> {
        let oldest = run.date - Days::new(REDELIVERY_DAYS);
        let Some(earlier) = self.keyed(run, context, key, |day| day < oldest)? else { return Ok(()) };
        let Some(rows) = self.scan(run, context, key, Scope::Delivered(run.date))? else { return Ok(()) };
        let again = engine::collect(self.join_by_key(rows, earlier, JoinType::LeftSemi)?.limit(0, Some(OLD_ROWS))?).await?;
        if again.num_rows() > 0 {
            let check = Check {
                name: format!("raw.{name}: delivered again after more than {REDELIVERY_DAYS} days, and counted twice"),
                severity: Severity::Warn,
                sql: format!("{} of {} that an older folder has", self.source.key.join(", "), run.date),
            };
            checks.found(&check, again.num_rows() as u64, &again.slice(0, again.num_rows().min(3)))?;
        }
        Ok(())
    }

    /// What a log's earlier folders delivered that a day's folder may deliver again: a row counts on the day that had it first.
    fn delivered_before(&self, run: &Run, context: &SessionContext, key: &Key, day: NaiveDate) -> Result<Option<DataFrame>> {
        self.keyed(run, context, key, |of| of < day && of >= day - Days::new(REDELIVERY_DAYS))
    }

    /// The rows of a log's folders of some days, where rows have a key.
    fn keyed(&self, run: &Run, context: &SessionContext, key: &Key, wanted: impl Fn(NaiveDate) -> bool) -> Result<Option<DataFrame>> {
        if self.source.kind != SourceKind::Log || self.source.key.is_empty() {
            return Ok(None);
        }
        let files: Vec<&RawFile> = self.files.iter().filter(|file| file.day.is_some_and(&wanted)).collect();
        if files.is_empty() { Ok(None) } else { self.read(run, context, key, &files).map(Some) }
    }

    /// The rows of `frame` whose key is (`LeftSemi`) or is not (`LeftAnti`) among those of `other`; a key with a NULL is nobody's.
    fn join_by_key(&self, frame: DataFrame, other: DataFrame, kind: JoinType) -> Result<DataFrame> {
        let theirs: Vec<String> = self.source.key.iter().map(|name| format!("earlier_{name}")).collect();
        let other =
            other.select(self.source.key.iter().zip(&theirs).map(|(name, theirs)| ident(name).alias(theirs)).collect::<Vec<_>>())?;
        let names = |names: &[String]| names.iter().map(ident).collect::<Vec<Expr>>();
        let equal = names(&self.source.key).into_iter().zip(names(&theirs)).map(|(ours, theirs)| ours.eq(theirs)).collect::<Vec<_>>();
        Ok(frame.join_on(other, kind, equal)?)
    }

    /// No rows, with the contract's columns.
    pub fn empty(&self, context: &SessionContext, key: &Key) -> Result<DataFrame> {
        let none = context.read_batch(RecordBatch::new_empty(self.schema.clone()))?;
        Ok(none.select(self.source.columns.keys().map(|name| self.expression(name, key)).collect::<Vec<_>>())?)
    }

    /// One contracted column in its plain type; NaN and infinities are no values.
    fn expression(&self, name: &str, key: &Key) -> Expr {
        let contract = &self.source.columns[name];
        let wanted = contract.kind.data_type();
        if self.schema.field_with_name(name).is_err() {
            let null = ScalarValue::try_from(&wanted).expect("contract types have a null");
            return lit(null).alias(name);
        }
        let mut value = cast(ident(name), wanted.clone());
        if wanted == DataType::Utf8 && self.format == Format::Csv {
            value = nullif(value, lit(""));
        }
        if wanted == DataType::Float64 {
            let infinite = value.clone().eq(lit(f64::INFINITY)).or(value.clone().eq(lit(f64::NEG_INFINITY)));
            let none = lit(ScalarValue::Float64(None));
            value = when(isnan(value.clone()).or(infinite), none).otherwise(value).expect("two branches of one type");
        }
        if let Some(domain) = contract.id {
            // Nobody can trim a pseudonym: an id with a stray blank would be somebody else, and not on the suppression list.
            value = nullif(btrim(vec![value]), lit(""));
            value = key.function(domain).call(vec![value]);
        }
        value.alias(name)
    }

    /// Row count, non-null columns and key of one day; gives the number of duplicates.
    async fn check(&self, rows: DataFrame, name: &str, date: NaiveDate) -> Result<u64> {
        use datafusion::functions_aggregate::expr_fn::{count, count_distinct};
        let required: Vec<&String> = self.source.columns.iter().filter(|(_, column)| !column.nullable).map(|(name, _)| name).collect();
        let mut sums = vec![count(lit(1)).alias("rows")];
        sums.extend(required.iter().map(|name| count(ident(name.as_str())).alias(format!("n_{name}"))));
        if !self.source.key.is_empty() {
            let key = self.source.key.iter().map(|name| ident(name.as_str())).collect::<Vec<_>>();
            let key = if key.len() == 1 {
                key[0].clone()
            } else {
                datafusion::functions::expr_fn::concat_ws(lit("\u{1f}"), key.into_iter().map(|part| cast(part, DataType::Utf8)).collect())
            };
            sums.push(count_distinct(key.clone()).alias("distinct"));
            sums.push(count(key).alias("keyed"));
        }
        let found = engine::collect(rows.aggregate(vec![], sums)?).await?;
        let number = |name: &str| Ok::<u64, Error>(column::<arrow::array::Int64Array>(&found, name)?.value(0).unsigned_abs());
        let total = number("rows")?;
        if self.source.required && total < self.source.min_rows.unwrap_or(1) {
            return Err(Error::contract(format_args!("{total} rows, fewer than min_rows = {}", self.source.min_rows.unwrap_or(1)))
                .action(format_args!("see why {name} of {date} is so small, or change min_rows in sources.toml")));
        }
        if let Some(most) = self.source.max_rows.filter(|most| total > *most) {
            return Err(Error::contract(format_args!("{total} rows, more than max_rows = {most}")));
        }
        for name in required {
            let nulls = total - number(&format!("n_{name}"))?;
            if nulls > 0 {
                return Err(Error::contract(format_args!(
                    "column {name} is NULL in {nulls} of {total} rows, but the contract says nullable = false"
                )));
            }
        }
        if self.source.key.is_empty() { Ok(0) } else { Ok(number("keyed")? - number("distinct")?) }
    }
}

fn format_of(path: &str) -> Option<Format> {
    match path.rsplit_once('.')?.1 {
        "parquet" => Some(Format::Parquet),
        "csv" => Some(Format::Csv),
        _ => None,
    }
}

fn read_schema(format: Format, bytes: &Bytes) -> Result<(SchemaRef, u64)> {
    match format {
        Format::Parquet => {
            let reader = ParquetRecordBatchReaderBuilder::try_new(bytes.clone()).map_err(|error| {
                Error::contract(format_args!("not a whole Parquet file: {error}")).action("deliver the file again and run again")
            })?;
            let rows = reader.metadata().file_metadata().num_rows();
            // Metadata of fields and schema differs between writers and says nothing about the rows.
            let fields: Vec<Field> =
                reader.schema().fields().iter().map(|field| field.as_ref().clone().with_metadata(Default::default())).collect();
            Ok((Arc::new(Schema::new(fields)), rows.unsigned_abs()))
        }
        Format::Csv => {
            let text = std::str::from_utf8(bytes).map_err(|error| Error::contract(format_args!("not UTF-8: {error}")))?;
            let header = text.lines().next().filter(|line| !line.trim().is_empty()).ok_or_else(|| Error::contract("no header line"))?;
            let fields: Vec<Field> =
                header.split(',').map(|name| Field::new(name.trim().trim_matches('"'), DataType::Utf8, true)).collect();
            Ok((Arc::new(Schema::new(fields)), text.lines().count() as u64 - 1))
        }
    }
}

fn check_schema(source: &Source, format: Format, schema: &Schema) -> Result<()> {
    for (name, contract) in &source.columns {
        let Ok(field) = schema.field_with_name(name) else {
            if contract.optional {
                continue;
            }
            let names = schema.fields().iter().map(|field| field.name().as_str());
            let hint = crate::platform::catalog::nearest(name, names).map(|near| format!("; it has {near}")).unwrap_or_default();
            return Err(Error::contract(format_args!("column {name} is absent{hint}")));
        };
        if format == Format::Csv {
            continue;
        }
        let data_type = field.data_type();
        let fits = match contract.kind {
            ColumnKind::String => {
                matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) || is_string_dictionary(data_type)
            }
            ColumnKind::Int64 => data_type.is_integer(),
            ColumnKind::Float64 => data_type.is_floating() || matches!(data_type, DataType::Decimal128(..)),
            ColumnKind::Bool => *data_type == DataType::Boolean,
            ColumnKind::Timestamp => matches!(data_type, DataType::Timestamp(..)),
            ColumnKind::Date => matches!(data_type, DataType::Date32 | DataType::Date64),
        };
        if !fits {
            let wanted = serde_json::to_value(contract.kind)?;
            return Err(Error::contract(format_args!("column {name} is {data_type}, but the contract says {wanted}")));
        }
    }
    Ok(())
}

fn is_string_dictionary(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Dictionary(_, value) if matches!(**value, DataType::Utf8 | DataType::LargeUtf8))
}

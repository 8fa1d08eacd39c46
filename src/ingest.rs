//! Raw logs -> canonical tables. Are the date's inputs here, whole and as contracted? Then each staging query runs, over rows
//! whose personal ids are already pseudonyms, and people who are suppressed or did not consent are dropped from its output
//! before anything else reads it.
//!
//! What must hold afterwards: every staged row belongs to somebody who may be profiled; every later stage sees the tables only
//! through [`Staged::as_of`], which shows what was known at a day's cut-off and nothing later.

use crate::error::{Context, Error, Kind, Result};
use crate::platform::catalog::{Catalog, ColumnKind, Query, Source, SourceKind};
use crate::platform::engine::{self, Format};
use crate::platform::pseudonym::Key;
use crate::platform::run::{Run, Step};
use crate::platform::storage::Store;
use crate::types::{column, optional_column};
use arrow::array::{Array, BooleanArray, RecordBatch, StringArray, UInt32Array};
use arrow::compute::{filter_record_batch, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::row::{RowConverter, SortField};
use bytes::Bytes;
use chrono::{Days, NaiveDate};
use datafusion::catalog::MemorySchemaProvider;
use datafusion::common::ScalarValue;
use datafusion::common::TableReference;
use datafusion::functions::expr_fn::{btrim, coalesce, isnan, nullif};
use datafusion::logical_expr::{Expr, cast, ident, lit, when};
use datafusion::prelude::{DataFrame, SessionContext};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Days of logs that the night reads, the run date included.
    pub history_days: u64,
    pub consent: Consent,
    /// Why no consent is needed, when it is `not_applicable`.
    pub consent_reason: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { history_days: 28, consent: Consent::Required, consent_reason: None }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Consent {
    /// Without a consent to `profile` nothing of a user is read: default deny.
    Required,
    /// The rows belong to no identifiable person.
    NotApplicable,
}

/// The canonical tables of one night.
#[derive(Clone, Debug)]
pub struct Staged {
    tables: BTreeMap<String, Table>,
    /// Who may be targeted and measured; absent when consent is not applicable.
    pub people: Option<People>,
    pub facts: IngestFacts,
    /// Hash of every input byte, contract and staging query.
    pub fingerprint: String,
}

#[derive(Clone, Debug)]
struct Table {
    /// What the days of a daily table mean; `None` for a table made once from everything.
    kind: Option<SourceKind>,
    schema: SchemaRef,
    store: Store,
    files: Vec<StagedFile>,
    bucketed: bool,
    key: String,
}

#[derive(Clone, Debug, PartialEq)]
struct StagedFile {
    path: String,
    day: Option<NaiveDate>,
    bucket: Option<usize>,
}

/// Users by the purposes they consented to, suppressed ones left out.
#[derive(Clone, Debug, Default)]
pub struct People {
    pub target: BTreeSet<String>,
    pub measure: BTreeSet<String>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct IngestFacts {
    pub raw: Vec<RawFacts>,
    pub tables: Vec<TableFacts>,
    pub skipped: Vec<String>,
}

/// One raw table as it arrived.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct RawFacts {
    pub name: String,
    pub kind: SourceKind,
    pub days: usize,
    pub rows: u64,
    pub bytes: u64,
    /// Rows of the run date whose key another row of that day already has.
    pub duplicates: u64,
}

/// One canonical table as it was staged.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct TableFacts {
    pub name: String,
    pub rows: u64,
    pub dropped_suppressed: u64,
    pub dropped_no_consent: u64,
}

/// Tables that say who may be processed at all: they are staged first, and their absence is a matter of privacy.
const PEOPLE_TABLES: [&str; 2] = ["suppressions", "consents"];

pub async fn run(run: &Run, settings: &Settings, key: &Key) -> Result<Staged> {
    let raw = RawTables::discover(run, settings, |_| true).await?;
    let duplicates = raw.check_day(run, key).await?;
    let mut staged = Staged { tables: BTreeMap::new(), people: None, facts: IngestFacts::default(), fingerprint: raw.fingerprint() };
    let (first, rest): (Vec<_>, Vec<_>) = run.catalog.staging.iter().partition(|query| decides_people(&run.catalog, &query.name));
    for query in first {
        stage(run, &raw, &mut staged, query, key, &Allowed::Everybody).await?;
    }
    let people = People::read(run, settings, &staged).await?;
    let allowed = match settings.consent {
        Consent::Required => Allowed::Consenting { suppressed: &people.suppressed, profile: &people.profile },
        Consent::NotApplicable => Allowed::Unless { suppressed: &people.suppressed },
    };
    for query in rest {
        stage(run, &raw, &mut staged, query, key, &allowed).await?;
    }
    staged.people = (settings.consent == Consent::Required).then_some(People { target: people.target, measure: people.measure });
    staged.facts.raw = raw.facts(&duplicates);
    staged.facts.skipped = raw.skipped;
    for query in &run.catalog.checks {
        check(run, &staged, query).await?;
    }
    Ok(staged)
}

/// Runs one of the shop's checks: a row it returns is a violation.
async fn check(run: &Run, staged: &Staged, query: &Query) -> Result<()> {
    let context = staged.as_of(run, run.date, None, query.reads.iter().map(String::as_str))?;
    let violations = engine::collect(engine::plan(&context, query, run.as_of()).await?).await?.num_rows();
    match violations {
        0 => Ok(()),
        _ => Err(Error::contract(format_args!("check {}: {violations} violations as of {}", query.path.display(), run.date))
            .action("look at the rows with `nightmarket sql preview` of the tables it reads, and mend the input")),
    }
}

/// The pseudonyms on the run date's suppression list, from that list alone: nothing else of the date need have arrived.
pub async fn suppressed_on(run: &Run, settings: &Settings, key: &Key) -> Result<HashSet<String>> {
    let sources = run.catalog.sources_of("suppressions");
    let raw = RawTables::discover(run, settings, |name| sources.contains(name)).await?;
    let mut staged = Staged { tables: BTreeMap::new(), people: None, facts: IngestFacts::default(), fingerprint: raw.fingerprint() };
    let feeds = |query: &Query| !query.sources().any(|source| !sources.contains(source));
    for query in run.catalog.staging.iter().filter(|query| decides_people(&run.catalog, &query.name) && feeds(query)) {
        stage(run, &raw, &mut staged, query, key, &Allowed::Everybody).await?;
    }
    suppressed(run, &staged).await
}

/// Whether a canonical table is one of the people tables or feeds one.
fn decides_people(catalog: &Catalog, name: &str) -> bool {
    let feeds = |table: &str| catalog.staged(table).is_some_and(|query| query.reads.contains(name));
    PEOPLE_TABLES.contains(&name) || PEOPLE_TABLES.iter().any(|table| feeds(table))
}

// ---------------------------------------------------------------------------------------------------------------- raw tables

/// What lies under the raw root for the window of the night.
struct RawTables {
    tables: BTreeMap<String, RawTable>,
    history_days: u64,
    skipped: Vec<String>,
}

struct RawTable {
    source: Source,
    format: Format,
    schema: SchemaRef,
    files: Vec<RawFile>,
}

struct RawFile {
    path: String,
    /// Absent when a file holds several days.
    day: Option<NaiveDate>,
    rows: u64,
    bytes: u64,
    /// xxh3-128 of the content.
    fingerprint: u128,
}

impl RawTables {
    async fn discover(run: &Run, settings: &Settings, wanted: impl Fn(&str) -> bool) -> Result<Self> {
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
            match found.map_err(|error| {
                if decisive.contains(name.as_str()) && error.kind == Kind::InputMissing { as_privacy(error) } else { error }
            })? {
                Some(table) => {
                    tables.insert(name.clone(), table);
                }
                None => skipped.push(format!("raw table {name}: nothing under {}", source.location)),
            }
        }
        Ok(Self { tables, history_days: settings.history_days, skipped })
    }

    /// Checks the run date's rows against the contracts; gives the duplicates by table.
    async fn check_day(&self, run: &Run, key: &Key) -> Result<BTreeMap<String, u64>> {
        let mut duplicates = BTreeMap::new();
        for (name, table) in &self.tables {
            let context = engine::session(&run.engine)?;
            let Some(rows) = table.scan(run, &context, key, Scope::Day(run.date))? else {
                duplicates.insert(name.clone(), 0);
                continue;
            };
            let found = table.check(rows, name, run.date).await.with_context(|| format!("raw table {name}, {}", run.date))?;
            duplicates.insert(name.clone(), found);
        }
        Ok(duplicates)
    }

    fn facts(&self, duplicates: &BTreeMap<String, u64>) -> Vec<RawFacts> {
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

    fn fingerprint(&self) -> String {
        let mut text = String::new();
        for (name, table) in &self.tables {
            text.push_str(&format!("{name} {}\n", table.fingerprint()));
        }
        format!("{:032x}", xxh3_128(text.as_bytes()))
    }
}

fn as_privacy(error: Error) -> Error {
    Error::privacy(error)
        .action("deliver the suppression list of the date (an empty one if nobody asked) and run again; yesterday's table stays")
}

/// Which rows of a raw table a staging query sees.
#[derive(Clone, Copy)]
enum Scope {
    Day(NaiveDate),
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
            files.push(RawFile { path: object.path, day, rows, bytes: bytes.len() as u64, fingerprint: xxh3_128(&bytes) });
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
        Ok(found.map(|(format, schema)| Self { source: source.clone(), format, schema, files }))
    }

    fn fingerprint(&self) -> String {
        let contract = serde_json::to_string(&self.source).expect("a contract serialises");
        let text: String = self.files.iter().map(|file| format!("{} {:032x}\n", file.path, file.fingerprint)).collect();
        let text = format!("{contract}\n{text}");
        format!("{:032x}", xxh3_128(text.as_bytes()))
    }

    /// The rows in scope, ids pseudonymised, columns of the contract alone; `None` when there is no file.
    fn scan(&self, run: &Run, context: &SessionContext, key: &Key, scope: Scope) -> Result<Option<DataFrame>> {
        let snapshot = self.source.kind == SourceKind::Snapshot;
        let wanted = |day: NaiveDate| match scope {
            Scope::Day(of) => day == of,
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
        let paths: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
        let mut frame = engine::files(context, &run.raw, &paths, self.format, self.schema.clone())?;
        frame = frame.select(self.source.columns.keys().map(|name| self.expression(name, key)).collect::<Vec<_>>())?;
        if let Some(column) = &self.source.day_column {
            let (Scope::Day(last) | Scope::UpTo(last)) = scope;
            frame = frame.filter(engine::before(column, run.job.as_of(last)))?;
            if let Scope::Day(day) = scope {
                frame = frame.filter(engine::before(column, run.job.as_of(day - Days::new(1))).is_false())?;
            }
        }
        Ok(Some(frame))
    }

    /// No rows, with the contract's columns.
    fn empty(&self, context: &SessionContext, key: &Key) -> Result<DataFrame> {
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

/// The day in `…/dt=2026-11-22/…`.
fn day_of(path: &str, partition: &str) -> Option<NaiveDate> {
    // A store may show the `=` of a folder escaped.
    path.split('/').find_map(|part| part.replace("%3D", "=").strip_prefix(partition)?.strip_prefix('=')?.parse().ok())
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

// ------------------------------------------------------------------------------------------------------------ canonical tables

/// Runs one staging query, day by day if its header says so, and keeps the rows of people who may be processed.
async fn stage(run: &Run, raw: &RawTables, staged: &mut Staged, query: &Query, key: &Key, allowed: &Allowed<'_>) -> Result<()> {
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
            let mut schema = None;
            for day in &days {
                let rows = staged_rows(run, raw, staged, query, key, *day).await?;
                schema = Some(rows.schema());
                let rows = allowed.keep(rows, &mut facts)?;
                for (bucket, rows) in buckets(rows, run.engine.buckets)? {
                    let file = StagedFile { path: String::new(), day: *day, bucket };
                    step.write_table(&file.name(), &rows).await?;
                }
            }
            // One empty file carries the schema, so that a table without rows is still a table.
            let schema = schema.ok_or_else(|| Error::internal(format_args!("table {} has no day", query.name)))?;
            step.write_parquet(SCHEMA_FILE, schema, &[]).await?;
            Ok(facts)
        })
        .await?;
    let schema = done.store.read_parquet(SCHEMA_FILE).await?.schema();
    let table = Table {
        kind: daily.map(|table| table.source.kind),
        bucketed: schema.field_with_name("user_id").is_ok(),
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
    let order = ["user_id", "occurred_at"].into_iter().filter(|column| names.iter().any(|name| name == column));
    let order = order.chain(query.grain.iter().map(String::as_str)).map(|column| ident(column).sort(true, true)).collect();
    let day = day.map(|day| format!(" for {day}")).unwrap_or_default();
    let rows = engine::collect(rows.sort(order)?).await.with_context(|| format!("running {}{day}", query.path.display()))?;
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
    fn name(&self) -> String {
        let day = self.day.map(|day| format!("dt={day}/")).unwrap_or_default();
        match self.bucket {
            Some(bucket) => format!("{day}bucket={bucket}.parquet"),
            None => format!("{day}all.parquet"),
        }
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

// ----------------------------------------------------------------------------------------------------------------- who may stay

/// Who may be processed at all.
enum Allowed<'a> {
    /// While the people tables themselves are staged.
    Everybody,
    Unless {
        suppressed: &'a HashSet<String>,
    },
    Consenting {
        suppressed: &'a HashSet<String>,
        profile: &'a HashSet<String>,
    },
}

impl Allowed<'_> {
    /// The rows of people who may be processed; rows of nobody (no user column) all stay, rows of an unknown user (NULL) go.
    fn keep(&self, rows: RecordBatch, facts: &mut TableFacts) -> Result<RecordBatch> {
        let users = optional_column::<StringArray>(&rows, "user_id")?;
        let (Some(users), true) = (users, !matches!(self, Allowed::Everybody)) else {
            facts.rows += rows.num_rows() as u64;
            return Ok(rows);
        };
        let mut keep = Vec::with_capacity(rows.num_rows());
        for user in users {
            let (suppressed, consents) = match (self, user) {
                (Allowed::Unless { suppressed }, Some(user)) => (suppressed.contains(user), true),
                (Allowed::Consenting { suppressed, profile }, Some(user)) => (suppressed.contains(user), profile.contains(user)),
                _ => (false, false),
            };
            facts.dropped_suppressed += u64::from(suppressed);
            facts.dropped_no_consent += u64::from(!suppressed && !consents);
            keep.push(!suppressed && consents);
        }
        let kept = filter_record_batch(&rows, &BooleanArray::from(keep))?;
        facts.rows += kept.num_rows() as u64;
        Ok(kept)
    }

    fn fingerprint(&self) -> String {
        let sorted =
            |users: &HashSet<String>| users.iter().map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join("\n");
        let text = match self {
            Allowed::Everybody => String::new(),
            Allowed::Unless { suppressed } => sorted(suppressed),
            Allowed::Consenting { suppressed, profile } => format!("{}\n\n{}", sorted(suppressed), sorted(profile)),
        };
        format!("{:032x}", xxh3_128(text.as_bytes()))
    }
}

/// What the staged people tables say as of the run date.
struct PeopleRead {
    suppressed: HashSet<String>,
    profile: HashSet<String>,
    target: BTreeSet<String>,
    measure: BTreeSet<String>,
}

impl People {
    async fn read(run: &Run, settings: &Settings, staged: &Staged) -> Result<PeopleRead> {
        let context = engine::session(&run.engine)?;
        let mut read = PeopleRead {
            suppressed: suppressed(run, staged).await?,
            profile: HashSet::new(),
            target: BTreeSet::new(),
            measure: BTreeSet::new(),
        };
        if settings.consent == Consent::NotApplicable {
            return Ok(read);
        }
        let consents = staged.tables.get("consents").ok_or_else(|| {
            Error::privacy("this shop has no table of consents, and without consent nobody may be profiled")
                .action("write staging/consents.sql, or say consent = \"not_applicable\" with a consent_reason")
        })?;
        context.register_table("consents", consents.as_of_day(&context, run.date, None)?.into_view())?;
        let latest = "SELECT user_id, purpose, FIRST_VALUE(granted ORDER BY effective_at DESC, granted ASC) AS granted
            FROM consents WHERE effective_at < $as_of GROUP BY user_id, purpose";
        let rows = engine::collect(engine::plan_sql(&context, latest, run.as_of()).await?).await?;
        let (users, purposes) = (column::<StringArray>(&rows, "user_id")?, column::<StringArray>(&rows, "purpose")?);
        let granted = column::<BooleanArray>(&rows, "granted")?;
        for row in (0..rows.num_rows()).filter(|&row| granted.is_valid(row) && granted.value(row) && users.is_valid(row)) {
            let user = users.value(row);
            if read.suppressed.contains(user) {
                continue;
            }
            match purposes.value(row) {
                "profile" => drop(read.profile.insert(user.to_owned())),
                "target" => drop(read.target.insert(user.to_owned())),
                "measure" => drop(read.measure.insert(user.to_owned())),
                other => return Err(Error::contract(format_args!("consents: purpose {other} is none of profile, target, measure"))),
            }
        }
        Ok(read)
    }
}

/// The pseudonyms on the suppression list as of the run date; whoever is listed is suppressed, whatever the effective date says.
pub async fn suppressed(run: &Run, staged: &Staged) -> Result<HashSet<String>> {
    let table = staged.tables.get("suppressions").ok_or_else(|| Error::privacy("the suppression list was not staged"))?;
    let context = engine::session(&run.engine)?;
    let rows = engine::collect(table.as_of_day(&context, run.date, None)?).await?;
    Ok(column::<StringArray>(&rows, "user_id")?.iter().flatten().map(str::to_owned).collect())
}

// --------------------------------------------------------------------------------------------------------- what was known when

impl Staged {
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
        if let Some(table) = self.tables.get(name) {
            let rows = table.as_of_day(context, day, bucket)?;
            context.register_table(name, known_at(rows, run, day)?.into_view())?;
        }
        Ok(())
    }
}

impl Table {
    /// The files of a day's view: a log up to the day, the latest snapshot not after it, or everything.
    fn as_of_day(&self, context: &SessionContext, day: NaiveDate, bucket: Option<usize>) -> Result<DataFrame> {
        let mut files: Vec<&StagedFile> = self.files.iter().filter(|file| file.day.is_none_or(|of| of <= day)).collect();
        if self.kind == Some(SourceKind::Snapshot) {
            let latest = files.iter().filter_map(|file| file.day).max();
            files.retain(|file| file.day == latest);
        }
        if let (true, Some(bucket)) = (self.bucketed, bucket) {
            files.retain(|file| file.bucket == Some(bucket));
        }
        if files.is_empty() {
            return Ok(context.read_batch(RecordBatch::new_empty(self.schema.clone()))?);
        }
        let paths: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
        engine::files(context, &self.store, &paths, Format::Parquet, self.schema.clone())
    }
}

/// Cuts a canonical table at the cut-off of `day`: rows and outcomes that were not known then are not there.
fn known_at(rows: DataFrame, run: &Run, day: NaiveDate) -> Result<DataFrame> {
    let (as_of, cut_off) = (run.job.as_of(day), run.job.cut_off(day));
    let schema = rows.schema().as_arrow().clone();
    let has = |name: &str| schema.field_with_name(name).is_ok();
    let mut rows = rows;
    for column in ["occurred_at", "hour"] {
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

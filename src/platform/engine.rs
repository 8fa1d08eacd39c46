//! The query engine: one constructor for a DataFusion session, and the only ways by which SQL becomes rows.
//!
//! SQL here is always one SELECT with `$as_of` bound; it reads tables that a stage registered and nothing else: no files, no
//! clock, no randomness.

mod cost;
mod presorted;

use crate::error::{Context, Error, Kind, Result};
use crate::platform::catalog::Query;
use crate::platform::storage::Store;
use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use chrono::{DateTime, Utc};
pub use cost::Cost;
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{ParamValues, ScalarValue};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::{ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl};
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::config::SessionConfig;
use datafusion::execution::context::SQLOptions;
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::{FairSpillPool, PeakRecordingPool, TrackConsumersPool};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::{Expr, LogicalPlan, ScalarUDF, SortExpr, Union, Volatility};
use datafusion::physical_plan::{self, display::DisplayableExecutionPlan};
use datafusion::prelude::{DataFrame, SessionContext, cast, col, ident, lit};
use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;
use std::sync::Arc;
use url::Url;

/// How much of the machine queries may use. None of it changes a result.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Query threads; 0 = all cores.
    pub threads: usize,
    /// Memory pool of the query operators, MiB; beyond it they spill to disk.
    pub memory_mib: usize,
    /// Rows of a user go to one of so many files by hash(user), and per-user SQL runs one bucket a thread: more buckets, less
    /// memory, more files.
    pub buckets: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { threads: 0, memory_mib: 2048, buckets: 1 }
    }
}

impl Settings {
    /// Query threads, `0` resolved.
    fn cores(&self) -> usize {
        if self.threads == 0 { std::thread::available_parallelism().map_or(1, NonZeroUsize::get) } else { self.threads }
    }

    /// How many buckets are worked on at once.
    pub fn buckets_at_once(&self) -> usize {
        self.cores().min(self.buckets).max(1)
    }

    /// One bucket's part of the machine. With one thread nothing is shuffled among partitions, so that the order of the files lasts
    /// through the plan.
    #[must_use]
    pub fn of_one_bucket(&self) -> Self {
        let at_once = self.buckets_at_once();
        Self { threads: (self.cores() / at_once).max(1), memory_mib: (self.memory_mib / at_once).max(1), buckets: self.buckets }
    }
}

/// A session with a memory pool, spilling and the options on which results rely.
pub fn session(settings: &Settings) -> Result<SessionContext> {
    let pool = FairSpillPool::new(settings.memory_mib << 20);
    let pool = TrackConsumersPool::new(pool, NonZeroUsize::new(3).expect("three is not zero"));
    let runtime = RuntimeEnvBuilder::new()
        .with_memory_pool(Arc::new(PeakRecordingPool::new(Arc::new(pool))))
        .with_disk_manager_builder(DiskManagerBuilder::default().with_mode(DiskManagerMode::OsTmpDirectory))
        .build_arc()?;
    let mut config = SessionConfig::new().with_target_partitions(settings.cores()).with_information_schema(false);
    let options = config.options_mut();
    options.execution.time_zone = Some("+00:00".to_owned());
    options.execution.parquet.pushdown_filters = true;
    options.execution.parquet.schema_force_view_types = false;
    options.sql_parser.map_string_types_to_utf8view = false;
    options.sql_parser.collect_spans = true;
    // A recursive query may never end.
    options.execution.enable_recursive_ctes = false;
    let builder = SessionStateBuilder::new().with_config(config).with_runtime_env(runtime).with_default_features();
    let state = builder.with_physical_optimizer_rule(Arc::new(presorted::PresortedLists)).build();
    Ok(SessionContext::new_with_state(state))
}

/// The file formats a raw table may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Parquet,
    Csv,
}

/// A table over objects of a store. `schema` is the files' own.
pub fn files(context: &SessionContext, store: &Store, paths: &[String], format: Format, schema: SchemaRef) -> Result<DataFrame> {
    listing(context, store, paths, format, schema, &[])
}

/// A table over Parquet files, each of which is sorted by the columns of `order` (ascending, NULL last: what SQL's ORDER BY means), in
/// that order. Rows of one file stream as they lie, so that what groups or sorts by these columns never sorts.
pub fn sorted_files(context: &SessionContext, store: &Store, paths: &[String], schema: &SchemaRef, order: &[String]) -> Result<DataFrame> {
    // A listing of several files would put two of them behind each other in one partition, and lose the order.
    let file = |path| listing(context, store, std::slice::from_ref(path), Format::Parquet, schema.clone(), order);
    let mut files = paths.iter().map(file).collect::<Result<Vec<_>>>()?;
    if files.len() == 1 {
        return Ok(files.remove(0));
    }
    let plans = files.into_iter().map(|file| Arc::new(file.into_unoptimized_plan())).collect();
    Ok(DataFrame::new(context.state(), LogicalPlan::Union(Union::try_new(plans)?)).sort(ascending(order))?)
}

/// The order in which tables are written and read: ascending, NULL last.
pub fn ascending(columns: &[String]) -> Vec<SortExpr> {
    columns.iter().map(|column| ident(column).sort(true, false)).collect()
}

fn listing(
    context: &SessionContext,
    store: &Store,
    paths: &[String],
    format: Format,
    schema: SchemaRef,
    order: &[String],
) -> Result<DataFrame> {
    // Each store gets a host name of its own, so that one session can read several.
    let host = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(store.locate("").as_str().as_bytes()));
    let root = Url::parse(&format!("store://{host}/")).expect("a hex host makes a URL");
    context.register_object_store(&root, store.object_store());
    let urls = paths.iter().map(|path| {
        let mut url = root.clone();
        // Part by part: a name may hold a `%`, a `#` or a `?`.
        url.path_segments_mut().expect("the root has a path").clear().extend(store.at(path).parts());
        ListingTableUrl::try_new(url, None)
    });
    let urls = urls.collect::<Result<Vec<_>, _>>()?;
    let format: Arc<dyn FileFormat> = match format {
        Format::Parquet => Arc::new(ParquetFormat::default()),
        Format::Csv => Arc::new(CsvFormat::default().with_has_header(true)),
    };
    let order = if order.is_empty() { vec![] } else { vec![ascending(order)] };
    let options = ListingOptions::new(format).with_file_extension("").with_file_sort_order(order);
    let config = ListingTableConfig::new_with_multi_paths(urls).with_listing_options(options).with_schema(schema);
    Ok(context.read_table(Arc::new(ListingTable::try_new(config)?))?)
}

/// Plans one SELECT with `$as_of` bound; nothing is read.
///
/// # Errors
/// `Usage`, naming the file, for SQL that does not plan, reads the clock or randomness, or is not a SELECT.
pub async fn plan(context: &SessionContext, query: &Query, as_of: DateTime<Utc>) -> Result<DataFrame> {
    plan_sql(context, &query.sql, as_of).await.with_context(|| format!("in {}", query.path.display()))
}

/// As [`plan`], for a text.
pub async fn plan_sql(context: &SessionContext, sql: &str, as_of: DateTime<Utc>) -> Result<DataFrame> {
    let options = SQLOptions::new().with_allow_ddl(false).with_allow_dml(false).with_allow_statements(false);
    let frame = context.sql_with_options(sql, options).await?;
    refuse_impure(frame.logical_plan())?;
    let names = frame.logical_plan().get_parameter_names()?;
    if let Some(other) = names.iter().find(|name| *name != "$as_of") {
        return Err(Error::usage(format_args!("parameter {other} is not known; the only one is $as_of")));
    }
    if names.is_empty() {
        return Ok(frame);
    }
    let value = ScalarValue::TimestampMicrosecond(Some(as_of.timestamp_micros()), Some("UTC".into()));
    Ok(frame.with_param_values(ParamValues::from(vec![("as_of", value)]))?)
}

const CLOCKS: [&str; 6] = ["now", "current_date", "current_time", "current_timestamp", "today", "localtimestamp"];

/// Whether a function of that name reads the clock or draws at random.
pub fn is_impure(context: &SessionContext, name: &str) -> bool {
    let volatile = |call: &Arc<ScalarUDF>| call.signature().volatility == Volatility::Volatile;
    CLOCKS.contains(&name) || context.state().scalar_functions().get(name).is_some_and(volatile)
}

/// Functions whose value is not decided by the rows: the same night must give the same bytes.
fn refuse_impure(plan: &LogicalPlan) -> Result<()> {
    let mut impure = None;
    plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|part| {
                if let Expr::ScalarFunction(call) = part
                    && (CLOCKS.contains(&call.name()) || call.func.signature().volatility == Volatility::Volatile)
                {
                    impure = Some(call.name().to_owned());
                    return Ok(TreeNodeRecursion::Stop);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    })?;
    match impure {
        Some(name) => {
            Err(Error::usage(format_args!("{name}() depends on when or how often it runs"))
                .action("use $as_of for time, a hash for sampling"))
        }
        None => Ok(()),
    }
}

/// As [`collect`], in a task of its own, so that several buckets can be worked on at once.
pub async fn collect_apart(frame: DataFrame) -> Result<RecordBatch> {
    Ok(collect_measured_apart(frame).await?.0)
}

/// As [`collect_apart`], with what it took.
pub async fn collect_measured_apart(frame: DataFrame) -> Result<(RecordBatch, Cost)> {
    SpawnedTask::spawn(collect_measured(frame)).join_unwind().await.map_err(Error::internal)?
}

/// Runs the plan of a query, as [`collect`]; an error names the query's file.
pub async fn answer(frame: DataFrame, query: &Query) -> Result<RecordBatch> {
    collect(frame).await.map_err(|error| of_query(error, query.path.display()))
}

/// An error that a query met in its rows: which query, and what its author can do.
pub fn of_query(error: Error, query: impl std::fmt::Display) -> Error {
    let error = error.context(format_args!("running {query}"));
    match error.kind {
        Kind::Contract => error.action("guard the query against such rows (NULLIF, TRY_CAST), or mend the input, and run again"),
        _ => error,
    }
}

/// Runs a plan; the rows come as one batch of plain columns (no views, no dictionaries), in the plan's order. The trace log shows what
/// the plan was and where its time went.
pub async fn collect(frame: DataFrame) -> Result<RecordBatch> {
    Ok(collect_measured(frame).await?.0)
}

async fn collect_measured(frame: DataFrame) -> Result<(RecordBatch, Cost)> {
    let schema = Arc::new(plain_schema(frame.schema().as_arrow()));
    let task = Arc::new(frame.task_ctx());
    let plan = frame.create_physical_plan().await?;
    let batches = physical_plan::collect(plan.clone(), task.clone()).await?;
    let cost = Cost::of(&plan, task.memory_pool());
    tracing::trace!("{}", DisplayableExecutionPlan::with_metrics(plan.as_ref()).indent(false));
    let batches = batches.iter().map(|batch| plain(batch, &schema)).collect::<Result<Vec<_>>>()?;
    Ok((arrow::compute::concat_batches(&schema, &batches)?, cost))
}

/// The same columns in plain types.
pub fn plain(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = batch.columns().iter().zip(schema.fields()).map(|(array, field)| Ok(arrow::compute::cast(array, field.data_type())?));
    Ok(RecordBatch::try_new(schema.clone(), columns.collect::<Result<Vec<_>>>()?)?)
}

/// Plain types, every column nullable: what a plan knows of nullability must not change a file's schema.
pub fn plain_schema(schema: &Schema) -> Schema {
    let field = |field: &Arc<Field>| Field::new(field.name(), plain_type(field.data_type()), true);
    Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>())
}

fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::Dictionary(_, value) => plain_type(value),
        DataType::Timestamp(_, _) => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        DataType::List(item) | DataType::LargeList(item) | DataType::ListView(item) => {
            DataType::List(Arc::new(Field::new("item", plain_type(item.data_type()), true)))
        }
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => {
            DataType::Int64
        }
        DataType::Float16 | DataType::Float32 => DataType::Float64,
        other => other.clone(),
    }
}

/// Casts every number to Float64 and money to Float64: the form in which features are stored.
pub fn numbers_as_float64(frame: DataFrame) -> Result<DataFrame> {
    let schema = frame.schema().as_arrow().clone();
    let column = |field: &Arc<Field>| match plain_type(field.data_type()) {
        DataType::Int64 | DataType::Float64 | DataType::Decimal128(..) | DataType::Decimal256(..) => {
            cast(ident(field.name()), DataType::Float64).alias(field.name())
        }
        _ => ident(field.name()),
    };
    Ok(frame.select(schema.fields().iter().map(column).collect::<Vec<_>>())?)
}

/// Rows whose timestamp column lies before `end`; NULL is kept out.
pub fn before(column: &str, end: DateTime<Utc>) -> Expr {
    col(column).lt(lit(ScalarValue::TimestampMicrosecond(Some(end.timestamp_micros()), Some("UTC".into()))))
}

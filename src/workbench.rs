//! The analyst's tools: plan every file without reading data, list them, show one, preview its rows, run its tests.

use crate::error::{Context, Error, Result};
use crate::features;
use crate::ingest;
use crate::platform::catalog::{Catalog, Query, load_file};
use crate::platform::engine;
use crate::platform::pseudonym::Key;
use crate::platform::run::Run;
use arrow::array::RecordBatch;
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use chrono::{DateTime, Utc};
use datafusion::catalog::MemorySchemaProvider;
use datafusion::common::TableReference;
use datafusion::prelude::SessionContext;
use serde::Serialize;
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// One planned file.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Planned {
    pub name: String,
    pub path: PathBuf,
    pub description: String,
    pub owner: Option<String>,
    pub grain: Vec<String>,
    /// Output columns as `name: type`.
    pub columns: Vec<String>,
    pub reads: BTreeSet<String>,
    pub read_by: BTreeSet<String>,
}

/// Plans every query of a shop over empty tables of the contracted columns; no data is read. All errors at once.
pub async fn check(catalog: &Catalog, as_of: DateTime<Utc>) -> Result<Vec<Planned>> {
    let context = engine::session(&engine::Settings { threads: 1, ..engine::Settings::default() })?;
    register_raw_schema(&context)?;
    for (name, source) in &catalog.sources {
        let field = |(name, column): (&String, &crate::platform::catalog::Column)| Field::new(name, column.kind.data_type(), true);
        let schema = Arc::new(Schema::new(source.columns.iter().map(field).collect::<Vec<_>>()));
        register_empty(&context, TableReference::partial("raw", name.as_str()), schema)?;
    }
    let mut planned: Vec<Planned> = Vec::new();
    let mut errors: Vec<Error> = Vec::new();
    for query in catalog.queries() {
        match plan_empty(&context, query, as_of).await {
            Ok(found) => planned.push(found),
            // A file that reads a broken one is not itself to blame.
            Err(_) if query.reads.iter().any(|read| !known(&context, read)) => {}
            Err(error) => errors.push(error),
        }
    }
    let readers: BTreeMap<String, BTreeSet<String>> =
        planned.iter().fold(BTreeMap::new(), |mut readers: BTreeMap<String, BTreeSet<String>>, table| {
            for read in &table.reads {
                readers.entry(read.clone()).or_default().insert(table.name.clone());
            }
            readers
        });
    for table in &mut planned {
        table.read_by = readers.get(&table.name).cloned().unwrap_or_default();
    }
    match errors.len() {
        0 => Ok(planned),
        1 => Err(errors.remove(0)),
        n => Err(Error::usage(format_args!(
            "{n} files do not plan:\n{}",
            errors.iter().map(|error| format!("  {error}")).collect::<Vec<_>>().join("\n")
        ))),
    }
}

async fn plan_empty(context: &SessionContext, query: &Query, as_of: DateTime<Utc>) -> Result<Planned> {
    let frame = engine::plan(context, query, as_of).await?;
    let schema: SchemaRef = Arc::new(engine::plain_schema(frame.schema().as_arrow()));
    if let Some(absent) = query.grain.iter().find(|column| schema.field_with_name(column).is_err()) {
        return Err(Error::usage(format_args!(
            "{}: the header's grain names {absent}, which the query does not return",
            query.path.display()
        )));
    }
    register_empty(context, TableReference::bare(query.name.as_str()), schema.clone())?;
    Ok(Planned {
        name: query.name.clone(),
        path: query.path.clone(),
        description: query.description.clone(),
        owner: query.owner.clone(),
        grain: query.grain.clone(),
        columns: schema.fields().iter().map(|field| format!("{}: {}", field.name(), field.data_type())).collect(),
        reads: query.reads.clone(),
        read_by: BTreeSet::new(),
    })
}

fn known(context: &SessionContext, name: &str) -> bool {
    context.table_exist(TableReference::from(name)).unwrap_or(false)
}

fn register_empty(context: &SessionContext, name: TableReference, schema: SchemaRef) -> Result<()> {
    context.register_table(name, context.read_batch(RecordBatch::new_empty(schema))?.into_view())?;
    Ok(())
}

fn register_raw_schema(context: &SessionContext) -> Result<()> {
    context.catalog("datafusion").expect("the default catalog exists").register_schema("raw", Arc::new(MemorySchemaProvider::new()))?;
    Ok(())
}

/// The first rows of one file's output as of the run's date, computing what it reads first.
pub async fn preview(run: &Run, settings: &ingest::Settings, key: &Key, name: &str, limit: usize) -> Result<RecordBatch> {
    let staged = ingest::run(run, settings, key).await?;
    let context = if staged.has(name) {
        staged.as_of(run, run.date, None, [name])?
    } else {
        let wanted = closure(&run.catalog, name)?;
        let snapshots = features::only(run, &staged, &BTreeSet::from([run.date]), |table| wanted.contains(table)).await?;
        let context = engine::session(&run.engine)?;
        snapshots.register(&context, run.date, None, |table| table == name)?;
        context
    };
    engine::collect(context.table(name).await?.limit(0, Some(limit))?).await
}

/// A feature table and the feature tables it is made of.
fn closure<'a>(catalog: &'a Catalog, name: &str) -> Result<BTreeSet<&'a str>> {
    let find = |name: &str| catalog.features.iter().find(|query| query.name == name);
    let first = find(name).ok_or_else(|| {
        let names = catalog.queries().map(|query| query.name.as_str());
        let hint = crate::platform::catalog::nearest(name, names).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
        Error::usage(format_args!("no table {name}{hint}"))
    })?;
    let mut open = vec![first];
    let mut found = BTreeSet::new();
    while let Some(query) = open.pop() {
        found.insert(query.name.as_str());
        open.extend(query.reads.iter().filter_map(|read| find(read)));
    }
    Ok(found)
}

/// How the `.slt` file beside a query went.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Tested {
    pub file: PathBuf,
    pub failure: Option<String>,
}

/// Runs the `.slt` beside each `.sql` of the folder whose name contains `selector`. With `bless`, answers are filled in instead.
pub async fn test(folder: &Path, selector: &str, bless: bool) -> Result<Vec<Tested>> {
    let mut tested = Vec::new();
    for room in ["staging", "features", "labels", "segments", "checks", "reports"] {
        let Ok(entries) = std::fs::read_dir(folder.join(room)) else { continue };
        let mut files = entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>()?;
        files.retain(|path| path.extension().is_some_and(|extension| extension == "slt") && path.to_string_lossy().contains(selector));
        files.sort();
        for file in files {
            let failure = test_file(&file, bless).await.err().map(|error| error.to_string());
            tested.push(Tested { file, failure });
        }
    }
    Ok(tested)
}

async fn test_file(file: &Path, bless: bool) -> Result<()> {
    let query = load_file(&file.with_extension("sql"))?;
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let as_of = match text.lines().find_map(|line| line.strip_prefix("# as_of:")) {
        Some(date) => date.trim().parse().map_err(|error| Error::usage(format_args!("{}: as_of: {error}", file.display())))?,
        None => DateTime::UNIX_EPOCH,
    };
    let mut runner = Runner::new(|| {
        let query = query.clone();
        async move {
            let context = engine::session(&engine::Settings { threads: 1, ..engine::Settings::default() })?;
            register_raw_schema(&context)?;
            Ok(Bench { context, query, as_of })
        }
    });
    if bless {
        let normalizer = sqllogictest::default_normalizer;
        let blessed =
            runner.update_test_file(file, " ", sqllogictest::default_validator, normalizer, sqllogictest::default_column_validator).await;
        return blessed.map_err(|error| Error::contract(format_args!("{}: {error}", file.display())));
    }
    runner
        .run_file_async(file)
        .await
        .map_err(|error| Error::contract(error).action("correct the query or, if the answer is right, run with --bless"))
}

/// A session in which the tested file's query stands under its own name as soon as its inputs exist.
struct Bench {
    context: SessionContext,
    query: Query,
    as_of: DateTime<Utc>,
}

#[async_trait::async_trait]
impl AsyncDB for Bench {
    type Error = Error;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>> {
        let creates = sql.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("create"));
        if creates {
            self.context.sql(sql).await?.collect().await?;
            return Ok(DBOutput::StatementComplete(0));
        }
        // Anew for each question: an input may have been added since.
        let frame = engine::plan(&self.context, &self.query, self.as_of).await?;
        self.context.deregister_table(self.query.name.as_str())?;
        self.context.register_table(self.query.name.as_str(), frame.into_view())?;
        let rows = engine::collect(engine::plan_sql(&self.context, sql, self.as_of).await?).await?;
        Ok(DBOutput::Rows { types: vec![DefaultColumnType::Any; rows.num_columns()], rows: cells(&rows)? })
    }

    async fn shutdown(&mut self) {}
}

/// Every cell as text; NULL as `NULL`, an empty string as `(empty)`.
fn cells(rows: &RecordBatch) -> Result<Vec<Vec<String>>> {
    let options = FormatOptions::default().with_null("NULL");
    let columns =
        rows.columns().iter().map(|column| ArrayFormatter::try_new(column, &options)).collect::<std::result::Result<Vec<_>, _>>()?;
    let cell = |formatter: &ArrayFormatter<'_>, row: usize| match formatter.value(row).to_string() {
        text if text.is_empty() => "(empty)".to_owned(),
        text => text,
    };
    Ok((0..rows.num_rows()).map(|row| columns.iter().map(|column| cell(column, row)).collect()).collect())
}

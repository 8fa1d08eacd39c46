//! Every file of a shop planned over empty tables of the contracted columns: nothing is read, and everything wrong is found at once.

use crate::error::Result;
use crate::platform::catalog::{Catalog, Query};
use crate::platform::diagnostic::{Diagnostic, Severity};
use crate::platform::engine;
use crate::platform::statement::{self, Select};
use crate::platform::survey::{Survey, survey};
use crate::workbench::judge::{judge, relationships};
use crate::workbench::lineage::{Origins, lineage};
use crate::workbench::lint;
use crate::workbench::plan::{Plan, plan};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use chrono::DateTime;
use datafusion::catalog::MemorySchemaProvider;
use datafusion::common::TableReference;
use datafusion::datasource::empty::EmptyTable;
use datafusion::prelude::SessionContext;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A shop's SQL as far as it can be known without data.
#[derive(Clone, Debug, Serialize)]
pub struct Checked {
    /// In the order of the night.
    pub tables: Vec<Planned>,
    /// By file and line.
    pub diagnostics: Vec<Diagnostic>,
    /// Files that read a broken one: not to blame, and not planned.
    pub unplanned: BTreeSet<String>,
    #[serde(skip)]
    pub catalog: Catalog,
    #[serde(skip)]
    schemas: BTreeMap<String, SchemaRef>,
}

/// One planned file.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Planned {
    pub name: String,
    /// Its folder: staging, features, checks.
    pub room: String,
    pub path: PathBuf,
    pub description: String,
    pub owner: Option<String>,
    pub tags: BTreeSet<String>,
    pub grain: Vec<String>,
    pub columns: Vec<Column>,
    /// Columns of other tables that decide which rows it has: filters, joins, groupings.
    pub rows_by: Origins,
    pub reads: BTreeSet<String>,
    pub read_by: BTreeSet<String>,
    /// An .slt file stands beside it.
    pub tested: bool,
}

/// One output column.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Column {
    pub name: String,
    #[serde(rename = "type")]
    pub kind: String,
    /// The comment behind it in the file: unit, and the meaning of NULL.
    pub comment: Option<String>,
    /// The columns it is made of, each as `events.price`.
    pub from: Origins,
    /// The columns made of it, and the tables whose rows it decides.
    pub used_by: BTreeSet<String>,
}

impl Checked {
    pub fn errors(&self) -> usize {
        self.diagnostics.iter().filter(|found| found.severity == Severity::Error).count()
    }

    /// Itself, when nothing is wrong.
    pub fn sound(self) -> Result<Self> {
        match self.diagnostics.iter().find(|found| found.severity == Severity::Error) {
            None => Ok(self),
            Some(first) => Err(first.clone().into()),
        }
    }

    pub fn table(&self, name: &str) -> Option<&Planned> {
        self.tables.iter().find(|table| table.name == name)
    }
}

/// Reads and plans `sql/<shop>/`.
///
/// # Errors
/// `Usage` when there is no such folder; everything else is a diagnostic.
pub async fn check(folder: &Path) -> Result<Checked> {
    let Survey { catalog, mut diagnostics, mut broken } = survey(folder)?;
    let context = engine::session(&engine::Settings { threads: 1, ..engine::Settings::default() })?;
    register_raw(&context, &catalog)?;
    let mut tables: Vec<Planned> = Vec::new();
    let mut schemas = BTreeMap::new();
    let mut unplanned = BTreeSet::new();
    for query in catalog.queries() {
        let Ok(select) = statement::parse(&query.sql) else { continue };
        let mut found = lint::lint(&context, &query.sql, &select);
        if query.reads.iter().any(|read| broken.contains(read) || unplanned.contains(read)) {
            unplanned.insert(query.name.clone());
        } else {
            let named_twice = found.iter().any(|found| found.rule == "same-column");
            match plan(&context, &query.sql, &select, DateTime::UNIX_EPOCH).await {
                Ok(plan) => {
                    found.extend(judge(query, &select, &plan, &tables));
                    let schema = stored_schema(query, &plan);
                    register_empty(&context, TableReference::bare(query.name.as_str()), schema.clone())?;
                    tables.push(describe(query, &select, &plan, &schema));
                    schemas.insert(query.name.clone(), schema);
                }
                Err(wrong) => {
                    broken.insert(query.name.clone());
                    // The engine says the same of two columns of one name, less well.
                    found.extend(wrong.into_iter().filter(|wrong| !(named_twice && wrong.message.contains("unique"))));
                }
            }
        }
        diagnostics.extend(found.into_iter().map(|found| found.within(&query.path, &query.sql)));
    }
    for query in catalog.queries() {
        let found = relationships(query, &tables).into_iter();
        diagnostics.extend(found.map(|found| found.within(&query.path, &query.sql)));
    }
    link(&mut tables);
    diagnostics.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
    Ok(Checked { tables, diagnostics, unplanned, catalog, schemas })
}

/// A session in which every table that plans can be asked, and has no rows.
pub fn empty_tables(checked: &Checked) -> Result<SessionContext> {
    let context = engine::session(&engine::Settings { threads: 1, ..engine::Settings::default() })?;
    register_raw(&context, &checked.catalog)?;
    for (name, schema) in &checked.schemas {
        register_empty(&context, TableReference::bare(name.as_str()), schema.clone())?;
    }
    Ok(context)
}

fn register_empty(context: &SessionContext, name: TableReference, schema: SchemaRef) -> Result<()> {
    context.register_table(name, Arc::new(EmptyTable::new(schema)))?;
    Ok(())
}

fn register_raw(context: &SessionContext, catalog: &Catalog) -> Result<()> {
    raw_schema(context);
    for (name, source) in &catalog.sources {
        let fields = source.columns.iter().map(|(name, column)| Field::new(name, column.kind.data_type(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        register_empty(context, TableReference::partial("raw", name.as_str()), schema)?;
    }
    Ok(())
}

/// Makes `raw.<table>` a possible name.
pub fn raw_schema(context: &SessionContext) {
    let catalog = context.catalog("datafusion").expect("the default catalog exists");
    catalog.register_schema("raw", Arc::new(MemorySchemaProvider::new())).expect("a schema can be added to it");
}

/// The columns as the night stores them: features hold every number as DOUBLE.
fn stored_schema(query: &Query, plan: &Plan) -> SchemaRef {
    let schema = engine::plain_schema(plan.written.schema().as_arrow());
    let as_number = |field: &Arc<Field>| match field.data_type() {
        DataType::Int64 | DataType::Decimal128(..) | DataType::Decimal256(..) if query.room() == "features" => {
            Arc::new(Field::new(field.name(), DataType::Float64, true))
        }
        _ => field.clone(),
    };
    Arc::new(Schema::new(schema.fields().iter().map(as_number).collect::<Vec<_>>()))
}

fn describe(query: &Query, select: &Select, plan: &Plan, schema: &SchemaRef) -> Planned {
    let lineage = lineage(&plan.written);
    let comments = lint::comments(&query.sql, select);
    let column = |(at, field): (usize, &Arc<Field>)| Column {
        name: field.name().clone(),
        kind: sql_type(field.data_type()),
        comment: comments.get(field.name()).cloned(),
        from: lineage.columns.get(at).cloned().unwrap_or_default(),
        used_by: BTreeSet::new(),
    };
    Planned {
        name: query.name.clone(),
        room: query.room().to_owned(),
        path: query.path.clone(),
        description: query.description.clone(),
        owner: query.owner.clone(),
        tags: query.tags.clone(),
        grain: query.grain.clone(),
        columns: schema.fields().iter().enumerate().map(column).collect(),
        rows_by: lineage.rows,
        reads: query.reads.clone(),
        read_by: BTreeSet::new(),
        tested: query.path.with_extension("slt").is_file(),
    }
}

/// The stages of the night that read a canonical table by its name; the dataset joins every feature table.
const STAGES: [(&str, &[&str]); 7] = [
    ("ads", &["dataset", "segments", "targeting", "admit", "evaluate"]),
    ("campaigns", &["targeting", "admit", "evaluate"]),
    ("categories", &["model", "segments", "admit"]),
    ("consents", &["ingest"]),
    ("events", &["dataset"]),
    ("impressions", &["dataset", "segments", "targeting", "admit", "evaluate"]),
    ("suppressions", &["ingest", "publish"]),
];

/// Tells each table who reads it, and each column what is made of it.
fn link(tables: &mut [Planned]) {
    let mut readers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut users: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for table in tables.iter() {
        for read in &table.reads {
            readers.entry(read.clone()).or_default().insert(table.name.clone());
        }
        for column in &table.columns {
            for from in &column.from {
                users.entry(from.clone()).or_default().insert(format!("{}.{}", table.name, column.name));
            }
        }
        for from in &table.rows_by {
            users.entry(from.clone()).or_default().insert(format!("{} (rows)", table.name));
        }
    }
    for table in tables {
        table.read_by = readers.remove(&table.name).unwrap_or_default();
        let stages = STAGES.iter().filter(|(name, _)| table.room == "staging" && *name == table.name).flat_map(|(_, stages)| *stages);
        table.read_by.extend(stages.map(|stage| format!("the night's {stage}")));
        if table.room == "features" {
            table.read_by.insert("the night's dataset".to_owned());
        }
        for column in &mut table.columns {
            column.used_by = users.remove(&format!("{}.{}", table.name, column.name)).unwrap_or_default();
        }
    }
}

/// A type as an analyst writes it.
pub fn sql_type(kind: &DataType) -> String {
    match kind {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => "VARCHAR".to_owned(),
        DataType::Int64 => "BIGINT".to_owned(),
        DataType::Float64 => "DOUBLE".to_owned(),
        DataType::Boolean => "BOOLEAN".to_owned(),
        DataType::Date32 => "DATE".to_owned(),
        DataType::Timestamp(..) => "TIMESTAMPTZ".to_owned(),
        DataType::Decimal128(digits, scale) => format!("DECIMAL({digits}, {scale})"),
        DataType::List(item) => format!("{}[]", sql_type(item.data_type())),
        DataType::FixedSizeList(item, length) => format!("{}[{length}]", sql_type(item.data_type())),
        other => other.to_string(),
    }
}

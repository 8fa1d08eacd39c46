//! A plain table, wherever it lies: one file, or a folder of files, of Parquet or CSV. This is how the statistics, and whoever wants to
//! try a stage on its own, read rows that no shop's contract describes.
//!
//! Cells of a CSV file are text here: whoever reads a column says what it must be ([`number`]), and a cell that is not is then found
//! in whatever row it stands, not only in the first thousand.

use crate::error::{Context, Error, Kind, Result};
use crate::platform::engine::{self, Format};
use crate::platform::storage::Store;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::functions_aggregate::expr_fn::{count, min};
use datafusion::logical_expr::ExprFunctionExt;
use datafusion::prelude::{DataFrame, Expr, SessionContext, cast, ident, try_cast};
use object_store::{ObjectMeta, ObjectStoreExt};
use std::path::Path;
use std::sync::Arc;

/// Opens `location`: a path of this machine, or a URL of an object store.
///
/// # Errors
/// `Usage` when there is nothing of that name; `Contract` when it is no table.
pub async fn open(context: &SessionContext, location: &str) -> Result<DataFrame> {
    let absent = || Error::usage(format_args!("there is no table {location}")).action("name a Parquet or CSV file, or a folder of them");
    let (folder, name) = split(location);
    // To open a local folder is to make it: look first.
    if !location.contains("://") && !Path::new(location).exists() {
        return Err(absent());
    }
    let store = Store::open(folder)?;
    let mut paths: Vec<String> = store.list(name).await?.into_iter().map(|object| object.path).collect();
    paths.retain(|path| path == name || !path.split('/').any(|part| part.starts_with(['_', '.'])));
    if paths.len() > 1 {
        paths.retain(|path| format_of(path).is_some());
    }
    let format = paths.first().map(|path| format_of(path).unwrap_or(Format::Csv)).ok_or_else(absent)?;
    if let Some(other) = paths.iter().find(|path| format_of(path).unwrap_or(Format::Csv) != format) {
        return Err(Error::contract(format_args!("{location} mixes Parquet and CSV: {other}")));
    }
    let schema = schema(context, &store, &paths, format).await.with_context(|| format!("reading {location}"))?;
    engine::files(context, &store, &paths, format, schema).with_context(|| format!("reading {location}"))
}

/// The folder of a location and the name in it.
fn split(location: &str) -> (&str, &str) {
    match location.trim_end_matches('/').rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((folder, name)) => (folder, name),
        None => (".", location),
    }
}

fn format_of(path: &str) -> Option<Format> {
    match path.rsplit_once('.')?.1 {
        "parquet" | "pq" => Some(Format::Parquet),
        "csv" | "txt" => Some(Format::Csv),
        _ => None,
    }
}

async fn schema(context: &SessionContext, store: &Store, paths: &[String], format: Format) -> Result<SchemaRef> {
    let state = context.state();
    let objects = store.object_store();
    let mut metas: Vec<ObjectMeta> = Vec::new();
    for path in paths {
        metas.push(objects.head(&store.at(path)).await?);
    }
    if format == Format::Parquet {
        return Ok(ParquetFormat::default().infer_schema(&state, &objects, &metas).await?);
    }
    // One reader reads all files, and by position: their headers must be one.
    let csv = CsvFormat::default().with_has_header(true).with_schema_infer_max_rec(1);
    let mut header: Option<Schema> = None;
    for (meta, path) in metas.iter().zip(paths) {
        let found = csv.infer_schema(&state, &objects, std::slice::from_ref(meta)).await?;
        let found = Schema::new(found.fields().iter().map(|field| Field::new(field.name(), DataType::Utf8, true)).collect::<Vec<_>>());
        match &header {
            Some(first) if *first != found => {
                return Err(Error::contract(format_args!("{path} has another header than {}", paths[0])));
            }
            _ => header = Some(found),
        }
    }
    Ok(Arc::new(header.unwrap_or_else(Schema::empty)))
}

/// Fails, with the names that there are, unless the table has the column.
pub fn require(schema: &DFSchema, column: &str) -> Result<()> {
    if schema.has_column_with_unqualified_name(column) {
        return Ok(());
    }
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    Err(Error::new(Kind::Usage, format_args!("column {column} is absent; the table has {}", names.join(", "))))
}

/// A column as a Float64: numbers, booleans as 0 and 1, and text that is a number; text that is none becomes NULL, see [`not_numbers`].
pub fn number(schema: &DFSchema, column: &str) -> Result<Expr> {
    require(schema, column)?;
    let found = schema.field_with_unqualified_name(column)?.data_type();
    match found {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) => {
            Ok(try_cast(ident(column), DataType::Float64))
        }
        DataType::Boolean => Ok(cast(cast(ident(column), DataType::Int8), DataType::Float64)),
        number if number.is_numeric() || *number == DataType::Null => Ok(cast(ident(column), DataType::Float64)),
        other => Err(Error::contract(format_args!("column {column} is {other}, not a number"))),
    }
}

/// A column as text.
pub fn text(schema: &DFSchema, column: &str) -> Result<Expr> {
    require(schema, column)?;
    Ok(cast(ident(column), DataType::Utf8))
}

/// A text column in which some cells are no numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotNumbers {
    pub column: String,
    pub cells: u64,
    pub example: String,
}

/// Of the text columns among `columns`, those with cells that are no numbers. Reads the table once when there are text columns.
pub async fn not_numbers(table: &DataFrame, columns: &[&str]) -> Result<Vec<NotNumbers>> {
    let schema = table.schema();
    let is_text = |column: &&str| {
        let of = |field: &Field| {
            matches!(field.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..))
        };
        schema.field_with_unqualified_name(column).is_ok_and(|field| of(field))
    };
    let columns: Vec<&str> = columns.iter().copied().filter(is_text).collect();
    if columns.is_empty() {
        return Ok(Vec::new());
    }
    let mut wanted = Vec::new();
    for (i, column) in columns.iter().enumerate() {
        let cell = cast(ident(*column), DataType::Utf8);
        let wrong = cell.clone().is_not_null().and(try_cast(ident(*column), DataType::Float64).is_null());
        wanted.push(count(cell.clone()).filter(wrong.clone()).build()?.alias(format!("cells_{i}")));
        wanted.push(min(cell).filter(wrong).build()?.alias(format!("example_{i}")));
    }
    let found = engine::collect(table.clone().aggregate(Vec::new(), wanted)?).await?;
    let mut wrong = Vec::new();
    for (i, column) in columns.iter().enumerate() {
        let cells = crate::types::column::<arrow::array::Int64Array>(&found, &format!("cells_{i}"))?.value(0).unsigned_abs();
        if cells > 0 {
            let example = crate::types::column::<arrow::array::StringArray>(&found, &format!("example_{i}"))?.value(0).to_owned();
            wrong.push(NotNumbers { column: (*column).to_owned(), cells, example });
        }
    }
    Ok(wrong)
}

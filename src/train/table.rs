//! Files -> labelled rows, split: CSV or Parquet, of this machine or of a store.
//!
//! Only the columns that the spec uses are read. In CSV a declared category stays the text it is (`007` is not `7`), a declared
//! number must be one, and what is not declared is inferred from the whole first file.

use super::TrainSpec;
use crate::error::{Context, Error, Kind, Result};
use crate::model::Targets;
use crate::platform::engine::{plain, plain_schema};
use crate::platform::storage::{Store, parquet_table};
use arrow::array::{Array, ArrayRef, AsArray, ListBuilder, RecordBatch, StringArray, StringBuilder, UInt64Array};
use arrow::compute::{CastOptions, cast_with_options, concat_batches, take_record_batch};
use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Format;
use arrow::datatypes::{DataType, Field, Schema};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Where the rows are: `train`, `valid` and `test` files, or one `table` and how to split it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Data {
    /// Each a CSV (with a header) or Parquet file or a folder of them, in the order of their names; a path from the working
    /// directory or a store's URL.
    pub train: Option<String>,
    /// Without it, a seeded tenth of the training rows.
    pub valid: Option<String>,
    pub test: Option<String>,
    pub table: Option<String>,
    pub split: Option<Split>,
}

/// How one table becomes three.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Split {
    /// A column of time (a number, or text that sorts by time). Without it, rows are dealt by a seeded hash of their number.
    pub column: Option<String>,
    /// From these values on rows are of the validation and of the test split.
    pub valid_from: Option<Bound>,
    pub test_from: Option<Bound>,
    /// Without those, shares of the rows: train, valid, test; in the order of the column, where there is one.
    pub shares: Option<Shares>,
}

pub type Shares = [f64; 3];

/// A value in a spec.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum Bound {
    Number(f64),
    Text(String),
}

/// What the columns are.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Columns {
    pub label: String,
    /// A label is positive when it is this value, or at least this number. Without either it must be 0 or 1, true or false, yes or no.
    #[serde(default)]
    pub positive: Option<Bound>,
    #[serde(default)]
    pub at_least: Option<f64>,
    /// A second label, of positive rows: the network learns both (ESMM).
    #[serde(default)]
    pub conversion: Option<String>,
    /// AUC is also taken within each value of this column (GAUC). It is a feature too, unless excluded.
    #[serde(default)]
    pub group: Option<String>,
    #[serde(default)]
    pub categorical: Vec<String>,
    #[serde(default)]
    pub numeric: Vec<String>,
    /// Lists of ids, most recent last; in CSV, parts of a text between separators.
    #[serde(default)]
    pub sequence: Vec<String>,
    #[serde(default = "bar")]
    pub separator: String,
    #[serde(default)]
    pub text: Vec<String>,
    #[serde(default)]
    pub exclude: Vec<String>,
    /// What columns are that none of these lists names.
    #[serde(default)]
    pub others: Others,
}

/// What an undeclared column is.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Others {
    /// Texts, booleans and `*_id` are categories, other numbers numbers, lists sequences.
    #[default]
    Infer,
    Categorical,
    Exclude,
}

fn bar() -> String {
    "|".to_owned()
}

/// The rows of a split, features apart from labels.
pub(super) struct Labelled {
    pub features: RecordBatch,
    pub targets: Targets,
    /// Hash of the group.
    pub groups: Option<Vec<u64>>,
}

impl Labelled {
    pub fn rows(&self) -> usize {
        self.targets.positive.len()
    }

    /// The share of positives.
    pub fn rate(&self) -> f64 {
        self.targets.positive.iter().filter(|label| **label).count() as f64 / self.rows().max(1) as f64
    }
}

pub(super) struct Splits {
    pub train: Labelled,
    pub valid: Labelled,
    pub test: Option<Labelled>,
}

/// A tenth of the training rows validates where no validation rows are given.
const VALID_SHARE: Shares = [0.9, 0.1, 0.0];

/// Reads and splits the table of a spec.
pub(super) async fn read(spec: &TrainSpec) -> Result<Splits> {
    let Data { train, valid, test, table, split } = &spec.data;
    let mut schema = None;
    let tables = match (train, table) {
        (Some(train), None) => {
            if split.is_some() {
                return Err(Error::usage("[data.split] is for one table; train, valid and test files are split already"));
            }
            let all = files(spec, train, &mut schema).await?;
            let [train, valid] = match valid {
                Some(valid) => [Some(all), Some(files(spec, valid, &mut schema).await?)],
                None => {
                    let [train, valid, _] = deal(spec, &all, None, &VALID_SHARE)?;
                    [train, valid]
                }
            };
            match test {
                Some(test) => [train, valid, Some(files(spec, test, &mut schema).await?)],
                None => [train, valid, None],
            }
        }
        (None, Some(table)) if valid.is_none() && test.is_none() => {
            let all = files(spec, table, &mut schema).await?;
            let split = split.as_ref().ok_or_else(|| Error::usage("[data] table needs [data.split]"))?;
            match (&split.column, &split.valid_from, &split.shares) {
                (Some(column), Some(valid_from), None) => cut(&all, column, valid_from, split.test_from.as_ref())?,
                (column, None, Some(shares)) => deal(spec, &all, column.as_deref(), shares)?,
                _ => return Err(Error::usage("[data.split] needs either column and valid_from, or shares of train, valid and test")),
            }
        }
        _ => return Err(Error::usage("[data] needs train (and valid, test), or table and [data.split]")),
    };
    let mut labelled = tables.into_iter().zip(["train", "valid", "test"]).map(|(table, name)| {
        let table = table.filter(|table| table.num_rows() > 0);
        table.map(|table| label(spec, table).with_context(|| format!("the {name} rows"))).transpose()
    });
    let mut next = || labelled.next().expect("three splits");
    let empty = |name: &str| Error::contract(format_args!("the {name} split has no rows"));
    Ok(Splits { train: next()?.ok_or_else(|| empty("train"))?, valid: next()?.ok_or_else(|| empty("valid"))?, test: next()? })
}

/// All rows of a file or folder. The first file read decides what the columns are.
async fn files(spec: &TrainSpec, location: &str, schema: &mut Option<Arc<Schema>>) -> Result<RecordBatch> {
    let (store, names) = list(location).await?;
    let mut batches = Vec::new();
    for name in names {
        let bytes = store.get(&name).await?;
        let reading = || format!("reading {}", store.locate(&name));
        let table = match name.rsplit('.').next() {
            Some("parquet") => parquet(spec, bytes).with_context(reading)?,
            _ => csv(spec, &bytes, schema).with_context(reading)?,
        };
        batches.push(table);
    }
    let schema = batches[0].schema();
    if batches.len() == 1 {
        return Ok(batches.remove(0));
    }
    concat_batches(&schema, &batches).with_context(|| format!("joining the files of {location}"))
}

/// The store and the names in it of a file, or of the CSV and Parquet files of a folder.
async fn list(location: &str) -> Result<(Store, Vec<String>)> {
    let is_table = |name: &str| name.ends_with(".csv") || name.ends_with(".parquet");
    let missing = || Error::new(Kind::InputMissing, format_args!("{location} does not exist, or is a folder without CSV or Parquet files"));
    if !location.contains("://") && !Path::new(location).exists() {
        // A local store would make the folder.
        return Err(missing());
    }
    if is_table(location) {
        let (folder, name) = location.rsplit_once('/').unwrap_or((".", location));
        return Ok((Store::open(folder)?, vec![name.to_owned()]));
    }
    let store = Store::open(location)?;
    let names: Vec<String> = store.list("").await?.into_iter().map(|object| object.path).filter(|name| is_table(name)).collect();
    if names.is_empty() { Err(missing()) } else { Ok((store, names)) }
}

/// What a column that is declared is read as.
fn declared(spec: &TrainSpec, name: &str) -> Option<DataType> {
    let columns = &spec.columns;
    let named = |names: &[String]| names.iter().any(|column| column == name);
    if named(&columns.numeric) {
        return Some(DataType::Float64);
    }
    let as_text = named(&columns.categorical) || named(&columns.sequence) || named(&columns.text) || used_as_text(spec, name);
    (as_text || columns.others == Others::Categorical).then_some(DataType::Utf8)
}

/// Labels, the group and the split's column, which are no features of a type.
fn used_as_text(spec: &TrainSpec, name: &str) -> bool {
    let Columns { label, conversion, group, .. } = &spec.columns;
    let split = spec.data.split.as_ref().and_then(|split| split.column.as_ref());
    name == label || [conversion, group].into_iter().flatten().chain(split).any(|column| column == name)
}

/// Whether a column is read at all.
fn used(spec: &TrainSpec, name: &str) -> bool {
    let Columns { categorical, numeric, sequence, text, exclude, others, .. } = &spec.columns;
    let listed = [categorical, numeric, sequence, text].into_iter().flatten().any(|column| column == name);
    used_as_text(spec, name) || !exclude.iter().any(|column| column == name) && (listed || *others != Others::Exclude)
}

fn csv(spec: &TrainSpec, bytes: &Bytes, schema: &mut Option<Arc<Schema>>) -> Result<RecordBatch> {
    let header = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let names = Format::default().with_header(true).infer_schema(Cursor::new(header), Some(0))?.0;
    let inferred = match schema {
        Some(schema) => schema.clone(),
        None => {
            let undeclared = names.fields().iter().any(|field| used(spec, field.name()) && declared(spec, field.name()).is_none());
            let inferred =
                if undeclared { Format::default().with_header(true).infer_schema(Cursor::new(&bytes[..]), None)?.0 } else { names.clone() };
            schema.insert(Arc::new(inferred)).clone()
        }
    };
    let field = |field: &Arc<Field>| {
        let name = field.name();
        let known = inferred.field_with_name(name).map_or(DataType::Utf8, |field| field.data_type().clone());
        // A column in which the first file holds nothing says nothing of its type.
        let kind = declared(spec, name).unwrap_or(if known == DataType::Null { DataType::Utf8 } else { known });
        Field::new(name, kind, true)
    };
    let fields: Vec<Field> = names.fields().iter().map(field).collect();
    let wanted = (0..fields.len()).filter(|i| used(spec, fields[*i].name())).collect();
    let reader = ReaderBuilder::new(Arc::new(Schema::new(fields))).with_header(true).with_batch_size(65_536).with_projection(wanted);
    let reader = reader.build(Cursor::new(&bytes[..]))?;
    let schema = reader.schema();
    let batches = reader.collect::<std::result::Result<Vec<_>, _>>();
    let batches =
        batches.map_err(|error| Error::contract(error).action("declare the column in [columns] as what it is, or mend the file"))?;
    Ok(concat_batches(&schema, &batches)?)
}

fn parquet(spec: &TrainSpec, bytes: Bytes) -> Result<RecordBatch> {
    let table = parquet_table(bytes)?;
    let table = plain(&table, &Arc::new(plain_schema(&table.schema())))?;
    let wanted: Vec<usize> = (0..table.num_columns()).filter(|i| used(spec, table.schema().field(*i).name())).collect();
    let table = table.project(&wanted)?;
    let strict = CastOptions { safe: false, ..CastOptions::default() };
    let mut columns = Vec::new();
    for (field, array) in table.schema().fields().iter().zip(table.columns()) {
        let kind = match array.data_type() {
            DataType::List(_) => array.data_type().clone(),
            kind => declared(spec, field.name()).unwrap_or_else(|| kind.clone()),
        };
        let array = cast_with_options(array, &kind, &strict).with_context(|| format!("column {}", field.name()))?;
        columns.push((field.name().clone(), array, true));
    }
    Ok(RecordBatch::try_from_iter_with_nullable(columns)?)
}

/// Rows before `valid_from`, from there to `test_from`, and from there on.
fn cut(all: &RecordBatch, column: &str, valid_from: &Bound, test_from: Option<&Bound>) -> Result<[Option<RecordBatch>; 3]> {
    let values = text(all, column)?;
    let numbers = numbers(values);
    let reaches = |row: usize, bound: &Bound| match (bound, &numbers) {
        (Bound::Number(bound), Some(numbers)) => Ok(numbers[row] >= *bound),
        (Bound::Text(bound), _) => Ok(values.value(row) >= bound.as_str()),
        (Bound::Number(bound), None) => Err(Error::contract(format_args!("column {column} is not of numbers, so none reaches {bound}"))),
    };
    let mut rows: [Vec<u64>; 3] = Default::default();
    for row in 0..all.num_rows() {
        let late = match test_from {
            Some(bound) => reaches(row, bound)?,
            None => false,
        };
        let split = if late { 2 } else { usize::from(reaches(row, valid_from)?) };
        rows[split].push(row as u64);
    }
    chosen(all, rows)
}

/// Shares of the rows, in the order of a column or dealt by hash.
fn deal(spec: &TrainSpec, all: &RecordBatch, column: Option<&str>, shares: &Shares) -> Result<[Option<RecordBatch>; 3]> {
    let total: f64 = shares.iter().sum();
    if !(shares.iter().all(|share| *share >= 0.0) && shares[0] > 0.0 && shares[1] > 0.0 && total.is_finite()) {
        return Err(Error::usage(format_args!("shares = {shares:?} must be at least 0, and above 0 for train and valid")));
    }
    let split = |place: f64| if place < shares[0] / total { 0 } else { 1 + usize::from(place >= (shares[0] + shares[1]) / total) };
    let mut rows: [Vec<u64>; 3] = Default::default();
    match column {
        None => {
            for row in 0..all.num_rows() as u64 {
                let place = xxh3_64_with_seed(&row.to_le_bytes(), spec.seed) as f64 / u64::MAX as f64;
                rows[split(place)].push(row);
            }
        }
        Some(column) => {
            let values = text(all, column)?;
            let mut order: Vec<u64> = (0..all.num_rows() as u64).collect();
            match numbers(values) {
                Some(numbers) => order.sort_by(|a, b| numbers[*a as usize].total_cmp(&numbers[*b as usize])),
                None => order.sort_by_key(|row| values.value(*row as usize)),
            }
            for (place, row) in order.iter().enumerate() {
                rows[split(place as f64 / all.num_rows() as f64)].push(*row);
            }
        }
    }
    chosen(all, rows)
}

fn chosen(all: &RecordBatch, rows: [Vec<u64>; 3]) -> Result<[Option<RecordBatch>; 3]> {
    let [train, valid, test] = rows.map(|rows| take_record_batch(all, &UInt64Array::from(rows)).map(Some));
    Ok([train?, valid?, test?])
}

/// The values as numbers, when all are.
fn numbers(values: &StringArray) -> Option<Vec<f64>> {
    values.iter().map(|value| value?.trim().parse().ok()).collect()
}

/// A column that is read as text and holds no NULL.
fn text<'a>(table: &'a RecordBatch, name: &str) -> Result<&'a StringArray> {
    let array = table.column_by_name(name).ok_or_else(|| {
        let known = table.schema().fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>().join(", ");
        Error::contract(format_args!("column {name} is absent; there are {known}")).action("correct [columns] of the spec")
    })?;
    match array.null_count() {
        0 => Ok(array.as_string::<i32>()),
        nulls => Err(Error::contract(format_args!("column {name} is empty in {nulls} of {} rows", array.len()))),
    }
}

/// Parts a table into features, labels and groups.
fn label(spec: &TrainSpec, table: RecordBatch) -> Result<Labelled> {
    let columns = &spec.columns;
    let missing = [&columns.categorical, &columns.numeric, &columns.sequence, &columns.text].into_iter().flatten();
    if let Some(name) = missing.into_iter().find(|name| table.column_by_name(name).is_none()) {
        text(&table, name)?;
    }
    let positive = flags(text(&table, &columns.label)?, columns).with_context(|| format!("label {}", columns.label))?;
    let converted = match &columns.conversion {
        None => None,
        Some(name) => {
            let array = table.column_by_name(name).ok_or_else(|| Error::contract(format_args!("column {name} is absent")))?;
            let plain = Columns { positive: None, at_least: None, ..columns.clone() };
            let flag = |value: Option<&str>| value.map(|value| flag(value, &plain)).transpose();
            Some(array.as_string::<i32>().iter().map(flag).collect::<Result<Vec<_>>>().with_context(|| format!("label {name}"))?)
        }
    };
    let groups = match &columns.group {
        None => None,
        Some(name) => Some(text(&table, name)?.iter().map(|group| xxh3_64(group.unwrap_or_default().as_bytes())).collect()),
    };
    let split = spec.data.split.as_ref().and_then(|split| split.column.as_ref());
    let no_features: BTreeSet<&String> =
        [Some(&columns.label), columns.conversion.as_ref(), split].into_iter().flatten().chain(&columns.exclude).collect();
    let mut features = Vec::new();
    for (field, array) in table.schema().fields().iter().zip(table.columns()).filter(|(field, _)| !no_features.contains(field.name())) {
        let is_sequence = columns.sequence.contains(field.name()) && *array.data_type() == DataType::Utf8;
        features.push((field.name().clone(), if is_sequence { parts(array.as_string(), &columns.separator) } else { array.clone() }, true));
    }
    if features.is_empty() {
        return Err(Error::contract("there are no columns but labels").action("correct [columns] of the spec"));
    }
    Ok(Labelled { features: RecordBatch::try_from_iter_with_nullable(features)?, targets: Targets { positive, converted }, groups })
}

fn flags(values: &StringArray, columns: &Columns) -> Result<Vec<bool>> {
    values.iter().map(|value| flag(value.unwrap_or_default(), columns)).collect()
}

fn flag(value: &str, columns: &Columns) -> Result<bool> {
    let value = value.trim();
    let number = value.parse::<f64>();
    match (&columns.positive, columns.at_least) {
        (Some(Bound::Text(positive)), _) => Ok(value == positive),
        (Some(Bound::Number(positive)), _) => Ok(number.is_ok_and(|number| number == *positive)),
        (None, Some(least)) => number
            .map(|number| number >= least)
            .map_err(|_| Error::contract(format_args!("{value:?} is no number, so it is not at least {least}"))),
        (None, None) => match (number, value.to_ascii_lowercase().as_str()) {
            (Ok(1.0), _) | (_, "true" | "yes") => Ok(true),
            (Ok(0.0), _) | (_, "false" | "no") => Ok(false),
            _ => Err(Error::contract(format_args!("{value:?} is neither 0 nor 1"))
                .action("say in [columns] which value is positive, or at_least which number")),
        },
    }
}

/// `a|b|c` -> [a, b, c]; an empty text is an empty list.
fn parts(values: &StringArray, separator: &str) -> ArrayRef {
    let mut lists = ListBuilder::new(StringBuilder::new());
    for value in values {
        let parts = value.unwrap_or_default().split(separator).map(str::trim).filter(|part| !part.is_empty());
        lists.append_value(parts.map(Some));
    }
    Arc::new(lists.finish())
}

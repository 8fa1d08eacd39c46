//! Files -> labelled rows, split: CSV or Parquet, of this machine or of a store.
//!
//! Only the columns that the spec uses are read. In CSV a declared category stays the text it is (`007` is not `7`), a declared
//! number must be one, and what is not declared is inferred from the whole first file.

use super::TrainSpec;
use crate::error::{Context, Error, Kind, Result};
use crate::model::{Targets, TextEncoder};
use crate::platform::engine::{plain, plain_schema};
use crate::platform::storage::{Object, Store, parquet_table};
use arrow::array::{
    Array, ArrayRef, AsArray, FixedSizeListArray, Float32Array, ListBuilder, RecordBatch, StringArray, StringBuilder, UInt64Array,
};
use arrow::compute::{CastOptions, cast_with_options, concat_batches, take_record_batch};
use arrow::csv::reader::Format;
use arrow::csv::{self, ReaderBuilder};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::{Cursor, Read, Seek};
use std::path::Path;
use std::sync::Arc;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// Where the rows are: `train`, `valid` and `test` files, or one `table` and how to split it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
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
    /// Training rows whose encoded matrix would take more are streamed: read and encoded again in every epoch, block by block. So much
    /// slower where reading is slower than training; and the baseline learns from a sample. Rows that validate and test are in memory
    /// all the same, as is the embedding table.
    pub memory_mib: usize,
    /// Always or never, whatever the memory.
    pub streaming: Option<bool>,
    /// Streamed rows are shuffled so many at a time, or as many as a quarter of the memory holds: the more, the nearer to a shuffle of
    /// all. The row groups that fill a block are drawn anew in every epoch.
    pub buffer_rows: usize,
}

impl Default for Data {
    fn default() -> Self {
        Self { train: None, valid: None, test: None, table: None, split: None, memory_mib: 4096, streaming: None, buffer_rows: 2_000_000 }
    }
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
    /// A folder with a pretrained text encoder (see `make models`): the network and the baseline also get its vector of each text.
    #[serde(default)]
    pub encoder: Option<String>,
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

impl Data {
    /// Where the training rows are, alone or with others.
    ///
    /// # Errors
    /// `Usage` for a section that says too little or contradicts itself.
    pub(super) fn location(&self) -> Result<&str> {
        for (name, value) in [("buffer_rows", self.buffer_rows), ("memory_mib", self.memory_mib)] {
            if value == 0 {
                return Err(Error::usage(format_args!("[data] {name} must be at least 1")));
            }
        }
        match (&self.train, &self.table, &self.split) {
            (Some(_), None, Some(_)) => Err(Error::usage("[data.split] is for one table; train, valid and test files are split already")),
            (Some(train), None, None) => Ok(train),
            (None, Some(_), None) => Err(Error::usage("[data] table needs [data.split]")),
            (None, Some(table), Some(split)) if self.valid.is_none() && self.test.is_none() => match split {
                Split { column: Some(_), valid_from: Some(_), shares: None, .. } | Split { valid_from: None, shares: Some(_), .. } => {
                    Ok(table)
                }
                _ => Err(Error::usage("[data.split] needs either column and valid_from, or shares of train, valid and test")),
            },
            _ => Err(Error::usage("[data] needs train (and valid, test), or table and [data.split]")),
        }
    }
}

/// Reads and splits the table of a spec.
pub(super) async fn read(spec: &TrainSpec, encoder: Option<&TextEncoder>) -> Result<Splits> {
    let mut schema = None;
    let all = files(spec, spec.data.location()?, &mut schema).await?;
    let [train, mut valid, mut test] = split(spec, 0, all)?;
    for (rows, location) in [(&mut valid, &spec.data.valid), (&mut test, &spec.data.test)] {
        if let Some(location) = location {
            *rows = files(spec, location, &mut schema).await?;
        }
    }
    let labelled = |rows: RecordBatch, name: &str| match rows.num_rows() {
        0 => Ok(None),
        _ => label(spec, encoder, rows).with_context(|| format!("the {name} rows")).map(Some),
    };
    let (train, valid, test) = (labelled(train, "train")?, labelled(valid, "valid")?, labelled(test, "test")?);
    Ok(Splits { train: train.ok_or_else(|| empty("train"))?, valid: valid.ok_or_else(|| empty("valid"))?, test })
}

pub(super) fn empty(split: &str) -> Error {
    Error::contract(format_args!("the {split} split has no rows"))
}

/// Parts rows into those that train, validate and test. `first` is the number of the first among all rows; an order of a column is
/// that of these rows alone.
pub(super) fn split(spec: &TrainSpec, first: u64, rows: RecordBatch) -> Result<[RecordBatch; 3]> {
    match &spec.data.split {
        None if spec.data.valid.is_some() => {
            let none = rows.slice(0, 0);
            Ok([rows, none.clone(), none])
        }
        None => deal(spec, &rows, first, None, &VALID_SHARE),
        Some(Split { column: Some(column), valid_from: Some(valid_from), test_from, .. }) => {
            cut(&rows, column, valid_from, test_from.as_ref())
        }
        Some(split) => {
            let shares = split.shares.as_ref().ok_or_else(|| Error::usage("[data.split] says neither shares nor valid_from"))?;
            deal(spec, &rows, first, split.column.as_deref(), shares)
        }
    }
}

/// All rows of a file or folder. The first file read decides what the columns are.
pub(super) async fn files(spec: &TrainSpec, location: &str, schema: &mut Option<Arc<Schema>>) -> Result<RecordBatch> {
    let (store, objects) = list(location).await?;
    let mut batches = Vec::new();
    for Object { path, .. } in objects {
        let bytes = store.get(&path).await?;
        let reading = || format!("reading {}", store.locate(&path));
        let table = match path.rsplit('.').next() {
            Some("parquet") => parquet(spec, bytes).with_context(reading)?,
            _ => csv(spec, Cursor::new(bytes), schema).and_then(csv_rows).with_context(reading)?,
        };
        batches.push(table);
    }
    let schema = batches[0].schema();
    if batches.len() == 1 {
        return Ok(batches.remove(0));
    }
    concat_batches(&schema, &batches).with_context(|| format!("joining the files of {location}"))
}

/// The store and in it the file of that name, or the CSV and Parquet files of a folder.
pub(super) async fn list(location: &str) -> Result<(Store, Vec<Object>)> {
    let is_table = |name: &str| name.ends_with(".csv") || name.ends_with(".parquet");
    let missing = || Error::new(Kind::InputMissing, format_args!("{location} does not exist, or is a folder without CSV or Parquet files"));
    if !location.contains("://") && !Path::new(location).exists() {
        // A local store would make the folder.
        return Err(missing());
    }
    let (folder, name) = match is_table(location) {
        true => location.rsplit_once('/').unwrap_or((".", location)),
        false => (location, ""),
    };
    let store = Store::open(folder)?;
    let objects: Vec<Object> = store.list(name).await?.into_iter().filter(|object| is_table(&object.path)).collect();
    if objects.is_empty() { Err(missing()) } else { Ok((store, objects)) }
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

/// A reader of the used columns of a CSV file, each of its type.
pub(super) fn csv<R: Read + Seek>(spec: &TrainSpec, mut file: R, schema: &mut Option<Arc<Schema>>) -> Result<csv::Reader<R>> {
    let names = Format::default().with_header(true).infer_schema(&mut file, Some(0))?.0;
    let inferred = match schema {
        Some(schema) => schema.clone(),
        None => {
            let undeclared = names.fields().iter().any(|field| used(spec, field.name()) && declared(spec, field.name()).is_none());
            let inferred = if undeclared {
                file.rewind()?;
                Format::default().with_header(true).infer_schema(&mut file, None)?.0
            } else {
                names.clone()
            };
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
    file.rewind()?;
    let reader = ReaderBuilder::new(Arc::new(Schema::new(fields))).with_header(true).with_batch_size(65_536).with_projection(wanted);
    Ok(reader.build(file)?)
}

/// All rows of a CSV file.
fn csv_rows<R: Read>(reader: csv::Reader<R>) -> Result<RecordBatch> {
    let schema = reader.schema();
    let batches = reader.map(|rows| rows.map_err(not_as_declared)).collect::<Result<Vec<_>>>()?;
    Ok(concat_batches(&schema, &batches)?)
}

pub(super) fn not_as_declared(error: ArrowError) -> Error {
    Error::contract(error).action("declare the column in [columns] as what it is, or mend the file")
}

fn parquet(spec: &TrainSpec, bytes: Bytes) -> Result<RecordBatch> {
    let table = parquet_table(bytes)?;
    conform(spec, &table.project(&wanted(spec, &table.schema()))?)
}

/// The places of the used columns.
pub(super) fn wanted(spec: &TrainSpec, schema: &Schema) -> Vec<usize> {
    (0..schema.fields().len()).filter(|i| used(spec, schema.field(*i).name())).collect()
}

/// Rows of a Parquet file with every column of the type that the spec wants.
pub(super) fn conform(spec: &TrainSpec, table: &RecordBatch) -> Result<RecordBatch> {
    let table = plain(table, &Arc::new(plain_schema(&table.schema())))?;
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
fn cut(all: &RecordBatch, column: &str, valid_from: &Bound, test_from: Option<&Bound>) -> Result<[RecordBatch; 3]> {
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
fn deal(spec: &TrainSpec, all: &RecordBatch, first: u64, column: Option<&str>, shares: &Shares) -> Result<[RecordBatch; 3]> {
    let total: f64 = shares.iter().sum();
    if !(shares.iter().all(|share| *share >= 0.0) && shares[0] > 0.0 && shares[1] > 0.0 && total.is_finite()) {
        return Err(Error::usage(format_args!("shares = {shares:?} must be at least 0, and above 0 for train and valid")));
    }
    let split = |place: f64| if place < shares[0] / total { 0 } else { 1 + usize::from(place >= (shares[0] + shares[1]) / total) };
    let mut rows: [Vec<u64>; 3] = Default::default();
    match column {
        None => {
            for row in 0..all.num_rows() as u64 {
                let place = xxh3_64_with_seed(&(first + row).to_le_bytes(), spec.seed) as f64 / u64::MAX as f64;
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

fn chosen(all: &RecordBatch, rows: [Vec<u64>; 3]) -> Result<[RecordBatch; 3]> {
    let [train, valid, test] = rows.map(|rows| take_record_batch(all, &UInt64Array::from(rows)));
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
pub(super) fn label(spec: &TrainSpec, encoder: Option<&TextEncoder>, table: RecordBatch) -> Result<Labelled> {
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
    if let Some(encoder) = encoder {
        for name in &columns.text {
            let array = table.column_by_name(name).ok_or_else(|| Error::contract(format_args!("column {name} is absent")))?;
            features.push((format!("{name}.vector"), vectors(name, array, encoder)?, true));
        }
    }
    if features.is_empty() {
        return Err(Error::contract("there are no columns but labels").action("correct [columns] of the spec"));
    }
    Ok(Labelled { features: RecordBatch::try_from_iter_with_nullable(features)?, targets: Targets { positive, converted }, groups })
}

/// The vector of each text; none of none.
fn vectors(name: &str, array: &ArrayRef, encoder: &TextEncoder) -> Result<ArrayRef> {
    let texts = array.as_string_opt::<i32>().ok_or_else(|| {
        Error::contract(format_args!("column {name} is {}, not text, so no encoder reads it", array.data_type()))
            .action("leave it out of [columns] text, or leave out encoder")
    })?;
    let values = encoder.vectors(&texts.iter().map(Option::unwrap_or_default).collect::<Vec<_>>());
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let vectors = FixedSizeListArray::try_new(item, encoder.width() as i32, Arc::new(Float32Array::from(values)), texts.nulls().cloned());
    Ok(Arc::new(vectors?))
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

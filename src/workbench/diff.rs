//! What a change of a file does to its table: rows that came, went and changed, by key, and how far each column moved.
//!
//! Both versions run on the same rows, those of the other files as they are now; so every difference is the file's own doing.

use crate::error::{Error, Result};
use crate::platform::catalog::Query;
use crate::platform::engine;
use crate::platform::survey::load_text;
use crate::statistics::shift::{self, as_numbers};
use crate::workbench::check::sql_type;
use crate::workbench::last_run;
use crate::workbench::tables::{Desk, open};
use crate::workbench::text::{aligned, count, number, shorten, shown};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array};
use arrow::compute::{SortColumn, cast, concat_batches, lexsort_to_indices, take, take_record_batch};
use arrow::datatypes::Float64Type;
use arrow::row::{OwnedRow, RowConverter, SortField};
use chrono::NaiveDate;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Diff {
    pub table: String,
    pub date: NaiveDate,
    /// What it is compared with: a revision, or the snapshot of a run.
    pub against: String,
    pub key: Vec<String>,
    pub rows_before: u64,
    pub rows_after: u64,
    pub added: u64,
    pub removed: u64,
    /// In both, with another value in some column that both have.
    pub changed: u64,
    pub columns: Vec<ColumnDiff>,
    /// A few keys of each kind.
    pub examples: Vec<Example>,
}

/// One column that either side has.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct ColumnDiff {
    pub column: String,
    pub before: Option<Side>,
    pub after: Option<Side>,
    /// Rows in both whose value differs.
    pub changed: u64,
    /// How far the values moved, whatever the row; of lists, their lengths. Not of the key.
    pub psi: Option<f64>,
}

#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Side {
    #[serde(rename = "type")]
    pub kind: String,
    pub null_share: f64,
    /// Of numbers; of lists, of their lengths.
    pub mean: Option<f64>,
}

#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Example {
    pub kind: &'static str,
    pub key: Vec<String>,
    /// Of a changed row: column, before, after.
    pub values: Vec<(String, String, String)>,
}

/// Examples of each kind.
const EXAMPLES: usize = 3;

/// Compares a file's table with that of an earlier version of the file.
pub async fn against_revision(desk: &Desk, query: &Query, revision: &str) -> Result<Diff> {
    let old = load_text(&query.path, at_revision(&query.path, revision)?)?;
    let after = rows(desk, &query.name).await?;
    let before = rows(&desk.with(old), &query.name).await?;
    compare(query, desk.run.date, format!("{revision} of {}", query.path.display()), &before, &after)
}

async fn rows(desk: &Desk, table: &str) -> Result<RecordBatch> {
    let context = open(desk, [table]).await?;
    engine::collect(context.table(table).await?).await
}

/// Compares a feature table with the snapshot that the last run left of the same date.
pub async fn against_run(desk: &Desk, query: &Query) -> Result<Diff> {
    let date = desk.run.date;
    if query.room() != "features" {
        return Err(Error::usage(format_args!("{} leaves no snapshot; features do", query.name)).action("diff it against a revision"));
    }
    let Some(snapshot) = last_run::last(&desk.run.output, query, Some(date)).await? else {
        let newest = last_run::last(&desk.run.output, query, None).await?;
        let action = match newest {
            Some(newest) => format!("say the date of the snapshot there is: --as-of {}", newest.day),
            None => "run the night first, or diff against a revision".to_owned(),
        };
        return Err(Error::usage(format_args!("no run has left a snapshot of {} for {date}", query.name)).action(action));
    };
    let mut parts = Vec::new();
    for file in snapshot.manifest.files.iter().filter(|file| file.path.ends_with(".parquet")) {
        parts.push(snapshot.store.read_parquet(&file.path).await?);
    }
    let schema = parts
        .first()
        .map(RecordBatch::schema)
        .ok_or_else(|| Error::internal(format_args!("the snapshot of {} has no file", query.name)))?;
    let before = concat_batches(&schema, &parts)?;
    let after = rows(desk, &query.name).await?;
    let same = if snapshot.is_of(query) { ", made by the same SQL" } else { "" };
    compare(query, date, format!("the snapshot {}{same}", snapshot.manifest.key), &before, &after)
}

/// A file's text in a revision.
fn at_revision(path: &Path, revision: &str) -> Result<String> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // A revision that looks like a flag would be one.
    if revision.starts_with('-') {
        return Err(Error::usage(format_args!("{revision} is no revision")));
    }
    let output = std::process::Command::new("git").arg("-C").arg(folder).args(["show", &format!("{revision}:./{name}")]).output();
    let output = output.map_err(|error| Error::usage(format_args!("git does not start: {error}")))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        let why = why.trim().trim_start_matches("fatal: ");
        return Err(Error::usage(format_args!("{revision} of {}: {why}", path.display()))
            .action("name a revision that has the file: HEAD, main, a tag"));
    }
    String::from_utf8(output.stdout).map_err(|_| Error::usage(format_args!("{revision} of {} is not UTF-8", path.display())))
}

/// Row by row, by key.
pub fn compare(query: &Query, date: NaiveDate, against: String, before: &RecordBatch, after: &RecordBatch) -> Result<Diff> {
    let key = &query.grain;
    if let Some(absent) = key.iter().find(|column| before.column_by_name(column).is_none() || after.column_by_name(column).is_none()) {
        return Err(Error::usage(format_args!("the grain of {} has changed: {absent} is not a column of both versions", query.name)));
    }
    let (before, after) = (&in_order(before, key)?, &in_order(after, key)?);
    let (before_rows, after_rows) = (by_key(before, key)?, by_key(after, key)?);
    let mut shared: Vec<(u32, u32)> = before_rows.iter().filter_map(|(key, row)| Some((*row, *after_rows.get(key)?))).collect();
    shared.sort_unstable();
    let (from, to): (Vec<u32>, Vec<u32>) = shared.iter().copied().unzip();
    let (from, to) = (UInt32Array::from(from), UInt32Array::from(to));

    let names: Vec<String> = in_both_orders(before, after);
    let mut columns = Vec::new();
    let mut differs: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); shared.len()];
    for (at, name) in names.iter().enumerate() {
        let (old, new) = (before.column_by_name(name), after.column_by_name(name));
        let mut changed = 0;
        if let (Some(old), Some(new)) = (old, new) {
            for row in changed_rows(&take(old, &from, None)?, &take(new, &to, None)?)? {
                differs[row].insert(at);
                changed += 1;
            }
        }
        let psi = match (old, new) {
            (Some(old), Some(new)) if !key.contains(name) => shift::index(old, new)?,
            _ => None,
        };
        let (before, after) = (old.map(side).transpose()?, new.map(side).transpose()?);
        columns.push(ColumnDiff { column: name.clone(), before, after, changed, psi });
    }

    let mut examples = lonely("added", after, &after_rows, &before_rows, key)?;
    examples.extend(lonely("removed", before, &before_rows, &after_rows, key)?);
    let changed_pairs = shared.iter().zip(&differs).filter(|(_, columns)| !columns.is_empty());
    for ((old, new), columns) in changed_pairs.clone().take(EXAMPLES) {
        let cell = |rows: &RecordBatch, row: u32, name: &str| -> Result<String> {
            let column = rows.project(&[rows.schema().index_of(name)?])?.slice(row as usize, 1);
            Ok(shown(&column)?.remove(0).remove(0))
        };
        let values = columns.iter().map(|at| Ok((names[*at].clone(), cell(before, *old, &names[*at])?, cell(after, *new, &names[*at])?)));
        examples.push(Example { kind: "changed", key: key_of(after, *new, key)?, values: values.collect::<Result<_>>()? });
    }
    Ok(Diff {
        table: query.name.clone(),
        date,
        against,
        key: key.clone(),
        rows_before: before.num_rows() as u64,
        rows_after: after.num_rows() as u64,
        added: (after_rows.len() - shared.len()) as u64,
        removed: (before_rows.len() - shared.len()) as u64,
        changed: changed_pairs.count() as u64,
        columns,
        examples,
    })
}

/// The columns of the new version in its order, then those that only the old one has.
fn in_both_orders(before: &RecordBatch, after: &RecordBatch) -> Vec<String> {
    let names = |rows: &RecordBatch| rows.schema().fields().iter().map(|field| field.name().clone()).collect::<Vec<_>>();
    let (old, mut all) = (names(before), names(after));
    let gone: Vec<String> = old.into_iter().filter(|name| !all.contains(name)).collect();
    all.extend(gone);
    all
}

/// Rows in the order of their key, so that sums and examples come out the same every time.
fn in_order(rows: &RecordBatch, key: &[String]) -> Result<RecordBatch> {
    let columns = key.iter().map(|name| SortColumn { values: rows[name.as_str()].clone(), options: None }).collect::<Vec<_>>();
    Ok(take_record_batch(rows, &lexsort_to_indices(&columns, None)?)?)
}

/// The row of each key; of a key that is not unique, the last.
fn by_key(rows: &RecordBatch, key: &[String]) -> Result<HashMap<OwnedRow, u32>> {
    let columns: Vec<ArrayRef> = key.iter().map(|name| rows[name.as_str()].clone()).collect();
    let fields = columns.iter().map(|column| SortField::new(column.data_type().clone())).collect();
    let encoded = RowConverter::new(fields)?.convert_columns(&columns)?;
    Ok(encoded.iter().enumerate().map(|(at, row)| (row.owned(), at as u32)).collect())
}

/// Whether two numbers are the same but for the order in which they were summed.
fn same_number(old: Option<f64>, new: Option<f64>) -> bool {
    match (old, new) {
        (Some(old), Some(new)) => old == new || (old.is_nan() && new.is_nan()) || (old - new).abs() <= 1e-12 * old.abs().max(new.abs()),
        (old, new) => old.is_none() && new.is_none(),
    }
}

/// Where two columns of the same rows differ; a type that changed is compared in the new one, where that is possible.
fn changed_rows(old: &ArrayRef, new: &ArrayRef) -> Result<Vec<usize>> {
    let old = match old.data_type() == new.data_type() {
        true => old.clone(),
        false => match cast(old, new.data_type()) {
            Ok(old) => old,
            Err(_) => return Ok((0..new.len()).collect()),
        },
    };
    if let (Some(old), Some(new)) = (old.as_primitive_opt::<Float64Type>(), new.as_primitive_opt::<Float64Type>()) {
        return Ok(old.iter().zip(new).enumerate().filter(|(_, (old, new))| !same_number(*old, *new)).map(|(row, _)| row).collect());
    }
    let converter = RowConverter::new(vec![SortField::new(new.data_type().clone())])?;
    let (old, new) = (converter.convert_columns(&[old])?, converter.convert_columns(std::slice::from_ref(new))?);
    Ok((0..new.num_rows()).filter(|row| old.row(*row) != new.row(*row)).collect())
}

fn side(column: &ArrayRef) -> Result<Side> {
    let known = as_numbers(column)?.map(|values| values.into_iter().flatten().collect::<Vec<f64>>()).filter(|values| !values.is_empty());
    Ok(Side {
        kind: sql_type(column.data_type()),
        null_share: if column.is_empty() { 0.0 } else { column.logical_null_count() as f64 / column.len() as f64 },
        mean: known.map(|values| values.iter().sum::<f64>() / values.len() as f64).filter(|mean| mean.is_finite()),
    })
}

fn key_of(rows: &RecordBatch, row: u32, key: &[String]) -> Result<Vec<String>> {
    let places = key.iter().map(|name| rows.schema().index_of(name)).collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(shown(&rows.project(&places)?.slice(row as usize, 1))?.remove(0))
}

/// A few keys of one side that the other side has not, the first in the table.
fn lonely(
    kind: &'static str,
    rows: &RecordBatch,
    own: &HashMap<OwnedRow, u32>,
    other: &HashMap<OwnedRow, u32>,
    key: &[String],
) -> Result<Vec<Example>> {
    let mut found: Vec<u32> = own.iter().filter(|(key, _)| !other.contains_key(*key)).map(|(_, row)| *row).collect();
    found.sort_unstable();
    found.iter().take(EXAMPLES).map(|row| Ok(Example { kind, key: key_of(rows, *row, key)?, values: Vec::new() })).collect()
}

impl Diff {
    /// One screen.
    pub fn text(&self) -> String {
        let sign = |n: u64| if n == 0 { "0".to_owned() } else { count(n) };
        let mut text = format!(
            "{} as of the end of {}, against {}\n\nrows  {} -> {}   added {}   removed {}   changed {}\n",
            self.table,
            self.date,
            self.against,
            count(self.rows_before),
            count(self.rows_after),
            sign(self.added),
            sign(self.removed),
            sign(self.changed)
        );
        let touched = |column: &&ColumnDiff| column.changed > 0 || column.before != column.after || column.psi.is_some_and(|psi| psi > 0.0);
        let (touched, same): (Vec<&ColumnDiff>, Vec<&ColumnDiff>) = self.columns.iter().partition(touched);
        if !touched.is_empty() {
            let mut lines = vec![["column", "changed", "PSI", "", "NULL", "mean", "type"].map(str::to_owned).to_vec()];
            lines.extend(touched.iter().map(|column| column.line()));
            text += &format!("\n{}\n", aligned(&lines, &[false, true, true]));
        }
        if !same.is_empty() {
            text += &format!("\nthe same: {}\n", same.iter().map(|column| column.column.as_str()).collect::<Vec<_>>().join(", "));
        }
        for example in &self.examples {
            let values: Vec<String> = example
                .values
                .iter()
                .map(|(column, before, after)| format!("{column} {} -> {}", shorten(before, 30), shorten(after, 30)))
                .collect();
            let values = if values.is_empty() { String::new() } else { format!(": {}", values.join(", ")) };
            text += &format!("\n{:<8} {}{values}", example.kind, example.key.join(", "));
        }
        text.trim_end().to_owned()
    }
}

impl ColumnDiff {
    fn line(&self) -> Vec<String> {
        let psi = self.psi.map_or(String::new(), |psi| format!("{psi:.3}"));
        let rated = match (&self.before, &self.after, self.psi) {
            (None, _, _) => "new",
            (_, None, _) => "gone",
            (_, _, Some(0.25..)) => "moved",
            (_, _, Some(0.1..)) => "moved a little",
            _ => "",
        };
        let both = |of: &dyn Fn(&Side) -> String| {
            let (before, after) = (self.before.as_ref().map(of), self.after.as_ref().map(of));
            match (before, after) {
                (Some(before), Some(after)) if before != after => format!("{before} -> {after}"),
                (before, after) => before.or(after).unwrap_or_default(),
            }
        };
        let null = both(&|side| format!("{:.1} %", 100.0 * side.null_share));
        let mean = both(&|side| side.mean.map_or(String::new(), number));
        let changed = if self.before.is_some() && self.after.is_some() { count(self.changed) } else { String::new() };
        vec![self.column.clone(), changed, psi, rated.to_owned(), null, mean, both(&|side| side.kind.clone())]
    }
}

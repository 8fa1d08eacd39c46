//! A table of rows -> a stream of units (users): the arm each is in and the sums of its columns.
//!
//! Three roads lead there, by what is known of the table. Rows that are units are read as they lie. Rows sorted by unit, as a table
//! written per user usually is, are summed as they pass: one pass and no memory to speak of, whatever the number of units. Everything
//! else is grouped by the engine, which spills to disk. The second is tried first and given up at the first unit that comes too early.

use super::wide_sum::wide_sum;
use crate::error::{Error, Result};
use crate::platform::{engine, table};
use crate::statistics::moments::Wide;
use arrow::array::{Array, AsArray, Float64Array, Int64Array, RecordBatch, StringArray, make_comparator};
use arrow::compute::{SortOptions, concat};
use arrow::datatypes::{DataType, Float64Type, Int64Type};

use datafusion::functions_aggregate::expr_fn::{count, max, min};
use datafusion::logical_expr::case;
use datafusion::prelude::{DataFrame, Expr, SessionContext, cast, ident, lit};
use futures::StreamExt;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use tokio::task::JoinSet;
use xxhash_rust::xxh3::xxh3_64;

/// What to read of a table.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The column that names the unit; where there is none every row is one.
    pub unit: Option<String>,
    pub arm: String,
    /// Splits the units further: a unit with rows on several levels counts on each.
    pub level: Option<String>,
    /// Numbers to be summed by unit, at most 64.
    pub sums: Vec<Expr>,
}

/// A unit, as the stream shows it.
pub struct Unit<'a> {
    /// Of the unit's name; of the row's number where rows are units.
    pub hash: u64,
    pub arm: ArmOf<'a>,
    pub level: Option<&'a str>,
    pub rows: u64,
    /// A sum a column, 0 where the unit has no value.
    pub sums: &'a [f64],
    /// Bit i: the unit has no value in column i.
    pub empty: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArmOf<'a> {
    One(&'a str),
    /// The unit was seen in more than one.
    Several,
    None,
}

/// What is made of units; parts of a stream are tallied apart and merged, in any order.
pub trait Tally: Clone + Send + 'static {
    fn unit(&mut self, unit: &Unit<'_>);
    /// Rows that name no unit.
    fn nameless(&mut self, rows: u64);
    fn merge(&mut self, other: Self);
}

/// More arms than this are a mistaken column.
pub const MAX_ARMS: usize = 100;

const UNIT: &str = "unit";
const ARM: &str = "arm";
const LEVEL: &str = "level";
const ROWS: &str = "rows";

/// Tallies the units of a table.
///
/// # Errors
/// `Usage` for a column that the table lacks; `Contract` for rows that cannot be read or an arm column with more than [`MAX_ARMS`] values.
pub async fn tally<T: Tally>(context: &SessionContext, rows: &DataFrame, wanted: &Wanted, empty: T) -> Result<T> {
    let narrow = narrow(rows, wanted)?;
    if wanted.unit.is_none() {
        return as_they_lie(context, narrow, wanted, empty).await;
    }
    if wanted.level.is_none()
        && let Some(tallied) = in_order(context, narrow.clone(), wanted, empty.clone()).await?
    {
        return Ok(tallied);
    }
    grouped(narrow, wanted, empty).await
}

/// Only the columns that are read, under names of ours.
fn narrow(rows: &DataFrame, wanted: &Wanted) -> Result<DataFrame> {
    let schema = rows.schema();
    assert!(wanted.sums.len() <= 64, "one bit a column");
    let mut columns = vec![table::text(schema, &wanted.arm)?.alias(ARM)];
    if let Some(unit) = &wanted.unit {
        table::require(schema, unit)?;
        columns.push(match schema.field_with_unqualified_name(unit)?.data_type() {
            integer if integer.is_integer() => cast(ident(unit), DataType::Int64).alias(UNIT),
            _ => table::text(schema, unit)?.alias(UNIT),
        });
    }
    if let Some(level) = &wanted.level {
        columns.push(table::text(schema, level)?.alias(LEVEL));
    }
    columns.extend(wanted.sums.iter().enumerate().map(|(i, sum)| sum.clone().alias(sum_name(i))));
    Ok(rows.clone().select(columns)?)
}

fn sum_name(i: usize) -> String {
    format!("sum_{i}")
}

// ------------------------------------------------------------------------------------------------------------ rows that are units

/// Every row is a unit. Row numbers follow the order of the files, so that is how they are read.
async fn as_they_lie<T: Tally>(context: &SessionContext, rows: DataFrame, wanted: &Wanted, mut tally: T) -> Result<T> {
    let mut stream = read_in_order(context, rows).await?;
    let mut number = 0_u64;
    let mut sums = vec![0.0; wanted.sums.len()];
    while let Some(batch) = stream.next().await {
        let batch = Columns::of(&batch?, wanted)?;
        for row in 0..batch.arms.len() {
            let empty = batch.read(row, &mut sums);
            let arm = if batch.arms.is_valid(row) { ArmOf::One(batch.arms.value(row)) } else { ArmOf::None };
            tally.unit(&Unit { hash: xxh3_64(&number.to_le_bytes()), arm, level: batch.level(row), rows: 1, sums: &sums, empty });
            number += 1;
        }
    }
    Ok(tally)
}

/// A stream of the rows as the files hold them.
async fn read_in_order(context: &SessionContext, rows: DataFrame) -> Result<datafusion::physical_plan::SendableRecordBatchStream> {
    let mut state = context.state();
    state.config_mut().options_mut().execution.target_partitions = 1;
    let plan = state.create_physical_plan(&rows.into_optimized_plan()?).await?;
    Ok(datafusion::physical_plan::execute_stream(plan, state.task_ctx())?)
}

/// A batch's columns by their use.
struct Columns {
    arms: StringArray,
    levels: Option<StringArray>,
    sums: Vec<Float64Array>,
}

impl Columns {
    fn of(batch: &RecordBatch, wanted: &Wanted) -> Result<Self> {
        let text = |name: &str| Ok::<_, Error>(arrow::compute::cast(&batch[name], &DataType::Utf8)?.as_string::<i32>().clone());
        Ok(Self {
            arms: text(ARM)?,
            levels: if wanted.level.is_some() { Some(text(LEVEL)?) } else { None },
            sums: (0..wanted.sums.len()).map(|i| batch[sum_name(i).as_str()].as_primitive::<Float64Type>().clone()).collect(),
        })
    }

    /// The numbers of a row, and which of them are missing.
    fn read(&self, row: usize, sums: &mut [f64]) -> u64 {
        let mut empty = 0;
        for (i, (sum, column)) in sums.iter_mut().zip(&self.sums).enumerate() {
            let there = column.is_valid(row);
            *sum = if there { column.value(row) } else { 0.0 };
            empty |= u64::from(!there) << i;
        }
        empty
    }

    fn level(&self, row: usize) -> Option<&str> {
        self.levels.as_ref().map(|levels| if levels.is_valid(row) { levels.value(row) } else { "" })
    }
}

// ------------------------------------------------------------------------------------------------------------- rows sorted by unit

/// The unit whose rows are passing.
struct Passing {
    rows: u64,
    arm: Option<String>,
    several: bool,
    /// None where no value was seen.
    sums: Vec<Option<Wide>>,
}

/// Units as runs of rows; none when they do not come in ascending order.
async fn in_order<T: Tally>(context: &SessionContext, rows: DataFrame, wanted: &Wanted, mut tally: T) -> Result<Option<T>> {
    let mut stream = read_in_order(context, rows).await?;
    let mut sums = vec![0.0; wanted.sums.len()];
    let mut passing: Option<(Passing, arrow::array::ArrayRef)> = None;
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        let units = batch[UNIT].clone();
        let columns = Columns::of(&batch, wanted)?;
        // The last unit of the batch before is put in front: so every step is one within an array.
        let (units, offset) = match &passing {
            Some((_, last)) => (concat(&[last.as_ref(), units.as_ref()])?, 1),
            None => (units, 0),
        };
        let compare = make_comparator(&units, &units, SortOptions::default())?;
        for row in 0..batch.num_rows() {
            let place = row + offset;
            if units.is_null(place) {
                // Where these rows stand says nothing of the order of the rest: leave them to the engine.
                return Ok(None);
            }
            let step = if place == 0 { Ordering::Less } else { compare(place - 1, place) };
            match step {
                Ordering::Greater => return Ok(None),
                Ordering::Less => {
                    if let Some((unit, _)) = passing.take() {
                        unit.leave(&mut tally, &units, place - 1, &mut sums);
                    }
                    passing = Some((Passing::new(sums.len()), units.slice(place, 1)));
                }
                Ordering::Equal => {}
            }
            let (unit, _) = passing.as_mut().expect("the first row of a run begins it");
            unit.row(&columns, row);
        }
    }
    if let Some((unit, last)) = passing {
        unit.leave(&mut tally, &last, 0, &mut sums);
    }
    Ok(Some(tally))
}

impl Passing {
    fn new(sums: usize) -> Self {
        Self { rows: 0, arm: None, several: false, sums: vec![None; sums] }
    }

    fn row(&mut self, columns: &Columns, row: usize) {
        self.rows += 1;
        if columns.arms.is_valid(row) {
            let arm = columns.arms.value(row);
            match &self.arm {
                Some(known) => self.several |= known != arm,
                None => self.arm = Some(arm.to_owned()),
            }
        }
        for (sum, column) in self.sums.iter_mut().zip(&columns.sums) {
            if column.is_valid(row) {
                sum.get_or_insert_default().add(column.value(row));
            }
        }
    }

    fn leave<T: Tally>(&self, tally: &mut T, units: &dyn Array, place: usize, sums: &mut [f64]) {
        let mut empty = 0;
        for (i, (sum, own)) in sums.iter_mut().zip(&self.sums).enumerate() {
            *sum = own.map_or(0.0, Wide::value);
            empty |= u64::from(own.is_none()) << i;
        }
        let arm = match &self.arm {
            _ if self.several => ArmOf::Several,
            Some(arm) => ArmOf::One(arm),
            None => ArmOf::None,
        };
        tally.unit(&Unit { hash: hash_of(units, place), arm, level: None, rows: self.rows, sums, empty });
    }
}

/// The same for a number and for its text, so that a CSV copy of a table gives the same bootstrap.
fn hash_of(units: &dyn Array, place: usize) -> u64 {
    match units.as_string_opt::<i32>() {
        Some(names) => xxh3_64(names.value(place).as_bytes()),
        None => xxh3_64(units.as_primitive::<Int64Type>().value(place).to_string().as_bytes()),
    }
}

// ---------------------------------------------------------------------------------------------------------------- rows in any order

/// Units as the engine groups them; beyond its memory it spills.
async fn grouped<T: Tally>(rows: DataFrame, wanted: &Wanted, empty: T) -> Result<T> {
    let arms = arms(&rows).await?;
    // Numbers instead of names: the least and the greatest tell whether there is more than one, at a byte a unit.
    let code = arms.iter().zip(0_i8..).fold(case(ident(ARM)), |mut code, (arm, number)| code.when(lit(arm), lit(number)));
    let code = if arms.is_empty() { lit(datafusion::common::ScalarValue::Int8(None)) } else { { code }.end()? };
    let mut by = vec![ident(UNIT)];
    by.extend(wanted.level.iter().map(|_| ident(LEVEL)));
    let mut sums = vec![min(code.clone()).alias("first_arm"), max(code).alias("last_arm"), count(lit(1)).alias(ROWS)];
    sums.extend((0..wanted.sums.len()).map(|i| wide_sum(ident(sum_name(i))).alias(sum_name(i))));
    let mut tasks = JoinSet::new();
    for (part, mut stream) in rows.aggregate(by, sums)?.execute_stream_partitioned().await?.into_iter().enumerate() {
        let (wanted, arms, mut tally) = (wanted.clone(), arms.clone(), empty.clone());
        tasks.spawn(async move {
            while let Some(batch) = stream.next().await {
                groups(&batch?, &wanted, &arms, &mut tally)?;
            }
            Ok::<_, Error>((part, tally))
        });
    }
    let mut parts = Vec::new();
    while let Some(done) = tasks.join_next().await {
        parts.push(done.map_err(Error::internal)??);
    }
    parts.sort_by_key(|(part, _)| *part);
    let mut whole = empty;
    parts.into_iter().for_each(|(_, tally)| whole.merge(tally));
    Ok(whole)
}

async fn arms(rows: &DataFrame) -> Result<Vec<String>> {
    let found = rows.clone().select(vec![ident(ARM)])?.filter(ident(ARM).is_not_null())?.distinct()?.limit(0, Some(MAX_ARMS + 1))?;
    let found = engine::collect(found).await?;
    let arms: BTreeSet<String> = found[ARM].as_string::<i32>().iter().flatten().map(str::to_owned).collect();
    if arms.len() > MAX_ARMS {
        return Err(too_many_arms());
    }
    Ok(arms.into_iter().collect())
}

pub fn too_many_arms() -> Error {
    Error::contract(format_args!("the arm column has more than {MAX_ARMS} values")).action("name the column that holds the arm")
}

fn groups<T: Tally>(batch: &RecordBatch, wanted: &Wanted, arms: &[String], tally: &mut T) -> Result<()> {
    let units = &batch[UNIT];
    let [first, last] = ["first_arm", "last_arm"].map(|name| batch[name].as_primitive::<arrow::datatypes::Int8Type>().clone());
    let rows: &Int64Array = batch[ROWS].as_primitive();
    // Columns::of wants an arm column; the groups have its numbers instead.
    let columns = Columns {
        arms: StringArray::new_null(0),
        levels: if wanted.level.is_some() { Some(batch[LEVEL].as_string::<i32>().clone()) } else { None },
        sums: (0..wanted.sums.len()).map(|i| batch[sum_name(i).as_str()].as_primitive::<Float64Type>().clone()).collect(),
    };
    let mut sums = vec![0.0; wanted.sums.len()];
    for row in 0..batch.num_rows() {
        let rows = rows.value(row).unsigned_abs();
        if units.is_null(row) {
            tally.nameless(rows);
            continue;
        }
        let arm = match (first.is_valid(row), first.value(row), last.value(row)) {
            (false, ..) => ArmOf::None,
            (true, first, last) if first == last => ArmOf::One(&arms[first.unsigned_abs() as usize]),
            _ => ArmOf::Several,
        };
        let empty = columns.read(row, &mut sums);
        tally.unit(&Unit { hash: hash_of(units, row), arm, level: columns.level(row), rows, sums: &sums, empty });
    }
    Ok(())
}

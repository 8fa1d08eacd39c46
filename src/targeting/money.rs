//! Money as whole micro-units of the shop's currency, so that sums are exact and do not depend on their order.

use crate::error::{Error, Result};
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Decimal128Type, Float64Type, Int64Type};

/// Beyond it an amount no longer has its own float: 9 billion units of currency.
pub const LARGEST: i64 = 9_000_000_000_000_000;

/// The column `name`, Float64, Int64 or Decimal128, in micro-units; `None` when the table has no such column.
///
/// # Errors
/// `Contract`, naming the row's value, for an amount that is negative, not a number, or beyond [`LARGEST`].
pub fn column(table: &RecordBatch, name: &str) -> Result<Option<Vec<Option<i64>>>> {
    let Some(array) = table.column_by_name(name) else { return Ok(None) };
    let refuse = |value: &dyn std::fmt::Display| Error::contract(format_args!("{name} is {value}, not an amount of money"));
    let amounts = (0..array.len()).map(|row| {
        if array.is_null(row) {
            return Ok(None);
        }
        let micros = match array.data_type() {
            DataType::Float64 => {
                let value = array.as_primitive::<Float64Type>().value(row);
                micros(value).ok_or_else(|| refuse(&value))?
            }
            DataType::Int64 => {
                let value = array.as_primitive::<Int64Type>().value(row);
                in_range(i128::from(value) * 1_000_000).ok_or_else(|| refuse(&value))?
            }
            DataType::Decimal128(_, scale) => {
                let value = array.as_primitive::<Decimal128Type>().value(row);
                rescaled(value, *scale).and_then(in_range).ok_or_else(|| refuse(&format_args!("{value}e-{scale}")))?
            }
            other => return Err(Error::contract(format_args!("column {name} is {other}, not Float64, Int64 or Decimal128"))),
        };
        Ok(Some(micros))
    });
    amounts.collect::<Result<Vec<_>>>().map(Some)
}

/// A float of currency in micro-units, to the nearest.
pub fn micros(value: f64) -> Option<i64> {
    let micros = (value * 1e6).round();
    (0.0..=LARGEST as f64).contains(&micros).then_some(micros as i64)
}

pub fn currency(micros: i128) -> f64 {
    micros as f64 / 1e6
}

fn in_range(micros: i128) -> Option<i64> {
    i64::try_from(micros).ok().filter(|micros| (0..=LARGEST).contains(micros))
}

/// A decimal's digits at six places, to the nearest.
fn rescaled(digits: i128, scale: i8) -> Option<i128> {
    let power = |n: i8| 10i128.checked_pow(n.unsigned_abs().into());
    match 6 - scale {
        up @ 0.. => digits.checked_mul(power(up)?),
        down => {
            let unit = power(down)?;
            Some(digits.checked_add(unit / 2)?.div_euclid(unit))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, Decimal128Array, Float64Array, Int64Array};
    use std::sync::Arc;

    fn read(array: ArrayRef) -> Result<Vec<Option<i64>>> {
        Ok(column(&RecordBatch::try_from_iter([("bid", array)]).unwrap(), "bid")?.unwrap())
    }

    fn decimal(digits: i128, scale: i8) -> ArrayRef {
        Arc::new(Decimal128Array::from(vec![digits]).with_precision_and_scale(18, scale).unwrap())
    }

    #[test]
    fn every_kind_of_number_becomes_the_same_micros() {
        assert_eq!(read(Arc::new(Float64Array::from(vec![Some(0.1), None, Some(0.0)]))).unwrap(), [Some(100_000), None, Some(0)]);
        assert_eq!(read(Arc::new(Int64Array::from(vec![3]))).unwrap(), [Some(3_000_000)]);
        assert_eq!(read(decimal(100_000, 6)).unwrap(), [Some(100_000)]);
        assert_eq!(read(decimal(10, 2)).unwrap(), [Some(100_000)]);
        assert_eq!(read(decimal(123_456_750, 8)).unwrap(), [Some(1_234_568)]);
        assert_eq!(column(&RecordBatch::try_from_iter([("bid", decimal(1, 0))]).unwrap(), "budget").unwrap(), None);
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for bad in [f64::NAN, f64::INFINITY, -0.01, 1e12] {
            assert!(read(Arc::new(Float64Array::from(vec![bad]))).is_err(), "{bad}");
        }
        assert!(read(Arc::new(Int64Array::from(vec![i64::MAX]))).is_err());
        assert!(read(decimal(-1, 6)).is_err());
        assert!(read(Arc::new(arrow::array::StringArray::from(vec!["3"]))).is_err());
    }
}

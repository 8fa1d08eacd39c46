//! How far a column of one table has moved from the same column of another: counts of its values, and the stability index of any type.

use super::psi;
use crate::error::Result;
use arrow::array::{Array, ArrayRef, AsArray, Float64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int32Type};
use arrow::row::{RowConverter, SortField};
use std::collections::{BTreeMap, HashMap};

/// How often a value occurs, and in which row first.
pub struct Count {
    pub rows: u64,
    pub first: usize,
}

/// The different values of a column, each as bytes that sort as the values do; NULL is left out.
pub fn counts(column: &ArrayRef) -> Result<HashMap<Vec<u8>, Count>> {
    let converter = RowConverter::new(vec![SortField::new(column.data_type().clone())])?;
    let encoded = converter.convert_columns(std::slice::from_ref(column))?;
    let nulls = column.logical_nulls();
    let mut counts: HashMap<Vec<u8>, Count> = HashMap::new();
    for (row, bytes) in encoded.iter().enumerate().filter(|(row, _)| nulls.as_ref().is_none_or(|nulls| nulls.is_valid(*row))) {
        match counts.get_mut(bytes.as_ref()) {
            Some(count) => count.rows += 1,
            None => drop(counts.insert(bytes.as_ref().to_vec(), Count { rows: 1, first: row })),
        }
    }
    Ok(counts)
}

/// Numbers as they are, lists by their length; `None` for what is no number.
pub fn as_numbers(column: &ArrayRef) -> Result<Option<Vec<Option<f64>>>> {
    Ok(match column.data_type() {
        DataType::List(_) => {
            let lengths = arrow::compute::kernels::length::length(column)?;
            Some(lengths.as_primitive::<Int32Type>().iter().map(|length| length.map(f64::from)).collect())
        }
        kind if kind.is_numeric() => {
            let values = cast(column, &DataType::Float64)?;
            Some(values.as_any().downcast_ref::<Float64Array>().expect("it was cast").iter().collect())
        }
        _ => None,
    })
}

/// The stability index; `None` where one side is empty or the types differ.
pub fn index(reference: &ArrayRef, other: &ArrayRef) -> Result<Option<f64>> {
    if let (Some(reference), Some(other)) = (as_numbers(reference)?, as_numbers(other)?) {
        return Ok(psi::of_numbers(&reference, &other));
    }
    if reference.data_type() != other.data_type() {
        return Ok(None);
    }
    let categories = |column: &ArrayRef| -> Result<BTreeMap<Option<Vec<u8>>, u64>> {
        let mut found: BTreeMap<_, _> = counts(column)?.into_iter().map(|(bytes, count)| (Some(bytes), count.rows)).collect();
        found.insert(None, column.logical_null_count() as u64);
        Ok(found)
    };
    Ok(psi::of_categories(&categories(reference)?, &categories(other)?))
}

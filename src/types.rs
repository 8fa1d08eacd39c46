//! The vocabulary that every stage shares: tables are Arrow record batches with plain (non-view, non-dictionary) columns, and
//! these functions are how a stage reads a column by name.

use crate::error::{Error, Result};
use arrow::array::{Array, RecordBatch};

/// The column `name` of `table`, as the Arrow array type `A`.
///
/// # Errors
/// `Contract`, naming the column, when it is absent or of another type.
pub fn column<'a, A: Array + 'static>(table: &'a RecordBatch, name: &str) -> Result<&'a A> {
    let array = table.column_by_name(name).ok_or_else(|| Error::contract(format_args!("column {name} is absent")))?;
    array
        .as_any()
        .downcast_ref::<A>()
        .ok_or_else(|| Error::contract(format_args!("column {name} is {}, not {}", array.data_type(), std::any::type_name::<A>())))
}

/// The column `name` when the table has it.
pub fn optional_column<'a, A: Array + 'static>(table: &'a RecordBatch, name: &str) -> Result<Option<&'a A>> {
    if table.column_by_name(name).is_none() { Ok(None) } else { column(table, name).map(Some) }
}

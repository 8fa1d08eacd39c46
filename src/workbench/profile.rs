//! What the values of each column are like: how many are missing, how many differ, from where to where they reach.

use crate::error::Result;
use crate::statistics::shift::{as_numbers, counts};
use crate::workbench::check::sql_type;
use crate::workbench::text::{aligned, count, number, shorten};
use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde::Serialize;

/// One column.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Profile {
    pub column: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub rows: u64,
    pub nulls: u64,
    /// Different values, NULL not counted.
    pub distinct: u64,
    /// Of a list: of its length.
    pub min: Option<String>,
    pub max: Option<String>,
    /// At 25, 50 and 75 %: values that occur, the lower one between two. Of numbers, and of the lengths of lists.
    pub quantiles: Option<[f64; 3]>,
    /// The value that occurs most often, the first of several in their order, and in how many rows; of text and booleans.
    pub most_often: Option<(String, u64)>,
}

/// Every column of a table.
pub fn profile(rows: &RecordBatch) -> Result<Vec<Profile>> {
    let schema = rows.schema();
    schema.fields().iter().zip(rows.columns()).map(|(field, column)| of_column(field.name(), column)).collect()
}

fn of_column(name: &str, column: &ArrayRef) -> Result<Profile> {
    let rows = column.len() as u64;
    let counts = counts(column)?;
    let mut profile = Profile {
        column: name.to_owned(),
        kind: sql_type(column.data_type()),
        rows,
        nulls: column.logical_null_count() as u64,
        distinct: counts.len() as u64,
        min: None,
        max: None,
        quantiles: None,
        most_often: None,
    };
    match as_numbers(column)? {
        Some(values) => profile.numbers(values.into_iter().flatten().collect()),
        None => {
            let formatter = ArrayFormatter::try_new(column, &FormatOptions::default())?;
            let text = |row: usize| formatter.value(row).to_string();
            // Equal bytes are equal values, and the bytes sort as the values do.
            profile.min = counts.iter().min_by_key(|(bytes, _)| *bytes).map(|(_, of)| text(of.first));
            profile.max = counts.iter().max_by_key(|(bytes, _)| *bytes).map(|(_, of)| text(of.first));
            if matches!(column.data_type(), DataType::Utf8 | DataType::Boolean) {
                let most = counts.iter().max_by(|(a, of_a), (b, of_b)| of_a.rows.cmp(&of_b.rows).then(b.cmp(a)));
                profile.most_often = most.map(|(_, of)| (text(of.first), of.rows));
            }
        }
    }
    Ok(profile)
}

impl Profile {
    fn numbers(&mut self, mut values: Vec<f64>) {
        values.sort_unstable_by(f64::total_cmp);
        let (Some(first), Some(last)) = (values.first(), values.last()) else { return };
        (self.min, self.max) = (Some(number(*first)), Some(number(*last)));
        let at = |share: f64| values[(share * (values.len() - 1) as f64).floor() as usize];
        self.quantiles = Some([at(0.25), at(0.5), at(0.75)]);
    }
}

/// A line a column.
pub fn profile_as_text(profiles: &[Profile]) -> String {
    let head = ["column", "type", "nulls", "distinct", "min", "25 %", "50 %", "75 %", "max", "most often"];
    let mut lines = vec![head.map(str::to_owned).to_vec()];
    for profile in profiles {
        let share = |rows: u64| match (rows, profile.rows) {
            (0, _) => "-".to_owned(),
            (rows, all) if rows == all => "100 %".to_owned(),
            (rows, all) => format!("{:.1} %", 100.0 * rows as f64 / all as f64),
        };
        let end = |end: &Option<String>| end.as_ref().map_or(String::new(), |text| shorten(text, 20));
        let quantile = |at: usize| profile.quantiles.map_or(String::new(), |quantiles| number(quantiles[at]));
        let kind = if profile.kind.ends_with("[]") { format!("{} length", profile.kind) } else { profile.kind.clone() };
        // Where every value is another, none occurs often.
        let most = profile.most_often.as_ref().filter(|(_, rows)| *rows > 1);
        let most = most.map_or(String::new(), |(value, rows)| format!("{} ({})", shorten(value, 20), share(*rows)));
        let (min, max) = (end(&profile.min), end(&profile.max));
        lines.push(vec![
            profile.column.clone(),
            kind,
            share(profile.nulls),
            count(profile.distinct),
            min,
            quantile(0),
            quantile(1),
            quantile(2),
            max,
            most,
        ]);
    }
    aligned(&lines, &[false, false, true, true, true, true, true, true, true, false])
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{BooleanArray, Int64Array, ListArray, StringArray};
    use std::sync::Arc;

    fn profiled(column: ArrayRef) -> Profile {
        of_column("c", &column).expect("profiled")
    }

    #[test]
    fn numbers_have_quantiles_that_occur() {
        let found = profiled(Arc::new(Int64Array::from(vec![Some(4), Some(1), None, Some(2), Some(3), Some(3)])));
        assert_eq!((found.rows, found.nulls, found.distinct), (6, 1, 4));
        assert_eq!((found.min.as_deref(), found.max.as_deref(), found.quantiles), (Some("1"), Some("4"), Some([2.0, 3.0, 3.0])));
    }

    #[test]
    fn text_has_ends_and_a_most_frequent_value() {
        let found = profiled(Arc::new(StringArray::from(vec![Some("b"), Some("a"), Some("b"), None])));
        assert_eq!((found.min.as_deref(), found.max.as_deref()), (Some("a"), Some("b")));
        assert_eq!(found.most_often, Some(("b".to_owned(), 2)));
        let tied = profiled(Arc::new(BooleanArray::from(vec![true, false])));
        assert_eq!(tied.most_often, Some(("false".to_owned(), 1)), "of several the first in order");
    }

    #[test]
    fn lists_are_told_by_their_length_and_nothing_is_no_trouble() {
        let lists =
            ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>([Some(vec![Some(1)]), Some(vec![Some(1), Some(2)]), None]);
        let found = profiled(Arc::new(lists));
        assert_eq!((found.nulls, found.distinct, found.max.as_deref(), found.quantiles), (1, 2, Some("2"), Some([1.0, 1.0, 1.0])));
        let none = profiled(Arc::new(StringArray::new_null(2)));
        assert_eq!((none.nulls, none.distinct, none.min, none.most_often), (2, 0, None, None));
        assert_eq!(profiled(Arc::new(Int64Array::from(Vec::<i64>::new()))).quantiles, None);
    }
}

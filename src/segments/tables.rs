//! Tables in and out: columns without NULLs, members of segments, users by the segment that serves them.

use super::SegmentFacts;
use crate::error::{Error, Result};
use crate::types::column;
use arrow::array::{Array, ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// The users each segment serves: user_id, segment_id of the released segment of rank 1, by user_id.
pub fn primary_users(user_segments: &RecordBatch) -> Result<RecordBatch> {
    let (users, segments) = (full::<StringArray>(user_segments, "user_id")?, full::<StringArray>(user_segments, "segment_id")?);
    let ranks = full::<Int64Array>(user_segments, "rank")?;
    let mut primary: BTreeMap<&str, &str> = BTreeMap::new();
    for row in (0..user_segments.num_rows()).filter(|&row| ranks.value(row) == 1) {
        if primary.insert(users.value(row), segments.value(row)).is_some() {
            return Err(Error::contract(format_args!("user {} has two segments of rank 1", users.value(row))));
        }
    }
    table([
        ("user_id", Arc::new(StringArray::from_iter_values(primary.keys())) as ArrayRef, false),
        ("segment_id", Arc::new(StringArray::from_iter_values(primary.values())), false),
    ])
}

/// Users by segment, of a user_segments table.
pub(super) fn members(user_segments: &RecordBatch) -> Result<BTreeMap<&str, HashSet<&str>>> {
    let (users, segments) = (full::<StringArray>(user_segments, "user_id")?, full::<StringArray>(user_segments, "segment_id")?);
    let mut members: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
    for row in 0..user_segments.num_rows() {
        members.entry(segments.value(row)).or_default().insert(users.value(row));
    }
    Ok(members)
}

pub(super) fn distinct_users(user_segments: &RecordBatch) -> Result<u64> {
    Ok(full::<StringArray>(user_segments, "user_id")?.iter().collect::<HashSet<_>>().len() as u64)
}

pub(super) fn segments_table(segments: &[SegmentFacts]) -> Result<RecordBatch> {
    let strings = |of: fn(&SegmentFacts) -> &str| Arc::new(StringArray::from_iter_values(segments.iter().map(of))) as ArrayRef;
    let keywords = |it: &SegmentFacts| it.keywords.iter().map(|keyword| keyword.term.as_str()).collect::<Vec<_>>().join(", ");
    let counts = |of: fn(&SegmentFacts) -> u64| Arc::new(Int64Array::from_iter_values(segments.iter().map(|it| of(it) as i64))) as ArrayRef;
    table([
        ("segment_id", strings(|it| &it.segment_id), false),
        ("label", strings(|it| &it.label), false),
        ("path", strings(|it| &it.path), false),
        ("kind", strings(|it| &it.kind), false),
        ("size", counts(|it| it.size), false),
        ("size_released", counts(|it| it.size_released), false),
        ("stability", Arc::new(segments.iter().map(|it| it.stability).collect::<Float64Array>()), true),
        ("keywords", Arc::new(StringArray::from_iter_values(segments.iter().map(keywords))), false),
    ])
}

/// A table whose nullability does not depend on its rows.
pub(crate) fn table<'a>(columns: impl IntoIterator<Item = (&'a str, ArrayRef, bool)>) -> Result<RecordBatch> {
    Ok(RecordBatch::try_from_iter_with_nullable(columns)?)
}

/// A column that holds no NULL.
pub(crate) fn full<'a, A: Array + 'static>(table: &'a RecordBatch, name: &str) -> Result<&'a A> {
    let array = column::<A>(table, name)?;
    match array.null_count() {
        0 => Ok(array),
        nulls => Err(Error::contract(format_args!("column {name} holds {nulls} NULLs"))),
    }
}

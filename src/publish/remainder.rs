//! Tables without some of their users: what is left still keeps the floor, and its ranks, sizes and audiences say what is there.
//!
//! A segment that would serve too few goes with its rows of ads, and its users are served by the next of theirs, as on a new night. Plans
//! and propensities of the others stay as they were admitted: nobody is planned for anew.

use super::{Tables, recount};
use crate::error::Result;
use crate::segments::{full, too_small};
use arrow::array::{Array, ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// Takes users out; `floor` is `None` where rows belong to no persons. The same tables when there is nothing to take out.
pub(super) fn without(tables: &Tables, gone: &HashSet<String>, floor: Option<u64>) -> Result<Tables> {
    let users = full::<StringArray>(&tables.user_segments, "user_id")?;
    let segments = full::<StringArray>(&tables.user_segments, "segment_id")?;
    let shown: BTreeSet<&str> = full::<StringArray>(&tables.segment_ads, "segment_id")?.iter().flatten().collect();
    let mut choices: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (user, segment) in users.iter().flatten().zip(segments.iter().flatten()) {
        if !gone.contains(user) && shown.contains(segment) {
            choices.entry(user).or_default().push(segment);
        }
    }
    let small = too_small(&choices, |_| 1, |_| floor.unwrap_or(0));
    let (mut keep, mut ranks, mut last) = (Vec::with_capacity(users.len()), Vec::new(), ("", 0));
    for (user, segment) in users.iter().flatten().zip(segments.iter().flatten()) {
        let stays = !gone.contains(user) && shown.contains(segment) && !small.contains_key(segment);
        keep.push(stays);
        if stays {
            last = (user, if last.0 == user { last.1 + 1 } else { 1 });
            ranks.push(last.1);
        }
    }
    let user_segments =
        with(&filter_record_batch(&tables.user_segments, &BooleanArray::from(keep))?, "rank", Arc::new(Int64Array::from(ranks)))?;
    let members = recount(&user_segments)?;
    let of_segments = |rows: &RecordBatch, size: &str| -> Result<RecordBatch> {
        let stays = |id: &str| members.contains_key(id);
        let keep: BooleanArray = full::<StringArray>(rows, "segment_id")?.iter().map(|id| id.map(stays)).collect();
        let left = filter_record_batch(rows, &keep)?;
        // Where rows belong to no persons, sizes are not numbers of users.
        if floor.is_none() {
            return Ok(left);
        }
        let before: Vec<i64> = full::<Int64Array>(&left, size)?.values().to_vec();
        let sizes: Vec<i64> = full::<StringArray>(&left, "segment_id")?.iter().flatten().map(|id| members[id]).collect();
        let left = without_keywords(&left, |row| sizes[row] != before[row])?;
        with(&left, size, Arc::new(Int64Array::from(sizes)))
    };
    Ok(Tables {
        segments: of_segments(&tables.segments, "size_released")?,
        segment_ads: of_segments(&tables.segment_ads, "audience_size")?,
        shadow_ads: of_segments(&tables.shadow_ads, "audience_size")?,
        user_segments,
    })
}

/// Takes away the keywords of some segments: too few of those who are left may have searched for them.
fn without_keywords(rows: &RecordBatch, of: impl Fn(usize) -> bool) -> Result<RecordBatch> {
    if rows.column_by_name("keywords").is_none() {
        return Ok(rows.clone());
    }
    let keywords = full::<StringArray>(rows, "keywords")?.iter().flatten().enumerate();
    let left = keywords.map(|(row, keywords)| if of(row) { "" } else { keywords });
    with(rows, "keywords", Arc::new(StringArray::from_iter_values(left)))
}

fn with(rows: &RecordBatch, name: &str, values: ArrayRef) -> Result<RecordBatch> {
    let mut columns = rows.columns().to_vec();
    columns[rows.schema().index_of(name)?] = values;
    Ok(RecordBatch::try_new(rows.schema(), columns)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segments::table;

    /// Users and what serves them, the first first.
    fn tables(users: &[(&str, &[&str])]) -> Tables {
        let rows: Vec<(&str, &str, i64)> = users
            .iter()
            .flat_map(|(user, segments)| segments.iter().zip(1..).map(move |(segment, rank)| (*user, *segment, rank)))
            .collect();
        let text = |of: &dyn Fn(&(&str, &str, i64)) -> String| Arc::new(StringArray::from_iter_values(rows.iter().map(of))) as ArrayRef;
        let user_segments = table([
            ("user_id", text(&|row| row.0.to_owned()), false),
            ("segment_id", text(&|row| row.1.to_owned()), false),
            ("rank", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))), false),
        ])
        .expect("a table");
        let sizes = recount(&user_segments).expect("sizes");
        let of_segments = |size: &str| {
            let ids: ArrayRef = Arc::new(StringArray::from_iter_values(sizes.keys()));
            let sizes: ArrayRef = Arc::new(Int64Array::from_iter_values(sizes.values().copied()));
            table([("segment_id", ids, false), (size, sizes, false)]).expect("a table")
        };
        let (segments, ads) = (of_segments("size_released"), of_segments("audience_size"));
        Tables { segments, segment_ads: ads.clone(), shadow_ads: ads, user_segments }
    }

    #[test]
    fn what_is_left_keeps_the_floor_and_says_its_sizes() {
        let all = tables(&[("a", &["s", "t"]), ("b", &["s", "u", "t"]), ("c", &["t"]), ("d", &["t"]), ("e", &["u"]), ("f", &["u", "t"])]);
        let nobody = HashSet::new();
        assert_eq!(without(&all, &nobody, Some(2)).expect("filters"), all, "nothing is to be taken out");
        // Without f the segment u serves e alone; b is served by s as before, and its row of u goes.
        let left = without(&all, &HashSet::from(["f".to_owned()]), Some(2)).expect("filters");
        assert_eq!(left, tables(&[("a", &["s", "t"]), ("b", &["s", "t"]), ("c", &["t"]), ("d", &["t"])]));
        // Without c and d the segment t serves nobody and goes; s goes next, for it serves no more than u, which b then fills.
        let left = without(&all, &HashSet::from(["c".to_owned(), "d".to_owned()]), Some(3)).expect("filters");
        assert_eq!(left, tables(&[("b", &["u"]), ("e", &["u"]), ("f", &["u"])]));
        // Where rows belong to no persons there is no floor.
        let left = without(&all, &HashSet::from(["e".to_owned(), "f".to_owned()]), None).expect("filters");
        assert_eq!(left.user_segments, tables(&[("a", &["s", "t"]), ("b", &["s", "u", "t"]), ("c", &["t"]), ("d", &["t"])]).user_segments);
        assert_eq!(left.segments, all.segments);
    }
}

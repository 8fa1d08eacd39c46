//! What a table changes against the one that served before, for whoever holds that one: rows of ads that are new, other than they were,
//! or gone.
//!
//! Users are not in it: a list of those who left would name whom nobody may name any more.

use crate::error::Result;
use crate::segments::{full, table};
use crate::types::column;
use arrow::array::{Array, ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows of ads by what became of them.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct DeltaFacts {
    /// The policy version of the table that served before: to any other, the delta says nothing.
    pub against: String,
    pub added: u64,
    pub removed: u64,
    pub changed: u64,
}

/// What an ad server obeys.
#[derive(Clone, Copy, PartialEq)]
struct Served {
    propensity: f64,
    impressions: i64,
    frequency_cap: Option<i64>,
    bid_multiplier: Option<f64>,
}

/// Served rows by segment, arm and ad.
type Rows<'a> = BTreeMap<(&'a str, &'a str, &'a str), Served>;

/// segment_id, arm, ad_id, change (added, removed, changed), propensity and impressions_planned with what each was before, frequency_cap,
/// bid_multiplier; by segment_id, arm and ad_id. What a row does not have is NULL. Rows that serve as before are left out.
pub(super) fn delta(before: &RecordBatch, after: &RecordBatch) -> Result<RecordBatch> {
    let (before, after) = (read(before)?, read(after)?);
    let mut ids: Vec<_> = before.keys().chain(after.keys()).copied().filter(|id| before.get(id) != after.get(id)).collect();
    ids.sort_unstable();
    ids.dedup();
    let changes = ids.iter().map(|id| match (before.contains_key(id), after.contains_key(id)) {
        (false, _) => "added",
        (_, false) => "removed",
        _ => "changed",
    });
    let changes: ArrayRef = Arc::new(StringArray::from_iter_values(changes));
    let text = |of: &dyn Fn(&(&str, &str, &str)) -> String| Arc::new(StringArray::from_iter_values(ids.iter().map(of))) as ArrayRef;
    let floats = |rows: &Rows, of: fn(&Served) -> Option<f64>| {
        Arc::new(ids.iter().map(|id| rows.get(id).and_then(of)).collect::<Float64Array>()) as ArrayRef
    };
    let counts = |rows: &Rows, of: fn(&Served) -> Option<i64>| {
        Arc::new(ids.iter().map(|id| rows.get(id).and_then(of)).collect::<Int64Array>()) as ArrayRef
    };
    table([
        ("segment_id", text(&|id| id.0.to_owned()), false),
        ("arm", text(&|id| id.1.to_owned()), false),
        ("ad_id", text(&|id| id.2.to_owned()), false),
        ("change", changes, false),
        ("propensity", floats(&after, |row| Some(row.propensity)), true),
        ("propensity_before", floats(&before, |row| Some(row.propensity)), true),
        ("impressions_planned", counts(&after, |row| Some(row.impressions)), true),
        ("impressions_planned_before", counts(&before, |row| Some(row.impressions)), true),
        ("frequency_cap", counts(&after, |row| row.frequency_cap), true),
        ("bid_multiplier", floats(&after, |row| row.bid_multiplier), true),
    ])
}

/// Counts a delta's rows.
pub(super) fn facts(delta: &RecordBatch, against: &str) -> Result<DeltaFacts> {
    let changes = full::<StringArray>(delta, "change")?;
    let count = |what: &str| changes.iter().filter(|change| *change == Some(what)).count() as u64;
    Ok(DeltaFacts { against: against.to_owned(), added: count("added"), removed: count("removed"), changed: count("changed") })
}

fn read(ads: &RecordBatch) -> Result<Rows<'_>> {
    let text = |name: &str| full::<StringArray>(ads, name);
    let (segments, arms, ids) = (text("segment_id")?, text("arm")?, text("ad_id")?);
    let (propensities, planned) = (full::<Float64Array>(ads, "propensity")?, full::<Int64Array>(ads, "impressions_planned")?);
    let (caps, bids) = (column::<Int64Array>(ads, "frequency_cap")?, column::<Float64Array>(ads, "bid_multiplier")?);
    let served = |row: usize| Served {
        propensity: propensities.value(row),
        impressions: planned.value(row),
        frequency_cap: caps.is_valid(row).then(|| caps.value(row)),
        bid_multiplier: bids.is_valid(row).then(|| bids.value(row)),
    };
    Ok((0..ads.num_rows()).map(|row| ((segments.value(row), arms.value(row), ids.value(row)), served(row))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ads(rows: &[(&str, &str, f64)]) -> RecordBatch {
        let text = |of: fn(&(&str, &str, f64)) -> String| Arc::new(StringArray::from_iter_values(rows.iter().map(of))) as ArrayRef;
        table([
            ("segment_id", text(|row| row.0.to_owned()), false),
            ("arm", text(|_| "champion".to_owned()), false),
            ("ad_id", text(|row| row.1.to_owned()), false),
            ("propensity", Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.2))), false),
            ("impressions_planned", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| (10.0 * row.2) as i64))), false),
            ("frequency_cap", Arc::new(Int64Array::from(vec![None; rows.len()])), true),
            ("bid_multiplier", Arc::new(Float64Array::from(vec![None; rows.len()])), true),
        ])
        .expect("a table")
    }

    #[test]
    fn every_row_that_serves_otherwise_is_told_and_no_other() {
        let before = ads(&[("gone", "a", 1.0), ("s", "a", 0.5), ("s", "b", 0.2), ("s", "no_ad", 0.3)]);
        let after = ads(&[("new", "b", 1.0), ("s", "a", 0.6), ("s", "c", 0.1), ("s", "no_ad", 0.3)]);
        let found = delta(&before, &after).expect("a delta");
        let texts = |name: &str| -> Vec<String> {
            full::<StringArray>(&found, name).expect("a column").iter().flatten().map(str::to_owned).collect()
        };
        assert_eq!(texts("segment_id"), ["gone", "new", "s", "s", "s"]);
        assert_eq!(texts("ad_id"), ["a", "b", "a", "b", "c"]);
        assert_eq!(texts("change"), ["removed", "added", "changed", "removed", "added"]);
        let propensity = |name: &str| column::<Float64Array>(&found, name).expect("a column").iter().collect::<Vec<_>>();
        assert_eq!(propensity("propensity"), [None, Some(1.0), Some(0.6), None, Some(0.1)]);
        assert_eq!(propensity("propensity_before"), [Some(1.0), None, Some(0.5), Some(0.2), None]);
        let counted = facts(&found, "shop-1").expect("counts");
        assert_eq!((counted.added, counted.removed, counted.changed), (2, 2, 1));
        assert_eq!(delta(&after, &after).expect("a delta").num_rows(), 0);
    }
}

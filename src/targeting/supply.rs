//! Logged impressions -> opportunities: how often a day the primary users of each segment could be shown an ad.
//!
//! A log of impressions holds the opportunities at which some ad was shown. Under a table that leaves a part of them to `no_ad`, an
//! impression stands for more than one; taken as one, that part would be missing from tomorrow's supply, and again from the next.
//! Arms are drawn by chance, so a segment's impressions in all arms together tell of the arm that was shown nothing, too.

use super::arms::{Arm, Shares};
use super::value::NO_AD;
use crate::error::Result;
use crate::segments::full;
use crate::types::optional_column;
use arrow::array::{Array, Float64Array, RecordBatch, StringArray};
use std::collections::{BTreeMap, HashMap};

/// P(some ad is shown) at an opportunity of each segment's users, whatever their arm.
pub type Shown = BTreeMap<String, f64>;

/// The policy version and the segment under which an impression was served, where it was logged.
type Under<'a> = Option<(&'a str, &'a str)>;

/// Of a segment_ads table whose users were split by `shares`.
pub fn shown(segment_ads: &RecordBatch, shares: &Shares) -> Result<Shown> {
    let (segments, ads) = (full::<StringArray>(segment_ads, "segment_id")?, full::<StringArray>(segment_ads, "ad_id")?);
    let (arms, propensities) = (full::<StringArray>(segment_ads, "arm")?, full::<Float64Array>(segment_ads, "propensity")?);
    let mut shown = Shown::new();
    for row in (0..segment_ads.num_rows()).filter(|row| ads.value(*row) != NO_AD) {
        let share = Arm::ALL.iter().find(|arm| arm.as_str() == arms.value(row)).map_or(0.0, |arm| shares.of(*arm));
        *shown.entry(segments.value(row).to_owned()).or_default() += share * propensities.value(row);
    }
    Ok(shown)
}

/// Opportunities a day of each segment's primary users, from their impressions over `days` days. `served`: the tables that showed these,
/// by policy version; an impression of no such table is one opportunity.
pub fn expected(
    primary: &RecordBatch,
    impressions: &RecordBatch,
    served: &BTreeMap<String, Shown>,
    days: u64,
) -> Result<BTreeMap<String, f64>> {
    let (users, segments) = (full::<StringArray>(primary, "user_id")?, full::<StringArray>(primary, "segment_id")?);
    let of_user: HashMap<&str, &str> = users.iter().flatten().zip(segments.iter().flatten()).collect();
    let text = |name: &str| optional_column::<StringArray>(impressions, name);
    let (versions, served_as) = (text("policy_version")?, text("segment_id")?);
    // Counted first: a sum of floats must not depend on the order of rows.
    let mut counts: BTreeMap<(&str, Under), u64> = of_user.values().map(|segment| ((*segment, None), 0)).collect();
    for (row, user) in full::<StringArray>(impressions, "user_id")?.iter().enumerate() {
        if let Some(segment) = user.and_then(|user| of_user.get(user)) {
            *counts.entry((segment, at(versions, row).zip(at(served_as, row)))).or_default() += 1;
        }
    }
    let mut supply: BTreeMap<String, f64> = BTreeMap::new();
    for ((segment, under), impressions) in counts {
        let shown = under.and_then(|(version, segment)| served.get(version)?.get(segment)).copied().filter(|shown| *shown > 0.0);
        *supply.entry(segment.to_owned()).or_default() += impressions as f64 / shown.unwrap_or(1.0) / days.max(1) as f64;
    }
    Ok(supply)
}

fn at(column: Option<&StringArray>, row: usize) -> Option<&str> {
    column.filter(|column| column.is_valid(row)).map(|column| column.value(row))
}

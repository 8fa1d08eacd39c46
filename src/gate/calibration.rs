//! Whether the probabilities mean what they say: predicted over observed positives, overall and within groups of rows.
//!
//! Money is planned by the ratio, so a model that ranks better but promises a tenth too much is not let through. A band is broken only
//! when the whole interval lies outside it: chance alone refuses nobody.

use super::{Contest, GateSettings, Groups, Score};
use crate::statistics::bootstrap::Clusters;
use crate::statistics::{Estimate, Interval, ab};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Of one way to group the rows, how many groups break the band.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct GroupCalibration {
    /// The column: ad_id, campaign_id, …
    pub by: String,
    pub groups: u64,
    /// Groups with enough positives to be judged.
    pub judged: u64,
    /// Of these, with an interval wholly outside the band.
    pub outside: u64,
    /// The judged group whose ratio is farthest from 1 (by its logarithm), with that ratio.
    pub farthest: Option<String>,
    pub positives: Option<u64>,
    pub ratio: Option<f64>,
    pub ratio_ci: Option<Interval>,
}

/// Judges `scores` within each group that has [`GateSettings::group_positives`] positives.
pub fn within(settings: &GateSettings, contest: &Contest<'_>, groups: &Groups<'_>, scores: &[f64]) -> GroupCalibration {
    let mut rows_of: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (row, group) in groups.of_row.iter().enumerate() {
        if let Some(group) = group {
            rows_of.entry(group).or_default().push(row);
        }
    }
    let groups_count = rows_of.len() as u64;
    let (mut judged, mut broken) = (0, 0);
    let mut farthest: Option<(&str, u64, Estimate)> = None;
    for (group, rows) in rows_of {
        let positives = rows.iter().filter(|&&row| contest.labels[row]).count() as u64;
        if positives < settings.group_positives.max(1) {
            continue;
        }
        let users: Vec<u64> = rows.iter().map(|&row| contest.users[row]).collect();
        let sums = |at: usize| [scores[rows[at]], f64::from(u8::from(contest.labels[rows[at]]))];
        let Some(ratio) = ab::ratio_over(&Clusters::new(&users), settings.alpha, sums) else { continue };
        judged += 1;
        broken += u64::from(ratio.interval.is_some_and(|interval| outside(interval, settings.group_calibration)));
        if farthest.is_none_or(|(_, _, other)| ratio.value.ln().abs() > other.value.ln().abs()) {
            farthest = Some((group, positives, ratio));
        }
    }
    GroupCalibration {
        by: groups.by.to_owned(),
        groups: groups_count,
        judged,
        outside: broken,
        farthest: farthest.map(|(group, ..)| group.to_owned()),
        positives: farthest.map(|(_, positives, _)| positives),
        ratio: farthest.map(|(.., ratio)| ratio.value),
        ratio_ci: farthest.and_then(|(.., ratio)| ratio.interval),
    }
}

/// Why the challenger's probabilities cannot be trusted; none where they can, or where the day cannot tell.
pub fn objection(settings: &GateSettings, challenger: &Score, groups: &[GroupCalibration]) -> Option<String> {
    if let Some((ratio, interval)) = challenger.calibration_ratio.zip(challenger.calibration_ratio_ci)
        && outside(interval, settings.calibration)
    {
        let [low, high] = settings.calibration;
        return Some(format!(
            "the challenger is not calibrated: it predicts {ratio:.3} [{:.3}, {:.3}] times the positives that came, [{low}, {high}] is allowed",
            interval.low, interval.high
        ));
    }
    let broken = groups.iter().find(|found| found.outside as f64 > settings.groups_outside * found.judged as f64)?;
    let [low, high] = settings.group_calibration;
    Some(format!(
        "the challenger is not calibrated by {}: {} of {} groups lie outside [{low}, {high}], {} the farthest with {:.3}",
        broken.by,
        broken.outside,
        broken.judged,
        broken.farthest.as_deref().unwrap_or_default(),
        broken.ratio.unwrap_or_default()
    ))
}

fn outside(interval: Interval, [low, high]: [f64; 2]) -> bool {
    interval.high < low || interval.low > high
}

//! Conversions that are still to come: what has arrived by the cut-off is only part of what the day's impressions will lead to.
//!
//! Each conversion that has arrived counts 1 / P(arrived by now), from the shop's own delays (`statistics::delay`); so quick hours of the
//! evening count more than those of the morning.

use super::EvaluateSettings;
use super::night::Rows;
use crate::statistics::Estimate;
use crate::statistics::delay::Curve;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Late {
    pub arrived: u64,
    /// Conversions that the day's impressions will have led to in the end.
    pub expected: f64,
    /// Share of them that has not arrived.
    pub still_expected: f64,
    /// Hours beyond which nothing is known of delays, and nothing more expected.
    pub horizon_hours: u32,
    /// Of each arm: conversions per click, in the end.
    pub cvr: BTreeMap<String, Option<Estimate>>,
    /// Revenue per cost, in the end.
    pub roas: BTreeMap<String, Option<Estimate>>,
}

pub fn measure(settings: &EvaluateSettings, rows: &Rows, delays: Option<&Curve>, skipped: &mut Vec<String>) -> Option<Late> {
    let converted = rows.converted.as_ref()?;
    let Some(curve) = delays else {
        skipped.push("late conversions: too few earlier conversions to know their delays".into());
        return None;
    };
    // Where hardly any could have arrived one that did would count without bound.
    let weight = |row: usize| 1.0 / curve.arrived_by(rows.ages[row]).max(0.01);
    let (mut arrived, mut expected) = (0_u32, 0.0);
    for row in (0..rows.count()).filter(|&row| converted[row]) {
        arrived += 1;
        expected += weight(row);
    }
    let arms: std::collections::BTreeSet<&String> = rows.arms.iter().flatten().collect();
    let in_the_end = |row: usize| if converted[row] { weight(row) } else { 0.0 };
    let of_arms = |of: &dyn Fn(usize) -> [f64; 2]| {
        let of_arm =
            |arm: &String| rows.ratio(settings.alpha, |row| if rows.arms[row].as_ref() == Some(arm) { of(row) } else { [0.0, 0.0] });
        arms.iter().map(|arm| ((*arm).clone(), of_arm(arm))).collect::<BTreeMap<_, _>>()
    };
    let cvr = of_arms(&|row| [in_the_end(row), f64::from(u8::from(rows.clicked[row]))]);
    let roas = match (&rows.revenue, &rows.cost) {
        (Some(revenue), Some(cost)) => of_arms(&|row| [in_the_end(row) * revenue[row], cost[row]]),
        _ => BTreeMap::new(),
    };
    let still_expected = if expected > 0.0 { 1.0 - f64::from(arrived) / expected } else { 0.0 };
    Some(Late { arrived: arrived.into(), expected, still_expected, horizon_hours: curve.horizon(), cvr, roas })
}

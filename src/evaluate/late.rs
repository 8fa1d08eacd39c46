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

#[cfg(test)]
mod tests {
    use super::super::night::small::{Seen, rows};
    use super::*;
    use crate::statistics::delay::Observed;

    #[test]
    fn a_conversion_counts_for_those_of_its_age_that_are_still_to_come() {
        // Half of the shop's outcomes arrive within the first hours, the rest at the twentieth.
        let seen = |delay: u32| Observed { delay, age: 24, count: 100.0 };
        let curve = Curve::fit(&[seen(2), seen(20)]).expect("enough outcomes");
        assert_eq!((curve.arrived_by(4), curve.arrived_by(24)), (0.5, 1.0));
        let day = |hour: i64, converted: bool| Seen { hour, clicked: true, converted, cost: 1.0, revenue: 3.0, ..Seen::default() };
        // Four clicks of the first hour, a day old, and two of the evening, four hours old; each row a user.
        let seen = [day(0, true), day(0, true), day(0, false), day(0, false), day(20, true), day(20, false)];
        let seen: Vec<Seen> = seen.into_iter().zip(0..).map(|(seen, user)| Seen { user, ..seen }).collect();
        let found = measure(&EvaluateSettings::default(), &rows(&seen), Some(&curve), &mut Vec::new()).expect("a curve");
        assert_eq!((found.arrived, found.expected, found.still_expected), (3, 4.0, 0.25));
        let value = |of: &BTreeMap<String, Option<Estimate>>| of["champion"].expect("known").value;
        assert!((value(&found.cvr) - 4.0 / 6.0).abs() < 1e-12 && (value(&found.roas) - 4.0 * 3.0 / 6.0).abs() < 1e-12, "{found:?}");
        let mut skipped = Vec::new();
        assert_eq!(measure(&EvaluateSettings::default(), &rows(&[]), None, &mut skipped), None);
        assert!(skipped[0].starts_with("late conversions"), "{skipped:?}");
    }
}

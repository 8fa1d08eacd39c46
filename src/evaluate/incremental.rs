//! What targeting brought: the champion's users against the holdout's, over everybody whom the table could have shown an ad.
//!
//! Ghost ads (Johnson, Lewis and Nubbemeyer 2017): for the holdout the table also says what each segment would have been shown (its shadow
//! rows). So users to whom the plan shows nothing, in either arm, are left out: they cannot tell the arms apart and only add noise. Users
//! who were not there on the day count with zeros, so that an arm that brings people back is seen to. Nobody is compared by what they were
//! shown, which the plan chose, but by the arm that chance gave them.
//!
//! CUPED by earlier days would be wrong here: arms stay the same from night to night, so the arm has changed those days too.

use super::night::Rows;
use super::{CHAMPION, EvaluateSettings, HOLDOUT, Lift};
use crate::statistics::ab::{self, Measure};
use crate::statistics::moments::Moments;
use crate::statistics::{Estimate, Interval};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// A user of the table that served.
#[derive(Clone, Debug, PartialEq)]
pub struct Person {
    /// Hash of the user.
    pub user: u64,
    pub arm: String,
    /// Whether the plan shows the user's segment any ad: the champion's own rows, for the holdout the shadow rows.
    pub would_be_shown: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Incremental {
    pub treatment_users: u64,
    pub control_users: u64,
    /// Users of both arms to whom the plan shows nothing.
    pub users_left_out: u64,
    pub metrics: Vec<Lift>,
    /// Over all the champion's users: what they did more than they would have without targeting.
    pub clicks: Option<Estimate>,
    pub conversions: Option<Estimate>,
    pub revenue: Option<Estimate>,
    pub cost: Option<Estimate>,
    /// Revenue that targeting brought per unit of cost that it caused. Without an interval where the difference in cost may be zero.
    pub iroas: Option<Estimate>,
}

/// The columns of a user's sums.
const COLUMNS: [&str; 4] = ["clicks", "conversions", "revenue", "cost"];
const REVENUE: usize = 2;
const COST: usize = 3;

pub fn measure(settings: &EvaluateSettings, rows: &Rows, population: &[Person], skipped: &mut Vec<String>) -> Option<Incremental> {
    let mut skip = |why: &str| {
        skipped.push(format!("incremental lift: {why}"));
        None
    };
    if population.is_empty() {
        return skip("no table of ours served the day");
    }
    let mut sums: HashMap<u64, [f64; 4]> = HashMap::new();
    for row in 0..rows.count() {
        let user = sums.entry(rows.users[row]).or_default();
        let there = |amounts: &Option<Vec<f64>>| amounts.as_ref().map_or(0.0, |amounts| amounts[row]);
        let converted = rows.converted.as_ref().is_some_and(|converted| converted[row]);
        let own = [f64::from(u8::from(rows.clicked[row])), f64::from(u8::from(converted)), there(&rows.revenue), there(&rows.cost)];
        user.iter_mut().zip(own).for_each(|(sum, value)| *sum += value);
    }
    let arm = |name: &str| {
        let mut moments = Moments::new(COLUMNS.len());
        let own = population.iter().filter(|person| person.arm == name && person.would_be_shown);
        own.for_each(|person| moments.push(&sums.get(&person.user).copied().unwrap_or_default()));
        moments
    };
    let (treatment, control) = (arm(CHAMPION), arm(HOLDOUT));
    if treatment.rows() < 2 || control.rows() < 2 {
        return skip("no holdout, or nobody in it whom the plan would have shown an ad");
    }
    let known = [true, rows.converted.is_some(), rows.revenue.is_some(), rows.cost.is_some()];
    let mut metrics = Vec::new();
    let mut totals = [None; 4];
    for (column, name) in COLUMNS.iter().enumerate().filter(|(column, _)| known[*column]) {
        let Some((a, b)) = ab::measure(Measure::Mean(column), &control).zip(ab::measure(Measure::Mean(column), &treatment)) else {
            continue;
        };
        let ab::Comparison { absolute, relative, .. } = ab::compare(&a, &b, settings.alpha);
        let users = treatment.rows() as f64;
        let scaled = |interval: Interval| Interval { low: users * interval.low, high: users * interval.high };
        totals[column] = Some(Estimate { value: users * absolute.estimate, interval: absolute.interval.map(scaled) });
        metrics.push(Lift {
            metric: format!("{name}_per_user"),
            treatment: CHAMPION.into(),
            control: HOLDOUT.into(),
            treatment_value: b.mean,
            control_value: a.mean,
            absolute,
            relative,
            p_adjusted: None,
        });
    }
    let p: Vec<f64> = metrics.iter().filter_map(|lift| lift.absolute.p).collect();
    let tested = metrics.iter_mut().filter(|lift| lift.absolute.p.is_some());
    tested.zip(ab::benjamini_hochberg(&p)).for_each(|(lift, p)| lift.p_adjusted = Some(p));
    let iroas =
        if known[REVENUE] && known[COST] { ab::ratio_of_differences(&control, &treatment, REVENUE, COST, settings.alpha) } else { None };
    let left_out = population.iter().filter(|person| !person.would_be_shown && (person.arm == CHAMPION || person.arm == HOLDOUT)).count();
    let [clicks, conversions, revenue, cost] = totals;
    Some(Incremental {
        treatment_users: treatment.rows(),
        control_users: control.rows(),
        users_left_out: left_out as u64,
        metrics,
        clicks,
        conversions,
        revenue,
        cost,
        iroas,
    })
}

#[cfg(test)]
mod tests {
    use super::super::night::small::{Seen, rows};
    use super::*;

    /// Seven champions and three of the holdout whom the plan would show an ad, and one of each to whom it shows nothing.
    fn people() -> Vec<Person> {
        let person = |user: u64, arm: &str, would_be_shown| Person { user, arm: arm.to_owned(), would_be_shown };
        let champions = (0..8).map(|user| person(user, CHAMPION, user < 7));
        champions.chain((10..14).map(|user| person(user, HOLDOUT, user < 13))).collect()
    }

    #[test]
    fn targeting_brought_what_the_holdout_did_not_get() {
        let holdout = Seen { arm: "holdout", ..Seen::default() };
        let rows = rows(&[
            Seen { user: 0, clicked: true, converted: true, cost: 2.0, revenue: 30.0, ..Seen::default() },
            Seen { user: 1, clicked: true, cost: 1.0, ..Seen::default() },
            Seen { user: 2, cost: 1.0, ..Seen::default() },
            Seen { user: 10, clicked: true, converted: true, cost: 0.5, revenue: 4.0, ..holdout },
            Seen { user: 11, ..holdout },
            // A stranger to the table, who belongs to no arm.
            Seen { user: 99, clicked: true, revenue: 1_000.0, ..holdout },
        ]);
        let found = measure(&EvaluateSettings::default(), &rows, &people(), &mut Vec::new()).expect("two arms");
        assert_eq!((found.treatment_users, found.control_users, found.users_left_out), (7, 3, 2));
        let totals = [found.clicks, found.conversions, found.revenue, found.cost, found.iroas].map(|total| total.expect("known").value);
        // Seven users' sums less seven times the mean of three.
        let (revenue, cost) = (30.0 - 7.0 * 4.0 / 3.0, 4.0 - 7.0 * 0.5 / 3.0);
        for (total, by_hand) in totals.into_iter().zip([2.0 - 7.0 / 3.0, 1.0 - 7.0 / 3.0, revenue, cost, revenue / cost]) {
            assert!((total - by_hand).abs() < 1e-9, "{total} and {by_hand}");
        }
        let names: Vec<&str> = found.metrics.iter().map(|lift| lift.metric.as_str()).collect();
        assert_eq!(names, ["clicks_per_user", "conversions_per_user", "revenue_per_user", "cost_per_user"]);
    }

    #[test]
    fn without_somebody_to_compare_to_nothing_is_said() {
        let rows = rows(&[Seen { clicked: true, ..Seen::default() }]);
        let champions: Vec<Person> = people().into_iter().filter(|person| person.arm == CHAMPION).collect();
        let mut skipped = Vec::new();
        assert_eq!(measure(&EvaluateSettings::default(), &rows, &champions, &mut skipped), None);
        assert_eq!(measure(&EvaluateSettings::default(), &rows, &[], &mut skipped), None);
        assert!(skipped[0].contains("no holdout") && skipped[1].contains("no table"), "{skipped:?}");
    }
}

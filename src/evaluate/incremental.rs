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

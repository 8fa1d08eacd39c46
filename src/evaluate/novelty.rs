//! Novelty: whether the lift lasts. A user's arm stays the same from night to night, so the days of an arm are one experiment, and its lift
//! should be level; a new thing is clicked because it is new, and wears off.

use super::{CHAMPION, EvaluateSettings, HOLDOUT};
use crate::statistics::{Estimate, Interval, ab};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One user's sums on one day.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// 0 = the day that is measured.
    pub days_ago: i64,
    pub arm: String,
    pub impressions: f64,
    pub clicks: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Novelty {
    /// Champion over holdout in CTR, oldest day first.
    pub days: Vec<Day>,
    /// Change of the relative lift a day, weighted by how well each day is known.
    pub trend: Option<Estimate>,
    pub reading: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Day {
    pub days_ago: i64,
    pub lift: f64,
    pub interval: Option<Interval>,
}

/// Days that make a trend.
const ENOUGH_DAYS: usize = 3;

pub fn measure(settings: &EvaluateSettings, history: &[History], skipped: &mut Vec<String>) -> Option<Novelty> {
    let mut users: BTreeMap<(i64, &str), Vec<&History>> = BTreeMap::new();
    for user in history {
        users.entry((-user.days_ago, user.arm.as_str())).or_default().push(user);
    }
    let (mut days, mut points) = (Vec::new(), Vec::new());
    let dates: std::collections::BTreeSet<i64> = users.keys().map(|(day, _)| *day).collect();
    for day in dates {
        let arm = |name: &str| users.get(&(day, name)).and_then(|users| click_rate(users));
        let Some((control, treatment)) = arm(HOLDOUT).zip(arm(CHAMPION)) else { continue };
        let Some(lift) = ab::compare(&control, &treatment, settings.alpha).relative else { continue };
        days.push(Day { days_ago: -day, lift: lift.estimate, interval: lift.interval });
        if lift.standard_error > 0.0 {
            points.push((day as f64, lift.estimate, 1.0 / lift.standard_error.powi(2)));
        }
    }
    if days.len() < 2 {
        skipped.push(format!("novelty: fewer than two days have both {CHAMPION} and {HOLDOUT}"));
        return None;
    }
    let trend = if points.len() >= ENOUGH_DAYS { ab::weighted_slope(&points, settings.alpha) } else { None };
    let reading = match trend.and_then(|trend| trend.interval) {
        Some(interval) if interval.high < 0.0 => "the lift wears off, beyond chance: part of it was novelty",
        Some(interval) if interval.low > 0.0 => "the lift grows, beyond chance: users are still learning",
        Some(_) => "no trend beyond chance",
        None => "too few days for a trend",
    };
    Some(Novelty { days, trend, reading: reading.to_owned() })
}

fn click_rate(users: &[&History]) -> Option<ab::Arm> {
    let (clicks, impressions): (Vec<f64>, Vec<f64>) = users.iter().map(|user| (user.clicks, user.impressions)).unzip();
    ab::ratio(&clicks, &impressions)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two thousand users an arm, half of whom click twice as often as the arm and half never.
    fn history(lifts: &[f64]) -> Vec<History> {
        let mut history = Vec::new();
        for (days_ago, lift) in (0..lifts.len() as i64).rev().zip(lifts) {
            for (arm, rate) in [(CHAMPION, 0.2 * (1.0 + lift)), (HOLDOUT, 0.2)] {
                let user = |user: u32| History {
                    days_ago,
                    arm: arm.to_owned(),
                    impressions: 10.0,
                    clicks: if user.is_multiple_of(2) { 20.0 * rate } else { 0.0 },
                };
                history.extend((0..2_000).map(user));
            }
        }
        history
    }

    fn measured(lifts: &[f64]) -> Option<Novelty> {
        measure(&EvaluateSettings::default(), &history(lifts), &mut Vec::new())
    }

    #[test]
    fn a_lift_that_wears_off_is_told_from_one_that_lasts() {
        let worn = measured(&[0.5, 0.4, 0.3, 0.2, 0.1]).expect("five days");
        let lifts: Vec<f64> = worn.days.iter().map(|day| (day.lift * 1e9).round() / 1e9).collect();
        assert_eq!((lifts, worn.days[0].days_ago), (vec![0.5, 0.4, 0.3, 0.2, 0.1], 4), "oldest first");
        assert!((worn.trend.expect("a trend").value + 0.1).abs() < 1e-9, "{:?}", worn.trend);
        assert!(worn.reading.starts_with("the lift wears off"), "{}", worn.reading);
        let level = measured(&[0.3; 5]).expect("five days");
        assert!(level.trend.expect("a trend").value.abs() < 1e-9 && level.reading.starts_with("no trend"), "{level:?}");
        assert!(measured(&[0.1, 0.2, 0.3, 0.4, 0.5]).expect("five days").reading.starts_with("the lift grows"));
    }

    #[test]
    fn two_days_make_no_trend_and_one_nothing() {
        let two = measured(&[0.5, 0.1]).expect("two days");
        assert_eq!((two.days.len(), two.trend, two.reading.as_str()), (2, None, "too few days for a trend"));
        assert_eq!(measured(&[0.5]), None);
    }
}

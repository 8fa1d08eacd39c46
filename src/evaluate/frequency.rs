//! Frequency and fatigue: what the nth look at an ad is still worth.
//!
//! Users who see an ad ten times differ from those who see it once: late looks are heavy users' alone, first looks are everybody's. So the
//! nth look is compared to the first among the users who saw the ad equally often, within the ad and, where the log says so, the arm; these
//! are the same users at both looks. The strata are then weighted as Mantel and Haenszel do. That takes for granted that a click does not
//! end the looks. The naive curve stands beside it; the cap follows from the other: the last look before the first that is surely worth
//! less than half of the first.

use super::EvaluateSettings;
use super::night::Rows;
use crate::statistics::Estimate;
use crate::statistics::stratified::{self, Row};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Frequency {
    /// Of a user at one ad on the day.
    pub looks: Vec<Look>,
    /// None where no look is surely worth less than half.
    pub suggested_cap: Option<u32>,
    pub reason: String,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Look {
    /// The last counts all later ones too.
    pub nth: u32,
    pub impressions: u64,
    pub clicks: u64,
    pub ctr: f64,
    /// Clicks for each that a first look would have had, among users who saw the ad equally often.
    pub ratio: Option<Estimate>,
    /// The same over all users, whatever else sets them apart.
    pub naive: Option<Estimate>,
}

/// Looks beyond this are counted as one.
const LAST: u32 = 10;
/// A look must be worth this share of the first.
const WORTH: f64 = 0.5;

pub fn measure(settings: &EvaluateSettings, rows: &Rows, skipped: &mut Vec<String>) -> Option<Frequency> {
    let mut order: Vec<usize> = (0..rows.count()).collect();
    // By time; rows of one moment by ad, so that the order of the table cannot matter.
    order.sort_by(|&a, &b| (rows.at[a], &rows.ads[a], rows.users[a]).cmp(&(rows.at[b], &rows.ads[b], rows.users[b])));
    let mut seen: HashMap<(u64, &str), u32> = HashMap::new();
    let mut nth = vec![0; rows.count()];
    for row in order {
        let count = seen.entry((rows.users[row], rows.ads[row].as_str())).or_default();
        *count += 1;
        nth[row] = (*count).min(LAST);
    }
    let most = nth.iter().copied().max().unwrap_or(0);
    if most < 2 {
        skipped.push("frequency: nobody saw an ad twice".into());
        return None;
    }
    let stratum = |row: usize| {
        let total = seen[&(rows.users[row], rows.ads[row].as_str())];
        format!("{}\u{0}{}\u{0}{total}", rows.ads[row], rows.arms[row].as_deref().unwrap_or(""))
    };
    let strata = stratified::strata(&(0..rows.count()).map(stratum).collect::<Vec<_>>());
    let everybody = vec![0; rows.count()];
    let mut looks = Vec::new();
    for look in 1..=most {
        let own: Vec<usize> = (0..rows.count()).filter(|&row| nth[row] == look).collect();
        let clicks = own.iter().filter(|&&row| rows.clicked[row]).count() as u64;
        let against_first = |strata: &[u32]| {
            if look == 1 {
                return Some(Estimate { value: 1.0, interval: None });
            }
            let both = (0..rows.count()).filter(|&row| nth[row] == look || nth[row] == 1);
            let row = |row: usize| Row {
                stratum: strata[row],
                compared: nth[row] == look,
                outcome: f64::from(u8::from(rows.clicked[row])),
                user: rows.users[row],
            };
            stratified::risk_ratio(&both.map(row).collect::<Vec<_>>(), settings.alpha)
        };
        let (ratio, naive) = (against_first(&strata), against_first(&everybody));
        let impressions = own.len() as u64;
        looks.push(Look { nth: look, impressions, clicks, ctr: clicks as f64 / impressions.max(1) as f64, ratio, naive });
    }
    let tired = looks.iter().find(|look| look.ratio.and_then(|ratio| ratio.interval).is_some_and(|interval| interval.high < WORTH));
    let (suggested_cap, reason) = match tired {
        Some(look) => (Some(look.nth - 1), format!("look {} is worth less than half of the first, beyond chance", look.nth)),
        None => (None, "no look is worth less than half of the first beyond chance".to_owned()),
    };
    Some(Frequency { looks, suggested_cap, reason })
}

#[cfg(test)]
mod tests {
    use super::super::night::small::{Seen, rows};
    use super::*;

    /// Users, their number of looks, and what the sum of a user's number and a look must be a multiple of for a click.
    type Group = (u64, u32, fn(u32) -> u64);

    fn day(groups: &[Group]) -> Rows {
        let mut seen = Vec::new();
        let mut first = 0;
        for &(users, looks, every) in groups {
            for look in 1..=looks {
                let row = |user: u64| Seen {
                    user: first + user,
                    hour: look.into(),
                    clicked: (user + u64::from(look)).is_multiple_of(every(look)),
                    ..Seen::default()
                };
                seen.extend((0..users).map(row));
            }
            first += users;
        }
        rows(&seen)
    }

    fn measured(rows: &Rows) -> Frequency {
        measure(&EvaluateSettings::default(), rows, &mut Vec::new()).unwrap()
    }

    #[test]
    fn heavy_users_who_click_less_are_no_fatigue() {
        // Two looks of those who click on one in five, eight of those who click on one in fifty; every look is worth the same.
        let found = measured(&day(&[(1_000, 2, |_| 5), (1_000, 8, |_| 50)]));
        assert_eq!(found.suggested_cap, None, "{found:?}");
        assert_eq!(found.looks.len(), 8);
        for look in &found.looks {
            assert!((look.ratio.unwrap().value - 1.0).abs() < 1e-12, "{look:?}");
        }
        // By the naive curve the third look seems worth 20 in 1,000 against 220 in 2,000 first ones.
        let naive = found.looks[2].naive.unwrap();
        assert!((naive.value - 0.02 / 0.11).abs() < 1e-12 && naive.interval.unwrap().high < WORTH, "{naive:?}");
        assert_eq!((found.looks[2].impressions, found.looks[2].clicks), (1_000, 20));
    }

    #[test]
    fn fatigue_within_users_suggests_the_look_before_it() {
        // From the third look on a quarter of the clicks is left, whoever looks.
        let tired = |look: u32| if look < 3 { 5 } else { 20 };
        let found = measured(&day(&[(4_000, 6, tired), (4_000, 2, |_| 5)]));
        assert_eq!(found.suggested_cap, Some(2), "{found:?}");
        let ratio = found.looks[2].ratio.unwrap();
        let interval = ratio.interval.unwrap();
        assert!((ratio.value - 0.25).abs() < 1e-12 && interval.low < 0.25 && interval.high > 0.25, "{ratio:?}");
    }

    #[test]
    fn nothing_is_said_where_nobody_looked_twice() {
        let mut skipped = Vec::new();
        assert_eq!(measure(&EvaluateSettings::default(), &day(&[(10, 1, |_| 5)]), &mut skipped), None);
        assert_eq!(skipped, ["frequency: nobody saw an ad twice"]);
    }
}

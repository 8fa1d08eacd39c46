//! Frequency and fatigue: what the nth look at an ad is still worth.
//!
//! Users who see an ad ten times differ from those who see it once; so the nth look is compared to the first within the ad and, where
//! the log says so, the arm. The cap it suggests is the last look before the first that is surely worth less than half of the first.

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
    /// Clicks for each that a first look at the same ad would have had.
    pub ratio: Option<Estimate>,
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
    let named: Vec<String> =
        (0..rows.count()).map(|row| format!("{}\u{0}{}", rows.ads[row], rows.arms[row].as_deref().unwrap_or(""))).collect();
    let strata = stratified::strata(&named);
    let mut looks = Vec::new();
    for look in 1..=most {
        let own: Vec<usize> = (0..rows.count()).filter(|&row| nth[row] == look).collect();
        let clicks = own.iter().filter(|&&row| rows.clicked[row]).count() as u64;
        let ratio = if look == 1 {
            Some(Estimate { value: 1.0, interval: None })
        } else {
            let both = (0..rows.count()).filter(|&row| nth[row] == look || nth[row] == 1);
            let row = |row: usize| Row {
                stratum: strata[row],
                compared: nth[row] == look,
                outcome: f64::from(u8::from(rows.clicked[row])),
                user: rows.users[row],
            };
            stratified::risk_ratio(&both.map(row).collect::<Vec<_>>(), settings.alpha)
        };
        let impressions = own.len() as u64;
        looks.push(Look { nth: look, impressions, clicks, ctr: clicks as f64 / impressions.max(1) as f64, ratio });
    }
    let tired = looks.iter().find(|look| look.ratio.and_then(|ratio| ratio.interval).is_some_and(|interval| interval.high < WORTH));
    let (suggested_cap, reason) = match tired {
        Some(look) => (Some(look.nth - 1), format!("look {} is worth less than half of the first, beyond chance", look.nth)),
        None => (None, "no look is worth less than half of the first beyond chance".to_owned()),
    };
    Some(Frequency { looks, suggested_cap, reason })
}

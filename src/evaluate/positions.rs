//! Position bias: how much less an ad is clicked because of where it stands.
//!
//! The same ad at several positions, compared within the ad (a ratio over strata, `statistics::stratified`): what remains is the position's
//! doing, as long as the position of an ad's impression is chance, as it is where slots are filled one by one. Clicks over the sum of
//! these ratios are a click-through rate as if everything had stood at the reference position.

use super::EvaluateSettings;
use super::night::Rows;
use crate::statistics::Estimate;
use crate::statistics::stratified::{self, Row};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Positions {
    /// The first position with impressions.
    pub reference: i64,
    pub positions: Vec<Position>,
    /// Clicks per impression of each arm, as if at the reference position.
    pub ctr_at_reference: BTreeMap<String, Option<Estimate>>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Position {
    pub position: i64,
    pub impressions: u64,
    pub clicks: u64,
    pub ctr: f64,
    /// Clicks for each that the reference position would have had; 1 there.
    pub ratio: Option<Estimate>,
}

/// A position with fewer impressions is left out: its ratio would be noise.
const ENOUGH: usize = 100;

pub fn measure(settings: &EvaluateSettings, rows: &Rows, skipped: &mut Vec<String>) -> Option<Positions> {
    let positions = rows.positions.as_ref()?;
    let mut of_position: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (row, position) in positions.iter().enumerate() {
        if let Some(position) = position {
            of_position.entry(*position).or_default().push(row);
        }
    }
    of_position.retain(|_, rows| rows.len() >= ENOUGH);
    let Some((&reference, at_reference)) = of_position.first_key_value().filter(|_| of_position.len() > 1) else {
        skipped.push(format!("positions: fewer than two of them have {ENOUGH} impressions"));
        return None;
    };
    let strata = stratified::strata(&rows.ads);
    let row = |row: usize, compared: bool| Row {
        stratum: strata[row],
        compared,
        outcome: f64::from(u8::from(rows.clicked[row])),
        user: rows.users[row],
    };
    let mut found = Vec::new();
    for (&position, own) in &of_position {
        let clicks = own.iter().filter(|&&row| rows.clicked[row]).count() as u64;
        let ratio = if position == reference {
            Some(Estimate { value: 1.0, interval: None })
        } else {
            let both: Vec<Row> = own.iter().map(|&at| row(at, true)).chain(at_reference.iter().map(|&at| row(at, false))).collect();
            stratified::risk_ratio(&both, settings.alpha)
        };
        let impressions = own.len() as u64;
        found.push(Position { position, impressions, clicks, ctr: clicks as f64 / impressions as f64, ratio });
    }
    let mut positions = Positions { reference, positions: found, ctr_at_reference: BTreeMap::new() };
    let looked_at: Vec<f64> = (0..rows.count()).map(|row| positions.ratio_of(rows, row)).collect();
    let arms: std::collections::BTreeSet<&String> = rows.arms.iter().flatten().collect();
    for arm in arms {
        let of = |row: usize| match rows.arms[row].as_ref() == Some(arm) {
            true => [f64::from(u8::from(rows.clicked[row])), looked_at[row]],
            false => [0.0, 0.0],
        };
        positions.ctr_at_reference.insert(arm.clone(), rows.ratio(settings.alpha, of));
    }
    Some(positions)
}

impl Positions {
    /// The ratio of a row's position; 1 where it is not known.
    pub fn ratio_of(&self, rows: &Rows, row: usize) -> f64 {
        let position = rows.positions.as_ref().and_then(|positions| positions[row]);
        let found = self.positions.iter().find(|found| Some(found.position) == position);
        found.and_then(|found| found.ratio).map_or(1.0, |ratio| ratio.value)
    }
}

#[cfg(test)]
mod tests {
    use super::super::night::small::{Seen, rows};
    use super::*;

    /// So many impressions of an ad at a position, the first ones clicked; each of a user of its own.
    fn shown(ad: &'static str, position: i64, impressions: u64, clicks: u64) -> impl Iterator<Item = Seen> {
        let first = 10_000 * position as u64 + if ad == "popular" { 5_000 } else { 0 };
        (0..impressions).map(move |at| Seen { user: first + at, ad, position, clicked: at < clicks, ..Seen::default() })
    }

    #[test]
    fn a_position_is_judged_within_the_ad_and_not_by_who_stands_there() {
        // The second place halves every ad's clicks; the popular ad stands in the first most of the time.
        let seen = shown("plain", 1, 100, 20).chain(shown("plain", 2, 400, 40));
        let seen: Vec<Seen> = seen.chain(shown("popular", 1, 400, 160)).chain(shown("popular", 2, 100, 20)).collect();
        let found = measure(&EvaluateSettings::default(), &rows(&seen), &mut Vec::new()).expect("two positions");
        assert_eq!((found.reference, found.positions.len()), (1, 2));
        let second = &found.positions[1];
        assert_eq!((second.impressions, second.clicks, second.ctr), (500, 60, 0.12));
        let ratio = second.ratio.expect("both positions have clicks");
        assert!((ratio.value - 0.5).abs() < 1e-9, "{ratio:?}, where the raw rates say a third");
        assert!(ratio.interval.is_some_and(|interval| interval.low < 0.5 && 0.5 < interval.high && interval.high < 1.0), "{ratio:?}");
        let at_first = found.ctr_at_reference["champion"].expect("clicks").value;
        assert!((at_first - 240.0 / (500.0 + 0.5 * 500.0)).abs() < 1e-9, "{at_first}");
    }

    #[test]
    fn one_position_says_nothing() {
        let seen: Vec<Seen> = shown("plain", 1, 200, 20).chain(shown("plain", 2, 99, 9)).collect();
        let mut skipped = Vec::new();
        assert_eq!(measure(&EvaluateSettings::default(), &rows(&seen), &mut skipped), None);
        assert!(skipped[0].starts_with("positions: fewer than two"), "{skipped:?}");
    }
}

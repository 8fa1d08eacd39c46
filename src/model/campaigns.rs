//! Calibrated probabilities of a click, corrected campaign by campaign, by as much as the clicks of each can prove.
//!
//! Clicks of a campaign are Poisson around its expected clicks times a factor of its own; factors are Gamma with mean 1 and the shape
//! that the campaigns' scatter beyond Poisson says (DuMouchel, The American Statistician 1999). Where they scatter no more than chance
//! would have them, nothing is corrected; else a campaign's factor is its clicks over its expected ones, both with the shape added.

use super::features::{Encoded, FeatureMap, Role};
use super::{logit, rounded, sigmoid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct CampaignFactors {
    /// The clicks with which a campaign's own ratio counts half.
    pub shape: f64,
    /// The column of the encoded rows that tells campaigns apart.
    int: usize,
    /// Id there -> ln of the factor; another campaign has none.
    by_campaign: BTreeMap<i32, f64>,
}

const COLUMN: &str = "campaign_id";
/// A scatter estimated from fewer is chance.
const FEWEST_CAMPAIGNS: usize = 10;

impl CampaignFactors {
    /// From rows that training did not see, and their probabilities. `None` without campaigns, or where they are as expected.
    pub(super) fn fit(map: &FeatureMap, rows: &Encoded, clicked: &[bool], p_click: &[f64]) -> Option<Self> {
        let int = map.columns.iter().find(|column| column.name == COLUMN).and_then(|column| match column.role {
            Role::Category { int, .. } => Some(int),
            _ => None,
        })?;
        let mut campaigns: BTreeMap<i32, (f64, f64)> = BTreeMap::new();
        // Ids of no campaign: padding, unknown, missing.
        let none: Vec<i32> = map.neutral_rows().into_iter().map(|id| id as i32).collect();
        for (row, (clicked, p)) in clicked.iter().zip(p_click).enumerate() {
            let id = rows.ints_of(row)[int];
            if none.contains(&id) {
                continue;
            }
            let (clicks, expected) = campaigns.entry(id).or_default();
            *clicks += f64::from(u8::from(*clicked));
            *expected += p;
        }
        let shape = shape(campaigns.values())?;
        let factor = |(clicks, expected): (f64, f64)| rounded(((clicks + shape) / (expected + shape)).ln());
        Some(Self { shape: rounded(shape), int, by_campaign: campaigns.into_iter().map(|(id, sums)| (id, factor(sums))).collect() })
    }

    pub(super) fn apply(&self, rows: &Encoded, row: usize, p_click: f64) -> f64 {
        match self.by_campaign.get(&rows.ints_of(row)[self.int]) {
            Some(factor) => sigmoid(logit(p_click) + factor),
            None => p_click,
        }
    }
}

/// Of the Gamma, by moments: Var(clicks) = expected + expected^2 / shape. `None` where the scatter is not beyond Poisson's.
fn shape<'a>(campaigns: impl ExactSizeIterator<Item = &'a (f64, f64)>) -> Option<f64> {
    if campaigns.len() < FEWEST_CAMPAIGNS {
        return None;
    }
    let (mut beyond, mut squares) = (0.0, 0.0);
    for (clicks, expected) in campaigns {
        beyond += (clicks - expected).powi(2) - expected;
        squares += expected * expected;
    }
    (beyond > 0.0 && squares > 0.0).then(|| squares / beyond)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;
    use rand_distr::{Distribution, Gamma};

    /// Error of the probabilities, uncorrected and corrected, over rows of 40 campaigns whose rates scatter by `scatter`.
    fn errors(scatter: f64, seed: u64) -> (f64, f64, Option<f64>) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut rates = vec![1.0; 40];
        if scatter > 0.0 {
            let gamma = Gamma::new(1.0 / scatter, scatter).unwrap();
            rates.iter_mut().for_each(|rate| *rate = gamma.sample(&mut rng));
        }
        let rows = 40_000;
        let ints: Vec<i32> = (0..rows).map(|row| row as i32 % 40 + 2).collect();
        let encoded = Encoded { rows, n_ints: 1, n_floats: 0, ints, floats: Vec::new() };
        let p = vec![0.02; rows];
        let clicked: Vec<bool> = (0..rows).map(|row| rng.random::<f64>() < 0.02 * rates[row % 40]).collect();
        let role = serde_json::json!({"category": {"int": 0, "space": "campaign", "usual": 2}});
        let column = serde_json::json!({"name": COLUMN, "part": 0, "role": role});
        let map = serde_json::json!({
            "columns": [column], "spaces": {}, "matches": [], "dropped": {}, "n_ints": 1, "n_floats": 0, "table_rows": 50
        });
        let found = CampaignFactors::fit(&serde_json::from_value(map).unwrap(), &encoded, &clicked, &p);
        let error = |of: &dyn Fn(usize) -> f64| (0..40).map(|row| (of(row) - 0.02 * rates[row]).powi(2)).sum::<f64>();
        let corrected = |row: usize| found.as_ref().map_or(0.02, |found| found.apply(&encoded, row, 0.02));
        (error(&|_| 0.02), error(&corrected), found.as_ref().map(|found| found.shape))
    }

    #[test]
    fn campaigns_that_differ_are_corrected_and_those_that_do_not_are_left() {
        let (mut shapes, mut noise) = (0.0, 0.0);
        for seed in 0..20 {
            let (before, after, shape) = errors(0.25, seed);
            assert!(after < 0.5 * before, "{seed}: {after} {before}");
            shapes += shape.expect("they differ").recip() / 20.0;
            noise += errors(0.0, seed).1 / 20.0;
        }
        assert!((shapes - 0.25).abs() < 0.08, "the scatter is found: {shapes}");
        assert!(noise < 40.0 * (0.02f64 * 0.1).powi(2), "less than a tenth of the rate is added to equal campaigns: {noise}");
    }
}

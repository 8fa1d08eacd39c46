//! How far an off-policy estimator limits the weight of a row: given, or chosen by the data.

use super::ope::{Estimator, Rounds};
use super::{ab, distribution, finite};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The limit of each estimator that has one. Weights: lower is less variance and more bias; sub-Gaussian: in [0, 1], higher is.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Limits {
    /// The largest weight.
    pub clipped_ips: f64,
    /// The largest weight at which a row's own reward is looked at.
    pub switch_dr: f64,
    /// The weight becomes l w / (w^2 + l).
    pub dros: f64,
    /// The weight becomes w / (1 - l + l w).
    pub sub_gaussian_ips: f64,
    pub sub_gaussian_dr: f64,
}

/// Of the estimates that are compared, so many confidence half-widths may lie between two that agree (Su et al. 2020).
const SLACK: f64 = 1.449_489_742_783_178; // sqrt(6) - 1
/// Each half-width leaves out so much on one side.
const DELTA: f64 = 0.1;

impl Limits {
    pub fn fixed(weight: f64, sub_gaussian: f64) -> Self {
        Self { clipped_ips: weight, switch_dr: weight, dros: weight, sub_gaussian_ips: sub_gaussian, sub_gaussian_dr: sub_gaussian }
    }

    /// The limit of an estimator; none where it has none.
    pub fn of(&self, estimator: Estimator) -> Option<f64> {
        match estimator {
            Estimator::ClippedIps => Some(self.clipped_ips),
            Estimator::SwitchDr => Some(self.switch_dr),
            Estimator::Dros => Some(self.dros),
            Estimator::SubGaussianIps => Some(self.sub_gaussian_ips),
            Estimator::SubGaussianDr => Some(self.sub_gaussian_dr),
            _ => None,
        }
    }

    fn set(&mut self, estimator: Estimator, limit: f64) {
        match estimator {
            Estimator::ClippedIps => self.clipped_ips = limit,
            Estimator::SwitchDr => self.switch_dr = limit,
            Estimator::Dros => self.dros = limit,
            Estimator::SubGaussianIps => self.sub_gaussian_ips = limit,
            Estimator::SubGaussianDr => self.sub_gaussian_dr = limit,
            _ => {}
        }
    }

    /// Limits by SLOPE (Su, Srinath and Krishnamurthy 2020): from the widest estimate to the narrowest, as far as each still agrees with
    /// all before it. Candidates are quantiles of the weights.
    pub fn by_slope(rounds: &Rounds<'_>) -> Self {
        let mut limits = Self::fixed(10.0, 0.1);
        let weights: Vec<f64> = rounds.targets.iter().zip(rounds.propensities).map(|(target, logged)| target / logged).collect();
        if weights.is_empty() {
            return limits;
        }
        let mut sorted = weights.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let quantile = |share: f64| sorted[((sorted.len() - 1) as f64 * share) as usize].max(1.0);
        let by_weight = [0.5, 0.75, 0.9, 0.95, 0.99, 0.995, 0.999, 1.0].map(quantile);
        let by_square = by_weight.map(|weight| weight * weight);
        let sub_gaussian = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 0.6, 1.0];
        for (estimator, candidates) in [
            (Estimator::ClippedIps, by_weight),
            (Estimator::SwitchDr, by_weight),
            (Estimator::Dros, by_square),
            (Estimator::SubGaussianIps, sub_gaussian),
            (Estimator::SubGaussianDr, sub_gaussian),
        ] {
            if rounds.model.is_some() || !estimator.is_modelled() {
                limits.set(estimator, slope(rounds, &weights, estimator, &candidates));
            }
        }
        limits
    }
}

fn slope(rounds: &Rounds<'_>, weights: &[f64], estimator: Estimator, candidates: &[f64]) -> f64 {
    let mut tried: Vec<Tried> = candidates.iter().map(|&limit| try_out(rounds, weights, estimator, limit)).collect();
    tried.sort_by(|a, b| b.half_width.total_cmp(&a.half_width));
    let agrees = |i: usize| {
        let [value, half_width] = [tried[i].value, tried[i].half_width];
        tried[..i].iter().all(|before| (before.value - value).abs() <= half_width + SLACK * before.half_width)
    };
    let last = (1..tried.len()).take_while(|&i| agrees(i)).last().unwrap_or(0);
    tried[last].limit
}

struct Tried {
    limit: f64,
    value: f64,
    half_width: f64,
}

/// The estimate under a limit and its half-width, from the spread between users.
fn try_out(rounds: &Rounds<'_>, weights: &[f64], estimator: Estimator, limit: f64) -> Tried {
    let mut limits = Limits::fixed(limit, limit);
    limits.set(estimator, limit);
    let contribution = |row: usize| {
        let w = estimator.limited(weights[row], &limits);
        match rounds.model.filter(|_| estimator.is_modelled()) {
            Some(model) => model.target[row] + w * (rounds.rewards[row] - model.chosen[row]),
            None => w * rounds.rewards[row],
        }
    };
    // In the order of users, so that a sum has one order.
    let mut sums: BTreeMap<u64, (f64, f64)> = BTreeMap::new();
    for (row, user) in rounds.users.iter().enumerate() {
        let sum = sums.entry(*user).or_default();
        *sum = (sum.0 + contribution(row), sum.1 + 1.0);
    }
    let (values, rows): (Vec<f64>, Vec<f64>) = sums.into_values().unzip();
    let found = ab::ratio(&values, &rows);
    let half_width = found.and_then(|arm| {
        let users = arm.users as f64;
        finite(distribution::student_critical(2.0 * DELTA, users - 1.0) * (arm.variance / users).sqrt())
    });
    Tried { limit, value: found.map_or(0.0, |arm| arm.mean), half_width: half_width.unwrap_or(f64::INFINITY) }
}

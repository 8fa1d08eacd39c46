//! Measurement: how good a model, a table or an arm is, and how sure of it one may be. Pure functions on columns, which every stage
//! may call; nothing here reads a clock, and what is random is a hash of its seed.
//!
//! A statistic that the data do not determine is `None`, never NaN: the facts go into JSON. Columns of one table have one length;
//! anything else is a bug and panics.

pub mod ab;
pub mod bootstrap;
pub mod calibration;
pub mod curves;
pub mod delay;
mod distribution;
pub mod kmeans;
pub mod metrics;
pub mod moments;
pub mod ope;
pub mod psi;
pub mod ope_limits;
mod ope_marginal;
pub mod rank_overlap;
pub mod reward_model;
pub mod shift;
pub mod stratified;

use serde::{Deserialize, Serialize};

/// A two-sided confidence interval.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

impl Interval {
    /// `value` give or take `half`; none where either is not a number.
    fn around(value: f64, half: f64) -> Option<Self> {
        let (low, high) = (value - half, value + half);
        (low.is_finite() && high.is_finite()).then_some(Self { low, high })
    }
}

/// A number and how sure of it one may be.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Estimate {
    pub value: f64,
    pub interval: Option<Interval>,
}

impl Estimate {
    /// Of the same quantity less a constant: ROI is ROAS less 1.
    pub fn less(self, constant: f64) -> Self {
        let interval = self.interval.map(|Interval { low, high }| Interval { low: low - constant, high: high - constant });
        Self { value: self.value - constant, interval }
    }
}

fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().copied().collect::<moments::Wide>().value() / values.len() as f64
}

/// Sample covariance (divisor n - 1) of two columns.
fn covariance(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "columns of one table");
    moments::Moments::of(&[a, b]).covariance(0, 1)
}

/// Row numbers by ascending value.
fn order(values: &[f64]) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..values.len()).collect();
    rows.sort_unstable_by(|&a, &b| values[a].total_cmp(&values[b]));
    rows
}

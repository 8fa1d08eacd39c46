//! The baseline: linfa's logistic regression on a dense matrix.
//!
//! It gets every float of the feature map, small categories one-hot, and of larger ones the log-odds that a value had in training,
//! smoothed. A row's own label must not be in its inputs, so training rows get log-odds learned on the other folds.

use super::features::{Encoded, FeatureMap, Role};
use super::network::Weight;
use super::{logit, smoothed_rate};
use crate::error::{Error, Result};
use linfa::Dataset;
use linfa::traits::Fit;
use linfa_logistic::LogisticRegression;
use ndarray::{Array1, Array2, ShapeBuilder};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The dense view of encoded rows: floats, then the one-hot columns, then the log-odds.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(super) struct Dense {
    n_floats: usize,
    /// (column of the integer matrix, id).
    one_hot: Vec<(usize, i32)>,
    /// Column of the integer matrix -> id -> log-odds over those of all rows.
    log_odds: BTreeMap<usize, BTreeMap<i32, f32>>,
}

/// A category of more values than this gets log-odds: one-hot columns cost time and learn little of rare values.
const ONE_HOT_VALUES: usize = 48;
/// A value's log-odds are smoothed by so many rows of the base rate.
const SMOOTHING_ROWS: f64 = 50.0;
const FOLDS: usize = 5;
/// At most so many rows are fitted: every positive and a sample of the negatives, whose share is undone in the intercept (King and
/// Zeng 2001). The solver has one thread.
const FIT_ROWS: usize = 200_000;
const ITERATIONS: u64 = 100;

impl Dense {
    /// Learns the view; returns also what each training row gets in place of the log-odds of its own fold, row-major.
    pub fn fit(map: &FeatureMap, rows: &Encoded, labels: &[bool]) -> (Self, Vec<f32>) {
        let mut dense = Self { n_floats: rows.n_floats, one_hot: Vec::new(), log_odds: BTreeMap::new() };
        let mut out_of_fold = Vec::new();
        for column in &map.columns {
            let Role::Category { int, .. } = column.role else { continue };
            let mut counts: BTreeMap<i32, Counts> = BTreeMap::new();
            for (row, label) in labels.iter().enumerate() {
                counts.entry(rows.ints_of(row)[int]).or_default().add(row % FOLDS, *label);
            }
            if counts.len() <= ONE_HOT_VALUES {
                dense.one_hot.extend(counts.keys().map(|id| (int, *id)));
                continue;
            }
            let base = logit(smoothed_rate(labels.iter().filter(|label| **label).count(), labels.len()));
            dense.log_odds.insert(int, counts.iter().map(|(id, counts)| (*id, counts.log_odds(None, base))).collect());
            let by_fold: BTreeMap<i32, [f32; FOLDS]> =
                counts.iter().map(|(id, counts)| (*id, std::array::from_fn(|fold| counts.log_odds(Some(fold), base)))).collect();
            out_of_fold.push((0..rows.rows).map(|row| by_fold[&rows.ints_of(row)[int]][row % FOLDS]).collect::<Vec<f32>>());
        }
        let row_major = (0..rows.rows).flat_map(|row| out_of_fold.iter().map(move |column| column[row])).collect();
        (dense, row_major)
    }

    pub fn width(&self) -> usize {
        self.n_floats + self.one_hot.len() + self.log_odds.len()
    }

    /// Fills the dense row of an encoded one.
    fn fill(&self, rows: &Encoded, row: usize, out: &mut [f32]) {
        let ints = rows.ints_of(row);
        out[..self.n_floats].copy_from_slice(rows.floats_of(row));
        let (one_hot, log_odds) = out[self.n_floats..].split_at_mut(self.one_hot.len());
        one_hot.iter_mut().zip(&self.one_hot).for_each(|(out, (int, id))| *out = f32::from(u8::from(ints[*int] == *id)));
        log_odds.iter_mut().zip(&self.log_odds).for_each(|(out, (int, of))| *out = of.get(&ints[*int]).copied().unwrap_or(0.0));
    }

    /// The dense rows as encoded rows without integers; training rows pass what [`Dense::fit`] returned.
    pub fn rows(&self, rows: &Encoded, out_of_fold: Option<&[f32]>) -> Encoded {
        let width = self.width();
        let mut floats = vec![0.0; rows.rows * width];
        for (row, out) in floats.chunks_exact_mut(width.max(1)).enumerate() {
            self.fill(rows, row, out);
            if let Some(own) = out_of_fold {
                let n = self.log_odds.len();
                out[width - n..].copy_from_slice(&own[row * n..][..n]);
            }
        }
        Encoded { rows: rows.rows, n_ints: 0, n_floats: width, ints: Vec::new(), floats }
    }
}

/// Rows and positives of a value, by fold.
#[derive(Default)]
struct Counts {
    rows: [u32; FOLDS],
    positives: [u32; FOLDS],
}

impl Counts {
    fn add(&mut self, fold: usize, label: bool) {
        self.rows[fold] += 1;
        self.positives[fold] += u32::from(label);
    }

    /// Log-odds over `base`, seen from all folds but one.
    fn log_odds(&self, without: Option<usize>, base: f64) -> f32 {
        let of = |counts: &[u32; FOLDS]| f64::from(counts.iter().sum::<u32>() - without.map_or(0, |fold| counts[fold]));
        let rate = (of(&self.positives) + SMOOTHING_ROWS * super::sigmoid(base)) / (of(&self.rows) + SMOOTHING_ROWS);
        (logit(rate) - base) as f32
    }
}

/// Fits a logistic regression on dense rows with both classes; weights, the intercept last.
pub(super) fn fit(rows: &Encoded, labels: &[bool], l2: f64) -> Result<Weight> {
    let positives = labels.iter().filter(|label| **label).count();
    let negatives = labels.len() - positives;
    let wanted = FIT_ROWS.saturating_sub(positives).max(FIT_ROWS / 2).min(negatives);
    // Every negative whose number passes a multiple of negatives / wanted: spread evenly, exactly `wanted` of them.
    let mut seen = 0;
    let mut keep = |label: bool| {
        if label {
            return true;
        }
        seen += 1;
        seen * wanted / negatives > (seen - 1) * wanted / negatives
    };
    let chosen: Vec<usize> = (0..labels.len()).filter(|row| keep(labels[*row])).collect();
    // Column-major: linfa multiplies by the transpose, which is slow otherwise.
    let mut matrix = Array2::<f64>::zeros((chosen.len(), rows.n_floats).f());
    for (i, row) in chosen.iter().enumerate() {
        matrix.row_mut(i).iter_mut().zip(rows.floats_of(*row)).for_each(|(cell, x)| *cell = f64::from(*x));
    }
    let targets = Array1::from_iter(chosen.iter().map(|row| labels[*row]));
    let dataset = Dataset::new(matrix, targets);
    let mut start = Array1::<f64>::zeros(rows.n_floats + 1);
    let solve = |start: Array1<f64>, tolerance: f64| {
        let parameters = LogisticRegression::default().alpha(l2).max_iterations(ITERATIONS).initial_params(start);
        // The gradient is a sum over rows.
        parameters.gradient_tolerance(tolerance * chosen.len() as f64).fit(&dataset)
    };
    start[rows.n_floats] = 0.0;
    // Near the optimum the line search can find no better point and fails; a wider tolerance stops before.
    let fitted = solve(start.clone(), 1e-6).or_else(|_| solve(start.clone(), 1e-5)).or_else(|_| solve(start, 1e-3));
    let fitted = fitted.map_err(|error| Error::internal(format_args!("linfa: {error}")))?;
    // linfa calls the larger class positive.
    let sign = if fitted.labels().pos.class { 1.0 } else { -1.0 };
    let kept = (wanted as f64 / negatives as f64).ln();
    let weights = fitted.params().iter().map(|w| sign * w).chain([sign * fitted.intercept() + kept]);
    Ok(Weight { shape: vec![rows.n_floats + 1], data: weights.map(|w| w as f32).collect() })
}

/// Logits of dense rows.
pub(super) fn predict(weights: &Weight, rows: &Encoded) -> Vec<f64> {
    let (intercept, weights) = weights.data.split_last().expect("a fit has an intercept");
    let logit = |row: usize| {
        let sum: f64 = rows.floats_of(row).iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        sum + f64::from(*intercept)
    };
    (0..rows.rows).map(logit).collect()
}

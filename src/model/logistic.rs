//! The baseline: linfa's logistic regression on a dense matrix.
//!
//! It gets every float of the feature map, small categories and bins of numbers one-hot, and of larger ones the log-odds that a value
//! had in training, smoothed, and how frequent it was. A row's own label must not be in its inputs, so training rows get log-odds
//! learned on the other folds.

use super::features::{Encoded, FeatureMap, Role};
use super::network::Weight;
use super::{logit, smoothed_rate};
use crate::error::{Error, Result};
use crate::statistics::metrics;
use linfa::Dataset;
use linfa::traits::Fit;
use linfa_logistic::LogisticRegression;
use ndarray::{Array1, Array2, ShapeBuilder};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// The dense view of encoded rows: floats, then the one-hot columns, then log-odds and frequency of each larger category.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(super) struct Dense {
    n_floats: usize,
    /// (column of the integer matrix, id).
    one_hot: Vec<(usize, i32)>,
    /// Column of the integer matrix -> id -> log-odds over those of all rows, and ln(1 + rows of the id) over that of all rows.
    encoded: BTreeMap<usize, BTreeMap<i32, [f32; 2]>>,
}

/// A category of more values than this is encoded by its log-odds: one-hot columns cost time and learn little of rare values.
const ONE_HOT_VALUES: usize = 48;
/// A value's log-odds are smoothed by so many rows of the base rate.
const SMOOTHING_ROWS: f64 = 20.0;
const FOLDS: usize = 5;
/// At most so many rows are fitted: every positive and a sample of the negatives, whose share is undone in the intercept (King and
/// Zeng 2001). The solver has one thread. And at most so many numbers, which bounds memory.
const FIT_ROWS: usize = 200_000;
const FIT_NUMBERS: usize = 40_000_000;
const ITERATIONS: u64 = 100;

impl Dense {
    /// Learns the view; returns also what each training row gets in place of the encodings that its own fold taught, row-major.
    pub fn fit(map: &FeatureMap, rows: &Encoded, labels: &[bool]) -> (Self, Vec<f32>) {
        let mut dense = Self { n_floats: rows.n_floats, one_hot: Vec::new(), encoded: BTreeMap::new() };
        let mut out_of_fold = Vec::new();
        let base = logit(smoothed_rate(labels.iter().filter(|label| **label).count(), labels.len()));
        for column in &map.columns {
            let int = match &column.role {
                Role::Category { int, .. } => *int,
                Role::Number { bins: Some(bins), .. } => bins.int,
                _ => continue,
            };
            let mut counts: HashMap<i32, Counts> = HashMap::new();
            for (row, label) in labels.iter().enumerate() {
                counts.entry(rows.ints_of(row)[int]).or_default().add(row % FOLDS, *label);
            }
            if counts.len() <= ONE_HOT_VALUES {
                dense.one_hot.extend(counts.keys().copied().collect::<BTreeSet<i32>>().into_iter().map(|id| (int, id)));
                continue;
            }
            let encode = |fold| move |(id, counts): (&i32, &Counts)| (*id, counts.encode(fold, base, labels.len()));
            let by_fold: [HashMap<i32, [f32; 2]>; FOLDS] = std::array::from_fn(|fold| counts.iter().map(encode(Some(fold))).collect());
            out_of_fold.push((0..rows.rows).map(|row| by_fold[row % FOLDS][&rows.ints_of(row)[int]]).collect::<Vec<_>>());
            dense.encoded.insert(int, counts.iter().map(encode(None)).collect());
        }
        let row_major = (0..rows.rows).flat_map(|row| out_of_fold.iter().flat_map(move |column| column[row])).collect();
        (dense, row_major)
    }

    pub fn width(&self) -> usize {
        self.n_floats + self.one_hot.len() + 2 * self.encoded.len()
    }

    /// Fills the dense row of an encoded one.
    fn fill(&self, rows: &Encoded, row: usize, out: &mut [f32]) {
        let ints = rows.ints_of(row);
        out[..self.n_floats].copy_from_slice(rows.floats_of(row));
        let (one_hot, encoded) = out[self.n_floats..].split_at_mut(self.one_hot.len());
        one_hot.iter_mut().zip(&self.one_hot).for_each(|(out, (int, id))| *out = f32::from(u8::from(ints[*int] == *id)));
        for (out, (int, of)) in encoded.chunks_exact_mut(2).zip(&self.encoded) {
            out.copy_from_slice(&of.get(&ints[*int]).copied().unwrap_or_default());
        }
    }

    /// The chosen rows as encoded rows without integers; training rows pass what [`Dense::fit`] returned.
    pub fn rows(&self, rows: &Encoded, out_of_fold: Option<&[f32]>, chosen: &[usize]) -> Encoded {
        let width = self.width();
        let mut floats = vec![0.0; chosen.len() * width];
        for (row, out) in chosen.iter().zip(floats.chunks_exact_mut(width.max(1))) {
            self.fill(rows, *row, out);
            if let Some(own) = out_of_fold {
                let n = 2 * self.encoded.len();
                out[width - n..].copy_from_slice(&own[row * n..][..n]);
            }
        }
        Encoded { rows: chosen.len(), n_ints: 0, n_floats: width, ints: Vec::new(), floats }
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

    /// Log-odds over `base` and frequency among `all` rows, seen from all folds but one.
    fn encode(&self, without: Option<usize>, base: f64, all: usize) -> [f32; 2] {
        let of = |counts: &[u32; FOLDS]| f64::from(counts.iter().sum::<u32>() - without.map_or(0, |fold| counts[fold]));
        // A fold sees a share of the rows: as many as all are expected to hold.
        let seen = of(&self.rows) * without.map_or(1.0, |_| FOLDS as f64 / (FOLDS - 1) as f64);
        let rate = (of(&self.positives) + SMOOTHING_ROWS * super::sigmoid(base)) / (of(&self.rows) + SMOOTHING_ROWS);
        [(logit(rate) - base) as f32, (seen.ln_1p() / (all as f64).ln_1p()) as f32]
    }
}

/// Fits a logistic regression on `rows` with both classes, of which `dense` makes dense ones; weights, the intercept last. Of the
/// strengths of L2, that with the least log-loss on the validation rows.
pub(super) fn fit(
    dense: impl Fn(&[usize]) -> Encoded,
    rows: &[usize],
    labels: &[bool],
    (valid, valid_labels): (&Encoded, &[bool]),
    strengths: &[f64],
) -> Result<Weight> {
    let positives = labels.iter().filter(|label| **label).count();
    let negatives = labels.len() - positives;
    let limit = FIT_ROWS.min(FIT_NUMBERS / valid.n_floats.max(1));
    let wanted_positives = positives.min(limit / 2);
    let wanted_negatives = (limit - wanted_positives).min(negatives);
    // Every row of a class whose number passes a multiple of all / wanted: spread evenly, exactly `wanted` of them.
    let mut seen = [0, 0];
    let mut keep = |label: bool| {
        let (wanted, all) = if label { (wanted_positives, positives) } else { (wanted_negatives, negatives) };
        let seen = &mut seen[usize::from(label)];
        *seen += 1;
        *seen * wanted / all > (*seen - 1) * wanted / all
    };
    let chosen: Vec<usize> = (0..labels.len()).filter(|row| keep(labels[*row])).collect();
    let encoded = dense(&chosen.iter().map(|row| rows[*row]).collect::<Vec<_>>());
    // Column-major: linfa multiplies by the transpose, which is slow otherwise.
    let mut matrix = Array2::<f64>::zeros((chosen.len(), encoded.n_floats).f());
    for i in 0..chosen.len() {
        matrix.row_mut(i).iter_mut().zip(encoded.floats_of(i)).for_each(|(cell, x)| *cell = f64::from(*x));
    }
    let targets = Array1::from_iter(chosen.iter().map(|row| labels[*row]));
    let dataset = Dataset::new(matrix, targets);
    let kept = (wanted_negatives as f64 / negatives as f64).ln() - (wanted_positives as f64 / positives as f64).ln();
    let mut start = Array1::<f64>::zeros(encoded.n_floats + 1);
    let mut best: Option<(f64, Weight)> = None;
    // From strong to weak: each solution is where the next begins.
    let mut strengths = strengths.to_vec();
    strengths.sort_by(|a, b| b.total_cmp(a));
    for l2 in strengths {
        let (solution, weight) = solve(&dataset, &start, l2, kept)?;
        start = solution;
        let scores: Vec<f64> = predict(&weight, valid).into_iter().map(super::sigmoid).collect();
        let loss = metrics::logloss(valid_labels, &scores).unwrap_or(f64::INFINITY);
        if best.as_ref().is_none_or(|(least, _)| loss < *least) {
            best = Some((loss, weight));
        }
    }
    best.map(|(_, weight)| weight).ok_or_else(|| Error::usage("[model] baseline_l2 holds no value"))
}

/// Weights of a logistic regression of `targets` on `matrix` [rows, columns], column-major, without the intercept.
pub(super) fn separate(matrix: Array2<f64>, targets: Array1<bool>, l2: f64) -> Result<Vec<f32>> {
    let start = Array1::zeros(matrix.ncols() + 1);
    let (_, mut weight) = solve(&Dataset::new(matrix, targets), &start, l2, 0.0)?;
    weight.data.pop();
    Ok(weight.data)
}

/// The solution, to begin the next with, and the weights, whose intercept `kept` corrects.
fn solve(dataset: &Dataset<f64, bool, ndarray::Ix1>, start: &Array1<f64>, l2: f64, kept: f64) -> Result<(Array1<f64>, Weight)> {
    let fit = |tolerance: f64| {
        let parameters = LogisticRegression::default().alpha(l2).max_iterations(ITERATIONS).initial_params(start.clone());
        // The gradient is a sum over rows.
        parameters.gradient_tolerance(tolerance * dataset.records().nrows() as f64).fit(dataset)
    };
    // Near the optimum the line search can find no better point and fails; a wider tolerance stops before.
    let fitted = fit(1e-6).or_else(|_| fit(1e-5)).or_else(|_| fit(1e-3));
    let fitted = fitted.map_err(|error| Error::internal(format_args!("linfa: {error}")))?;
    let solution: Array1<f64> = fitted.params().iter().copied().chain([fitted.intercept()]).collect();
    // linfa calls the larger class positive.
    let sign = if fitted.labels().pos.class { 1.0 } else { -1.0 };
    let mut data: Vec<f32> = solution.iter().map(|w| (sign * w) as f32).collect();
    let intercept = data.last_mut().expect("an intercept");
    *intercept = (sign * solution[solution.len() - 1] + kept) as f32;
    Ok((solution, Weight { shape: vec![data.len()], data }))
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

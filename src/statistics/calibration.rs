//! Scores -> probabilities that mean what they say: Platt's line on the logit, or an isotonic step function.
//!
//! A calibrator is fitted on the latest mature day, never on rows that the model learned from.

use super::order;
use serde::{Deserialize, Serialize};

/// From so many positives on an isotonic fit has enough under each step; below, Platt's two parameters are all that the data bear.
pub const ISOTONIC_POSITIVES: usize = 10_000;

/// A fitted map from probability to probability.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Calibrator {
    /// Nothing could be learned: scores pass as they are.
    Identity,
    /// logistic(slope * logit(score) + intercept).
    Platt { slope: f64, intercept: f64 },
    /// Linear between the points, flat beyond the first and last.
    Isotonic { scores: Vec<f64>, values: Vec<f64> },
}

impl Calibrator {
    /// The method that the number of positives bears.
    pub fn fit(labels: &[bool], scores: &[f64]) -> Self {
        if labels.iter().filter(|label| **label).count() < ISOTONIC_POSITIVES { Self::platt(labels, scores) } else { Self::isotonic(labels, scores) }
    }

    /// Platt (1999), with his smoothed targets: they keep the line finite where a threshold parts the classes. With one class only
    /// the data do not determine a line, and the scores pass as they are.
    pub fn platt(labels: &[bool], scores: &[f64]) -> Self {
        if !fits(labels, scores) {
            return Self::Identity;
        }
        let positives = labels.iter().filter(|label| **label).count() as f64;
        let negatives = labels.len() as f64 - positives;
        let (up, down) = ((positives + 1.0) / (positives + 2.0), 1.0 / (negatives + 2.0));
        let targets: Vec<f64> = labels.iter().map(|&label| if label { up } else { down }).collect();
        let logits: Vec<f64> = scores.iter().map(|&score| logit(score)).collect();
        let (slope, intercept) = logistic_line(&logits, &targets).unwrap_or_else(|| {
            // One score for all rows has no slope: move it to the rate.
            (1.0, logit(super::mean(&targets)) - super::mean(&logits))
        });
        Self::Platt { slope, intercept }
    }

    /// Least squares among rising functions, by pooling adjacent violators; rows of one score are one point.
    pub fn isotonic(labels: &[bool], scores: &[f64]) -> Self {
        if !fits(labels, scores) {
            return Self::Identity;
        }
        struct Block {
            first: f64,
            last: f64,
            positives: f64,
            rows: f64,
        }
        let mut blocks: Vec<Block> = Vec::new();
        for tied in order(scores).chunk_by(|&a, &b| scores[a] == scores[b]) {
            let score = scores[tied[0]];
            let positives = tied.iter().filter(|&&row| labels[row]).count() as f64;
            let mut block = Block { first: score, last: score, positives, rows: tied.len() as f64 };
            // Compared crosswise: counts are whole numbers, so equal rates are seen as equal.
            while let Some(below) = blocks.pop_if(|below| below.positives * block.rows >= block.positives * below.rows) {
                block = Block {
                    first: below.first,
                    last: block.last,
                    positives: below.positives + block.positives,
                    rows: below.rows + block.rows,
                };
            }
            blocks.push(block);
        }
        let (mut points, mut values) = (Vec::new(), Vec::new());
        for block in blocks {
            let value = block.positives / block.rows;
            points.push(block.first);
            values.push(value);
            if block.last > block.first {
                points.push(block.last);
                values.push(value);
            }
        }
        Self::Isotonic { scores: points, values }
    }

    pub fn apply(&self, score: f64) -> f64 {
        match self {
            Self::Identity => score,
            Self::Platt { slope, intercept } => logistic(slope * logit(score) + intercept),
            Self::Isotonic { scores, values } => {
                let above = scores.partition_point(|&point| point <= score);
                if above == 0 || above == scores.len() {
                    return values[above.saturating_sub(1)];
                }
                let (left, right) = (scores[above - 1], scores[above]);
                let share = (score - left) / (right - left);
                values[above - 1] + share * (values[above] - values[above - 1])
            }
        }
    }

    pub fn apply_all(&self, scores: &[f64]) -> Vec<f64> {
        scores.iter().map(|&score| self.apply(score)).collect()
    }
}

/// Both classes, and scores that are numbers.
fn fits(labels: &[bool], scores: &[f64]) -> bool {
    assert_eq!(labels.len(), scores.len(), "one score a label");
    labels.contains(&true) && labels.contains(&false) && !scores.iter().any(|score| score.is_nan())
}

/// Undoes the training on a share `kept` of the negatives: q = p / (p + (1 - p) / kept).
pub fn undo_sampling(score: f64, kept: f64) -> f64 {
    score / (score + (1.0 - score) / kept)
}

/// ln(p / (1 - p)), p kept a rounding error away from 0 and 1.
pub(super) fn logit(p: f64) -> f64 {
    let p = p.clamp(f64::EPSILON, 1.0 - f64::EPSILON);
    p.ln() - (-p).ln_1p()
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Slope and intercept of least log-loss of `targets` (in [0, 1]) on logistic(slope * x + intercept), by Newton with step halving; none
/// when they are not determined (one x only) or not finite (a threshold parts the classes).
pub(super) fn logistic_line(x: &[f64], targets: &[f64]) -> Option<(f64, f64)> {
    // About the mean, slope and intercept are nearly independent of each other.
    let centre = super::mean(x);
    let points = || x.iter().map(|x| x - centre).zip(targets.iter().copied());
    let loss = |slope: f64, level: f64| -> f64 {
        points().map(|(x, target)| { let z = slope * x + level; z.max(0.0) + (-z.abs()).exp().ln_1p() - target * z }).sum()
    };
    let (mut slope, mut level) = (0.0, logit(super::mean(targets)));
    let mut current = loss(slope, level);
    for _ in 0..100 {
        let (mut down_level, mut down_slope) = (0.0, 0.0);
        let (mut level2, mut cross, mut slope2) = (0.0, 0.0, 0.0);
        for (x, target) in points() {
            let p = logistic(slope * x + level);
            let bend = p * (1.0 - p);
            down_level += target - p;
            down_slope += (target - p) * x;
            level2 += bend;
            cross += bend * x;
            slope2 += bend * x * x;
        }
        let determinant = level2 * slope2 - cross * cross;
        if !determinant.is_finite() || determinant <= 1e-12 * level2 * slope2 {
            return None;
        }
        let mut step_level = (slope2 * down_level - cross * down_slope) / determinant;
        let mut step_slope = (level2 * down_slope - cross * down_level) / determinant;
        let mut next = loss(slope + step_slope, level + step_level);
        // A rounding error more is no more: the last steps are smaller than the loss can show.
        let enough = current + 1e-12 * current.abs();
        for _ in 0..40 {
            if next <= enough {
                break;
            }
            step_level /= 2.0;
            step_slope /= 2.0;
            next = loss(slope + step_slope, level + step_level);
        }
        (slope, level, current) = (slope + step_slope, level + step_level, next);
        let small = |step: f64, of: f64| step.abs() <= 1e-11 * (1.0 + of.abs());
        if small(step_slope, slope) && small(step_level, level) {
            return Some((slope, level - slope * centre));
        }
    }
    None
}

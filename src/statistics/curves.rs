//! What a ranking buys, as curves to draw: ROC, precision over recall, and lift.
//!
//! All three come from one walk down the scores, best first. Rows of one score are one step, so that the order of rows cannot
//! matter; the points are thinned to what a drawing can show.

use super::order;
use serde::{Deserialize, Serialize};

/// Points as `[x, y]`, x rising. All empty where the labels are of one class or a score is not a number.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
pub struct Curves {
    /// x: share of the negatives above the threshold; y: share of the positives above it.
    pub roc: Vec<[f64; 2]>,
    /// x: share of the positives above the threshold; y: share of positives among what is above it.
    pub precision_recall: Vec<[f64; 2]>,
    /// x: share of the rows above the threshold; y: positives among them over as many rows taken at random.
    pub lift: Vec<[f64; 2]>,
}

/// A drawing shows no more: a point a fiftieth of the x axis.
const STEP: f64 = 0.02;
/// The precision and the lift of a handful of rows are chance: these curves begin where so many, and this share, are above the threshold.
const FEW: f64 = 50.0;
const FEW_SHARE: f64 = 0.01;

pub fn curves(labels: &[bool], scores: &[f64]) -> Curves {
    assert_eq!(labels.len(), scores.len(), "one score a label");
    let rows = labels.len() as f64;
    let positives = labels.iter().filter(|label| **label).count() as f64;
    let negatives = rows - positives;
    if positives == 0.0 || negatives == 0.0 || scores.iter().any(|score| score.is_nan()) {
        return Curves::default();
    }
    let (mut up, mut down) = (0.0, 0.0);
    let (mut roc, mut precision_recall, mut lift) = (vec![[0.0, 0.0]], Vec::new(), Vec::new());
    for tied in order(scores).chunk_by(|&a, &b| scores[a] == scores[b]).rev() {
        let here = tied.iter().filter(|&&row| labels[row]).count() as f64;
        up += here;
        down += tied.len() as f64 - here;
        let seen = up + down;
        roc.push([down / negatives, up / positives]);
        if seen >= FEW.max(FEW_SHARE * rows).min(rows) {
            precision_recall.push([up / positives, up / seen]);
            lift.push([seen / rows, (up / positives) / (seen / rows)]);
        }
    }
    Curves { roc: thinned(&roc), precision_recall: thinned(&precision_recall), lift: thinned(&lift) }
}

/// The first and the last point, and between them one each time x or y has moved by a step; four decimals.
fn thinned(points: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let highest = points.iter().fold(0.0, |highest, point| f64::max(highest, point[1]));
    let rise = STEP * highest.max(f64::MIN_POSITIVE);
    let mut kept: Vec<[f64; 2]> = Vec::new();
    for (at, point) in points.iter().enumerate() {
        let far = kept.last().is_none_or(|last| (point[0] - last[0]).abs() >= STEP || (point[1] - last[1]).abs() >= rise);
        if far || at + 1 == points.len() {
            kept.push(*point);
        }
    }
    kept.iter().map(|point| point.map(|value| (value * 1e4).round() / 1e4)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::metrics::auc;
    use super::*;

    /// A repeatable spread of scores, higher for positives.
    fn sample(rows: usize) -> (Vec<bool>, Vec<f64>) {
        let noise = |row: usize| ((row * 7919) % 1009) as f64 / 1009.0;
        let labels: Vec<bool> = (0..rows).map(|row| row % 9 == 0).collect();
        let scores = labels.iter().enumerate().map(|(row, label)| noise(row) + if *label { 0.3 } else { 0.0 }).collect();
        (labels, scores)
    }

    #[test]
    fn the_area_below_the_thinned_roc_is_the_auc() {
        let (labels, scores) = sample(5000);
        let roc = curves(&labels, &scores).roc;
        let area: f64 = roc.windows(2).map(|pair| (pair[1][0] - pair[0][0]) * (pair[0][1] + pair[1][1]) / 2.0).sum();
        assert!((area - auc(&labels, &scores).expect("both classes")).abs() < 2e-3, "{area}");
        assert!(roc.len() <= 102, "{} points", roc.len());
        assert_eq!((roc[0], roc[roc.len() - 1]), ([0.0, 0.0], [1.0, 1.0]));
    }

    #[test]
    fn a_perfect_ranking_a_constant_one_and_none() {
        let labels = [true, false, false, false];
        let perfect = curves(&labels, &[0.9, 0.1, 0.2, 0.3]);
        assert!(perfect.roc.contains(&[0.0, 1.0]));
        assert_eq!(perfect.precision_recall, [[1.0, 0.25]], "four rows are all too few to part");
        let constant = curves(&labels, &[0.5; 4]);
        assert_eq!(constant.roc, [[0.0, 0.0], [1.0, 1.0]]);
        assert_eq!(constant.lift, [[1.0, 1.0]]);
        assert_eq!(curves(&[true; 4], &[0.5; 4]), Curves::default());
        assert_eq!(curves(&labels, &[0.5, f64::NAN, 0.5, 0.5]), Curves::default());
    }

    #[test]
    fn lift_ends_at_one_and_begins_above_for_a_ranking_that_knows_something() {
        let (labels, scores) = sample(5000);
        let lift = curves(&labels, &scores).lift;
        assert_eq!(lift[lift.len() - 1], [1.0, 1.0]);
        assert!(lift[0][1] > 2.0 && lift[0][0] >= 0.01, "{:?}", lift[0]);
    }
}

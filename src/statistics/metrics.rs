//! How good a model's probabilities are: ranking (AUC, GAUC, average precision), sharpness (log-loss, normalised entropy, Brier) and
//! calibration (ratio, expected calibration error, reliability).
//!
//! `labels` and `scores` are columns of one table. Where a metric is not determined (one class only, a score that is not a number) it
//! is `None`.

use super::calibration::{logistic_line, logit};
use super::distribution::{normal_critical, normal_two_sided};
use super::{Interval, covariance, finite, mean, order};
use serde::{Deserialize, Serialize};

/// Bins of the expected calibration error.
const ECE_BINS: usize = 15;

/// Area under the ROC curve; a tie between a positive and a negative counts half.
pub fn auc(labels: &[bool], scores: &[f64]) -> Option<f64> {
    check(labels, scores)?;
    area(&order(scores), labels, scores)
}

/// The area over the given rows, which stand in ascending order of score. Exact: it counts in integers.
fn area(rows: &[usize], labels: &[bool], scores: &[f64]) -> Option<f64> {
    let (mut negatives, mut positives, mut twice_area) = (0u64, 0u64, 0u64);
    for tied in rows.chunk_by(|&a, &b| scores[a] == scores[b]) {
        let up = positives_in(tied, labels);
        let down = tied.len() as u64 - up;
        twice_area += up * (2 * negatives + down);
        negatives += down;
        positives += up;
    }
    (positives > 0 && negatives > 0).then(|| twice_area as f64 / (2.0 * positives as f64 * negatives as f64))
}

fn positives_in(rows: &[usize], labels: &[bool]) -> u64 {
    rows.iter().filter(|&&row| labels[row]).count() as u64
}

/// AUC within each user, averaged by the user's rows.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Gauc {
    pub value: Option<f64>,
    /// Share of the rows that belong to users with both classes; the rest say nothing here.
    pub rows_share: f64,
}

/// Sum n_u AUC_u / sum n_u over the users with both classes.
pub fn gauc(labels: &[bool], scores: &[f64], users: &[u64]) -> Gauc {
    assert_eq!(labels.len(), users.len(), "one user a row");
    if check(labels, scores).is_none() {
        return Gauc { value: None, rows_share: 0.0 };
    }
    let mut rows: Vec<usize> = (0..scores.len()).collect();
    rows.sort_unstable_by(|&a, &b| users[a].cmp(&users[b]).then(scores[a].total_cmp(&scores[b])));
    let (mut weighted, mut kept) = (0.0, 0.0);
    for user in rows.chunk_by(|&a, &b| users[a] == users[b]) {
        if let Some(area) = area(user, labels, scores) {
            weighted += user.len() as f64 * area;
            kept += user.len() as f64;
        }
    }
    Gauc { value: finite(weighted / kept), rows_share: kept / labels.len() as f64 }
}

/// DeLong's test of two AUCs over the same rows, which it takes for independent; see `bootstrap` where users repeat.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct DeLong {
    pub auc_a: f64,
    pub auc_b: f64,
    pub variance_a: f64,
    pub variance_b: f64,
    pub covariance: f64,
    pub z: f64,
    /// Two-sided.
    pub p: f64,
}

/// Sun and Xu (2014): the placements of DeLong's test from midranks, n log n.
pub fn delong(labels: &[bool], a: &[f64], b: &[f64]) -> Option<DeLong> {
    check(labels, a)?;
    check(labels, b)?;
    let (positive_a, negative_a) = placements(labels, a);
    let (positive_b, negative_b) = placements(labels, b);
    let (positives, negatives) = (positive_a.len() as f64, negative_a.len() as f64);
    if positives < 2.0 || negatives < 2.0 {
        return None;
    }
    let shared = |up_a: &[f64], up_b: &[f64], down_a: &[f64], down_b: &[f64]| {
        covariance(up_a, up_b) / positives + covariance(down_a, down_b) / negatives
    };
    let variance_a = shared(&positive_a, &positive_a, &negative_a, &negative_a);
    let variance_b = shared(&positive_b, &positive_b, &negative_b, &negative_b);
    let covariance = shared(&positive_a, &positive_b, &negative_a, &negative_b);
    let (auc_a, auc_b) = (mean(&positive_a), mean(&positive_b));
    let difference = auc_a - auc_b;
    let z = if difference == 0.0 { 0.0 } else { finite(difference / (variance_a + variance_b - 2.0 * covariance).sqrt())? };
    Some(DeLong { auc_a, auc_b, variance_a, variance_b, covariance, z, p: normal_two_sided(z) })
}

/// Of each positive the share of negatives below it, of each negative the share of positives above it.
fn placements(labels: &[bool], scores: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let of_class =
        |class: bool| scores.iter().zip(labels).filter(|(_, label)| **label == class).map(|(score, _)| *score).collect::<Vec<_>>();
    let (positive_scores, negative_scores) = (of_class(true), of_class(false));
    let (positives, negatives) = (positive_scores.len() as f64, negative_scores.len() as f64);
    let (mut own_up, mut own_down) = (midranks(&positive_scores).into_iter(), midranks(&negative_scores).into_iter());
    let (mut up, mut down) = (Vec::new(), Vec::new());
    for (rank, label) in midranks(scores).into_iter().zip(labels) {
        if *label {
            up.push((rank - own_up.next().expect("one rank a positive")) / negatives);
        } else {
            down.push(1.0 - (rank - own_down.next().expect("one rank a negative")) / positives);
        }
    }
    (up, down)
}

/// Ranks from 1; tied values share the middle of theirs.
fn midranks(values: &[f64]) -> Vec<f64> {
    let order = order(values);
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0.0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let middle = before + (tied.len() as f64 + 1.0) / 2.0;
        tied.iter().for_each(|&row| ranks[row] = middle);
        before += tied.len() as f64;
    }
    ranks
}

/// Mean precision over the recall steps at each distinct score, not interpolated.
pub fn average_precision(labels: &[bool], scores: &[f64]) -> Option<f64> {
    check(labels, scores)?;
    let positives = labels.iter().filter(|label| **label).count() as f64;
    let (mut found, mut seen, mut sum) = (0.0, 0.0, 0.0);
    for tied in order(scores).chunk_by(|&a, &b| scores[a] == scores[b]).rev() {
        let up = positives_in(tied, labels) as f64;
        found += up;
        seen += tied.len() as f64;
        sum += up * found / seen;
    }
    finite(sum / positives)
}

/// Mean of -ln P(label); probabilities are kept a rounding error away from 0 and 1.
pub fn logloss(labels: &[bool], scores: &[f64]) -> Option<f64> {
    check(labels, scores)?;
    finite(labels.iter().zip(scores).map(|(&label, &score)| row_logloss(label, score)).sum::<f64>() / labels.len() as f64)
}

/// -ln P(label) of one row.
pub(super) fn row_logloss(label: bool, score: f64) -> f64 {
    let score = score.clamp(f64::EPSILON, 1.0 - f64::EPSILON);
    if label { -score.ln() } else { -(1.0 - score).ln() }
}

/// Log-loss over that of always saying the base rate (He et al. 2014): below 1 is better than nothing.
pub fn normalised_entropy(labels: &[bool], scores: &[f64]) -> Option<f64> {
    let rate = rate(labels);
    let entropy = -(rate * rate.ln() + (1.0 - rate) * (1.0 - rate).ln());
    finite(logloss(labels, scores)? / entropy)
}

/// Mean squared error of the probabilities.
pub fn brier(labels: &[bool], scores: &[f64]) -> Option<f64> {
    check(labels, scores)?;
    let error = |(&label, &score): (&bool, &f64)| (score - f64::from(u8::from(label))).powi(2);
    finite(labels.iter().zip(scores).map(error).sum::<f64>() / labels.len() as f64)
}

/// Sum of probabilities over number of positives: above 1 promises too much.
pub fn calibration_ratio(labels: &[bool], scores: &[f64]) -> Option<f64> {
    check(labels, scores)?;
    finite(mean(scores) / rate(labels))
}

/// Expected calibration error: mean distance between probability and rate over 15 bins of equal count.
pub fn ece(labels: &[bool], scores: &[f64]) -> Option<f64> {
    check(labels, scores)?;
    let bins = reliability(labels, scores, ECE_BINS);
    let distance = bins.iter().map(|bin| bin.rows as f64 * (bin.score - bin.rate).abs()).sum::<f64>();
    finite(distance / labels.len() as f64)
}

/// One point of a reliability diagram.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Bin {
    pub rows: u64,
    /// Mean probability promised.
    pub score: f64,
    /// Share of positives found.
    pub rate: f64,
    /// Wilson's 95 % interval of the rate, rows taken for independent.
    pub rate_interval: Interval,
}

/// Bins of (nearly) equal count by ascending score. Rows of one score share a bin, so that the order of rows cannot matter; there may
/// be fewer bins than asked for.
pub fn reliability(labels: &[bool], scores: &[f64], bins: usize) -> Vec<Bin> {
    if bins == 0 || check(labels, scores).is_none() {
        return Vec::new();
    }
    let order = order(scores);
    let (size, longer) = (order.len() / bins, order.len() % bins);
    let mut found = Vec::with_capacity(bins);
    let (mut start, mut end) = (0, 0);
    let mut tied = order.chunk_by(|&a, &b| scores[a] == scores[b]);
    for bin in 1..=bins {
        // The first `longer` bins hold one row more, as numpy's array_split has it.
        while end < bin * size + bin.min(longer) {
            end += tied.next().map_or(0, <[usize]>::len);
        }
        if end > start {
            found.push(bin_of(&order[start..end], labels, scores));
            start = end;
        }
    }
    found
}

fn bin_of(rows: &[usize], labels: &[bool], scores: &[f64]) -> Bin {
    let n = rows.len() as f64;
    let rate = positives_in(rows, labels) as f64 / n;
    let z = normal_critical(0.05);
    let (centre, spread) = (rate + z * z / (2.0 * n), z * (rate * (1.0 - rate) / n + z * z / (4.0 * n * n)).sqrt());
    let scale = 1.0 + z * z / n;
    Bin {
        rows: rows.len() as u64,
        score: rows.iter().map(|&row| scores[row]).sum::<f64>() / n,
        rate,
        // Rounding must not put the rate outside: a drawing takes the distances.
        rate_interval: Interval { low: ((centre - spread) / scale).clamp(0.0, rate), high: ((centre + spread) / scale).clamp(rate, 1.0) },
    }
}

/// The logistic line of labels on the logit of the scores: slope 1 and intercept 0 when calibrated, a slope below 1 when overconfident.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct ReliabilityLine {
    pub slope: f64,
    pub intercept: f64,
}

/// Least log-loss; none when one class is absent or a threshold parts the classes.
pub fn reliability_line(labels: &[bool], scores: &[f64]) -> Option<ReliabilityLine> {
    check(labels, scores)?;
    let targets: Vec<f64> = labels.iter().map(|&label| f64::from(u8::from(label))).collect();
    let logits: Vec<f64> = scores.iter().map(|&score| logit(score)).collect();
    let (slope, intercept) = logistic_line(&logits, &targets)?;
    Some(ReliabilityLine { slope, intercept })
}

fn rate(labels: &[bool]) -> f64 {
    labels.iter().filter(|label| **label).count() as f64 / labels.len() as f64
}

/// Nothing can be said of no rows, nor of scores that are not numbers.
fn check(labels: &[bool], scores: &[f64]) -> Option<()> {
    assert_eq!(labels.len(), scores.len(), "one score a label");
    (!labels.is_empty() && !scores.iter().any(|score| score.is_nan())).then_some(())
}

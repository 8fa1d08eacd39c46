//! `evaluate metrics`: labels and scores of any table -> how good the scores are as a ranking and as probabilities.
//!
//! Formulas are those of `statistics::metrics`, equal to scikit-learn's. DeLong takes rows for independent; where a group (the user) is
//! given, a bootstrap by group stands beside it and says what that assumption was worth.

use super::checks::{Check, Status, describe, missing_users};
use super::experiment::ends;
use crate::error::{Error, Result};
use crate::platform::{engine, table};
use crate::statistics::ab;
use crate::statistics::bootstrap::{self, Clusters};
use crate::statistics::calibration::{Calibrator, undo_sampling};
use crate::statistics::metrics::{self, Bin, ReliabilityLine};
use arrow::array::{Array, AsArray, StringArray};
use arrow::datatypes::{DataType, Float64Type};
use datafusion::functions::expr_fn::{btrim, lower};
use datafusion::logical_expr::when;
use datafusion::prelude::{DataFrame, Expr, cast, ident, lit};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

const ALPHA: f64 = 0.05;
/// Rarer classes than this leave every metric to chance.
const ENOUGH_OF_A_CLASS: u64 = 25;
/// Levels of a breakdown beyond which nobody reads it.
const MAX_LEVELS: usize = 10_000;

/// What to read of a table.
#[derive(Clone, Debug)]
pub struct Scored {
    pub label: String,
    pub scores: Vec<String>,
    /// Whose rows belong together: for GAUC and for intervals.
    pub group: Option<String>,
    /// Columns by whose values the calibration is shown: segment, ad, campaign.
    pub by: Vec<String>,
    /// Where the isotonic fit is shown.
    pub isotonic_at: Vec<f64>,
    /// The share of negatives that was kept for training: scores are corrected for it first.
    pub negatives_kept: Option<f64>,
    pub replicates: usize,
    pub seed: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Results {
    pub checks: Vec<Check>,
    pub rows: u64,
    pub positives: u64,
    pub groups: Option<u64>,
    /// By score column.
    pub metrics: BTreeMap<String, Quality>,
    /// Of the only score, where there are no others.
    #[serde(flatten)]
    pub only: Option<Quality>,
    /// Every pair of scores.
    pub delong: Vec<Pair>,
}

/// Metrics that the rows do not determine are null.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Quality {
    pub auc: Option<f64>,
    pub auc_ci95: Option<[f64; 2]>,
    pub average_precision: Option<f64>,
    pub gauc: Option<f64>,
    pub gauc_share_of_rows: Option<f64>,
    pub logloss: Option<f64>,
    pub logloss_ci95: Option<[f64; 2]>,
    pub normalized_entropy: Option<f64>,
    pub brier: Option<f64>,
    pub calibration_ratio: Option<f64>,
    pub calibration_ratio_ci95: Option<[f64; 2]>,
    pub ece: Option<f64>,
    pub reliability: Option<ReliabilityLine>,
    pub reliability_bins: Vec<Bin>,
    pub platt: Option<Platt>,
    /// Calibrated probability at some scores.
    pub isotonic_fit_at: BTreeMap<String, f64>,
    /// By column and its value.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub calibration_by: BTreeMap<String, BTreeMap<String, Calibration>>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Platt {
    pub slope: f64,
    pub intercept: f64,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Calibration {
    pub rows: u64,
    pub positives: u64,
    /// Sum of probabilities over positives.
    pub ratio: Option<f64>,
    pub ratio_ci95: Option<[f64; 2]>,
}

/// Score `a` against score `b`.
#[derive(Clone, Debug, Serialize)]
pub struct Pair {
    pub a: String,
    pub b: String,
    pub auc_difference: f64,
    pub z: f64,
    pub p: f64,
    pub var_auc_a: f64,
    pub var_auc_b: f64,
    pub cov: f64,
    /// By resampled groups (rows, where there are none).
    pub bootstrap_ci95: Option<[f64; 2]>,
}

/// The columns of the table.
struct Columns {
    labels: Vec<bool>,
    scores: Vec<Vec<f64>>,
    groups: Option<Vec<u64>>,
    by: Vec<StringArray>,
}

/// Measures the scores of a table.
pub async fn run(rows: &DataFrame, wanted: &Scored) -> Result<Results> {
    let mut results =
        Results { checks: Vec::new(), rows: 0, positives: 0, groups: None, metrics: BTreeMap::new(), only: None, delong: Vec::new() };
    let columns = read(rows, wanted, &mut results).await?;
    if results.checks.iter().any(|check| check.status == Status::Failed) {
        return Ok(results);
    }
    let rows = columns.labels.len();
    let clusters = Clusters::new(&columns.groups.clone().unwrap_or_else(|| (0..rows as u64).collect()));
    results.groups = columns.groups.is_some().then_some(clusters.count() as u64);
    let plan = bootstrap::Plan { replicates: wanted.replicates, alpha: ALPHA, seed: wanted.seed };
    let contestants: Vec<&[f64]> = columns.scores.iter().map(Vec::as_slice).collect();
    let replicates = bootstrap::logloss_and_auc(&plan, &clusters, &columns.labels, &contestants);
    for (i, name) in wanted.scores.iter().enumerate() {
        results.metrics.insert(name.clone(), quality(&columns, i, wanted, &clusters, &replicates[i]));
    }
    if let [only] = wanted.scores.as_slice() {
        results.only = results.metrics.get(only).cloned();
    }
    for (i, a) in wanted.scores.iter().enumerate() {
        for (j, b) in wanted.scores.iter().enumerate().skip(i + 1) {
            let differences = bootstrap::differences(&replicates[i].auc, &replicates[j].auc);
            results.delong.extend(metrics::delong(&columns.labels, contestants[i], contestants[j]).map(|found| Pair {
                a: a.clone(),
                b: b.clone(),
                auc_difference: found.auc_a - found.auc_b,
                z: found.z,
                p: found.p,
                var_auc_a: found.variance_a,
                var_auc_b: found.variance_b,
                cov: found.covariance,
                bootstrap_ci95: bootstrap::percentile(&differences, ALPHA).map(ends),
            }));
        }
    }
    Ok(results)
}

fn quality(columns: &Columns, i: usize, wanted: &Scored, clusters: &Clusters, replicates: &bootstrap::Replicates) -> Quality {
    let (labels, scores) = (columns.labels.as_slice(), columns.scores[i].as_slice());
    let mut found = Quality {
        auc: metrics::auc(labels, scores),
        auc_ci95: bootstrap::percentile(&replicates.auc, ALPHA).map(ends),
        average_precision: metrics::average_precision(labels, scores),
        ..Quality::default()
    };
    if let Some(groups) = &columns.groups {
        let gauc = metrics::gauc(labels, scores, groups);
        (found.gauc, found.gauc_share_of_rows) = (gauc.value, Some(gauc.rows_share));
    }
    if let Calibrator::Platt { slope, intercept } = Calibrator::platt(labels, scores) {
        found.platt = probabilities(scores).then_some(Platt { slope, intercept });
    }
    let isotonic = Calibrator::isotonic(labels, scores);
    if isotonic != Calibrator::Identity {
        found.isotonic_fit_at = wanted.isotonic_at.iter().map(|&at| (at.to_string(), isotonic.apply(at))).collect();
    }
    if !probabilities(scores) {
        return found;
    }
    found.logloss = metrics::logloss(labels, scores);
    found.logloss_ci95 = bootstrap::percentile(&replicates.logloss, ALPHA).map(ends);
    found.normalized_entropy = metrics::normalised_entropy(labels, scores);
    found.brier = metrics::brier(labels, scores);
    found.calibration_ratio = metrics::calibration_ratio(labels, scores);
    let promised_and_found = |row: usize| [scores[row], f64::from(u8::from(labels[row]))];
    found.calibration_ratio_ci95 = ab::ratio_over(clusters, ALPHA, promised_and_found).and_then(|ratio| ratio.interval).map(ends);
    found.ece = metrics::ece(labels, scores);
    found.reliability = metrics::reliability_line(labels, scores);
    found.reliability_bins = metrics::reliability(labels, scores, 15);
    for (name, levels) in wanted.by.iter().zip(&columns.by) {
        found.calibration_by.insert(name.clone(), by_level(labels, scores, columns.groups.as_deref(), levels));
    }
    found
}

fn probabilities(scores: &[f64]) -> bool {
    scores.iter().all(|score| (0.0..=1.0).contains(score))
}

/// Within each value of a column; rows of one group belong together there, too.
fn by_level(labels: &[bool], scores: &[f64], groups: Option<&[u64]>, levels: &StringArray) -> BTreeMap<String, Calibration> {
    let mut rows_of: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for row in 0..labels.len() {
        rows_of.entry(if levels.is_valid(row) { levels.value(row) } else { "" }).or_default().push(row);
    }
    let of = |rows: &[usize]| {
        let clusters = Clusters::new(&rows.iter().map(|&row| groups.map_or(row as u64, |groups| groups[row])).collect::<Vec<_>>());
        let sums = |at: usize| [scores[rows[at]], f64::from(u8::from(labels[rows[at]]))];
        let [promised, found] = (0..rows.len()).map(sums).fold([0.0; 2], |[p, y], [promised, found]| [p + promised, y + found]);
        Calibration {
            rows: rows.len() as u64,
            positives: found as u64,
            ratio: Some(promised / found).filter(|ratio| ratio.is_finite()),
            ratio_ci95: ab::ratio_over(&clusters, ALPHA, sums).and_then(|ratio| ratio.interval).map(ends),
        }
    };
    rows_of.into_iter().map(|(level, rows)| (level.to_owned(), of(&rows))).collect()
}

// ---------------------------------------------------------------------------------------------------------------------- the table

async fn read(rows: &DataFrame, wanted: &Scored, results: &mut Results) -> Result<Columns> {
    if wanted.scores.is_empty() {
        return Err(Error::usage("there is no score to measure").action("give --score"));
    }
    if wanted.negatives_kept.is_some_and(|kept| !(kept > 0.0 && kept <= 1.0)) {
        return Err(Error::usage("--negatives-kept is a share above 0 and up to 1"));
    }
    let schema = rows.schema();
    let mut wants = vec![label(rows, &wanted.label)?.alias("label")];
    for (i, score) in wanted.scores.iter().enumerate() {
        wants.push(table::number(schema, score)?.alias(format!("score_{i}")));
    }
    if let Some(group) = &wanted.group {
        wants.push(table::text(schema, group)?.alias("group"));
    }
    for (i, column) in wanted.by.iter().enumerate() {
        wants.push(table::text(schema, column)?.alias(format!("by_{i}")));
    }
    let names: Vec<&str> = wanted.scores.iter().map(String::as_str).collect();
    let wrong = table::not_numbers(rows, &names).await?;
    results.checks.push(super::experiment_checks::text_metric(&wrong));
    let read = engine::collect(rows.clone().select(wants)?).await?;
    results.rows = read.num_rows() as u64;
    let numbers =
        |name: &str| -> Vec<f64> { read[name].as_primitive::<Float64Type>().iter().map(|value| value.unwrap_or(f64::NAN)).collect() };
    let labels = numbers("label");
    let other = labels.iter().filter(|label| **label != 0.0 && **label != 1.0).count();
    let finding = format!("column {} is neither 0 nor 1 in {other} of {} rows", wanted.label, labels.len());
    results.checks.push(Check::judge("label_values", (other > 0).then_some((Status::Failed, finding)), "every label is 0 or 1"));
    let labels: Vec<bool> = labels.iter().map(|label| *label == 1.0).collect();
    results.positives = labels.iter().filter(|label| **label).count() as u64;
    let mut scores = Vec::new();
    for (i, name) in wanted.scores.iter().enumerate() {
        let mut column = numbers(&format!("score_{i}"));
        let not_finite = column.iter().filter(|score| !score.is_finite()).count();
        let outside = column.iter().filter(|score| score.is_finite() && !(0.0..=1.0).contains(*score)).count();
        let finding = format!("{name} is empty, NaN or infinite in {not_finite} rows");
        results.checks.push(Check::judge(
            "not_finite",
            (not_finite > 0).then_some((Status::Failed, finding)),
            format!("{name} is a finite number"),
        ));
        let finding = format!(
            "{name} lies outside [0, 1] in {outside} rows: it ranks, but promises no probability, so log-loss, Brier and calibration are left out"
        );
        let status = if outside > 0 { Some((Status::Warning, finding)) } else { None };
        results.checks.push(Check::judge("not_probabilities", status, format!("{name} lies in [0, 1]")));
        if let Some(kept) = wanted.negatives_kept.filter(|_| outside == 0) {
            column.iter_mut().for_each(|score| *score = undo_sampling(*score, kept));
        }
        scores.push(column);
    }
    classes(results);
    let text = |name: &str| -> StringArray { read[name].as_string::<i32>().clone() };
    let by: Vec<StringArray> = (0..wanted.by.len()).map(|i| text(&format!("by_{i}"))).collect();
    for (name, levels) in wanted.by.iter().zip(&by) {
        let count = levels.iter().collect::<std::collections::HashSet<_>>().len();
        results.checks.push(super::experiment_checks::breakdown_levels(name, count, MAX_LEVELS));
    }
    let groups = wanted.group.as_ref().map(|name| {
        let groups = text("group");
        results.checks.push(missing_users(name, groups.null_count(), groups.len()));
        bootstrap::clusters(&groups)
    });
    Ok(Columns { labels, scores, groups, by })
}

fn classes(results: &mut Results) {
    let (positives, negatives) = (results.positives, results.rows - results.positives);
    let worse = match positives.min(negatives) {
        _ if results.rows == 0 => Some((Status::Failed, "the table has no rows".to_owned())),
        0 => Some((Status::Failed, format!("all {} labels are {}: nothing can be told apart", results.rows, u8::from(positives > 0)))),
        few if few < ENOUGH_OF_A_CLASS => Some((Status::Warning, format!("{few} rows of the rarer class leave much to chance"))),
        _ => None,
    };
    results.checks.push(Check::judge("too_little_data", worse, format!("{positives} positive and {negatives} negative rows")));
}

/// Labels are numbers, booleans, or the words of booleans.
fn label(rows: &DataFrame, column: &str) -> Result<Expr> {
    let schema = rows.schema();
    let number = table::number(schema, column)?;
    if schema.field_with_unqualified_name(column)?.data_type().is_numeric()
        || *schema.field_with_unqualified_name(column)?.data_type() == DataType::Boolean
    {
        return Ok(number);
    }
    let word = lower(btrim(vec![cast(ident(column), DataType::Utf8)]));
    Ok(when(word.clone().eq(lit("true")), lit(1.0)).when(word.eq(lit("false")), lit(0.0)).otherwise(number)?)
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = self.groups.map(|groups| format!(" of {groups} groups")).unwrap_or_default();
        writeln!(f, "{} rows{groups}, {} positive\n", self.rows, self.positives)?;
        writeln!(
            f,
            "{:<16} {:>9} {:>20} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "score", "AUC", "95 % interval", "GAUC", "AP", "logloss", "NE", "Brier", "ratio", "ECE"
        )?;
        let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.5}"));
        for (name, found) in &self.metrics {
            let interval = found.auc_ci95.map_or_else(|| "-".to_owned(), |[low, high]| format!("[{low:.5}, {high:.5}]"));
            let [auc, gauc, precision, logloss] = [found.auc, found.gauc, found.average_precision, found.logloss].map(cell);
            let [entropy, brier, ratio, ece] = [found.normalized_entropy, found.brier, found.calibration_ratio, found.ece].map(cell);
            writeln!(
                f,
                "{name:<16} {auc:>9} {interval:>20} {gauc:>9} {precision:>9} {logloss:>9} {entropy:>9} {brier:>9} {ratio:>9} {ece:>9}"
            )?;
        }
        for Pair { a, b, auc_difference, z, p, bootstrap_ci95, .. } in &self.delong {
            let interval = bootstrap_ci95.map_or_else(String::new, |[low, high]| format!("; bootstrap by group [{low:.5}, {high:.5}]"));
            writeln!(f, "{a} - {b}: AUC {auc_difference:+.5}, DeLong z {z:.3}, p {p:.2e}{interval}")?;
        }
        write!(f, "\n{}", describe(&self.checks))
    }
}

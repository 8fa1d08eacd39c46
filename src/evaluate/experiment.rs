//! `evaluate ab`: a table of units in arms -> what each arm did differently, how sure one may be, and what should be checked first.
//!
//! The table is summed once ([`super::units`]); everything here is inference on the sums, so the table's size does not matter. Formulas
//! are those of `statistics::ab`: Welch's test on unit means, the delta method for ratios, CUPED, always-valid intervals.

use super::arms::{ArmTally, Arms, Resampled};
use super::checks::{Check, Status};
use super::experiment_checks as look;
pub use super::experiment_checks::times;
use super::metric::{Change, Metric, MetricSpec, Metrics};
use super::units::{Wanted, tally, too_many_arms};
use crate::error::{Error, Result};
use crate::platform::{engine, table};
use crate::statistics::ab::{self, Arm, Comparison, Measure, Method, Srm};
use crate::statistics::moments::Moments;
use crate::statistics::{Interval, bootstrap};
use datafusion::prelude::{DataFrame, SessionContext, cast, ident};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Every interval's level: the keys say `ci95`.
pub const ALPHA: f64 = 0.05;

/// What to evaluate; the same keys in a spec file and on the command line.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Experiment {
    /// The column of the unit of randomisation. Without one every row is a unit, and nobody can see a unit in two arms.
    pub unit: Option<String>,
    pub arm: String,
    /// The arm that the others are compared to.
    pub control: String,
    /// Planned share of the units by arm, which need not sum to 1.
    pub share: BTreeMap<String, f64>,
    pub metric: BTreeMap<String, MetricSpec>,
    /// Metrics that must not get worse than their margin.
    pub guardrail: BTreeMap<String, MetricSpec>,
    /// Breaks the results down by this column.
    pub by: Option<String>,
    /// When a unit was exposed: for the maturity of labels and the number of days.
    pub time: Option<String>,
    /// Days after exposure in which an outcome may still come.
    pub window_days: u32,
    /// The moment up to which outcomes are known, as `2026-11-22` (its beginning) or with a time; the last exposure when absent.
    pub as_of: Option<String>,
    /// Replicates of the bootstrap by unit; 0 = none.
    pub bootstrap: usize,
    pub seed: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Results {
    pub checks: Vec<Check>,
    pub srm: Option<Srm>,
    pub units: BTreeMap<String, u64>,
    /// By metric and arm, the control left out.
    pub metrics: BTreeMap<String, BTreeMap<String, Outcome>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breakdown: Option<Breakdown>,
    pub assumptions: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Breakdown {
    pub column: String,
    pub levels: BTreeMap<String, Level>,
}

/// One level, judged as the whole is: what a check of its own failed holds no numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Level {
    /// The worst of the checks; `ok` where none found anything.
    pub verdict: Status,
    pub checks: Vec<Check>,
    pub srm: Option<Srm>,
    pub units: BTreeMap<String, u64>,
    pub metrics: BTreeMap<String, BTreeMap<String, Outcome>>,
}

/// One metric of one arm against the control. Numbers that the data do not determine, or a failed check forbids, are null.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub value: Option<f64>,
    pub control_value: Option<f64>,
    pub absolute: Option<Effect>,
    pub relative: Option<Effect>,
    /// Of the absolute difference; over all metrics and arms by Benjamini and Hochberg, over guardrails by Holm.
    pub p_adjusted: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cuped: Option<Adjustment>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guardrail: Option<Guardrail>,
    /// What a test on as many units finds four times in five.
    pub minimum_detectable: Option<Detectable>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<Power>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<Bootstrap>,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Effect {
    pub estimate: f64,
    pub standard_error: f64,
    /// For one look, on the day fixed beforehand.
    pub ci95: Option<[f64; 2]>,
    pub p: Option<f64>,
    /// Hold however often one looks.
    pub always_valid_ci95: Option<[f64; 2]>,
    pub always_valid_p: Option<f64>,
    pub method: Method,
}

impl From<ab::Effect> for Effect {
    fn from(effect: ab::Effect) -> Self {
        Self {
            estimate: effect.estimate,
            standard_error: effect.standard_error,
            ci95: effect.interval.map(ends),
            p: effect.p,
            always_valid_ci95: effect.always_valid_interval.map(ends),
            always_valid_p: effect.always_valid_p,
            method: effect.method,
        }
    }
}

pub fn ends(interval: Interval) -> [f64; 2] {
    [interval.low, interval.high]
}

/// What CUPED did, and what the numbers were without it.
#[derive(Clone, Debug, Serialize)]
pub struct Adjustment {
    pub theta: f64,
    /// Share of the variance of the difference that it took out.
    pub variance_removed: f64,
    pub unadjusted_absolute: Effect,
    pub unadjusted_relative: Option<Effect>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Guardrail {
    pub margin: f64,
    pub margin_is_relative: bool,
    /// One-sided, of the hypothesis that the change is the margin or worse.
    pub p: Option<f64>,
    pub p_adjusted: Option<f64>,
    pub verdict: Held,
}

#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Held {
    Holds,
    /// The whole interval lies beyond the margin.
    Broken,
    /// The data bear neither.
    Unknown,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Detectable {
    pub absolute: f64,
    pub relative: Option<f64>,
}

/// Of the test against the expected effect.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Power {
    pub expected: f64,
    pub expected_is_relative: bool,
    pub power: Option<f64>,
    /// Units in both arms, in their present proportion, for a power of 0.8.
    pub units_needed: Option<u64>,
}

/// Percentiles over resampled units.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Bootstrap {
    pub replicates: usize,
    pub absolute_ci95: Option<[f64; 2]>,
    pub relative_ci95: Option<[f64; 2]>,
}

/// Evaluates an experiment over a table.
///
/// # Errors
/// `Usage` for a column or expression that the table does not bear. What the rows themselves do wrong is a failed check in the results.
pub async fn run(context: &SessionContext, rows: &DataFrame, experiment: &Experiment) -> Result<Results> {
    let specs = specs(experiment)?;
    for column in [Some(&experiment.arm), experiment.unit.as_ref(), experiment.by.as_ref(), experiment.time.as_ref()].into_iter().flatten()
    {
        table::require(rows.schema(), column)?;
    }
    let metrics = Metrics::plan(rows, &specs)?;
    let mut results = Results {
        checks: Vec::new(),
        srm: None,
        units: BTreeMap::new(),
        metrics: BTreeMap::new(),
        breakdown: None,
        assumptions: assumptions(experiment),
    };
    let columns: Vec<&str> = metrics.reads.iter().map(String::as_str).collect();
    results.checks.push(look::text_metric(&table::not_numbers(rows, &columns).await?));
    if results.checks[0].status == Status::Failed {
        return Ok(results);
    }
    let wanted = Wanted { unit: experiment.unit.clone(), arm: experiment.arm.clone(), level: None, sums: metrics.sums.clone() };
    let arms = tally(context, rows, &wanted, Arms::new(&metrics)).await?;
    if arms.too_many {
        return Err(too_many_arms());
    }
    let nobody = BTreeMap::new();
    let whole = arms.whole().unwrap_or(&nobody);
    results.units = whole.iter().map(|(arm, tally)| (arm.clone(), tally.units)).collect();
    results.checks.push(look::empty_arm(experiment, whole));
    results.checks.push(look::units_in_several_arms(experiment, &arms, whole));
    results.checks.push(look::missing_keys(&arms));
    let (srm, check) = look::srm(experiment, whole);
    results.srm = srm;
    results.checks.push(check);
    if let Some(time) = &experiment.time {
        results.checks.extend(look::times(rows, time, experiment.window_days, experiment.as_of.as_deref()).await?);
    }
    let comparable = results.checks.iter().all(|check| check.status != Status::Failed || check.name == "srm");
    if !comparable {
        return Ok(results);
    }
    let resampled = match experiment.bootstrap {
        0 => None,
        replicates => Some(tally(context, rows, &wanted, Resampled::new(replicates, experiment.seed, &metrics)).await?),
    };
    results.metrics = outcomes(experiment, &metrics, whole, resampled.as_ref(), &mut results.checks);
    adjust(results.metrics.values_mut());
    if let Some(column) = &experiment.by {
        results.breakdown = breakdown(context, rows, experiment, &metrics, column, &mut results.checks).await?;
    }
    Ok(results)
}

fn specs(experiment: &Experiment) -> Result<Vec<(String, MetricSpec)>> {
    if experiment.arm.is_empty() || experiment.control.is_empty() {
        return Err(
            Error::usage("an experiment needs the column of the arm and the name of the control").action("give --arm and --control")
        );
    }
    if let Some((name, _)) = experiment.guardrail.iter().find(|(_, spec)| spec.margin.is_none()) {
        return Err(Error::usage(format_args!("guardrail {name} has no margin"))
            .action("write it as name=column:0.01, or :2% of the control's value"));
    }
    let specs: Vec<_> = experiment.metric.iter().chain(&experiment.guardrail).map(|(name, spec)| (name.clone(), spec.clone())).collect();
    match specs.is_empty() {
        true => Err(Error::usage("there is nothing to measure").action("give --metric name=column or name=column/column")),
        false => Ok(specs),
    }
}

/// Every metric of every arm against the control, and the checks that belong to metrics.
fn outcomes(
    experiment: &Experiment,
    metrics: &Metrics,
    arms: &BTreeMap<String, ArmTally>,
    resampled: Option<&Resampled>,
    checks: &mut Vec<Check>,
) -> BTreeMap<String, BTreeMap<String, Outcome>> {
    let control = &arms[&experiment.control];
    let mut found: BTreeMap<String, BTreeMap<String, Outcome>> = BTreeMap::new();
    for (i, metric) in metrics.all.iter().enumerate() {
        let own = look::metric(metric, i, arms);
        let sound = own.iter().all(|check| check.status != Status::Failed);
        checks.extend(own);
        for (name, arm) in arms.iter().filter(|(name, _)| **name != experiment.control) {
            let mut outcome = compare(metric, &control.metrics[i].moments, &arm.metrics[i].moments, sound);
            if let Some(resampled) = resampled.filter(|_| sound) {
                outcome.bootstrap = Some(bootstrapped(metric, i, resampled, &experiment.control, name, &outcome));
            }
            found.entry(metric.name.clone()).or_default().insert(name.clone(), outcome);
        }
    }
    checks.push(look::suspicious_uplift(&found));
    found
}

/// One metric of one arm.
fn compare(metric: &Metric, control: &Moments, treatment: &Moments, sound: bool) -> Outcome {
    let mut outcome = Outcome {
        value: None,
        control_value: None,
        absolute: None,
        relative: None,
        p_adjusted: None,
        cuped: None,
        guardrail: None,
        minimum_detectable: None,
        power: None,
        bootstrap: None,
    };
    let measured = |moments| ab::measure(metric.outcome, moments).filter(|_| sound);
    let (Some(plain_control), Some(plain_treatment)) = (measured(control), measured(treatment)) else { return outcome };
    (outcome.value, outcome.control_value) = (Some(plain_treatment.mean), Some(plain_control.mean));
    let mut comparison = ab::compare(&plain_control, &plain_treatment, ALPHA);
    if let Some(before) = metric.before
        && let Some(adjusted) = ab::cuped(control, treatment, metric.outcome, before)
    {
        let plain = comparison;
        comparison = ab::compare(&adjusted.control, &adjusted.treatment, ALPHA);
        let removed = 1.0 - (comparison.absolute.standard_error / plain.absolute.standard_error).powi(2);
        outcome.cuped = Some(Adjustment {
            theta: adjusted.theta,
            variance_removed: if removed.is_finite() { removed } else { 0.0 },
            unadjusted_absolute: plain.absolute.into(),
            unadjusted_relative: plain.relative.map(Effect::from),
        });
    }
    outcome.guardrail = metric.spec.margin.and_then(|margin| guardrail(&comparison, margin));
    outcome.minimum_detectable = Some(Detectable {
        absolute: ab::minimum_detectable(comparison.absolute.standard_error, ALPHA),
        relative: comparison.relative.map(|relative| ab::minimum_detectable(relative.standard_error, ALPHA)),
    });
    outcome.power = metric.spec.expect.and_then(|expected| power(&comparison, expected, &plain_control, &plain_treatment));
    outcome.absolute = Some(comparison.absolute.into());
    outcome.relative = comparison.relative.map(Effect::from);
    outcome
}

/// The effect in which a change is stated, and its size.
fn stated(comparison: &Comparison, change: Change) -> Option<(ab::Effect, f64, bool)> {
    match change {
        Change::Absolute(size) => Some((comparison.absolute, size, false)),
        Change::Relative(size) => Some((comparison.relative?, size, true)),
    }
}

fn guardrail(comparison: &Comparison, margin: Change) -> Option<Guardrail> {
    let (effect, margin, relative) = stated(comparison, margin)?;
    let tested = ab::guardrail(&effect, comparison.degrees_of_freedom, margin);
    let beyond = |interval: Interval| if margin >= 0.0 { interval.low > margin } else { interval.high < margin };
    let verdict = if effect.interval.is_some_and(beyond) { Held::Broken } else { Held::Unknown };
    Some(Guardrail { margin, margin_is_relative: relative, p: tested.p, p_adjusted: None, verdict })
}

fn power(comparison: &Comparison, expected: Change, control: &Arm, treatment: &Arm) -> Option<Power> {
    let (effect, size, relative) = stated(comparison, expected)?;
    let units = (control.users + treatment.users) as f64;
    let needed = units * (ab::minimum_detectable(effect.standard_error, ALPHA) / size).powi(2);
    Some(Power {
        expected: size,
        expected_is_relative: relative,
        power: ab::power(size, effect.standard_error, ALPHA),
        units_needed: needed.is_finite().then(|| needed.ceil() as u64),
    })
}

/// Adjusts p-values over all comparisons of one kind, and lets those guardrails hold that are still sure.
fn adjust<'a>(found: impl Iterator<Item = &'a mut BTreeMap<String, Outcome>>) {
    let mut goals: Vec<&mut Outcome> = Vec::new();
    let mut guardrails: Vec<&mut Outcome> = Vec::new();
    for outcome in found.flat_map(BTreeMap::values_mut) {
        match &outcome.guardrail {
            Some(guardrail) if guardrail.p.is_some() => guardrails.push(outcome),
            None if outcome.absolute.is_some_and(|effect| effect.p.is_some()) => goals.push(outcome),
            _ => {}
        }
    }
    let p: Vec<f64> = goals.iter().filter_map(|outcome| outcome.absolute?.p).collect();
    goals.iter_mut().zip(ab::benjamini_hochberg(&p)).for_each(|(outcome, p)| outcome.p_adjusted = Some(p));
    let p: Vec<f64> = guardrails.iter().filter_map(|outcome| outcome.guardrail.as_ref()?.p).collect();
    for (outcome, p) in guardrails.iter_mut().zip(ab::holm(&p)) {
        let guardrail = outcome.guardrail.as_mut().expect("only those were taken");
        guardrail.p_adjusted = Some(p);
        // One-sided at half the level: what holds has its whole two-sided interval on the good side of the margin.
        if p <= ALPHA / 2.0 {
            guardrail.verdict = Held::Holds;
        }
    }
}

fn bootstrapped(metric: &Metric, i: usize, resampled: &Resampled, control: &str, treatment: &str, outcome: &Outcome) -> Bootstrap {
    let theta = outcome.cuped.as_ref().map_or(0.0, |cuped| cuped.theta);
    let value = |measure: Measure, means: &[f64]| match measure {
        Measure::Mean(column) | Measure::Proportion(column) => means[column],
        Measure::Ratio(above, below) => means[above] / means[below],
    };
    let adjusted = |means: &[f64]| value(metric.outcome, means) - metric.before.map_or(0.0, |before| theta * value(before, means));
    let (mut absolute, mut relative) = (Vec::new(), Vec::new());
    for replicate in 0..resampled.replicates() {
        let both = resampled.means(i, control, replicate).zip(resampled.means(i, treatment, replicate));
        let difference = both.as_ref().map(|(control, treatment)| adjusted(treatment) - adjusted(control));
        absolute.push(difference.filter(|difference| difference.is_finite()));
        let share = difference.zip(both).map(|(difference, (control, _))| difference / value(metric.outcome, &control));
        relative.push(share.filter(|share| share.is_finite()));
    }
    let interval = |replicates: &[Option<f64>]| bootstrap::percentile(replicates, ALPHA).map(ends);
    Bootstrap { replicates: resampled.replicates(), absolute_ci95: interval(&absolute), relative_ci95: interval(&relative) }
}

/// Levels beyond which a breakdown says nothing about any of them.
const MAX_LEVELS: usize = 100;

async fn breakdown(
    context: &SessionContext,
    rows: &DataFrame,
    experiment: &Experiment,
    metrics: &Metrics,
    column: &str,
    checks: &mut Vec<Check>,
) -> Result<Option<Breakdown>> {
    let levels = rows.clone().select(vec![cast(ident(column), arrow::datatypes::DataType::Utf8).alias("level")])?.distinct()?;
    let count = engine::collect(levels.limit(0, Some(MAX_LEVELS + 1))?).await?.num_rows();
    let check = look::breakdown_levels(column, count, MAX_LEVELS);
    let refused = check.status == Status::Failed;
    checks.push(check);
    if refused {
        return Ok(None);
    }
    let wanted =
        Wanted { unit: experiment.unit.clone(), arm: experiment.arm.clone(), level: Some(column.to_owned()), sums: metrics.sums.clone() };
    let arms = tally(context, rows, &wanted, Arms::new(metrics)).await?;
    let mut levels: BTreeMap<String, Level> =
        arms.levels.iter().map(|(name, arms)| (name.clone(), level(experiment, metrics, arms))).collect();
    // The more levels, the more chances to find something: p-values are adjusted over all of them.
    adjust(levels.values_mut().flat_map(|level| level.metrics.values_mut()));
    checks.push(look::levels_withheld(&levels));
    Ok(Some(Breakdown { column: column.to_owned(), levels }))
}

fn level(experiment: &Experiment, metrics: &Metrics, arms: &BTreeMap<String, ArmTally>) -> Level {
    let (srm, split) = look::srm(experiment, arms);
    let mut checks = vec![look::empty_arm(experiment, arms), split];
    let mut found = BTreeMap::new();
    // Nobody is stopped by the exit code here, as for the whole: an uneven split withholds the numbers.
    if checks.iter().all(|check| check.status != Status::Failed) {
        found = outcomes(experiment, metrics, arms, None, &mut checks);
    }
    let worst = checks.iter().map(|check| check.status).filter(|status| *status > Status::Skipped).max();
    let units = arms.iter().map(|(arm, tally)| (arm.clone(), tally.units)).collect();
    Level { verdict: worst.unwrap_or(Status::Ok), checks, srm, units, metrics: found }
}

fn assumptions(experiment: &Experiment) -> Vec<String> {
    let mut assumptions = vec![
        match &experiment.unit {
            Some(unit) => format!("units ({unit}) were assigned at random and do not influence each other"),
            None => "every row is a unit, assigned at random and without influence on the others".to_owned(),
        },
        "ci95 and p are for one look, on a day fixed beforehand; always_valid_* hold however often one looks".to_owned(),
        "there are enough units for their means to be nearly normal".to_owned(),
    ];
    if experiment.metric.values().chain(experiment.guardrail.values()).any(|spec| spec.cuped.is_some()) {
        assumptions.push("what CUPED adjusts by was fixed before the arms could change it".to_owned());
    }
    assumptions
}

//! `evaluate ope`: logged decisions and a target policy -> what the policy would have earned, by every estimator, and whether the logs can
//! say so at all.

use super::checks::{Check, Status, describe};
use super::decisions::Decisions;
use super::experiment::ends;
use crate::error::{Error, Result};
use crate::statistics::bootstrap::{self, Clusters};
use crate::statistics::ope::{self, Diagnostics, Estimator, Model, Rounds, Verdict};
use crate::statistics::ope_limits::Limits;
use crate::statistics::reward_model::{self, Rows};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

const ALPHA: f64 = 0.05;

/// How to evaluate.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where weights are clipped, switched and shrunk; by the data when absent.
    pub lambda: Option<f64>,
    pub lambda_sub_gaussian: Option<f64>,
    pub replicates: usize,
    pub seed: u64,
}

#[derive(Clone, Debug, Serialize)]
pub struct Results {
    pub verdict: Word,
    /// Why the value is not identified.
    pub reason: Option<String>,
    pub checks: Vec<Check>,
    pub rows: u64,
    pub rows_left_out: u64,
    /// None where the log does not say whose rows they are.
    pub users: Option<u64>,
    /// Effective sample size and largest weight.
    pub ess: Option<f64>,
    pub max_weight: Option<f64>,
    /// What the logging policy earned a row.
    pub logged: Option<Value>,
    /// By estimator; without those for which the log lacks what they need.
    pub estimates: BTreeMap<String, Value>,
    pub diagnostics: Option<Diagnostics>,
    /// How rewards were predicted.
    pub q: String,
}

#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq)]
pub enum Word {
    #[serde(rename = "identified")]
    Identified,
    #[serde(rename = "not identified")]
    NotIdentified,
    /// A failed check: the table is not what it should be.
    #[serde(rename = "invalid input")]
    InvalidInput,
}

#[derive(Clone, Debug, Serialize)]
pub struct Value {
    pub value: f64,
    pub ci95: Option<[f64; 2]>,
    /// Empirical Bernstein: wider, and honest with few rewards.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bernstein95: Option<[f64; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lambda: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assumption: Option<&'static str>,
}

/// Every estimator with its name in the results.
const ESTIMATORS: [(Estimator, &str); 11] = [
    (Estimator::Ips, "ips"),
    (Estimator::ClippedIps, "clipped_ips"),
    (Estimator::Snips, "snips"),
    (Estimator::SubGaussianIps, "sub_gaussian_ips"),
    (Estimator::Dm, "dm"),
    (Estimator::Dr, "dr"),
    (Estimator::Sndr, "sndr"),
    (Estimator::SwitchDr, "switch_dr"),
    (Estimator::Dros, "dros"),
    (Estimator::SubGaussianDr, "sub_gaussian_dr"),
    (Estimator::Mips, "mips"),
];

/// Values a target policy on decisions that passed their checks.
pub fn evaluate(decisions: &Decisions, mut checks: Vec<Check>, options: &Options) -> Result<Results> {
    for (lambda, name) in [(options.lambda, "--lambda"), (options.lambda_sub_gaussian, "--lambda-sub-gaussian")] {
        if lambda.is_some_and(|lambda| lambda.is_nan() || lambda <= 0.0) {
            return Err(Error::usage(format_args!("{name} must be greater than 0")));
        }
    }
    if options.lambda_sub_gaussian.is_some_and(|lambda| lambda > 1.0) {
        return Err(Error::usage("--lambda-sub-gaussian must be at most 1"));
    }
    let mut results = Results {
        verdict: Word::InvalidInput,
        reason: None,
        checks: Vec::new(),
        rows: decisions.rewards.len() as u64,
        rows_left_out: decisions.left_out,
        users: None,
        ess: None,
        max_weight: None,
        logged: None,
        estimates: BTreeMap::new(),
        diagnostics: None,
        q: "none: the log does not say what the target policy would do instead".into(),
    };
    if let Some(failed) = checks.iter().find(|check| check.status == Status::Failed) {
        results.reason = Some(failed.finding.clone());
        results.checks = checks;
        return Ok(results);
    }
    let clusters = Clusters::new(&decisions.users);
    let plan = bootstrap::Plan { replicates: options.replicates, alpha: ALPHA, seed: options.seed };
    let predictions = predictions(decisions, &clusters, &plan, &mut results.q);
    let mut rounds = Rounds {
        rewards: &decisions.rewards,
        propensities: &decisions.propensities,
        targets: &decisions.targets,
        users: &decisions.users,
        model: predictions.as_ref().map(|(chosen, target, refitted)| Model { chosen, target, refitted }),
        embeddings: decisions.embeddings.as_deref(),
        unsupported: decisions.unsupported,
    };
    let mut limits = Limits::fixed(options.lambda.unwrap_or(f64::INFINITY), options.lambda_sub_gaussian.unwrap_or(1.0));
    if options.lambda.is_none() || options.lambda_sub_gaussian.is_none() {
        let chosen = Limits::by_slope(&rounds);
        if options.lambda.is_none() {
            limits = Limits { sub_gaussian_ips: limits.sub_gaussian_ips, sub_gaussian_dr: limits.sub_gaussian_dr, ..chosen };
        }
        if options.lambda_sub_gaussian.is_none() {
            limits = Limits { sub_gaussian_ips: chosen.sub_gaussian_ips, sub_gaussian_dr: chosen.sub_gaussian_dr, ..limits };
        }
    }
    // A target that sums to one only within the tolerance may exceed it by as much.
    let capped: Vec<f64> = decisions.targets.iter().map(|p| p.min(1.0)).collect();
    rounds.targets = if decisions.targets.iter().any(|p| *p > 1.0) { &capped } else { &decisions.targets };
    let evaluation = ope::evaluate(&rounds, &ope::Plan { replicates: options.replicates, alpha: ALPHA, limits }, options.seed)?;
    for found in &evaluation.estimates {
        let (_, name) = ESTIMATORS.iter().find(|(estimator, _)| *estimator == found.estimator).expect("all are listed");
        let value = Value {
            value: found.value,
            ci95: found.interval.map(ends),
            bernstein95: found.bernstein.map(ends),
            lambda: limits.of(found.estimator),
            assumption: Some(assumption(found.estimator)),
        };
        results.estimates.insert((*name).to_owned(), value);
    }
    results.users = decisions.users_known.then_some(evaluation.users);
    results.logged = evaluation.logged.map(|logged| Value {
        value: logged.value,
        ci95: logged.interval.map(ends),
        bernstein95: None,
        lambda: None,
        assumption: None,
    });
    (results.verdict, results.reason) = match evaluation.verdict {
        Verdict::Identified => (Word::Identified, None),
        Verdict::NotIdentified { reason } => (Word::NotIdentified, Some(reason)),
    };
    if let Some(diagnostics) = evaluation.diagnostics {
        (results.ess, results.max_weight) = (Some(diagnostics.effective_rows), Some(diagnostics.max_weight));
        checks.extend(weights(&diagnostics, evaluation.rows as f64));
        results.diagnostics = Some(diagnostics);
    }
    results.checks = checks;
    Ok(results)
}

type Predicted = (Vec<f64>, Vec<f64>, Vec<f64>);

/// The table's own predictions, else smoothed means where the target policy's choices are known.
fn predictions(decisions: &Decisions, clusters: &Clusters, plan: &bootstrap::Plan, q: &mut String) -> Option<Predicted> {
    if let Some((chosen, target)) = &decisions.predictions {
        *q = "given by the table, taken as fixed".into();
        return Some((chosen.clone(), target.clone(), Vec::new()));
    }
    if decisions.actions.is_empty() {
        return None;
    }
    let rows = Rows {
        cells: &decisions.cells,
        actions: &decisions.actions,
        rewards: &decisions.rewards,
        chosen_by_target: &decisions.chosen_by_target,
        choices: &decisions.choices,
    };
    let found = reward_model::cross_fit(&rows, clusters, plan);
    let again = if found.refitted.is_empty() {
        "taken as fixed in the bootstrap"
    } else {
        "fitted again in every replicate of the direct method's interval"
    };
    *q = format!("smoothed means by features and action, cross-fitted by user, prior worth {} rows; {again}", found.strength);
    Some((found.chosen, found.target, found.refitted))
}

fn assumption(estimator: Estimator) -> &'static str {
    match estimator {
        Estimator::Ips => "the propensities are right and cover the target; nothing else",
        Estimator::Snips => "as ips; a bias of one part in the effective rows buys a value within the rewards' range",
        Estimator::ClippedIps => {
            "as ips, and rewards of rows beyond lambda are no larger than those of the weight kept: biased towards zero"
        }
        Estimator::SubGaussianIps => "as ips, with all weights shrunk: biased towards zero by a bounded amount",
        Estimator::Dm => "the predicted rewards are right, also for actions seldom logged; the propensities are not used",
        Estimator::Dr => "the propensities or the predicted rewards are right",
        Estimator::Sndr => "as dr, with weights that sum to one",
        Estimator::SwitchDr => "as dr up to lambda; beyond it the predicted rewards are right",
        Estimator::Dros => "as dr for small weights; for large ones the predicted rewards are right",
        Estimator::SubGaussianDr => "as dr for small weights; for large ones mostly the predicted rewards are right",
        Estimator::Mips => "an action moves the reward only through its embedding",
    }
}

/// Shares of the weight beyond which a few rows speak for all.
const HEAVY_ROW: f64 = 0.01;
const HEAVY_TAIL: f64 = 0.3;

fn weights(found: &Diagnostics, rows: f64) -> Vec<Check> {
    let off = format!(
        "the mean weight is {:.4} instead of one, more than three standard errors off: the propensities or the target are not what they say",
        found.mean_weight
    );
    let unsupported = format!("{:.2} % of the target policy is on actions that the log never tries", 100.0 * found.unsupported);
    let tail = format!(
        "the heaviest row carries {:.2} % of the weight, the heaviest hundredth {:.0} %",
        100.0 * found.max_weight_share,
        100.0 * found.tail_mass
    );
    vec![
        Check::judge(
            "mean_weight",
            (!found.mean_weight_is_one).then_some((Status::Warning, off)),
            format!("the mean weight is {:.4}", found.mean_weight),
        ),
        Check::judge(
            "overlap",
            (found.unsupported > 0.0).then_some((Status::Warning, unsupported)),
            format!("the effective sample is {:.0} of {rows:.0} rows", found.effective_rows),
        ),
        Check::judge(
            "weight_tail",
            (found.max_weight_share > HEAVY_ROW || found.tail_mass > HEAVY_TAIL).then_some((Status::Warning, tail)),
            "no few rows carry the weight",
        ),
    ]
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.verdict {
            Word::Identified => writeln!(f, "identified: the logs can tell what the target policy would have earned")?,
            Word::NotIdentified => {
                writeln!(f, "NOT IDENTIFIED: {}; the numbers below mean nothing", self.reason.as_deref().unwrap_or_default())?
            }
            Word::InvalidInput => writeln!(f, "INVALID INPUT: {}", self.reason.as_deref().unwrap_or_default())?,
        }
        let users = self.users.map(|users| format!(" of {users} users")).unwrap_or_default();
        write!(f, "{} rows{users}, {} left out", self.rows, self.rows_left_out)?;
        if let Some((ess, most)) = self.ess.zip(self.max_weight) {
            write!(f, "; effective rows {ess:.0}, largest weight {most:.2}")?;
        }
        writeln!(f, "\n\n{:<18} {:>12} {:>26} {:>26} {:>8}  assumes", "estimator", "value", "95 % interval", "Bernstein", "lambda")?;
        let interval = |ends: Option<[f64; 2]>| ends.map_or_else(|| "-".to_owned(), |[low, high]| format!("[{low:.6}, {high:.6}]"));
        let mut line = |name: &str, value: &Value| {
            let lambda = value.lambda.map_or_else(String::new, |lambda| format!("{lambda:.3}"));
            let assumption = value.assumption.unwrap_or_default();
            writeln!(
                f,
                "{name:<18} {:>12.6} {:>26} {:>26} {lambda:>8}  {assumption}",
                value.value,
                interval(value.ci95),
                interval(value.bernstein95)
            )
        };
        if let Some(logged) = &self.logged {
            line("as logged", logged)?;
        }
        for (_, name) in ESTIMATORS {
            if let Some(value) = self.estimates.get(name) {
                line(name, value)?;
            }
        }
        write!(f, "\nrewards predicted: {}\n{}", self.q, describe(&self.checks))
    }
}

//! Off-policy evaluation: what another policy would have earned, from rows that the logging policy chose and whose propensities it
//! wrote down.
//!
//! One row is one decision: what it earned, the probability with which the logging policy chose it, and the probability with which the
//! target policy would have. The verdict comes first: where the two policies have too little in common, every estimator still returns
//! a number, and the number means nothing.

use super::bootstrap::{self, Clusters};
use super::ope_limits::Limits;
use super::{Estimate, Interval, ab, finite, mean, ope_marginal};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// The decisions, by column.
#[derive(Clone, Copy, Debug)]
pub struct Rounds<'a> {
    pub rewards: &'a [f64],
    /// P(chosen action) under the logging policy, in (0, 1].
    pub propensities: &'a [f64],
    /// P(the same action) under the target policy, in [0, 1].
    pub targets: &'a [f64],
    /// Hash of the user of each row.
    pub users: &'a [u64],
    /// A model of the reward, cross-fitted with folds split by user. Without it only the weighting estimators are computed.
    pub model: Option<Model<'a>>,
    /// The embedding (segment, category) of each row's action, and what else the marginal weights may depend on, as a number from 0.
    pub embeddings: Option<&'a [u32]>,
    /// Share of the target policy's mass on actions that the logging policy never takes; where it is not known it is read off the mean
    /// weight, which falls short of 1 by that much.
    pub unsupported: Option<f64>,
}

#[derive(Clone, Copy, Debug)]
pub struct Model<'a> {
    /// q: predicted reward of the chosen action.
    pub chosen: &'a [f64],
    /// v: predicted reward under the target policy, sum of pi_e q over the actions.
    pub target: &'a [f64],
    /// The mean of v in each bootstrap replicate, the model fitted again: what its own data leave open belongs to the direct method's
    /// interval. Empty where the model was not fitted on these rows.
    pub refitted: &'a [f64],
}

/// How to evaluate.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Plan {
    pub replicates: usize,
    pub alpha: f64,
    /// How far the estimators that limit a row's weight go.
    pub limits: Limits,
}

impl Default for Plan {
    fn default() -> Self {
        Self { replicates: 1000, alpha: 0.05, limits: Limits::fixed(10.0, 0.1) }
    }
}

/// Refusals: effective rows at least this many and this share of the rows, ...
const MIN_EFFECTIVE_ROWS: f64 = 100.0;
const MIN_EFFECTIVE_SHARE: f64 = 0.05;
/// ... no row with more of the weight, no more of the target without support.
const MAX_ROW_SHARE: f64 = 0.02;
const MAX_UNSUPPORTED: f64 = 0.01;
/// ... and no mean weight that is surely off one by more than this: the rows were not drawn with the propensities they say.
const MAX_MEAN_WEIGHT_ERROR: f64 = 0.05;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Evaluation {
    pub rows: u64,
    pub users: u64,
    /// Rows that the caller could not use: no propensity was logged, or the target shows nothing there.
    pub rows_left_out: u64,
    pub verdict: Verdict,
    /// What the logging policy earned a row.
    pub logged: Option<Estimate>,
    /// What the target policy would have earned a row.
    pub estimates: Vec<PolicyValue>,
    pub diagnostics: Option<Diagnostics>,
    /// The policy that served, on the rows that both speak of, and target minus it with a paired interval.
    pub champion: Option<Estimate>,
    pub difference: Option<Estimate>,
    /// Users with a reward on a row where the two policies differ: only they decide the difference.
    #[serde(default)]
    pub deciding_users: Option<u64>,
}

/// The fewest deciding users on which a difference may be judged. What is new in a table was seen on explore rows alone, seldom and with
/// large weights, so a few users miss its reward altogether: of two equally good ads, one shown once in eleven times, the bootstrap's 95 %
/// interval finds the rare one worse in more than 15 worlds of a hundred with 10 deciding users, in fewer than 7 with 100 (the
/// simulations of `cargo bench --bench statistics`).
pub const MIN_DECIDING_USERS: u64 = 100;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Verdict {
    Identified,
    NotIdentified { reason: String },
}

/// One estimator's answer.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct PolicyValue {
    pub estimator: Estimator,
    pub value: f64,
    /// Percentile bootstrap by user. With skewed rewards a few hundred replicates leave its ends too near: intervals of 500 hold the truth
    /// in 92 worlds of a hundred, of 1,000 in 94.
    pub interval: Option<Interval>,
    /// Empirical Bernstein (Maurer and Pontil 2009) over users' sums, their range taken as observed: wider, and honest with few
    /// rewards. None for ratios of sums.
    pub bernstein: Option<Interval>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Diagnostics {
    /// (sum w)^2 / sum w^2.
    pub effective_rows: f64,
    pub max_weight: f64,
    /// Of the sum of weights, in the heaviest row.
    pub max_weight_share: f64,
    /// Of the sum of weights, above the clip.
    pub clipped_mass: f64,
    /// Of the sum of weights, in the heaviest hundredth of the rows.
    pub tail_mass: f64,
    pub unsupported: f64,
    /// Should be 1.
    pub mean_weight: f64,
    /// Its standard error, by user.
    pub mean_weight_error: Option<f64>,
    /// Whether it is, within three standard errors.
    pub mean_weight_is_one: bool,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    Ips,
    ClippedIps,
    Snips,
    SubGaussianIps,
    Dm,
    Dr,
    Sndr,
    SwitchDr,
    Dros,
    SubGaussianDr,
    /// Weights of the action's embedding instead of the action's own.
    Mips,
}

const WEIGHTING: [Estimator; 4] = [Estimator::Ips, Estimator::ClippedIps, Estimator::Snips, Estimator::SubGaussianIps];
const MODELLED: [Estimator; 6] =
    [Estimator::Dm, Estimator::Dr, Estimator::Sndr, Estimator::SwitchDr, Estimator::Dros, Estimator::SubGaussianDr];

impl Evaluation {
    /// The estimate to go by: doubly robust where there is a model of the reward, else self-normalised.
    pub fn value(&self) -> Option<&PolicyValue> {
        let of = |estimator| self.estimates.iter().find(|estimate| estimate.estimator == estimator);
        of(Estimator::Dr).or_else(|| of(Estimator::Snips))
    }

    pub fn identified(&self) -> bool {
        self.verdict == Verdict::Identified
    }
}

/// The target policy's value by every estimator that the columns allow, with diagnostics and verdict.
///
/// # Errors
/// `Contract` when a column has another length, a number is not finite, or a probability is none.
pub fn evaluate(rounds: &Rounds<'_>, plan: &Plan, seed: u64) -> Result<Evaluation> {
    check(rounds)?;
    let clusters = Clusters::new(rounds.users);
    let weights: Vec<f64> = rounds.targets.iter().zip(rounds.propensities).map(|(target, logged)| target / logged).collect();
    let mut evaluation = Evaluation {
        rows: weights.len() as u64,
        users: clusters.count() as u64,
        rows_left_out: 0,
        verdict: Verdict::NotIdentified { reason: "there are no rows with a propensity".into() },
        logged: None,
        estimates: Vec::new(),
        diagnostics: None,
        champion: None,
        difference: None,
        deciding_users: None,
    };
    if weights.is_empty() {
        return Ok(evaluation);
    }
    let sums = clusters.sums(|row| sums_of_row(rounds, &weights, &plan.limits, row));
    let total = total_of(&sums);
    let plan_of_totals = bootstrap::Plan { replicates: plan.replicates, alpha: plan.alpha, seed };
    let replicates = bootstrap::totals(&plan_of_totals, &clusters, &sums);
    let interval = |statistic: &dyn Fn(&Sums) -> f64| {
        bootstrap::percentile(&replicates.iter().map(|sums| finite(statistic(sums))).collect::<Vec<_>>(), plan.alpha)
    };
    let logged = |sums: &Sums| sums[REWARD] / sums[ROWS];
    evaluation.logged = Some(Estimate { value: logged(&total), interval: interval(&logged) });
    let modelled: &[Estimator] = if rounds.model.is_some() { &MODELLED } else { &[] };
    for &estimator in WEIGHTING.iter().chain(modelled) {
        if let Some(value) = finite(estimator.of(&total)) {
            let refitted = rounds.model.map(|model| model.refitted).filter(|refitted| estimator == Estimator::Dm && !refitted.is_empty());
            let interval = match refitted {
                Some(refitted) => bootstrap::percentile(&refitted.iter().map(|value| finite(*value)).collect::<Vec<_>>(), plan.alpha),
                None => interval(&|sums| estimator.of(sums)),
            };
            // A bound for means of given numbers: it knows nothing of what a fitted model leaves open.
            let bernstein =
                if estimator.is_mean() && refitted.is_none() { bernstein(estimator, &sums, total[ROWS], value, plan.alpha) } else { None };
            evaluation.estimates.push(PolicyValue { estimator, value, interval, bernstein });
        }
    }
    if let Some(embeddings) = rounds.embeddings {
        let found = ope_marginal::evaluate(rounds.rewards, &weights, embeddings, &clusters, &plan_of_totals);
        let interval = bootstrap::percentile(&found.replicates, plan.alpha);
        evaluation.estimates.push(PolicyValue { estimator: Estimator::Mips, value: found.value, interval, bernstein: None });
    }
    let diagnostics = diagnose(&weights, &sums, plan.limits.clipped_ips, rounds.unsupported);
    evaluation.verdict = match rewarded(rounds, &weights) {
        false => Verdict::NotIdentified { reason: "the target policy shows no row that was rewarded: nothing bounds its value".into() },
        true => verdict(&diagnostics, weights.len() as f64),
    };
    evaluation.diagnostics = Some(diagnostics);
    Ok(evaluation)
}

/// A target policy beside another on the same rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// The value of the other.
    pub other: Estimate,
    /// Target minus other, with its paired interval.
    pub difference: Estimate,
    /// Users with a reward on a row where the two differ.
    pub deciding_users: u64,
}

/// The target policy against another on the same rows, by the estimator of [`Evaluation::value`].
pub fn difference(rounds: &Rounds<'_>, other: &Rounds<'_>, plan: &Plan, seed: u64) -> Result<Option<Comparison>> {
    check(rounds)?;
    check(other)?;
    assert_eq!(rounds.users, other.users, "the same rows");
    if rounds.rewards.is_empty() {
        return Ok(None);
    }
    let clusters = Clusters::new(rounds.users);
    let estimator = if rounds.model.is_some() && other.model.is_some() { Estimator::Dr } else { Estimator::Snips };
    let of = |rounds: &Rounds<'_>| {
        let weights: Vec<f64> = rounds.targets.iter().zip(rounds.propensities).map(|(target, logged)| target / logged).collect();
        let sums = clusters.sums(|row| sums_of_row(rounds, &weights, &plan.limits, row));
        let plan = bootstrap::Plan { replicates: plan.replicates, alpha: plan.alpha, seed };
        let replicates = bootstrap::totals(&plan, &clusters, &sums).iter().map(|sums| finite(estimator.of(sums))).collect::<Vec<_>>();
        (estimator.of(&total_of(&sums)), replicates)
    };
    let ((value, of_value), (of_other, of_others)) = (of(rounds), of(other));
    let Some(difference) = finite(value - of_other) else { return Ok(None) };
    let paired = bootstrap::differences(&of_value, &of_others);
    let differ = |row: usize| (rounds.targets[row] - other.targets[row]).abs() > 1e-9;
    let deciding = clusters.sums(|row| [f64::from(u8::from(rounds.rewards[row] != 0.0 && differ(row)))]);
    Ok(Some(Comparison {
        other: Estimate { value: of_other, interval: bootstrap::percentile(&of_others, plan.alpha) },
        difference: Estimate { value: difference, interval: bootstrap::percentile(&paired, plan.alpha) },
        deciding_users: deciding.iter().filter(|[rows]| *rows > 0.0).count() as u64,
    }))
}

fn total_of(sums: &[Sums]) -> Sums {
    sums.iter().fold([0.0; SUMS], |total, sums| std::array::from_fn(|k| total[k] + sums[k]))
}

fn check(rounds: &Rounds<'_>) -> Result<()> {
    let rows = rounds.rewards.len();
    let mut columns = vec![rounds.rewards, rounds.propensities, rounds.targets];
    columns.extend(rounds.model.iter().flat_map(|model| [model.chosen, model.target]));
    let embeddings = rounds.embeddings.map_or(rows, <[u32]>::len);
    if rounds.users.len() != rows || embeddings != rows || columns.iter().any(|column| column.len() != rows) {
        return Err(Error::contract("off-policy columns are of different length"));
    }
    if let Some(row) = rounds.propensities.iter().position(|p| !(*p > 0.0 && *p <= 1.0)) {
        let propensity = rounds.propensities[row];
        return Err(Error::contract(format_args!("row {row} was logged with propensity {propensity}, which is not in (0, 1]"))
            .action("log the probability with which the shown ad was chosen"));
    }
    // A target found by dividing sums may exceed 1 by a rounding error.
    if let Some(row) = rounds.targets.iter().position(|p| !(*p >= 0.0 && *p <= 1.0 + 1e-9)) {
        return Err(Error::contract(format_args!("row {row} has target probability {}, which is not in [0, 1]", rounds.targets[row])));
    }
    if columns.iter().any(|column| column.iter().any(|value| !value.is_finite())) {
        return Err(Error::contract("an off-policy reward or prediction is not a finite number"));
    }
    Ok(())
}

/// What rows sum up to: every estimator is a function of these.
type Sums = [f64; SUMS];
const SUMS: usize = 11;
const ROWS: usize = 0;
const REWARD: usize = 1;
const WEIGHT: usize = 2;
const WEIGHTED: usize = 3;
const CLIPPED: usize = 4;
const SHRUNK: usize = 5;
/// Of the model: v, then the residual r - q by weight, by weight up to the clip, by the optimistically shrunk and by the sub-Gaussian.
const VALUE: usize = 6;
const RESIDUAL: usize = 7;
const SWITCHED: usize = 8;
const OPTIMISTIC: usize = 9;
const SHRUNK_RESIDUAL: usize = 10;

fn sums_of_row(rounds: &Rounds<'_>, weights: &[f64], limits: &Limits, row: usize) -> Sums {
    let (r, w) = (rounds.rewards[row], weights[row]);
    let (q, v) = rounds.model.map_or((0.0, 0.0), |model| (model.chosen[row], model.target[row]));
    let limited = |estimator: Estimator| estimator.limited(w, limits);
    let residual = r - q;
    [
        1.0,
        r,
        w,
        w * r,
        limited(Estimator::ClippedIps) * r,
        limited(Estimator::SubGaussianIps) * r,
        v,
        w * residual,
        limited(Estimator::SwitchDr) * residual,
        limited(Estimator::Dros) * residual,
        limited(Estimator::SubGaussianDr) * residual,
    ]
}

impl Estimator {
    /// The estimate from sums over rows.
    fn of(self, sums: &Sums) -> f64 {
        let mean = |sum: f64| sum / sums[ROWS];
        match self {
            Self::Ips => mean(sums[WEIGHTED]),
            Self::ClippedIps => mean(sums[CLIPPED]),
            Self::Snips => sums[WEIGHTED] / sums[WEIGHT],
            Self::SubGaussianIps => mean(sums[SHRUNK]),
            Self::Dm => mean(sums[VALUE]),
            Self::Dr => mean(sums[VALUE] + sums[RESIDUAL]),
            Self::Sndr => mean(sums[VALUE]) + sums[RESIDUAL] / sums[WEIGHT],
            Self::SwitchDr => mean(sums[VALUE] + sums[SWITCHED]),
            Self::Dros => mean(sums[VALUE] + sums[OPTIMISTIC]),
            Self::SubGaussianDr => mean(sums[VALUE] + sums[SHRUNK_RESIDUAL]),
            // Its weights depend on all rows: not a function of sums over them.
            Self::Mips => f64::NAN,
        }
    }

    /// The weight that the estimator gives a row, at most what its limit allows.
    pub(super) fn limited(self, w: f64, limits: &Limits) -> f64 {
        // Metelli et al. (2021).
        let sub_gaussian = |l: f64| w / (1.0 - l + l * w);
        if w == 0.0 {
            return 0.0;
        }
        match self {
            Self::ClippedIps => w.min(limits.clipped_ips),
            Self::SwitchDr if w > limits.switch_dr => 0.0,
            // Su et al. (2020): l w / (w^2 + l), written so that an infinite limit is none.
            Self::Dros => w / (w * w / limits.dros + 1.0),
            Self::SubGaussianIps => sub_gaussian(limits.sub_gaussian_ips),
            Self::SubGaussianDr => sub_gaussian(limits.sub_gaussian_dr),
            _ => w,
        }
    }

    /// Whether it uses the model of the reward.
    pub(super) fn is_modelled(self) -> bool {
        MODELLED.contains(&self)
    }

    /// Whether it is a mean over rows rather than a ratio of two random sums.
    fn is_mean(self) -> bool {
        !matches!(self, Self::Snips | Self::Sndr)
    }
}

fn bernstein(estimator: Estimator, sums: &[Sums], rows: f64, value: f64, alpha: f64) -> Option<Interval> {
    let contributions: Vec<f64> = sums.iter().map(|sums| estimator.of(sums) * sums[ROWS]).collect();
    let users = contributions.len() as f64;
    let (least, greatest) = contributions.iter().fold((f64::MAX, f64::MIN), |(least, greatest), &x| (least.min(x), greatest.max(x)));
    let variance = super::covariance(&contributions, &contributions);
    let log = (4.0 / alpha).ln(); // alpha / 2 on each side
    let half = (2.0 * variance * log / users).sqrt() + 7.0 * (greatest - least) * log / (3.0 * (users - 1.0));
    Interval::around(value, half * users / rows)
}

fn diagnose(weights: &[f64], sums: &[Sums], clip: f64, unsupported: Option<f64>) -> Diagnostics {
    let total: f64 = weights.iter().sum();
    let squares: f64 = weights.iter().map(|w| w * w).sum();
    let max_weight = weights.iter().copied().fold(0.0, f64::max);
    let share = |mass: f64| if total > 0.0 { mass / total } else { 0.0 };
    let mean_weight = mean(weights);
    let by_user = |k: usize| sums.iter().map(|sums| sums[k]).collect::<Vec<_>>();
    let error = ab::ratio(&by_user(WEIGHT), &by_user(ROWS)).map(|arm| (arm.variance / arm.users as f64).sqrt());
    let off = mean_weight - 1.0;
    let mean_weight_is_one = error.is_some_and(|error| off.abs() <= 3.0 * error + 1e-9);
    let missing = if off < 0.0 && !mean_weight_is_one { -off } else { 0.0 };
    Diagnostics {
        effective_rows: if squares > 0.0 { total * total / squares } else { 0.0 },
        max_weight,
        max_weight_share: share(max_weight),
        clipped_mass: share(weights.iter().map(|w| (w - clip).max(0.0)).sum()),
        tail_mass: share(heaviest_hundredth(weights)),
        // What the caller counts sees an action that nobody tried, the mean weight one that was not tried where the target wants it.
        unsupported: unsupported.unwrap_or(0.0).max(missing),
        mean_weight,
        mean_weight_error: error,
        mean_weight_is_one,
    }
}

fn heaviest_hundredth(weights: &[f64]) -> f64 {
    let mut weights = weights.to_vec();
    weights.sort_unstable_by(|a, b| b.total_cmp(a));
    weights[..weights.len().div_ceil(100)].iter().sum()
}

/// Whether the target's rows hold any reward. Where they hold none every replicate of the bootstrap is the same number, and an interval
/// without width would look like certainty.
fn rewarded(rounds: &Rounds<'_>, weights: &[f64]) -> bool {
    rounds.rewards.iter().zip(weights).any(|(reward, weight)| *reward != 0.0 && *weight > 0.0)
}

fn verdict(diagnostics: &Diagnostics, rows: f64) -> Verdict {
    let needed = MIN_EFFECTIVE_ROWS.max(MIN_EFFECTIVE_SHARE * rows);
    let percent = |share: f64| 100.0 * share;
    let reason = if diagnostics.effective_rows < needed {
        format!("the effective sample is {:.0} of {rows:.0} rows, {needed:.0} are needed", diagnostics.effective_rows)
    } else if diagnostics.max_weight_share > MAX_ROW_SHARE {
        format!("one row carries {:.1} % of the weight, 2 % is the most", percent(diagnostics.max_weight_share))
    } else if diagnostics.unsupported > MAX_UNSUPPORTED {
        let found = format!(
            "{:.1} % of the target policy was never tried by the logging policy, 1 % is the most",
            percent(diagnostics.unsupported)
        );
        match diagnostics.mean_weight_is_one {
            true => found,
            // Either of the two leaves such a mean.
            false => format!("{found}; or the propensities are wrong: the mean weight is {:.3} instead of one", diagnostics.mean_weight),
        }
    } else if !diagnostics.mean_weight_is_one && (diagnostics.mean_weight - 1.0).abs() > MAX_MEAN_WEIGHT_ERROR {
        format!("the mean weight is {:.3} instead of one: the rows were not drawn with the propensities they say", diagnostics.mean_weight)
    } else {
        return Verdict::Identified;
    };
    Verdict::NotIdentified { reason }
}

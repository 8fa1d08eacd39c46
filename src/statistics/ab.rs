//! Arms of a randomised experiment: what each did, what the difference is, and how sure of it one may be.
//!
//! The unit is the user: users repeat, so a click-through rate is a ratio of two sums over users and its variance comes from the delta
//! method, never from the binomial formula. Formulas are those of GrowthBook's gbstats 0.8, to whose numbers the tests hold it.

use super::bootstrap::Clusters;
use super::distribution::{chi_square_upper, normal_critical, normal_upper, student_critical, student_two_sided};
use super::moments::Moments;
use super::{Estimate, Interval, finite};
use serde::{Deserialize, Serialize};

/// An SRM p-value below this is an alarm: the assignment, not chance, made the arms unequal.
const SRM_ALARM: f64 = 0.0005;

/// With the control's mean fewer standard errors from zero, the delta method misleads and Fieller's set is used.
const FIELLER_BELOW: f64 = 6.0;

/// Number of users at which the always-valid interval is tightest.
const ALWAYS_VALID_USERS: f64 = 5_000.0;

/// One metric of one arm: a mean or a ratio of sums over its users.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Arm {
    pub users: u64,
    pub mean: f64,
    /// The mean before adjustment by CUPED, else the mean.
    pub unadjusted_mean: f64,
    /// Per user: that of the mean is this over `users`.
    pub variance: f64,
}

impl Arm {
    /// The mean with its t interval; none when no user differs from another, which is too few users rather than certainty.
    pub fn estimate(&self, alpha: f64) -> Estimate {
        let half = student_critical(alpha, self.users as f64 - 1.0) * self.variance_of_mean().sqrt();
        let interval = if self.variance > 0.0 { Interval::around(self.mean, half) } else { None };
        Estimate { value: self.mean, interval }
    }

    fn variance_of_mean(&self) -> f64 {
        self.variance / self.users as f64
    }
}

/// What is measured, by the columns of a table of moments with one row a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Mean of a column over users.
    Mean(usize),
    /// Share of the users of whom a column of zeros and ones says yes.
    Proportion(usize),
    /// Sum of one column over the sum of another.
    Ratio(usize, usize),
}

impl Measure {
    fn value(self, moments: &Moments) -> f64 {
        match self {
            Self::Mean(column) | Self::Proportion(column) => moments.mean(column),
            Self::Ratio(above, below) => moments.mean(above) / moments.mean(below),
        }
    }

    /// How the value moves with the mean of each column: the delta method.
    fn slopes(self, moments: &Moments) -> [(usize, f64); 2] {
        match self {
            Self::Mean(column) | Self::Proportion(column) => [(column, 1.0), (column, 0.0)],
            Self::Ratio(above, below) => {
                let (m, d) = (moments.mean(above), moments.mean(below));
                [(above, 1.0 / d), (below, -m / (d * d))]
            }
        }
    }

    fn variance(self, moments: &Moments) -> f64 {
        match self {
            Self::Proportion(column) => moments.mean(column) * (1.0 - moments.mean(column)),
            _ => self.covariance(self, moments),
        }
    }

    fn covariance(self, other: Self, moments: &Moments) -> f64 {
        let of = |(a, slope_a): (usize, f64), (b, slope_b): (usize, f64)| match slope_a * slope_b {
            0.0 => 0.0,
            slope => slope * moments.covariance(a, b),
        };
        let (mine, others) = (self.slopes(moments), other.slopes(moments));
        mine.iter().flat_map(|a| others.iter().map(|b| of(*a, *b))).sum()
    }
}

/// One arm's measure. None below two users, or where the denominators sum to 0.
pub fn measure(measure: Measure, moments: &Moments) -> Option<Arm> {
    let value = measure.value(moments);
    // Rounding can leave a constant ratio a hair below zero.
    arm(moments.rows(), value, value, measure.variance(moments).max(0.0))
}

/// A value a user. None below two users.
pub fn mean(values: &[f64]) -> Option<Arm> {
    measure(Measure::Mean(0), &Moments::of(&[values]))
}

/// Sum of numerators over sum of denominators, a pair a user. None below two users or when the denominators sum to 0.
pub fn ratio(numerators: &[f64], denominators: &[f64]) -> Option<Arm> {
    measure(Measure::Ratio(0, 1), &Moments::of(&[numerators, denominators]))
}

/// The ratio of two sums over rows; its interval comes from the spread between the clusters' sums (users), by the delta method.
pub fn ratio_over(clusters: &Clusters, alpha: f64, row: impl Fn(usize) -> [f64; 2]) -> Option<Estimate> {
    let (above, below): (Vec<f64>, Vec<f64>) = clusters.sums(row).into_iter().map(|[above, below]| (above, below)).unzip();
    Some(ratio(&above, &below)?.estimate(alpha))
}

fn arm(users: u64, mean: f64, unadjusted_mean: f64, variance: f64) -> Option<Arm> {
    (users > 1 && mean.is_finite() && variance.is_finite()).then_some(Arm { users, mean, unadjusted_mean, variance })
}

/// Two arms adjusted by one theta.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cuped {
    pub theta: f64,
    pub control: Arm,
    pub treatment: Arm,
}

/// CUPED (Deng et al. 2013): takes out what the time before predicts, with one theta over both arms. A ratio is adjusted through its
/// linear part (Deng and Shi 2016), so any measure may be adjusted by any other of the same users.
pub fn cuped(control: &Moments, treatment: &Moments, outcome: Measure, before: Measure) -> Option<Cuped> {
    let mut pooled = control.clone();
    pooled.merge(treatment);
    let theta = finite(outcome.covariance(before, &pooled) / before.variance(&pooled)).unwrap_or(0.0);
    let adjusted = |moments: &Moments| {
        let (y, x) = (outcome.value(moments), before.value(moments));
        let variance =
            outcome.variance(moments) + theta * theta * before.variance(moments) - 2.0 * theta * outcome.covariance(before, moments);
        let taken = if theta == 0.0 { 0.0 } else { theta * x };
        arm(moments.rows(), y - taken, y, variance.max(0.0))
    };
    Some(Cuped { theta, control: adjusted(control)?, treatment: adjusted(treatment)? })
}

/// Treatment against control.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Comparison {
    /// Treatment minus control.
    pub absolute: Effect,
    /// As a share of the control's (unadjusted) mean; none where that is zero.
    pub relative: Option<Effect>,
    /// Welch and Satterthwaite's; none where no user of an arm differs from another.
    pub degrees_of_freedom: Option<f64>,
}

/// A difference. Intervals and p-values are none when no user of an arm differs from another (an arm without a click, say): how far
/// that arm may be from what it showed is then unknown, and an interval of the other arm's chance alone would be too narrow.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Effect {
    pub estimate: f64,
    /// Of the estimate, by the delta method.
    pub standard_error: f64,
    /// For one look, on the day fixed beforehand. By Fieller's method it can be unbounded, and is then none.
    pub interval: Option<Interval>,
    /// Two-sided; by Fieller's method that of the absolute difference.
    pub p: Option<f64>,
    /// Holds however often one looks.
    pub always_valid_interval: Option<Interval>,
    pub always_valid_p: Option<f64>,
    pub method: Method,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    Delta,
    Fieller,
}

/// The difference of two arms, absolute and relative.
pub fn compare(control: &Arm, treatment: &Arm, alpha: f64) -> Comparison {
    let (va, vb) = (control.variance_of_mean(), treatment.variance_of_mean());
    let users = (control.users + treatment.users) as f64;
    let df = welch(va, control.users, vb, treatment.users);
    let difference = treatment.mean - control.mean;
    let absolute = effect(difference, va + vb, df, users, alpha);
    let (ma, mb) = (control.unadjusted_mean, treatment.unadjusted_mean);
    let relative = finite(difference / ma).map(|lift| {
        let delta = effect(lift, vb / (ma * ma) + va * mb * mb / ma.powi(4), df, users, alpha);
        if ma.abs() >= FIELLER_BELOW * va.sqrt() {
            return delta;
        }
        let interval = student(df, alpha).and_then(|t| fieller(ma, va, ma + difference, vb, t));
        Effect { interval, p: absolute.p, method: Method::Fieller, ..delta }
    });
    Comparison { absolute, relative, degrees_of_freedom: finite(df) }
}

/// Welch and Satterthwaite's degrees of freedom; no number where an arm's variance is not known.
fn welch(va: f64, na: u64, vb: f64, nb: u64) -> f64 {
    if va <= 0.0 || vb <= 0.0 {
        return f64::NAN;
    }
    (va + vb).powi(2) / (va * va / (na as f64 - 1.0) + vb * vb / (nb as f64 - 1.0))
}

fn student(df: f64, alpha: f64) -> Option<f64> {
    df.is_finite().then(|| student_critical(alpha, df))
}

fn effect(estimate: f64, variance: f64, df: f64, users: f64, alpha: f64) -> Effect {
    let error = variance.sqrt();
    let mut effect = Effect {
        estimate,
        standard_error: error,
        interval: None,
        p: None,
        always_valid_interval: None,
        always_valid_p: None,
        method: Method::Delta,
    };
    let Some(t) = student(df, alpha) else { return effect };
    effect.interval = Interval::around(estimate, t * error);
    effect.p = finite(student_two_sided(estimate / error, df));
    // Asymptotic confidence sequence: Waudby-Smith et al., arXiv 2103.06476, equations 9, 155 and 161.
    let rho2 = |alpha: f64| (-2.0 * alpha.ln() + (1.0 - 2.0 * alpha.ln()).ln()) / ALWAYS_VALID_USERS;
    let widened = users * rho2(alpha) + 1.0;
    let half = (users * variance).sqrt() * (2.0 * widened / (users * users * rho2(alpha)) * (widened.sqrt() / alpha).ln()).sqrt();
    effect.always_valid_interval = Interval::around(estimate, half);
    let widened = users * rho2(0.05) + 1.0;
    let evidence = rho2(0.05) * (estimate * estimate / variance) * users / (2.0 * widened);
    effect.always_valid_p = finite((widened.sqrt() * (-evidence).exp()).min(1.0));
    effect
}

/// The lifts that the data do not reject: those with (mb - (1 + lift) ma)^2 <= t^2 (vb + (1 + lift)^2 va). None when unbounded.
fn fieller(ma: f64, va: f64, mb: f64, vb: f64, t: f64) -> Option<Interval> {
    let (a, half_b, c) = (ma * ma - t * t * va, ma * mb, mb * mb - t * t * vb);
    if a <= 0.0 {
        return None;
    }
    let root = (half_b * half_b - a * c).max(0.0).sqrt();
    Some(Interval { low: (half_b - root) / a - 1.0, high: (half_b + root) / a - 1.0 })
}

/// Whether a metric that should not get worse stayed within what it may lose.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Guardrail {
    /// The largest change that is put up with: positive where more is worse, negative where less is.
    pub margin: f64,
    /// One-sided, of the hypothesis that the change is at least the margin: small when the guardrail holds.
    pub p: Option<f64>,
}

/// Tests for non-inferiority: a change of `margin` or worse is what must be refuted.
pub fn guardrail(effect: &Effect, degrees_of_freedom: Option<f64>, margin: f64) -> Guardrail {
    let t = (effect.estimate - margin) / effect.standard_error;
    let towards_better = if margin >= 0.0 { -t } else { t };
    let p = degrees_of_freedom.filter(|_| t.is_finite()).map(|df| {
        let tail = student_two_sided(t, df) / 2.0;
        if towards_better >= 0.0 { tail } else { 1.0 - tail }
    });
    Guardrail { margin, p }
}

/// The share of experiments that find an effect as large as they were planned for.
pub const POWER: f64 = 0.8;

/// The smallest true effect that a two-sided test at level `alpha` finds with probability [`POWER`].
pub fn minimum_detectable(standard_error: f64, alpha: f64) -> f64 {
    (normal_critical(alpha) + normal_critical(2.0 * (1.0 - POWER))) * standard_error
}

/// The probability with which a two-sided test at level `alpha` finds a true effect of that size.
pub fn power(effect: f64, standard_error: f64, alpha: f64) -> Option<f64> {
    let (distance, critical) = ((effect / standard_error).abs(), normal_critical(alpha));
    finite(normal_upper(critical - distance) + normal_upper(critical + distance))
}

/// The slope of y over x by weighted least squares, the weights being one over the variance of each y; points are (x, y, weight).
pub fn weighted_slope(points: &[(f64, f64, f64)], alpha: f64) -> Option<Estimate> {
    let sum = |of: &dyn Fn(&(f64, f64, f64)) -> f64| points.iter().map(of).sum::<f64>();
    let total = sum(&|point| point.2);
    let (x, y) = (sum(&|point| point.2 * point.0) / total, sum(&|point| point.2 * point.1) / total);
    let spread = sum(&|point| point.2 * (point.0 - x).powi(2));
    let value = finite(sum(&|point| point.2 * (point.0 - x) * (point.1 - y)) / spread)?;
    Some(Estimate { value, interval: Interval::around(value, normal_critical(alpha) / spread.sqrt()) })
}

/// The difference of two arms in one column over that in another: revenue that the treatment brought per unit of cost that it caused.
///
/// Fieller's set, for the difference below may be near zero; the interval is none when the set is unbounded.
pub fn ratio_of_differences(control: &Moments, treatment: &Moments, above: usize, below: usize, alpha: f64) -> Option<Estimate> {
    let (na, nb) = (control.rows() as f64, treatment.rows() as f64);
    if na < 2.0 || nb < 2.0 {
        return None;
    }
    let difference = |column: usize| treatment.mean(column) - control.mean(column);
    let covariance = |a: usize, b: usize| control.covariance(a, b) / na + treatment.covariance(a, b) / nb;
    let (m, d) = (difference(above), difference(below));
    let (vm, cov, vd) = (covariance(above, above), covariance(above, below), covariance(below, below));
    let value = finite(m / d)?;
    let t = normal_critical(alpha);
    // The r with (m - r d)^2 <= t^2 (vm - 2 r cov + r^2 vd).
    let (a, half_b, c) = (d * d - t * t * vd, m * d - t * t * cov, m * m - t * t * vm);
    let root = (half_b * half_b - a * c).max(0.0).sqrt();
    let interval = (a > 0.0 && vm > 0.0).then(|| Interval { low: (half_b - root) / a, high: (half_b + root) / a });
    Some(Estimate { value, interval })
}

/// Whether users were split as planned (sample ratio mismatch).
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Srm {
    pub chi_square: f64,
    pub degrees_of_freedom: usize,
    pub p: f64,
    pub alarm: bool,
}

/// Chi-square of users by arm against their planned shares, which need not sum to 1. None below two arms or without users.
pub fn srm(users: &[u64], shares: &[f64]) -> Option<Srm> {
    assert_eq!(users.len(), shares.len(), "one share an arm");
    let total: u64 = users.iter().sum();
    let whole: f64 = shares.iter().sum();
    if users.len() < 2 || total == 0 || whole <= 0.0 {
        return None;
    }
    let degrees_of_freedom = users.len() - 1;
    let unplanned = users.iter().zip(shares).any(|(&users, &share)| users > 0 && share <= 0.0);
    let distance = |(&users, &share): (&u64, &f64)| {
        let expected = total as f64 * share / whole;
        (users as f64 - expected).powi(2) / expected
    };
    let chi_square = users.iter().zip(shares).filter(|(_, share)| **share > 0.0).map(distance).sum();
    let p = if unplanned { 0.0 } else { chi_square_upper(chi_square, degrees_of_freedom)? };
    Some(Srm { chi_square, degrees_of_freedom, p, alarm: p < SRM_ALARM })
}

/// P-values adjusted so that rejecting those <= q keeps the share of false rejections at q (Benjamini and Hochberg 1995).
pub fn benjamini_hochberg(p: &[f64]) -> Vec<f64> {
    let count = p.len() as f64;
    let mut adjusted = vec![0.0; p.len()];
    let mut least: f64 = 1.0;
    for (rank, row) in super::order(p).into_iter().enumerate().rev() {
        least = least.min(p[row] * count / (rank + 1) as f64);
        adjusted[row] = least;
    }
    adjusted
}

/// P-values adjusted so that rejecting those <= a keeps the chance of any false rejection at a (Holm 1979): for guardrails.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut adjusted = vec![0.0; p.len()];
    let mut greatest: f64 = 0.0;
    for (rank, row) in super::order(p).into_iter().enumerate() {
        greatest = greatest.max(p[row] * (p.len() - rank) as f64).min(1.0);
        adjusted[row] = greatest;
    }
    adjusted
}

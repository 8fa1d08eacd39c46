//! Arms of a randomised experiment: what each did, what the difference is, and how sure of it one may be.
//!
//! The unit is the user: users repeat, so a click-through rate is a ratio of two sums over users and its variance comes from the delta
//! method, never from the binomial formula. Formulas are those of GrowthBook's gbstats 0.8, to whose numbers the tests hold it.

use super::distribution::{chi_square_upper, student_critical, student_two_sided};
use super::{Estimate, Interval, covariance, finite, mean as mean_of};
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
    /// The mean with its t interval.
    pub fn estimate(&self, alpha: f64) -> Estimate {
        let users = self.users as f64;
        let half = student_critical(alpha, users - 1.0) * self.variance_of_mean().sqrt();
        Estimate { value: self.mean, interval: Interval::around(self.mean, half) }
    }

    fn variance_of_mean(&self) -> f64 {
        self.variance / self.users as f64
    }
}

/// A value a user. None below two users.
pub fn mean(values: &[f64]) -> Option<Arm> {
    let mean = mean_of(values);
    arm(values.len(), mean, mean, covariance(values, values))
}

/// Sum of numerators over sum of denominators, a pair a user (delta method). None below two users or when the denominators sum to 0.
pub fn ratio(numerators: &[f64], denominators: &[f64]) -> Option<Arm> {
    let (m, d) = (mean_of(numerators), mean_of(denominators));
    let (m2, md, d2) = (covariance(numerators, numerators), covariance(numerators, denominators), covariance(denominators, denominators));
    let variance = m2 / (d * d) - 2.0 * md * m / d.powi(3) + m * m * d2 / d.powi(4);
    // Rounding can leave a constant ratio a hair below zero.
    arm(numerators.len(), m / d, m / d, variance.max(0.0))
}

fn arm(users: usize, mean: f64, unadjusted_mean: f64, variance: f64) -> Option<Arm> {
    (users > 1 && mean.is_finite() && variance.is_finite()).then_some(Arm { users: users as u64, mean, unadjusted_mean, variance })
}

/// Outcomes of an arm's users and the same measure before the experiment.
#[derive(Clone, Copy, Debug)]
pub struct Before<'a> {
    pub outcome: &'a [f64],
    pub before: &'a [f64],
}

/// Two arms adjusted by one theta.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cuped {
    pub theta: f64,
    pub control: Arm,
    pub treatment: Arm,
}

/// CUPED (Deng et al. 2013): takes out what the time before predicts, with one theta over both arms.
pub fn cuped(control: Before<'_>, treatment: Before<'_>) -> Option<Cuped> {
    let pooled = |of: fn(&Before) -> Vec<f64>| [of(&control), of(&treatment)].concat();
    let (outcome, before) = (pooled(|arm| arm.outcome.to_vec()), pooled(|arm| arm.before.to_vec()));
    let theta = finite(covariance(&outcome, &before) / covariance(&before, &before)).unwrap_or(0.0);
    let adjusted = |side: Before<'_>| {
        let (y, x) = (side.outcome, side.before);
        let variance = covariance(y, y) + theta * theta * covariance(x, x) - 2.0 * theta * covariance(y, x);
        arm(y.len(), mean_of(y) - theta * mean_of(x), mean_of(y), variance.max(0.0))
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
}

/// A difference. Intervals and p-values are none when no user differs from another.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Effect {
    pub estimate: f64,
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
    Comparison { absolute, relative }
}

/// Welch and Satterthwaite's degrees of freedom.
fn welch(va: f64, na: u64, vb: f64, nb: u64) -> f64 {
    (va + vb).powi(2) / (va * va / (na as f64 - 1.0) + vb * vb / (nb as f64 - 1.0))
}

fn student(df: f64, alpha: f64) -> Option<f64> {
    df.is_finite().then(|| student_critical(alpha, df))
}

fn effect(estimate: f64, variance: f64, df: f64, users: f64, alpha: f64) -> Effect {
    let mut effect =
        Effect { estimate, interval: None, p: None, always_valid_interval: None, always_valid_p: None, method: Method::Delta };
    let Some(t) = student(df, alpha).filter(|_| variance > 0.0) else { return effect };
    let error = variance.sqrt();
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

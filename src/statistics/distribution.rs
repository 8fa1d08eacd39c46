//! Tails and quantiles of the normal, chi-square and Student distributions.
//!
//! Student's is our own: statrs stops its continued fraction after 140 terms and takes differences of large log-gammas, so it loses
//! digits from some thousand degrees of freedom on, and an A/B test has millions.

use statrs::function::erf::erfc_inv;
use statrs::function::gamma::{checked_gamma_ur, ln_gamma};
use std::f64::consts::{PI, SQRT_2};

/// P(|Z| >= |z|). Through the incomplete gamma function: the constants of statrs' erfc are cut at ten digits.
pub fn normal_two_sided(z: f64) -> f64 {
    chi_square_upper(z * z, 1).unwrap_or(0.0)
}

/// P(Z >= z).
pub fn normal_upper(z: f64) -> f64 {
    let tail = normal_two_sided(z) / 2.0;
    if z >= 0.0 { tail } else { 1.0 - tail }
}

/// The z that a standard normal exceeds in absolute value with probability `alpha`.
pub fn normal_critical(alpha: f64) -> f64 {
    SQRT_2 * erfc_inv(alpha)
}

/// P(chi-square with `degrees` > x).
pub fn chi_square_upper(x: f64, degrees: usize) -> Option<f64> {
    if x <= 0.0 { Some(1.0) } else { checked_gamma_ur(degrees as f64 / 2.0, x / 2.0).ok() }
}

/// P(|T| >= |t|): the regularised incomplete beta I_x(df/2, 1/2) at x = df / (df + t^2).
pub fn student_two_sided(t: f64, df: f64) -> f64 {
    if t == 0.0 {
        return 1.0;
    }
    if df > 1e5 {
        return student_near_normal(t.abs(), df);
    }
    let (a, square) = (df / 2.0, t * t);
    let (x, rest) = (df / (df + square), square / (df + square));
    // x^a (1 - x)^(1/2) / B(a, 1/2)
    let front = (-a * (square / df).ln_1p()).exp() * rest.sqrt() * gamma_half_step(a) / PI.sqrt();
    if x < (a + 1.0) / (a + 2.5) { front * beta_fraction(a, 0.5, x) / a } else { 1.0 - front * beta_fraction(0.5, a, rest) / 0.5 }
}

/// Fisher's expansion in 1/df: above 1e5 degrees its next term is below 1e-14, where the continued fraction begins to cancel.
fn student_near_normal(t: f64, df: f64) -> f64 {
    let s = t * t;
    let first = (s + 1.0) / 4.0;
    let second = (((3.0 * s - 7.0) * s - 5.0) * s - 3.0) / 96.0;
    let third = (((((s - 11.0) * s + 14.0) * s + 6.0) * s - 3.0) * s - 15.0) / 384.0;
    let density = (-s / 2.0).exp() / (2.0 * PI).sqrt();
    normal_two_sided(t) + 2.0 * density * t * (first + (second + third / df) / df) / df
}

/// The t that Student's distribution exceeds in absolute value with probability `alpha`.
pub fn student_critical(alpha: f64, df: f64) -> f64 {
    // The tail is convex in t and the normal's critical value lies to the left, so Newton's steps never overshoot.
    let mut t = normal_critical(alpha);
    for _ in 0..200 {
        let density = gamma_half_step(df / 2.0) / (df * PI).sqrt() * (-(df + 1.0) / 2.0 * (t * t / df).ln_1p()).exp();
        let step = (student_two_sided(t, df) - alpha) / (2.0 * density);
        t += step;
        if step.abs() <= 1e-15 * t {
            break;
        }
    }
    t
}

/// Gamma(a + 1/2) / Gamma(a).
fn gamma_half_step(a: f64) -> f64 {
    if a < 50.0 {
        return (ln_gamma(a + 0.5) - ln_gamma(a)).exp();
    }
    let series = [1.0, -1.0 / 8.0, 1.0 / 128.0, 5.0 / 1024.0, -21.0 / 32_768.0, -399.0 / 262_144.0, 869.0 / 4_194_304.0];
    a.sqrt() * series.iter().rev().fold(0.0, |sum, term| sum / a + term)
}

/// The continued fraction of the incomplete beta function (Numerical Recipes 6.4), by Lentz's method: about sqrt(max(a, b)) terms.
fn beta_fraction(a: f64, b: f64, x: f64) -> f64 {
    let away_from_zero = |value: f64| if value.abs() < 1e-300 { 1e-300 } else { value };
    let (mut c, mut d) = (1.0, 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for m in 1..10_000 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut step = 1.0;
        for term in [even, odd] {
            d = 1.0 / away_from_zero(1.0 + term * d);
            c = away_from_zero(1.0 + term / c);
            step = c * d;
            fraction *= step;
        }
        if (step - 1.0).abs() <= f64::EPSILON {
            break;
        }
    }
    fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 1e-12, "{found} is not {expected}");
    }

    /// Expected values: mpmath at 40 digits.
    #[test]
    fn student_matches_high_precision_values_from_one_to_ten_million_degrees() {
        for (df, t, p) in [
            (1.0, 12.5, 0.050821347332231794),
            (2.5, 0.3, 0.7873423714951973),
            (3.0, 2.0, 0.1393259685588432),
            (17.0, 1.9, 0.07453162828975056),
            (99.0, 4.0, 0.00012225152757111313),
            (101.0, 1.0, 0.319700317776582),
            (8000.0, 4.5, 6.891388919721942e-06),
            (99999.0, 4.0, 6.338799801245495e-05),
            (100001.0, 5.0, 5.742701581874567e-07),
            (250000.5, 0.7, 0.4839279558060545),
            (10000000.0, 2.5, 0.01241934653657847),
        ] {
            assert_close(student_two_sided(t, df), p);
            assert_close(student_critical(p, df), t);
        }
        for (df, critical) in [(1.0, 12.706204736174705), (99.5, 1.9840936109906242), (1e6, 1.959966356814107)] {
            assert_close(student_critical(0.05, df), critical);
        }
    }
}

//! How long outcomes take to arrive, from those that have: a conversion of yesterday has had a day to show, one of last month a month.
//!
//! The delays that are seen are those that fit into the age of their row (right truncation). The product limit read backwards in time
//! (Lagakos, Barraj and De Gruttola 1988) corrects for that: P(delay < t) = product over u >= t of 1 - d(u) / n(u), where n(u) are the
//! outcomes with delay <= u whose row is at least u old, and d(u) those of them with delay u.

/// Outcomes alike in whole units of time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observed {
    /// From the row to the arrival of its outcome.
    pub delay: u32,
    /// From the row to the moment up to which outcomes are known; at least the delay.
    pub age: u32,
    pub count: f64,
}

/// P(an outcome has arrived by the age of its row), given that it ever does within the horizon.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// By age in whole units, up to the horizon.
    arrived: Vec<f64>,
}

/// So many outcomes must be at risk at the horizon: one alone there would decide the whole curve.
const ENOUGH: f64 = 30.0;

impl Curve {
    /// None with too few outcomes to say anything.
    pub fn fit(observed: &[Observed]) -> Option<Self> {
        let oldest = observed.iter().map(|seen| seen.age).max()? as usize;
        // n(u) changes at u = delay (one more) and u = age + 1 (one less).
        let (mut at, mut risk) = (vec![0.0; oldest + 2], vec![0.0; oldest + 2]);
        for seen in observed.iter().filter(|seen| seen.delay <= seen.age) {
            at[seen.delay as usize] += seen.count;
            risk[seen.delay as usize] += seen.count;
            risk[seen.age as usize + 1] -= seen.count;
        }
        for u in 1..risk.len() {
            risk[u] += risk[u - 1];
        }
        let horizon = (0..=oldest).rev().find(|&u| risk[u] >= ENOUGH)?;
        let mut arrived = vec![1.0; horizon + 1];
        for u in (1..=horizon).rev() {
            let share = if risk[u] > 0.0 { at[u] / risk[u] } else { 0.0 };
            arrived[u - 1] = arrived[u] * (1.0 - share);
        }
        Some(Self { arrived })
    }

    /// The age beyond which nothing is known, and nothing more expected.
    pub fn horizon(&self) -> u32 {
        (self.arrived.len() - 1) as u32
    }

    pub fn arrived_by(&self, age: u32) -> f64 {
        self.arrived[(age as usize).min(self.arrived.len() - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of every age up to 100; outcomes take 0, 1, 2, … units, half of the rest each time, so P(delay <= t) = 1 - 2^-(t + 1).
    #[test]
    fn the_curve_of_young_rows_is_that_of_all() {
        let mut observed = Vec::new();
        for age in 0..100 {
            for delay in 0..=age {
                observed.push(Observed { delay, age, count: 1e6 * 0.5f64.powi(delay as i32 + 1) });
            }
        }
        let curve = Curve::fit(&observed).unwrap();
        for age in [0, 1, 3, 10] {
            assert!((curve.arrived_by(age) - (1.0 - 0.5f64.powi(age as i32 + 1))).abs() < 1e-9, "{age}: {}", curve.arrived_by(age));
        }
        assert_eq!(curve.arrived_by(10_000), 1.0);
        // Only what was seen counts: without the correction the youngest rows' quick outcomes would be too many.
        let naive = observed.iter().filter(|seen| seen.delay == 0).map(|seen| seen.count).sum::<f64>()
            / observed.iter().map(|seen| seen.count).sum::<f64>();
        assert!(naive > 0.505, "{naive}");
        assert_eq!(Curve::fit(&[Observed { delay: 1, age: 2, count: 5.0 }]), None);
    }
}

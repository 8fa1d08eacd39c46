//! A ratio of rates within strata: how often one kind of row has an outcome against another, like with like.
//!
//! Mantel and Haenszel's risk ratio: sum of a n0 / n over strata, by sum of b n1 / n. It needs no model and stands many sparse strata, as ads
//! are. Both sums are sums over users, so that the delta method over users gives the interval.

use super::bootstrap::Clusters;
use super::{Estimate, ab};
use std::collections::HashMap;

/// One row: which stratum, whether of the compared kind rather than the reference, and its outcome.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    pub stratum: u32,
    pub compared: bool,
    pub outcome: f64,
    pub user: u64,
}

/// The outcome's rate of the compared rows over that of the reference rows of the same strata; none where no stratum has both and an
/// outcome.
pub fn risk_ratio(rows: &[Row], alpha: f64) -> Option<Estimate> {
    let strata = rows.iter().map(|row| row.stratum as usize + 1).max()?;
    let mut counts = vec![[0.0; 2]; strata];
    rows.iter().for_each(|row| counts[row.stratum as usize][usize::from(row.compared)] += 1.0);
    let users: Vec<u64> = rows.iter().map(|row| row.user).collect();
    ab::ratio_over(&Clusters::new(&users), alpha, |i| {
        let row = rows[i];
        let [reference, compared] = counts[row.stratum as usize];
        let all = reference + compared;
        if row.compared { [row.outcome * reference / all, 0.0] } else { [0.0, row.outcome * compared / all] }
    })
}

/// The strata of rows by name, as numbers from 0 in the order in which they appear.
pub fn strata(names: &[String]) -> Vec<u32> {
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    names
        .iter()
        .map(|name| {
            let next = numbers.len() as u32;
            *numbers.entry(name.as_str()).or_insert(next)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Popular rows stand mostly in the compared kind: by the plain rates it looks twice as good, within strata it is half as good.
    #[test]
    fn like_is_compared_with_like() {
        let mut rows = Vec::new();
        let mut put = |stratum: u32, compared: bool, n: u64, every: u64| {
            for i in 0..n {
                let user = rows.len() as u64;
                rows.push(Row { stratum, compared, outcome: f64::from(u8::from(i % every == 0)), user });
            }
        };
        put(0, true, 9_000, 5);
        put(0, false, 1_000, 10);
        put(1, true, 1_000, 100);
        put(1, false, 9_000, 200);
        let found = risk_ratio(&rows, 0.05).unwrap();
        assert!((found.value - 2.0).abs() < 1e-9, "{found:?}");
        let interval = found.interval.unwrap();
        assert!(interval.low > 1.5 && interval.high < 2.7, "{interval:?}");
        assert!(risk_ratio(&rows[..100], 0.05).is_none_or(|found| found.interval.is_none()), "no reference rows");
    }
}

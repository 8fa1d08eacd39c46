//! The population stability index: how far the values of a column have moved from those of a reference.
//!
//! PSI = sum over bins of (a - e) ln(a / e), e the reference's share of a bin and a the other's. By the field's custom below 0.1
//! nothing happened, from 0.25 on something did. NULL is a bin of its own: a column that goes missing has moved.

use std::collections::{BTreeMap, BTreeSet};

/// Bins of equal counts in the reference.
const BINS: usize = 10;

/// Categories of the reference that are bins of their own, the most frequent ones; the rest is one bin.
const CATEGORIES: usize = 50;

/// Fewer different numbers than this are categories.
const FEW: usize = 20;

/// No share is taken for less: an empty bin would make the index infinite.
const LEAST_SHARE: f64 = 1e-4;

/// Of the shares of bins, reference first. `None` where one side has no rows.
pub fn of_counts(reference: &[u64], other: &[u64]) -> Option<f64> {
    assert_eq!(reference.len(), other.len(), "bins of one column");
    let (all_reference, all_other) = (reference.iter().sum::<u64>(), other.iter().sum::<u64>());
    if all_reference == 0 || all_other == 0 {
        return None;
    }
    let share = |count: u64, all: u64| (count as f64 / all as f64).max(LEAST_SHARE);
    let terms = reference.iter().zip(other).filter(|(e, a)| **e + **a > 0);
    Some(terms.map(|(e, a)| (share(*e, all_reference), share(*a, all_other))).map(|(e, a)| (a - e) * (a / e).ln()).sum())
}

/// Of numbers; NaN counts as missing. Many different ones fall into ten bins of equal counts in the reference.
pub fn of_numbers(reference: &[Option<f64>], other: &[Option<f64>]) -> Option<f64> {
    let mut known: Vec<f64> = reference.iter().flatten().copied().filter(|value| !value.is_nan()).collect();
    known.sort_unstable_by(f64::total_cmp);
    let mut values = known.clone();
    values.dedup();
    let edges: Vec<f64> = if values.len() <= FEW {
        // Each value is a bin, and what lies between two belongs to the lower one.
        values.split_off(1.min(values.len()))
    } else {
        let mut edges: Vec<f64> = (1..BINS).map(|bin| known[bin * known.len() / BINS]).collect();
        edges.dedup();
        edges
    };
    let count = |column: &[Option<f64>]| {
        let mut counts = vec![0u64; edges.len() + 2];
        for value in column {
            let bin = match value.filter(|value| !value.is_nan()) {
                None => 0,
                Some(value) => 1 + edges.partition_point(|edge| *edge <= value),
            };
            counts[bin] += 1;
        }
        counts
    };
    of_counts(&count(reference), &count(other))
}

/// Of categories, given how many rows each has; NULL is the category `None`.
pub fn of_categories<C: Ord>(reference: &BTreeMap<Option<C>, u64>, other: &BTreeMap<Option<C>, u64>) -> Option<f64> {
    let mut frequent: Vec<(&Option<C>, &u64)> = reference.iter().collect();
    frequent.sort_by(|(a, rows_a), (b, rows_b)| rows_b.cmp(rows_a).then(a.cmp(b)));
    let own: BTreeSet<&Option<C>> = frequent.iter().take(CATEGORIES).map(|(category, _)| *category).chain([&None]).collect();
    let count = |column: &BTreeMap<Option<C>, u64>| {
        let mut counts: Vec<u64> = own.iter().map(|category| column.get(*category).copied().unwrap_or(0)).collect();
        counts.push(column.iter().filter(|(category, _)| !own.contains(category)).map(|(_, rows)| rows).sum());
        counts
    };
    of_counts(&count(reference), &count(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_that_did_not_move_give_nothing_and_known_ones_the_known_number() {
        assert_eq!(of_counts(&[10, 20, 0], &[1, 2, 0]), Some(0.0));
        // (0.6 - 0.5) ln(0.6 / 0.5) + (0.4 - 0.5) ln(0.4 / 0.5)
        let expected = 0.1 * (1.2f64).ln() - 0.1 * (0.8f64).ln();
        assert!((of_counts(&[50, 50], &[60, 40]).expect("rows") - expected).abs() < 1e-15);
        assert_eq!(of_counts(&[0], &[5]), None);
        assert!(of_counts(&[100, 0], &[0, 100]).expect("rows").is_finite());
    }

    #[test]
    fn numbers_are_binned_by_the_reference() {
        let wave: Vec<Option<f64>> = (0..1000).map(|i| Some(f64::from(i))).collect();
        let shifted: Vec<Option<f64>> = wave.iter().map(|value| value.map(|value| value + 500.0)).collect();
        assert_eq!(of_numbers(&wave, &wave), Some(0.0));
        assert!(of_numbers(&wave, &shifted).expect("rows") > 0.25);
        let half_gone: Vec<Option<f64>> = wave.iter().enumerate().map(|(i, value)| value.filter(|_| i % 2 == 0)).collect();
        assert!(of_numbers(&wave, &half_gone).expect("rows") > 0.25, "going missing is moving");
        assert_eq!(of_numbers(&[Some(1.0), Some(f64::NAN)], &[Some(1.0), None]), Some(0.0));
        assert_eq!(of_numbers(&[None], &[None]), Some(0.0));
        assert!(of_numbers(&[Some(0.0), Some(0.0), Some(1.0)], &[Some(0.0), Some(1.0), Some(1.0)]).expect("rows") > 0.1);
    }

    #[test]
    fn rare_categories_share_a_bin() {
        let of = |pairs: &[(&'static str, u64)]| pairs.iter().map(|(name, rows)| (Some(*name), *rows)).collect::<BTreeMap<_, _>>();
        assert_eq!(of_categories(&of(&[("a", 9), ("b", 1)]), &of(&[("a", 90), ("b", 10)])), Some(0.0));
        assert!(of_categories(&of(&[("a", 9), ("b", 1)]), &of(&[("b", 9), ("c", 1)])).expect("rows") > 0.25);
    }
}

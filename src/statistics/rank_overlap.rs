//! How alike two ranked lists are: rank-biased overlap (Webber, Moffat and Zobel 2010, "A similarity measure for indefinite rankings").

use std::collections::HashSet;
use std::hash::Hash;

/// Extrapolated rank-biased overlap of two lists without repetitions, from 0 (nothing shared) to 1 (the same list), equation 32 of the
/// paper: lists may differ in length, and beyond their ends they are taken to agree as they did there. `persistence` is the
/// weight of each next rank, above 0 and below 1. `None` where a list is empty.
pub fn rank_biased_overlap<T: Eq + Hash>(a: &[T], b: &[T], persistence: f64) -> Option<f64> {
    assert!(persistence > 0.0 && persistence < 1.0, "a weight of the next rank");
    let (short, long) = if a.len() <= b.len() { (a, b) } else { (b, a) };
    if short.is_empty() {
        return None;
    }
    let (s, l, p) = (short.len() as f64, long.len() as f64, persistence);
    let (mut in_short, mut in_long) = (HashSet::new(), HashSet::new());
    let (mut shared, mut shared_at_s, mut sum) = (0.0, 0.0, 0.0);
    for (at, next) in long.iter().enumerate() {
        let depth = (at + 1) as f64;
        in_long.insert(next);
        if in_short.contains(next) {
            shared += 1.0;
        }
        if let Some(other) = short.get(at) {
            in_short.insert(other);
            // The element that both lists have at this rank counts once.
            if in_long.contains(other) {
                shared += 1.0;
            }
            shared_at_s = shared;
        }
        let beyond = if depth > s { shared_at_s * (depth - s) / (s * depth) } else { 0.0 };
        sum += (shared / depth + beyond) * p.powf(depth);
    }
    Some((1.0 - p) / p * sum + ((shared - shared_at_s) / l + shared_at_s / s) * p.powf(l))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlap(a: &str, b: &str) -> f64 {
        let list = |text: &str| text.chars().collect::<Vec<_>>();
        rank_biased_overlap(&list(a), &list(b), 0.9).expect("lists")
    }

    #[test]
    fn equal_lists_overlap_wholly_and_disjoint_ones_not_at_all() {
        assert!((overlap("abc", "abc") - 1.0).abs() < 1e-12);
        assert_eq!(overlap("abc", "xyz"), 0.0);
        assert_eq!(rank_biased_overlap::<char>(&[], &['a'], 0.9), None);
    }

    #[test]
    fn it_is_what_the_formula_gives_by_hand() {
        // Depths 1 and 2 share 0 and 2: (0.1 / 0.9)(0 + 0.81 * 2 / 2) + 0.81.
        assert!((overlap("ab", "ba") - (0.1 / 0.9 * 0.81 + 0.81)).abs() < 1e-12);
        // One shared at depth 1, of lists of 1 and 2: (0.1 / 0.9)(0.9 + 0.81 (1 / 2 + 1 / 2)) + 0.81 = 1: the longer says nothing against it.
        assert!((overlap("a", "ab") - 1.0).abs() < 1e-12);
        // X = 0, 1 and s = 1: (0.1 / 0.9) 0.81 / 2 + 0.81 / 2.
        assert!((overlap("b", "ab") - (0.1 / 0.9 * 0.81 / 2.0 + 0.81 / 2.0)).abs() < 1e-12);
        assert_eq!(overlap("bc", "abd"), overlap("abd", "bc"));
    }

    #[test]
    fn the_first_rank_weighs_most() {
        assert!(overlap("abcd", "abdc") > overlap("abcd", "bacd"));
    }
}

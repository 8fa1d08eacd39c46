//! How many users each segment has, with noise: for those who may know how many, and not who.
//!
//! A user counts in at most ten segments, those of the best ranks, so that one user more or less moves all counts together by ten at
//! most; discrete Laplace noise of that sensitivity over epsilon makes the counts epsilon-differentially private (Ghosh, Roughgarden and
//! Sundararajan, STOC 2009), given which segments there are and who else is in which. The noise is drawn from the key of the pseudonyms, the table and the count: a rerun gives the same, and nobody
//! without the key can take it off. Each published table spends another epsilon; the manifest adds them up.

use super::Tables;
use crate::error::Result;
use crate::platform::pseudonym::Key;
use crate::segments::{full, table};
use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Of the counts of one table.
#[derive(Clone, Copy, Debug)]
pub struct Noise<'a> {
    pub epsilon: f64,
    pub key: &'a Key,
}

/// The ledger.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct CountsFacts {
    pub mechanism: String,
    pub epsilon: f64,
    /// Of this table and those that it followed.
    pub epsilon_so_far: f64,
    pub segments_a_user: u64,
    pub segments: u64,
}

impl CountsFacts {
    /// The ledger of a table without counts of its own.
    pub(super) fn kept(&self) -> Self {
        Self { epsilon: 0.0, segments: 0, ..self.clone() }
    }
}

const SEGMENTS_A_USER: u32 = 10;

/// segment_id, label, users: by segment_id; and what that spends.
pub(super) fn counts(tables: &Tables, policy_version: &str, noise: Noise, spent_before: f64) -> Result<(RecordBatch, CountsFacts)> {
    let (segments, ranks) = (full::<StringArray>(&tables.user_segments, "segment_id")?, full::<Int64Array>(&tables.user_segments, "rank")?);
    let mut users: BTreeMap<&str, i64> = BTreeMap::new();
    for (segment, rank) in segments.iter().flatten().zip(ranks.values()) {
        *users.entry(segment).or_default() += i64::from(*rank <= i64::from(SEGMENTS_A_USER));
    }
    let (ids, labels) = (full::<StringArray>(&tables.segments, "segment_id")?, full::<StringArray>(&tables.segments, "label")?);
    let mut noisy: BTreeMap<&str, (&str, i64)> = BTreeMap::new();
    for (id, label) in ids.iter().flatten().zip(labels.iter().flatten()) {
        let count = users.get(id).copied().unwrap_or(0);
        let drawn = noise.key.draw("counts", &format!("{policy_version}\n{id}\n{count}"));
        noisy.insert(id, (label, (count + discrete_laplace(f64::from(SEGMENTS_A_USER) / noise.epsilon, drawn)).max(0)));
    }
    let counts = table([
        ("segment_id", Arc::new(StringArray::from_iter_values(noisy.keys())) as ArrayRef, false),
        ("label", Arc::new(StringArray::from_iter_values(noisy.values().map(|(label, _)| label))), false),
        ("users", Arc::new(Int64Array::from_iter_values(noisy.values().map(|(_, users)| *users))), false),
    ])?;
    let facts = CountsFacts {
        mechanism: "discrete Laplace".into(),
        epsilon: noise.epsilon,
        epsilon_so_far: spent_before + noise.epsilon,
        segments_a_user: SEGMENTS_A_USER.into(),
        segments: noisy.len() as u64,
    };
    Ok((counts, facts))
}

/// P(k) is proportional to exp(-|k| / scale): the difference of two geometric numbers.
fn discrete_laplace(scale: f64, [a, b]: [u64; 2]) -> i64 {
    // In (0, 1]: its logarithm is finite.
    let uniform = |bits: u64| ((bits >> 11) as f64 + 1.0) / (1u64 << 53) as f64;
    let geometric = |bits: u64| (-uniform(bits).ln() * scale).floor() as i64;
    geometric(a) - geometric(b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngCore, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn the_noise_is_discrete_laplace() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let (scale, n) = (3.0, 200_000);
        let mut found: BTreeMap<i64, f64> = BTreeMap::new();
        (0..n).for_each(|_| *found.entry(discrete_laplace(scale, [rng.next_u64(), rng.next_u64()])).or_default() += 1.0 / f64::from(n));
        let q = (-1.0 / scale).exp();
        for k in -9i64..=9 {
            let expected = (1.0 - q) / (1.0 + q) * q.powi(k.unsigned_abs() as i32);
            let error = (expected * (1.0 - expected) / f64::from(n)).sqrt();
            assert!((found[&k] - expected).abs() < 5.0 * error, "{k}: {} {expected}", found[&k]);
        }
    }

    #[test]
    fn a_rerun_gives_the_same_counts_and_another_table_others() {
        let ids: Vec<String> = (0..40).map(|i| format!("interest:{i:02}")).collect();
        let rows: Vec<(String, &str, i64)> =
            (0..200).flat_map(|user| ids.iter().enumerate().map(move |(i, id)| (format!("u_{user}"), id.as_str(), i as i64 + 1))).collect();
        let strings = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
        let nothing = table([("user_id", strings(vec![]), false)]).unwrap();
        let tables = Tables {
            segments: table([
                ("segment_id", strings(ids.iter().map(String::as_str).collect()), false),
                ("label", strings(ids.iter().map(String::as_str).collect()), false),
            ])
            .unwrap(),
            user_segments: table([
                ("user_id", strings(rows.iter().map(|row| row.0.as_str()).collect()), false),
                ("segment_id", strings(rows.iter().map(|row| row.1).collect()), false),
                ("rank", Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))) as ArrayRef, false),
            ])
            .unwrap(),
            segment_ads: nothing.clone(),
            shadow_ads: nothing,
        };
        let key = Key::new("a key of sixteen bytes or more", 1).unwrap();
        let of = |version: &str, epsilon: f64| counts(&tables, version, Noise { epsilon, key: &key }, 2.0).unwrap();
        let (first, facts) = of("v1", 1.0);
        assert_eq!((&first, facts.epsilon_so_far), (&of("v1", 1.0).0, 3.0));
        assert_ne!(first, of("v2", 1.0).0);
        let (sharp, _) = of("v1", 1e6);
        let users = full::<Int64Array>(&sharp, "users").unwrap();
        assert_eq!((users.value(9), users.value(10)), (200, 0), "a user counts in ten segments");
    }
}

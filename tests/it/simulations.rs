//! Promised error rates, kept: each over as many worlds as a few seconds allow. The bounds are the promise and three standard errors of
//! the simulation itself; `cargo bench --bench statistics` tries more worlds against the promise alone.

use crate::worlds::{HONEST, Q, errors, false_losses, false_positives, lift_coverage, ope_coverage, peeking};
use nightmarket::statistics::ope::MIN_DECIDING_USERS;

#[test]
fn equal_arms_differ_in_one_experiment_of_twenty_unless_impressions_are_taken_for_users() {
    let [ratio, cuped, mean, binomial] = false_positives(2_000);
    for rate in [ratio, cuped, mean] {
        assert!((0.036..=0.064).contains(&rate), "{rate}");
    }
    assert!(binomial > 0.08, "users repeat: the binomial formula is fooled in {binomial}");
}

#[test]
fn looking_every_day_fools_the_ordinary_interval_and_not_the_always_valid_one() {
    let [always_valid, ordinary] = peeking(1_000);
    assert!(always_valid <= 0.05, "{always_valid}");
    assert!(ordinary > 0.1, "{ordinary}");
}

#[test]
fn the_interval_of_a_lift_holds_it_in_nineteen_worlds_of_twenty() {
    for rate in lift_coverage(1_500) {
        assert!((0.93..=0.97).contains(&rate), "{rate}");
    }
}

#[test]
fn off_policy_intervals_hold_the_true_value_in_worlds_that_the_overlap_check_accepts() {
    let found = ope_coverage(1_000, 500);
    for (estimator, rate) in HONEST.iter().zip(found.covered) {
        assert!((0.93..=0.97).contains(&rate), "{estimator:?}: {rate}");
    }
    let refused = found.refused as f64 / (found.accepted + found.refused) as f64;
    assert!((0.01..0.6).contains(&refused), "some worlds are refused, not most: {refused}");
    let (good, bad) = (found.covered[0], found.covered_of_refused[0]);
    assert!(bad < good - 0.02, "what is refused would have promised too much: {bad} against {good}");
}

#[test]
fn doubly_robust_beats_weighting_where_the_model_knows_and_the_model_where_it_is_wrong() {
    let [ips, dm, dr] = errors(600, Q::Informative);
    assert!(dr < ips, "an informative model takes noise out: {dr} against {ips}");
    assert!(dr < dm * 1.5, "and costs little against the model alone: {dr} against {dm}");
    let [_, dm, dr] = errors(600, Q::Biased);
    assert!(dr < dm, "a biased model is corrected: {dr} against {dm}");
    // Where it loses: a model that is right needs no correction, and one that knows nothing only adds noise.
    let [_, dm, dr] = errors(600, Q::Exact);
    assert!(dm < dr, "{dm} against {dr}");
    let [ips, _, dr] = errors(600, Q::Noise);
    assert!(ips < dr, "{ips} against {dr}");
}

#[test]
fn a_new_ad_looks_worse_by_chance_far_too_often_where_few_users_click() {
    let [few, enough] = [10, MIN_DECIDING_USERS].map(|users| false_losses(1_000, users));
    assert!(enough <= 0.065, "one-sided, 2.5 % are promised: {enough}");
    assert!(few > 0.15, "with ten clicks it would block a good table: {few}");
}

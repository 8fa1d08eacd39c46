//! Promised error rates at length: more worlds than the tests have time for, held to the promise alone.
//!
//! `cargo bench --bench statistics`: some minutes. Seeds run from 1.

#[path = "../tests/it/worlds.rs"]
mod worlds;

use worlds::{HONEST, Q, errors, false_losses, false_positives, lift_coverage, ope_coverage, peeking};

#[expect(clippy::print_stdout, reason = "a bench prints its table")]
fn main() {
    let percent = |share: f64| format!("{:.2} %", 100.0 * share);
    println!("| promise | found | held |\n|---|---|---|");
    let line = |promise: &str, found: f64, range: std::ops::RangeInclusive<f64>| {
        println!("| {promise} | {} | {} |", percent(found), if range.contains(&found) { "yes" } else { "NO" });
    };
    let [ratio, cuped, mean, binomial] = false_positives(20_000);
    for (name, found) in [("click-through rate", ratio), ("its CUPED", cuped), ("clicks per user", mean)] {
        line(&format!("false positives of equal arms in 20,000 experiments, {name}: 4.5 to 5.5 %"), found, 0.045..=0.055);
    }
    line("the same by the binomial formula, which takes impressions for users: more than 8 %", binomial, 0.08..=1.0);
    let [always_valid, ordinary] = peeking(5_000);
    line("ever significant in 14 daily looks at equal arms, always-valid: at most 5 %", always_valid, 0.0..=0.05);
    line("the same by the ordinary interval: more than 10 %", ordinary, 0.1..=1.0);
    for (name, found) in ["click-through rate", "its CUPED", "clicks per user", "bootstrap"].into_iter().zip(lift_coverage(5_000)) {
        line(&format!("lift inside its 95 % interval in 5,000 worlds, {name}: 93 to 97 %"), found, 0.93..=0.97);
    }
    let found = ope_coverage(5_000, 1_000);
    for (i, estimator) in HONEST.into_iter().enumerate() {
        line(
            &format!("policy value inside its 95 % interval in 5,000 accepted worlds, {estimator:?}: 93 to 97 %"),
            found.covered[i],
            0.93..=0.97,
        );
        println!("| the same in worlds that were refused, {estimator:?} | {} | |", percent(found.covered_of_refused[i]));
    }
    println!("| refused worlds | {} | |", percent(found.refused as f64 / (found.accepted + found.refused) as f64));
    for users in [10, 20, 50, 100, 200] {
        let found = percent(false_losses(5_000, users));
        println!("| an equally good ad of weight 11 is found a loss in 5,000 worlds, {users} users click | {found} | |");
    }
    println!("\n| model of the reward | error of IPS | of DM | of DR |\n|---|---|---|---|");
    for q in [Q::Exact, Q::Informative, Q::Biased, Q::Noise] {
        let [ips, dm, dr] = errors(5_000, q);
        println!("| {q:?} | {} | {} | {} |", percent(ips), percent(dm), percent(dr));
    }
}

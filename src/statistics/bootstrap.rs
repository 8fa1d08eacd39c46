//! How much a statistic would change with other users: the percentile bootstrap, clustered by user.
//!
//! In each replicate a user counts Poisson(1) times, drawn by hashing (user, replicate, seed). So a replicate needs no order and no
//! generator: parts can be summed anywhere and added, every contestant over the same users gets the same weights (their difference is
//! paired for nothing), and threads cannot change a result. Sums take each user once a replicate; an AUC sorts once and then walks the
//! sorted rows with sixteen replicates abreast.

use super::metrics::row_logloss;
use super::{Interval, order};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::num::NonZero;
use std::thread;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// How to bootstrap.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
pub struct Plan {
    pub replicates: usize,
    /// The interval leaves out alpha / 2 at each end.
    pub alpha: f64,
    pub seed: u64,
}

/// With fewer the ends of an interval are the luck of the seed.
const FEWEST_REPLICATES: usize = 20;

/// Refuses a level or a number of bootstrap replicates that make no interval.
pub fn check(section: &str, alpha: f64, replicates: usize) -> Result<()> {
    if !(alpha > 0.0 && alpha < 1.0) {
        return Err(Error::usage(format_args!("[{section}] alpha = {alpha} must lie between 0 and 1, as 0.05 does for 95 % intervals")));
    }
    if replicates < FEWEST_REPLICATES {
        return Err(Error::usage(format_args!("[{section}] replicates = {replicates} are too few for an interval"))
            .action(format_args!("give at least {FEWEST_REPLICATES}, better 1000")));
    }
    Ok(())
}

/// A user's id as the hash that the bootstrap clusters by.
pub fn cluster(user_id: &str) -> u64 {
    xxh3_64(user_id.as_bytes())
}

/// The clusters of a column of user ids. A row without one is a cluster of its own: nobody knows whom it belongs to, and all such rows
/// taken for one user would be the heaviest of the table and decide every interval.
pub fn clusters<'a>(ids: impl IntoIterator<Item = Option<&'a str>>) -> Vec<u64> {
    /// Keeps the numbers of rows apart from the hashes of ids.
    const NAMELESS: u64 = 0x6e6f_626f_6479;
    let of = |(id, row): (Option<&str>, u64)| id.map_or_else(|| xxh3_64_with_seed(&row.to_le_bytes(), NAMELESS), cluster);
    ids.into_iter().zip(0..).map(of).collect()
}

/// The rows of a table by the user they belong to.
pub struct Clusters {
    /// Ascending, so that sums over users have one order.
    users: Vec<u64>,
    of_row: Vec<u32>,
}

impl Clusters {
    /// # Panics
    /// Beyond 2^32 users.
    pub fn new(users: &[u64]) -> Self {
        let mut distinct = users.to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let index = |user| u32::try_from(distinct.binary_search(user).expect("it came from here")).expect("fewer than 2^32 users");
        let of_row = users.iter().map(index).collect();
        Self { users: distinct, of_row }
    }

    /// Number of users.
    pub fn count(&self) -> usize {
        self.users.len()
    }

    /// The users, ascending.
    pub fn users(&self) -> &[u64] {
        &self.users
    }

    /// Which of the users a row belongs to.
    pub fn of_row(&self, row: usize) -> usize {
        self.of_row[row] as usize
    }

    /// What each user's rows sum up to.
    pub fn sums<const K: usize>(&self, row: impl Fn(usize) -> [f64; K]) -> Vec<[f64; K]> {
        let mut sums = vec![[0.0; K]; self.users.len()];
        for (i, &user) in self.of_row.iter().enumerate() {
            let values = row(i);
            sums[user as usize].iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
        }
        sums
    }
}

/// Replicates computed together: one vector instruction serves them all.
const LANES: usize = 16;

/// P(Poisson(1) <= k) as a share of all 32-bit numbers, k = 0, 1, …; beyond the twelfth the share rounds to all.
const POISSON: [u32; 12] = {
    let (mut thresholds, mut k) = ([0; 12], 0);
    let mut term = 0.367_879_441_171_442_33; // 1 / e
    let mut sum = 0.0;
    while k < thresholds.len() {
        sum += term;
        thresholds[k] = (sum * 4_294_967_296.0) as u32;
        k += 1;
        term /= k as f64;
    }
    thresholds
};

/// How often a user counts in a replicate.
pub fn weight(user: u64, replicate: usize, seed: u64) -> u8 {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&user.to_le_bytes());
    key[8..].copy_from_slice(&(replicate as u64).to_le_bytes());
    let draw = (xxh3_64_with_seed(&key, seed) >> 32) as u32;
    POISSON.iter().map(|&below| u32::from(draw >= below)).sum::<u32>() as u8
}

/// Each replicate's sum over users of weight times `sums` (one entry a user, in the order of `clusters`).
pub fn totals<const K: usize>(plan: &Plan, clusters: &Clusters, sums: &[[f64; K]]) -> Vec<[f64; K]> {
    assert_eq!(sums.len(), clusters.count(), "one sum a user");
    in_blocks(plan.replicates, |replicates| {
        let total = |replicate| {
            let mut total = [0.0; K];
            for (&user, sums) in clusters.users.iter().zip(sums) {
                let weight = f64::from(weight(user, replicate, plan.seed));
                total.iter_mut().zip(sums).for_each(|(total, sum)| *total += weight * sum);
            }
            total
        };
        replicates.map(total).collect()
    })
}

/// Of one contestant, by replicate; none in a replicate without both classes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replicates {
    pub logloss: Vec<Option<f64>>,
    pub auc: Vec<Option<f64>>,
}

/// Log-loss and AUC of each contestant in each replicate, all with the same weights.
pub fn logloss_and_auc(plan: &Plan, clusters: &Clusters, labels: &[bool], contestants: &[&[f64]]) -> Vec<Replicates> {
    let rankings: Vec<Vec<Ranked>> = contestants.iter().map(|scores| ranking(clusters, labels, scores)).collect();
    let losses: Vec<Vec<[f64; 2]>> =
        contestants.iter().map(|scores| clusters.sums(|row| [row_logloss(labels[row], scores[row]), 1.0])).collect();
    let by_replicate = in_blocks(plan.replicates, |replicates| {
        let weights: Vec<[u8; LANES]> =
            clusters.users.iter().map(|&user| std::array::from_fn(|lane| weight(user, replicates.start + lane, plan.seed))).collect();
        let scored: Vec<_> = rankings
            .iter()
            .zip(&losses)
            .map(|(ranking, losses)| (weighted_means(&weights, losses), weighted_areas(&weights, ranking)))
            .collect();
        let of_lane = |lane: usize| scored.iter().map(|(means, areas)| (means[lane], areas[lane])).collect::<Vec<_>>();
        (0..replicates.len()).map(of_lane).collect()
    });
    let of_contestant = |contestant: usize| Replicates {
        logloss: by_replicate.iter().map(|scored| scored[contestant].0).collect(),
        auc: by_replicate.iter().map(|scored| scored[contestant].1).collect(),
    };
    (0..contestants.len()).map(of_contestant).collect()
}

/// A row in the order of its score.
struct Ranked {
    user: u32,
    positive: bool,
    /// The last row of its score.
    last_of_tie: bool,
}

fn ranking(clusters: &Clusters, labels: &[bool], scores: &[f64]) -> Vec<Ranked> {
    let order = order(scores);
    let last_of_tie = |i: usize| order.get(i + 1).is_none_or(|&next| scores[next] != scores[order[i]]);
    let ranked = |(i, &row): (usize, &usize)| Ranked { user: clusters.of_row[row], positive: labels[row], last_of_tie: last_of_tie(i) };
    order.iter().enumerate().map(ranked).collect()
}

/// Sum of weight times value over sum of weight times count, by lane.
fn weighted_means(weights: &[[u8; LANES]], sums: &[[f64; 2]]) -> [Option<f64>; LANES] {
    let (mut values, mut counts) = ([0.0; LANES], [0.0; LANES]);
    for (weights, [value, count]) in weights.iter().zip(sums) {
        (0..LANES).for_each(|lane| {
            values[lane] += f64::from(weights[lane]) * value;
            counts[lane] += f64::from(weights[lane]) * count;
        });
    }
    std::array::from_fn(|lane| super::finite(values[lane] / counts[lane]))
}

/// The area under the ROC curve of the weighted rows, by lane, ties at midranks. Exact: it counts in integers.
fn weighted_areas(weights: &[[u8; LANES]], ranking: &[Ranked]) -> [Option<f64>; LANES] {
    let (mut negatives, mut positives, mut twice_area) = ([0u32; LANES], [0u32; LANES], [0u64; LANES]);
    // Of the current run of tied rows: the negatives before it, and its positives.
    let (mut before, mut up, mut any_up) = ([0u32; LANES], [0u32; LANES], false);
    for row in ranking {
        let weights = &weights[row.user as usize];
        if row.positive {
            any_up = true;
            (0..LANES).for_each(|lane| up[lane] += u32::from(weights[lane]));
        } else {
            (0..LANES).for_each(|lane| negatives[lane] += u32::from(weights[lane]));
        }
        if row.last_of_tie {
            if any_up {
                // A positive beats the negatives before its run, and half of those in it.
                (0..LANES).for_each(|lane| {
                    twice_area[lane] += u64::from(up[lane]) * u64::from(before[lane] + negatives[lane]);
                    positives[lane] += up[lane];
                });
                (up, any_up) = ([0; LANES], false);
            }
            before = negatives;
        }
    }
    let area = |lane: usize| {
        let pairs = f64::from(positives[lane]) * f64::from(negatives[lane]);
        (pairs > 0.0).then(|| twice_area[lane] as f64 / (2.0 * pairs))
    };
    std::array::from_fn(area)
}

/// The difference replicate by replicate; none where either is.
pub fn differences(a: &[Option<f64>], b: &[Option<f64>]) -> Vec<Option<f64>> {
    assert_eq!(a.len(), b.len(), "replicates of one plan");
    a.iter().zip(b).map(|(a, b)| Some((*a)? - (*b)?)).collect()
}

/// The percentile interval; none when more than one replicate in twenty lacks the statistic, since what is left is then a selection.
pub fn percentile(replicates: &[Option<f64>], alpha: f64) -> Option<Interval> {
    let mut values: Vec<f64> = replicates.iter().flatten().copied().filter(|value| value.is_finite()).collect();
    if values.len() < 2 || values.len() * 20 < replicates.len() * 19 {
        return None;
    }
    values.sort_unstable_by(f64::total_cmp);
    Some(Interval { low: quantile(&values, alpha / 2.0), high: quantile(&values, 1.0 - alpha / 2.0) })
}

/// Of ascending values, between the two that are nearest.
fn quantile(values: &[f64], share: f64) -> f64 {
    let place = share * (values.len() - 1) as f64;
    let (left, right) = (values[place.floor() as usize], values[place.ceil() as usize]);
    left + (right - left) * place.fract()
}

/// Does `work` for blocks of replicates on every core; the results stand in the order of the replicates.
fn in_blocks<T: Send>(replicates: usize, work: impl Fn(std::ops::Range<usize>) -> Vec<T> + Sync) -> Vec<T> {
    let blocks: Vec<_> = (0..replicates).step_by(LANES).map(|start| start..replicates.min(start + LANES)).collect();
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let share = blocks.len().div_ceil(cores).max(1);
    thread::scope(|scope| {
        let worker = |blocks: &[std::ops::Range<usize>]| {
            let (blocks, work) = (blocks.to_vec(), &work);
            scope.spawn(move || blocks.into_iter().flat_map(work).collect::<Vec<_>>())
        };
        let workers: Vec<_> = blocks.chunks(share).map(worker).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker panics only on a bug")).collect()
    })
}

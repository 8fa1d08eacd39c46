//! A list of users, the seeds -> those who are like them and are not on it.
//!
//! Two judges rank everybody by their embeddings ([`crate::model::Embeddings`]): how near the nearest seeds are, which a few seeds suffice
//! for, and a logistic regression of the seeds against the others, which needs many. Their percentiles are averaged by the number of
//! seeds. How well that works is asked of the seeds themselves: each fifth of them is hidden once and looked for, and the share that is
//! found among the first users of the ranking is its relevance at that size. Seeds that stand out by a sensitive category have no
//! lookalikes, and few seeds neither: who is like a handful of people says who they are.

use super::sensitive::Sensitive;
use super::taxonomy::Taxonomy;
use super::{Audience, Inputs, Kind, LOWEST_FLOOR};
use crate::error::Result;
use crate::model::Embeddings;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The users whom a query of the shop names, and what is wanted of them.
#[derive(Clone, Debug, PartialEq)]
pub struct SeedList {
    pub name: String,
    pub label: String,
    pub leads: bool,
    pub users: BTreeSet<String>,
    /// Users wanted; `None`: as many as the curve suggests.
    pub size: Option<u64>,
    /// Whether the seeds are among them.
    pub keeps_seeds: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct LookalikeFacts {
    pub segment_id: String,
    pub label: String,
    /// Named by the query, and those of them who may be targeted and have a taste.
    pub seeds: u64,
    pub seeds_known: u64,
    /// Of the logistic regression in the ranking; the rest is nearness.
    pub model_weight: f64,
    /// Relevance by size, smallest first.
    pub curve: Vec<Relevance>,
    /// The size beyond which a further user is not twice as likely to be a seed as any; absent when that holds of every size.
    pub suggested_size: Option<u64>,
    /// Users found; absent when withheld.
    pub size: Option<u64>,
    pub withheld: Option<String>,
}

/// Hidden seeds among the first `size` users of the ranking.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Relevance {
    pub size: u64,
    /// Of the users ranked.
    pub share: f64,
    /// Share of the hidden seeds that are found.
    pub recall: f64,
    /// Share of the users that are hidden seeds, a fifth of all seeds: the other four were shown.
    pub precision: f64,
    /// `recall` over `share`: how many times as many as by chance.
    pub lift: f64,
}

impl LookalikeFacts {
    /// Of a list that has no lookalikes, and why.
    pub fn withheld(list: &SeedList, reason: impl Into<String>) -> Self {
        Self { withheld: Some(reason.into()), ..Self::of(list) }
    }

    fn of(list: &SeedList) -> Self {
        Self {
            segment_id: Kind::Lookalike.segment_id(&list.name),
            label: list.label.clone(),
            seeds: list.users.len() as u64,
            seeds_known: 0,
            model_weight: 0.0,
            curve: Vec::new(),
            suggested_size: None,
            size: None,
            withheld: None,
        }
    }
}

/// With so many seeds both judges count alike.
const EVEN_SEEDS: f64 = 200.0;
/// Fewer seeds have no lookalikes.
const FEWEST_SEEDS: u64 = LOWEST_FLOOR;
/// A user is as near to the seeds as to this many nearest ones, on average: seeds may be of several kinds.
const NEAREST: usize = 5;
/// At most so many seeds are compared with, and so many other users learned from, those of the smallest seeded hash. Bounds time.
const COMPARED: usize = 200;
const LEARNED: usize = 50_000;
const FOLDS: u64 = 5;
/// Shares of the users at which relevance is asked.
const SHARES: [f64; 9] = [0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5];
/// How many times as likely as any user to be a seed the last of a suggested size still is.
const WORTH: f64 = 2.0;

/// The users like the seeds, and how like; no audience when the facts say why.
pub fn find(
    settings: &super::Settings,
    inputs: &Inputs,
    embeddings: &Embeddings,
    list: &SeedList,
    seed: u64,
) -> Result<(Option<Audience>, LookalikeFacts)> {
    let everybody = embeddings.select(|user| inputs.eligible.is_none_or(|eligible| eligible.contains(user)));
    let seeds: Vec<usize> = (0..everybody.users.len()).filter(|row| list.users.contains(&everybody.users[*row])).collect();
    let mut facts = LookalikeFacts { seeds_known: seeds.len() as u64, model_weight: model_weight(seeds.len()), ..LookalikeFacts::of(list) };
    let others = everybody.users.len() - seeds.len();
    let taxonomy = Taxonomy::read(inputs.categories)?;
    let no = |mut facts: LookalikeFacts, why: String| {
        facts.withheld = Some(why);
        Ok((None, facts))
    };
    if facts.seeds_known < FEWEST_SEEDS {
        let why = format!("{} seeds that may be targeted and have a taste are fewer than {FEWEST_SEEDS}", facts.seeds_known);
        return no(facts, why);
    }
    if Sensitive::read(inputs, &taxonomy)?.tells(seeds.iter().map(|row| everybody.users[*row].as_str())) {
        return no(facts, "its seeds stand out by a category that cannot be a label".to_owned());
    }
    if (others as u64) < settings.enter {
        return no(facts, format!("{others} other users are fewer than {}", settings.enter));
    }
    let judged = curve(&everybody, &seeds, settings.enter, seed).and_then(|curve| Ok((curve, rank(&everybody, &seeds, seed)?)));
    let scores = match judged {
        Ok((curve, scores)) => {
            facts.curve = curve;
            scores
        }
        // A night without these lookalikes is better than none.
        Err(error) => {
            tracing::warn!(segment = facts.segment_id, %error, "the seeds cannot be told from the others");
            return no(facts, format!("its seeds cannot be told from the others: {error}"));
        }
    };
    let gain = |at: &&Relevance| at.recall - WORTH * at.share;
    let best = facts.curve.iter().filter(|at| gain(at) > 0.0).fold(None, |best: Option<&Relevance>, at| match best {
        Some(best) if gain(&best) >= gain(&at) => Some(best),
        _ => Some(at),
    });
    facts.suggested_size = best.map(|at| at.size);
    let Some(wanted) = list.size.or(facts.suggested_size) else {
        return no(
            facts,
            format!("at no size are hidden seeds found {WORTH} times as often as by chance: the list is of all kinds of users"),
        );
    };
    let shown: BTreeSet<usize> = seeds.iter().copied().collect();
    let mut ranked: Vec<usize> = (0..everybody.users.len()).filter(|row| !shown.contains(row)).collect();
    ranked.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then_with(|| everybody.users[*a].cmp(&everybody.users[*b])));
    ranked.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
    if list.keeps_seeds {
        ranked.extend(&seeds);
    }
    let users: BTreeMap<String, f64> = ranked.into_iter().map(|row| (everybody.users[row].clone(), scores[row])).collect();
    facts.size = Some(users.len() as u64);
    let (segment_id, label) = (facts.segment_id.clone(), facts.label.clone());
    Ok((Some(Audience { segment_id, label, kind: Kind::Lookalike, leads: list.leads, users }), facts))
}

fn model_weight(seeds: usize) -> f64 {
    seeds as f64 / (seeds as f64 + EVEN_SEEDS)
}

/// How like the seeds each user is, from 0 to 1: the mean of the two judges' percentiles, by the number of seeds.
fn rank(everybody: &Embeddings, seeds: &[usize], seed: u64) -> Result<Vec<f64>> {
    let hash = |row: usize| (xxh3_64_with_seed(everybody.users[row].as_bytes(), seed), row);
    let sample = |rows: Vec<usize>, most: usize| {
        let mut hashed: Vec<_> = rows.into_iter().map(hash).collect();
        hashed.sort_unstable();
        hashed.truncate(most);
        let mut rows: Vec<usize> = hashed.into_iter().map(|(_, row)| row).collect();
        rows.sort_unstable();
        rows
    };
    let is_seed: BTreeSet<usize> = seeds.iter().copied().collect();
    let others: Vec<usize> = (0..everybody.users.len()).filter(|row| !is_seed.contains(row)).collect();
    let near = percentiles(&nearness(everybody, &sample(seeds.to_vec(), COMPARED)));
    let modelled = percentiles(&everybody.likeness(&sample(seeds.to_vec(), LEARNED), &sample(others, LEARNED))?);
    let weight = model_weight(seeds.len());
    Ok(near.into_iter().zip(modelled).map(|(near, modelled)| weight * modelled + (1.0 - weight) * near).collect())
}

/// Mean cosine with the nearest seeds, oneself apart.
fn nearness(everybody: &Embeddings, seeds: &[usize]) -> Vec<f64> {
    // Every row at length 1, so that a cosine is a product.
    let unit = |row: usize| {
        let length = everybody.of(row).iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        everybody.of(row).iter().map(move |x| f64::from(*x) / length.max(f64::MIN_POSITIVE))
    };
    let compared: Vec<(usize, Vec<f64>)> = seeds.iter().map(|seed| (*seed, unit(*seed).collect())).collect();
    let mut of_row = Vec::with_capacity(everybody.width);
    let mean_of_nearest = |row: usize| {
        of_row.clear();
        of_row.extend(unit(row));
        // Best first.
        let (mut nearest, mut n) = ([f64::NEG_INFINITY; NEAREST], 0);
        for (_, seed) in compared.iter().filter(|(seed, _)| *seed != row) {
            let cosine: f64 = seed.iter().zip(&of_row).map(|(x, y)| x * y).sum();
            let at = nearest.partition_point(|other| *other >= cosine);
            if at < NEAREST {
                nearest[at..].rotate_right(1);
                nearest[at] = cosine;
                n = (n + 1).min(NEAREST);
            }
        }
        nearest[..n].iter().sum::<f64>() / n.max(1) as f64
    };
    (0..everybody.users.len()).map(mean_of_nearest).collect()
}

/// Of each value the share of the others that are below it; ties share theirs.
fn percentiles(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let last = (values.len().max(2) - 1) as f64;
    let mut found = vec![0.0; values.len()];
    for tied in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let first = order.partition_point(|row| values[*row].total_cmp(&values[tied[0]]).is_lt());
        let middle = first as f64 + (tied.len() - 1) as f64 / 2.0;
        tied.iter().for_each(|row| found[*row] = middle / last);
    }
    found
}

/// Hides each fold of the seeds once, and looks for it among all who were not shown.
fn curve(everybody: &Embeddings, seeds: &[usize], least: u64, seed: u64) -> Result<Vec<Relevance>> {
    // Another hash than that which samples.
    let fold = |row: &usize| xxh3_64_with_seed(everybody.users[*row].as_bytes(), seed ^ FOLDS) % FOLDS;
    // Of each hidden seed, the share of the ranked users that stand before it.
    let mut places: Vec<f64> = Vec::new();
    let mut folds = 0;
    for hidden in 0..FOLDS {
        let (looked_for, shown): (Vec<usize>, Vec<usize>) = seeds.iter().copied().partition(|row| fold(row) == hidden);
        if looked_for.is_empty() || shown.is_empty() {
            continue;
        }
        folds += 1;
        let is_shown: BTreeSet<usize> = shown.iter().copied().collect();
        let scores = rank(everybody, &shown, seed)?;
        let mut ranked: Vec<f64> = (0..scores.len()).filter(|row| !is_shown.contains(row)).map(|row| scores[row]).collect();
        ranked.sort_unstable_by(|a, b| b.total_cmp(a));
        // Ties stand before: no luck is counted.
        let before = |row: &usize| ranked.partition_point(|score| *score >= scores[*row]) as f64 / ranked.len() as f64;
        places.extend(looked_for.iter().map(before));
    }
    if places.is_empty() {
        return Ok(Vec::new());
    }
    places.sort_unstable_by(f64::total_cmp);
    let hidden_a_fold = places.len() as f64 / f64::from(folds);
    // Folds rank all but the seeds shown.
    let ranked = everybody.users.len() as f64 - (seeds.len() as f64 - hidden_a_fold);
    let mut found: Vec<Relevance> = Vec::new();
    for share in SHARES {
        let size = ((share * ranked).round() as u64).max(least);
        let share = size as f64 / ranked;
        if share > 1.0 || found.last().is_some_and(|last| last.size >= size) {
            continue;
        }
        let recall = places.partition_point(|place| *place <= share) as f64 / places.len() as f64;
        found.push(Relevance { size, share, recall, precision: recall * hidden_a_fold / size as f64, lift: recall / share });
    }
    Ok(found)
}

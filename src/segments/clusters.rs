//! Users who are alike -> clusters of behaviour: k-means on their tastes ([`crate::model::Embeddings`]).
//!
//! A cluster has no name of its own, so it takes over that of last night: the search begins where last night's members are now, and of
//! what is found each cluster gets the id of the one of last night with which it shares most users. One that shares too few gets an id
//! that no night had before. What it is called are the interests by which its users stand out. A cluster below the floor, or one that
//! stands out by a sensitive category, is no audience.

use super::labels::Labels;
use super::sensitive::Sensitive;
use super::tables::{full, table};
use super::taxonomy::Taxonomy;
use super::{Audience, Inputs, Kind, LOWEST_FLOOR, jaccard};
use crate::error::{Error, Result};
use crate::model::Embeddings;
use crate::statistics::kmeans::{self, Clustering, Points};
use arrow::array::{ArrayRef, RecordBatch, StringArray};
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Clusters at most; so few that each could be released on average. 0: none. More: finer ones, which last less long.
    pub k: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { k: 8 }
    }
}

impl Settings {
    pub(super) fn check(&self) -> Result<()> {
        match self.k {
            1 => Err(Error::usage("[segments.clusters] k = 1 is everyone; 0 looks for no clusters")),
            _ => Ok(()),
        }
    }
}

/// What clusters are made of beside the labels.
pub struct Behaviour<'a> {
    pub embeddings: &'a Embeddings,
    /// Last night's cluster of each user (user_id, segment_id).
    pub yesterday: Option<&'a RecordBatch>,
    /// Names the ids that are new.
    pub date: NaiveDate,
    pub seed: u64,
}

#[derive(Clone, Debug)]
pub struct Clusters {
    pub audiences: Vec<Audience>,
    /// user_id, segment_id of every user that has a place, by user: for the next night, never published.
    pub members: RecordBatch,
    pub facts: ClustersFacts,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ClustersFacts {
    /// Eligible users with a taste.
    pub users: u64,
    /// Share of the tastes' scatter that lies between the clusters, not within them.
    pub explained: Option<f64>,
    /// Whether the search that began at last night's clusters was kept: one that begins anew must be clearly tighter.
    pub continued: bool,
    /// Mean Jaccard index with last night's cluster of the same id, by size.
    pub stability: Option<f64>,
    /// Ids of last night that no cluster took over.
    pub gone: Vec<String>,
    pub clusters: Vec<ClusterFacts>,
    /// Why there are none.
    pub skipped: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ClusterFacts {
    pub segment_id: String,
    pub label: String,
    pub users: u64,
    /// Jaccard index with last night's cluster of this id; absent when it is new.
    pub stability: Option<f64>,
    /// The interests by which it stands out, most telling first.
    pub interests: Vec<Standing>,
    /// Why it is no audience; absent when it is one.
    pub withheld: Option<String>,
}

/// An interest of a cluster's users.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Standing {
    pub label: String,
    /// Of the cluster's users.
    pub share: f64,
    /// That share over the share of all users.
    pub lift: f64,
}

/// Searches from scratch; the tightest counts.
const STARTS: u64 = 4;
/// Last night's clusters are kept unless a search from scratch has so much less scatter within.
const CLEARLY_TIGHTER: f64 = 0.95;
/// A cluster that shares less of its users with any of last night is a new one.
const LEAST_OVERLAP: f64 = 0.2;
/// Interests that name a cluster.
const NAMED_BY: usize = 3;
/// An interest names a cluster when so large a share of its users has it, and so many times as large a share as of all users.
const LEAST_SHARE: f64 = 0.2;
const LEAST_LIFT: f64 = 1.2;

impl ClustersFacts {
    /// No clusters, and why.
    pub fn skipped(reason: impl Into<String>) -> Self {
        let (users, clusters, gone) = (0, Vec::new(), Vec::new());
        Self { users, explained: None, continued: false, stability: None, gone, clusters, skipped: Some(reason.into()) }
    }
}

/// The clusters of the eligible users; `None` when the settings ask for none.
pub fn find(settings: &super::Settings, inputs: &Inputs, behaviour: &Behaviour) -> Result<Option<Clusters>> {
    if settings.clusters.k == 0 {
        return Ok(None);
    }
    let everybody = behaviour.embeddings.select(|user| inputs.eligible.is_none_or(|eligible| eligible.contains(user)));
    let users = everybody.users.len();
    let k = settings.clusters.k.min(users / settings.enter.max(1) as usize);
    if k < 2 {
        let why = format!("{users} users with a taste are too few for two clusters of {}", settings.enter);
        return Ok(Some(Clusters { audiences: Vec::new(), members: members([])?, facts: ClustersFacts::skipped(why) }));
    }
    let yesterday = behaviour.yesterday.map(by_cluster).transpose()?.unwrap_or_default();
    let tastes = everybody.tastes();
    let points = Points { rows: &tastes, width: everybody.taste };
    let (found, continued) = search(points, k, &everybody.users, &yesterday, behaviour.seed);
    let mut clusters: Vec<BTreeSet<&str>> = vec![BTreeSet::new(); k];
    for (cluster, user) in found.nearest.iter().zip(&everybody.users) {
        clusters[*cluster].insert(user);
    }
    clusters.retain(|users| !users.is_empty());
    // Of new ones the largest is the first.
    clusters.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.first().cmp(&b.first())));
    let ids = names(&clusters, &yesterday, behaviour.date);
    let taxonomy = Taxonomy::read(inputs.categories)?;
    let labels = Labels::read(settings, inputs, &taxonomy)?;
    let sensitive = Sensitive::read(inputs, &taxonomy)?;
    let reach = reach(&labels, &taxonomy, everybody.users.iter().map(String::as_str));
    let of_all = |category: &str| reach[category] as f64 / users as f64;
    let named: BTreeMap<String, BTreeSet<&str>> = ids.into_iter().zip(clusters).collect();
    let (mut audiences, mut facts) = (Vec::new(), Vec::new());
    for (segment_id, users) in &named {
        let size = users.len() as u64;
        let stability = yesterday.get(segment_id.as_str()).map(|before| jaccard(users, before));
        let withheld = match size {
            few if few < settings.floor => Some(format!("{few} users are fewer than {}", settings.floor)),
            _ => sensitive.tells(users.iter().copied()).then(|| "it stands out by a category that cannot be a label".to_owned()),
        };
        // Of few users, and of those with a secret, nothing is said.
        let interests = if withheld.is_none() { standing(users, &labels, &taxonomy, of_all) } else { Vec::new() };
        let label = match interests.is_empty() {
            true => segment_id.clone(),
            false => interests.iter().map(|interest| interest.label.as_str()).collect::<Vec<_>>().join(" · "),
        };
        if withheld.is_none() {
            let users = users.iter().map(|user| ((*user).to_owned(), 1.0)).collect();
            audiences.push(Audience { segment_id: segment_id.clone(), label: label.clone(), kind: Kind::Cluster, leads: false, users });
        }
        facts.push(ClusterFacts { segment_id: segment_id.clone(), label, users: size, stability, interests, withheld });
    }
    let known = facts.iter().filter_map(|cluster| Some((cluster.stability?, cluster.users as f64)));
    let (weighted, weight) = known.fold((0.0, 0.0), |(sum, total), (stability, size)| (sum + stability * size, total + size));
    let scatter = points.scatter();
    let members = members(named.iter().flat_map(|(id, users)| users.iter().map(|user| (*user, id.as_str()))))?;
    let facts = ClustersFacts {
        users: users as u64,
        explained: (scatter > 0.0).then(|| 1.0 - found.within / scatter),
        continued,
        stability: (weight > 0.0).then(|| weighted / weight),
        gone: yesterday.keys().filter(|id| !named.contains_key(**id)).map(|id| (*id).to_owned()).collect(),
        clusters: facts,
        skipped: None,
    };
    Ok(Some(Clusters { audiences, members, facts }))
}

/// From where last night's members are now and from scratch; whether the former was kept.
fn search(points: Points, k: usize, users: &[String], yesterday: &BTreeMap<&str, BTreeSet<&str>>, seed: u64) -> (Clustering, bool) {
    let fresh = kmeans::kmeans(points, k, STARTS, seed);
    let mut before: Vec<Vec<usize>> = yesterday
        .values()
        .map(|members| (0..users.len()).filter(|row| members.contains(users[*row].as_str())).collect::<Vec<usize>>())
        .filter(|rows| !rows.is_empty())
        .collect();
    before.sort_by_key(|rows| std::cmp::Reverse(rows.len()));
    before.truncate(k);
    if before.is_empty() {
        return (fresh, false);
    }
    let centres: Vec<f64> = before.into_iter().flat_map(|rows| points.mean(rows)).collect();
    let continued = kmeans::from_centres(points, k, &centres, seed);
    if fresh.within < CLEARLY_TIGHTER * continued.within { (fresh, false) } else { (continued, true) }
}

/// An id for each cluster: one to one those of last night, the largest overlap first, and new ones of this date.
fn names(clusters: &[BTreeSet<&str>], yesterday: &BTreeMap<&str, BTreeSet<&str>>, date: NaiveDate) -> Vec<String> {
    let overlaps = |cluster: usize| yesterday.iter().map(move |(id, before)| (jaccard(&clusters[cluster], before), *id, cluster));
    let mut pairs: Vec<(f64, &str, usize)> = (0..clusters.len()).flat_map(overlaps).filter(|pair| pair.0 >= LEAST_OVERLAP).collect();
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.1, a.2).cmp(&(b.1, b.2))));
    let mut ids: Vec<Option<String>> = vec![None; clusters.len()];
    let mut taken = BTreeSet::new();
    for (_, id, cluster) in pairs {
        if ids[cluster].is_none() && taken.insert(id) {
            ids[cluster] = Some(id.to_owned());
        }
    }
    let mut new = 0;
    let mut fresh = || {
        new += 1;
        Kind::Cluster.segment_id(format_args!("{}-{new}", date.format("%Y%m%d")))
    };
    ids.into_iter().map(|id| id.unwrap_or_else(&mut fresh)).collect()
}

/// How many of these users have an interest in a category or in one below it.
fn reach<'a>(labels: &Labels, taxonomy: &Taxonomy<'a>, users: impl Iterator<Item = &'a str>) -> BTreeMap<&'a str, u64> {
    let mut reach = BTreeMap::new();
    for labels in users.filter_map(|user| labels.by_user.get(user)) {
        let above: BTreeSet<&str> = labels.iter().flat_map(|label| taxonomy.paths[label.category].iter().copied()).collect();
        above.into_iter().for_each(|category| *reach.entry(category).or_default() += 1);
    }
    reach
}

/// The interests by which users stand out, by share x ln(lift): what both many of them and few others have. None above or below another.
fn standing(users: &BTreeSet<&str>, labels: &Labels, taxonomy: &Taxonomy, of_all: impl Fn(&str) -> f64) -> Vec<Standing> {
    let of_cluster = reach(labels, taxonomy, users.iter().copied());
    let mut found: Vec<(f64, &str, f64, f64)> = of_cluster
        .iter()
        .filter(|(_, count)| **count >= LOWEST_FLOOR)
        .map(|(category, count)| {
            let share = *count as f64 / users.len() as f64;
            let lift = share / of_all(category);
            (share * lift.ln(), *category, share, lift)
        })
        .filter(|(_, _, share, lift)| *share >= LEAST_SHARE && *lift >= LEAST_LIFT)
        .collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1)));
    let mut chosen: Vec<&str> = Vec::new();
    let mut standing = Vec::new();
    for (_, category, share, lift) in found {
        let related = |other: &&str| taxonomy.paths[category].contains(other) || taxonomy.paths[other].contains(&category);
        if standing.len() < NAMED_BY && !chosen.iter().any(related) {
            chosen.push(category);
            standing.push(Standing { label: taxonomy.name(category).to_owned(), share, lift });
        }
    }
    standing
}

fn by_cluster(members: &RecordBatch) -> Result<BTreeMap<&str, BTreeSet<&str>>> {
    let (users, clusters) = (full::<StringArray>(members, "user_id")?, full::<StringArray>(members, "segment_id")?);
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (user, cluster) in users.iter().flatten().zip(clusters.iter().flatten()).filter(|(_, cluster)| Kind::Cluster.is_of(cluster)) {
        found.entry(cluster).or_default().insert(user);
    }
    Ok(found)
}

fn members<'a>(rows: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<RecordBatch> {
    let rows: BTreeMap<&str, &str> = rows.into_iter().collect();
    table([
        ("user_id", Arc::new(StringArray::from_iter_values(rows.keys())) as ArrayRef, false),
        ("segment_id", Arc::new(StringArray::from_iter_values(rows.values())), false),
    ])
}

//! Users x interest scores -> segments that may be released.
//!
//! A user's labels are the categories that lie furthest above their base rate for that user: the best of a user, not a
//! threshold, for a quiet user is below the base everywhere and still has a taste. A sensitive category, everything below one,
//! and an id that the category table does not know never become a label. A segment below the floor of distinct eligible users
//! is merged into its parent, up to the root, and only there dropped. Other audiences are segments, too, before a user's interests or
//! after them: the shop's own rules, the lookalikes of a seed list ([`lookalikes`]), and clusters of behaviour ([`clusters`]). Every
//! eligible user is also in `everyone`, ranked last.
//!
//! Serving sees a user's first segment alone, so the floor holds for these users, too: a segment that would serve fewer is withheld,
//! and whom it served is served by the next of their labels, by a segment above these, by `everyone`, or by none.
//!
//! A segment's id means the same tomorrow: it is its category's, its file's, or that of the cluster of last night whose users it has.

mod affinity;
pub mod clusters;
mod facts;
mod floor;
pub mod keywords;
mod labels;
pub mod lookalikes;
mod sensitive;
mod tables;
mod taxonomy;
#[cfg(test)]
mod audience_tests;
#[cfg(test)]
mod tests;

pub use affinity::interest_from_response;
pub(crate) use floor::too_small;
pub use tables::primary_users;
pub(crate) use tables::{full, table};
pub use taxonomy::Taxonomy;

use crate::error::{Error, Result};
use arrow::array::RecordBatch;
use labels::Labels;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use tables::{distinct_users, members};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Interest labels a user may carry. More: wider segments of weaker interest.
    pub labels_per_user: usize,
    /// Distinct users that a segment must serve to stay released. Never below 50: smaller crowds hide nobody.
    pub floor: u64,
    /// Distinct users that a new segment needs; above `floor`, so that a segment at the edge does not come and go.
    pub enter: u64,
    /// Releases counts of segments' users beside the tables, with noise that spends so much of a privacy budget a night; 0: none. Less:
    /// more noise.
    pub count_epsilon: f64,
    pub clusters: clusters::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self { labels_per_user: 3, floor: 100, enter: 120, count_epsilon: 0.0, clusters: clusters::Settings::default() }
    }
}

/// No setting can lower the floor below this.
pub const LOWEST_FLOOR: u64 = 50;

impl Settings {
    pub fn check(&self) -> Result<()> {
        if self.floor < LOWEST_FLOOR {
            return Err(Error::usage(format_args!("[segments] floor = {} is below {LOWEST_FLOOR}", self.floor)));
        }
        if self.enter < self.floor {
            return Err(Error::usage(format_args!("[segments] enter = {} is below floor = {}", self.enter, self.floor)));
        }
        if self.labels_per_user == 0 {
            return Err(Error::usage("[segments] labels_per_user must be at least 1"));
        }
        if self.count_epsilon != 0.0 && !(0.001..=1000.0).contains(&self.count_epsilon) {
            return Err(Error::usage(format_args!(
                "[segments] count_epsilon = {} is neither 0 nor from 0.001 to 1000",
                self.count_epsilon
            )));
        }
        self.clusters.check()
    }
}

/// The segment of all eligible users.
pub const EVERYONE: &str = "everyone";

/// Users found otherwise than by their interests: a segment beside these.
#[derive(Clone, Debug, PartialEq)]
pub struct Audience {
    pub segment_id: String,
    pub label: String,
    pub kind: Kind,
    /// Whether it comes before the interests of its users, or stands in for them where none is released.
    pub leads: bool,
    /// Each with a score from 0 to 1: how near to the seeds; 1 where all are in it alike.
    pub users: BTreeMap<String, f64>,
}

/// What found an audience.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A query of the shop.
    Rule,
    /// Likeness to the users whom a query of the shop names.
    Lookalike,
    /// Likeness among themselves.
    Cluster,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Rule, Self::Lookalike, Self::Cluster];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Lookalike => "lookalike",
            Self::Cluster => "cluster",
        }
    }

    pub fn segment_id(self, name: impl std::fmt::Display) -> String {
        format!("{}:{name}", self.as_str())
    }

    fn is_of(self, segment_id: &str) -> bool {
        segment_id.strip_prefix(self.as_str()).is_some_and(|rest| rest.starts_with(':'))
    }
}

/// Whether a segment is an audience's: of no category.
pub fn is_audience(segment_id: &str) -> bool {
    Kind::ALL.iter().any(|kind| kind.is_of(segment_id))
}

pub struct Inputs<'a> {
    /// user_id, category_id, score (calibrated probability), above_base (how far above the category's base rate).
    pub scores: &'a RecordBatch,
    /// category_id, parent_id?, name, sensitive.
    pub categories: &'a RecordBatch,
    /// Those of one place in the order in which they serve a user.
    pub audiences: &'a [Audience],
    /// Users who may be targeted, suppressed ones already taken out; `None`: every user of the scores.
    pub eligible: Option<&'a BTreeSet<String>>,
    /// Yesterday's released user_segments.
    pub previous: Option<&'a RecordBatch>,
    /// Where a "user" stands for several rows of no identifiable person: how many. One that is not named counts nothing.
    pub weights: Option<&'a BTreeMap<String, u64>>,
}

#[derive(Clone, Debug)]
pub struct Segments {
    /// segment_id, label, path, kind, size, size_released, stability, keywords (joined by ", "); by segment_id.
    pub segments: RecordBatch,
    /// user_id, segment_id, score, rank; by user_id and rank. Only what may be released.
    pub user_segments: RecordBatch,
    /// user_id, category_id, label, score, rank, before the floor: for tests and analysts, never published.
    pub labels_before_floor: RecordBatch,
    pub facts: SegmentsFacts,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct SegmentsFacts {
    pub segments: Vec<SegmentFacts>,
    /// Segments below the floor, and what became of their users.
    pub withheld: Vec<Withheld>,
    /// Users who may be targeted.
    pub users: u64,
    pub users_with_labels: u64,
    /// Users in at least one released segment.
    pub users_released: u64,
    /// Scored categories that cannot be labels: sensitive or below a sensitive one, and not in the category table.
    pub sensitive_categories: u64,
    pub unknown_categories: u64,
    pub sizes: Vec<SizeBin>,
    /// Mean Jaccard index with yesterday over the segments of both nights, by size; absent on the first night.
    pub stability: Option<f64>,
    /// Mean rank-biased overlap of a user's list of segments with yesterday's, over the users of both nights.
    pub rank_overlap: Option<f64>,
    /// Clusters before the floor; absent where none were looked for.
    pub clusters: Option<clusters::ClustersFacts>,
    pub lookalikes: Vec<lookalikes::LookalikeFacts>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct SegmentFacts {
    pub segment_id: String,
    pub label: String,
    /// Names from the root, joined by ` > `.
    pub path: String,
    /// `interest`, `rule`, `lookalike` or `cluster`.
    pub kind: String,
    /// Users with this label or one below it, before the floor.
    pub size: u64,
    /// Users released under this id.
    pub size_released: u64,
    /// Jaccard index of the released users with yesterday's; absent when new.
    pub stability: Option<f64>,
    /// What its users search for more than others; none where searches are not known.
    #[serde(default)]
    pub keywords: Vec<keywords::Keyword>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Withheld {
    pub segment_id: String,
    /// Its users, or those whom it would serve: what there were too few of.
    pub size: u64,
    /// The parent that took its users; absent when they were dropped.
    pub merged_into: Option<String>,
    pub reason: String,
}

/// Released segments of a size from `from` up to the next bin's.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct SizeBin {
    pub from: u64,
    pub segments: u64,
}

/// Labels, then the floor.
pub fn segment(settings: &Settings, inputs: &Inputs) -> Result<Segments> {
    settings.check()?;
    let taxonomy = Taxonomy::read(inputs.categories)?;
    let labels = Labels::read(settings, inputs, &taxonomy)?;
    let yesterday = inputs.previous.map(members).transpose()?;
    let released = floor::release(settings, inputs, &taxonomy, &labels, yesterday.as_ref());
    let user_segments = released.user_segments()?;
    let segments = released.segments(inputs, &taxonomy, &labels, yesterday.as_ref());
    let known = segments.iter().filter_map(|segment| Some((segment.stability?, segment.size_released as f64)));
    let (weighted, weight) = known.fold((0.0, 0.0), |(sum, total), (stability, size)| (sum + stability * size, total + size));
    let facts = SegmentsFacts {
        withheld: released.withheld,
        users: labels.users.len() as u64,
        users_with_labels: labels.by_user.len() as u64,
        users_released: distinct_users(&user_segments)?,
        sensitive_categories: labels.sensitive,
        unknown_categories: labels.unknown,
        sizes: facts::histogram(&segments),
        stability: (weight > 0.0).then(|| weighted / weight),
        rank_overlap: inputs.previous.map(|previous| facts::rank_overlap(&user_segments, previous)).transpose()?.flatten(),
        clusters: None,
        lookalikes: Vec::new(),
        segments,
    };
    Ok(Segments { segments: tables::segments_table(&facts.segments)?, user_segments, labels_before_floor: labels.table(&taxonomy)?, facts })
}

/// The same id every night.
fn segment_id(category: &str) -> String {
    format!("interest:{category}")
}

/// The category of an interest segment.
pub fn category_of(segment_id: &str) -> Option<&str> {
    segment_id.strip_prefix("interest:")
}

/// The share of two sets' users that are in both.
fn jaccard(a: &BTreeSet<&str>, b: &BTreeSet<&str>) -> f64 {
    let both = a.intersection(b).count();
    both as f64 / (a.len() + b.len() - both).max(1) as f64
}

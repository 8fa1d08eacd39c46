//! Users x interest scores -> segments that may be released.
//!
//! A user's labels are the categories that lie furthest above their base rate for that user: the best of a user, not a
//! threshold, for a quiet user is below the base everywhere and still has a taste. A sensitive category, everything below one,
//! and an id that the category table does not know never become a label. A segment below the floor of distinct eligible users
//! is merged into its parent, up to the root, and only there dropped. The shop's own rules make segments, too, before a user's
//! interests or after them. Every eligible user is also in `everyone`, ranked last.
//!
//! Serving sees a user's first segment alone, so the floor holds for these users, too: a segment that would serve fewer is withheld,
//! and whom it served is served by the next of their labels, by a segment above these, by `everyone`, or by none.
//!
//! Nothing here is specific to tonight: a segment's id is its category's, so that it means the same tomorrow.

use crate::error::{Error, Result};
use crate::types::{column, optional_column};
use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Interest labels a user may carry. More: wider segments of weaker interest.
    pub labels_per_user: usize,
    /// Distinct users that a segment must serve to stay released. Never below 50: smaller crowds hide nobody.
    pub floor: u64,
    /// Distinct users that a new segment needs; above `floor`, so that a segment at the edge does not come and go.
    pub enter: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { labels_per_user: 3, floor: 100, enter: 120 }
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
        Ok(())
    }
}

/// The segment of all eligible users.
pub const EVERYONE: &str = "everyone";

/// The users whom a query of the shop names: a segment beside the learned ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    pub segment_id: String,
    pub label: String,
    /// Whether it comes before the interests of its users, or stands in for them where none is released.
    pub leads: bool,
    pub users: BTreeSet<String>,
}

/// Whether a segment is a rule's.
pub fn is_rule(segment_id: &str) -> bool {
    segment_id.starts_with("rule:")
}

pub struct Inputs<'a> {
    /// user_id, category_id, score (calibrated probability), above_base (how far above the category's base rate).
    pub scores: &'a RecordBatch,
    /// category_id, parent_id?, name, sensitive.
    pub categories: &'a RecordBatch,
    pub rules: &'a [Rule],
    /// Users who may be targeted, suppressed ones already taken out; `None`: every user of the scores.
    pub eligible: Option<&'a BTreeSet<String>>,
    /// Yesterday's released user_segments.
    pub previous: Option<&'a RecordBatch>,
    /// Where a "user" stands for several rows of no identifiable person: how many. One that is not named counts nothing.
    pub weights: Option<&'a BTreeMap<String, u64>>,
}

#[derive(Clone, Debug)]
pub struct Segments {
    /// segment_id, label, path, kind, size, size_released, stability; by segment_id.
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
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct SegmentFacts {
    pub segment_id: String,
    pub label: String,
    /// Names from the root, joined by ` > `.
    pub path: String,
    /// `interest` or `rule`.
    pub kind: String,
    /// Users with this label or one below it, before the floor.
    pub size: u64,
    /// Users released under this id.
    pub size_released: u64,
    /// Jaccard index of the released users with yesterday's; absent when new.
    pub stability: Option<f64>,
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
    let released = release(settings, inputs, &taxonomy, &labels, yesterday.as_ref());
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
        sizes: histogram(&segments),
        stability: (weight > 0.0).then(|| weighted / weight),
        segments,
    };
    Ok(Segments { segments: segments_table(&facts.segments)?, user_segments, labels_before_floor: labels.table(&taxonomy)?, facts })
}

/// The users each segment serves: user_id, segment_id of the released segment of rank 1, by user_id.
pub fn primary_users(user_segments: &RecordBatch) -> Result<RecordBatch> {
    let (users, segments) = (full::<StringArray>(user_segments, "user_id")?, full::<StringArray>(user_segments, "segment_id")?);
    let ranks = full::<Int64Array>(user_segments, "rank")?;
    let mut primary: BTreeMap<&str, &str> = BTreeMap::new();
    for row in (0..user_segments.num_rows()).filter(|&row| ranks.value(row) == 1) {
        if primary.insert(users.value(row), segments.value(row)).is_some() {
            return Err(Error::contract(format_args!("user {} has two segments of rank 1", users.value(row))));
        }
    }
    table([
        ("user_id", Arc::new(StringArray::from_iter_values(primary.keys())) as ArrayRef, false),
        ("segment_id", Arc::new(StringArray::from_iter_values(primary.values())), false),
    ])
}

/// Scores for a job without events: a context's affinity to a category is its mean p_click over the category's ads, and lies
/// above the base as far, relatively, as it exceeds the category's mean over contexts. Sums run in the order of the rows.
pub fn interest_from_response<U: AsRef<str>, C: AsRef<str>>(rows: impl IntoIterator<Item = (U, C, f64)>) -> Result<RecordBatch> {
    let mut affinity: BTreeMap<String, BTreeMap<String, (f64, u64)>> = BTreeMap::new();
    for (user, category, p_click) in rows {
        if !p_click.is_finite() {
            return Err(Error::contract(format_args!("p_click of {} in {} is {p_click}", user.as_ref(), category.as_ref())));
        }
        // Looked up before it is inserted: nearly every row finds its place, and none of those needs a new string.
        let categories = match affinity.get_mut(user.as_ref()) {
            Some(categories) => categories,
            None => affinity.entry(user.as_ref().to_owned()).or_default(),
        };
        let (sum, n) = match categories.get_mut(category.as_ref()) {
            Some(mean) => mean,
            None => categories.entry(category.as_ref().to_owned()).or_default(),
        };
        *sum += p_click;
        *n += 1;
    }
    let mut base: BTreeMap<&str, (f64, u64)> = BTreeMap::new();
    for (category, (sum, n)) in affinity.values().flatten() {
        let (total, users) = base.entry(category).or_default();
        *total += sum / *n as f64;
        *users += 1;
    }
    let (mut users, mut categories, mut scores, mut above) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (user, of_user) in &affinity {
        for (category, (sum, n)) in of_user {
            let (total, contexts) = base[category.as_str()];
            let (score, mean) = (sum / *n as f64, total / contexts as f64);
            users.push(user.as_str());
            categories.push(category.as_str());
            scores.push(score);
            above.push(if mean > 0.0 { score / mean - 1.0 } else { 0.0 });
        }
    }
    table([
        ("user_id", Arc::new(StringArray::from(users)) as ArrayRef, false),
        ("category_id", Arc::new(StringArray::from(categories)), false),
        ("score", Arc::new(Float64Array::from(scores)), false),
        ("above_base", Arc::new(Float64Array::from(above)), false),
    ])
}

// ------------------------------------------------------------------------------------------------------------------ taxonomy

/// The category tree, and which of its nodes may be labels.
pub struct Taxonomy<'a> {
    nodes: BTreeMap<&'a str, Node<'a>>,
    /// Categories that may be labels, each with its ids from the root down to itself.
    paths: BTreeMap<&'a str, Vec<&'a str>>,
}

struct Node<'a> {
    parent: Option<&'a str>,
    name: &'a str,
    sensitive: bool,
}

impl<'a> Taxonomy<'a> {
    pub fn read(categories: &'a RecordBatch) -> Result<Self> {
        let ids = full::<StringArray>(categories, "category_id")?;
        let parents = optional_column::<StringArray>(categories, "parent_id")?;
        let names = column::<StringArray>(categories, "name")?;
        let sensitive = column::<BooleanArray>(categories, "sensitive")?;
        let mut nodes = BTreeMap::new();
        for row in 0..categories.num_rows() {
            let id = ids.value(row);
            let node = Node {
                parent: parents.filter(|parents| parents.is_valid(row)).map(|parents| parents.value(row)).filter(|id| !id.is_empty()),
                name: if names.is_valid(row) { names.value(row) } else { id },
                // Not known is not harmless.
                sensitive: sensitive.is_null(row) || sensitive.value(row),
            };
            if nodes.insert(id, node).is_some() {
                return Err(Error::contract(format_args!("category {id} stands twice in the category table")));
            }
        }
        let paths = nodes.keys().filter_map(|&id| Some((id, path(&nodes, id)?))).collect();
        Ok(Self { nodes, paths })
    }

    pub fn may_be_label(&self, category: &str) -> bool {
        self.paths.contains_key(category)
    }

    fn name(&self, category: &str) -> &'a str {
        self.nodes[category].name
    }

    fn parent(&self, category: &str) -> Option<&'a str> {
        self.nodes[category].parent
    }
}

/// The ids from the root to a category; `None` when one on the way is sensitive, unknown, or its own ancestor.
fn path<'a>(nodes: &BTreeMap<&'a str, Node<'a>>, id: &'a str) -> Option<Vec<&'a str>> {
    let mut path = Vec::new();
    let mut next = Some(id);
    while let Some(id) = next {
        let node = nodes.get(id)?;
        if node.sensitive || path.len() > nodes.len() {
            return None;
        }
        path.push(id);
        next = node.parent;
    }
    path.reverse();
    Some(path)
}

// -------------------------------------------------------------------------------------------------------------------- labels

/// Interest labels before the floor.
struct Labels<'a> {
    /// Everybody who may be targeted.
    users: BTreeSet<&'a str>,
    /// Best first, at least one.
    by_user: BTreeMap<&'a str, Vec<Label<'a>>>,
    sensitive: u64,
    unknown: u64,
}

struct Label<'a> {
    category: &'a str,
    score: f64,
    above_base: f64,
}

impl Label<'_> {
    /// Best first; ties fall to the likelier, then to the smaller id.
    fn order(&self, other: &Self) -> Ordering {
        let by_value = other.above_base.total_cmp(&self.above_base).then(other.score.total_cmp(&self.score));
        by_value.then_with(|| self.category.cmp(other.category))
    }
}

impl<'a> Labels<'a> {
    fn read(settings: &Settings, inputs: &Inputs<'a>, taxonomy: &Taxonomy<'a>) -> Result<Self> {
        let (users, categories) = (full::<StringArray>(inputs.scores, "user_id")?, full::<StringArray>(inputs.scores, "category_id")?);
        let (scores, above) = (full::<Float64Array>(inputs.scores, "score")?, full::<Float64Array>(inputs.scores, "above_base")?);
        // `None`: not eligible, looked up once a user.
        let mut by_user: HashMap<&str, Option<Vec<Label>>> = HashMap::new();
        let mut refused: HashSet<&str> = HashSet::new();
        for row in 0..inputs.scores.num_rows() {
            let (user, category) = (users.value(row), categories.value(row));
            let (score, above_base) = (scores.value(row), above.value(row));
            if !(0.0..=1.0).contains(&score) || !above_base.is_finite() {
                let what = format_args!("score {score}, above_base {above_base} of user {user} in category {category}");
                return Err(Error::contract(format_args!("{what}: a probability and a finite number are needed")));
            }
            let labels =
                by_user.entry(user).or_insert_with(|| inputs.eligible.is_none_or(|eligible| eligible.contains(user)).then(Vec::new));
            let Some(labels) = labels else { continue };
            if !taxonomy.may_be_label(category) {
                refused.insert(category);
                continue;
            }
            if labels.iter().any(|label| label.category == category) {
                return Err(Error::contract(format_args!("user {user} has two scores for category {category}")));
            }
            let label = Label { category, score, above_base };
            let at = labels.partition_point(|other| other.order(&label).is_lt());
            if at < settings.labels_per_user {
                labels.insert(at, label);
                labels.truncate(settings.labels_per_user);
            }
        }
        let users = match inputs.eligible {
            Some(eligible) => eligible.iter().map(String::as_str).collect(),
            None => by_user.keys().copied().collect(),
        };
        let unknown = refused.iter().filter(|category| !taxonomy.nodes.contains_key(*category)).count() as u64;
        Ok(Self {
            users,
            by_user: by_user.into_iter().filter_map(|(user, labels)| Some((user, labels.filter(|labels| !labels.is_empty())?))).collect(),
            sensitive: refused.len() as u64 - unknown,
            unknown,
        })
    }

    fn table(&self, taxonomy: &Taxonomy) -> Result<RecordBatch> {
        let rows = self.by_user.iter().flat_map(|(user, labels)| labels.iter().zip(1i64..).map(move |(label, rank)| (user, label, rank)));
        let rows: Vec<_> = rows.collect();
        table([
            ("user_id", Arc::new(StringArray::from_iter_values(rows.iter().map(|(user, ..)| user))) as ArrayRef, false),
            ("category_id", Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, label, _)| label.category))), false),
            ("label", Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, label, _)| taxonomy.name(label.category)))), false),
            ("score", Arc::new(Float64Array::from_iter_values(rows.iter().map(|(_, label, _)| label.score))), false),
            ("rank", Arc::new(Int64Array::from_iter_values(rows.iter().map(|(.., rank)| *rank))), false),
        ])
    }
}

// --------------------------------------------------------------------------------------------------------------------- floor

/// What may be released, by user: id and score of each segment, best first; nobody without one.
struct Released<'a> {
    of_user: BTreeMap<&'a str, Vec<(String, f64)>>,
    withheld: Vec<Withheld>,
}

/// The floor of a segment's users, from the leaves to the root, and then that of the users whom it serves.
fn release<'a>(
    settings: &Settings,
    inputs: &Inputs<'a>,
    taxonomy: &Taxonomy<'a>,
    labels: &Labels<'a>,
    yesterday: Option<&BTreeMap<&str, HashSet<&str>>>,
) -> Released<'a> {
    let known = |segment: &str| segment == EVERYONE || yesterday.is_some_and(|yesterday| yesterday.contains_key(segment));
    let needed = |segment: &str| if known(segment) { settings.floor } else { settings.enter };
    let (merged, mut withheld) = merge(inputs, taxonomy, labels, needed);
    let labels_of = |user: &str| labels.by_user.get(user).map_or(&[][..], Vec::as_slice);
    let choices_of = |user: &str| Choices {
        rules: inputs.rules.iter().filter(|rule| rule.users.contains(user)).collect(),
        ..merged.choices(taxonomy, labels_of(user))
    };
    let choices: BTreeMap<&str, Choices> = labels.users.iter().map(|user| (*user, choices_of(user))).collect();
    let ids = choices.iter().map(|(user, choices)| (*user, choices.ids())).collect();
    let small = too_small(&ids, |user| weight_of(inputs, user), needed);
    let of_user = choices.iter().map(|(user, choices)| (*user, choices.left(&small))).filter(|(_, left)| !left.is_empty()).collect();
    withheld.extend(small.iter().filter(|(id, served)| **id != EVERYONE || **served > 0).map(|(id, served)| Withheld {
        segment_id: (*id).to_owned(),
        size: *served,
        merged_into: None,
        reason: format!(
            "it would serve {served} users, fewer than {}; they are served by {}",
            needed(id),
            if *id == EVERYONE { "none" } else { "the next of theirs" }
        ),
    }));
    withheld.sort_by(|a, b| a.segment_id.cmp(&b.segment_id));
    Released { of_user, withheld }
}

/// Categories with enough users, those counted that small children brought.
struct Merged<'a> {
    /// The segment of each.
    ids: BTreeMap<&'a str, String>,
    /// Where the users of a small category went.
    goes_to: BTreeMap<&'a str, Option<&'a str>>,
}

fn merge<'a>(
    inputs: &Inputs<'a>,
    taxonomy: &Taxonomy<'a>,
    labels: &Labels<'a>,
    needed: impl Fn(&str) -> u64,
) -> (Merged<'a>, Vec<Withheld>) {
    let mut members: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (user, labels) in &labels.by_user {
        for label in labels {
            members.entry(label.category).or_default().insert(user);
        }
    }
    let mut leaves_first: Vec<(&str, usize)> = taxonomy.paths.iter().map(|(id, path)| (*id, path.len())).collect();
    leaves_first.sort_by(|(a, depth_a), (b, depth_b)| depth_b.cmp(depth_a).then(a.cmp(b)));
    let mut merged = Merged { ids: BTreeMap::new(), goes_to: BTreeMap::new() };
    let mut withheld = Vec::new();
    for (category, _) in leaves_first {
        let Some(users) = members.remove(category) else { continue };
        let segment_id = segment_id(category);
        let (size, needed) = (weight(inputs, &users), needed(&segment_id));
        if size >= needed {
            merged.ids.insert(category, segment_id);
            continue;
        }
        let parent = taxonomy.parent(category);
        if let Some(parent) = parent {
            members.entry(parent).or_default().extend(users);
        }
        merged.goes_to.insert(category, parent);
        let merged_into = parent.map(self::segment_id);
        withheld.push(Withheld { segment_id, size, merged_into, reason: format!("{size} users are fewer than {needed}") });
    }
    (merged, withheld)
}

impl<'a> Merged<'a> {
    /// The category that a label's users are found under, if it has enough of them.
    fn home(&self, category: &'a str) -> Option<&'a str> {
        let mut category = category;
        while let Some(next) = self.goes_to.get(category) {
            category = (*next)?;
        }
        Some(category)
    }

    fn choices(&self, taxonomy: &Taxonomy<'a>, labels: &[Label<'a>]) -> Choices<'_> {
        let homes = labels.iter().filter_map(|label| Some((self.home(label.category)?, label.score)));
        let mut choices = Choices::default();
        for (home, score) in homes {
            // Two labels may meet in one parent: the better rank stays.
            choices.add(&self.ids[home], score);
        }
        choices.own = choices.all.len();
        for label in labels {
            for id in taxonomy.paths[label.category].iter().rev().filter_map(|category| self.ids.get(category)) {
                choices.add(id, label.score);
            }
        }
        choices
    }
}

/// The segments in which a user could be, best first.
#[derive(Default)]
struct Choices<'a> {
    /// Id and score.
    all: Vec<(&'a str, f64)>,
    /// How many of them are of the user's own labels; the rest lie above these and stand in for them where none is left.
    own: usize,
    /// Those that the user falls under.
    rules: Vec<&'a Rule>,
}

impl<'a> Choices<'a> {
    fn add(&mut self, id: &'a str, score: f64) {
        if self.all.iter().all(|(other, _)| *other != id) {
            self.all.push((id, score));
        }
    }

    fn rules(&self, leads: bool) -> impl Iterator<Item = (&'a str, f64)> {
        self.rules.iter().filter(move |rule| rule.leads == leads).map(|rule| (rule.segment_id.as_str(), 1.0))
    }

    fn ids(&self) -> Vec<&'a str> {
        let interests = self.all.iter().copied();
        self.rules(true).chain(interests).chain(self.rules(false)).chain([(EVERYONE, 1.0)]).map(|(id, _)| id).collect()
    }

    fn left(&self, withheld: &BTreeMap<&str, u64>) -> Vec<(String, f64)> {
        let stays = |choice: &(&str, f64)| !withheld.contains_key(choice.0);
        let (own, above) = self.all.split_at(self.own);
        let mut interests: Vec<(&str, f64)> = own.iter().copied().filter(stays).collect();
        if interests.is_empty() {
            interests.extend(above.iter().copied().find(stays));
        }
        let others = self.rules(false).chain([(EVERYONE, 1.0)]).filter(stays);
        self.rules(true).filter(stays).chain(interests).chain(others).map(|(id, score)| (id.to_owned(), score)).collect()
    }
}

/// The segments that would serve fewer users than they need, when everybody is served by the first that is left of their choices; each
/// with how many. They are found one after the other, the smallest first and `everyone` last, for each adds to those that are left.
pub(crate) fn too_small<'a>(
    choices: &BTreeMap<&'a str, Vec<&'a str>>,
    weight: impl Fn(&str) -> u64,
    needed: impl Fn(&str) -> u64,
) -> BTreeMap<&'a str, u64> {
    let mut serves: BTreeMap<&str, (u64, Vec<&str>)> = choices.values().flatten().map(|id| (*id, Default::default())).collect();
    let mut unserved: Vec<&str> = choices.keys().copied().collect();
    let mut found = BTreeMap::new();
    loop {
        for user in unserved {
            if let Some(id) = choices[user].iter().find(|id| serves.contains_key(*id)) {
                let (served, users) = serves.get_mut(id).expect("a segment that is left");
                *served += weight(user);
                users.push(user);
            }
        }
        let small = serves.iter().filter(|(id, (served, _))| *served < needed(id)).map(|(id, (served, _))| (*id == EVERYONE, *served, *id));
        let Some((_, served, id)) = small.min() else { return found };
        found.insert(id, served);
        unserved = serves.remove(id).map(|(_, users)| users).unwrap_or_default();
    }
}

/// The same id every night.
fn segment_id(category: &str) -> String {
    format!("interest:{category}")
}

/// The category of an interest segment.
pub fn category_of(segment_id: &str) -> Option<&str> {
    segment_id.strip_prefix("interest:")
}

fn weight<'a>(inputs: &Inputs, users: impl IntoIterator<Item = &'a &'a str>) -> u64 {
    users.into_iter().map(|user| weight_of(inputs, user)).sum()
}

fn weight_of(inputs: &Inputs, user: &str) -> u64 {
    inputs.weights.map_or(1, |weights| weights.get(user).copied().unwrap_or(0))
}

impl Released<'_> {
    fn user_segments(&self) -> Result<RecordBatch> {
        let (mut users, mut segments, mut scores, mut ranks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (user, of_user) in &self.of_user {
            for ((segment, score), rank) in of_user.iter().zip(1i64..) {
                users.push(*user);
                segments.push(segment.as_str());
                scores.push(*score);
                ranks.push(rank);
            }
        }
        table([
            ("user_id", Arc::new(StringArray::from(users)) as ArrayRef, false),
            ("segment_id", Arc::new(StringArray::from(segments)), false),
            ("score", Arc::new(Float64Array::from(scores)), false),
            ("rank", Arc::new(Int64Array::from(ranks)), false),
        ])
    }

    /// The released segments, by id.
    fn segments(
        &self,
        inputs: &Inputs,
        taxonomy: &Taxonomy,
        labels: &Labels,
        yesterday: Option<&BTreeMap<&str, HashSet<&str>>>,
    ) -> Vec<SegmentFacts> {
        let mut reach: BTreeMap<&str, u64> = BTreeMap::new();
        for (user, labels) in &labels.by_user {
            let above: BTreeSet<&str> = labels.iter().flat_map(|label| taxonomy.paths[label.category].iter().copied()).collect();
            for category in above {
                *reach.entry(category).or_default() += weight(inputs, [user]);
            }
        }
        let stability = |id: &str, today: &BTreeSet<&str>| {
            let yesterday = yesterday?.get(id)?;
            let both = today.iter().filter(|user| yesterday.contains(*user)).count();
            Some(both as f64 / (today.len() + yesterday.len() - both) as f64)
        };
        let mut members: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (user, of_user) in &self.of_user {
            for (id, _) in of_user {
                members.entry(id).or_default().insert(user);
            }
        }
        let segment = |(id, users): (&str, BTreeSet<&str>)| {
            let of_all = SegmentFacts {
                segment_id: id.to_owned(),
                label: id.to_owned(),
                path: id.to_owned(),
                kind: "rule".into(),
                size: weight(inputs, &labels.users),
                size_released: weight(inputs, &users),
                stability: stability(id, &users),
            };
            if let Some(rule) = inputs.rules.iter().find(|rule| rule.segment_id == id) {
                let size = weight(inputs, labels.users.iter().filter(|user| rule.users.contains(**user)));
                return SegmentFacts { label: rule.label.clone(), path: rule.label.clone(), size, ..of_all };
            }
            let Some(category) = category_of(id) else { return of_all };
            let names: Vec<&str> = taxonomy.paths[category].iter().map(|id| taxonomy.name(id)).collect();
            SegmentFacts {
                label: taxonomy.name(category).to_owned(),
                path: names.join(" > "),
                kind: "interest".into(),
                size: reach.get(category).copied().unwrap_or(0),
                ..of_all
            }
        };
        members.into_iter().map(segment).collect()
    }
}

// -------------------------------------------------------------------------------------------------------------------- tables

/// Users by segment, of a user_segments table.
fn members(user_segments: &RecordBatch) -> Result<BTreeMap<&str, HashSet<&str>>> {
    let (users, segments) = (full::<StringArray>(user_segments, "user_id")?, full::<StringArray>(user_segments, "segment_id")?);
    let mut members: BTreeMap<&str, HashSet<&str>> = BTreeMap::new();
    for row in 0..user_segments.num_rows() {
        members.entry(segments.value(row)).or_default().insert(users.value(row));
    }
    Ok(members)
}

fn distinct_users(user_segments: &RecordBatch) -> Result<u64> {
    Ok(full::<StringArray>(user_segments, "user_id")?.iter().collect::<HashSet<_>>().len() as u64)
}

fn segments_table(segments: &[SegmentFacts]) -> Result<RecordBatch> {
    let strings = |of: fn(&SegmentFacts) -> &str| Arc::new(StringArray::from_iter_values(segments.iter().map(of))) as ArrayRef;
    let counts = |of: fn(&SegmentFacts) -> u64| Arc::new(Int64Array::from_iter_values(segments.iter().map(|it| of(it) as i64))) as ArrayRef;
    table([
        ("segment_id", strings(|it| &it.segment_id), false),
        ("label", strings(|it| &it.label), false),
        ("path", strings(|it| &it.path), false),
        ("kind", strings(|it| &it.kind), false),
        ("size", counts(|it| it.size), false),
        ("size_released", counts(|it| it.size_released), false),
        ("stability", Arc::new(segments.iter().map(|it| it.stability).collect::<Float64Array>()), true),
    ])
}

/// Bins of 1, 2, 5, 10, …, the empty ones left out.
fn histogram(segments: &[SegmentFacts]) -> Vec<SizeBin> {
    let edges: Vec<u64> = (0..18).flat_map(|power| [1, 2, 5].map(|digit| digit * 10u64.pow(power))).collect();
    let mut bins: BTreeMap<u64, u64> = BTreeMap::new();
    for segment in segments {
        let at = edges.partition_point(|edge| *edge <= segment.size_released);
        *bins.entry(edges[at.saturating_sub(1)]).or_default() += 1;
    }
    bins.into_iter().map(|(from, segments)| SizeBin { from, segments }).collect()
}

/// A table whose nullability does not depend on its rows.
pub(crate) fn table<'a>(columns: impl IntoIterator<Item = (&'a str, ArrayRef, bool)>) -> Result<RecordBatch> {
    Ok(RecordBatch::try_from_iter_with_nullable(columns)?)
}

/// A column that holds no NULL.
pub(crate) fn full<'a, A: Array + 'static>(table: &'a RecordBatch, name: &str) -> Result<&'a A> {
    let array = column::<A>(table, name)?;
    match array.null_count() {
        0 => Ok(array),
        nulls => Err(Error::contract(format_args!("column {name} holds {nulls} NULLs"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings { labels_per_user: 2, floor: 50, enter: 60 }
    }

    /// shoes > sneakers, shoes > boots; health (sensitive) > masks; phones.
    fn categories() -> RecordBatch {
        let rows = [
            ("shoes", None, "鞋子", Some(false)),
            ("sneakers", Some("shoes"), "运动鞋", Some(false)),
            ("boots", Some("shoes"), "Boots", Some(false)),
            ("health", None, "Health", Some(true)),
            ("masks", Some("health"), "Masks", Some(false)),
            ("lost", Some("nowhere"), "Lost", Some(false)),
            ("unsaid", None, "Unsaid", None),
            ("ring_a", Some("ring_b"), "Ring A", Some(false)),
            ("ring_b", Some("ring_a"), "Ring B", Some(false)),
            ("phones", None, "Phones", Some(false)),
        ];
        table([
            ("category_id", Arc::new(StringArray::from_iter_values(rows.map(|row| row.0))) as ArrayRef, false),
            ("parent_id", Arc::new(rows.map(|row| row.1).into_iter().collect::<StringArray>()), true),
            ("name", Arc::new(StringArray::from_iter_values(rows.map(|row| row.2))), false),
            ("sensitive", Arc::new(rows.map(|row| row.3).into_iter().collect::<BooleanArray>()), true),
        ])
        .unwrap()
    }

    fn scores(rows: &[(String, &str, f64)]) -> RecordBatch {
        table([
            ("user_id", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.0))) as ArrayRef, false),
            ("category_id", Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.1))), false),
            ("score", Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.2 / 10.0))), false),
            ("above_base", Arc::new(Float64Array::from_iter_values(rows.iter().map(|row| row.2))), false),
        ])
        .unwrap()
    }

    fn users(from: usize, to: usize, category: &'static str, above: f64) -> Vec<(String, &'static str, f64)> {
        (from..to).map(|user| (format!("u_{user:04}"), category, above)).collect()
    }

    fn of_user(rows: &RecordBatch, user: &str, what: &str) -> Vec<String> {
        let (users, values) = (column::<StringArray>(rows, "user_id").unwrap(), column::<StringArray>(rows, what).unwrap());
        users.iter().zip(values).filter(|(id, _)| *id == Some(user)).map(|(_, value)| value.unwrap().to_owned()).collect()
    }

    fn run(rows: &[(String, &str, f64)], eligible: Option<&BTreeSet<String>>, previous: Option<&RecordBatch>) -> Segments {
        let (scores, categories) = (scores(rows), categories());
        segment(&settings(), &Inputs { scores: &scores, categories: &categories, rules: &[], eligible, previous, weights: None }).unwrap()
    }

    #[test]
    fn labels_are_ordered_by_above_base_and_keep_their_score() {
        let mut rows = users(0, 70, "phones", 1.0);
        rows.extend(users(0, 70, "boots", 3.0));
        rows.extend(users(0, 70, "sneakers", 2.0));
        let segments = run(&rows, None, None);
        assert_eq!(of_user(&segments.labels_before_floor, "u_0003", "category_id"), ["boots", "sneakers"]);
        assert_eq!(of_user(&segments.labels_before_floor, "u_0003", "label"), ["Boots", "运动鞋"]);
        // Nobody's first segment is sneakers, nor everyone: they would serve nobody.
        assert_eq!(of_user(&segments.user_segments, "u_0003", "segment_id"), ["interest:boots"]);
        assert_eq!(column::<Float64Array>(&segments.user_segments, "score").unwrap().value(0), 0.3);
        assert_eq!(segments.facts.segments[0].path, "鞋子 > Boots");
    }

    #[test]
    fn sensitive_unknown_and_rootless_categories_never_become_labels() {
        let mut rows = users(0, 200, "phones", 0.1);
        for category in ["health", "masks", "lost", "unsaid", "ring_a", "never_heard_of"] {
            rows.extend(users(0, 200, category, 9.0));
        }
        let segments = run(&rows, None, None);
        let labels = column::<StringArray>(&segments.labels_before_floor, "category_id").unwrap();
        assert!(labels.iter().all(|label| label == Some("phones")));
        assert_eq!((segments.facts.sensitive_categories, segments.facts.unknown_categories), (5, 1));
        assert_eq!(segments.facts.segments.len(), 1);
    }

    #[test]
    fn a_rule_leads_its_users_or_stands_in_for_their_interests_and_keeps_the_floor() {
        let named = |from: usize, to: usize| (from..to).map(|user| format!("u_{user:04}")).collect::<BTreeSet<_>>();
        let rule = |name: &str, leads: bool, users| Rule { segment_id: format!("rule:{name}"), label: name.to_uppercase(), leads, users };
        let rules = [rule("few", true, named(0, 10)), rule("vip", true, named(0, 65)), rule("idle", false, named(60, 195))];
        let (scores, categories, eligible) = (scores(&users(0, 130, "phones", 1.0)), categories(), named(0, 200));
        let inputs =
            Inputs { scores: &scores, categories: &categories, rules: &rules, eligible: Some(&eligible), previous: None, weights: None };
        let segments = segment(&settings(), &inputs).unwrap();
        let of = |user| of_user(&segments.user_segments, user, "segment_id");
        assert_eq!(of("u_0003"), ["rule:vip", "interest:phones"], "those few are served by the next of their segments");
        assert_eq!(of("u_0100"), ["interest:phones", "rule:idle"]);
        assert_eq!(of("u_0150"), ["rule:idle"]);
        assert_eq!(of("u_0199"), [""; 0], "5 users of everyone are too few");
        let withheld: Vec<_> = segments.facts.withheld.iter().map(|it| (it.segment_id.as_str(), it.size)).collect();
        assert_eq!(withheld, [("everyone", 5), ("rule:few", 10)]);
        let vip = segments.facts.segments.iter().find(|it| it.segment_id == "rule:vip").unwrap();
        assert_eq!((vip.label.as_str(), vip.kind.as_str(), vip.size, vip.size_released), ("VIP", "rule", 65, 65));
    }

    #[test]
    fn a_small_segment_is_merged_into_its_parent_and_the_better_rank_stays() {
        let mut rows = users(0, 40, "boots", 1.0);
        rows.extend(users(10, 59, "sneakers", 2.0));
        rows.extend(users(0, 55, "phones", 0.5));
        let segments = run(&rows, None, None);
        // 40 boots and 49 sneakers are 59 distinct users: one below a new segment's 60, so shoes itself is dropped.
        let withheld: Vec<_> =
            segments.facts.withheld.iter().map(|it| (it.segment_id.as_str(), it.size, it.merged_into.as_deref())).collect();
        assert_eq!(
            withheld,
            [
                ("interest:boots", 40, Some("interest:shoes")),
                ("interest:phones", 25, None),
                ("interest:shoes", 59, None),
                ("interest:sneakers", 49, Some("interest:shoes"))
            ]
        );
        assert_eq!(of_user(&segments.user_segments, "u_0020", "segment_id"), ["everyone"]);

        rows.extend(users(59, 61, "boots", 1.0));
        let segments = run(&rows, None, None);
        assert_eq!(of_user(&segments.user_segments, "u_0020", "segment_id"), ["interest:shoes"]);
        let shoes = segments.facts.segments.iter().find(|it| it.segment_id == "interest:shoes").unwrap();
        assert_eq!((shoes.size, shoes.size_released), (61, 61));
    }

    #[test]
    fn a_segment_that_would_serve_few_is_withheld_and_its_users_are_served_by_the_next_one() {
        // Sneakers have 120 users and are the first of 3; boots are the first of 62, and of 2 more who would have sneakers first.
        let mut rows = users(0, 120, "sneakers", 1.0);
        rows.extend(users(3, 120, "phones", 2.0));
        rows.extend(users(0, 2, "boots", 0.5));
        rows.extend(users(200, 262, "boots", 0.5));
        let segments = run(&rows, None, None);
        let served: Vec<_> =
            ["u_0000", "u_0002", "u_0003", "u_0200"].map(|user| of_user(&segments.user_segments, user, "segment_id")).into();
        // Nothing is left for the third: everyone would serve one user.
        assert_eq!(served, [vec!["interest:boots"], vec![], vec!["interest:phones"], vec!["interest:boots"]]);
        let withheld: Vec<_> = segments.facts.withheld.iter().map(|it| (it.segment_id.as_str(), it.size)).collect();
        assert_eq!(withheld, [(EVERYONE, 1), ("interest:sneakers", 3)]);
        assert_eq!(segments.facts.users_released, 120 - 1 + 62);

        // Above sneakers lie shoes, once they have users of their own.
        rows.extend(users(300, 370, "shoes", 1.0));
        let segments = run(&rows, None, None);
        assert_eq!(of_user(&segments.user_segments, "u_0002", "segment_id"), ["interest:shoes"]);
        assert_eq!(segments.facts.withheld.iter().map(|it| it.segment_id.as_str()).collect::<Vec<_>>(), ["interest:sneakers"]);
    }

    #[test]
    fn a_segment_of_yesterday_stays_down_to_the_floor() {
        let rows = users(0, 55, "phones", 1.0);
        let yesterday = run(&users(5, 65, "phones", 1.0), None, None);
        assert_eq!(of_user(&yesterday.user_segments, "u_0005", "segment_id"), ["interest:phones"]);
        let tonight = run(&rows, None, Some(&yesterday.user_segments));
        let phones = tonight.facts.segments.iter().find(|it| it.segment_id == "interest:phones").unwrap();
        assert_eq!(phones.stability, Some(50.0 / 65.0));
        assert!(run(&rows, None, None).facts.segments.iter().all(|it| it.segment_id == EVERYONE && it.stability.is_none()));
        assert!(run(&users(0, 49, "phones", 1.0), None, Some(&yesterday.user_segments)).facts.segments.is_empty());
    }

    #[test]
    fn only_eligible_users_are_counted_and_those_without_a_score_are_in_everyone() {
        let rows = users(0, 100, "phones", 1.0);
        let eligible: BTreeSet<String> = (41..101).map(|user| format!("u_{user:04}")).collect();
        let segments = run(&rows, Some(&eligible), None);
        assert_eq!(segments.facts.segments.len(), 1);
        assert_eq!((segments.facts.users, segments.facts.users_with_labels, segments.facts.users_released), (60, 59, 60));
        assert_eq!(of_user(&segments.user_segments, "u_0100", "segment_id"), ["everyone"]);
        assert!(of_user(&segments.user_segments, "u_0040", "segment_id").is_empty());
        assert!(of_user(&segments.labels_before_floor, "u_0040", "category_id").is_empty());
    }

    #[test]
    fn weights_count_for_the_floor() {
        let (scores, categories) = (scores(&users(0, 2, "phones", 1.0)), categories());
        let weights = BTreeMap::from([("u_0000".to_owned(), 59)]);
        let inputs =
            Inputs { scores: &scores, categories: &categories, rules: &[], eligible: None, previous: None, weights: Some(&weights) };
        let segments = segment(&settings(), &inputs).unwrap();
        assert_eq!(segments.facts.segments.iter().map(|it| (it.segment_id.as_str(), it.size)).collect::<Vec<_>>(), [(EVERYONE, 59)]);
    }

    #[test]
    fn bad_scores_and_settings_are_refused() {
        let categories = categories();
        for bad in [f64::NAN, f64::INFINITY, 11.0] {
            let scores = scores(&[("u".to_owned(), "phones", bad)]);
            let inputs = Inputs { scores: &scores, categories: &categories, rules: &[], eligible: None, previous: None, weights: None };
            assert_eq!(segment(&settings(), &inputs).unwrap_err().kind, crate::error::Kind::Contract);
        }
        assert!(Settings { floor: 49, ..settings() }.check().is_err());
        assert!(Settings { enter: 49, ..settings() }.check().is_err());
        assert!(Settings { labels_per_user: 0, ..settings() }.check().is_err());
    }

    #[test]
    fn affinity_is_the_mean_click_probability_against_the_category() {
        let rows = [("a", "x", 0.02), ("a", "x", 0.04), ("b", "x", 0.01), ("a", "y", 0.01), ("b", "y", 0.01)];
        let scores = interest_from_response(rows).unwrap();
        let above = column::<Float64Array>(&scores, "above_base").unwrap().values().to_vec();
        assert_eq!(column::<Float64Array>(&scores, "score").unwrap().values(), &[0.03, 0.01, 0.01, 0.01]);
        for (found, expected) in above.iter().zip([0.5, 0.0, -0.5, 0.0]) {
            assert!((found - expected).abs() < 1e-12, "{above:?}");
        }
        assert!(interest_from_response([("a", "x", f64::NAN)]).is_err());
    }

    #[test]
    fn one_primary_segment_a_user() {
        let mut rows = users(0, 70, "phones", 1.0);
        rows.extend(users(0, 130, "boots", 0.5));
        let primary = primary_users(&run(&rows, None, None).user_segments).unwrap();
        assert_eq!(primary.num_rows(), 130);
        assert_eq!(of_user(&primary, "u_0001", "segment_id"), ["interest:phones"]);
        assert_eq!(of_user(&primary, "u_0080", "segment_id"), ["interest:boots"]);
    }
}

//! The floor: labels and audiences -> the segments that may be released, and who is in them.

use super::labels::{Label, Labels};
use super::tables::table;
use super::taxonomy::Taxonomy;
use super::{Audience, EVERYONE, Inputs, Settings, Withheld, segment_id};
use crate::error::Result;
use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// What may be released, by user: id and score of each segment, best first; nobody without one.
pub(super) struct Released<'a> {
    pub of_user: BTreeMap<&'a str, Vec<(String, f64)>>,
    pub withheld: Vec<Withheld>,
}

/// The floor of a segment's users, from the leaves to the root, and then that of the users whom it serves.
pub(super) fn release<'a>(
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
        audiences: inputs.audiences.iter().filter_map(|audience| Some((audience, *audience.users.get(user)?))).collect(),
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
    /// Those that the user is in, each with the user's score.
    audiences: Vec<(&'a Audience, f64)>,
}

impl<'a> Choices<'a> {
    fn add(&mut self, id: &'a str, score: f64) {
        if self.all.iter().all(|(other, _)| *other != id) {
            self.all.push((id, score));
        }
    }

    fn audiences(&self, leads: bool) -> impl Iterator<Item = (&'a str, f64)> {
        let placed = self.audiences.iter().filter(move |(audience, _)| audience.leads == leads);
        placed.map(|(audience, score)| (audience.segment_id.as_str(), *score))
    }

    fn ids(&self) -> Vec<&'a str> {
        let interests = self.all.iter().copied();
        self.audiences(true).chain(interests).chain(self.audiences(false)).chain([(EVERYONE, 1.0)]).map(|(id, _)| id).collect()
    }

    fn left(&self, withheld: &BTreeMap<&str, u64>) -> Vec<(String, f64)> {
        let stays = |choice: &(&str, f64)| !withheld.contains_key(choice.0);
        let (own, above) = self.all.split_at(self.own);
        let mut interests: Vec<(&str, f64)> = own.iter().copied().filter(stays).collect();
        if interests.is_empty() {
            interests.extend(above.iter().copied().find(stays));
        }
        let others = self.audiences(false).chain([(EVERYONE, 1.0)]).filter(stays);
        self.audiences(true).filter(stays).chain(interests).chain(others).map(|(id, score)| (id.to_owned(), score)).collect()
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
pub(super) fn weight<'a>(inputs: &Inputs, users: impl IntoIterator<Item = &'a &'a str>) -> u64 {
    users.into_iter().map(|user| weight_of(inputs, user)).sum()
}

fn weight_of(inputs: &Inputs, user: &str) -> u64 {
    inputs.weights.map_or(1, |weights| weights.get(user).copied().unwrap_or(0))
}

impl Released<'_> {
    pub fn user_segments(&self) -> Result<RecordBatch> {
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
}

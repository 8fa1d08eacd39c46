//! The released segments as facts: sizes, and how far they are last night's.

use super::floor::{Released, weight};
use super::labels::Labels;
use super::tables::full;
use super::taxonomy::Taxonomy;
use super::{Inputs, SegmentFacts, SizeBin, category_of};
use crate::error::Result;
use crate::statistics::rank_overlap::rank_biased_overlap;
use arrow::array::{Int64Array, RecordBatch, StringArray};
use std::collections::{BTreeMap, BTreeSet, HashSet};

impl Released<'_> {
    /// The released segments, by id.
    pub fn segments(
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
                keywords: Vec::new(),
            };
            if let Some(audience) = inputs.audiences.iter().find(|audience| audience.segment_id == id) {
                let size = weight(inputs, labels.users.iter().filter(|user| audience.users.contains_key(**user)));
                let (label, path) = (audience.label.clone(), audience.label.clone());
                return SegmentFacts { label, path, kind: audience.kind.as_str().into(), size, ..of_all };
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

/// Bins of 1, 2, 5, 10, …, the empty ones left out.
pub(super) fn histogram(segments: &[SegmentFacts]) -> Vec<SizeBin> {
    let edges: Vec<u64> = (0..18).flat_map(|power| [1, 2, 5].map(|digit| digit * 10u64.pow(power))).collect();
    let mut bins: BTreeMap<u64, u64> = BTreeMap::new();
    for segment in segments {
        let at = edges.partition_point(|edge| *edge <= segment.size_released);
        *bins.entry(edges[at.saturating_sub(1)]).or_default() += 1;
    }
    bins.into_iter().map(|(from, segments)| SizeBin { from, segments }).collect()
}

/// With this weight of the next rank, the first ten ranks bear 86 % of the overlap.
const PERSISTENCE: f64 = 0.9;

/// The mean over the users of both tables of the rank-biased overlap of their lists; `None` without such a user.
pub(super) fn rank_overlap(tonight: &RecordBatch, yesterday: &RecordBatch) -> Result<Option<f64>> {
    let (tonight, yesterday) = (lists(tonight)?, lists(yesterday)?);
    let of_user = |(user, list): (&&str, &Vec<(i64, &str)>)| {
        let ids = |list: &[(i64, &str)]| list.iter().map(|(_, segment)| (*segment).to_owned()).collect::<Vec<_>>();
        rank_biased_overlap(&ids(list), &ids(yesterday.get(user)?), PERSISTENCE)
    };
    let (sum, users) = tonight.iter().filter_map(of_user).fold((0.0, 0.0), |(sum, users), overlap| (sum + overlap, users + 1.0));
    Ok((users > 0.0).then(|| sum / users))
}

/// Of every user the segments, by rank.
fn lists(user_segments: &RecordBatch) -> Result<BTreeMap<&str, Vec<(i64, &str)>>> {
    let (users, segments) = (full::<StringArray>(user_segments, "user_id")?, full::<StringArray>(user_segments, "segment_id")?);
    let ranks = full::<Int64Array>(user_segments, "rank")?;
    let mut lists: BTreeMap<&str, Vec<(i64, &str)>> = BTreeMap::new();
    for row in 0..user_segments.num_rows() {
        lists.entry(users.value(row)).or_default().push((ranks.value(row), segments.value(row)));
    }
    lists.values_mut().for_each(|list| list.sort_unstable());
    Ok(lists)
}

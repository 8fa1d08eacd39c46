//! Users x interest scores -> each user's best labels, before the floor.

use super::tables::{full, table};
use super::taxonomy::Taxonomy;
use super::{Inputs, Settings};
use crate::error::{Error, Result};
use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Interest labels before the floor.
pub(super) struct Labels<'a> {
    /// Everybody who may be targeted.
    pub users: BTreeSet<&'a str>,
    /// Best first, at least one.
    pub by_user: BTreeMap<&'a str, Vec<Label<'a>>>,
    pub sensitive: u64,
    pub unknown: u64,
}

pub(super) struct Label<'a> {
    pub category: &'a str,
    pub score: f64,
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
    pub fn read(settings: &Settings, inputs: &Inputs<'a>, taxonomy: &Taxonomy<'a>) -> Result<Self> {
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
        let unknown = refused.iter().filter(|category| !taxonomy.knows(category)).count() as u64;
        Ok(Self {
            users,
            by_user: by_user.into_iter().filter_map(|(user, labels)| Some((user, labels.filter(|labels| !labels.is_empty())?))).collect(),
            sensitive: refused.len() as u64 - unknown,
            unknown,
        })
    }

    pub fn table(&self, taxonomy: &Taxonomy) -> Result<RecordBatch> {
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

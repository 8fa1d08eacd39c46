//! Who shows a sign of a category that cannot be a label: only to see that no audience gives them away.
//!
//! Audiences are found from harmless categories alone, but a query of the shop can name users by anything, and users who share a
//! secret may share harmless tastes as well. An audience that stands out by such a category is not made.

use super::Inputs;
use super::tables::full;
use super::taxonomy::Taxonomy;
use crate::error::Result;
use arrow::array::{Float64Array, StringArray};
use std::collections::{BTreeMap, BTreeSet};

/// So large a share of an audience, and so many times that of all users, make it an audience of the category.
const SHARE: f64 = 0.5;
const LIFT: f64 = 2.0;

pub(super) struct Sensitive<'a> {
    /// Users above the base of each category that cannot be a label.
    users: BTreeMap<&'a str, BTreeSet<&'a str>>,
    everybody: BTreeSet<&'a str>,
}

impl<'a> Sensitive<'a> {
    pub fn read(inputs: &Inputs<'a>, taxonomy: &Taxonomy) -> Result<Self> {
        let (users, categories) = (full::<StringArray>(inputs.scores, "user_id")?, full::<StringArray>(inputs.scores, "category_id")?);
        let above = full::<Float64Array>(inputs.scores, "above_base")?;
        let mut found = Self { users: BTreeMap::new(), everybody: BTreeSet::new() };
        for row in 0..inputs.scores.num_rows() {
            let (user, category) = (users.value(row), categories.value(row));
            if inputs.eligible.is_some_and(|eligible| !eligible.contains(user)) {
                continue;
            }
            found.everybody.insert(user);
            if above.value(row) > 0.0 && !taxonomy.may_be_label(category) {
                found.users.entry(category).or_default().insert(user);
            }
        }
        Ok(found)
    }

    /// Whether some category that cannot be a label tells these users from all.
    pub fn tells<'b>(&self, users: impl Iterator<Item = &'b str> + Clone) -> bool {
        let size = users.clone().count() as f64;
        let by = |with: &BTreeSet<&str>| {
            let share = users.clone().filter(|user| with.contains(user)).count() as f64 / size;
            share >= SHARE && share >= LIFT * with.len() as f64 / self.everybody.len().max(1) as f64
        };
        size > 0.0 && self.users.values().any(by)
    }
}

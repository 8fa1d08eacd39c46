//! Interest scores for a job without events.

use super::tables::table;
use crate::error::{Error, Result};
use arrow::array::{ArrayRef, Float64Array, RecordBatch, StringArray};
use std::collections::BTreeMap;
use std::sync::Arc;

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

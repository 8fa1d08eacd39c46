//! Looking into facts, of which each may be absent or of another shape: every answer is optional, and none is an error.

use minijinja::value::{Value, ValueKind};

/// The maps of a list; nothing of anything else.
pub fn rows(value: &Value) -> Vec<Value> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Vec::new();
    }
    value.try_iter().map(|items| items.filter(|item| item.kind() == ValueKind::Map).collect()).unwrap_or_default()
}

/// The value under a key, or under a path of keys: `models.challenger.auc`.
pub fn get(row: &Value, key: &str) -> Value {
    let found = row.get_attr(key).unwrap_or_default();
    match key.split_once('.') {
        Some((first, rest)) if found.is_undefined() => get(&row.get_attr(first).unwrap_or_default(), rest),
        _ => found,
    }
}

pub fn keys(map: &Value) -> Vec<String> {
    if map.kind() != ValueKind::Map {
        return Vec::new();
    }
    map.try_iter().map(|keys| keys.map(|key| key.to_string()).collect()).unwrap_or_default()
}

pub fn number(value: &Value) -> Option<f64> {
    if !value.is_number() {
        return None;
    }
    f64::try_from(value.clone()).ok().filter(|number| number.is_finite())
}

pub fn column(rows: &[Value], key: &str) -> Vec<Option<f64>> {
    rows.iter().map(|row| number(&get(row, key))).collect()
}

pub fn finite(rows: &[Value], key: &str) -> Vec<f64> {
    column(rows, key).into_iter().flatten().collect()
}

/// The two ends of an interval, `{low, high}` or `[low, high]`.
pub fn ends(value: &Value) -> Option<(f64, f64)> {
    match value.kind() {
        ValueKind::Map => Some((number(&get(value, "low"))?, number(&get(value, "high"))?)),
        ValueKind::Seq if value.len() == Some(2) => {
            Some((number(&value.get_item_by_index(0).ok()?)?, number(&value.get_item_by_index(1).ok()?)?))
        }
        _ => None,
    }
}

/// A value and its interval, as far as they are known.
pub type Estimate = (Option<f64>, Option<(f64, f64)>);

/// The number `key` of a row with its interval: a number with `key_ci` or `interval` beside it, or a map of `value` or `estimate` and
/// `interval` or `ci95`.
pub fn estimate(row: &Value, key: &str) -> Estimate {
    let found = get(row, key);
    if found.kind() == ValueKind::Map {
        let value = number(&get(&found, "value")).or_else(|| number(&get(&found, "estimate")));
        return (value, ends(&get(&found, "interval")).or_else(|| ends(&get(&found, "ci95"))));
    }
    let beside = ends(&get(row, &format!("{key}_ci"))).or_else(|| ends(&get(row, "interval")).filter(|_| key == "value"));
    (number(&found), beside)
}

/// The rows with the largest `key` first (by its distance from zero), equal ones as they came.
pub fn largest(value: &Value, key: &str) -> Value {
    let mut rows = rows(value);
    let size = |row: &Value| number(&get(row, key)).map_or(-1.0, f64::abs);
    rows.sort_by(|a, b| size(b).total_cmp(&size(a)));
    Value::from(rows)
}

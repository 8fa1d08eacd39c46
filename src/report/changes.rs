//! Tonight and the nights before -> what changed, the most surprising first.
//!
//! A number is as surprising as its change is larger than it usually changes from night to night; with too few nights to know, as
//! its change is larger than a twentieth. What has no size (another model serves, a check breaks, a query was edited) has a fixed
//! rank. Durations are no change: they belong to the machine, and two runs of the same night must find the same.

use super::words::in_words;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Change {
    pub what: String,
    /// In words; absent where there was or is nothing to say.
    pub before: Option<String>,
    pub after: Option<String>,
    /// How to take it.
    pub note: Option<String>,
    /// The section of the page that tells more.
    pub section: String,
    /// Changes are sorted by it.
    pub surprise: f64,
}

/// What is followed from night to night: its name, where it is in a digest, how it is written, its section.
const FOLLOWED: [(&str, &str, &str, &str); 16] = [
    ("Revenue of the day", "/revenue", ".2", "money"),
    ("Spend of the day", "/spend", ".2", "money"),
    ("ROAS of the day", "/roas/value", ".2", "money"),
    ("Planned spend", "/planned_spend", ".2", "money"),
    ("Planned impressions", "/planned_impressions", "n", "money"),
    ("Budgets of all campaigns", "/budget", ".2", "money"),
    ("CTR of the champion arm", "/arms/champion/ctr/value", "%2", "experiments"),
    ("CTR of the holdout", "/arms/holdout/ctr/value", "%2", "experiments"),
    ("AUC of the serving model", "/models/serving/auc", ".4", "models"),
    ("Log-loss of the serving model", "/models/serving/logloss", ".5", "models"),
    ("Calibration of the serving model", "/models/serving/calibration_ratio", ".3", "models"),
    ("Users released", "/users_released", "n", "segments"),
    ("Mean stability of segments", "/stability", ".2", "segments"),
    ("Rows staged", "/rows", "n", "data"),
    ("Rows dropped: suppressed", "/dropped_suppressed", "n", "data"),
    ("Rows dropped: no consent", "/dropped_no_consent", "n", "data"),
];

/// So many earlier changes say what is usual.
const NIGHTS_TO_KNOW: usize = 4;
/// Without them a change by this share is a surprise of one.
const NOTABLE: f64 = 0.05;

/// `facts` and `digest` of tonight, `before` the facts of the latest earlier night, `history` the digests of earlier nights, oldest
/// first, that night's last.
pub fn changes(facts: &Value, digest: &Value, before: &Value, history: &[Value]) -> Vec<Change> {
    let mut found: Vec<Change> = FOLLOWED.iter().filter_map(|followed| number(followed, digest, history)).collect();
    found.extend(replaced("Table", "/publish/state", facts, before, "verdict", 100.0));
    found.extend(replaced("Serving model", "/gate/serving", facts, before, "models", 90.0));
    found.extend(replaced("Off-policy verdict", "/off_policy/verdict/kind", facts, before, "experiments", 50.0));
    found.extend(replaced("Program", "/run/git_sha", facts, before, "configuration", 30.0));
    found.extend(checks(facts, before));
    found.extend(settings(facts, before));
    found.extend(queries(facts, before));
    found.extend(skipped(facts, before));
    found.extend(segments(facts, before));
    found.sort_by(|a, b| b.surprise.total_cmp(&a.surprise).then_with(|| a.what.cmp(&b.what)));
    found
}

fn number(&(what, path, format, section): &(&str, &str, &str, &str), digest: &Value, history: &[Value]) -> Option<Change> {
    let of = |digest: &Value| digest.pointer(path).and_then(Value::as_f64);
    let (after, before) = (of(digest)?, of(history.last()?)?);
    let by = (after - before).abs();
    let (now, then) = (in_words(after, format, false), in_words(before, format, false));
    if now == then {
        return None;
    }
    let known: Vec<f64> = history.iter().filter_map(of).collect();
    let usual: Vec<f64> = known.windows(2).map(|pair| (pair[1] - pair[0]).abs()).collect();
    let relative = (before != 0.0).then(|| in_words((after - before) / before.abs(), "±1", false));
    let (surprise, note) = match median(usual) {
        Some(usual) if known.len() > NIGHTS_TO_KNOW && usual > 0.0 => {
            let times = by / usual;
            let judged = match times {
                ..0.5 => "less than usual".to_owned(),
                ..1.5 => "as usual".to_owned(),
                _ => format!("{} times its usual change", in_words(times, if times < 10.0 { ".1" } else { "n" }, false)),
            };
            (times, relative.map_or(judged.clone(), |relative| format!("{relative}, {judged}")))
        }
        _ => (by / (NOTABLE * before.abs()).max(f64::MIN_POSITIVE), relative.unwrap_or_default()),
    };
    // However far a number jumps from zero, a broken check stands above it.
    Some(change(what, Some(then), Some(now), Some(note), section, surprise.min(45.0)))
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn change(what: &str, before: Option<String>, after: Option<String>, note: Option<String>, section: &str, surprise: f64) -> Change {
    let note = note.filter(|note| !note.is_empty());
    Change { what: what.to_owned(), before, after, note, section: section.to_owned(), surprise }
}

fn replaced(what: &str, path: &str, facts: &Value, before: &Value, section: &str, surprise: f64) -> Option<Change> {
    let text = |facts: &Value| facts.pointer(path).and_then(Value::as_str).map(|text| text.replace('_', " "));
    let (then, now) = (text(before)?, text(facts)?);
    let same = then == now || [&then, &now].iter().all(|state| state.ends_with("published"));
    (!same).then(|| change(what, Some(then), Some(now), None, section, surprise))
}

fn list<'a>(facts: &'a Value, path: &str) -> &'a [Value] {
    facts.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn checks(facts: &Value, before: &Value) -> Vec<Change> {
    let by_name = |facts: &Value| -> BTreeMap<String, bool> {
        list(facts, "/admit/checks").iter().filter_map(|check| Some((check["name"].as_str()?.to_owned(), check["ok"].as_bool()?))).collect()
    };
    let (then, now) = (by_name(before), by_name(facts));
    let say = |ok: bool| Some(if ok { "holds" } else { "broken" }.to_owned());
    let flipped = now.iter().filter_map(|(name, ok)| then.get(name).filter(|then| *then != ok).map(|then| (name, *then, *ok)));
    flipped
        .map(|(name, then, ok)| change(&format!("Check {}", name.replace('_', " ")), say(then), say(ok), None, "verdict", 95.0))
        .collect()
}

fn settings(facts: &Value, before: &Value) -> Vec<Change> {
    let flat = |facts: &Value| {
        let mut flat = BTreeMap::new();
        flatten(String::new(), &facts["configuration"]["settings"], &mut flat);
        flat
    };
    let (then, now) = (flat(before), flat(facts));
    if then.is_empty() || now.is_empty() {
        return Vec::new();
    }
    let names: BTreeSet<&String> = then.keys().chain(now.keys()).filter(|name| then.get(*name) != now.get(*name)).collect();
    let one =
        |name: &&String| change(&format!("Setting {name}"), then.get(*name).cloned(), now.get(*name).cloned(), None, "configuration", 70.0);
    names.iter().map(one).collect()
}

fn flatten(path: String, value: &Value, flat: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(map) => {
            let join = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            map.iter().for_each(|(key, value)| flatten(join(key), value, flat));
        }
        Value::Null => {}
        Value::String(text) => drop(flat.insert(path, text.clone())),
        _ => drop(flat.insert(path, value.to_string())),
    }
}

fn queries(facts: &Value, before: &Value) -> Option<Change> {
    let hashes = |facts: &Value| -> BTreeMap<String, String> {
        let rows = list(facts, "/configuration/queries").iter();
        rows.filter_map(|query| Some((query["table"].as_str()?.to_owned(), query["sha256"].as_str()?.to_owned()))).collect()
    };
    let (then, now) = (hashes(before), hashes(facts));
    if then.is_empty() || now.is_empty() {
        return None;
    }
    let edited: BTreeSet<&String> = then.keys().chain(now.keys()).filter(|name| then.get(*name) != now.get(*name)).collect();
    let names: Vec<&str> = edited.iter().map(|name| name.as_str()).collect();
    (!names.is_empty()).then(|| change("SQL edited", None, Some(names.join(", ")), None, "configuration", 65.0))
}

fn skipped(facts: &Value, before: &Value) -> Vec<Change> {
    let lines =
        |facts: &Value| -> BTreeSet<String> { list(facts, "/skipped").iter().filter_map(|line| Some(line.as_str()?.to_owned())).collect() };
    let (then, now) = (lines(before), lines(facts));
    let new = now.difference(&then).map(|line| change("Skipped tonight", None, Some(line.clone()), None, "data", 60.0));
    new.chain(then.difference(&now).map(|line| change("No longer skipped", Some(line.clone()), None, None, "data", 25.0))).collect()
}

/// Segments that came or went, and the one whose size changed most.
fn segments(facts: &Value, before: &Value) -> Vec<Change> {
    let sizes = |facts: &Value| -> BTreeMap<String, (String, f64)> {
        let rows = list(facts, "/segments/segments").iter();
        let row = |row: &Value| {
            let id = row["segment_id"].as_str()?.to_owned();
            Some((id.clone(), (row["label"].as_str().map_or(id, str::to_owned), row["size_released"].as_f64()?)))
        };
        rows.filter_map(row).collect()
    };
    let (then, now) = (sizes(before), sizes(facts));
    if then.is_empty() || now.is_empty() {
        return Vec::new();
    }
    let users = |size: f64| Some(format!("{} users", in_words(size, "n", true)));
    let missing_in = |some: &BTreeMap<String, (String, f64)>, others: &BTreeMap<String, (String, f64)>| {
        let labels: Vec<&str> = some.iter().filter(|(id, _)| !others.contains_key(*id)).map(|(_, (label, _))| label.as_str()).collect();
        (!labels.is_empty()).then(|| labels.join(", "))
    };
    let came = missing_in(&now, &then).map(|labels| change("New segments", None, Some(labels), None, "segments", 20.0));
    let went = missing_in(&then, &now).map(|labels| change("Segments that are gone", Some(labels), None, None, "segments", 20.0));
    let moved = now.iter().filter_map(|(id, (label, size))| then.get(id).map(|(_, then)| (label, *then, *size)));
    let moved = moved.filter(|(_, then, size)| then != size && *then > 0.0);
    let most = moved.max_by(|a, b| ((a.2 / a.1).ln().abs()).total_cmp(&(b.2 / b.1).ln().abs()));
    let most = most.map(|(label, then, size)| {
        let relative = (size - then) / then;
        let note = format!("{}, the most of all segments", in_words(relative, "±0", false));
        change(&format!("Segment {label}"), users(then), users(size), Some(note), "segments", (relative.abs() / NOTABLE / 4.0).min(20.0))
    });
    came.into_iter().chain(went).chain(most).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_number_is_judged_by_its_usual_change() {
        let night = |revenue: f64, rows: u64| json!({"revenue": revenue, "rows": rows});
        let history = [night(100.0, 1000), night(110.0, 1001), night(100.0, 1000), night(110.0, 1001), night(100.0, 1000)];
        let found = changes(&Value::Null, &night(110.0, 1030), &Value::Null, &history);
        let lines: Vec<_> = found.iter().map(|change| (change.what.as_str(), change.note.as_deref().unwrap_or(""))).collect();
        assert_eq!(lines, [("Rows staged", "+3.0 %, 30 times its usual change"), ("Revenue of the day", "+10.0 %, as usual")]);
        // Two nights do not say what is usual: the larger share comes first.
        let found = changes(&Value::Null, &night(110.0, 1030), &Value::Null, &history[4..]);
        assert_eq!((found[0].what.as_str(), found[0].note.as_deref()), ("Revenue of the day", Some("+10.0 %")));
    }

    #[test]
    fn what_has_no_size_has_a_rank() {
        let facts = |serving: &str, ok: bool, floor: u64, sha: &str| {
            json!({
                "gate": {"serving": serving}, "publish": {"state": "published"},
                "admit": {"checks": [{"name": "segment_floor", "ok": ok}]},
                "configuration": {"settings": {"segments": {"floor": floor}}, "queries": [{"table": "events", "sha256": sha}]}
            })
        };
        let (mut before, now) = (facts("champion", true, 100, "a"), facts("challenger", false, 120, "b"));
        before["publish"]["state"] = json!("already_published");
        let found = changes(&now, &json!({}), &before, &[json!({})]);
        let what: Vec<&str> = found.iter().map(|change| change.what.as_str()).collect();
        assert_eq!(what, ["Check segment floor", "Serving model", "Setting segments.floor", "SQL edited"]);
        assert_eq!((found[2].before.as_deref(), found[2].after.as_deref()), (Some("100"), Some("120")));
        assert!(changes(&now, &json!({}), &now, &[json!({})]).is_empty());
    }

    #[test]
    fn a_first_night_has_nothing_to_compare_with() {
        assert!(changes(&json!({"gate": {"serving": "baseline"}}), &json!({"revenue": 1.0}), &Value::Null, &[]).is_empty());
    }
}

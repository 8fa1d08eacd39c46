//! The facts of a night -> the few numbers that are followed over many nights.
//!
//! A digest is small, so that a page over all nights reads hundreds of them. It is taken from the facts as JSON, because each of
//! them may be absent, and it leaves out what is.

use serde_json::{Map, Value, json};

/// Everything that is followed; `seconds`, `took` and `files`, the only parts that differ between two runs of the same night, as they are
/// in the facts.
pub fn digest(facts: &Value) -> Value {
    let mut digest = Map::new();
    let mut keep = |key: &str, value: Value| {
        if !is_empty(&value) {
            digest.insert(key.to_owned(), value);
        }
    };
    for (key, path) in [
        ("date", "/run/date"),
        ("version", "/run/version"),
        ("git_sha", "/run/git_sha"),
        ("policy_version", "/run/policy_version"),
        ("state", "/publish/state"),
        ("generation", "/publish/generation"),
        ("reason", "/publish/reason"),
        ("serving", "/gate/serving"),
        ("admitted", "/admit/admitted"),
        ("off_policy", "/off_policy/verdict/kind"),
        ("srm_alarm", "/evaluate/srm/alarm"),
        ("spend", "/money/total/spend"),
        ("revenue", "/money/total/revenue"),
        ("roas", "/money/total/roas"),
        ("users", "/segments/users"),
        ("users_released", "/segments/users_released"),
        ("stability", "/segments/stability"),
        ("rank_overlap", "/segments/rank_overlap"),
        ("gap", "/targeting/certificate/gap"),
        ("skipped", "/skipped"),
    ] {
        keep(key, at(facts, path));
    }
    keep("checks_broken", json!(count(facts, "/admit/checks", |check| check["ok"] == false)));
    keep("segments", counted(facts, "/segments/segments"));
    keep("planned_impressions", sum(facts, "/targeting/campaigns", "planned_impressions"));
    keep("planned_spend", sum(facts, "/targeting/campaigns", "planned_spend"));
    keep("budget", sum(facts, "/targeting/campaigns", "budget"));
    keep("rows", sum(facts, "/ingest/tables", "rows"));
    keep("dropped_suppressed", sum(facts, "/ingest/tables", "dropped_suppressed"));
    keep("dropped_no_consent", sum(facts, "/ingest/tables", "dropped_no_consent"));
    keep("models", models(facts));
    keep("arms", by_name(facts, "/evaluate/arms", "arm", &["users", "impressions", "ctr", "roas"]));
    keep("lift", by_name(facts, "/evaluate/lift", "metric", &["relative"]));
    keep("seconds", seconds(facts));
    keep("took", at(facts, "/took/seconds"));
    keep("files", files(facts));
    Value::Object(digest)
}

/// Of each contestant of the gate, and of the one that serves.
fn models(facts: &Value) -> Value {
    let keys = ["auc", "auc_ci", "logloss", "logloss_ci", "calibration_ratio", "ece"];
    let mut models = by_name(facts, "/gate/scores", "name", &keys);
    let serving = facts.pointer("/gate/serving").and_then(Value::as_str).and_then(|name| models.get(name).cloned());
    if let (Some(map), Some(serving)) = (models.as_object_mut(), serving) {
        map.insert("serving".to_owned(), serving);
    }
    models
}

/// Seconds of each stage, the first part of its steps' names; of those that did work this time.
fn seconds(facts: &Value) -> Value {
    let mut stages: Map<String, Value> = Map::new();
    for step in list(facts, "/timings") {
        if let (Some(name), Some(seconds), false) = (step["stage"].as_str(), step["seconds"].as_f64(), step["reused"] == true) {
            let stage = stages.entry(stage_of(name)).or_insert(json!(0.0));
            *stage = json!(stage.as_f64().unwrap_or(0.0) + seconds);
        }
    }
    Value::Object(stages)
}

/// What each feature file took that was not taken from an earlier run.
fn files(facts: &Value) -> Value {
    let mut files = by_name(facts, "/took/files", "table", &["rows", "cpu_seconds"]);
    if let Some(files) = files.as_object_mut() {
        files.retain(|_, file| !file["cpu_seconds"].is_null());
    }
    files
}

/// `features` of `features/user__activity/dt=2026-11-22`.
pub fn stage_of(step: &str) -> String {
    step.split('/').next().unwrap_or(step).to_owned()
}

fn by_name(facts: &Value, path: &str, name: &str, keys: &[&str]) -> Value {
    let pick = |row: &Value| {
        let kept = keys.iter().filter(|key| !is_empty(&row[**key])).map(|key| ((*key).to_owned(), row[*key].clone()));
        Some((row[name].as_str()?.to_owned(), Value::Object(kept.collect())))
    };
    Value::Object(list(facts, path).iter().filter_map(pick).collect())
}

fn at(facts: &Value, path: &str) -> Value {
    facts.pointer(path).cloned().unwrap_or_default()
}

fn list<'a>(facts: &'a Value, path: &str) -> &'a [Value] {
    facts.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn counted(facts: &Value, path: &str) -> Value {
    facts.pointer(path).and_then(Value::as_array).map_or(Value::Null, |rows| json!(rows.len()))
}

fn count(facts: &Value, path: &str, of: impl Fn(&Value) -> bool) -> usize {
    list(facts, path).iter().filter(|row| of(row)).count()
}

/// None of a list that is absent; whole where all its numbers are.
fn sum(facts: &Value, path: &str, key: &str) -> Value {
    let rows = list(facts, path);
    if rows.is_empty() {
        return Value::Null;
    }
    match rows.iter().map(|row| row[key].as_u64()).collect::<Option<Vec<u64>>>() {
        Some(whole) => json!(whole.iter().sum::<u64>()),
        None => json!(rows.iter().filter_map(|row| row[key].as_f64()).fold(0.0, |sum, value| sum + value)),
    }
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(Map::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_holds_what_is_there_and_nothing_else() {
        let facts = json!({
            "run": {"date": "2026-11-22"},
            "gate": {"serving": "baseline", "scores": [{"name": "baseline", "auc": 0.7, "auc_ci": null, "gauc": 0.6}]},
            "targeting": {"campaigns": [{"planned_spend": 1.5, "planned_impressions": 3}, {"planned_spend": 2.0, "planned_impressions": 4}]},
            "timings": [
                {"stage": "features/a/dt=1", "seconds": 1.0, "reused": false},
                {"stage": "features/b/dt=1", "seconds": 2.0, "reused": false},
                {"stage": "model/dt=1", "seconds": 0.1, "reused": true}
            ]
        });
        let found = digest(&facts);
        assert_eq!(found["models"]["serving"], json!({"auc": 0.7}));
        assert_eq!((&found["planned_spend"], &found["planned_impressions"]), (&json!(3.5), &json!(7)));
        assert_eq!(found["seconds"], json!({"features": 3.0}));
        assert!(found.get("revenue").is_none() && found.get("arms").is_none());
        assert_eq!(digest(&Value::Null), json!({"checks_broken": 0}));
    }
}

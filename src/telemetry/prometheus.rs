//! The night as Prometheus text: gauges, one family after the other.

use crate::error::Error;
use crate::platform::run::Run;
use chrono::{DateTime, NaiveDate, Utc};
use serde_json::Value;
use std::fmt::Write;

/// All that a night measured. Families without a value are left out.
pub fn of_success(facts: &Value, at: DateTime<Utc>) -> String {
    let job = facts.pointer("/run/job").and_then(Value::as_str).unwrap_or("unknown");
    let mut text = Text { job, text: String::new() };
    let date = facts.pointer("/run/date").and_then(Value::as_str).and_then(|date| date.parse::<NaiveDate>().ok());
    text.ended(at, 0);
    text.gauge("last_success_timestamp_seconds", "When a night last ended well.", [(vec![], seconds(at))]);
    let midnight = date.and_then(|date| date.and_hms_opt(0, 0, 0)).map(|midnight| midnight.and_utc().timestamp() as f64);
    text.gauge("run_date_timestamp_seconds", "The date of that night, at midnight UTC.", midnight.map(|midnight| (vec![], midnight)));

    text.one(facts, "generation", "Generation of the table that the night published.", "/publish/generation");
    let state = facts.pointer("/publish/state").and_then(Value::as_str);
    let published = state.map(|state| (vec![], f64::from(u8::from(state.ends_with("published")))));
    text.gauge("published", "1: the night's table serves; 0: an earlier one was kept.", published);
    let broken = list(facts, "/admit/checks").iter().filter(|check| check["ok"] == false).count();
    text.gauge("checks_broken", "Admission checks that do not hold.", [(vec![], broken as f64)]);
    let alarm = facts.pointer("/evaluate/srm/alarm").and_then(Value::as_bool);
    text.gauge("srm_alarm", "1: users did not fall into the arms as planned.", alarm.map(|alarm| (vec![], f64::from(u8::from(alarm)))));

    text.one(facts, "duration_seconds", "How long the night took.", "/took/seconds");
    text.each(facts, "stage_seconds", "How long each stage took.", "/took/stages", "stage", "stage", "seconds");
    text.one(facts, "peak_memory_bytes", "The most memory that the night held.", "/took/peak_memory_bytes");
    text.each(facts, "rows", "Rows of each canonical table.", "/ingest/tables", "table", "name", "rows");
    let dropped = list(facts, "/ingest/tables").iter().flat_map(|table| {
        [("suppressed", "dropped_suppressed"), ("no_consent", "dropped_no_consent")].map(|(reason, key)| (table, reason, key))
    });
    let dropped = dropped.filter_map(|(table, reason, key)| {
        let labels = vec![("table", table["name"].as_str()?.to_owned()), ("reason", reason.to_owned())];
        Some((labels, table[key].as_f64()?))
    });
    text.gauge("dropped_rows", "Rows taken out before anything read them.", dropped);
    text.each(facts, "published_rows", "Rows of each published table.", "/publish/files", "file", "path", "rows");

    for (name, help, key) in [
        ("model_auc", "AUC on the gate's day.", "auc"),
        ("model_logloss", "Log-loss on the gate's day.", "logloss"),
        ("model_calibration_ratio", "Predicted over observed clicks on the gate's day.", "calibration_ratio"),
    ] {
        text.each(facts, name, help, "/gate/scores", "model", "name", key);
    }
    let serving = facts.pointer("/gate/serving").and_then(Value::as_str);
    text.gauge("model_serving", "1 for the model that scores.", serving.map(|name| (vec![("model", name.to_owned())], 1.0)));

    text.one(facts, "segment_users_released", "Users in one released segment or more.", "/segments/users_released");
    let segments = facts.pointer("/segments/segments").and_then(Value::as_array).map(|segments| (vec![], segments.len() as f64));
    text.gauge("segments_released", "Released segments.", segments);
    text.one(facts, "segment_stability", "Mean Jaccard index of the segments with the night before.", "/segments/stability");

    text.one(facts, "plan_gap_ratio", "How far the plan is below its bound, at most, as a share of it.", "/targeting/certificate/gap");
    text.each(facts, "plan_budget", "Daily budget, in currency.", "/targeting/campaigns", "campaign", "campaign_id", "budget");
    text.each(facts, "plan_spend", "Planned spend, in currency.", "/targeting/campaigns", "campaign", "campaign_id", "planned_spend");
    text.each(facts, "plan_impressions", "Planned impressions.", "/targeting/campaigns", "campaign", "campaign_id", "planned_impressions");

    text.one(facts, "day_spend", "What the day's impressions cost, in currency.", "/money/total/spend");
    text.one(facts, "day_revenue", "What they brought, in currency.", "/money/total/revenue");
    text.one(facts, "day_roas", "Revenue over cost of the day.", "/money/total/roas/value");
    text.each(facts, "arm_impressions", "Impressions of the day by arm.", "/evaluate/arms", "arm", "arm", "impressions");
    let ctr = list(facts, "/evaluate/arms")
        .iter()
        .filter_map(|arm| Some((vec![("arm", arm["arm"].as_str()?.to_owned())], arm.pointer("/ctr/value")?.as_f64()?)));
    text.gauge("arm_ctr", "Clicks per impression of the day by arm.", ctr);
    text.text
}

/// Only that the night failed, and how.
pub fn of_failure(run: &Run, error: &Error, at: DateTime<Utc>) -> String {
    let mut text = Text { job: &run.job.name, text: String::new() };
    text.ended(at, error.kind.exit_code());
    text.text
}

struct Text<'a> {
    job: &'a str,
    text: String,
}

type Labels = Vec<(&'static str, String)>;

impl Text<'_> {
    fn ended(&mut self, at: DateTime<Utc>, exit_code: u8) {
        self.gauge("last_run_timestamp_seconds", "When a night last ended, well or not.", [(vec![], seconds(at))]);
        self.gauge("last_exit_code", "Exit code of that night; 0 is success.", [(vec![], f64::from(exit_code))]);
    }

    /// A family with a value at one place of the facts.
    fn one(&mut self, facts: &Value, name: &str, help: &str, path: &str) {
        self.gauge(name, help, facts.pointer(path).and_then(Value::as_f64).map(|value| (vec![], value)));
    }

    /// A family with a value for each row of a list, labelled by one of the row's own texts.
    fn each(&mut self, facts: &Value, name: &str, help: &str, path: &str, label: &'static str, of: &str, key: &str) {
        let rows = list(facts, path).iter();
        self.gauge(name, help, rows.filter_map(|row| Some((vec![(label, row[of].as_str()?.to_owned())], row[key].as_f64()?))));
    }

    fn gauge(&mut self, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return;
        }
        let _ = writeln!(self.text, "# HELP nightmarket_{name} {help}\n# TYPE nightmarket_{name} gauge");
        for (labels, value) in values {
            let labels = std::iter::once(("nightmarket_job", self.job)).chain(labels.iter().map(|(name, value)| (*name, value.as_str())));
            let labels: Vec<String> = labels.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
            let _ = writeln!(self.text, "nightmarket_{name}{{{}}} {value}", labels.join(","));
        }
    }
}

fn list<'a>(facts: &'a Value, path: &str) -> &'a [Value] {
    facts.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn seconds(at: DateTime<Utc>) -> f64 {
    at.timestamp_millis() as f64 / 1000.0
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_night_is_gauges_with_labels_and_no_empty_family() {
        let facts = json!({
            "run": {"job": "shop \"one\"", "date": "2026-11-22"}, "publish": {"state": "kept"},
            "took": {"seconds": 61.5, "stages": [{"stage": "model", "seconds": 40.25}]},
            "gate": {"serving": "baseline", "scores": [{"name": "baseline", "auc": 0.73}, {"name": "challenger", "auc": null}]}
        });
        let at = DateTime::from_timestamp(1_795_305_600, 0).expect("a time");
        let text = of_success(&facts, at);
        for line in [
            "# TYPE nightmarket_last_success_timestamp_seconds gauge",
            r#"nightmarket_last_success_timestamp_seconds{nightmarket_job="shop \"one\""} 1795305600"#,
            r#"nightmarket_stage_seconds{nightmarket_job="shop \"one\"",stage="model"} 40.25"#,
            r#"nightmarket_model_auc{nightmarket_job="shop \"one\"",model="baseline"} 0.73"#,
            r#"nightmarket_published{nightmarket_job="shop \"one\""} 0"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("day_spend") && !text.contains("challenger"), "{text}");
        let families: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        assert_eq!(families.len(), families.iter().collect::<std::collections::BTreeSet<_>>().len(), "each family once");
    }
}

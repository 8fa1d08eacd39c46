//! The night as a run of MLflow, by its REST interface (version 2.0 of the API): the settings as parameters, the scores as metrics.

use crate::error::{Error, Kind, Result};
use crate::platform::http;
use crate::platform::run::{Run, now};
use crate::report::digest::digest;
use serde_json::{Value, json};

/// MLflow takes no more parameters, and no longer values, at a time.
const PARAMETERS: usize = 100;
const LONGEST: usize = 500;

/// Logs one night as one finished run of the experiment named like the job.
pub async fn log(server: &str, run: &Run, facts: &Value) -> Result<()> {
    let (started, ended) = (run.started_at().timestamp_millis(), now().timestamp_millis());
    let experiment = experiment(server, &run.job.name).await?;
    let tags = [("nightmarket.date", run.date.to_string()), ("nightmarket.policy_version", text(facts, "/publish/policy_version"))];
    let tags: Vec<Value> = tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    let name = format!("{} {}", run.job.name, run.date);
    let created =
        post(server, "runs/create", json!({"experiment_id": experiment, "run_name": name, "start_time": started, "tags": tags})).await?;
    let id = created.pointer("/run/info/run_id").and_then(Value::as_str).ok_or_else(|| unexpected(server, &created))?;
    let batch = json!({"run_id": id, "params": parameters(facts), "metrics": metrics(facts, ended)});
    post(server, "runs/log-batch", batch).await?;
    post(server, "runs/update", json!({"run_id": id, "status": "FINISHED", "end_time": ended})).await.map(drop)
}

/// The id of the experiment of this name, made when there is none.
async fn experiment(server: &str, name: &str) -> Result<String> {
    let named: String = url::form_urlencoded::byte_serialize(name.as_bytes()).collect();
    let url = address(server, &format!("experiments/get-by-name?experiment_name={named}"));
    let found = http::ask("GET", &url, JSON, "".into(), TOKEN).await?;
    let (answer, id) = match found.status {
        404 => {
            let made = post(server, "experiments/create", json!({"name": name})).await?;
            (made.clone(), made["experiment_id"].clone())
        }
        _ => {
            let found = read(&url, &found.body)?;
            (found.clone(), found["experiment"]["experiment_id"].clone())
        }
    };
    id.as_str().map(str::to_owned).ok_or_else(|| unexpected(server, &answer))
}

const JSON: &str = "application/json";
const TOKEN: Option<&str> = Some("MLFLOW_TRACKING_TOKEN");

fn address(server: &str, path: &str) -> String {
    format!("{}/api/2.0/mlflow/{path}", server.trim_end_matches('/'))
}

async fn post(server: &str, path: &str, body: Value) -> Result<Value> {
    let url = address(server, path);
    read(&url, &http::send("POST", &url, JSON, body.to_string().into(), TOKEN).await?)
}

fn read(url: &str, answer: &[u8]) -> Result<Value> {
    serde_json::from_slice(answer).map_err(|error| Error::new(Kind::Transient, format_args!("{url}: no JSON: {error}")))
}

fn unexpected(server: &str, answer: &Value) -> Error {
    Error::new(Kind::Transient, format_args!("{server} answered what MLflow does not: {answer}"))
}

fn text(facts: &Value, path: &str) -> String {
    facts.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The settings that may change a published byte, by their path.
fn parameters(facts: &Value) -> Vec<Value> {
    let mut found = Vec::new();
    walk("", facts.pointer("/configuration/settings").unwrap_or(&Value::Null), &mut |path, value| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        found.push(json!({"key": path, "value": value.chars().take(LONGEST).collect::<String>()}));
    });
    found.truncate(PARAMETERS);
    found
}

/// Every number that is followed from night to night.
fn metrics(facts: &Value, at: i64) -> Vec<Value> {
    let mut found = Vec::new();
    walk("", &digest(facts), &mut |path, value| {
        if let Some(number) = value.as_f64() {
            found.push(json!({"key": path, "value": number, "timestamp": at, "step": 0}));
        }
    });
    found
}

fn walk(path: &str, value: &Value, visit: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(&path, value, visit);
            }
        }
        Value::Null => {}
        value => visit(path, value),
    }
}

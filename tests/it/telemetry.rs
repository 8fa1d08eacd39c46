//! What machines are told of a night: metrics, lineage events, MLflow, the line for Kubernetes. The listeners are a small HTTP server of
//! this process, and the night is run through the command line.

use crate::shop::{DATE, SECRET, Shop, block_on};
use chrono::{Days, NaiveDate};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::path::Path;
use std::pin::Pin;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;

/// A request as it came: `POST /path`, and its body.
type Heard = Arc<Mutex<Vec<(String, String)>>>;

/// Answers like MLflow where it is asked like MLflow, and 200 to everybody else, until the runtime ends.
async fn listen(heard: Heard) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let heard = heard.clone();
            tokio::spawn(async move {
                let answer = service_fn(move |request| answer(request, heard.clone()));
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
            });
        }
    });
    address
}

async fn answer(request: Request<Incoming>, heard: Heard) -> Result<Response<String>, Infallible> {
    let line = format!("{} {}", request.method(), request.uri());
    let mut body = request.into_body();
    let mut bytes = Vec::new();
    while let Some(frame) = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        bytes.extend(frame.expect("a frame").into_data().unwrap_or_default());
    }
    let (status, text) = match line.as_str() {
        line if line.contains("get-by-name") => (404, json!({"error_code": "RESOURCE_DOES_NOT_EXIST"}).to_string()),
        line if line.ends_with("experiments/create") => (200, json!({"experiment_id": "7"}).to_string()),
        line if line.ends_with("runs/create") => (200, json!({"run": {"info": {"run_id": "abc"}}}).to_string()),
        _ => (200, "{}".to_owned()),
    };
    heard.lock().expect("no panic holds this lock").push((line, String::from_utf8(bytes).expect("UTF-8")));
    Ok(Response::builder().status(status).body(text).expect("an answer"))
}

/// Runs the night of a date with these further arguments, while somebody listens; gives how it ended and what was heard.
fn told(shop: &Shop, date: NaiveDate, arguments: impl Fn(&str) -> Vec<String>) -> (Output, Vec<(String, String)>) {
    let heard = Heard::default();
    let output = block_on(async {
        let address = listen(heard.clone()).await;
        let mut command = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
        command.args(["run", &shop.spec_file().display().to_string(), "--date", &date.to_string(), "--output", "json"]);
        command.args(arguments(&address)).env("NIGHTMARKET_PSEUDONYM_KEY", SECRET).env("NIGHTMARKET_LOG", "warn");
        tokio::task::spawn_blocking(move || command.output().expect("starts")).await.expect("joined")
    });
    let heard = std::mem::take(&mut *heard.lock().expect("no panic holds this lock"));
    (output, heard)
}

fn everybody(address: &str, termination_log: &Path) -> Vec<String> {
    let lineage = format!("{address}/api/v1/lineage");
    let log = termination_log.display().to_string();
    ["--pushgateway", address, "--openlineage", &lineage, "--mlflow", address, "--termination-log", &log].map(str::to_owned).to_vec()
}

fn line(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).expect("the termination log")).expect("one JSON line")
}

fn value(metrics: &str, name: &str) -> f64 {
    let found = metrics.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{metrics}"));
    found.rsplit_once(' ').and_then(|(_, value)| value.parse().ok()).unwrap_or_else(|| panic!("no number: {found}"))
}

#[test]
fn a_good_night_is_told_to_everybody() {
    let shop = Shop::served();
    let log = shop.root.join("termination-log");
    let (output, heard) = told(&shop, DATE, |address| everybody(address, &log));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let facts: Value = serde_json::from_slice(&output.stdout).expect("facts");
    let bodies = |start: &str| heard.iter().filter(|(line, _)| line.starts_with(start)).map(|(_, body)| body.as_str()).collect::<Vec<_>>();

    // Metrics: pushed, and the same in the store.
    let pushed = bodies("POST /metrics/job/nightmarket/nightmarket_job/shop");
    assert_eq!(pushed.len(), 1, "{heard:?}");
    let stored = std::fs::read_to_string(shop.root.join("out/reports/metrics.prom")).expect("metrics");
    assert_eq!(stored, pushed[0]);
    assert_eq!(value(&stored, "nightmarket_last_exit_code"), 0.0);
    assert_eq!(value(&stored, "nightmarket_last_success_timestamp_seconds"), value(&stored, "nightmarket_last_run_timestamp_seconds"));
    let number = |path: &str| facts.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path}"));
    assert_eq!(value(&stored, "nightmarket_plan_gap_ratio"), number("/targeting/certificate/gap"));
    assert_eq!(value(&stored, "nightmarket_day_spend"), number("/money/total/spend"));
    let auc = facts["gate"]["scores"].as_array().expect("scores").iter().find(|score| score["name"] == "baseline").expect("a baseline");
    assert_eq!(value(&stored, "nightmarket_model_auc{nightmarket_job=\"shop\",model=\"baseline\"}"), auc["auc"].as_f64().expect("an AUC"));
    assert!(
        stored.contains("nightmarket_stage_seconds{")
            && stored.contains("nightmarket_rows{")
            && stored.contains("nightmarket_model_calibration_ratio{")
    );

    // Lineage: one run from its start to its end, with what it read and wrote; posted, and in the store.
    let events: Vec<Value> = bodies("POST /api/v1/lineage").iter().map(|body| serde_json::from_str(body).expect("JSON")).collect();
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["eventType"].as_str()).collect();
    assert_eq!(kinds, ["START", "COMPLETE"]);
    let id = events[0]["run"]["runId"].as_str().expect("a run id");
    assert_eq!(events[1]["run"]["runId"], id);
    let groups: Vec<usize> = id.split('-').map(str::len).collect();
    assert_eq!(groups, [8, 4, 4, 4, 12], "{id}");
    for event in &events {
        assert_eq!(event["job"]["name"], "shop");
        assert!(event["eventTime"].as_str().is_some_and(|time| time.parse::<chrono::DateTime<chrono::Utc>>().is_ok()));
    }
    let (inputs, outputs) = (events[1]["inputs"].as_array().expect("inputs"), events[1]["outputs"].as_array().expect("outputs"));
    let events_table = inputs.iter().find(|input| input["name"].as_str().is_some_and(|name| name.ends_with("/events"))).expect("events");
    assert!(events_table["facets"]["schema"]["fields"].as_array().is_some_and(|fields| fields.len() > 4));
    assert!(events_table["inputFacets"]["inputStatistics"]["rowCount"].as_u64() > Some(1000));
    let files = facts["publish"]["files"].as_array().expect("files");
    assert_eq!(outputs.len(), files.len());
    for (output, file) in outputs.iter().zip(files) {
        assert_eq!(output["outputFacets"]["outputStatistics"]["rowCount"], file["rows"]);
        let path = output["name"].as_str().expect("a name");
        assert!(Path::new(path).is_file(), "{path} is where the event says");
        assert!(output["facets"]["schema"]["fields"].as_array().is_some_and(|fields| !fields.is_empty()), "{output}");
    }
    let stored = std::fs::read_to_string(shop.root.join(format!("out/reports/dt={DATE}/openlineage.jsonl"))).expect("events");
    let stored: Vec<Value> = stored.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(stored, events);

    // MLflow: the experiment is made, and the run is there with its parameters and metrics, and finished.
    assert_eq!(bodies("POST /api/2.0/mlflow/experiments/create"), [r#"{"name":"shop"}"#]);
    let batch: Value = serde_json::from_str(bodies("POST /api/2.0/mlflow/runs/log-batch")[0]).expect("JSON");
    let has = |list: &str, key: &str| batch[list].as_array().is_some_and(|entries| entries.iter().any(|entry| entry["key"] == key));
    assert!(has("params", "segments.floor") && has("metrics", "models.baseline.auc") && batch["run_id"] == "abc", "{batch}");
    assert!(bodies("POST /api/2.0/mlflow/runs/update")[0].contains("FINISHED"));

    let line = line(&log);
    assert_eq!((&line["ok"], &line["exit"], &line["state"]), (&json!(true), &json!(0), &json!("already_published")));
    assert_eq!(line["policy_version"], facts["publish"]["policy_version"]);
}

#[test]
fn a_failed_night_is_told_and_leaves_the_last_success_alone() {
    let shop = Shop::served();
    let log = shop.root.join("termination-log");
    let date = DATE + Days::new(40);
    let (output, heard) = told(&shop, date, |address| everybody(address, &log));
    assert_eq!(output.status.code(), Some(20), "{}", String::from_utf8_lossy(&output.stderr));
    let pushed = &heard.iter().find(|(line, _)| line.starts_with("POST /metrics")).expect("pushed").1;
    assert_eq!(value(pushed, "nightmarket_last_exit_code"), 20.0);
    assert!(!pushed.contains("last_success"), "{pushed}");
    let events: Vec<&str> = heard.iter().filter(|(line, _)| line.contains("lineage")).map(|(_, body)| body.as_str()).collect();
    let last: Value = serde_json::from_str(events[1]).expect("JSON");
    assert_eq!((events.len(), &last["eventType"]), (2, &json!("FAIL")));
    let said = last["run"]["facets"]["errorMessage"]["message"].as_str().expect("a message");
    let line = line(&log);
    assert_eq!((&line["ok"], &line["exit"], &line["kind"]), (&json!(false), &json!(20), &json!("input_missing")));
    assert!(said.contains(line["message"].as_str().expect("a message")), "{said}");
    assert!(heard.iter().all(|(line, _)| !line.contains("mlflow")), "only finished nights are logged");
}

#[test]
fn listeners_that_do_not_listen_stop_no_night() {
    let shop = Shop::served();
    let (output, heard) = told(&shop, DATE, |_| {
        let closed = "http://127.0.0.1:1";
        let arguments =
            ["--pushgateway", closed, "--openlineage", "not a URL", "--mlflow", closed, "--termination-log", "/no/such/folder/log"];
        arguments.map(str::to_owned).to_vec()
    });
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let log = String::from_utf8_lossy(&output.stderr);
    for whom in ["Pushgateway", "OpenLineage", "MLflow"] {
        assert!(log.contains(&format!("\"whom\":\"{whom}\"")), "{whom} in {log}");
    }
    assert!(log.contains("/no/such/folder/log") && heard.is_empty());
}

/// Also what never became a night: a spec that does not read.
#[test]
fn a_command_that_cannot_begin_leaves_its_line_too() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let log = folder.path().join("termination-log");
    let mut command = Command::new(env!("CARGO_BIN_EXE_nightmarket"));
    command.args(["run", "jobs/no_such.toml", "--date", "2026-11-22"]).env("NIGHTMARKET_TERMINATION_LOG", &log);
    assert_eq!(command.output().expect("starts").status.code(), Some(2));
    let line = line(&log);
    assert_eq!((&line["exit"], &line["kind"]), (&json!(2), &json!("usage")));
    assert!(line["message"].as_str().is_some_and(|message| message.contains("jobs/no_such.toml")));
}

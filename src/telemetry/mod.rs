//! The end of a night -> what machines are told: metrics, lineage events, a line for Kubernetes, a run in MLflow.
//!
//! | what | where |
//! |---|---|
//! | Prometheus text ([`prometheus`]) | `reports/metrics.prom` of the output store; a Pushgateway |
//! | OpenLineage events ([`openlineage`]) | `reports/dt=D/openlineage.jsonl`; an HTTP endpoint |
//! | one JSON line ([`termination`]) | the file that Kubernetes reads when a container ends |
//! | parameters and metrics ([`mlflow`]) | an MLflow server |
//!
//! Nobody who only listens may stop a night: what cannot be told is logged, and the night's own end stands.

pub mod mlflow;
pub mod openlineage;
pub mod prometheus;
pub mod termination;

use crate::error::{Error, Kind, Result};
use crate::platform::http;
use crate::platform::run::{Run, now};
use serde_json::Value;

/// Who is told besides the output store.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Listeners {
    /// Pushgateway to push the night's metrics to: http://host:9091.
    #[arg(long, env = "NIGHTMARKET_PUSHGATEWAY", value_name = "URL")]
    pub pushgateway: Option<String>,
    /// Where OpenLineage events are posted: http://host:5000/api/v1/lineage. A token is read from OPENLINEAGE_API_KEY.
    #[arg(long, env = "NIGHTMARKET_OPENLINEAGE", value_name = "URL")]
    pub openlineage: Option<String>,
    /// MLflow server to log the night's parameters and metrics to. A token is read from MLFLOW_TRACKING_TOKEN.
    #[arg(long, env = "NIGHTMARKET_MLFLOW", value_name = "URL")]
    pub mlflow: Option<String>,
}

/// A night begins.
pub async fn started(run: &Run, listeners: &Listeners) {
    if let Some(url) = &listeners.openlineage {
        told("OpenLineage", post_event(url, &openlineage::start(run)).await);
    }
}

/// A night ended well: its facts, as in report.json.
pub async fn succeeded(run: &Run, listeners: &Listeners, facts: &Value) {
    let metrics = prometheus::of_success(facts, now());
    told("metrics", run.output.put("reports/metrics.prom", metrics.clone().into()).await.map(drop));
    push(run, listeners, metrics).await;
    let complete = openlineage::complete(run, facts, now());
    store_events(run, &complete).await;
    if let Some(url) = &listeners.openlineage {
        told("OpenLineage", post_event(url, &complete).await);
    }
    if let Some(url) = &listeners.mlflow {
        told("MLflow", mlflow::log(url, run, facts).await);
    }
}

/// A night ended in an error. The metrics of the last good night stay; only that this one failed is pushed.
pub async fn failed(run: &Run, listeners: &Listeners, error: &Error) {
    push(run, listeners, prometheus::of_failure(run, error, now())).await;
    let event = openlineage::fail(run, error, now());
    // A store that did not answer the night will not answer now.
    if error.kind != Kind::Transient {
        store_events(run, &event).await;
    }
    if let Some(url) = &listeners.openlineage {
        told("OpenLineage", post_event(url, &event).await);
    }
}

async fn store_events(run: &Run, last: &Value) {
    let lines = format!("{}\n{last}\n", openlineage::start(run));
    told("OpenLineage", run.output.put(&format!("reports/dt={}/openlineage.jsonl", run.date), lines.into()).await.map(drop));
}

/// POST replaces the metrics of the same name only, so that a failure leaves the time of the last success alone.
async fn push(run: &Run, listeners: &Listeners, metrics: String) {
    if let Some(url) = &listeners.pushgateway {
        let url = format!("{}/metrics/job/nightmarket/nightmarket_job/{}", url.trim_end_matches('/'), run.job.name);
        told("Pushgateway", http::send("POST", &url, "text/plain; version=0.0.4", metrics.into(), None).await.map(drop));
    }
}

async fn post_event(url: &str, event: &Value) -> Result<()> {
    http::send("POST", url, "application/json", event.to_string().into(), Some("OPENLINEAGE_API_KEY")).await.map(drop)
}

fn told(whom: &str, result: Result<()>) {
    if let Err(error) = result {
        tracing::warn!(whom, %error, "could not be told of the night; the night itself is not touched");
    }
}

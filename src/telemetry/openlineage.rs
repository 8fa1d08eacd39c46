//! The night as OpenLineage run events (specification 2-0-2): one job, its raw tables as inputs, its published tables as outputs.

use crate::error::Error;
use crate::platform::catalog::{ColumnKind, Source};
use crate::platform::run::{Run, VERSION};
use crate::platform::storage::{Store, sha256};
use chrono::{DateTime, Days, SecondsFormat, Utc};
use serde_json::{Map, Value, json};

const SPEC: &str = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent";

/// The night begins.
pub fn start(run: &Run) -> Value {
    let inputs = run.catalog.sources.iter().map(|(name, source)| input(run, name, source, None)).collect();
    event(run, "START", run.started_at(), Map::new(), inputs, Vec::new())
}

/// The night ended well.
pub fn complete(run: &Run, facts: &Value, at: DateTime<Utc>) -> Value {
    let raw = list(facts, "/ingest/raw");
    let seen = |name: &str| raw.iter().find(|row| row["name"] == name);
    let inputs = run.catalog.sources.iter().filter_map(|(name, source)| Some(input(run, name, source, Some(seen(name)?)))).collect();
    let folder = facts.pointer("/written/folder").and_then(Value::as_str).unwrap_or_default();
    let outputs = list(facts, "/written/files").iter().filter_map(|file| output(run, folder, file)).collect();
    event(run, "COMPLETE", at, Map::new(), inputs, outputs)
}

/// The night ended in an error.
pub fn fail(run: &Run, error: &Error, at: DateTime<Utc>) -> Value {
    let message = json!({"message": format!("{error} -- next: {}", error.next_action()), "programmingLanguage": "Rust"});
    let facets = Map::from_iter([("errorMessage".to_owned(), facet("1-0-1/ErrorMessageRunFacet", message))]);
    let inputs = run.catalog.sources.iter().map(|(name, source)| input(run, name, source, None)).collect();
    event(run, "FAIL", at, facets, inputs, Vec::new())
}

fn event(run: &Run, kind: &str, at: DateTime<Utc>, mut facets: Map<String, Value>, inputs: Vec<Value>, outputs: Vec<Value>) -> Value {
    let day = run.job.as_of(run.date - Days::new(1));
    let nominal = json!({"nominalStartTime": time(day), "nominalEndTime": time(run.as_of())});
    facets.insert("nominalTime".to_owned(), facet("1-0-1/NominalTimeRunFacet", nominal));
    facets.insert(
        "processing_engine".to_owned(),
        facet("1-1-1/ProcessingEngineRunFacet", json!({"version": VERSION, "name": "nightmarket"})),
    );
    let job_type = facet("2-0-3/JobTypeJobFacet", json!({"processingType": "BATCH", "integration": "NIGHTMARKET", "jobType": "JOB"}));
    json!({
        "eventType": kind,
        "eventTime": time(at),
        "producer": producer(),
        "schemaURL": SPEC,
        "run": {"runId": run_id(run), "facets": facets},
        "job": {"namespace": "nightmarket", "name": run.job.name, "facets": {"jobType": job_type}},
        "inputs": inputs,
        "outputs": outputs,
    })
}

/// One a run, the same in all its events: made of what is run and when it began (RFC 9562, version 8).
pub fn run_id(run: &Run) -> String {
    let hash = sha256(format!("{}\n{}\n{}", run.job.name, run.date, run.started_at().to_rfc3339()).as_bytes());
    format!("{}-{}-8{}-8{}-{}", &hash[..8], &hash[8..12], &hash[12..15], &hash[15..18], &hash[18..30])
}

fn producer() -> String {
    format!("urn:nightmarket:{VERSION}")
}

fn facet(schema: &str, content: Value) -> Value {
    let (version, name) = schema.split_once('/').unwrap_or(("1-0-0", schema));
    let mut facet = json!({
        "_producer": producer(),
        "_schemaURL": format!("https://openlineage.io/spec/facets/{version}/{name}.json#/$defs/{name}"),
    });
    if let (Value::Object(facet), Value::Object(content)) = (&mut facet, content) {
        facet.extend(content);
    }
    facet
}

fn input(run: &Run, name: &str, source: &Source, seen: Option<&Value>) -> Value {
    let columns = source.columns.iter().map(|(name, column)| json!({"name": name, "type": type_name(column.kind)})).collect();
    let mut dataset = dataset(&run.raw, &source.location, columns);
    dataset["facets"]["documentation"] = facet("1-0-1/DocumentationDatasetFacet", json!({"description": format!("raw table {name}")}));
    if let Some(seen) = seen {
        let statistics = json!({"rowCount": seen["rows"], "size": seen["bytes"]});
        dataset["inputFacets"] = json!({"inputStatistics": facet("1-0-0/InputStatisticsInputDatasetFacet", statistics)});
    }
    dataset
}

/// A written table: where it is, how large, and its columns.
fn output(run: &Run, folder: &str, file: &Value) -> Option<Value> {
    let path = file["path"].as_str()?;
    let columns = file["schema"].as_array().into_iter().flatten().filter_map(Value::as_str).filter_map(|column| column.split_once(": "));
    let columns = columns.map(|(name, kind)| json!({"name": name, "type": kind})).collect();
    let mut dataset = dataset(&run.output, &format!("{folder}/{path}"), columns);
    let statistics = json!({"rowCount": file["rows"], "size": file["bytes"], "fileCount": 1});
    dataset["outputFacets"] = json!({"outputStatistics": facet("1-0-2/OutputStatisticsOutputDatasetFacet", statistics)});
    Some(dataset)
}

/// Named as the OpenLineage naming rules have it: the store is the namespace, the path the name.
fn dataset(store: &Store, path: &str, columns: Vec<Value>) -> Value {
    let url = store.locate(path);
    let namespace = url.host_str().map_or_else(|| url.scheme().to_owned(), |host| format!("{}://{host}", url.scheme()));
    let name = if namespace == "file" { url.path() } else { url.path().trim_start_matches('/') };
    let mut facets = Map::new();
    if !columns.is_empty() {
        facets.insert("schema".to_owned(), facet("1-1-1/SchemaDatasetFacet", json!({"fields": columns})));
    }
    json!({"namespace": namespace, "name": name, "facets": facets})
}

fn type_name(kind: ColumnKind) -> &'static str {
    match kind {
        ColumnKind::String => "string",
        ColumnKind::Int64 => "int64",
        ColumnKind::Float64 => "float64",
        ColumnKind::Bool => "bool",
        ColumnKind::Timestamp => "timestamp",
        ColumnKind::Date => "date",
    }
}

fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Millis, true)
}

fn list<'a>(facts: &'a Value, path: &str) -> &'a [Value] {
    facts.pointer(path).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

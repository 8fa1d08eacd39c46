//! Which table is made of which, and what decided tonight's bytes.

use super::facts::Facts;
use crate::ingest::Staged;
use crate::platform::run::{Done, Run};
use crate::platform::storage::FileEntry;
use crate::spec::Spec;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lineage {
    /// In the order of the night.
    pub tables: Vec<Table>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Table {
    pub table: String,
    pub kind: String,
    /// As far as the night counted them.
    pub rows: Option<u64>,
    pub reads: Vec<String>,
}

/// The tables of the shop's SQL, as far as this night has them, and those that the stages make of them.
pub fn lineage(run: &Run, staged: &Staged, facts: &Facts) -> Lineage {
    let mut tables = Vec::new();
    let ingest = facts.ingest.as_ref();
    for name in run.catalog.sources.keys() {
        if let Some(raw) = ingest.and_then(|facts| facts.raw.iter().find(|raw| raw.name == *name)) {
            tables.push(table(&format!("raw.{name}"), "raw", Some(raw.rows), []));
        }
    }
    let there: BTreeSet<String> = tables.iter().map(|table| table.table.clone()).collect();
    for query in run.catalog.staging.iter().filter(|query| staged.has(&query.name)) {
        let rows = ingest.and_then(|facts| facts.tables.iter().find(|table| table.name == query.name)).map(|table| table.rows);
        tables.push(table(
            &query.name,
            "canonical",
            rows,
            query.reads.iter().filter(|read| !read.starts_with("raw.") || there.contains(*read)).cloned(),
        ));
    }
    for query in &run.catalog.features {
        let of_date = facts.features.iter().find(|feature| feature.table == query.name && feature.day == run.date);
        if let Some(feature) = of_date {
            tables.push(table(&query.name, "features", Some(feature.rows), query.reads.iter().cloned()));
        }
    }
    tables.extend(made(&tables, facts));
    Lineage { tables }
}

/// Examples, models and tables, each from what its stage reads.
fn made(tables: &[Table], facts: &Facts) -> Vec<Table> {
    let features: Vec<String> = tables.iter().filter(|table| table.kind == "features").map(|table| table.table.clone()).collect();
    let has = |name: &str| tables.iter().any(|table| table.table == name);
    let with_features = |own: &[&str]| {
        own.iter().filter(|name| has(name)).map(|name| (*name).to_owned()).chain(features.iter().cloned()).collect::<Vec<_>>()
    };
    let examples = |splits: &crate::dataset::DatasetFacts| Some(splits.splits.iter().map(|split| split.rows).sum());
    let mut made = Vec::new();
    let datasets = facts.dataset.as_ref();
    let interest = datasets.and_then(|datasets| datasets.interest.as_ref());
    if let Some(datasets) = datasets {
        made.push(table("response examples", "examples", examples(&datasets.response), with_features(&["impressions", "ads"])));
        if let Some(interest) = interest {
            made.push(table("interest examples", "examples", examples(interest), with_features(&["events", "categories"])));
        }
    }
    if facts.model.is_some() {
        made.push(table("response model", "models", None, ["response examples".to_owned()]));
        if interest.is_some() {
            made.push(table("interest model", "models", None, ["interest examples".to_owned()]));
        }
    }
    let scorer = if interest.is_some() { "interest model" } else { "response model" };
    for file in facts.written.iter().flat_map(|written| &written.files) {
        let name = file.path.rsplit('/').next().unwrap_or(&file.path).trim_end_matches(".parquet");
        let reads: &[&str] = match name {
            "segments" | "user_segments" => &[scorer],
            "segment_ads" | "shadow_ads" => &["response model"],
            _ => continue,
        };
        made.push(table(name, "published", file.rows, reads.iter().map(|read| (*read).to_owned())));
    }
    made
}

fn table(name: &str, kind: &str, rows: Option<u64>, reads: impl IntoIterator<Item = String>) -> Table {
    Table { table: name.to_owned(), kind: kind.to_owned(), rows, reads: reads.into_iter().collect() }
}

/// Tonight's tables as they lie in the output store, published or not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Written {
    /// Relative to the output root.
    pub folder: String,
    pub files: Vec<FileEntry>,
}

pub fn written<T>(run: &Run, tables: &Done<T>) -> Written {
    let root = run.output.locate("").path().len();
    let folder = tables.store.locate("").path()[root..].trim_end_matches('/').to_owned();
    Written { folder, files: tables.files.clone() }
}

/// What decided tonight's bytes: with the same of it, a rerun finds the same.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Configuration {
    /// Hash of the raw files that were read.
    pub inputs: String,
    pub settings: Value,
    pub queries: Vec<QueryHash>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct QueryHash {
    pub table: String,
    pub room: String,
    pub sha256: String,
}

pub fn configuration(run: &Run, spec: &Spec, staged: &Staged) -> Configuration {
    let hash = |query: &crate::platform::catalog::Query| QueryHash {
        table: query.name.clone(),
        room: query.room().to_owned(),
        sha256: query.sha256[..16].to_owned(),
    };
    Configuration { inputs: staged.fingerprint.clone(), settings: spec.decisive(), queries: run.catalog.queries().map(hash).collect() }
}

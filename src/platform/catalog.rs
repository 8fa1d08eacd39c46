//! The analyst's room as the program sees it: `sql/<shop>/`, one file = one SELECT = one table named like the file.
//!
//! A file's header comment says its grain and owner; its dependencies are the tables its FROM names, so the order of execution
//! needs no configuration. `sources.toml` holds the contract of each raw table.

use crate::error::{Context, Error, Result};
use crate::platform::storage::sha256;
use arrow::datatypes::{DataType, TimeUnit};
use datafusion::sql::parser::{DFParser, Statement};
use datafusion::sql::resolve::resolve_table_references;
use datafusion::sql::sqlparser::ast::Statement as SqlStatement;
use petgraph::algo::toposort;
use petgraph::graphmap::DiGraphMap;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Everything under `sql/<shop>/`.
#[derive(Clone, Debug)]
pub struct Catalog {
    pub sources: BTreeMap<String, Source>,
    /// The canonical tables, in an order in which each comes after those it reads.
    pub staging: Vec<Query>,
    /// The feature tables, ordered likewise.
    pub features: Vec<Query>,
    /// Rows returned are violations; run on the staged tables.
    pub checks: Vec<Query>,
}

/// The contract of one raw table.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// Folder or file below the raw root; Parquet, or CSV with a header line.
    pub location: String,
    pub kind: SourceKind,
    /// The Hive key of the day folders, `dt` in `dt=2026-11-22`.
    #[serde(default)]
    pub partition: Option<String>,
    /// Instead of day folders: the timestamp column by whose local date rows belong to a day.
    #[serde(default)]
    pub day_column: Option<String>,
    /// Or neither: the table is the same on every day.
    #[serde(default)]
    pub whole: bool,
    /// Without the run date's day of a required table the night does not start (exit 20).
    #[serde(default)]
    pub required: bool,
    /// Duplicates of it are counted and reported; staging removes them.
    #[serde(default)]
    pub key: Vec<String>,
    /// Fewest and most rows of the run date's day.
    #[serde(default)]
    pub min_rows: Option<u64>,
    #[serde(default)]
    pub max_rows: Option<u64>,
    pub columns: BTreeMap<String, Column>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum SourceKind {
    /// Every day adds rows.
    Log,
    /// Every day holds the full state; the latest day not after the as-of date counts.
    Snapshot,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Column {
    #[serde(rename = "type")]
    pub kind: ColumnKind,
    /// A personal identifier of this domain: no SQL ever sees it, only its keyed pseudonym.
    #[serde(default)]
    pub id: Option<IdDomain>,
    #[serde(default = "yes")]
    pub nullable: bool,
    /// An optional column may be absent; it is then all NULL.
    #[serde(default)]
    pub optional: bool,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum ColumnKind {
    String,
    Int64,
    Float64,
    Bool,
    Timestamp,
    Date,
}

impl ColumnKind {
    /// The plain Arrow type in which SQL sees a column of this kind.
    pub fn data_type(self) -> DataType {
        match self {
            ColumnKind::String => DataType::Utf8,
            ColumnKind::Int64 => DataType::Int64,
            ColumnKind::Float64 => DataType::Float64,
            ColumnKind::Bool => DataType::Boolean,
            ColumnKind::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            ColumnKind::Date => DataType::Date32,
        }
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum IdDomain {
    User,
    Device,
}

/// One SQL file.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// The file's stem, which is the table's name.
    pub name: String,
    pub path: PathBuf,
    /// The text as in the file.
    pub sql: String,
    pub description: String,
    pub grain: Vec<String>,
    pub owner: Option<String>,
    /// A staging query that runs once a day of this raw table.
    pub daily: Option<String>,
    /// What its FROM names: `raw.events`, `events`.
    pub reads: BTreeSet<String>,
    pub sha256: String,
}

impl Query {
    /// The entity of a feature table: `user_category` of `user_category__affinity`.
    pub fn entity(&self) -> &str {
        self.name.split_once("__").map_or(self.name.as_str(), |(entity, _)| entity)
    }

    /// The raw tables it reads.
    pub fn sources(&self) -> impl Iterator<Item = &str> {
        self.reads.iter().filter_map(|name| name.strip_prefix("raw."))
    }
}

impl Catalog {
    /// Reads `sql/<shop>/`.
    ///
    /// # Errors
    /// `Usage`, naming file and line, for a file that is not one SELECT, lies about its header or stands in a cycle.
    pub fn load(folder: &Path) -> Result<Self> {
        let sources_path = folder.join("sources.toml");
        let text = std::fs::read_to_string(&sources_path)
            .map_err(|error| Error::usage(format_args!("reading {}: {error}", sources_path.display())))?;
        let sources: BTreeMap<String, Source> = crate::platform::job::parse_toml(&text, &sources_path.display().to_string())?;
        for (name, source) in &sources {
            let ways = [source.partition.is_some(), source.day_column.is_some(), source.whole];
            if ways.into_iter().filter(|way| *way).count() != 1 {
                return Err(Error::usage(format_args!(
                    "{}: [{name}] needs exactly one of partition, day_column, whole",
                    sources_path.display()
                )));
            }
        }
        let staging = in_order(load_folder(&folder.join("staging"))?)?;
        let features = in_order(load_folder(&folder.join("features"))?)?;
        let checks = load_folder(&folder.join("checks"))?;
        let catalog = Self { sources, staging, features, checks };
        catalog.check_names()?;
        Ok(catalog)
    }

    /// Every query, in the order of the night.
    pub fn queries(&self) -> impl Iterator<Item = &Query> {
        self.staging.iter().chain(&self.features).chain(&self.checks)
    }

    pub fn staged(&self, name: &str) -> Option<&Query> {
        self.staging.iter().find(|query| query.name == name)
    }

    /// The raw tables that a canonical table is made of, directly or through other canonical tables.
    pub fn sources_of(&self, table: &str) -> BTreeSet<&str> {
        let mut found = BTreeSet::new();
        let mut open = vec![table];
        while let Some(query) = open.pop().and_then(|name| self.staged(name)) {
            found.extend(query.sources());
            open.extend(query.reads.iter().map(String::as_str).filter(|name| !name.starts_with("raw.")));
        }
        found
    }

    fn check_names(&self) -> Result<()> {
        let staged: BTreeSet<&str> = self.staging.iter().map(|query| query.name.as_str()).collect();
        let features: BTreeSet<&str> = self.features.iter().map(|query| query.name.as_str()).collect();
        let staging = self.staging.iter().map(|query| (query, "staging"));
        let features_and_checks =
            self.features.iter().map(|query| (query, "features")).chain(self.checks.iter().map(|query| (query, "checks")));
        for (query, rooms) in staging.chain(features_and_checks) {
            let (name, path) = (&query.name, query.path.display());
            if rooms == "features" && staged.contains(name.as_str()) {
                return Err(Error::usage(format_args!("{path}: the name {name} is taken by staging/{name}.sql")));
            }
            for read in &query.reads {
                let known: Vec<&str> = match read.strip_prefix("raw.") {
                    Some(_) if rooms != "staging" => {
                        return Err(Error::usage(format_args!("{path} reads {read}: only staging may read raw tables")));
                    }
                    Some(source) if self.sources.contains_key(source) => continue,
                    Some(_) => self.sources.keys().map(String::as_str).collect(),
                    None if staged.contains(read.as_str()) || (rooms == "features" && features.contains(read.as_str())) => continue,
                    None => staged.iter().chain(&features).copied().collect(),
                };
                let bare = read.strip_prefix("raw.").unwrap_or(read);
                let hint = nearest(bare, known.into_iter()).map(|name| format!("; did you mean {name}?")).unwrap_or_default();
                return Err(Error::usage(format_args!("{path} reads {read}, which is no table of this shop{hint}")));
            }
            if let Some(daily) = &query.daily
                && !query.reads.contains(&format!("raw.{daily}"))
            {
                return Err(Error::usage(format_args!("{path}: header says daily: {daily}, but the query does not read raw.{daily}")));
            }
        }
        Ok(())
    }
}

/// The candidate nearest to `name`, when it is near enough to be a slip of the finger.
pub fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().max(name.len()) / 3)
        .min()
        .map(|(_, candidate)| candidate)
}

fn load_folder(folder: &Path) -> Result<Vec<Query>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut paths = std::fs::read_dir(folder)
        .with_context(|| format!("listing {}", folder.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "sql"));
    paths.sort();
    paths.iter().map(|path| load_file(path)).collect()
}

/// Reads one SQL file: header and query.
pub fn load_file(path: &Path) -> Result<Query> {
    let sql = std::fs::read_to_string(path).map_err(|error| Error::usage(format_args!("reading {}: {error}", path.display())))?;
    let name = path.file_stem().and_then(|stem| stem.to_str()).ok_or_else(|| Error::usage(format_args!("{}: no name", path.display())))?;
    let reads = reads(&sql).with_context(|| format!("in {}", path.display()))?;
    let mut query = Query {
        name: name.to_owned(),
        path: path.to_owned(),
        sha256: sha256(sql.as_bytes()),
        description: String::new(),
        grain: Vec::new(),
        owner: None,
        daily: None,
        reads,
        sql,
    };
    let header: Vec<String> = query.sql.lines().map_while(|line| line.strip_prefix("--")).map(|line| line.trim().to_owned()).collect();
    for line in header {
        match line.split_once(':') {
            Some(("grain", value)) => query.grain = value.split(',').map(|column| column.trim().to_owned()).collect(),
            Some(("owner", value)) => query.owner = Some(value.trim().to_owned()),
            Some(("daily", value)) => query.daily = Some(value.trim().to_owned()),
            _ => {
                if !query.description.is_empty() {
                    query.description.push(' ');
                }
                query.description.push_str(&line);
            }
        }
    }
    if query.grain.is_empty() {
        return Err(Error::usage(format_args!("{}: the header lacks a line `-- grain: <key columns>`", path.display())));
    }
    Ok(query)
}

/// The tables a query reads; refuses everything that is not exactly one SELECT.
fn reads(sql: &str) -> Result<BTreeSet<String>> {
    let mut statements = DFParser::parse_sql(sql).map_err(|error| Error::usage(format_args!("SQL: {error}")))?;
    let only_select = || Error::usage("a file holds exactly one SELECT: no DDL, no COPY, no SET, no second statement");
    let statement = statements.pop_front().filter(|_| statements.is_empty()).ok_or_else(only_select)?;
    match &statement {
        Statement::Statement(inner) if matches!(**inner, SqlStatement::Query(_)) => {}
        _ => return Err(only_select()),
    }
    let (tables, _ctes) = resolve_table_references(&statement, true)?;
    Ok(tables
        .iter()
        .map(|table| match table.schema() {
            Some(schema) => format!("{schema}.{}", table.table()),
            None => table.table().to_owned(),
        })
        .collect())
}

/// Sorts queries so that each comes after those it reads; among equals by name.
fn in_order(queries: Vec<Query>) -> Result<Vec<Query>> {
    let mut graph = DiGraphMap::<usize, ()>::new();
    let index: BTreeMap<&str, usize> = queries.iter().enumerate().map(|(i, query)| (query.name.as_str(), i)).collect();
    for (i, query) in queries.iter().enumerate().rev() {
        graph.add_node(i);
        for read in &query.reads {
            if let Some(&before) = index.get(read.as_str()) {
                graph.add_edge(before, i, ());
            }
        }
    }
    let order = toposort(&graph, None).map_err(|cycle| {
        let query = &queries[cycle.node_id()];
        Error::usage(format_args!("{} reads, through others, its own output: a cycle", query.path.display()))
    })?;
    Ok(order.into_iter().map(|i| queries[i].clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_select_is_a_query() {
        assert_eq!(
            reads("WITH a AS (SELECT * FROM raw.events) SELECT * FROM a JOIN users USING (user_id)").expect("valid"),
            BTreeSet::from(["raw.events".to_owned(), "users".to_owned()])
        );
        for refused in ["COPY (SELECT 1) TO 'x.csv'", "CREATE TABLE t AS SELECT 1", "SELECT 1; SELECT 2", "SET a = 1", "SELEC 1", ""] {
            assert!(reads(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn a_slip_of_the_finger_finds_its_neighbour() {
        assert_eq!(nearest("evnets", ["users", "events"].into_iter()), Some("events"));
        assert_eq!(nearest("zebra", ["users", "events"].into_iter()), None);
    }
}

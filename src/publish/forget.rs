//! One person out of everything a job has written.
//!
//! Tables that some commit names are written again without the person, committed, and only then deleted; a tombstone says where
//! they went. What no commit names is work on the way to a table: it is deleted whole, and the next night that needs it makes it
//! again. The raw logs are the shop's own: until its suppression list names the person, the next night would read them again.

use super::tombstone::{self, Tombstone};
use super::{
    Commit, CommitKind, CountsFacts, Privacy, Tables, TablesFacts, check_written, commits_as_written, create, history, remainder, verify,
};
use crate::error::{Error, Kind, Result};
use crate::platform::run::{GIT_SHA, Manifest, VERSION};
use crate::platform::storage::{Store, parquet_bytes, parquet_table, sha256};
use arrow::array::{Array, AsArray, RecordBatch, StringArray};
use arrow::datatypes::DataType;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// What exists about a person, and what became of it. Names nobody: neither the id nor the pseudonym.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Forgotten {
    pub dry_run: bool,
    pub rows: u64,
    pub found: Vec<Trace>,
    /// The commit that serves the tables without the person, when the serving ones held it.
    pub generation: Option<u64>,
}

/// A finished step, or a file outside of one, that holds the person's rows.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Trace {
    pub folder: String,
    /// Rows about the person, by file; the name is empty where the trace is the file.
    pub files: BTreeMap<String, u64>,
    /// Generations whose tables these are.
    pub generations: Vec<u64>,
    /// The copy without the person.
    pub moved_to: Option<String>,
}

impl std::fmt::Display for Forgotten {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let verb = if self.dry_run { "exist about this user" } else { "about this user were removed" };
        write!(f, "{} rows {verb}, in {} folders", self.rows, self.found.len())?;
        for trace in &self.found {
            write!(f, "\n  {:>6}  {}", trace.files.values().sum::<u64>(), trace.folder)?;
            if let Some(copy) = &trace.moved_to {
                write!(f, " -> {copy}")?;
            }
        }
        if let Some(generation) = self.generation {
            write!(f, "\ngeneration {generation} serves the table without them")?;
        }
        if self.found.iter().any(|trace| trace.moved_to.is_some()) {
            write!(f, "\na serving store may still hold a table with them; load it again: `nightmarket publish`")?;
        }
        match self.dry_run {
            true => write!(f, "\nnothing was removed: this was a dry run"),
            false => write!(f, "\nthe raw logs are the shop's: keep the user on its suppression list, or the next night reads them again"),
        }
    }
}

/// The list of those who must not be processed names them for that very purpose.
const SUPPRESSION_LIST: &str = "staging/suppressions/";

/// Looks for a pseudonym in every output and, unless it is a `dry_run`, removes it. Can be interrupted and run again. The tables that are
/// written again keep `privacy`, too.
///
/// # Errors
/// `LostRace` when a night committed meanwhile; `Privacy` when something names the person that is no table and cannot be filtered.
pub async fn forget(output: &Store, pseudonym: &str, privacy: Privacy<'_>, dry_run: bool) -> Result<Forgotten> {
    let commits = history(output).await?;
    let mut found = traces(output, pseudonym, &commits).await?;
    let rows = found.iter().flat_map(|trace| trace.files.values()).sum();
    if dry_run {
        return Ok(Forgotten { dry_run, rows, found, generation: None });
    }
    let gone: HashSet<String> = privacy.suppressed.iter().cloned().chain([pseudonym.to_owned()]).collect();
    let privacy = Privacy { suppressed: &gone, ..privacy };
    for trace in found.iter_mut().filter(|trace| !trace.generations.is_empty()) {
        let commit = commits.iter().find(|commit| commit.tables == trace.folder).expect("a generation's tables");
        trace.moved_to = Some(copy_without(output, commit, privacy, trace.files.values().sum()).await?);
    }
    let generation = serve_the_copies(output).await?;
    for trace in &found {
        remove(output, &trace.folder).await?;
    }
    let left = traces(output, pseudonym, &[]).await?;
    if let Some(left) = left.first() {
        return Err(Error::new(Kind::LostRace, format_args!("{} was written meanwhile and names the user", left.folder))
            .action("run `nightmarket forget` again when no night is running"));
    }
    Ok(Forgotten { dry_run, rows, found, generation })
}

async fn traces(output: &Store, pseudonym: &str, commits: &[Commit]) -> Result<Vec<Trace>> {
    let objects = output.list("").await?;
    let steps: BTreeSet<&str> = objects.iter().filter_map(|object| object.path.strip_suffix("/_manifest.json")).collect();
    let mut found: BTreeMap<String, Trace> = BTreeMap::new();
    for object in objects.iter().filter(|object| !object.path.starts_with(SUPPRESSION_LIST)) {
        let Some(bytes) = output.get_optional(&object.path).await? else { continue };
        let rows = match object.path.ends_with(".parquet") {
            true => match parquet_table(bytes) {
                Ok(table) => rows_of(&table, pseudonym),
                // Half a file of a night that died: it goes with its folder, or is nobody's.
                Err(error) => {
                    tracing::warn!(path = %output.locate(&object.path), %error, "a file that cannot be read was passed over");
                    0
                }
            },
            false if bytes.windows(pseudonym.len()).any(|window| window == pseudonym.as_bytes()) => {
                return Err(Error::privacy(format_args!("{} names the user and is no table", output.locate(&object.path)))
                    .action("remove that file by hand and run again"));
            }
            false => 0,
        };
        if rows == 0 {
            continue;
        }
        // Outside a finished step nothing is known of a file's neighbours: it goes alone.
        let folder = ancestors(&object.path).find(|folder| steps.contains(folder)).unwrap_or(&object.path).to_owned();
        let name = object.path[folder.len()..].trim_start_matches('/').to_owned();
        let generations = || commits.iter().filter(|commit| commit.tables == folder).map(|commit| commit.generation).collect();
        let trace = found.entry(folder.clone()).or_insert_with(|| Trace {
            folder: folder.clone(),
            files: BTreeMap::new(),
            generations: generations(),
            moved_to: None,
        });
        trace.files.insert(name, rows);
    }
    Ok(found.into_values().collect())
}

/// The folders a path lies in, the nearest first.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(path.rsplit_once('/').map(|(folder, _)| folder), |folder| folder.rsplit_once('/').map(|(above, _)| above))
}

/// Rows in which some text is the pseudonym.
fn rows_of(table: &RecordBatch, pseudonym: &str) -> u64 {
    let texts: Vec<&StringArray> =
        table.columns().iter().filter(|column| *column.data_type() == DataType::Utf8).map(|column| column.as_string::<i32>()).collect();
    (0..table.num_rows()).filter(|row| texts.iter().any(|text| text.is_valid(*row) && text.value(*row) == pseudonym)).count() as u64
}

/// Writes a committed table again without the person, who is among the suppressed; gives the new folder.
async fn copy_without(output: &Store, commit: &Commit, privacy: Privacy<'_>, rows_removed: u64) -> Result<String> {
    let source = output.child(&commit.tables);
    verify(&source, commit).await?;
    let manifest: Manifest<TablesFacts> = serde_json::from_slice(&source.get("_manifest.json").await?)?;
    let tables = Tables::read(&source).await?;
    let tables = remainder::without(&tables, privacy.suppressed, privacy.floor)?;
    let parent = commit.tables.rsplit_once('/').map_or("", |(parent, _)| parent);
    let left = parquet_bytes(tables.user_segments.schema(), std::slice::from_ref(&tables.user_segments))?;
    let key = sha256(format!("{}\n{}", commit.tables, sha256(&left)).as_bytes())[..16].to_owned();
    let folder = format!("{parent}/{key}");
    let copy = output.child(&folder);
    let mut files = Vec::new();
    for (name, table) in tables.named() {
        files.push(copy.write_parquet(name, table.schema(), std::slice::from_ref(table)).await?);
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    check_written(&copy, privacy).await?;
    let mut inputs = manifest.inputs;
    inputs["tombstone"] = serde_json::json!({ "of": commit.tables, "rows_removed": rows_removed });
    let (version, git_sha) = (VERSION.to_owned(), GIT_SHA.to_owned());
    let facts = TablesFacts { delta: None, counts: manifest.facts.counts.as_ref().map(CountsFacts::kept), ..manifest.facts };
    let manifest = Manifest { step: manifest.step, key, inputs, files, facts, version, git_sha };
    let bytes = serde_json::to_vec_pretty(&manifest)?;
    let manifest_sha256 = sha256(&bytes);
    copy.put("_manifest.json", bytes.into()).await?;
    let gone = Tombstone { tables: commit.tables.clone(), moved_to: folder.clone(), manifest_sha256, rows_removed };
    tombstone::write(output, &gone).await?;
    Ok(folder)
}

/// Commits the copy of the serving tables, when the last commit still names the ones they replace.
async fn serve_the_copies(output: &Store) -> Result<Option<u64>> {
    let (Some(written), Some(head)) = (commits_as_written(output).await?.pop(), history(output).await?.pop()) else { return Ok(None) };
    if written.tables == head.tables {
        // An interrupted removal may have committed already.
        return Ok((head.kind == CommitKind::Forget).then_some(head.generation));
    }
    let commit = Commit { generation: head.generation + 1, kind: CommitKind::Forget, ..head };
    create(output, &commit).await?;
    Ok(Some(commit.generation))
}

/// Deletes a step, its manifest first: what is left of an interrupted removal is unfinished work.
pub(super) async fn remove(output: &Store, folder: &str) -> Result<()> {
    assert!(!folder.is_empty(), "a step, never the whole store");
    let objects = output.list(folder).await?;
    let (manifest, rest): (Vec<_>, Vec<_>) = objects.into_iter().partition(|object| object.path.ends_with("/_manifest.json"));
    for object in manifest.into_iter().chain(rest) {
        output.delete(&object.path).await?;
    }
    Ok(())
}

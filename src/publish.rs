//! Tonight's tables -> what ad servers read: immutable files, then one create-only commit.
//!
//! A reader takes the commit of the highest generation and reads the files it names; so a table appears whole or not at all, and
//! going back is a new commit. Suppression is applied here again, last, to the rows that are about to be served.

use crate::error::{Context, Error, Kind, Result};
use crate::platform::run::{Done, MANIFEST, Manifest, Run, Step};
use crate::platform::storage::{Created, FileEntry, Store, sha256};
use crate::targeting::arms::Assignment;
use crate::types::column;
use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// One commit: `targeting/_commits/{generation:020}.json`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Commit {
    pub generation: u64,
    pub job: String,
    pub run_date: NaiveDate,
    pub policy_version: String,
    /// Folder of the tables, relative to the output root.
    pub tables: String,
    /// Of that folder's `_manifest.json`.
    pub manifest_sha256: String,
    /// Folder of the model that scored them, relative to the output root; absent when the baseline of no artefact did.
    pub model: Option<String>,
    pub kind: CommitKind,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum CommitKind {
    Publish,
    Rollback,
}

/// What became of tonight's tables.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct PublishFacts {
    pub state: State,
    pub generation: Option<u64>,
    pub policy_version: Option<String>,
    pub reason: String,
    /// Rows taken out by the last look at the suppression list.
    pub suppressed_rows: u64,
    /// Path, rows and bytes of each file.
    pub files: Vec<PublishedFile>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct PublishedFile {
    pub path: String,
    pub rows: u64,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Published,
    AlreadyPublished,
    /// Yesterday's table stays.
    Kept,
}

/// The tables of one night, before they are written.
pub struct Tables {
    pub segments: RecordBatch,
    pub user_segments: RecordBatch,
    pub segment_ads: RecordBatch,
    pub shadow_ads: RecordBatch,
}

/// Facts of the written folder.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct TablesFacts {
    pub policy_version: String,
    pub run_date: NaiveDate,
    pub suppressed_rows: u64,
    /// Absent in tables of earlier versions.
    #[serde(default)]
    pub assignment: Option<Assignment>,
}

const COMMITS: &str = "targeting/_commits";

/// Every commit, oldest first.
pub async fn history(output: &Store) -> Result<Vec<Commit>> {
    let mut commits = Vec::new();
    for object in output.list(COMMITS).await? {
        let bytes = output.get(&object.path).await?;
        let commit: Commit = serde_json::from_slice(&bytes)
            .map_err(|error| Error::internal(format_args!("commit {} is not readable: {error}", output.locate(&object.path))))?;
        commits.push(commit);
    }
    commits.sort_by_key(|commit: &Commit| commit.generation);
    Ok(commits)
}

/// The commit that served on the day of `date`: the last one before any of that date or a later one. The same on a rerun, even after
/// a rollback.
pub async fn previous(output: &Store, date: NaiveDate) -> Result<Option<Commit>> {
    Ok(history(output).await?.into_iter().take_while(|commit| commit.run_date < date).last())
}

/// Writes tables under their own immutable folder, suppressed users taken out. Nothing is visible yet. `origin` is the key of what
/// the tables were made of.
///
/// # Errors
/// `Privacy` when the users who are left are fewer than `floor` in some segment.
pub async fn write(
    run: &Run,
    policy_version: &str,
    tables: &Tables,
    suppressed: &HashSet<String>,
    floor: u64,
    origin: &str,
    assignment: Option<&Assignment>,
) -> Result<Done<TablesFacts>> {
    let names: BTreeSet<&String> = suppressed.iter().collect();
    let inputs = serde_json::json!({
        "policy_version": policy_version,
        "origin": origin,
        "assignment": assignment,
        "suppressed": sha256(serde_json::to_string(&names)?.as_bytes()),
    });
    run.step(&format!("targeting/tables/dt={}", run.date), &inputs, async |step: &Step| {
        let user_segments = without(&tables.user_segments, suppressed)?;
        let suppressed_rows = (tables.user_segments.num_rows() - user_segments.num_rows()) as u64;
        let segments = match suppressed_rows {
            0 => tables.segments.clone(),
            _ => recounted(&tables.segments, &user_segments, floor)?,
        };
        step.write_table("segments.parquet", &segments).await?;
        step.write_table("user_segments.parquet", &user_segments).await?;
        step.write_table("segment_ads.parquet", &tables.segment_ads).await?;
        step.write_table("shadow_ads.parquet", &tables.shadow_ads).await?;
        let assignment = assignment.cloned();
        Ok(TablesFacts { policy_version: policy_version.to_owned(), run_date: run.date, suppressed_rows, assignment })
    })
    .await
}

fn without(rows: &RecordBatch, suppressed: &HashSet<String>) -> Result<RecordBatch> {
    let users = column::<StringArray>(rows, "user_id")?;
    let keep: BooleanArray = users.iter().map(|user| Some(user.is_some_and(|user| !suppressed.contains(user)))).collect();
    Ok(filter_record_batch(rows, &keep)?)
}

/// The segments with the sizes of those who are left.
fn recounted(segments: &RecordBatch, user_segments: &RecordBatch, floor: u64) -> Result<RecordBatch> {
    let mut left: BTreeMap<&str, i64> = BTreeMap::new();
    column::<StringArray>(user_segments, "segment_id")?.iter().flatten().for_each(|id| *left.entry(id).or_default() += 1);
    if let Some((id, users)) = left.iter().find(|(_, users)| users.unsigned_abs() < floor) {
        return Err(Error::privacy(format_args!(
            "without the suppressed, segment {id} has {users} users, fewer than the floor of {floor}"
        ))
        .action("publish a new night instead: it forms its segments anew"));
    }
    let sizes = column::<StringArray>(segments, "segment_id")?.iter().map(|id| left.get(id.unwrap_or_default()).copied().unwrap_or(0));
    let sizes: ArrayRef = Arc::new(Int64Array::from_iter_values(sizes));
    let place = segments.schema().index_of("size_released")?;
    let mut columns = segments.columns().to_vec();
    columns[place] = sizes;
    Ok(RecordBatch::try_new(segments.schema(), columns)?)
}

/// Makes written tables the ones that ad servers read.
///
/// # Errors
/// `LostRace` when another run took the generation with other tables.
pub async fn commit(run: &Run, tables: &Done<TablesFacts>, model: Option<String>) -> Result<PublishFacts> {
    let version = &tables.facts.policy_version;
    let commits = history(&run.output).await?;
    let mut facts = PublishFacts::of(tables, State::AlreadyPublished, String::new());
    if let Some(ours) = commits.iter().find(|commit| commit.policy_version == *version && commit.kind == CommitKind::Publish) {
        facts.generation = Some(ours.generation);
        facts.reason = format!("{version} was already published as generation {}", ours.generation);
        return Ok(facts);
    }
    let head = commits.last();
    if let Some(later) = commits.iter().find(|commit| commit.run_date > run.date) {
        facts.state = State::Kept;
        facts.reason = format!("generation {} was published for the later date {}", later.generation, later.run_date);
        return Ok(facts);
    }
    let manifest = tables.store.get(MANIFEST).await?;
    let commit = Commit {
        generation: head.map_or(1, |head| head.generation + 1),
        job: run.job.name.clone(),
        run_date: run.date,
        policy_version: version.clone(),
        tables: format!("targeting/tables/dt={}/{}", run.date, tables.key),
        manifest_sha256: sha256(&manifest),
        model,
        kind: CommitKind::Publish,
    };
    create(&run.output, &commit).await?;
    facts.state = State::Published;
    facts.generation = Some(commit.generation);
    facts.reason = format!("{version} is generation {}", commit.generation);
    Ok(facts)
}

/// The serving table stays; tonight's stands beside it, for people to look at.
pub fn keep(tables: &Done<TablesFacts>, reason: &str) -> PublishFacts {
    tracing::warn!(reason, "tonight's table is not published");
    PublishFacts::of(tables, State::Kept, reason.to_owned())
}

impl PublishFacts {
    fn of(tables: &Done<TablesFacts>, state: State, reason: String) -> Self {
        let file = |file: &FileEntry| PublishedFile { path: file.path.clone(), rows: file.rows.unwrap_or(0), bytes: file.bytes };
        Self {
            state,
            generation: None,
            policy_version: Some(tables.facts.policy_version.clone()),
            reason,
            suppressed_rows: tables.facts.suppressed_rows,
            files: tables.files.iter().map(file).collect(),
        }
    }
}

async fn create(output: &Store, commit: &Commit) -> Result<()> {
    let path = format!("{COMMITS}/{:020}.json", commit.generation);
    match output.create(&path, serde_json::to_vec_pretty(commit)?.into()).await? {
        Created::Ours => Ok(()),
        Created::Theirs => Err(Error::new(Kind::LostRace, format_args!("another run committed generation {} first", commit.generation))),
    }
}

/// Serves an earlier table again: its commit is repeated as a new one, over a copy without the users on today's suppression list
/// when that list names one of them.
pub async fn rollback(run: &Run, to: &str, suppressed: &HashSet<String>, floor: u64) -> Result<Commit> {
    let commits = history(&run.output).await?;
    let head = commits.last().ok_or_else(|| Error::usage("nothing was ever published"))?;
    let wanted =
        commits.iter().rev().find(|commit| commit.policy_version == to || commit.generation.to_string() == to).ok_or_else(|| {
            Error::usage(format_args!("no commit {to}")).action("see `nightmarket history` for policy versions and generations")
        })?;
    let source = run.output.child(&wanted.tables);
    verify(&source, wanted).await?;
    let user_segments = source.read_parquet("user_segments.parquet").await?;
    let filtered = without(&user_segments, suppressed)?;
    let mut commit = Commit { generation: head.generation + 1, kind: CommitKind::Rollback, ..wanted.clone() };
    if filtered.num_rows() < user_segments.num_rows() {
        let tables = Tables {
            segments: source.read_parquet("segments.parquet").await?,
            user_segments,
            segment_ads: source.read_parquet("segment_ads.parquet").await?,
            shadow_ads: source.read_parquet("shadow_ads.parquet").await?,
        };
        let assignment = facts(&source).await?.assignment;
        let origin = &wanted.manifest_sha256;
        let copy = write(run, &wanted.policy_version, &tables, suppressed, floor, origin, assignment.as_ref()).await?;
        commit.tables = format!("targeting/tables/dt={}/{}", run.date, copy.key);
        commit.manifest_sha256 = sha256(&copy.store.get(MANIFEST).await?);
    }
    create(&run.output, &commit).await?;
    Ok(commit)
}

/// Who is in which arm of the tables in a folder.
///
/// # Errors
/// `InputMissing` when the folder holds no published tables; `Usage` when their manifest does not say.
pub async fn assignment(tables: &Store) -> Result<Assignment> {
    facts(tables).await?.assignment.ok_or_else(|| {
        Error::usage(format_args!("{} does not tell the arms of its table", tables.locate(MANIFEST)))
            .action("name the job that published it: --job jobs/shop.toml")
    })
}

async fn facts(tables: &Store) -> Result<TablesFacts> {
    let manifest: Manifest<TablesFacts> = serde_json::from_slice(&tables.get(MANIFEST).await.context("reading published tables")?)
        .map_err(|error| Error::contract(format_args!("{} is no manifest of published tables: {error}", tables.locate(MANIFEST))))?;
    Ok(manifest.facts)
}

/// What the serving table says of one user.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Found {
    pub generation: u64,
    pub policy_version: String,
    /// Of the user, best first; the first is the one served.
    pub segments: Vec<String>,
    /// Of the first segment in the champion arm: ad and its probability at an opportunity.
    pub ads: Vec<(String, f64)>,
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "generation {}, {}", self.generation, self.policy_version)?;
        write!(f, "segments: {}", self.segments.join(", "))?;
        self.ads.iter().try_for_each(|(ad, probability)| write!(f, "\n  {:>6.2} %  {ad}", 100.0 * probability))
    }
}

/// Looks a pseudonym up in the tables that serve now.
pub async fn lookup(output: &Store, pseudonym: &str) -> Result<Found> {
    let commits = history(output).await?;
    let head = commits.last().ok_or_else(|| Error::usage("nothing was ever published"))?;
    let tables = output.child(&head.tables);
    verify(&tables, head).await?;
    let rows = tables.read_parquet("user_segments.parquet").await?;
    let (users, ids) = (column::<StringArray>(&rows, "user_id")?, column::<StringArray>(&rows, "segment_id")?);
    // Sorted by user and rank.
    let segments: Vec<String> =
        users.iter().zip(ids).filter(|(user, _)| *user == Some(pseudonym)).filter_map(|(_, id)| id.map(str::to_owned)).collect();
    let rows = tables.read_parquet("segment_ads.parquet").await?;
    let (ids, arms) = (column::<StringArray>(&rows, "segment_id")?, column::<StringArray>(&rows, "arm")?);
    let (ads, propensities) = (column::<StringArray>(&rows, "ad_id")?, column::<Float64Array>(&rows, "propensity")?);
    let first = |row: &usize| segments.first().is_some_and(|first| ids.value(*row) == first) && arms.value(*row) == "champion";
    let ads = (0..rows.num_rows()).filter(first).map(|row| (ads.value(row).to_owned(), propensities.value(row))).collect();
    Ok(Found { generation: head.generation, policy_version: head.policy_version.clone(), segments, ads })
}

/// Whether the tables of a commit are still the ones committed.
async fn verify(tables: &Store, commit: &Commit) -> Result<()> {
    let manifest = tables.get(MANIFEST).await.with_context(|| format!("tables of generation {}", commit.generation))?;
    if sha256(&manifest) != commit.manifest_sha256 {
        return Err(Error::internal(format_args!(
            "{} is not the manifest that generation {} committed",
            tables.locate(MANIFEST),
            commit.generation
        )));
    }
    Ok(())
}

//! Tonight's tables -> what ad servers read: immutable files, then one create-only commit.
//!
//! A reader takes the commit of the highest generation and reads the files it names; so a table appears whole or not at all, and
//! going back is a new commit. Whatever becomes the table that serves, new, old or kept, is without the users on the newest suppression
//! list, and its floors are checked on the bytes that were written.

pub mod counts;
mod delta;
mod forget;
mod gc;
mod remainder;
mod tombstone;

use crate::allocate::tables::NamedPrices;
use crate::error::{Context, Error, Kind, Result};
use crate::platform::run::{Done, MANIFEST, Manifest, Run, Step};
use crate::platform::storage::{Created, FileEntry, Store, sha256};
use crate::targeting::arms::Assignment;
use crate::targeting::tables;
use crate::types::column;
use arrow::array::{RecordBatch, StringArray};
use chrono::NaiveDate;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashSet};

pub use counts::CountsFacts;
pub use delta::DeltaFacts;
pub use forget::{Forgotten, forget};
pub use gc::{Collected, gc};

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

impl Commit {
    /// The name of its tables in a serving store: the key of their folder.
    pub fn run(&self) -> &str {
        self.tables.rsplit('/').next().unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum CommitKind {
    Publish,
    Rollback,
    /// The tables that served, without somebody who was forgotten or suppressed.
    Forget,
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
    /// Against the table that served before, where there was one.
    pub delta: Option<DeltaFacts>,
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
#[derive(Debug, PartialEq)]
pub struct Tables {
    pub segments: RecordBatch,
    pub user_segments: RecordBatch,
    pub segment_ads: RecordBatch,
    pub shadow_ads: RecordBatch,
}

impl Tables {
    pub async fn read(folder: &Store) -> Result<Self> {
        Ok(Self {
            segments: folder.read_parquet("segments.parquet").await?,
            user_segments: folder.read_parquet("user_segments.parquet").await?,
            segment_ads: folder.read_parquet("segment_ads.parquet").await?,
            shadow_ads: folder.read_parquet("shadow_ads.parquet").await?,
        })
    }

    /// Each table with its file.
    fn named(&self) -> [(&'static str, &RecordBatch); 4] {
        [
            ("segments.parquet", &self.segments),
            ("user_segments.parquet", &self.user_segments),
            ("segment_ads.parquet", &self.segment_ads),
            ("shadow_ads.parquet", &self.shadow_ads),
        ]
    }
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
    /// Shadow prices of the plan, from which another night's search may start. Absent in tables of earlier versions.
    #[serde(default)]
    pub prices: Option<NamedPrices>,
    /// What `delta.parquet` beside the tables holds. Absent where no table served before, and in a copy of an old table.
    #[serde(default)]
    pub delta: Option<DeltaFacts>,
    /// What the noisy counts in `segment_counts.parquet` beside the tables spend. Absent where none are released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counts: Option<CountsFacts>,
}

const COMMITS: &str = "targeting/_commits";

/// Every commit, oldest first, with its tables where they lie now.
pub async fn history(output: &Store) -> Result<Vec<Commit>> {
    let tombstones = tombstone::all(output).await?;
    let mut commits = commits_as_written(output).await?;
    commits.iter_mut().for_each(|commit| tombstone::resolve(&tombstones, commit));
    Ok(commits)
}

async fn commits_as_written(output: &Store) -> Result<Vec<Commit>> {
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

/// What must hold of a table that serves.
#[derive(Clone, Copy, Debug)]
pub struct Privacy<'a> {
    /// Pseudonyms on the newest suppression list.
    pub suppressed: &'a HashSet<String>,
    /// Fewest users whom a segment may serve; `None` where rows belong to no persons.
    pub floor: Option<u64>,
}

/// How tables came about.
#[derive(Clone, Copy, Debug)]
pub struct Made<'a> {
    pub policy_version: &'a str,
    /// The key of what they were made of.
    pub origin: &'a str,
    pub assignment: Option<&'a Assignment>,
    pub prices: Option<&'a NamedPrices>,
    /// The commit whose table the new one follows; none where an old table is written again.
    pub follows: Option<&'a Commit>,
    /// Where counts of users are to be released beside the tables.
    pub counts: Option<counts::Noise<'a>>,
    /// What the table spent of which this is a copy.
    pub spent: Option<&'a CountsFacts>,
}

/// Writes tables under their own immutable folder, suppressed users taken out and with them every segment that they leave below the floor.
/// Nothing is visible yet.
///
/// # Errors
/// `Privacy` when what was written breaks a rule.
pub async fn write(run: &Run, tables: &Tables, privacy: Privacy<'_>, made: Made<'_>) -> Result<Done<TablesFacts>> {
    let names: BTreeSet<&String> = privacy.suppressed.iter().collect();
    let inputs = serde_json::json!({
        "policy_version": made.policy_version,
        "origin": made.origin,
        "assignment": made.assignment,
        "suppressed": sha256(serde_json::to_string(&names)?.as_bytes()),
        "floor": privacy.floor,
        "follows": made.follows.map(|commit| &commit.tables),
        "counts": made.counts.map(|noise| noise.epsilon),
    });
    run.step(&format!("targeting/tables/dt={}", run.date), &inputs, async |step: &Step| {
        let left = remainder::without(tables, privacy.suppressed, privacy.floor)?;
        let withheld = tables.segments.num_rows() - left.segments.num_rows();
        if withheld > 0 {
            tracing::warn!(segments = withheld, "without the suppressed, segments are below the floor and withheld");
        }
        for (name, table) in left.named() {
            step.write_table(name, table).await?;
        }
        check_written(step.store(), privacy).await?;
        let delta = match made.follows {
            Some(commit) => {
                let before = run.output.child(&commit.tables).read_parquet("segment_ads.parquet").await?;
                let delta = delta::delta(&before, &left.segment_ads)?;
                step.write_table("delta.parquet", &delta).await?;
                Some(delta::facts(&delta, &commit.policy_version)?)
            }
            None => None,
        };
        let counts = match made.counts {
            Some(noise) => {
                let before = spent_before(run, made.policy_version).await?;
                let (counts, facts) = counts::counts(&left, made.policy_version, noise, before)?;
                step.write_table("segment_counts.parquet", &counts).await?;
                Some(facts)
            }
            None => made.spent.map(CountsFacts::kept),
        };
        Ok(TablesFacts {
            policy_version: made.policy_version.to_owned(),
            run_date: run.date,
            suppressed_rows: rows_of(&tables.user_segments, privacy.suppressed)?,
            assignment: made.assignment.cloned(),
            prices: made.prices.cloned(),
            delta,
            counts,
        })
    })
    .await
}

/// What the counts of the other tables committed up to the run's date have spent.
async fn spent_before(run: &Run, policy_version: &str) -> Result<f64> {
    let mut spent = 0.0_f64;
    let others = |commit: &&Commit| commit.run_date <= run.date && commit.policy_version != policy_version;
    for commit in history(&run.output).await?.iter().filter(others) {
        let counts = facts(&run.output.child(&commit.tables)).await?.counts;
        spent = spent.max(counts.map_or(0.0, |counts| counts.epsilon_so_far));
    }
    Ok(spent)
}

/// Rows about some users.
fn rows_of(user_segments: &RecordBatch, users: &HashSet<String>) -> Result<u64> {
    Ok(column::<StringArray>(user_segments, "user_id")?.iter().flatten().filter(|user| users.contains(*user)).count() as u64)
}

/// Reads written tables as a stranger would: nobody in them is suppressed, and they break none of their own rules.
async fn check_written(folder: &Store, privacy: Privacy<'_>) -> Result<()> {
    let written = Tables::read(folder).await?;
    let mut broken = match rows_of(&written.user_segments, privacy.suppressed)? {
        0 => Vec::new(),
        rows => vec![format!("{rows} rows are of suppressed users")],
    };
    if let Some(floor) = privacy.floor {
        let Tables { segments, user_segments, segment_ads, shadow_ads } = &written;
        broken.extend(tables::check(&tables::Tables { segments, user_segments, segment_ads, shadow_ads, weights: None, floor }));
    }
    match broken.first() {
        None => Ok(()),
        Some(first) => Err(Error::privacy(format_args!("{}: {first}", folder.locate("")))
            .action("this table must not serve and does not; tell the engineers, and see [segments] floor of the job")),
    }
}

/// Users by segment.
fn recount(user_segments: &RecordBatch) -> Result<BTreeMap<&str, i64>> {
    let mut users: BTreeMap<&str, i64> = BTreeMap::new();
    column::<StringArray>(user_segments, "segment_id")?.iter().flatten().for_each(|id| *users.entry(id).or_default() += 1);
    Ok(users)
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

/// The table that serves stays; tonight's stands beside it, for people to look at.
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
            delta: tables.facts.delta.clone(),
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

/// After a night that published nothing: the table that goes on serving is served without who was suppressed since it was committed.
pub async fn stay(run: &Run, facts: PublishFacts, privacy: Privacy<'_>) -> Result<PublishFacts> {
    let Some(head) = history(&run.output).await?.pop().filter(|_| facts.state != State::Published) else { return Ok(facts) };
    let served = as_it_may_serve(run, &head, privacy).await?;
    if served.tables == head.tables {
        return Ok(facts);
    }
    let commit = Commit { generation: head.generation + 1, kind: CommitKind::Forget, ..served };
    create(&run.output, &commit).await?;
    let reason = format!("{}; generation {} serves what stays, without those suppressed since", facts.reason, commit.generation);
    Ok(PublishFacts { reason, ..facts })
}

/// Serves an earlier table again: its commit is repeated as a new one, over a copy where the table may not serve as it is.
pub async fn rollback(run: &Run, to: &str, privacy: Privacy<'_>) -> Result<Commit> {
    let commits = history(&run.output).await?;
    let head = commits.last().ok_or_else(|| Error::usage("nothing was ever published"))?;
    let served = as_it_may_serve(run, find(&commits, to)?, privacy).await?;
    let commit = Commit { generation: head.generation + 1, kind: CommitKind::Rollback, ..served };
    create(&run.output, &commit).await?;
    Ok(commit)
}

/// A commit that names its tables, or a copy of them: without those whom today's list suppresses, and without what that leaves below the
/// floor.
async fn as_it_may_serve(run: &Run, commit: &Commit, privacy: Privacy<'_>) -> Result<Commit> {
    let source = run.output.child(&commit.tables);
    verify(&source, commit).await?;
    let tables = Tables::read(&source).await?;
    if remainder::without(&tables, privacy.suppressed, privacy.floor)? == tables {
        check_written(&source, privacy).await?;
        return Ok(commit.clone());
    }
    let TablesFacts { assignment, prices, counts: spent, .. } = facts(&source).await?;
    let (policy_version, origin) = (&commit.policy_version, &commit.manifest_sha256);
    let made = Made {
        policy_version,
        origin,
        assignment: assignment.as_ref(),
        prices: prices.as_ref(),
        follows: None,
        counts: None,
        spent: spent.as_ref(),
    };
    let copy = write(run, &tables, privacy, made).await?;
    let (tables, manifest) = (format!("targeting/tables/dt={}/{}", run.date, copy.key), copy.store.get(MANIFEST).await?);
    Ok(Commit { tables, manifest_sha256: sha256(&manifest), ..commit.clone() })
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

/// The shadow prices of the plan in a folder of published tables, where they were kept.
pub async fn prices(tables: &Store) -> Result<Option<NamedPrices>> {
    Ok(facts(tables).await?.prices)
}

async fn facts(tables: &Store) -> Result<TablesFacts> {
    let manifest: Manifest<TablesFacts> = serde_json::from_slice(&tables.get(MANIFEST).await.context("reading published tables")?)
        .map_err(|error| Error::contract(format_args!("{} is no manifest of published tables: {error}", tables.locate(MANIFEST))))?;
    Ok(manifest.facts)
}

/// The commit that serves, or the latest of a generation or policy version, with the folder of its tables, verified.
pub async fn choose(output: &Store, wanted: Option<&str>) -> Result<(Commit, Store)> {
    let commits = history(output).await?;
    let head = commits.last().ok_or_else(|| Error::usage("nothing was ever published"))?;
    let chosen = match wanted {
        Some(wanted) => find(&commits, wanted)?,
        None => head,
    };
    let tables = output.child(&chosen.tables);
    verify(&tables, chosen).await?;
    Ok((chosen.clone(), tables))
}

fn find<'a>(commits: &'a [Commit], wanted: &str) -> Result<&'a Commit> {
    let found = commits.iter().rev().find(|commit| commit.policy_version == wanted || commit.generation.to_string() == wanted);
    found.ok_or_else(|| {
        Error::usage(format_args!("no commit {wanted}")).action("see `nightmarket history` for policy versions and generations")
    })
}

/// Whether the tables of a commit are still the ones committed.
async fn verify(tables: &Store, commit: &Commit) -> Result<()> {
    let manifest = tables.get_optional(MANIFEST).await.with_context(|| format!("tables of generation {}", commit.generation))?;
    let manifest = manifest.ok_or_else(|| {
        Error::usage(format_args!("the tables of generation {} are gone from {}", commit.generation, tables.locate("")))
            .action("choose a later generation: `nightmarket gc` removes old ones")
    })?;
    if sha256(&manifest) != commit.manifest_sha256 {
        return Err(Error::internal(format_args!(
            "{} is not the manifest that generation {} committed",
            tables.locate(MANIFEST),
            commit.generation
        )));
    }
    Ok(())
}

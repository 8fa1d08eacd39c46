//! One run of the night: its date, its stores, its steps. The only module that reads a clock.
//!
//! A step is a folder named by the hash of everything that decides its bytes. It is finished when its `_manifest.json` stands
//! there and every file it lists is whole; a rerun then reads the manifest instead of doing the work, and resumes at the rest.

use crate::error::{Context, Error, Result};
use crate::platform::catalog::Catalog;
use crate::platform::engine::{self, Cost};
use crate::platform::job::Job;
use crate::platform::storage::{FileEntry, Store, sha256};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use chrono::{DateTime, Datelike, Days, NaiveDate, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Version and revision of this program, as manifests record them.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
pub const GIT_SHA: &str = env!("NIGHTMARKET_GIT_SHA");

/// Written last into the folder of a step: without it the step is unfinished.
pub const MANIFEST: &str = "_manifest.json";

/// The folder of the step whose manifest this is: `features/user__activity/dt=2026-11-22/0123456789abcdef`.
pub fn step_of(path: &str) -> Option<&str> {
    path.strip_suffix(MANIFEST)?.strip_suffix('/')
}

/// What every stage is given.
pub struct Run {
    pub job: Job,
    /// The last complete local day.
    pub date: NaiveDate,
    pub raw: Store,
    pub output: Store,
    pub catalog: Catalog,
    pub engine: engine::Settings,
    started: (DateTime<Utc>, Instant),
    timings: Mutex<Vec<Timing>>,
    /// How many of them are in the log.
    logged: Mutex<usize>,
    told_of_other_build: AtomicBool,
}

/// How long a step took; kept out of every compared file.
#[derive(Clone, Debug, Serialize)]
pub struct Timing {
    pub stage: String,
    pub seconds: f64,
    /// Written.
    pub rows: u64,
    pub bytes: u64,
    /// The step was complete and verified from an earlier run.
    pub reused: bool,
    /// Of its queries, where it says so.
    pub cost: Option<Cost>,
}

/// What a finished step left: `_manifest.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest<T> {
    pub step: String,
    /// Hash of everything that decides the step's bytes.
    pub key: String,
    /// What that was, for people.
    pub inputs: serde_json::Value,
    pub files: Vec<FileEntry>,
    /// The step's findings, as the report shows them.
    pub facts: T,
    pub version: String,
    pub git_sha: String,
}

/// A finished step: where its files are and what it found.
#[derive(Clone, Debug)]
pub struct Done<T> {
    pub store: Store,
    pub key: String,
    pub facts: T,
    pub files: Vec<FileEntry>,
}

/// A step being written.
pub struct Step {
    store: Store,
    files: Mutex<Vec<FileEntry>>,
    cost: Mutex<Option<Cost>>,
}

impl Step {
    /// Where the step's files lie.
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub async fn write_parquet(&self, name: &str, schema: SchemaRef, batches: &[RecordBatch]) -> Result<()> {
        let entry = self.store.write_parquet(name, schema, batches).await?;
        self.record(entry);
        Ok(())
    }

    pub async fn write_table(&self, name: &str, table: &RecordBatch) -> Result<()> {
        self.write_parquet(name, table.schema(), std::slice::from_ref(table)).await
    }

    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<()> {
        let entry = self.store.put(name, bytes).await?;
        self.record(entry);
        Ok(())
    }

    /// Tells what the step's queries took, for the table of timings alone.
    pub fn took(&self, cost: Cost) {
        self.cost.lock().expect("no panic holds this lock").get_or_insert_default().add(cost);
    }

    fn record(&self, entry: FileEntry) {
        self.files.lock().expect("no panic holds this lock").push(entry);
    }
}

impl Run {
    pub fn new(job: Job, date: NaiveDate, raw: Store, output: Store, catalog: Catalog, engine: engine::Settings) -> Self {
        let started = (Utc::now(), Instant::now());
        let (timings, logged, told_of_other_build) = (Mutex::default(), Mutex::default(), AtomicBool::default());
        Self { job, date, raw, output, catalog, engine, started, timings, logged, told_of_other_build }
    }

    /// The same job and stores on another date.
    pub fn on(&self, date: NaiveDate) -> Self {
        Self::new(self.job.clone(), date, self.raw.clone(), self.output.clone(), self.catalog.clone(), self.engine.clone())
    }

    /// When this run of the night began: no result may depend on it.
    pub fn started_at(&self) -> DateTime<Utc> {
        self.started.0
    }

    pub fn elapsed_seconds(&self) -> f64 {
        self.started.1.elapsed().as_secs_f64()
    }

    pub fn as_of(&self) -> DateTime<Utc> {
        self.job.as_of(self.date)
    }

    pub fn cut_off(&self) -> DateTime<Utc> {
        self.job.cut_off(self.date)
    }

    /// The run's date moved back by `days`.
    pub fn day(&self, back: u64) -> NaiveDate {
        self.date - Days::new(back)
    }

    /// Does `work` unless an earlier run did it: `inputs` is everything that decides the bytes it writes below `folder`.
    pub async fn step<T, I>(&self, folder: &str, inputs: &I, work: impl AsyncFnOnce(&Step) -> Result<T>) -> Result<Done<T>>
    where
        T: Serialize + DeserializeOwned,
        I: Serialize + ?Sized,
    {
        let started = Instant::now();
        let inputs = serde_json::to_value(inputs)?;
        let key = sha256(format!("{folder}\n{VERSION}\n{inputs}").as_bytes())[..16].to_owned();
        let store = self.output.child(&format!("{folder}/{key}"));
        let (done, reused, cost) = match finished(&store).await? {
            Some(manifest) => {
                // Earlier days' steps are taken from whatever build; tonight's own, from another, are somebody's who tries something.
                let own = folder.ends_with(&format!("dt={}", self.date)) && manifest.git_sha != GIT_SHA;
                if own && !self.told_of_other_build.swap(true, Ordering::Relaxed) {
                    let (theirs, ours) = (&manifest.git_sha, GIT_SHA);
                    tracing::warn!(
                        step = folder,
                        theirs,
                        ours,
                        "steps of another build are taken as they are; --from STAGE does them again"
                    );
                }
                (Done { store, key, facts: manifest.facts, files: manifest.files }, true, None)
            }
            None => {
                let step = Step { store: store.clone(), files: Mutex::default(), cost: Mutex::default() };
                let facts = work(&step).await?;
                let mut files = step.files.into_inner().expect("no panic holds this lock");
                files.sort_by(|a, b| a.path.cmp(&b.path));
                let (version, git_sha) = (VERSION.to_owned(), GIT_SHA.to_owned());
                let manifest = Manifest { step: folder.to_owned(), key: key.clone(), inputs, files, facts, version, git_sha };
                store.put(MANIFEST, serde_json::to_vec_pretty(&manifest)?.into()).await?;
                (
                    Done { store, key, facts: manifest.facts, files: manifest.files },
                    false,
                    step.cost.into_inner().expect("no panic holds this lock"),
                )
            }
        };
        let rows: u64 = done.files.iter().filter_map(|file| file.rows).sum();
        let bytes: u64 = done.files.iter().map(|file| file.bytes).sum();
        let seconds = started.elapsed().as_secs_f64();
        tracing::debug!(step = folder, rows, seconds, reused, path = %done.store.locate(""), "step");
        self.timings.lock().expect("no panic holds this lock").push(Timing {
            stage: folder.to_owned(),
            seconds,
            rows,
            bytes,
            reused,
            cost,
        });
        Ok(done)
    }

    /// The manifests of the steps that stand in a step's folder, whatever decided them: the last written first.
    pub async fn kept<T: DeserializeOwned>(&self, folder: &str) -> Result<Vec<Manifest<T>>> {
        let mut objects = self.output.list(folder).await?;
        objects.retain(|object| step_of(&object.path).is_some_and(|step| step.rsplit_once('/').is_some_and(|(above, _)| above == folder)));
        // Two written at one moment still have an order.
        objects.sort_by(|a, b| (b.modified, &b.path).cmp(&(a.modified, &a.path)));
        let mut found = Vec::new();
        for object in objects {
            // One that is being removed, or is of another shape, is no step to go on from.
            let Some(bytes) = self.output.get_optional(&object.path).await? else { continue };
            found.extend(serde_json::from_slice(&bytes).ok());
        }
        Ok(found)
    }

    /// A step that was finished earlier, when its every file is whole.
    pub async fn earlier<T: DeserializeOwned>(&self, manifest: &Manifest<T>) -> Result<Option<Done<T>>> {
        let store = self.output.child(&format!("{}/{}", manifest.step, manifest.key));
        let whole = finished::<T>(&store).await?;
        Ok(whole.map(|manifest| Done { store, key: manifest.key, facts: manifest.facts, files: manifest.files }))
    }

    /// Logs what the steps since the last call were: the line of a stage for the morning after.
    pub fn log_stage(&self, stage: &str) {
        let timings = self.timings();
        let mut logged = self.logged.lock().expect("no panic holds this lock");
        let steps = &timings[*logged..];
        *logged = timings.len();
        let rows: u64 = steps.iter().map(|step| step.rows).sum();
        let seconds = (steps.iter().map(|step| step.seconds).sum::<f64>() * 100.0).round() / 100.0;
        tracing::info!(stage, steps = steps.len(), reused = steps.iter().filter(|step| step.reused).count(), rows, seconds, "done");
    }

    /// How long each step took, in order.
    pub fn timings(&self) -> Vec<Timing> {
        self.timings.lock().expect("no panic holds this lock").clone()
    }
}

/// The manifest of a step whose every file is whole, when there is one.
async fn finished<T: DeserializeOwned>(store: &Store) -> Result<Option<Manifest<T>>> {
    let Some(bytes) = store.get_optional(MANIFEST).await? else { return Ok(None) };
    let Ok(manifest) = serde_json::from_slice::<Manifest<T>>(&bytes) else {
        tracing::warn!(path = %store.locate(MANIFEST), "unreadable manifest: the step is done again");
        return Ok(None);
    };
    for file in &manifest.files {
        match store.get_optional(&file.path).await? {
            Some(bytes) if sha256(&bytes) == file.sha256 => {}
            _ => {
                tracing::warn!(path = %store.locate(&file.path), "file differs from its manifest: the step is done again");
                return Ok(None);
            }
        }
    }
    Ok(Some(manifest))
}

/// The time, for those who are told that something happened; no result may depend on it.
pub fn now() -> DateTime<Utc> {
    Utc::now()
}

/// The most memory this process has held, where the system tells (Linux).
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().trim_end_matches(" kB").parse::<u64>().ok()? * 1024)
}

/// A date argument: `2026-11-22`, or `yesterday`, the last complete day of the job's time zone.
pub fn resolve_date(text: &str, job: &Job) -> Result<NaiveDate> {
    if text == "yesterday" {
        return Ok(Utc::now().with_timezone(&job.timezone).date_naive() - Days::new(1));
    }
    // Days are counted from a date in both directions: none at the ends of the calendar.
    text.parse()
        .ok()
        .filter(|date: &NaiveDate| (1900..3000).contains(&date.year()))
        .ok_or_else(|| Error::usage(format_args!("{text} is not a date")))
        .context("--date")
        .map_err(|error| error.action("write it as 2026-11-22, or yesterday"))
}

/// How long something takes; for logs and tables, never for a decision.
pub struct Watch(Instant);

impl Watch {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn seconds(&self) -> f64 {
        self.0.elapsed().as_secs_f64()
    }
}

/// The most memory this process has held, MiB; 0 where the system does not say.
pub fn peak_memory_mib() -> u64 {
    peak_memory_bytes().map_or(0, |bytes| bytes >> 20)
}

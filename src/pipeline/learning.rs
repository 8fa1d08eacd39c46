//! Examples -> a trained, judged and chosen model, each kept as an artefact that the next night can load.

use super::measure;
use crate::dataset::DatasetFacts;
use crate::error::{Context, Kind, Result};
use crate::gate::{self, Contest, Verdict};
use crate::ingest::Staged;
use crate::model::{Artifact, Checkpoints, Interest, InterestExamples, Response, interest, response};
use crate::platform::run::{Done, Run, Step};
use crate::platform::storage::Store;
use crate::publish::{self, Commit};
use crate::spec::Spec;
use crate::statistics::metrics::{self, Bin};
use crate::types::{column, optional_column};
use arrow::array::{BooleanArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::runtime::Handle;
use xxhash_rust::xxh3::xxh3_64;

/// What training found, as the report shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModelFacts {
    pub response: Value,
    pub interest: Option<Value>,
}

/// Tonight's models.
pub struct Learned {
    /// Of the artefacts, relative to the output root.
    pub folder: String,
    pub network: Response,
    pub baseline: Response,
    pub interest: Option<Interest>,
    pub facts: ModelFacts,
}

const MICROSECONDS_AN_HOUR: i64 = 3_600_000_000;
const NETWORK: &str = "network";
const BASELINE: &str = "baseline";
const INTEREST: &str = "interest";
/// What a night that is stopped in training goes on from; gone when the network is written.
const CHECKPOINT: &str = "checkpoint.safetensors";

/// Trains the network, the baseline and, where there are events, the interest model; or loads what an earlier run trained.
pub async fn learn(
    run: &Run,
    spec: &Spec,
    staged: &Staged,
    examples: &Done<DatasetFacts>,
    interest_examples: Option<&Done<DatasetFacts>>,
) -> Result<Learned> {
    let earlier =
        if spec.model.warm_start { publish::previous(&run.output, run.date).await?.and_then(|commit| commit.model) } else { None };
    // Whichever model serves, the network that was trained with it.
    let earlier = earlier.map(|folder| format!("{}/{NETWORK}", folder.rsplit_once('/').map_or(folder.as_str(), |(night, _)| night)));
    let inputs = json!({
        "model": spec.model,
        "earlier": earlier,
        "interest": spec.interest,
        "seed": run.job.seed,
        "examples": examples.key,
        "interest_examples": interest_examples.map(|done| &done.key),
        "categories": staged.key("categories"),
        "impressions": staged.key("impressions"),
    });
    let done = run
        .step(&format!("model/dt={}", run.date), &inputs, async |step: &Step| {
            let (train, valid) = (examples.store.read_parquet("train.parquet").await?, examples.store.read_parquet("valid.parquet").await?);
            let mut missed = Vec::new();
            let earlier = match &earlier {
                Some(folder) => load(run, folder, "warm start", &mut missed).await?,
                None => None,
            };
            // Training blocks this thread, so that the store is waited for within it.
            let save = |bytes| {
                let kept = step.store().put(CHECKPOINT, bytes);
                tokio::task::block_in_place(|| Handle::current().block_on(kept)).map(drop)
            };
            let checkpoints = Checkpoints { saved: step.store().get_optional(CHECKPOINT).await?, save: &save };
            let mut models = response::train_from(earlier.as_ref(), Some(&checkpoints), &spec.model, &train, &valid, run.job.seed)?;
            models.facts.notes.extend(missed);
            if let Some(curve) = measure::delays(run, staged).await? {
                let (shown, now) = (column::<TimestampMicrosecondArray>(&valid, "occurred_at")?, run.cut_off().timestamp_micros());
                let age = |row: usize| u32::try_from((now - shown.value(row)) / MICROSECONDS_AN_HOUR).unwrap_or(0);
                models.expect_late_conversions(&valid, |row| curve.arrived_by(age(row)))?;
            }
            drop((train, valid));
            put(step, NETWORK, &models.network.to_artifact()?).await?;
            if !step.store().list(CHECKPOINT).await?.is_empty() {
                step.store().delete(CHECKPOINT).await?;
            }
            put(step, BASELINE, &models.baseline.to_artifact()?).await?;
            let mut facts = ModelFacts { response: serde_json::to_value(&models.facts)?, interest: None };
            if let Some(done) = interest_examples {
                let (train, valid) = (interest_split(run, staged, done, "train").await?, interest_split(run, staged, done, "valid").await?);
                let (interest, found) = interest::train(&spec.interest, &train, &valid, run.job.seed)?;
                put(step, INTEREST, &interest.to_artifact()?).await?;
                facts.interest = Some(serde_json::to_value(&found)?);
            }
            Ok(facts)
        })
        .await?;
    Ok(Learned {
        folder: format!("model/dt={}/{}", run.date, done.key),
        network: Response::from_artifact(&artifact(&done.store, NETWORK).await?)?,
        baseline: Response::from_artifact(&artifact(&done.store, BASELINE).await?)?,
        interest: match interest_examples {
            Some(_) => Some(Interest::from_artifact(&artifact(&done.store, INTEREST).await?)?),
            None => None,
        },
        facts: done.facts,
    })
}

async fn interest_split(run: &Run, staged: &Staged, done: &Done<DatasetFacts>, split: &str) -> Result<InterestExamples> {
    Ok(InterestExamples {
        users: done.store.read_parquet(&format!("{split}_users.parquet")).await?,
        pairs: done.store.read_parquet(&format!("{split}_pairs.parquet")).await?,
        labels: done.store.read_parquet(&format!("{split}_labels.parquet")).await?,
        categories: super::serving::table(run, staged, "categories").await?,
    })
}

async fn put(step: &Step, name: &str, artifact: &Artifact) -> Result<()> {
    for (file, bytes) in artifact.to_files()? {
        step.put(&format!("{name}/{file}"), bytes).await?;
    }
    Ok(())
}

async fn artifact(store: &Store, name: &str) -> Result<Artifact> {
    let folder = store.child(name);
    let mut files = BTreeMap::new();
    for object in folder.list("").await? {
        files.insert(object.path.clone(), folder.get(&object.path).await?);
    }
    Artifact::from_files(&files).with_context(|| format!("model {}", folder.locate("")))
}

/// The model that serves now, when there is one and it can still be loaded.
pub async fn champion(run: &Run, previous: Option<&Commit>, skipped: &mut Vec<String>) -> Result<Option<Champion>> {
    let Some(folder) = previous.and_then(|commit| commit.model.clone()) else { return Ok(None) };
    let response = load(run, &folder, "champion", skipped).await?;
    Ok(response.map(|response| Champion { folder, response }))
}

/// An earlier night's model, when it can still be loaded; else `missed` says for what it is missing and why.
async fn load(run: &Run, folder: &str, purpose: &str, missed: &mut Vec<String>) -> Result<Option<Response>> {
    let (parent, name) = folder.rsplit_once('/').unwrap_or(("", folder));
    let loaded = artifact(&run.output.child(parent), name).await.and_then(|artifact| Response::from_artifact(&artifact));
    match loaded {
        Ok(response) => Ok(Some(response)),
        Err(error) if error.kind == Kind::Transient => Err(error),
        Err(error) => {
            tracing::warn!(purpose, %error, "an earlier model cannot be loaded");
            missed.push(format!("{purpose}: {error}"));
            Ok(None)
        }
    }
}

/// The model of the table that serves now.
pub struct Champion {
    pub folder: String,
    pub response: Response,
}

/// The gate's verdict with what the report draws beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Judged {
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Of the serving model on the gate's day.
    pub reliability: Vec<Bin>,
}

/// Lets tonight's network, the baseline and the champion compete on the latest mature day.
pub async fn judge(
    run: &Run,
    spec: &Spec,
    examples: &Done<DatasetFacts>,
    learned: &Learned,
    champion: Option<&Champion>,
    persons: bool,
) -> Result<Judged> {
    let inputs = json!({
        "settings": spec.gate,
        "seed": run.job.seed,
        "examples": examples.key,
        "model": learned.folder,
        "champion": champion.map(|champion| &champion.folder),
        "persons": persons,
    });
    let done = run
        .step(&format!("gate/dt={}", run.date), &inputs, async |_: &Step| {
            let test = examples.store.read_parquet("test.parquet").await?;
            let labels: Vec<bool> = column::<BooleanArray>(&test, "clicked")?.iter().map(|clicked| clicked.unwrap_or(false)).collect();
            let users: Vec<u64> = match persons {
                true => column::<StringArray>(&test, "user_id")?.iter().map(|user| xxh3_64(user.unwrap_or_default().as_bytes())).collect(),
                false => (0..labels.len() as u64).collect(),
            };
            let challenger = learned.network.score_logged(&test)?.p_click;
            let baseline = learned.baseline.score_logged(&test)?.p_click;
            // A champion that wants a feature nobody computes any more cannot defend its title.
            let champion = champion.and_then(|champion| match champion.response.score_logged(&test) {
                Ok(scores) => Some(scores.p_click),
                Err(error) => {
                    tracing::warn!(%error, "the serving model cannot score tonight's examples");
                    None
                }
            });
            let groups = groups(&test)?;
            let contest = Contest {
                labels: &labels,
                users: &users,
                challenger: &challenger,
                baseline: &baseline,
                champion: champion.as_deref(),
                groups: &groups,
            };
            let verdict = gate::decide(&spec.gate, &contest, run.job.seed)?;
            let serving = match verdict.serving {
                gate::Contestant::Challenger => &challenger,
                gate::Contestant::Baseline => &baseline,
                gate::Contestant::Champion => champion.as_ref().unwrap_or(&baseline),
            };
            Ok(Judged { reliability: metrics::reliability(&labels, serving, 15), verdict })
        })
        .await?;
    Ok(done.facts)
}

/// The columns within whose values a model that spends money must be calibrated: those of them that the examples have.
fn groups(test: &RecordBatch) -> Result<Vec<gate::Groups<'_>>> {
    let mut groups = Vec::new();
    for by in ["segment_id", "ad_id", "campaign_id", "category_id"] {
        if let Some(values) = optional_column::<StringArray>(test, by)? {
            groups.push(gate::Groups { by, of_row: values.iter().collect() });
        }
    }
    Ok(groups)
}

/// What scores tonight.
pub struct Chosen {
    /// Of the response model, relative to the output root.
    pub folder: String,
    pub response: Response,
    /// Of tonight's models, whichever response model won: the interest model is always tonight's.
    pub learned: String,
    pub interest: Option<Interest>,
}

pub fn choose(judged: &Judged, learned: Learned, champion: Option<Champion>) -> Result<Chosen> {
    let tonight = learned.folder.clone();
    let (folder, response) = match (judged.verdict.serving, champion) {
        (gate::Contestant::Champion, Some(champion)) => (champion.folder, champion.response),
        (gate::Contestant::Challenger, _) => (format!("{}/{NETWORK}", learned.folder), learned.network),
        _ => (format!("{}/{BASELINE}", learned.folder), learned.baseline),
    };
    Ok(Chosen { folder, response, learned: tonight, interest: learned.interest })
}

//! A chosen model -> tonight's tables, checked against their rules and last night's.

use super::learning::Chosen;
use super::segmenting;
use crate::admit::{self, Proposal};
use crate::dataset;
use crate::deliver::{self, Delivered};
use crate::error::Result;
use crate::evaluate;
use crate::features::Snapshots;
use crate::ingest::Staged;
use crate::platform::engine;
use crate::platform::run::{Done, MANIFEST, Run, Step};
use crate::platform::server::Server;
use crate::platform::storage::sha256;
use crate::publish::{self, Commit, Tables, assignment, history};
use crate::segments;
use crate::spec::Spec;
use crate::statistics::ope;
use crate::targeting::arms::{Arm, Shares};
use crate::targeting::{self, candidates, supply, tables::Stamp, value};
use crate::types::{column, optional_column};
use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use chrono::{Datelike, Days};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Names tonight's table by everything that decides it: `shop-2026-11-22-1a2b3c4d`.
pub fn policy_version(run: &Run, spec: &Spec, staged: &Staged, previous: Option<&Commit>) -> String {
    let decisive = json!({
        "job": run.job.name,
        "date": run.date,
        "inputs": staged.fingerprint,
        "sql": run.catalog.queries().map(|query| (&query.name, &query.sha256)).collect::<BTreeMap<_, _>>(),
        "spec": spec.decisive(),
        "previous": previous.map(|commit| &commit.policy_version),
        "program": crate::platform::run::VERSION,
    });
    let hash = sha256(decisive.to_string().as_bytes());
    format!("{}-{}-{}", run.job.name, run.date, &hash[..8])
}

/// A canonical table as known tonight.
pub async fn table(run: &Run, staged: &Staged, name: &str) -> Result<RecordBatch> {
    let context = staged.as_of(run, run.date, None, [name])?;
    engine::collect(context.table(name).await?).await
}

/// Rows a context stands for, where rows belong to no persons; `None` where a user is one.
pub async fn rows_by_context(run: &Run, staged: &Staged) -> Result<Option<BTreeMap<String, u64>>> {
    if staged.people.is_some() {
        return Ok(None);
    }
    let context = staged.as_of(run, run.date, None, ["impressions"])?;
    let sql = "SELECT user_id, COUNT(*) AS n FROM impressions WHERE user_id IS NOT NULL GROUP BY user_id";
    let rows = engine::collect(engine::plan_sql(&context, sql, run.as_of()).await?).await?;
    let (users, counts) = (column::<StringArray>(&rows, "user_id")?, column::<Int64Array>(&rows, "n")?);
    Ok(Some((0..rows.num_rows()).map(|row| (users.value(row).to_owned(), counts.value(row).unsigned_abs())).collect()))
}

/// Days of impressions from which tomorrow's opportunities are expected.
const SUPPLY_DAYS: u64 = 7;
/// Users scored against every ad at a time: bounds memory.
const USERS_A_BATCH: usize = 500;

/// Segments x ads: expected value, allocation under budgets and caps, arms.
pub async fn targeting(
    run: &Run,
    spec: &Spec,
    staged: &Staged,
    snapshots: &Snapshots,
    chosen: &Chosen,
    segmented: &Done<Value>,
    policy_version: &str,
) -> Result<Done<Value>> {
    let before = tables_before(run).await?;
    let previous = publish::previous(&run.output, run.date).await?.map(|commit| commit.tables);
    let inputs = json!({
        "settings": spec.targeting,
        "floor": spec.segments.floor,
        "seed": run.job.seed,
        "policy_version": policy_version,
        "segments": segmented.key,
        "snapshots": snapshots.keys(run.date),
        "model": chosen.folder,
        "ads": staged.key("ads"),
        "campaigns": staged.key("campaigns"),
        "impressions": staged.key("impressions"),
        "served": sha256(serde_json::to_string(&before)?.as_bytes()),
        "previous": previous,
    });
    run.step(&format!("targeting/plan/dt={}", run.date), &inputs, async |step: &Step| {
        let stamp = stamp(run, policy_version);
        let ads = table(run, staged, "ads").await?;
        let campaigns = if staged.has("campaigns") { Some(table(run, staged, "campaigns").await?) } else { None };
        let user_segments = segmented.store.read_parquet("user_segments.parquet").await?;
        let primary = segments::primary_users(&user_segments)?;
        let offers = value::offers(&ads, campaigns.as_ref(), stamp.valid_from, stamp.valid_to)?;
        let chosen_ads = chosen_ads(run, spec, staged, snapshots, &offers, &primary, &ads).await?;
        let sampled = value::sample(&primary, spec.targeting.max_users_scored_per_segment, run.job.seed)?;
        let offered = offered(&primary, &offers, chosen_ads.as_ref())?;
        let mut scores = value::Scores::default();
        for start in (0..sampled.num_rows()).step_by(USERS_A_BATCH) {
            let users = sampled.slice(start, USERS_A_BATCH.min(sampled.num_rows() - start));
            let candidates = dataset::candidates(run, staged, snapshots, &users, &offered).await?;
            scores.add(&scored(&candidates, chosen)?)?;
        }
        let outcomes = value::outcomes(&conversions(run, staged).await?)?;
        let logged = impressions(run, staged, SUPPLY_DAYS).await?;
        let supply = supply::expected(&primary, &logged, &shown(run, &logged, &before).await?, SUPPLY_DAYS)?;
        let weights = rows_by_context(run, staged).await?;
        let prices = match &previous {
            Some(tables) => publish::prices(&run.output.child(tables)).await?,
            None => None,
        };
        let inputs = targeting::Inputs {
            stamp,
            ads: &ads,
            campaigns: campaigns.as_ref(),
            user_segments: &user_segments,
            weights: weights.as_ref(),
            supply: &supply,
            scores: &scores,
            by_chance: chosen_ads.as_ref().map(|chosen| &chosen.by_chance),
            outcomes: &outcomes,
            prices: prices.as_ref(),
            floor: spec.segments.floor,
        };
        let mut decided = targeting::decide(&spec.targeting, &inputs)?;
        decided.facts.candidates_from = chosen_ads.map(|chosen| chosen.facts);
        step.write_table("segment_ads.parquet", &decided.segment_ads).await?;
        step.write_table("shadow_ads.parquet", &decided.shadow_ads).await?;
        Ok(serde_json::to_value(&decided.facts)?)
    })
    .await
}

/// Which ads each segment may see, where there are too many to score all of them.
async fn chosen_ads(
    run: &Run,
    spec: &Spec,
    staged: &Staged,
    snapshots: &Snapshots,
    offers: &value::Offers,
    primary: &RecordBatch,
    ads: &RecordBatch,
) -> Result<Option<candidates::Candidates>> {
    let most = spec.targeting.candidate_ads_per_segment;
    if most == 0 || offers.live.len() <= most {
        return Ok(None);
    }
    let context = staged.as_of(run, run.date, None, ["impressions"])?;
    let sql = "SELECT DISTINCT user_id, ad_id FROM impressions WHERE clicked AND user_id IS NOT NULL AND ad_id IS NOT NULL ORDER BY user_id, ad_id";
    let clicks = engine::collect(engine::plan_sql(&context, sql, run.as_of()).await?).await?;
    let searches = segmenting::searches(run, snapshots).await?;
    let (ids, titles) = (column::<StringArray>(ads, "ad_id")?, optional_column::<StringArray>(ads, "title")?);
    let titles: BTreeMap<&str, &str> =
        titles.map_or_else(BTreeMap::new, |titles| ids.iter().zip(titles).filter_map(|(ad, title)| ad.zip(title)).collect());
    let signs = candidates::Signs { primary, clicks: &clicks, searches: searches.as_ref().map(|(terms, _)| terms), titles: &titles };
    // Chance chooses other ads every night.
    let seed = run.job.seed.wrapping_add(run.date.num_days_from_ce().unsigned_abs().into());
    candidates::choose(most, &offers.iter().map(|offer| offer.ad_id.as_str()).collect(), &signs, seed).map(Some)
}

/// segment_id, ad_id: what may be shown to whom.
fn offered(primary: &RecordBatch, offers: &value::Offers, chosen: Option<&candidates::Candidates>) -> Result<RecordBatch> {
    let segments: BTreeSet<&str> = column::<StringArray>(primary, "segment_id")?.iter().flatten().collect();
    let pairs: Vec<(&str, &str)> = match chosen {
        Some(chosen) => chosen.by_segment.iter().flat_map(|(segment, ads)| ads.iter().map(|ad| (segment.as_str(), ad.as_str()))).collect(),
        None => segments.iter().flat_map(|segment| offers.iter().map(|offer| (*segment, offer.ad_id.as_str()))).collect(),
    };
    dataset::offered(pairs)
}

/// Where the tables committed before the run's date lie, by policy version. The same on a rerun, even after a rollback.
async fn tables_before(run: &Run) -> Result<BTreeMap<String, String>> {
    let commits = history(&run.output).await?.into_iter().take_while(|commit| commit.run_date < run.date);
    Ok(commits.map(|commit| (commit.policy_version, commit.tables)).collect())
}

/// How often the tables that served logged impressions showed an ad, by policy version; of a table that is no longer kept nothing is known.
async fn shown(run: &Run, logged: &RecordBatch, tables: &BTreeMap<String, String>) -> Result<BTreeMap<String, supply::Shown>> {
    let versions: BTreeSet<&str> =
        optional_column::<StringArray>(logged, "policy_version")?.map(|versions| versions.iter().flatten().collect()).unwrap_or_default();
    let mut shown = BTreeMap::new();
    for (version, folder) in tables.iter().filter(|(version, _)| versions.contains(version.as_str())) {
        let table = run.output.child(folder);
        if table.get_optional(MANIFEST).await?.is_none() {
            tracing::warn!(version, "the table that served is gone: its impressions count as the only opportunities");
            continue;
        }
        let shares = assignment(&table).await?.shares;
        shown.insert(version.clone(), supply::shown(&table.read_parquet("segment_ads.parquet").await?, &shares)?);
    }
    Ok(shown)
}

/// The table serves the local day after the run date.
fn stamp(run: &Run, policy_version: &str) -> Stamp {
    Stamp {
        run_date: run.date,
        policy_version: policy_version.to_owned(),
        valid_from: run.as_of(),
        valid_to: run.job.as_of(run.date + Days::new(1)),
    }
}

fn scored(candidates: &RecordBatch, chosen: &Chosen) -> Result<RecordBatch> {
    let scores = chosen.response.score(candidates)?;
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("segment_id", candidates["segment_id"].clone()),
        ("ad_id", candidates["ad_id"].clone()),
        ("p_click", Arc::new(Float64Array::from(scores.p_click))),
    ];
    if let Some(p_conversion) = scores.p_conversion {
        columns.push(("p_conversion", Arc::new(Float64Array::from(p_conversion))));
    }
    Ok(RecordBatch::try_from_iter(columns)?)
}

/// The conversions of the night's history: ad_id, converted, revenue?.
async fn conversions(run: &Run, staged: &Staged) -> Result<RecordBatch> {
    let context = staged.as_of(run, run.date, None, ["impressions"])?;
    let has = |name: &str| staged.schema("impressions").is_some_and(|schema| schema.field_with_name(name).is_ok());
    let sql = match (has("converted"), has("revenue")) {
        (true, true) => "SELECT ad_id, converted, revenue FROM impressions WHERE converted ORDER BY impression_id",
        (true, false) => "SELECT ad_id, converted FROM impressions WHERE converted ORDER BY impression_id",
        (false, _) => "SELECT ad_id, FALSE AS converted FROM impressions WHERE FALSE",
    };
    engine::collect(engine::plan_sql(&context, sql, run.as_of()).await?).await
}

/// The canonical impressions of the last `days` local days, outcomes as known tonight.
async fn impressions(run: &Run, staged: &Staged, days: u64) -> Result<RecordBatch> {
    let context = staged.as_of(run, run.date, None, ["impressions"])?;
    let start = run.job.as_of(run.day(days));
    let rows = context.table("impressions").await?.filter(engine::before("occurred_at", start).is_false())?;
    engine::collect(rows.sort(vec![datafusion::prelude::ident("impression_id").sort(true, true)])?).await
}

/// Today's impressions of people who consented to being measured.
pub async fn impressions_to_measure(run: &Run, staged: &Staged) -> Result<RecordBatch> {
    let rows = impressions(run, staged, 1).await?;
    match &staged.people {
        Some(people) => of_users(&rows, &people.measure),
        None => Ok(rows),
    }
}

/// The planned split of users among the arms.
pub fn shares(shares: &Shares) -> BTreeMap<String, f64> {
    Arm::ALL.iter().map(|arm| (arm.as_str().to_owned(), shares.of(*arm))).collect()
}

fn of_users(rows: &RecordBatch, users: &BTreeSet<String>) -> Result<RecordBatch> {
    let ids = column::<StringArray>(rows, "user_id")?;
    let keep: BooleanArray = ids.iter().map(|id| Some(id.is_some_and(|id| users.contains(id)))).collect();
    Ok(filter_record_batch(rows, &keep)?)
}

/// Tonight's four tables, read back from what was written.
pub async fn tables(segmented: &Done<Value>, planned: &Done<Value>) -> Result<Tables> {
    Ok(Tables {
        segments: segmented.store.read_parquet("segments.parquet").await?,
        user_segments: segmented.store.read_parquet("user_segments.parquet").await?,
        segment_ads: planned.store.read_parquet("segment_ads.parquet").await?,
        shadow_ads: planned.store.read_parquet("shadow_ads.parquet").await?,
    })
}

/// What tonight's champion arm would have earned on the day that was logged, where propensities were; alone and against the table that
/// served.
pub async fn off_policy(
    run: &Run,
    spec: &Spec,
    logged: &RecordBatch,
    tables: &Tables,
    previous: Option<&Commit>,
) -> Result<Option<ope::Evaluation>> {
    if logged.num_rows() == 0 || optional_column::<Float64Array>(logged, "propensity")?.is_none() {
        return Ok(None);
    }
    let served = match previous {
        Some(commit) => {
            let served = run.output.child(&commit.tables);
            let (users, ads) = (served.read_parquet("user_segments.parquet").await?, served.read_parquet("segment_ads.parquet").await?);
            Some((&commit.policy_version, users, ads))
        }
        None => None,
    };
    let logged = match &served {
        Some((policy_version, _, ads)) => &evaluate::given_some_ad(logged, policy_version, ads)?,
        None => logged,
    };
    let forecast = evaluate::Forecast::read(&tables.user_segments, &tables.segment_ads)?;
    let targets = |users: &RecordBatch, ads: &RecordBatch| match &forecast {
        Some(forecast) => evaluate::forecast_targets(logged, users, ads, forecast),
        None => evaluate::champion_targets(logged, users, ads),
    };
    let tonight = targets(&tables.user_segments, &tables.segment_ads)?;
    let champion = served.as_ref().map(|(_, users, ads)| targets(users, ads)).transpose()?;
    let predicted = forecast.as_ref().map(|forecast| forecast.predict(logged)).transpose()?;
    evaluate::off_policy_value(logged, &tonight, champion.as_ref(), predicted.as_ref(), &spec.evaluate.plan(), run.job.seed)
}

/// What the admission looks at.
pub async fn proposal<'a>(
    run: &Run,
    spec: &Spec,
    staged: &Staged,
    tables: &Tables,
    off_policy: Option<&'a ope::Evaluation>,
) -> Result<Proposal<'a>> {
    let campaigns = if staged.has("campaigns") { Some(table(run, staged, "campaigns").await?) } else { None };
    let weights = rows_by_context(run, staged).await?;
    let whole = targeting::tables::Tables {
        segments: &tables.segments,
        user_segments: &tables.user_segments,
        segment_ads: &tables.segment_ads,
        shadow_ads: &tables.shadow_ads,
        weights: weights.as_ref(),
        floor: spec.segments.floor,
    };
    let terms = targeting::tables::Terms {
        ads: &table(run, staged, "ads").await?,
        campaigns: campaigns.as_ref(),
        categories: &table(run, staged, "categories").await?,
        shares: &spec.targeting.shares,
    };
    let mut feasibility = targeting::tables::check_night(&whole, &terms);
    if tables.user_segments.num_rows() == 0 {
        feasibility.push("no user is in any released segment: nobody consents to being targeted, or all segments are too small".to_owned());
    } else if !shows_an_ad(&tables.segment_ads)? {
        feasibility.push("no ad is planned for anybody: every budget is used up, or no ad runs on the day".to_owned());
    }
    Ok(Proposal {
        feasibility,
        smallest_segment: targeting::tables::smallest_audience(&whole)?,
        floor: spec.segments.floor,
        propensity_sums: admit::propensity_sums(&tables.segment_ads)?,
        off_policy,
        max_loss: spec.evaluate.max_loss,
    })
}

/// Whether any arm plans an impression of an ad.
fn shows_an_ad(segment_ads: &RecordBatch) -> Result<bool> {
    let (ads, planned) = (column::<StringArray>(segment_ads, "ad_id")?, column::<Int64Array>(segment_ads, "impressions_planned")?);
    Ok(ads.iter().zip(planned).any(|(ad, planned)| ad != Some(value::NO_AD) && planned > Some(0)))
}

/// What changed since the table that serves now, largest changes first.
#[derive(Clone, Debug, Serialize)]
pub struct Movers {
    pub segments: Vec<Mover>,
    pub ads: Vec<Mover>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Mover {
    pub id: String,
    pub label: Option<String>,
    /// Released users of a segment; planned impressions of an ad. Absent = the table did not have it.
    pub before: Option<i64>,
    pub after: Option<i64>,
}

/// Loads the table that serves into the job's serving store, when it has one; also after a night that kept it, for an earlier load may
/// be owed. A load that fails is a finding, not the end: the commit stands, and the night still measures and reports.
pub async fn deliver(run: &Run, spec: &Spec) -> Result<Option<Delivered>> {
    let Some(to) = &spec.deliver.to else { return Ok(None) };
    let Some(head) = history(&run.output).await?.pop() else { return Ok(None) };
    let server = Server::read(to)?;
    Ok(Some(deliver::deliver_head(&server, &spec.deliver, &run.output).await.unwrap_or_else(|error| {
        tracing::error!(%error, "the table is committed and not loaded");
        Delivered::failed(&server, &head, &error)
    })))
}

const MOVERS_SHOWN: usize = 10;

pub async fn movers(run: &Run, tables: &Tables, previous: Option<&Commit>) -> Result<Movers> {
    let Some(previous) = previous else { return Ok(Movers { segments: Vec::new(), ads: Vec::new() }) };
    let store = run.output.child(&previous.tables);
    let (segments, ads) = (store.read_parquet("segments.parquet").await?, store.read_parquet("segment_ads.parquet").await?);
    let labels = (column::<StringArray>(&tables.segments, "segment_id")?, column::<StringArray>(&tables.segments, "label")?);
    let labels: BTreeMap<&str, &str> = labels.0.iter().zip(labels.1).filter_map(|(id, label)| id.zip(label)).collect();
    Ok(Movers {
        segments: changes(sums(&segments, "segment_id", "size_released")?, sums(&tables.segments, "segment_id", "size_released")?, &labels),
        ads: changes(
            sums(&ads, "ad_id", "impressions_planned")?,
            sums(&tables.segment_ads, "ad_id", "impressions_planned")?,
            &BTreeMap::new(),
        ),
    })
}

fn sums(rows: &RecordBatch, id: &str, amount: &str) -> Result<BTreeMap<String, i64>> {
    let (ids, amounts) = (column::<StringArray>(rows, id)?, column::<Int64Array>(rows, amount)?);
    let mut sums = BTreeMap::new();
    for (id, amount) in ids.iter().zip(amounts) {
        *sums.entry(id.unwrap_or_default().to_owned()).or_insert(0) += amount.unwrap_or(0);
    }
    Ok(sums)
}

fn changes(before: BTreeMap<String, i64>, after: BTreeMap<String, i64>, labels: &BTreeMap<&str, &str>) -> Vec<Mover> {
    let ids: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mover = |id: &String| Mover {
        id: id.clone(),
        label: labels.get(id.as_str()).map(|&label| label.to_owned()),
        before: before.get(id).copied(),
        after: after.get(id).copied(),
    };
    let change = |mover: &Mover| mover.after.unwrap_or(0).abs_diff(mover.before.unwrap_or(0));
    let mut movers: Vec<Mover> = ids.into_iter().map(mover).filter(|mover| change(mover) > 0).collect();
    movers.sort_by(|a, b| change(b).cmp(&change(a)).then_with(|| a.id.cmp(&b.id)));
    movers.truncate(MOVERS_SHOWN);
    movers
}

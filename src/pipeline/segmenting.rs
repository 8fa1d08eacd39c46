//! Users and a chosen model -> tonight's segments: interests, the shop's own, those like its seeds, and clusters of behaviour.

use super::learning::Chosen;
use super::rules;
use super::serving::{rows_by_context, table};
use crate::dataset;
use crate::error::Result;
use crate::features::Snapshots;
use crate::ingest::Staged;
use crate::model::{Embeddings, Interest};
use crate::platform::engine;
use crate::platform::run::{Done, MANIFEST, Manifest, Run, Step};
use crate::publish::Commit;
use crate::segments::clusters::{self, Behaviour, ClustersFacts};
use crate::segments::keywords::Searches;
use crate::segments::lookalikes::{self, LookalikeFacts};
use crate::segments::{self, Taxonomy};
use crate::spec::Spec;
use crate::types::column;
use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use serde_json::{Value, json};
use std::sync::Arc;

/// Who is in which cluster, before the floor: where the next night's clusters begin.
const CLUSTERS: &str = "clusters.parquet";

/// Users by segment: scores, labels, segments above the floor.
pub async fn segments(
    run: &Run,
    spec: &Spec,
    staged: &Staged,
    snapshots: &Snapshots,
    chosen: &Chosen,
    previous: Option<&Commit>,
    skipped: &mut Vec<String>,
) -> Result<Done<Value>> {
    let applicable = rules::applicable(run, staged, snapshots, skipped);
    if chosen.interest.is_none() && spec.segments.clusters.k > 0 {
        skipped.push(format!("clusters of behaviour: {NO_TASTES}"));
    }
    let eligible = staged.people.as_ref().map(|people| &people.target);
    let last_night = match previous {
        Some(commit) => step_before(run, commit).await?,
        None => None,
    };
    let inputs = json!({
        "settings": spec.segments,
        "seed": run.job.seed,
        "snapshots": snapshots.keys(run.date),
        "model": chosen.folder,
        "interest": chosen.learned,
        "ads": staged.key("ads"),
        "impressions": staged.key("impressions"),
        "categories": staged.key("categories"),
        "rules": rules::keys(staged, snapshots, run.date, &applicable),
        "consents": staged.key("consents"),
        "suppressions": staged.key("suppressions"),
        "previous": previous.map(|commit| &commit.tables),
        "clusters_before": last_night,
    });
    run.step(&format!("segments/dt={}", run.date), &inputs, async |step: &Step| {
        let categories = table(run, staged, "categories").await?;
        let (scores, embeddings) = match &chosen.interest {
            Some(interest) => scores_and_embeddings(run, snapshots, interest, &Taxonomy::read(&categories)?).await?,
            None => (interest_from_responses(run, staged, snapshots, chosen).await?, None),
        };
        let previous = match previous {
            Some(commit) => Some(run.output.child(&commit.tables).read_parquet("user_segments.parquet").await?),
            None => None,
        };
        let weights = rows_by_context(run, staged).await?;
        let (mut audiences, lists) = rules::rules(run, staged, snapshots, &applicable).await?;
        let inputs = segments::Inputs {
            scores: &scores,
            categories: &categories,
            audiences: &[],
            eligible,
            previous: previous.as_ref(),
            weights: weights.as_ref(),
        };
        let mut of_seeds = Vec::new();
        for list in &lists {
            let (audience, facts) = match &embeddings {
                Some(embeddings) => lookalikes::find(&spec.segments, &inputs, embeddings, list, run.job.seed)?,
                None => (None, LookalikeFacts::withheld(list, NO_TASTES)),
            };
            audiences.extend(audience);
            of_seeds.push(facts);
        }
        let of_behaviour = match &embeddings {
            Some(embeddings) => {
                let before = match &last_night {
                    Some(folder) => Some(run.output.child(folder).read_parquet(CLUSTERS).await?),
                    None => None,
                };
                // A removed step leaves at least those clusters that were released.
                let yesterday = before.as_ref().or(previous.as_ref());
                let behaviour = Behaviour { embeddings, yesterday, date: run.date, seed: run.job.seed };
                clusters::find(&spec.segments, &inputs, &behaviour)?
            }
            None => None,
        };
        if let Some(found) = &of_behaviour {
            step.write_table(CLUSTERS, &found.members).await?;
        }
        let clusters = of_behaviour.as_ref().map(|found| found.facts.clone());
        audiences.extend(of_behaviour.into_iter().flat_map(|found| found.audiences));
        let mut found = segments::segment(&spec.segments, &segments::Inputs { audiences: &audiences, ..inputs })?;
        found.facts.clusters = clusters.or_else(|| (spec.segments.clusters.k > 0).then(|| ClustersFacts::skipped(NO_TASTES)));
        found.facts.lookalikes = of_seeds;
        if let Some((terms, leads)) = searches(run, snapshots).await? {
            found.add_keywords(Searches { terms: &terms, leads: &leads }, &Taxonomy::read(&categories)?)?;
        }
        step.write_table("segments.parquet", &found.segments).await?;
        step.write_table("user_segments.parquet", &found.user_segments).await?;
        step.write_table("labels_before_floor.parquet", &found.labels_before_floor).await?;
        Ok(serde_json::to_value(&found.facts)?)
    })
    .await
}

const NO_TASTES: &str = "there is no interest network, in whose space users could be compared";

/// What users searched for (user_id, term), and where terms lead (term, category_id, share); `None` where the shop has no such features.
pub async fn searches(run: &Run, snapshots: &Snapshots) -> Result<Option<(RecordBatch, RecordBatch)>> {
    let has = |table: &str, column: &str| snapshots.tables.get(table).is_some_and(|table| table.columns.iter().any(|name| name == column));
    if !has("user__search_terms", "queries") || !has("term_category__lookup", "share_30d") {
        return Ok(None);
    }
    let context = engine::session(&run.engine)?;
    snapshots.register(&context, run.date, None, |name| ["user__search_terms", "term_category__lookup"].contains(&name))?;
    let ask = async |sql: &str| engine::collect(engine::plan_sql(&context, sql, run.as_of()).await?).await;
    let terms = "SELECT DISTINCT user_id, term FROM (SELECT user_id, UNNEST(queries) AS term FROM user__search_terms)
        WHERE term IS NOT NULL ORDER BY user_id, term";
    let leads = "SELECT term, category_id, share_30d AS share FROM term_category__lookup ORDER BY term, category_id";
    Ok(Some((ask(terms).await?, ask(leads).await?)))
}

/// Of every user with a sign of interest: the scores of categories, and a place among users by those that may be labels.
async fn scores_and_embeddings(
    run: &Run,
    snapshots: &Snapshots,
    interest: &Interest,
    taxonomy: &Taxonomy<'_>,
) -> Result<(RecordBatch, Option<Embeddings>)> {
    let (mut batches, mut embeddings) = (Vec::new(), None::<Embeddings>);
    for bucket in 0..run.engine.buckets {
        let users = dataset::user_rows(run, snapshots, run.date, Some(bucket)).await?;
        let pairs = dataset::pairs(run, snapshots, run.date, Some(bucket), &users).await?;
        let scores = interest.score(&users, &pairs)?;
        if let Some(of_bucket) = interest.embed(&users, &scores, |category| taxonomy.may_be_label(category))? {
            embeddings.get_or_insert_default().append(of_bucket);
        }
        batches.push(scores);
    }
    Ok((concat_batches(&batches[0].schema(), &batches)?, embeddings))
}

/// The step that made the segments of a commit's tables, relative to the output root, when it still is there and found clusters.
async fn step_before(run: &Run, commit: &Commit) -> Result<Option<String>> {
    let inputs = async |folder: &str| -> Result<Option<Value>> {
        let bytes = run.output.child(folder).get_optional(MANIFEST).await?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice::<Manifest<Value>>(&bytes).ok()).map(|manifest| manifest.inputs))
    };
    let of = |inputs: Option<Value>, key: &str| inputs.and_then(|inputs| inputs[key].as_str().map(str::to_owned));
    let Some(plan) = of(inputs(&commit.tables).await?, "origin") else { return Ok(None) };
    let Some(segments) = of(inputs(&format!("targeting/plan/dt={}/{plan}", commit.run_date)).await?, "segments") else { return Ok(None) };
    let folder = format!("segments/dt={}/{segments}", commit.run_date);
    let step = run.output.child(&folder);
    // A step without its manifest is being removed.
    let whole = step.get_optional(MANIFEST).await?.is_some() && step.get_optional(CLUSTERS).await?.is_some();
    Ok(whole.then_some(folder))
}

/// Without events, a user's interest in a category is the mean response expected to its ads.
async fn interest_from_responses(run: &Run, staged: &Staged, snapshots: &Snapshots, chosen: &Chosen) -> Result<RecordBatch> {
    let users = dataset::user_rows(run, snapshots, run.date, None).await?;
    let ads = table(run, staged, "ads").await?;
    let ads: Vec<String> = column::<StringArray>(&ads, "ad_id")?.iter().flatten().map(str::to_owned).collect();
    let nowhere: ArrayRef = Arc::new(StringArray::from(vec![""; users.num_rows()]));
    let ads = dataset::offered(ads.iter().map(|ad| ("", ad.as_str())))?;
    let users = RecordBatch::try_from_iter([("user_id", users["user_id"].clone()), ("segment_id", nowhere)])?;
    let candidates = dataset::candidates(run, staged, snapshots, &users, &ads).await?;
    let p_click = chosen.response.score(&candidates)?.p_click;
    let (user, category) = (column::<StringArray>(&candidates, "user_id")?, column::<StringArray>(&candidates, "category_id")?);
    let rows = (0..candidates.num_rows()).filter(|&row| category.is_valid(row));
    segments::interest_from_response(rows.map(|row| (user.value(row), category.value(row), p_click[row])))
}

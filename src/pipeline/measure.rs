//! Looking back: what the table of last night did on the day that has just ended.

use super::serving::{self, table};
use crate::error::Result;
use crate::evaluate::incremental::Person;
use crate::evaluate::night::Night;
use crate::evaluate::novelty::History;
use crate::evaluate::{self, CHAMPION, EvaluationFacts, HOLDOUT};
use crate::ingest::Staged;
use crate::platform::engine;
use crate::platform::run::Run;
use crate::publish::{self, Commit, Tables};
use crate::segments;
use crate::spec::Spec;
use crate::statistics::bootstrap::cluster;
use crate::statistics::delay::{Curve, Observed};
use crate::targeting::arms::{Assignment, arm_of};
use crate::targeting::value::NO_AD;
use crate::types::column;
use arrow::array::{Array, Float64Array, Int64Array, RecordBatch, StringArray};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Days of earlier impressions behind the trend of the lift.
const TREND_DAYS: u64 = 14;

/// Measures the day under the table that served it; before the first table, under the logs' own arms.
pub async fn day(
    run: &Run,
    spec: &Spec,
    staged: &Staged,
    impressions: &RecordBatch,
    tonight: &Tables,
    previous: Option<&Commit>,
) -> Result<EvaluationFacts> {
    // Before the first table nobody knows how users were to be split among the arms.
    let (mut served, mut shares, mut people) = (None, BTreeMap::new(), Vec::new());
    if let Some(commit) = previous {
        let tables = run.output.child(&commit.tables);
        let ads = tables.read_parquet("segment_ads.parquet").await?;
        let shadow = tables.read_parquet("shadow_ads.parquet").await?;
        // As the table was served: the job may have another salt or other shares by now.
        let assignment = publish::assignment(&tables).await?;
        shares = serving::shares(&assignment.shares);
        if staged.people.is_some() {
            people = population(&assignment, staged, &tables.read_parquet("user_segments.parquet").await?, &ads, &shadow)?;
        }
        served = Some(ads);
    }
    let campaigns = if staged.has("campaigns") { Some(table(run, staged, "campaigns").await?) } else { None };
    let delays = delays(run, staged).await?;
    let active = active(run, staged).await?;
    let night = Night {
        impressions,
        policy_version: previous.map(|commit| commit.policy_version.as_str()),
        shares: &shares,
        served: served.as_ref(),
        tonight: &tonight.segment_ads,
        population: &people,
        active: active.as_ref(),
        ads: &table(run, staged, "ads").await?,
        campaigns: campaigns.as_ref(),
        history: &history(run, staged).await?,
        delays: delays.as_ref(),
        cut_off: run.cut_off(),
        start: run.job.as_of(run.day(1)),
    };
    evaluate::night(&spec.evaluate, &night)
}

/// Everybody in the table who may be measured, with their arm and whether the plan shows their segment an ad.
fn population(
    assignment: &Assignment,
    staged: &Staged,
    users: &RecordBatch,
    ads: &RecordBatch,
    shadow: &RecordBatch,
) -> Result<Vec<Person>> {
    let plan = |rows: &RecordBatch, arm: &str| -> Result<BTreeSet<String>> {
        let (segments, ads) = (column::<StringArray>(rows, "segment_id")?, column::<StringArray>(rows, "ad_id")?);
        let (arms, propensities) = (column::<StringArray>(rows, "arm")?, column::<Float64Array>(rows, "propensity")?);
        let shown = (0..rows.num_rows()).filter(|&row| arms.value(row) == arm && ads.value(row) != NO_AD && propensities.value(row) > 0.0);
        Ok(shown.map(|row| segments.value(row).to_owned()).collect())
    };
    let (for_champion, for_holdout) = (plan(ads, CHAMPION)?, plan(shadow, HOLDOUT)?);
    let primary = segments::primary_users(users)?;
    let (ids, segments) = (column::<StringArray>(&primary, "user_id")?, column::<StringArray>(&primary, "segment_id")?);
    let person = |row: usize| {
        let arm = arm_of(ids.value(row), &assignment.salt, &assignment.shares).as_str();
        let plan = if arm == HOLDOUT { &for_holdout } else { &for_champion };
        Person { user: cluster(ids.value(row)), arm: arm.to_owned(), would_be_shown: plan.contains(segments.value(row)) }
    };
    Ok((0..primary.num_rows()).filter(|&row| may_measure(staged, ids.value(row))).map(person).collect())
}

/// Who did anything in the shop on the day, by hash; none where the logs hold no events.
async fn active(run: &Run, staged: &Staged) -> Result<Option<HashSet<u64>>> {
    if !staged.has("events") {
        return Ok(None);
    }
    let context = staged.as_of(run, run.date, None, ["events"])?;
    let start = run.job.as_of(run.day(1));
    let seen = context.table("events").await?.filter(engine::before("occurred_at", start).is_false())?;
    let rows = engine::collect(seen.select_columns(&["user_id"])?.distinct()?).await?;
    Ok(Some(column::<StringArray>(&rows, "user_id")?.iter().flatten().map(cluster).collect()))
}

/// Clicks and impressions of each user of the two arms on each of the last days.
async fn history(run: &Run, staged: &Staged) -> Result<Vec<History>> {
    if staged.schema("impressions").is_none_or(|schema| schema.field_with_name("arm").is_err()) {
        return Ok(Vec::new());
    }
    let context = staged.as_of(run, run.date, None, ["impressions"])?;
    let day = "(CAST($as_of AS BIGINT) - CAST(occurred_at AS BIGINT)) / 86400000000";
    let sql = format!(
        "SELECT {day} AS days_ago, arm, user_id, COUNT(*) AS impressions, SUM(CASE WHEN clicked THEN 1 ELSE 0 END) AS clicks
         FROM impressions
         WHERE user_id IS NOT NULL AND arm IN ('{CHAMPION}', '{HOLDOUT}') AND {day} < {TREND_DAYS}
         GROUP BY 1, 2, 3
         ORDER BY 1, 2, 3"
    );
    let rows = engine::collect(engine::plan_sql(&context, &sql, run.as_of()).await?).await?;
    let number = |name: &str| column::<Int64Array>(&rows, name);
    let (days, arms, users) = (number("days_ago")?, column::<StringArray>(&rows, "arm")?, column::<StringArray>(&rows, "user_id")?);
    let (impressions, clicks) = (number("impressions")?, number("clicks")?);
    let of = |row: usize| History {
        days_ago: days.value(row),
        arm: arms.value(row).to_owned(),
        impressions: impressions.value(row) as f64,
        clicks: clicks.value(row) as f64,
    };
    Ok((0..rows.num_rows()).filter(|&row| may_measure(staged, users.value(row))).map(of).collect())
}

/// Whether a user consented to being measured, where users are persons.
fn may_measure(staged: &Staged, user: &str) -> bool {
    staged.people.as_ref().is_none_or(|people| people.measure.contains(user))
}

/// How long conversions take to arrive, in hours, from all that have. None where no conversions are logged, or too few.
pub(super) async fn delays(run: &Run, staged: &Staged) -> Result<Option<Curve>> {
    if staged.schema("impressions").is_none_or(|schema| schema.field_with_name("converted_at").is_err()) {
        return Ok(None);
    }
    let context = staged.as_of(run, run.date, None, ["impressions"])?;
    let lag = run.cut_off() - run.as_of();
    let sql = format!(
        "SELECT
             (CAST(converted_at AS BIGINT) - CAST(occurred_at AS BIGINT)) / 3600000000 AS delay,
             (CAST($as_of AS BIGINT) + {} - CAST(occurred_at AS BIGINT)) / 3600000000 AS age,
             user_id
         FROM impressions
         WHERE converted AND converted_at >= occurred_at
         ORDER BY 1, 2",
        lag.num_microseconds().unwrap_or(0)
    );
    let rows = engine::collect(engine::plan_sql(&context, &sql, run.as_of()).await?).await?;
    let number = |name: &str| column::<Int64Array>(&rows, name);
    let (delay, age, users) = (number("delay")?, number("age")?, column::<StringArray>(&rows, "user_id")?);
    let hours = |column: &Int64Array, row: usize| u32::try_from(column.value(row)).unwrap_or(0);
    let seen = |row: usize| Observed { delay: hours(delay, row), age: hours(age, row), count: 1.0 };
    let measured = (0..rows.num_rows()).filter(|&row| users.is_valid(row) && may_measure(staged, users.value(row)));
    Ok(Curve::fit(&measured.map(seen).collect::<Vec<_>>()))
}

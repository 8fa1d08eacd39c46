//! Snapshots and outcomes -> examples to learn from, split by time.
//!
//! Impressions of day d are joined to the snapshot of d-1, so an example knows what the ad server could have known. Only mature
//! labels are used, and a gap as long as the label window lies between the splits: no label of one split was still open when the
//! next began. Rows in = rows out is checked, because a join that multiplies examples is the silent kind of wrong.

use crate::error::{Error, Result};
use crate::features::Snapshots;
use crate::ingest::Staged;
use crate::platform::catalog::Catalog;
use crate::platform::engine;
use crate::platform::run::{Done, Run, Step};
use crate::types::column;
use arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringArray};
use arrow::compute::{concat_batches, filter_record_batch};
use chrono::{Days, NaiveDate};
use datafusion::prelude::{DataFrame, SessionContext};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Days of impressions that the response model learns from.
    pub train_days: u64,
    /// Days after which a click or conversion counts as final; also the gap between splits. Longer: truer labels, staler models.
    pub label_window_days: u64,
    /// At most so many training impressions; beyond it they are sampled by hash. Bounds memory.
    pub max_train_rows: u64,
    /// The interest label looks so many days ahead.
    pub interest_window_days: u64,
    /// As-of days of users that the interest model learns from, and the days between two of them.
    pub interest_train_days: u64,
    pub interest_step_days: u64,
    /// At most so many users an as-of day; beyond it they are sampled by hash.
    pub max_interest_users: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            train_days: 7,
            label_window_days: 2,
            max_train_rows: 1_000_000,
            interest_window_days: 7,
            interest_train_days: 3,
            interest_step_days: 2,
            max_interest_users: 20_000,
        }
    }
}

/// Whether a shop's features are enough to learn interests from, where it logs events.
///
/// # Errors
/// `Usage`, with the grain that no feature has.
pub fn check_features(catalog: &Catalog) -> Result<()> {
    if catalog.staged("events").is_none() {
        return Ok(());
    }
    for (grain, example) in [(&["user_id"][..], "user__activity.sql"), (&["user_id", "category_id"], "user_category__affinity.sql")] {
        if !catalog.features.iter().any(|query| query.grain == grain) {
            return Err(Error::usage(format_args!(
                "no feature table has the grain {}, and interests are learned from it",
                grain.join(", ")
            ))
            .action(format_args!("add one, such as features/{example}")));
        }
    }
    Ok(())
}

/// The days of the splits, oldest first.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Splits {
    pub train: Vec<NaiveDate>,
    /// Early stopping and calibration.
    pub valid: NaiveDate,
    /// The latest mature day: the gate's.
    pub test: NaiveDate,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct InterestSplits {
    pub train: Vec<NaiveDate>,
    pub valid: NaiveDate,
}

impl Settings {
    pub fn check(&self) -> Result<()> {
        let counts = [
            ("train_days", self.train_days),
            ("max_train_rows", self.max_train_rows),
            ("interest_window_days", self.interest_window_days),
            ("interest_train_days", self.interest_train_days),
            ("interest_step_days", self.interest_step_days),
            ("max_interest_users", self.max_interest_users),
        ];
        match counts.iter().find(|(_, count)| *count == 0) {
            Some((name, _)) => Err(Error::usage(format_args!("[dataset] {name} must be at least 1"))),
            None => Ok(()),
        }
    }

    /// The splits of impressions for a night.
    pub fn splits(&self, date: NaiveDate) -> Splits {
        let gap = self.label_window_days + 1;
        let test = date - Days::new(self.label_window_days);
        let valid = test - Days::new(gap);
        Splits { train: (0..self.train_days).rev().map(|back| valid - Days::new(gap + back)).collect(), valid, test }
    }

    /// The as-of days of users for a night: labels of training end before those of validation begin.
    pub fn interest_splits(&self, date: NaiveDate) -> InterestSplits {
        let valid = date - Days::new(self.interest_window_days);
        let latest = valid - Days::new(self.interest_window_days);
        InterestSplits {
            train: (0..self.interest_train_days).rev().map(|step| latest - Days::new(step * self.interest_step_days)).collect(),
            valid,
        }
    }

    /// Every day whose snapshot the night needs, the run date included.
    pub fn snapshot_days(&self, date: NaiveDate, with_interest: bool) -> BTreeSet<NaiveDate> {
        let splits = self.splits(date);
        let mut days: BTreeSet<NaiveDate> =
            splits.train.iter().chain([&splits.valid, &splits.test]).map(|day| *day - Days::new(1)).collect();
        if with_interest {
            let interest = self.interest_splits(date);
            days.extend(interest.train);
            days.insert(interest.valid);
        }
        days.insert(date);
        days
    }
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct DatasetFacts {
    pub splits: Vec<SplitFacts>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct SplitFacts {
    pub name: String,
    pub days: Vec<NaiveDate>,
    pub rows: u64,
    pub clicks: u64,
    pub conversions: u64,
    /// Rows of the days before sampling.
    pub available: u64,
}

/// Response examples by split, as files of a finished step: `train.parquet`, `valid.parquet`, `test.parquet`.
pub async fn response(run: &Run, settings: &Settings, staged: &Staged, snapshots: &Snapshots) -> Result<Done<DatasetFacts>> {
    let splits = settings.splits(run.date);
    let named = [("train", splits.train.clone()), ("valid", vec![splits.valid]), ("test", vec![splits.test])];
    let days = splits.train.iter().chain([&splits.valid, &splits.test]);
    let inputs = serde_json::json!({
        "settings": settings,
        "seed": run.job.seed,
        "impressions": staged.key("impressions"),
        "ads": staged.key("ads"),
        "snapshots": days.map(|day| (day.to_string(), snapshots.keys(*day - Days::new(1)))).collect::<BTreeMap<_, _>>(),
    });
    run.step(&format!("dataset/response/dt={}", run.date), &inputs, async |step: &Step| {
        let mut facts = DatasetFacts { splits: Vec::new() };
        for (name, days) in named {
            let available = count_impressions(run, staged, &days).await?;
            let limit = if name == "train" { settings.max_train_rows } else { u64::MAX };
            let mut batches = Vec::new();
            for &day in &days {
                for bucket in 0..run.engine.buckets {
                    let rows = examples_of_day(run, staged, snapshots, day, bucket).await?;
                    batches.push(sample(rows, "impression_id", limit, available, run.job.seed)?);
                }
            }
            facts.splits.push(split_facts(name, days, &batches, available)?);
            step.write_parquet(&format!("{name}.parquet"), batches[0].schema(), &batches).await?;
        }
        Ok(facts)
    })
    .await
}

/// What an ad decision knows besides features, and the columns it comes from.
const CONTEXT: [(&str, &str, &str); 6] = [
    ("ads", "campaign_id", "campaign_id"),
    ("ads", "category_id", "category_id"),
    ("ads", "title", "ad_title"),
    ("ads", "bid", "bid"),
    ("impressions", "platform", "platform"),
    ("impressions", "position", "position"),
];

/// The examples of one bucket of one day: outcomes as known tonight, features as known the day before.
async fn examples_of_day(run: &Run, staged: &Staged, snapshots: &Snapshots, day: NaiveDate, bucket: usize) -> Result<RecordBatch> {
    let context = staged.as_of(run, run.date, Some(bucket), ["impressions"])?;
    staged.register(&context, run, "ads", day, None)?;
    snapshots.register(&context, day - Days::new(1), Some(bucket), |_| true)?;
    let impressions = on_day(run, context.table("impressions").await?, day)?;
    let expected = impressions.clone().count().await?;
    context.register_table("decisions", impressions.into_view())?;
    let mut columns = vec![
        "d.impression_id".to_owned(),
        "d.user_id".to_owned(),
        "d.ad_id".to_owned(),
        "d.occurred_at".to_owned(),
        "d.clicked".to_owned(),
    ];
    let has = |table: &str, column: &str| staged.schema(table).is_some_and(|schema| schema.field_with_name(column).is_ok());
    columns.push(if has("impressions", "converted") { "d.converted".to_owned() } else { "CAST(NULL AS BOOLEAN) AS converted".to_owned() });
    if has("impressions", "revenue") {
        columns.push("CAST(d.revenue AS DOUBLE) AS revenue".to_owned());
    }
    for (table, column, name) in CONTEXT.into_iter().filter(|(table, column, _)| has(table, column)) {
        let value = if table == "ads" { format!("a.{column}") } else { format!("d.{column}") };
        columns.push(if column == "bid" { format!("CAST({value} AS DOUBLE) AS {name}") } else { format!("{value} AS {name}") });
    }
    let sql = with_features(snapshots, &columns, "decisions d", has("ads", "ad_id"));
    let sql = format!("{sql} ORDER BY d.impression_id");
    let rows = engine::collect(engine::plan_sql(&context, &sql, run.job.as_of(day)).await?).await?;
    if rows.num_rows() != expected {
        return Err(Error::contract(format_args!(
            "{expected} impressions of {day} became {} examples: ads or a feature table has several rows a key",
            rows.num_rows()
        )));
    }
    Ok(rows)
}

/// `SELECT columns, every feature AS "table.column" FROM decisions LEFT JOIN …`: a feature table joins on those key columns that a
/// decision has; a table whose key it has not (an item's) is left out.
fn with_features(snapshots: &Snapshots, columns: &[String], decisions: &str, with_ads: bool) -> String {
    let mut select = columns.to_vec();
    let mut joins = String::new();
    if with_ads {
        joins.push_str(" LEFT JOIN ads a ON a.ad_id = d.ad_id");
    }
    for (i, (name, table)) in snapshots.tables.iter().enumerate() {
        let on: Option<Vec<String>> =
            table.key.iter().map(|key| key_of_decision(key, with_ads).map(|of| format!("f{i}.{key} = {of}"))).collect();
        let Some(on) = on else { continue };
        select.extend(table.columns.iter().map(|column| format!("f{i}.\"{column}\" AS \"{name}.{column}\"")));
        write!(joins, " LEFT JOIN {name} f{i} ON {}", on.join(" AND ")).expect("a string takes any text");
    }
    format!("SELECT {} FROM {decisions}{joins}", select.join(", "))
}

fn key_of_decision(key: &str, with_ads: bool) -> Option<&'static str> {
    match key {
        "user_id" => Some("d.user_id"),
        "ad_id" => Some("d.ad_id"),
        "category_id" if with_ads => Some("a.category_id"),
        "campaign_id" if with_ads => Some("a.campaign_id"),
        _ => None,
    }
}

/// The rows of one local day.
fn on_day(run: &Run, rows: DataFrame, day: NaiveDate) -> Result<DataFrame> {
    let (start, end) = (run.job.as_of(day - Days::new(1)), run.job.as_of(day));
    Ok(rows.filter(engine::before("occurred_at", end))?.filter(engine::before("occurred_at", start).is_false())?)
}

async fn count_impressions(run: &Run, staged: &Staged, days: &[NaiveDate]) -> Result<u64> {
    let context = staged.as_of(run, run.date, None, ["impressions"])?;
    let mut total = 0;
    for &day in days {
        total += on_day(run, context.table("impressions").await?, day)?.count().await? as u64;
    }
    Ok(total)
}

/// Keeps about `limit` of `available` rows, chosen by a seeded hash of their id: the same rows whatever the order.
fn sample(rows: RecordBatch, id: &str, limit: u64, available: u64, seed: u64) -> Result<RecordBatch> {
    if available <= limit {
        return Ok(rows);
    }
    let threshold = (u128::from(u64::MAX) * u128::from(limit) / u128::from(available)) as u64;
    let ids = column::<StringArray>(&rows, id)?;
    let keep: BooleanArray = ids.iter().map(|id| Some(xxh3_64_with_seed(id.unwrap_or_default().as_bytes(), seed) <= threshold)).collect();
    Ok(filter_record_batch(&rows, &keep)?)
}

fn split_facts(name: &str, days: Vec<NaiveDate>, batches: &[RecordBatch], available: u64) -> Result<SplitFacts> {
    let trues = |name: &str| batches.iter().map(|rows| Ok(column::<BooleanArray>(rows, name)?.true_count() as u64)).sum::<Result<u64>>();
    Ok(SplitFacts {
        name: name.to_owned(),
        days,
        rows: batches.iter().map(|rows| rows.num_rows() as u64).sum(),
        clicks: trues("clicked")?,
        conversions: trues("converted")?,
        available,
    })
}

/// Users on as-of days with what they engaged with in the window after: files `users`, `pairs`, `labels` of train and valid.
pub async fn interest(run: &Run, settings: &Settings, staged: &Staged, snapshots: &Snapshots) -> Result<Done<DatasetFacts>> {
    let splits = settings.interest_splits(run.date);
    let named = [("train", splits.train.clone()), ("valid", vec![splits.valid])];
    let inputs = serde_json::json!({
        "settings": settings,
        "seed": run.job.seed,
        "events": staged.key("events"),
        "snapshots": splits.train.iter().chain([&splits.valid]).map(|day| (day.to_string(), snapshots.keys(*day))).collect::<BTreeMap<_, _>>(),
    });
    run.step(&format!("dataset/interest/dt={}", run.date), &inputs, async |step: &Step| {
        let mut facts = DatasetFacts { splits: Vec::new() };
        for (name, days) in named {
            let mut parts = InterestParts::default();
            let mut available = 0;
            for &day in &days {
                for bucket in 0..run.engine.buckets {
                    let all = user_rows(run, snapshots, day, Some(bucket)).await?;
                    available += all.num_rows() as u64;
                    let share = settings.max_interest_users.div_ceil(run.engine.buckets as u64);
                    let rows = all.num_rows() as u64;
                    let users = sample(all, "user_id", share, rows, run.job.seed)?;
                    let context = snapshots_of(run, snapshots, day, Some(bucket), &users)?;
                    parts.pairs.push(pair_rows(run, snapshots, &context, day).await?);
                    parts.labels.push(label_rows(run, settings, staged, &users, day, bucket).await?);
                    parts.users.push(users);
                }
            }
            let engaged: usize = parts.labels.iter().map(RecordBatch::num_rows).sum();
            let rows = parts.users.iter().map(RecordBatch::num_rows).sum::<usize>() as u64;
            facts.splits.push(SplitFacts { name: name.into(), days, rows, clicks: engaged as u64, conversions: 0, available });
            for (part, batches) in [("users", parts.users), ("pairs", parts.pairs), ("labels", parts.labels)] {
                step.write_table(&format!("{name}_{part}.parquet"), &concat_batches(&batches[0].schema(), &batches)?).await?;
            }
        }
        Ok(facts)
    })
    .await
}

#[derive(Default)]
struct InterestParts {
    users: Vec<RecordBatch>,
    pairs: Vec<RecordBatch>,
    labels: Vec<RecordBatch>,
}

/// Every user of a day's snapshot with all `user__*` features: user_id, day, `table.column`….
pub async fn user_rows(run: &Run, snapshots: &Snapshots, day: NaiveDate, bucket: Option<usize>) -> Result<RecordBatch> {
    let context = engine::session(&run.engine)?;
    snapshots.register(&context, day, bucket, |_| true)?;
    let tables: Vec<_> = snapshots.tables.iter().filter(|(_, table)| table.key == ["user_id"]).collect();
    if tables.is_empty() {
        return Err(Error::usage("no feature table is keyed by user_id alone").action("add one, such as features/user__activity.sql"));
    }
    let union = tables.iter().map(|(name, _)| format!("SELECT user_id FROM {name}")).collect::<Vec<_>>().join(" UNION ");
    let mut select = vec!["d.user_id".to_owned(), format!("CAST('{day}' AS DATE) AS day")];
    let mut joins = String::new();
    for (i, (name, table)) in tables.iter().enumerate() {
        select.extend(table.columns.iter().map(|column| format!("f{i}.\"{column}\" AS \"{name}.{column}\"")));
        write!(joins, " LEFT JOIN {name} f{i} ON f{i}.user_id = d.user_id").expect("a string takes any text");
    }
    let sql = format!("SELECT {} FROM ({union}) d{joins} ORDER BY d.user_id", select.join(", "));
    engine::collect(engine::plan_sql(&context, &sql, run.job.as_of(day)).await?).await
}

/// A session with a day's feature tables and the chosen users as `chosen`.
fn snapshots_of(run: &Run, snapshots: &Snapshots, day: NaiveDate, bucket: Option<usize>, users: &RecordBatch) -> Result<SessionContext> {
    let context = engine::session(&run.engine)?;
    snapshots.register(&context, day, bucket, |_| true)?;
    let ids = users.project(&[users.schema().index_of("user_id")?])?;
    context.register_batch("chosen", ids)?;
    Ok(context)
}

/// The (user, category) features of the chosen users: user_id, day, category_id, `table.column`….
pub async fn pairs(run: &Run, snapshots: &Snapshots, day: NaiveDate, bucket: Option<usize>, users: &RecordBatch) -> Result<RecordBatch> {
    let context = snapshots_of(run, snapshots, day, bucket, users)?;
    pair_rows(run, snapshots, &context, day).await
}

async fn pair_rows(run: &Run, snapshots: &Snapshots, context: &SessionContext, day: NaiveDate) -> Result<RecordBatch> {
    let tables: Vec<_> = snapshots.tables.iter().filter(|(_, table)| table.key == ["user_id", "category_id"]).collect();
    if tables.is_empty() {
        return Err(Error::usage("no feature table is keyed by user_id, category_id")
            .action("add one, such as features/user_category__affinity.sql"));
    }
    let union = tables.iter().map(|(name, _)| format!("SELECT user_id, category_id FROM {name}")).collect::<Vec<_>>().join(" UNION ");
    let mut select = vec!["d.user_id".to_owned(), format!("CAST('{day}' AS DATE) AS day"), "d.category_id".to_owned()];
    let mut joins = String::new();
    for (i, (name, table)) in tables.iter().enumerate() {
        select.extend(table.columns.iter().map(|column| format!("f{i}.\"{column}\" AS \"{name}.{column}\"")));
        write!(joins, " LEFT JOIN {name} f{i} ON f{i}.user_id = d.user_id AND f{i}.category_id = d.category_id")
            .expect("a string takes any text");
    }
    let sql = format!(
        "SELECT {} FROM ({union}) d JOIN chosen c ON c.user_id = d.user_id{joins} ORDER BY d.user_id, d.category_id",
        select.join(", ")
    );
    engine::collect(engine::plan_sql(context, &sql, run.job.as_of(day)).await?).await
}

/// What the chosen users engaged with in the window after `day`, as known tonight: user_id, day, category_id.
async fn label_rows(
    run: &Run,
    settings: &Settings,
    staged: &Staged,
    users: &RecordBatch,
    day: NaiveDate,
    bucket: usize,
) -> Result<RecordBatch> {
    let context = staged.as_of(run, run.date, Some(bucket), ["events"])?;
    let (start, end) = (run.job.as_of(day), run.job.as_of(day + Days::new(settings.interest_window_days)));
    let window = context
        .table("events")
        .await?
        .filter(engine::before("occurred_at", end))?
        .filter(engine::before("occurred_at", start).is_false())?;
    context.register_table("window", window.into_view())?;
    context.register_batch("chosen", users.project(&[users.schema().index_of("user_id")?])?)?;
    let sql = format!(
        "SELECT DISTINCT w.user_id, CAST('{day}' AS DATE) AS day, w.category_id FROM \"window\" w JOIN chosen c ON c.user_id = w.user_id
         WHERE w.event_type <> 'search' AND w.category_id IS NOT NULL ORDER BY w.user_id, w.category_id"
    );
    engine::collect(engine::plan_sql(&context, &sql, run.job.as_of(day)).await?).await
}

/// Every pair of the given users and of the ads offered to their segments as a response example without outcomes, with tonight's
/// features.
///
/// `users` has user_id and segment_id, `offered` segment_id and ad_id of tonight's ads.
pub async fn candidates(
    run: &Run,
    staged: &Staged,
    snapshots: &Snapshots,
    users: &RecordBatch,
    offered: &RecordBatch,
) -> Result<RecordBatch> {
    let context = engine::session(&run.engine)?;
    staged.register(&context, run, "ads", run.date, None)?;
    snapshots.register(&context, run.date, None, |_| true)?;
    context.register_batch("sampled", users.clone())?;
    context.register_batch("offered", offered.clone())?;
    let has = |column: &str| staged.schema("ads").is_some_and(|schema| schema.field_with_name(column).is_ok());
    let decisions = "(SELECT s.user_id, s.segment_id, o.ad_id FROM sampled s JOIN offered o ON o.segment_id = s.segment_id) d";
    let mut columns = vec!["d.user_id".to_owned(), "d.segment_id".to_owned(), "d.ad_id".to_owned()];
    for (_, column, name) in CONTEXT.into_iter().filter(|(table, column, _)| *table == "ads" && has(column)) {
        columns.push(if column == "bid" { format!("CAST(a.bid AS DOUBLE) AS {name}") } else { format!("a.{column} AS {name}") });
    }
    let sql = format!("{} ORDER BY d.segment_id, d.ad_id, d.user_id", with_features(snapshots, &columns, decisions, true));
    engine::collect(engine::plan_sql(&context, &sql, run.as_of()).await?).await
}

/// segment_id, ad_id: which ads may be shown to which segments.
pub fn offered<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<RecordBatch> {
    let (segments, ads): (Vec<&str>, Vec<&str>) = pairs.into_iter().unzip();
    let strings = |values| Arc::new(StringArray::from(values)) as ArrayRef;
    Ok(RecordBatch::try_from_iter([("segment_id", strings(segments)), ("ad_id", strings(ads))])?)
}

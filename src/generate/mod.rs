//! A shop with known truth: raw logs and records as a shop's systems would write them, and a `truth/` folder that no stage reads.
//!
//! The world follows from its plan alone (`_world.json`), so the same plan gives the same bytes whatever the number of threads,
//! and [`continue_day`] can serve a published table for one more day in the same world. A day is simulated whole in memory by one
//! thread; days run in parallel.
//!
//! ```text
//! events ad_impressions ad_clicks ad_conversions bid_hours     logs, dt=<local day on which it happened>
//! users consents identities items categories campaigns ads suppressions     the full state at the end of each day
//! truth/impressions/dt=   p(click), p(conversion | click) of each impression
//! truth/arms/dt=          CTR of what each arm showed, and of its policy had it served everybody
//! truth/interests/        what each user really cares for
//! truth/lift.json         the same of the whole history, and the lift of champion over holdout
//! truth/served/dt=.json   of a continued day: by which table
//! ```

mod continue_day;
mod logs;
mod people;
mod planted;
mod serving;
mod snapshots;
mod words;
mod world;
mod write;

pub use continue_day::{Continue, continue_day};
pub use planted::{ARTICLE_USERS, plant_article_users};

use crate::error::{Context, Error, Result};
use crate::platform::storage::Store;
use crate::targeting::arms::Arm;
use chrono::{Datelike, Days, NaiveDate};
use futures::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use serving::{ArmTruth, Launch};
use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Arc;
use world::World;
use write::{Kind, Table};

/// What decides a generated shop.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub users: u64,
    /// Days of history, `until` included.
    pub days: u64,
    pub seed: u64,
    /// The last day.
    pub until: NaiveDate,
}

/// What was written.
#[derive(Clone, Debug, Default, Serialize, PartialEq)]
pub struct Summary {
    pub users: u64,
    pub days: u64,
    /// By raw table; over all days.
    pub rows: BTreeMap<String, u64>,
    pub bytes: u64,
    /// Clicks and orders per ad impression and click, as they happened.
    pub ctr: f64,
    pub cvr: f64,
}

const WORLD_FILE: &str = "_world.json";
/// The plan of a shop that is not yet whole.
const BEGUN_FILE: &str = "_begun.json";

/// Writes a shop's history, on all cores.
///
/// # Errors
/// `Usage` for a plan beyond the limits, or when another shop stands at the place.
pub async fn generate(store: &Store, plan: &Plan) -> Result<Summary> {
    generate_on(store, plan, std::thread::available_parallelism().map_or(1, NonZeroUsize::get)).await
}

/// As [`generate`], so many days at a time. Changes no byte.
pub async fn generate_on(store: &Store, plan: &Plan, threads: usize) -> Result<Summary> {
    plan.check()?;
    if let Some(other) = read_plan(store).await?.filter(|other| other != plan) {
        return Err(Error::usage(format_args!("{} holds another shop: {}", store.locate(""), serde_json::to_string(&other)?))
            .action("choose an empty place"));
    }
    if let Some(other) = read_plan_of(store, BEGUN_FILE).await?.filter(|other| other != plan) {
        return Err(Error::usage(format_args!("{} holds a part of another shop: {}", store.locate(""), serde_json::to_string(&other)?))
            .action("remove the folder, or choose an empty place"));
    }
    store.put(BEGUN_FILE, serde_json::to_vec_pretty(plan)?.into()).await?;
    let world = Arc::new(new_world(plan));
    let mut summary = Summary { users: plan.users, days: plan.days, ..Summary::default() };
    let simulated = futures::stream::iter(plan.dates()).map(|date| {
        let world = world.clone();
        async move {
            let simulated = tokio::task::spawn_blocking(move || history_day(&world, date)).await;
            let mut day = simulated.map_err(Error::internal)?.with_context(|| format!("generating {date}"))?;
            Ok::<_, Error>((put(store, std::mem::take(&mut day.files)).await?, day))
        }
    });
    let mut days = Vec::new();
    let mut simulated = std::pin::pin!(simulated.buffered(threads.max(1)));
    while let Some((written, day)) = simulated.try_next().await? {
        summary.add(written);
        days.push(day);
    }
    let conversions: Vec<_> = days.iter_mut().flat_map(|day| std::mem::take(&mut day.conversions)).collect();
    for day in &days {
        summary.add(put(store, logs::orders(&world, day.date, &day.hours, &conversions)?).await?);
    }
    summary.add(put(store, vec![interests(&world)?]).await?);
    store.put("truth/lift.json", lift(days.iter().map(|day| &day.arms))?.into()).await?;
    summary.rates(days.iter().map(|day| &day.arms), conversions.len());
    // Last: a place with this file is a whole shop.
    store.put(WORLD_FILE, serde_json::to_vec_pretty(plan)?.into()).await?;
    store.delete(BEGUN_FILE).await?;
    Ok(summary)
}

fn history_day(world: &World, date: NaiveDate) -> Result<logs::Day> {
    let mut day = logs::day(world, date, &Launch::new(world, date))?;
    day.files.extend(snapshots::day(world, date)?);
    Ok(day)
}

fn new_world(plan: &Plan) -> World {
    let mut world = World::draw(plan);
    serving::calibrate(&mut world);
    world
}

impl Plan {
    pub fn start(&self) -> NaiveDate {
        self.until - Days::new(self.days - 1)
    }

    fn dates(&self) -> impl Iterator<Item = NaiveDate> + use<> {
        let start = self.start();
        (0..self.days).map(move |day| start + Days::new(day))
    }

    fn check(&self) -> Result<()> {
        let limits = [("users", self.users, 10_000_000), ("days", self.days, 3660)];
        if let Some((name, value, most)) = limits.into_iter().find(|(_, value, most)| !(1..=*most).contains(value)) {
            return Err(Error::usage(format_args!("{name} = {value}: a generated shop has 1 to {most}")));
        }
        if !(1990..2200).contains(&self.until.year()) {
            return Err(Error::usage(format_args!("until = {}: the years 1990 to 2199 can be generated", self.until)));
        }
        Ok(())
    }
}

/// The plan of the shop at a place, when one stands there whole.
async fn read_plan(store: &Store) -> Result<Option<Plan>> {
    read_plan_of(store, WORLD_FILE).await
}

async fn read_plan_of(store: &Store, file: &str) -> Result<Option<Plan>> {
    let Some(bytes) = store.get_optional(file).await? else { return Ok(None) };
    let plan = serde_json::from_slice(&bytes).map_err(|error| Error::contract(format_args!("{}: {error}", store.locate(file))))?;
    Ok(Some(plan))
}

/// Writes files; gives their tables, rows and bytes.
async fn put(store: &Store, files: Vec<write::File>) -> Result<Vec<(String, u64, u64)>> {
    let mut written = Vec::new();
    for file in files {
        let table = file.path.split("/dt=").next().unwrap_or_default().trim_end_matches("/part-0.parquet").to_owned();
        written.push((table, file.rows, file.bytes.len() as u64));
        store.put(&file.path, file.bytes).await?;
    }
    Ok(written)
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (table, rows) in &self.rows {
            writeln!(f, "{table:<20} {rows:>12} rows")?;
        }
        let (users, days, mib) = (self.users, self.days, self.bytes >> 20);
        write!(f, "{users} users, {days} days, {mib} MiB; CTR {:.2} %, CVR {:.2} %", 100.0 * self.ctr, 100.0 * self.cvr)
    }
}

impl Summary {
    fn add(&mut self, written: Vec<(String, u64, u64)>) {
        for (table, rows, bytes) in written {
            *self.rows.entry(table).or_default() += rows;
            self.bytes += bytes;
        }
    }

    fn rates<'a>(&mut self, arms: impl Iterator<Item = &'a [ArmTruth; 3]>, orders: usize) {
        let sums = arms.flatten().fold((0, 0), |sums, arm| (sums.0 + arm.impressions, sums.1 + arm.clicks));
        self.ctr = sums.1 as f64 / sums.0.max(1) as f64;
        self.cvr = orders as f64 / sums.1.max(1) as f64;
    }
}

/// `truth/interests`: a row for each interest of each user, rank 1 the top one.
fn interests(world: &World) -> Result<write::File> {
    let columns: write::Columns = &[("user_id", Kind::Text), ("category_id", Kind::Text), ("weight", Kind::Float), ("rank", Kind::Int)];
    let mut table = Table::new(columns)?;
    for (i, user) in world.users.iter().enumerate() {
        let uid = world::uid(i);
        for (rank, (category, weight)) in user.interests.iter().enumerate() {
            table.push(&[(&uid).into(), words::CATEGORIES[*category].id.into(), (*weight).into(), (rank as i64 + 1).into()])?;
        }
    }
    table.finish("truth/interests/part-0.parquet".into())
}

/// `truth/lift.json`: by arm, the CTR of what it showed and the CTR that its policy has when it serves everybody without caps and
/// budgets; and what each says of champion over holdout.
fn lift<'a>(days: impl Iterator<Item = &'a [ArmTruth; 3]>) -> Result<Vec<u8>> {
    let mut sums = [ArmTruth::default(); 3];
    for arms in days {
        sums.iter_mut().zip(arms).for_each(|(sum, arm)| sum.add(arm));
    }
    let ctr = |arm: &ArmTruth| serde_json::json!({ "shown_ctr": arm.shown_ctr(), "policy_ctr": arm.policy_ctr() });
    let arms = Arm::ALL.into_iter().zip(&sums).map(|(name, arm)| (name.to_string(), ctr(arm)));
    let [champion, _, holdout] = &sums;
    let lift = |of: fn(&ArmTruth) -> Option<f64>| Some(of(champion)? / of(holdout)? - 1.0);
    Ok(serde_json::to_vec_pretty(&serde_json::json!({
        "arms": arms.collect::<serde_json::Map<_, _>>(),
        "shown_lift": lift(ArmTruth::shown_ctr),
        "policy_lift": lift(ArmTruth::policy_ctr),
    }))?)
}

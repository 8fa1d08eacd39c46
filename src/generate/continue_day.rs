//! One more day in the same world, served by a published table: ad servers read its rows, and the day is logged raw like any other.
//!
//! Nothing but the plan and the click log of the days before is needed: a click decides its order by its own id. Earlier days are
//! never touched; the same day with the same table gives the same bytes, and with another table is refused.

use super::people::Visit;
use super::serving::Policy;
use super::world::{CONVERSION_DAYS, Conversion, World, local_day, uid};
use super::{Summary, logs, new_world, put, read_plan, snapshots};
use crate::error::{Context, Error, Kind, Result};
use crate::platform::catalog::IdDomain;
use crate::platform::pseudonym::Key;
use crate::platform::storage::{Created, Store, sha256};
use crate::segments::EVERYONE;
use crate::targeting::arms::{Arm, Shares, arm_of};
use crate::targeting::value::NO_AD;
use crate::types::{column, optional_column};
use arrow::array::{Array, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use chrono::{Days, NaiveDate};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What decides a continued day, next to the table itself.
#[derive(Clone, Debug)]
pub struct Continue {
    pub date: NaiveDate,
    /// Who is in which arm: as the job that published the table says.
    pub salt: String,
    pub shares: Shares,
}

/// Serves one more day by the tables in the folder `policy`, and logs it.
///
/// # Errors
/// `Usage` when the day before is absent, or the day itself is there and was not served by this table; `Contract` for a table
/// whose propensities are none.
pub async fn continue_day(store: &Store, plan: &Continue, policy: &Store, key: &Key) -> Result<Summary> {
    let shop = || store.locate("");
    let world_plan = read_plan(store).await?.ok_or_else(|| {
        Error::new(Kind::InputMissing, format_args!("{} holds no generated shop", shop())).action("generate one there first")
    })?;
    let (date, yesterday) = (plan.date, plan.date - Days::new(1));
    if !is_there(store, yesterday).await? {
        return Err(Error::usage(format_args!("{} has no {yesterday}", shop())).action("continue with the day after the last one"));
    }
    let published = Published::read(policy).await?;
    let served_by = serde_json::to_vec_pretty(&serde_json::json!({
        "policy": published.fingerprint, "shares": plan.shares, "salt": plan.salt, "pseudonym_key": key.fingerprint(),
    }))?;
    let marked = store.get_optional(&marker(date)).await?;
    if marked.is_none() && is_there(store, date).await? {
        return Err(
            Error::usage(format_args!("{date} belongs to the history of {}", shop())).action("continue with the day after the last one")
        );
    }
    let world = new_world(&world_plan);
    let server = Server::new(&world, plan, &published, key)?;
    // Before any row: whoever resumes a day that was cut off must serve it by the same table.
    if store.create(&marker(date), served_by.into()).await? == Created::Theirs {
        return Err(Error::usage(format_args!("{date} was served by another table, arms or key")).action("continue with the next day"));
    }
    let mut day = logs::day(&world, date, &server).with_context(|| format!("serving {date}"))?;
    let mut orders = earlier_orders(store, &world, date).await?;
    orders.append(&mut day.conversions);
    orders.retain(|order| local_day(order.at) == date);
    let mut files = snapshots::day(&world, date)?;
    files.extend(logs::orders(&world, date, &day.hours, &orders)?);
    // The impressions last: a day that has them is whole.
    files.append(&mut day.files);
    files.sort_by_key(|file| file.path == impressions(date));
    let mut summary = Summary { users: world_plan.users, days: 1, ..Summary::default() };
    summary.add(put(store, files).await?);
    summary.rates([&day.arms].into_iter(), orders.len());
    Ok(summary)
}

fn marker(date: NaiveDate) -> String {
    format!("truth/served/dt={date}.json")
}

fn impressions(date: NaiveDate) -> String {
    logs::path("ad_impressions", date)
}

async fn is_there(store: &Store, date: NaiveDate) -> Result<bool> {
    Ok(store.get_optional(&impressions(date)).await?.is_some())
}

/// The tables of a published policy that an ad server reads.
struct Published {
    user_segments: RecordBatch,
    segment_ads: RecordBatch,
    /// Hash of both files.
    fingerprint: String,
}

impl Published {
    /// Reads the folder of a published table.
    async fn read(store: &Store) -> Result<Self> {
        let mut fingerprint = String::new();
        let mut tables = Vec::new();
        for name in ["user_segments.parquet", "segment_ads.parquet"] {
            let bytes = store.get(name).await.context("reading the published table")?;
            fingerprint.push_str(&sha256(&bytes));
            tables.push(crate::platform::storage::parquet_table(bytes).with_context(|| store.locate(name).to_string())?);
        }
        let segment_ads = tables.remove(1);
        Ok(Self { user_segments: tables.remove(0), segment_ads, fingerprint: sha256(fingerprint.as_bytes()) })
    }
}

/// Orders of earlier days' clicks that may fall on `date`.
async fn earlier_orders(store: &Store, world: &World, date: NaiveDate) -> Result<Vec<Conversion>> {
    let owners: HashMap<&str, usize> = world
        .users
        .iter()
        .enumerate()
        .flat_map(|(user, person)| person.devices.iter().map(move |device| (device.id.as_str(), user)))
        .collect();
    let ads: HashMap<&str, usize> = world.ads.iter().enumerate().map(|(i, ad)| (ad.id.as_str(), i)).collect();
    let mut orders = Vec::new();
    for back in 1..=CONVERSION_DAYS as u64 + 1 {
        let path = logs::path("ad_clicks", date - Days::new(back));
        if store.get_optional(&path).await?.is_none() {
            continue;
        }
        let clicks = store.read_parquet(&path).await?;
        let (impressions, devices) = (column::<StringArray>(&clicks, "impression_id")?, column::<StringArray>(&clicks, "device_id")?);
        let (ad_ids, at) = (column::<StringArray>(&clicks, "ad_id")?, column::<TimestampMicrosecondArray>(&clicks, "ts")?);
        let mut seen = HashSet::new();
        for row in (0..clicks.num_rows()).filter(|&row| seen.insert(impressions.value(row))) {
            // A click of somebody from outside this world leads to nothing.
            let (Some(&user), Some(&ad)) = (owners.get(devices.value(row)), ads.get(ad_ids.value(row))) else { continue };
            orders.extend(world.conversion(impressions.value(row), user, ad, at.value(row)));
        }
    }
    Ok(orders)
}

/// A published table at work.
struct Server<'a> {
    version: String,
    shares: Shares,
    segments: Vec<&'a str>,
    /// By user: arm and primary segment.
    users: Vec<(Arm, Option<usize>)>,
    /// By segment and arm: the ads shown, with their rows.
    rows: Vec<[BTreeMap<usize, Row>; 3]>,
}

#[derive(Clone, Copy)]
struct Row {
    propensity: f64,
    cap: Option<u32>,
    multiplier: f64,
}

impl<'a> Server<'a> {
    fn new(world: &World, plan: &Continue, published: &'a Published, key: &Key) -> Result<Self> {
        plan.shares.check()?;
        let (segments, rows) = rows_of(world, &published.segment_ads).context("segment_ads")?;
        let number: HashMap<&str, usize> = segments.iter().enumerate().map(|(i, segment)| (*segment, i)).collect();
        let primary = primary_segments(&published.user_segments).context("user_segments")?;
        let everyone = number.get(EVERYONE).copied();
        let users = (0..world.users.len()).map(|user| {
            let pseudonym = key.pseudonym(IdDomain::User, &uid(user));
            let segment = match primary.get(pseudonym.as_str()) {
                Some(segment) => number.get(segment).copied(),
                None => everyone,
            };
            (arm_of(&pseudonym, &plan.salt, &plan.shares), segment)
        });
        let versions = column::<StringArray>(&published.segment_ads, "policy_version")?;
        let version = versions.iter().flatten().next().unwrap_or_default().to_owned();
        Ok(Self { version, shares: plan.shares, users: users.collect(), segments, rows })
    }

    fn row(&self, user: usize, arm: Arm, ad: usize) -> Option<&Row> {
        self.rows[self.users[user].1?][arm as usize].get(&ad)
    }
}

/// A segment's rows by arm and ad.
type Rows = [BTreeMap<usize, Row>; 3];

/// Segments in the order of their names, and their rows.
fn rows_of<'a>(world: &World, table: &'a RecordBatch) -> Result<(Vec<&'a str>, Vec<Rows>)> {
    let (segments, arms) = (column::<StringArray>(table, "segment_id")?, column::<StringArray>(table, "arm")?);
    let (ads, propensities) = (column::<StringArray>(table, "ad_id")?, column::<Float64Array>(table, "propensity")?);
    let caps = optional_column::<Int64Array>(table, "frequency_cap")?;
    let multipliers = optional_column::<Float64Array>(table, "bid_multiplier")?;
    let known: HashMap<&str, usize> = world.ads.iter().enumerate().map(|(i, ad)| (ad.id.as_str(), i)).collect();
    let mut found: BTreeMap<&str, [BTreeMap<usize, Row>; 3]> = BTreeMap::new();
    let mut sums: BTreeMap<(&str, Arm), f64> = BTreeMap::new();
    for row in 0..table.num_rows() {
        let arm = Arm::ALL.into_iter().find(|arm| arm.as_str() == arms.value(row));
        let arm = arm.ok_or_else(|| Error::contract(format_args!("arm {} is none of champion, explore, holdout", arms.value(row))))?;
        let propensity = propensities.value(row);
        let sum = sums.entry((segments.value(row), arm)).or_default();
        *sum += propensity;
        if propensities.is_null(row) || !(0.0..=1.0).contains(&propensity) || *sum > 1.0 + 1e-6 {
            return Err(Error::contract(format_args!("the propensities of segment {} in arm {arm} are none", segments.value(row))));
        }
        let rows = found.entry(segments.value(row)).or_default();
        // An ad that this world does not have cannot be shown.
        let Some(&ad) = known.get(ads.value(row)).filter(|_| ads.value(row) != NO_AD) else { continue };
        let cap = caps.filter(|caps| caps.is_valid(row)).map(|caps| u32::try_from(caps.value(row)).unwrap_or(0));
        let multiplier = multipliers.filter(|of| of.is_valid(row)).map_or(1.0, |of| of.value(row));
        rows[arm as usize].insert(ad, Row { propensity, cap, multiplier });
    }
    Ok(found.into_iter().unzip())
}

/// The rank-1 segment of each pseudonym.
fn primary_segments(table: &RecordBatch) -> Result<HashMap<&str, &str>> {
    let (users, segments) = (column::<StringArray>(table, "user_id")?, column::<StringArray>(table, "segment_id")?);
    let ranks = column::<Int64Array>(table, "rank")?;
    Ok((0..table.num_rows()).filter(|&row| ranks.value(row) == 1).map(|row| (users.value(row), segments.value(row))).collect())
}

impl Policy for Server<'_> {
    fn version(&self) -> &str {
        &self.version
    }

    fn shares(&self) -> Shares {
        self.shares
    }

    fn arm(&self, user: usize) -> Arm {
        self.users[user].0
    }

    fn segment(&self, user: usize) -> Option<&str> {
        self.users[user].1.map(|segment| self.segments[segment])
    }

    fn probabilities(&self, visit: &Visit, arm: Arm, _open: &[bool], probabilities: &mut [f64]) {
        probabilities.fill(0.0);
        if let Some(segment) = self.users[visit.user as usize].1 {
            self.rows[segment][arm as usize].iter().for_each(|(ad, row)| probabilities[*ad] = row.propensity);
        }
    }

    fn cap(&self, user: usize, arm: Arm, ad: usize) -> Option<u32> {
        self.row(user, arm, ad)?.cap
    }

    fn multiplier(&self, user: usize, arm: Arm, ad: usize, _hour: usize) -> f64 {
        self.row(user, arm, ad).map_or(1.0, |row| row.multiplier)
    }

    /// The table's own multipliers stand; nothing is tried by the hour.
    fn tried(&self, _campaign: usize, _hour: usize) -> (f64, f64) {
        (1.0, 1.0)
    }
}

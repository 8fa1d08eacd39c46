//! The shop's own records as they stood at the end of a day: users, consents, identities, items, categories, campaigns, ads and the
//! suppression list. Each day folder holds the full state.

use super::logs::{linked_bots, money, path, region};
use super::words::CATEGORIES;
use super::world::{DAY, World, midnight, uid};
use super::write::{Cell, Columns, File, Kind, Table};
use crate::error::Result;
use chrono::{Days, NaiveDate};

pub const USERS: Columns = &[("uid", Kind::Text), ("region", Kind::Text), ("registered", Kind::Time)];

pub const CONSENTS: Columns =
    &[("uid", Kind::Text), ("profile_ok", Kind::Text), ("ads_ok", Kind::Text), ("measure_ok", Kind::Text), ("updated", Kind::Time)];

pub const IDENTITIES: Columns = &[("device_id", Kind::Text), ("uid", Kind::Text), ("linked", Kind::Time)];

const SUPPRESSIONS: Columns = &[("uid", Kind::Text), ("reason", Kind::Text), ("since", Kind::Time)];

const ITEMS: Columns = &[("sku", Kind::Text), ("cat", Kind::Text), ("title", Kind::Text), ("price", Kind::Float)];

const TAXONOMY: Columns =
    &[("cat", Kind::Text), ("parent", Kind::Text), ("name_zh", Kind::Text), ("name_en", Kind::Text), ("sensitive", Kind::Text)];

const CAMPAIGNS: Columns = &[
    ("campaign", Kind::Text),
    ("advertiser", Kind::Text),
    ("daily_budget", Kind::Float),
    ("target_roi", Kind::Float),
    ("target_cpa", Kind::Float),
    ("frequency_cap", Kind::Int),
    ("min_impressions", Kind::Int),
];

const ADS: Columns = &[
    ("ad_id", Kind::Text),
    ("campaign", Kind::Text),
    ("cat", Kind::Text),
    ("sku", Kind::Text),
    ("title", Kind::Text),
    ("bid", Kind::Float),
    ("bid_type", Kind::Text),
    ("first_day", Kind::Time),
    ("last_day", Kind::Time),
];

/// Every record table at the end of `date`.
pub fn day(world: &World, date: NaiveDate) -> Result<Vec<File>> {
    let end = midnight(date) + DAY;
    let (mut users, mut consents) = (Table::new(USERS)?, Table::new(CONSENTS)?);
    let (mut identities, mut suppressions) = (Table::new(IDENTITIES)?, Table::new(SUPPRESSIONS)?);
    for (i, user) in world.users.iter().enumerate().filter(|(_, user)| user.registered < end) {
        let uid = uid(i);
        users.push(&[(&uid).into(), region(i, user.region), Cell::Time(user.registered)])?;
        let withdrawn = user.withdraws.filter(|at| *at < end);
        let answer = |granted: bool| Cell::Text(if granted { "Y" } else { "N" });
        let profile = answer(user.consents[0] && withdrawn.is_none());
        let updated = Cell::Time(withdrawn.unwrap_or(user.registered));
        consents.push(&[(&uid).into(), profile, answer(user.consents[1]), answer(user.consents[2]), updated])?;
        for device in user.devices.iter().filter(|device| device.linked && device.since < end) {
            identities.push(&[(&device.id).into(), (&uid).into(), Cell::Time(device.since)])?;
        }
        if let Some(at) = user.suppressed.filter(|at| *at < end) {
            let reason = if i % 3 == 0 { "complaint" } else { "erasure" };
            suppressions.push(&[(&uid).into(), reason.into(), Cell::Time(at)])?;
        }
    }
    for (device, user) in linked_bots(world) {
        identities.push(&[(&device).into(), (&uid(user)).into(), Cell::Time(midnight(world.plan.start()))])?;
    }
    Ok(vec![
        users.finish(path("users", date))?,
        consents.finish(path("consents", date))?,
        identities.finish(path("identities", date))?,
        suppressions.finish(path("suppressions", date))?,
        items(world, date)?,
        taxonomy(date)?,
        campaigns(world, date)?,
        ads(world, date)?,
    ])
}

fn items(world: &World, date: NaiveDate) -> Result<File> {
    let mut table = Table::new(ITEMS)?;
    for (i, item) in world.items.iter().enumerate() {
        // A few were never priced.
        let price = if i % 200 == 117 { f64::NAN } else { item.price };
        table.push(&[(&item.sku).into(), CATEGORIES[item.category].id.into(), (&item.title).into(), price.into()])?;
    }
    table.finish(path("items", date))
}

fn taxonomy(date: NaiveDate) -> Result<File> {
    let mut table = Table::new(TAXONOMY)?;
    for category in CATEGORIES {
        let parent = category.parent.map(|parent| CATEGORIES[parent].id);
        let sensitive = if category.sensitive { "Y" } else { "N" };
        table.push(&[category.id.into(), parent.into(), category.zh.into(), category.en.into(), sensitive.into()])?;
    }
    table.finish(path("categories", date))
}

fn campaigns(world: &World, date: NaiveDate) -> Result<File> {
    let mut table = Table::new(CAMPAIGNS)?;
    for campaign in &world.campaigns {
        table.push(&[
            (&campaign.id).into(),
            (&campaign.advertiser).into(),
            money(campaign.daily_budget),
            campaign.target_roi.into(),
            campaign.target_cpa.into(),
            campaign.frequency_cap.map(i64::from).into(),
            campaign.min_impressions.into(),
        ])?;
    }
    table.finish(path("campaigns", date))
}

/// Ads are booked the day before they start.
fn ads(world: &World, date: NaiveDate) -> Result<File> {
    let mut table = Table::new(ADS)?;
    for ad in world.ads.iter().filter(|ad| ad.starts <= date + Days::new(1)) {
        let campaign = &world.campaigns[ad.campaign];
        table.push(&[
            (&ad.id).into(),
            (&campaign.id).into(),
            CATEGORIES[ad.category].id.into(),
            (&world.items[ad.item].sku).into(),
            (&ad.title).into(),
            money(ad.bid),
            if campaign.per_click { "CPC" } else { "CPM" }.into(),
            Cell::Time(midnight(ad.starts)),
            ad.ends.map_or(Cell::Null, |ends| Cell::Time(midnight(ends))),
        ])?;
    }
    table.finish(path("ads", date))
}

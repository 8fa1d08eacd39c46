//! One day of the shop's own logs, as messy as logs are: some rows arrive hours or days late, some come twice, some values are
//! missing or malformed, platforms are spelled as each client likes, and bots are among the visitors.
//!
//! A log's day folder holds what happened on that local day, whenever it arrived.

use super::people::{self, Action, Visit};
use super::serving::{ArmTruth, CampaignHour, Impression, Policy, serve};
use super::words::REGIONS;
use super::world::{Conversion, DAY, HOUR, ITEMS_PER_CATEGORY, SECOND, Stream, World, any_category, day_number, device_id, midnight, uid};
use super::write::{Cell, Columns, File, Kind, Table};
use crate::error::Result;
use crate::targeting::arms::Arm;
use chrono::NaiveDate;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp};
use std::fmt::Write;

pub const EVENTS: Columns = &[
    ("event_id", Kind::Id),
    ("ts", Kind::Time),
    ("recv_ts", Kind::Time),
    ("device_id", Kind::Text),
    ("uid", Kind::Text),
    ("action", Kind::Text),
    ("sku", Kind::Text),
    ("keyword", Kind::Text),
    ("price", Kind::Float),
    ("qty", Kind::Int),
    ("channel", Kind::Text),
    ("user_agent", Kind::Text),
];

pub const IMPRESSIONS: Columns = &[
    ("impression_id", Kind::Id),
    ("ts", Kind::Time),
    ("recv_ts", Kind::Time),
    ("device_id", Kind::Text),
    ("ad_id", Kind::Text),
    ("slot", Kind::Int),
    ("channel", Kind::Text),
    ("arm", Kind::Text),
    ("propensity", Kind::Float),
    ("policy_version", Kind::Text),
    ("segment_id", Kind::Text),
    ("charge", Kind::Float),
];

pub const CLICKS: Columns = &[
    ("click_id", Kind::Id),
    ("ts", Kind::Time),
    ("recv_ts", Kind::Time),
    ("impression_id", Kind::Id),
    ("device_id", Kind::Text),
    ("ad_id", Kind::Text),
    ("charge", Kind::Float),
];

pub const CONVERSIONS: Columns =
    &[("order_id", Kind::Id), ("ts", Kind::Time), ("recv_ts", Kind::Time), ("impression_id", Kind::Id), ("amount", Kind::Float)];

pub const BID_HOURS: Columns = &[
    ("campaign", Kind::Text),
    ("hour_ts", Kind::Time),
    ("multiplier", Kind::Float),
    ("propensity", Kind::Float),
    ("auctions", Kind::Int),
    ("wins", Kind::Int),
    ("spend", Kind::Float),
    ("clicks", Kind::Int),
    ("orders", Kind::Int),
    ("order_value", Kind::Float),
    ("budget_left", Kind::Float),
];

const TRUTH: Columns = &[("impression_id", Kind::Id), ("p_click", Kind::Float), ("p_conversion", Kind::Float)];

const TRUE_ARMS: Columns = &[
    ("arm", Kind::Text),
    ("policy_version", Kind::Text),
    ("impressions", Kind::Int),
    ("clicks", Kind::Int),
    ("shown_ctr", Kind::Float),
    ("policy_ctr", Kind::Float),
];

/// What a day leaves.
pub struct Day {
    pub date: NaiveDate,
    pub files: Vec<File>,
    /// Orders that the day's ad clicks lead to, on this day or later.
    pub conversions: Vec<Conversion>,
    pub hours: Vec<CampaignHour>,
    pub arms: [ArmTruth; 3],
}

/// The day's logs but for those that hold orders.
pub fn day(world: &World, date: NaiveDate, policy: &impl Policy) -> Result<Day> {
    let mut files = Vec::new();
    let mut visits = Vec::new();
    files.push(events(world, date, &mut visits)?);
    visits.sort_by_key(|visit| (visit.at, visit.user, visit.index));
    let (mut impressions, mut clicks, mut truth) = (Log::new(IMPRESSIONS)?, Log::new(CLICKS)?, Table::new(TRUTH)?);
    let mut rng = world.dice(Stream::AdLogs, [day_number(date), 0, 0]);
    let mut conversions = Vec::new();
    let (mut impression_id, mut click_id) = (String::new(), String::new());
    let stamp = date.format("%Y%m%d").to_string();
    let ledger = serve(world, date, &visits, policy, |shown| {
        set(&mut impression_id, format_args!("i{stamp}{:09}", shown.number));
        truth.push(&[(&impression_id).into(), shown.p_click.into(), shown.p_conversion.into()])?;
        impression(world, policy, shown, &impression_id, &mut impressions, &mut rng)?;
        if let Some(click) = &shown.click {
            set(&mut click_id, format_args!("k{stamp}{:09}", shown.number));
            let device = &world.users[shown.visit.user as usize].devices[usize::from(shown.visit.device)];
            let row = [
                (&click_id).into(),
                Cell::Null,
                Cell::Null,
                (&impression_id).into(),
                (&device.id).into(),
                (&world.ads[shown.ad].id).into(),
                money(click.charge),
            ];
            clicks.push(click.at, row, &mut rng)?;
            conversions.extend(world.conversion(&impression_id, shown.visit.user as usize, shown.ad, click.at));
        }
        Ok(())
    })?;
    files.push(impressions.finish(path("ad_impressions", date))?);
    files.push(clicks.finish(path("ad_clicks", date))?);
    files.push(truth.finish(path("truth/impressions", date))?);
    files.push(true_arms(policy, &ledger.arms, date)?);
    Ok(Day { date, files, conversions, hours: ledger.hours, arms: ledger.arms })
}

/// The day's logs of orders and of campaign hours, given every order that falls on it.
pub fn orders(world: &World, date: NaiveDate, hours: &[CampaignHour], conversions: &[Conversion]) -> Result<Vec<File>> {
    let start = midnight(date);
    let mut todays: Vec<&Conversion> = conversions.iter().filter(|order| (start..start + DAY).contains(&order.at)).collect();
    todays.sort_by(|a, b| (a.at, &a.impression).cmp(&(b.at, &b.impression)));
    let mut log = Log::new(CONVERSIONS)?;
    let mut rng = world.dice(Stream::AdLogs, [day_number(date), 1, 0]);
    for order in &todays {
        let order_id = order.impression.replacen('i', "o", 1);
        let row = [(&order_id).into(), Cell::Null, Cell::Null, (&order.impression).into(), order.amount.into()];
        log.push(order.at, row, &mut rng)?;
    }
    let mut table = Table::new(BID_HOURS)?;
    for of in hours {
        let begins = start + of.hour as i64 * HOUR;
        let mine = || todays.iter().filter(|order| order.campaign == of.campaign && (begins..begins + HOUR).contains(&order.at));
        // Cents add up exactly.
        let value: i64 = mine().map(|order| (order.amount * 100.0).round() as i64).sum();
        table.push(&[
            (&world.campaigns[of.campaign].id).into(),
            Cell::Time(begins),
            of.multiplier.into(),
            of.propensity.into(),
            of.auctions.into(),
            of.wins.into(),
            money(of.spend),
            of.clicks.into(),
            (mine().count() as i64).into(),
            (value as f64 / 100.0).into(),
            money(of.budget_left),
        ])?;
    }
    Ok(vec![log.finish(path("ad_conversions", date))?, table.finish(path("bid_hours", date))?])
}

pub fn path(table: &str, date: NaiveDate) -> String {
    format!("{table}/dt={date}/part-0.parquet")
}

/// Micro-currency as a number of the raw tables.
pub fn money(micros: i64) -> Cell<'static> {
    Cell::Float(micros as f64 / 1e6)
}

fn set(text: &mut String, value: std::fmt::Arguments<'_>) {
    text.clear();
    text.write_fmt(value).expect("a string takes any text");
}

// ---------------------------------------------------------------------------------------------------------------------- messiness

/// A log table: its second and third columns are when a row happened and when it arrived.
struct Log {
    table: Table,
}

/// Share of rows that are delivered twice.
const DUPLICATES: f64 = 0.005;

impl Log {
    fn new(columns: Columns) -> Result<Self> {
        Ok(Self { table: Table::new(columns)? })
    }

    fn push<const N: usize>(&mut self, at: i64, mut row: [Cell<'_>; N], rng: &mut ChaCha8Rng) -> Result<()> {
        let arrived = at + lateness(rng);
        (row[1], row[2]) = (Cell::Time(at), Cell::Time(arrived));
        self.table.push(&row)?;
        if rng.random_bool(DUPLICATES) {
            row[2] = Cell::Time(arrived + rng.random_range(SECOND..HOUR));
            self.table.push(&row)?;
        }
        Ok(())
    }

    fn finish(self, path: String) -> Result<File> {
        self.table.finish(path)
    }
}

/// Most rows arrive within seconds, some within hours, a few after more than a day.
fn lateness(rng: &mut ChaCha8Rng) -> i64 {
    let mean = match rng.random::<f64>() {
        u if u < 0.97 => 5 * SECOND,
        u if u < 0.997 => 2 * HOUR,
        _ => return rng.random_range(DAY..3 * DAY),
    };
    (Exp::new(1.0).expect("a positive rate").sample(rng) * mean as f64) as i64
}

/// How the clients of a platform call it.
fn channel(platform: usize, rng: &mut ChaCha8Rng) -> Cell<'static> {
    const SPELLINGS: [[&str; 4]; 3] =
        [["web", "WEB", "h5", " pc "], ["app", "App", "ios", "android"], ["mini-program", "miniprogram", "mini_program", "小程序"]];
    match rng.random::<f64>() {
        u if u < 0.85 => Cell::Text(SPELLINGS[platform][0]),
        u if u < 0.997 => Cell::Text(SPELLINGS[platform][rng.random_range(1..4)]),
        _ => Cell::Null,
    }
}

fn user_agent(platform: usize) -> &'static str {
    ["Mozilla/5.0 (Windows NT 10.0; Win64; x64)", "ShopApp/8.2 (Android 14)", "MicroMessenger/8.0 MiniProgramEnv/android"][platform]
}

// ------------------------------------------------------------------------------------------------------------------------- events

/// The event log of the day. Rows stand as devices upload them: each user's together.
fn events(world: &World, date: NaiveDate, all_visits: &mut Vec<Visit>) -> Result<File> {
    let mut log = EventLog {
        world,
        log: Log::new(EVENTS)?,
        rng: world.dice(Stream::Events, [day_number(date), 0, 0]),
        stamp: date.format("%Y%m%d").to_string(),
        number: 0,
        event_id: String::new(),
        keyword: String::new(),
    };
    let (mut visits, mut events) = (Vec::new(), Vec::new());
    for user in 0..world.users.len() {
        visits.clear();
        events.clear();
        people::day(world, user, date, &mut visits, &mut events);
        let uid = uid(user);
        for event in &events {
            let visit = &visits[event.visit];
            let device = &world.users[user].devices[usize::from(visit.device)];
            let uid = if visit.signed_in { Cell::Text(&uid) } else { Cell::Null };
            log.push(event.at, &device.id, uid, device.platform, user_agent(device.platform), event.action, event.item, event.query)?;
        }
        all_visits.append(&mut visits);
    }
    for bot in 0..bots(world) {
        log.bot(bot, date)?;
    }
    log.log.finish(path("events", date))
}

struct EventLog<'a> {
    world: &'a World,
    log: Log,
    rng: ChaCha8Rng,
    stamp: String,
    number: u64,
    event_id: String,
    keyword: String,
}

impl EventLog<'_> {
    fn push(
        &mut self,
        at: i64,
        device: &str,
        uid: Cell<'_>,
        platform: usize,
        user_agent: &str,
        action: Action,
        item: Option<usize>,
        query: Option<&str>,
    ) -> Result<()> {
        let rng = &mut self.rng;
        set(&mut self.event_id, format_args!("e{}{:09}", self.stamp, self.number));
        self.number += 1;
        let item = item.map(|item| &self.world.items[item]);
        let sku = match item {
            Some(_) if rng.random_bool(0.002) => Cell::Text("sku_gone"),
            Some(item) => Cell::Text(&item.sku),
            None => Cell::Null,
        };
        let price = match (item, rng.random::<f64>()) {
            (None, _) => Cell::Null,
            (_, u) if u < 0.004 => Cell::Float(-1.0),
            (_, u) if u < 0.007 => Cell::Float(f64::NAN),
            (_, u) if u < 0.01 => Cell::Null,
            (Some(item), _) => Cell::Float(item.price),
        };
        let action_name = match (action, rng.random::<f64>()) {
            (_, u) if u < 0.003 => "hover",
            (Action::View, u) if u < 0.05 => "VIEW",
            (Action::View, _) => "view",
            (Action::Search, _) => "search",
            (Action::Click, _) => "click",
            (Action::Cart, _) => "add_cart",
            (Action::Purchase, _) => "order",
        };
        let quantity = (action == Action::Cart || action == Action::Purchase).then(|| 1 + i64::from(rng.random_bool(0.1)));
        if let Some(query) = query {
            match rng.random::<f64>() {
                u if u < 0.06 => set(&mut self.keyword, format_args!("  {query}")),
                u if u < 0.12 => set(&mut self.keyword, format_args!("{query} ")),
                u if u < 0.2 => self.keyword = query.to_uppercase(),
                _ => set(&mut self.keyword, format_args!("{query}")),
            }
        }
        let keyword = query.map_or(Cell::Null, |_| Cell::Text(&self.keyword));
        let row = [
            (&self.event_id).into(),
            Cell::Null,
            Cell::Null,
            device.into(),
            uid,
            action_name.into(),
            sku,
            keyword,
            price,
            quantity.into(),
            channel(platform, rng),
            user_agent.into(),
        ];
        self.log.push(at, row, rng)
    }

    /// A bot's day: pages viewed at an even pace.
    fn bot(&mut self, bot: u64, date: NaiveDate) -> Result<()> {
        let mut rng = self.world.dice(Stream::Bots, [bot, day_number(date), 0]);
        let device = bot_device(self.world, bot);
        let agent = ["Mozilla/5.0 (compatible; PriceSpider/2.1)", user_agent(0), "python-requests/2.32 crawler"][bot as usize % 3];
        let views = rng.random_range(1500..2500);
        for i in 0..views {
            let item = any_category(&mut rng) * ITEMS_PER_CATEGORY + rng.random_range(0..ITEMS_PER_CATEGORY);
            self.push(midnight(date) + i * (DAY / views), &device, Cell::Null, 0, agent, Action::View, Some(item), None)?;
        }
        Ok(())
    }
}

fn bots(world: &World) -> u64 {
    (2 + world.plan.users / 10_000).min(12)
}

fn bot_device(world: &World, bot: u64) -> String {
    device_id(&world.plan, u64::MAX, bot)
}

/// Bots that hide behind a browser's name use a customer's account: device and user.
pub fn linked_bots(world: &World) -> impl Iterator<Item = (String, usize)> {
    (0..bots(world)).filter(|bot| bot % 3 == 1).map(|bot| (bot_device(world, bot), bot as usize % world.users.len()))
}

// ---------------------------------------------------------------------------------------------------------------------------- ads

fn impression(
    world: &World,
    policy: &impl Policy,
    shown: &Impression<'_>,
    impression_id: &str,
    log: &mut Log,
    rng: &mut ChaCha8Rng,
) -> Result<()> {
    let user = shown.visit.user as usize;
    let device = &world.users[user].devices[usize::from(shown.visit.device)];
    // A slot that the page forgot to number.
    let slot = if rng.random_bool(0.001) { 0 } else { shown.position as i64 };
    let row = [
        impression_id.into(),
        Cell::Null,
        Cell::Null,
        (&device.id).into(),
        (&world.ads[shown.ad].id).into(),
        slot.into(),
        channel(device.platform, rng),
        shown.arm.as_str().into(),
        shown.propensity.into(),
        policy.version().into(),
        policy.segment(user).into(),
        money(shown.charge),
    ];
    log.push(shown.at, row, rng)
}

fn true_arms(policy: &impl Policy, arms: &[ArmTruth; 3], date: NaiveDate) -> Result<File> {
    let mut table = Table::new(TRUE_ARMS)?;
    for (name, arm) in Arm::ALL.into_iter().zip(arms) {
        table.push(&[
            name.as_str().into(),
            policy.version().into(),
            (arm.impressions as i64).into(),
            (arm.clicks as i64).into(),
            arm.shown_ctr().into(),
            arm.policy_ctr().into(),
        ])?;
    }
    table.finish(path("truth/arms", date))
}

/// A region as the registration form let people write it.
pub fn region(user: usize, region: usize) -> Cell<'static> {
    match user % 50 {
        0 => Cell::Null,
        1 => Cell::Text(""),
        _ => Cell::Text(REGIONS[region]),
    }
}

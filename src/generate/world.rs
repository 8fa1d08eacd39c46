//! The world behind the shop: users with latent interests, items, ads of campaigns, and the true probabilities of clicks and
//! conversions. All of it follows from the plan: each draw comes from a generator seeded by (seed, what, whose), so that nothing
//! depends on the order or the number of threads, and a later day needs no state.

use super::Plan;
use super::words::{ADJECTIVES, CATEGORIES, REGIONS, path, root};
use chrono::{DateTime, Datelike, Days, NaiveDate};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp, LogNormal, Normal};
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub struct World {
    pub plan: Plan,
    pub users: Vec<User>,
    /// [`ITEMS_PER_CATEGORY`] of each category, in the order of the categories; the most popular first.
    pub items: Vec<Item>,
    pub campaigns: Vec<Campaign>,
    pub ads: Vec<Ad>,
    /// Intercepts of the two logits, solved so that the launch policy has [`CTR`] and [`CVR`].
    pub click_base: f64,
    pub conversion_base: f64,
}

/// What the launch policy reaches on average.
pub const CTR: f64 = 0.025;
pub const CVR: f64 = 0.035;

/// A shop's zone is Asia/Shanghai, which has had no daylight saving since 1991.
const ZONE: i64 = 8 * HOUR;
pub const SECOND: i64 = 1_000_000;
pub const HOUR: i64 = 3600 * SECOND;
pub const DAY: i64 = 24 * HOUR;

pub const ITEMS_PER_CATEGORY: usize = 40;
const CAMPAIGNS: usize = 24;
const ADS: usize = 84;
pub const PLATFORMS: [&str; 3] = ["web", "app", "mini-program"];

/// What is known of a user to nobody but the truth folder, and what the shop's tables say.
pub struct User {
    /// Categories and weights that sum to 1, the heaviest first; 2 to 4 of them.
    pub interests: Vec<(usize, f64)>,
    /// 0 = buys the dearest, 1 = the cheapest.
    pub frugality: f64,
    /// Mean sessions a day.
    pub sessions: f64,
    /// Added to every click logit of the user.
    pub click_bias: f64,
    /// Share of searches in English.
    pub english: f64,
    pub region: usize,
    pub registered: i64,
    pub devices: Vec<Device>,
    /// profile, target, measure.
    pub consents: [bool; 3],
    /// Withdraws the consent to `profile` then.
    pub withdraws: Option<i64>,
    /// Asks to be erased then.
    pub suppressed: Option<i64>,
}

#[derive(Clone)]
pub struct Device {
    pub id: String,
    pub platform: usize,
    /// In use since then.
    pub since: i64,
    /// Whether its owner ever signs in on it; else nobody can tell whose it is.
    pub linked: bool,
}

pub struct Item {
    pub sku: String,
    pub category: usize,
    pub title: String,
    /// Place of the price within the category: 0 = the cheapest, 1 = the dearest.
    pub level: f64,
    /// CNY.
    pub price: f64,
}

pub struct Campaign {
    pub id: String,
    pub advertiser: String,
    pub per_click: bool,
    /// Micro-CNY.
    pub daily_budget: i64,
    pub frequency_cap: Option<u32>,
    pub min_impressions: Option<i64>,
    pub target_roi: Option<f64>,
    pub target_cpa: Option<f64>,
    /// The most that one impression of it can cost, micro-CNY.
    pub dearest: i64,
}

pub struct Ad {
    pub id: String,
    pub campaign: usize,
    pub category: usize,
    /// The item it leads to.
    pub item: usize,
    pub title: String,
    /// Micro-CNY per click, or per thousand impressions.
    pub bid: i64,
    /// Added to every click logit of the ad.
    pub quality: f64,
    /// Added to every conversion logit of the ad.
    pub persuasion: f64,
    /// First and last day.
    pub starts: NaiveDate,
    pub ends: Option<NaiveDate>,
}

/// An order that an ad led to.
#[derive(Clone, Debug)]
pub struct Conversion {
    pub impression: String,
    pub campaign: usize,
    pub at: i64,
    /// CNY.
    pub amount: f64,
}

/// What a random draw is for; part of its seed.
#[derive(Clone, Copy)]
pub enum Stream {
    User,
    Item,
    Campaign,
    Ad,
    Device,
    Visits,
    Slots,
    Multiplier,
    Conversion,
    Events,
    AdLogs,
    Bots,
}

/// A generator for one purpose and one entity.
pub fn dice(seed: u64, stream: Stream, of: [u64; 3]) -> ChaCha8Rng {
    let mut bytes = [0; 32];
    for (chunk, number) in bytes.chunks_exact_mut(8).zip([stream as u64, of[0], of[1], of[2]]) {
        chunk.copy_from_slice(&number.to_le_bytes());
    }
    ChaCha8Rng::seed_from_u64(xxh3_64_with_seed(&bytes, seed))
}

/// The first instant of a local day.
pub fn midnight(date: NaiveDate) -> i64 {
    i64::from(date.num_days_from_ce() - NaiveDate::default().num_days_from_ce()) * DAY - ZONE
}

/// The local day of an instant.
pub fn local_day(at: i64) -> NaiveDate {
    DateTime::from_timestamp_micros(at + ZONE).expect("an instant of a plan's days").date_naive()
}

pub fn day_number(date: NaiveDate) -> u64 {
    date.num_days_from_ce().unsigned_abs().into()
}

impl World {
    /// Draws everything but the intercepts.
    pub fn draw(plan: &Plan) -> Self {
        let items = (0..CATEGORIES.len() * ITEMS_PER_CATEGORY).map(|i| item(plan, i)).collect::<Vec<_>>();
        let mut campaigns: Vec<_> = (0..CAMPAIGNS).map(|i| campaign(plan, i)).collect();
        let ads: Vec<_> = (0..ADS).map(|i| ad(plan, i, &campaigns, &items)).collect();
        for ad in &ads {
            let campaign = &mut campaigns[ad.campaign];
            // Hourly multipliers reach 1.2.
            let price = if campaign.per_click { ad.bid * 6 / 5 } else { ad.bid * 6 / 5 / 1000 };
            campaign.dearest = campaign.dearest.max(price);
        }
        let users = (0..plan.users as usize).map(|i| user(plan, i)).collect();
        Self { plan: plan.clone(), users, items, campaigns, ads, click_base: 0.0, conversion_base: 0.0 }
    }

    pub fn dice(&self, stream: Stream, of: [u64; 3]) -> ChaCha8Rng {
        dice(self.plan.seed, stream, of)
    }

    /// The true probability of a click on `ad` by `user`, shown at `position` (1 to 4).
    pub fn p_click(&self, user: usize, ad: usize, position: usize, platform: usize, hour: usize) -> f64 {
        sigmoid(self.click_base + self.click_score(user, ad) + context_score(position, platform, hour))
    }

    /// The part of the click logit that is the pair's own.
    pub fn click_score(&self, user: usize, ad: usize) -> f64 {
        let (user, ad) = (&self.users[user], &self.ads[ad]);
        2.3 * user.affinity(ad.category) + user.click_bias + ad.quality + 0.9 * self.fit(user, ad)
    }

    /// The true probability that a click becomes an order.
    pub fn p_conversion(&self, user: usize, ad: usize) -> f64 {
        sigmoid(self.conversion_base + self.conversion_score(user, ad))
    }

    pub fn conversion_score(&self, user: usize, ad: usize) -> f64 {
        let (user, ad) = (&self.users[user], &self.ads[ad]);
        user.affinity(ad.category) + ad.persuasion + 1.5 * self.fit(user, ad)
    }

    /// How well the ad's price suits the user: at most 1/3, zero on average.
    fn fit(&self, user: &User, ad: &Ad) -> f64 {
        1.0 / 3.0 - (1.0 - user.frugality - self.items[ad.item].level).abs()
    }

    /// The order that a click leads to, if any: decided by the impression's id, so that a later day can work it out again.
    pub fn conversion(&self, impression: &str, user: usize, ad: usize, clicked_at: i64) -> Option<Conversion> {
        let mut rng = self.dice(Stream::Conversion, [xxh3_64_with_seed(impression.as_bytes(), 0), 0, 0]);
        if !rng.random_bool(self.p_conversion(user, ad)) {
            return None;
        }
        let hours = Exp::new(1.0 / MEAN_CONVERSION_HOURS).expect("a positive rate").sample(&mut rng);
        let delay = ((hours * HOUR as f64) as i64 + 60 * SECOND).min(CONVERSION_DAYS * DAY);
        let noise: f64 = LogNormal::new(0.0, 0.15).expect("a positive deviation").sample(&mut rng);
        let amount = (self.items[self.ads[ad].item].price * noise * 100.0).round().max(1.0) / 100.0;
        Some(Conversion { impression: impression.to_owned(), campaign: self.ads[ad].campaign, at: clicked_at + delay, amount })
    }

    /// An item of a category: popular ones more often, and near what the user likes to pay.
    pub fn pick_item(&self, category: usize, frugality: f64, rng: &mut ChaCha8Rng) -> usize {
        let mut one = || {
            let u: f64 = rng.random();
            // Density falls with the rank.
            category * ITEMS_PER_CATEGORY + ((u * u) * ITEMS_PER_CATEGORY as f64) as usize
        };
        let (a, b) = (one(), one());
        let distance = |item: usize| (1.0 - frugality - self.items[item].level).abs();
        if distance(a) <= distance(b) { a } else { b }
    }

    /// Whether the ad may be shown on the day.
    pub fn runs(&self, ad: usize, date: NaiveDate) -> bool {
        let ad = &self.ads[ad];
        ad.starts <= date && ad.ends.is_none_or(|ends| date <= ends)
    }
}

/// Orders follow clicks within hours to days.
const MEAN_CONVERSION_HOURS: f64 = 10.0;
pub const CONVERSION_DAYS: i64 = 7;

impl User {
    /// 0 to 1; a relative of what they care for draws them a little.
    pub fn affinity(&self, category: usize) -> f64 {
        let share = |&(interest, weight): &(usize, f64)| match () {
            () if interest == category => weight.sqrt(),
            () if root(interest) == root(category) => 0.3 * weight.sqrt(),
            () => 0.0,
        };
        self.interests.iter().map(share).fold(0.0, f64::max)
    }
}

/// The part of the click logit that the place and moment decide.
pub fn context_score(position: usize, platform: usize, hour: usize) -> f64 {
    const POSITION: [f64; 4] = [0.4, 0.1, -0.15, -0.35];
    const PLATFORM: [f64; 3] = [-0.1, 0.15, 0.0];
    let evening = if (19..23).contains(&hour) { 0.12 } else { -0.03 };
    POSITION[position - 1] + PLATFORM[platform] + evening
}

pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// A category by popularity.
pub fn any_category(rng: &mut ChaCha8Rng) -> usize {
    let total: f64 = CATEGORIES.iter().map(|category| category.popularity).sum();
    let mut left = rng.random::<f64>() * total;
    CATEGORIES
        .iter()
        .position(|category| {
            left -= category.popularity;
            left < 0.0
        })
        .unwrap_or(0)
}

// ----------------------------------------------------------------------------------------------------------------------- drawing

pub fn uid(user: usize) -> String {
    format!("u_{user:07}")
}

fn user(plan: &Plan, i: usize) -> User {
    let mut rng = dice(plan.seed, Stream::User, [i as u64, 0, 0]);
    let rng = &mut rng;
    let (start, end) = (midnight(plan.start()), midnight(plan.until));
    let horizon = end + 30 * DAY;
    let registered = match rng.random_bool(0.92) {
        true => start - rng.random_range(DAY..700 * DAY),
        false => rng.random_range(start..horizon),
    };
    let later = |rng: &mut ChaCha8Rng, chance: f64| rng.random_bool(chance).then(|| rng.random_range(start - 30 * DAY..horizon));
    let spread = 0.8_f64;
    // Of mean 1, cut where nobody shops that much.
    let activity: f64 = LogNormal::new(-spread * spread / 2.0, spread).expect("a positive deviation").sample(rng);
    User {
        interests: interests(rng),
        frugality: rng.random(),
        sessions: SESSIONS_PER_DAY * activity.min(8.0),
        click_bias: normal(rng, 0.45),
        english: if rng.random_bool(0.15) { 0.8 } else { 0.1 },
        region: rng.random_range(0..REGIONS.len()),
        registered,
        devices: devices(plan, i, registered, horizon, rng),
        consents: [rng.random_bool(0.97), rng.random_bool(0.97), rng.random_bool(0.98)],
        withdraws: later(rng, 0.01).filter(|at| *at > registered),
        suppressed: later(rng, 0.01).filter(|at| *at > registered),
    }
}

/// Mean of [`User::sessions`].
const SESSIONS_PER_DAY: f64 = 1.1;

fn interests(rng: &mut ChaCha8Rng) -> Vec<(usize, f64)> {
    let wanted = rng.random_range(2..=4);
    let mut chosen: Vec<usize> = vec![any_category(rng)];
    while chosen.len() < wanted {
        let next = match rng.random_bool(0.2) {
            // Interests come in families.
            true => {
                let family: Vec<usize> = (0..CATEGORIES.len()).filter(|&of| root(of) == root(chosen[0])).collect();
                family[rng.random_range(0..family.len())]
            }
            false => any_category(rng),
        };
        if !chosen.contains(&next) {
            chosen.push(next);
        }
    }
    let weight = LogNormal::new(0.0, 0.6).expect("a positive deviation");
    let mut weights: Vec<f64> = chosen.iter().map(|_| weight.sample(rng)).collect();
    weights.sort_by(|a, b| b.total_cmp(a));
    let total: f64 = weights.iter().sum();
    chosen.into_iter().zip(weights.into_iter().map(|weight| weight / total)).collect()
}

/// One to three devices that sign in, and now and then one that never does.
fn devices(plan: &Plan, user: usize, registered: i64, horizon: i64, rng: &mut ChaCha8Rng) -> Vec<Device> {
    let signed_in = 1 + usize::from(rng.random_bool(0.5)) + usize::from(rng.random_bool(0.2));
    let all = signed_in + usize::from(rng.random_bool(0.06));
    let favourite = rng.random_range(0..PLATFORMS.len());
    let one = |k: usize| Device {
        id: device_id(plan, user as u64, k as u64),
        platform: (favourite + k) % PLATFORMS.len(),
        since: if k == 0 { registered } else { rng.random_range(registered..horizon.max(registered + DAY)) },
        linked: k < signed_in,
    };
    (0..all).map(one).collect()
}

pub fn device_id(plan: &Plan, owner: u64, number: u64) -> String {
    format!("d_{:016x}", dice(plan.seed, Stream::Device, [owner, number, 0]).random::<u64>())
}

fn item(plan: &Plan, i: usize) -> Item {
    let mut rng = dice(plan.seed, Stream::Item, [i as u64, 0, 0]);
    let category = i / ITEMS_PER_CATEGORY;
    let level: f64 = rng.random();
    let price = CATEGORIES[category].price * (1.4 * (level - 0.5)).exp();
    Item { sku: format!("sku_{:05}", i + 1), category, title: title(category, &mut rng), level, price: (price * 100.0).round() / 100.0 }
}

fn title(category: usize, rng: &mut ChaCha8Rng) -> String {
    let (zh, en) = ADJECTIVES[rng.random_range(0..ADJECTIVES.len())];
    let category = &CATEGORIES[category];
    match rng.random_bool(0.7) {
        true => {
            let words = [&[category.zh], category.zh_words].concat();
            format!("{zh}{}", words[rng.random_range(0..words.len())])
        }
        false => {
            let words = [&[category.en], category.en_words].concat();
            format!("{en} {}", words[rng.random_range(0..words.len())])
        }
    }
}

fn campaign(plan: &Plan, i: usize) -> Campaign {
    let mut rng = dice(plan.seed, Stream::Campaign, [i as u64, 0, 0]);
    // What a campaign spends on a day when all are shown alike: about 7 impressions a user, 0.02 CNY each.
    let expected = plan.users as f64 * 7.0 / CAMPAIGNS as f64 * 0.02;
    // A third cannot afford its day and is exhausted before the evening.
    let ease = if i % 3 == 1 { rng.random_range(0.3..0.8) } else { rng.random_range(3.0..8.0) };
    let cap = [None, Some(2), Some(3), Some(5), Some(8)][rng.random_range(0..5)];
    Campaign {
        id: format!("camp_{:02}", i + 1),
        advertiser: format!("adv_{:02}", i / 2 + 1),
        per_click: rng.random_bool(0.75),
        daily_budget: (expected * ease).max(1.0).round() as i64 * 1_000_000,
        frequency_cap: cap,
        min_impressions: rng.random_bool(0.2).then_some((plan.users as f64 * 0.05) as i64),
        target_roi: rng.random_bool(0.3).then(|| f64::from(rng.random_range(20..60_u32)) / 10.0),
        target_cpa: rng.random_bool(0.3).then(|| f64::from(rng.random_range(20..80_u32))),
        dearest: 0,
    }
}

fn ad(plan: &Plan, i: usize, campaigns: &[Campaign], items: &[Item]) -> Ad {
    let mut rng = dice(plan.seed, Stream::Ad, [i as u64, 0, 0]);
    let rng = &mut rng;
    let campaign = i % campaigns.len();
    // A campaign is about one family of categories; its ads take turns in it.
    let roots: Vec<usize> = (0..CATEGORIES.len()).filter(|&of| root(of) == of).collect();
    let family: Vec<usize> = (0..CATEGORIES.len()).filter(|&of| root(of) == roots[campaign % roots.len()]).collect();
    let category = family[(i / campaigns.len() + campaign / roots.len() * 2) % family.len()];
    let item = category * ITEMS_PER_CATEGORY + rng.random_range(0..ITEMS_PER_CATEGORY);
    let noise: f64 = LogNormal::new(0.0, 0.35).expect("a positive deviation").sample(rng);
    let bid = if campaigns[campaign].per_click { 0.8 } else { 20.0 } * noise;
    let (first, last) = (plan.start(), plan.until);
    let middle = first + Days::new(plan.days / 2);
    let (starts, ends) = match rng.random_range(0..100) {
        0..60 => (first - Days::new(rng.random_range(1..90)), None),
        60..72 => (first - Days::new(30), Some(middle + Days::new(rng.random_range(0..=plan.days / 3)))),
        72..84 => (middle - Days::new(rng.random_range(0..=plan.days / 3)), None),
        84..92 => (last - Days::new(rng.random_range(0..3)), None),
        _ => (last + Days::new(rng.random_range(1..10)), None),
    };
    Ad {
        id: format!("ad_{:03}", i + 1),
        campaign,
        category,
        title: format!("{} {}", title(category, rng), items[item].title),
        item,
        bid: (bid * 100.0).round().max(1.0) as i64 * 10_000,
        quality: normal(rng, 0.3),
        persuasion: normal(rng, 0.3),
        starts,
        ends,
    }
}

fn normal(rng: &mut ChaCha8Rng, deviation: f64) -> f64 {
    Normal::new(0.0, deviation).expect("a positive deviation").sample(rng)
}

/// How near two categories are, as the shop can see it: 1 the same, 1/2 one family.
pub fn relevance(a: usize, b: usize) -> f64 {
    match () {
        () if a == b => 1.0,
        () if path(a).any(|of| of == root(b)) => 0.5,
        () => 0.0,
    }
}

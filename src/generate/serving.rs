//! Ads for the visits of one day, in order of time: who is shown what, what it costs and whether it is clicked.
//!
//! Every policy gives the exact probability with which it shows each ad in a slot. Slots are drawn one by one and
//! independently; frequency caps count a user's day, budgets a campaign's day within an arm, so that arms do not eat each other's
//! money (arXiv 2012.08724). A slot uses the same random numbers whatever the policy.

use super::people::Visit;
use super::words::CATEGORIES;
use super::world::{CTR, CVR, SECOND, Stream, World, day_number, relevance, sigmoid};
use super::{people, world};
use crate::error::Result;
use crate::targeting::arms::{Arm, Shares, arm_of};
use chrono::{Days, NaiveDate};
use rand::Rng;
use std::collections::HashMap;

/// Ads on a page, at positions 1 to 4.
pub const SLOTS: usize = 4;

/// Who decides what is shown.
pub trait Policy {
    fn version(&self) -> &str;
    /// Share of the users, and of each budget, in each arm.
    fn shares(&self) -> Shares;
    fn arm(&self, user: usize) -> Arm;
    fn segment(&self, user: usize) -> Option<&str>;
    /// Fills in the probability of each ad for one slot; what is missing to 1 is no ad. `open` are the ads that may be shown.
    fn probabilities(&self, visit: &Visit, arm: Arm, open: &[bool], probabilities: &mut [f64]);
    /// How often a user may see the ad in a day.
    fn cap(&self, user: usize, arm: Arm, ad: usize) -> Option<u32>;
    /// What the policy multiplies the ad's bid with.
    fn multiplier(&self, user: usize, arm: Arm, ad: usize, hour: usize) -> f64;
    /// The multiplier tried on a campaign in an hour and the probability of trying it.
    fn tried(&self, campaign: usize, hour: usize) -> (f64, f64);
}

/// One ad shown.
pub struct Impression<'a> {
    /// Running number of the day.
    pub number: u64,
    pub visit: &'a Visit,
    pub at: i64,
    pub ad: usize,
    pub arm: Arm,
    pub position: usize,
    pub propensity: f64,
    /// Micro-CNY for the impression itself.
    pub charge: i64,
    pub p_click: f64,
    pub p_conversion: f64,
    pub click: Option<Click>,
}

pub struct Click {
    pub at: i64,
    /// Micro-CNY.
    pub charge: i64,
}

/// What a day came to.
pub struct Ledger {
    pub hours: Vec<CampaignHour>,
    pub arms: [ArmTruth; 3],
}

#[derive(Clone, Default)]
pub struct CampaignHour {
    pub campaign: usize,
    pub hour: usize,
    pub multiplier: f64,
    pub propensity: f64,
    /// Slots of the hour, when the campaign has a running ad.
    pub auctions: i64,
    pub wins: i64,
    pub clicks: i64,
    /// Micro-CNY.
    pub spend: i64,
    /// Of the day's budget, at the end of the hour.
    pub budget_left: i64,
}

/// The truth about one arm on one day.
#[derive(Clone, Copy, Debug, Default)]
pub struct ArmTruth {
    pub impressions: u64,
    pub clicks: u64,
    /// Sum of p(click) over what was shown.
    pub p_click: f64,
    /// Sums over a sample of slots of all users, whatever their arm: the probability of showing an ad, and of a click. Their
    /// ratio is the CTR that the arm's policy would have if it served everybody, caps and budgets apart.
    pub sampled_shown: f64,
    pub sampled_clicks: f64,
}

impl ArmTruth {
    /// The true CTR of what was shown.
    pub fn shown_ctr(&self) -> Option<f64> {
        (self.impressions > 0).then(|| self.p_click / self.impressions as f64)
    }

    /// The true CTR of the arm's policy over everybody.
    pub fn policy_ctr(&self) -> Option<f64> {
        (self.sampled_shown > 0.0).then(|| self.sampled_clicks / self.sampled_shown)
    }

    pub fn add(&mut self, other: &Self) {
        self.impressions += other.impressions;
        self.clicks += other.clicks;
        self.p_click += other.p_click;
        self.sampled_shown += other.sampled_shown;
        self.sampled_clicks += other.sampled_clicks;
    }
}

/// Serves the day's visits, which are sorted by time.
pub fn serve(
    world: &World,
    date: NaiveDate,
    visits: &[Visit],
    policy: &impl Policy,
    mut log: impl FnMut(&Impression<'_>) -> Result<()>,
) -> Result<Ledger> {
    let running: Vec<bool> = (0..world.ads.len()).map(|ad| world.runs(ad, date)).collect();
    let mut till = Till::new(world, policy);
    let affordable =
        |arm: Arm| running.iter().zip(&world.ads).map(|(running, ad)| *running && !till.exhausted(world, ad.campaign, arm)).collect();
    let mut open: [Vec<bool>; 3] = Arm::ALL.map(affordable);
    let mut seen: HashMap<(usize, usize), u32> = HashMap::new();
    let mut capped: HashMap<usize, Vec<usize>> = HashMap::new();
    let mut slots = [0; 24];
    let mut arms = [ArmTruth::default(); 3];
    let mut probabilities = vec![0.0; world.ads.len()];
    let mut number = 0;
    for visit in visits {
        let user = visit.user as usize;
        let arm = policy.arm(user);
        let hour = usize::from(visit.hour);
        let platform = world.users[user].devices[usize::from(visit.device)].platform;
        let mut rng = world.dice(Stream::Slots, [visit.user.into(), day_number(date), visit.index.into()]);
        for slot in 0..SLOTS * usize::from(visit.pages) {
            let (page, position) = (slot / SLOTS, slot % SLOTS + 1);
            let [which, whether, when]: [f64; 3] = rng.random();
            slots[hour] += 1;
            let mut mine;
            let may = match capped.get(&user) {
                Some(ads) => {
                    mine = open[arm as usize].clone();
                    ads.iter().for_each(|&ad| mine[ad] = false);
                    &mine
                }
                None => &open[arm as usize],
            };
            policy.probabilities(visit, arm, may, &mut probabilities);
            let Some(ad) = pick(&probabilities, which) else { continue };
            let campaign = world.ads[ad].campaign;
            let price = till.price(world, ad, policy.multiplier(user, arm, ad, hour));
            // A table knows nothing of what is spent or seen by now; the ad server then shows nothing.
            if !may[ad] || !till.affords(campaign, arm, price) {
                continue;
            }
            let p_click = world.p_click(user, ad, position, platform, hour);
            let at = visit.at + page as i64 * 50 * SECOND + position as i64 * SECOND / 10;
            let clicked = whether < p_click;
            let click = clicked.then(|| Click { at: at + SECOND + (when * 60.0 * SECOND as f64) as i64, charge: price.click });
            till.charge(campaign, arm, hour, price.impression + if clicked { price.click } else { 0 }, clicked);
            if till.exhausted(world, campaign, arm) {
                world.ads.iter().zip(&mut open[arm as usize]).filter(|(ad, _)| ad.campaign == campaign).for_each(|(_, open)| *open = false);
            }
            let times = seen.entry((user, ad)).or_default();
            *times += 1;
            if policy.cap(user, arm, ad).is_some_and(|cap| *times >= cap) {
                capped.entry(user).or_default().push(ad);
            }
            arms[arm as usize].impressions += 1;
            arms[arm as usize].clicks += u64::from(clicked);
            arms[arm as usize].p_click += p_click;
            log(&Impression {
                number,
                visit,
                at,
                ad,
                arm,
                position,
                propensity: probabilities[ad],
                charge: price.impression,
                p_click,
                p_conversion: world.p_conversion(user, ad),
                click,
            })?;
            number += 1;
        }
    }
    sample_arms(world, visits, policy, &running, &mut arms);
    Ok(Ledger { hours: till.hours(world, policy, &running, &slots), arms })
}

/// The ad at `u` of the cumulated probabilities.
fn pick(probabilities: &[f64], u: f64) -> Option<usize> {
    let mut left = u;
    probabilities.iter().position(|p| {
        left -= p;
        left < 0.0
    })
}

/// What each arm's policy would do for everybody, on an even sample of visits.
fn sample_arms(world: &World, visits: &[Visit], policy: &impl Policy, running: &[bool], arms: &mut [ArmTruth; 3]) {
    const VISITS: usize = 2000;
    let mut probabilities = vec![0.0; world.ads.len()];
    for (i, visit) in visits.iter().enumerate().step_by(visits.len().div_ceil(VISITS).max(1)) {
        let (user, position) = (visit.user as usize, i % SLOTS + 1);
        let platform = world.users[user].devices[usize::from(visit.device)].platform;
        let p_click: Vec<f64> =
            (0..world.ads.len()).map(|ad| world.p_click(user, ad, position, platform, usize::from(visit.hour))).collect();
        for (arm, truth) in Arm::ALL.into_iter().zip(arms.iter_mut()) {
            policy.probabilities(visit, arm, running, &mut probabilities);
            let shown = probabilities.iter().zip(running).zip(&p_click).filter(|((_, running), _)| **running);
            for ((p, _), p_click) in shown {
                truth.sampled_shown += p;
                truth.sampled_clicks += p * p_click;
            }
        }
    }
}

// ------------------------------------------------------------------------------------------------------------------------- money

/// What campaigns have spent today, by arm and hour, micro-CNY.
struct Till {
    /// Budget of each campaign by arm.
    budgets: Vec<[i64; 3]>,
    spent: Vec<[i64; 3]>,
    hours: Vec<[(i64, i64, i64); 24]>,
}

#[derive(Clone, Copy)]
struct Price {
    impression: i64,
    click: i64,
}

impl Till {
    fn new(world: &World, policy: &impl Policy) -> Self {
        let shares = policy.shares();
        let split = |budget: i64| Arm::ALL.map(|arm| shares.part(budget, arm));
        let none = vec![[0; 3]; world.campaigns.len()];
        Self {
            budgets: world.campaigns.iter().map(|campaign| split(campaign.daily_budget)).collect(),
            spent: none,
            hours: vec![[(0, 0, 0); 24]; world.campaigns.len()],
        }
    }

    fn price(&self, world: &World, ad: usize, multiplier: f64) -> Price {
        let ad = &world.ads[ad];
        let bid = (ad.bid as f64 * multiplier).round() as i64;
        if world.campaigns[ad.campaign].per_click {
            Price { impression: 0, click: bid }
        } else {
            Price { impression: bid / 1000, click: 0 }
        }
    }

    fn affords(&self, campaign: usize, arm: Arm, price: Price) -> bool {
        self.spent[campaign][arm as usize] + price.impression + price.click <= self.budgets[campaign][arm as usize]
    }

    fn charge(&mut self, campaign: usize, arm: Arm, hour: usize, amount: i64, clicked: bool) {
        self.spent[campaign][arm as usize] += amount;
        let (wins, clicks, spend) = &mut self.hours[campaign][hour];
        *wins += 1;
        *clicks += i64::from(clicked);
        *spend += amount;
    }

    /// Whether another impression might not be affordable.
    fn exhausted(&self, world: &World, campaign: usize, arm: Arm) -> bool {
        self.spent[campaign][arm as usize] + world.campaigns[campaign].dearest > self.budgets[campaign][arm as usize]
    }

    fn hours(&self, world: &World, policy: &impl Policy, running: &[bool], slots: &[i64; 24]) -> Vec<CampaignHour> {
        let mut hours = Vec::new();
        for (campaign, settings) in world.campaigns.iter().enumerate() {
            let runs = world.ads.iter().zip(running).any(|(ad, running)| ad.campaign == campaign && *running);
            let mut budget_left = settings.daily_budget;
            for (hour, slots) in slots.iter().enumerate() {
                let (wins, clicks, spend) = self.hours[campaign][hour];
                let (multiplier, propensity) = policy.tried(campaign, hour);
                budget_left -= spend;
                let auctions = if runs { *slots } else { 0 };
                hours.push(CampaignHour { campaign, hour, multiplier, propensity, auctions, wins, clicks, spend, budget_left });
            }
        }
        hours
    }
}

// ------------------------------------------------------------------------------------------------------------- the launch policy

/// How the shop served before there was a table: ads near what the visit is about, in a softmax mixed with chance, so that every
/// ad has some probability everywhere.
pub struct Launch<'a> {
    world: &'a World,
    /// exp(strength x relevance) by arm, focus, ad.
    weights: [Vec<Vec<f64>>; 3],
    /// By campaign and hour: index into [`MULTIPLIERS`].
    tried: Vec<[usize; 24]>,
    /// By hour and ad: the multiplier itself.
    multipliers: Vec<Vec<f64>>,
}

const SHARES: Shares = Shares { champion: 0.8, explore: 0.1, holdout: 0.1 };
/// Weight of relevance in the softmax, and the share of slots filled by chance, by arm. The holdout is untargeted.
const STRENGTH: [f64; 3] = [2.0, 2.0, 0.0];
const CHANCE: [f64; 3] = [0.15, 0.6, 1.0];
/// Bid multipliers that campaigns try by the hour, and how often.
const MULTIPLIERS: [(f64, f64); 3] = [(0.8, 0.25), (1.0, 0.5), (1.2, 0.25)];

impl<'a> Launch<'a> {
    pub fn new(world: &'a World, date: NaiveDate) -> Self {
        let weight = |arm: usize, focus: usize, ad: usize| (STRENGTH[arm] * relevance(focus, world.ads[ad].category)).exp();
        let of_arm = |arm: usize| {
            (0..CATEGORIES.len()).map(|focus| (0..world.ads.len()).map(|ad| weight(arm, focus, ad)).collect()).collect::<Vec<Vec<f64>>>()
        };
        let tried = |campaign: usize| {
            let mut rng = world.dice(Stream::Multiplier, [campaign as u64, day_number(date), 0]);
            std::array::from_fn(|_| match rng.random::<f64>() {
                u if u < 0.25 => 0,
                u if u < 0.75 => 1,
                _ => 2,
            })
        };
        let tried: Vec<[usize; 24]> = (0..world.campaigns.len()).map(tried).collect();
        let multipliers = (0..24).map(|hour| world.ads.iter().map(|ad| MULTIPLIERS[tried[ad.campaign][hour]].0).collect()).collect();
        Self { world, weights: [of_arm(0), of_arm(1), of_arm(2)], tried, multipliers }
    }
}

impl Policy for Launch<'_> {
    fn version(&self) -> &str {
        "launch"
    }

    fn shares(&self) -> Shares {
        SHARES
    }

    fn arm(&self, user: usize) -> Arm {
        arm_of(&world::uid(user), "launch", &SHARES)
    }

    fn segment(&self, _user: usize) -> Option<&str> {
        None
    }

    fn probabilities(&self, visit: &Visit, arm: Arm, open: &[bool], probabilities: &mut [f64]) {
        let weights = &self.weights[arm as usize][usize::from(visit.focus)];
        let multipliers = &self.multipliers[usize::from(visit.hour)];
        let (mut total, mut count) = (0.0, 0.0);
        for (ad, p) in probabilities.iter_mut().enumerate() {
            *p = if open[ad] { weights[ad] * multipliers[ad] } else { 0.0 };
            total += *p;
            count += f64::from(u8::from(open[ad]));
        }
        // Without an open ad every probability is zero already.
        let (scale, chance) = ((1.0 - CHANCE[arm as usize]) / total, CHANCE[arm as usize] / count);
        for (p, open) in probabilities.iter_mut().zip(open) {
            *p = if *open { *p * scale + chance } else { 0.0 };
        }
    }

    fn cap(&self, _user: usize, _arm: Arm, ad: usize) -> Option<u32> {
        self.world.campaigns[self.world.ads[ad].campaign].frequency_cap
    }

    fn multiplier(&self, _user: usize, _arm: Arm, ad: usize, hour: usize) -> f64 {
        self.tried(self.world.ads[ad].campaign, hour).0
    }

    fn tried(&self, campaign: usize, hour: usize) -> (f64, f64) {
        MULTIPLIERS[self.tried[campaign][hour]]
    }
}

/// Solves the intercepts, so that the launch policy's mean p(click) is [`CTR`] and its mean p(conversion | click) [`CVR`].
pub fn calibrate(world: &mut World) {
    let (clicks, conversions) = scores(world);
    let total: f64 = clicks.iter().map(|(_, weight)| weight).sum();
    world.click_base = solve(|base| clicks.iter().map(|(score, weight)| weight * sigmoid(base + score)).sum::<f64>() / total, CTR);
    let base = world.click_base;
    let weights: Vec<f64> = clicks.iter().map(|(score, weight)| weight * sigmoid(base + score)).collect();
    let total: f64 = weights.iter().sum();
    let cvr = |base: f64| conversions.iter().zip(&weights).map(|(score, weight)| weight * sigmoid(base + score)).sum::<f64>() / total;
    world.conversion_base = solve(cvr, CVR);
}

/// The click logit and its probability of being shown, and the conversion logit, of sampled slots and every ad.
fn scores(world: &World) -> (Vec<(f64, f64)>, Vec<f64>) {
    const VISITS: usize = 3000;
    let mut visits = Vec::new();
    let (mut clicks, mut conversions) = (Vec::new(), Vec::new());
    for back in 0..world.plan.days {
        let date = world.plan.start() + Days::new((world.plan.days / 2 + back) % world.plan.days);
        let policy = Launch::new(world, date);
        let open: Vec<bool> = (0..world.ads.len()).map(|ad| world.runs(ad, date)).collect();
        let mut probabilities = vec![0.0; world.ads.len()];
        for user in 0..world.users.len().min(VISITS) {
            visits.clear();
            people::day(world, user, date, &mut visits, &mut Vec::new());
            let Some(visit) = visits.first() else { continue };
            let (position, platform) = (user % SLOTS + 1, world.users[user].devices[usize::from(visit.device)].platform);
            // Who comes more often is seen more often.
            let (pages, often) = (f64::from(visit.pages), visits.len() as f64);
            policy.probabilities(visit, policy.arm(user), &open, &mut probabilities);
            for (ad, p) in probabilities.iter().enumerate().filter(|(_, p)| **p > 0.0) {
                let context = world::context_score(position, platform, usize::from(visit.hour));
                clicks.push((world.click_score(user, ad) + context, p * pages * often));
                conversions.push(world.conversion_score(user, ad));
            }
        }
        if clicks.len() > VISITS * 20 {
            break;
        }
    }
    (clicks, conversions)
}

/// The base at which the rising function `rate` reaches `goal`.
fn solve(rate: impl Fn(f64) -> f64, goal: f64) -> f64 {
    let (mut low, mut high) = (-20.0, 10.0);
    for _ in 0..40 {
        let middle = (low + high) / 2.0;
        if rate(middle) < goal { low = middle } else { high = middle }
    }
    (low + high) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generate::Plan;

    #[test]
    fn a_slot_shows_every_open_ad_with_its_probability() {
        let plan = Plan { users: 20, days: 5, seed: 3, until: NaiveDate::from_ymd_opt(2026, 11, 22).expect("a date") };
        let world = World::draw(&plan);
        let policy = Launch::new(&world, plan.until);
        let mut visits = Vec::new();
        (0..20).for_each(|user| people::day(&world, user, plan.until, &mut visits, &mut Vec::new()));
        let open: Vec<bool> = (0..world.ads.len()).map(|ad| ad % 3 != 0).collect();
        let mut probabilities = vec![0.0; world.ads.len()];
        let mut spread = 0.0_f64;
        for (visit, arm) in visits.iter().flat_map(|visit| Arm::ALL.map(|arm| (visit, arm))) {
            policy.probabilities(visit, arm, &open, &mut probabilities);
            assert!((probabilities.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            let (least, most) = probabilities
                .iter()
                .zip(&open)
                .filter(|(_, open)| **open)
                .fold((1.0_f64, 0.0_f64), |(a, b), (p, _)| (a.min(*p), b.max(*p)));
            assert!(least > 1e-3, "{arm}: no ad is out of reach, not even the least: {least}");
            assert!(probabilities.iter().zip(&open).all(|(p, open)| *open || *p == 0.0));
            assert!(arm != Arm::Holdout || most - least < 1e-12, "the holdout is untargeted");
            spread = spread.max(most / least);
        }
        assert!(spread > 3.0, "the champion is targeted: {spread}");
    }
}

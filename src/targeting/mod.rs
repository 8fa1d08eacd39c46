//! Segments and ads -> which ad each segment sees how often, in each arm of the experiment.
//!
//! Serving partitions users: a user's rank-1 released segment is the primary one, and supply, caps and budgets count primary
//! users only, so nothing is counted twice. The plan maximises expected value under the campaigns' budgets, the segments'
//! supply and the users' frequency caps ([`crate::allocate`], to which a campaign is one ad with one budget); each arm has its share of all three.
//! The plan also keeps what campaigns ask for: impressions at least, where they can be had, and returns. Arms that learn keep neither.
//!
//! - champion: the plan; propensity = planned impressions / supply, the rest is `no_ad`.
//! - explore: (1 - epsilon) of the plan's propensities, and epsilon evenly over the segment's ads, less where a cap or a campaign's
//!   budget would not bear it; what is cut off is `no_ad`. Every ad keeps some probability as long as its campaign has money.
//! - holdout: the untargeted default, evenly over the ads (where ads are chosen for segments, over those that chance chose), cut in the
//!   same way. `shadow_ads` hold the plan it would have had.
//!
//! A segment without expected supply plans nothing, and its champions see `no_ad`.

pub mod arms;
pub mod candidates;
pub mod money;
pub mod supply;
pub mod tables;
pub mod value;

use crate::allocate::tables::NamedPrices;
use crate::allocate::{Certificate, Plan, Prices, Problem, allocate, explain, whole};
use crate::error::{Error, Result};
use crate::segments::full;
use arms::{Arm, Shares, arm_of};
use arrow::array::{Array, Int64Array, RecordBatch, StringArray};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use tables::{Row, Stamp};
use value::{NO_AD, Offer, Offers, Outcomes, Score, Scores};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub shares: Shares,
    /// Probability in the explore arm that is spread evenly over the ads. More: more is learnt about ads that the plan avoids.
    pub epsilon: f64,
    /// Of the experiment: a new salt assigns every user anew.
    pub salt: String,
    /// Users who are scored for a segment's mean responses. More: steadier means, more time.
    pub max_users_scored_per_segment: usize,
    /// Where more ads are live, about so many are chosen for each segment, and the others are not shown to it; 0: never. More: more time.
    pub candidate_ads_per_segment: usize,
    /// Impressions of one ad a user and day, where the campaign says nothing.
    pub default_frequency_cap: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            shares: Shares::default(),
            epsilon: 0.2,
            salt: "targeting-1".into(),
            max_users_scored_per_segment: 200,
            candidate_ads_per_segment: 300,
            default_frequency_cap: 5,
        }
    }
}

impl Settings {
    pub fn check(&self) -> Result<()> {
        self.shares.check()?;
        if !(0.0..=1.0).contains(&self.epsilon) {
            return Err(Error::usage(format_args!("[targeting] epsilon = {} is not a probability", self.epsilon)));
        }
        if self.max_users_scored_per_segment == 0 {
            return Err(Error::usage("[targeting] max_users_scored_per_segment must be at least 1"));
        }
        Ok(())
    }
}

pub struct Inputs<'a> {
    pub stamp: Stamp,
    pub ads: &'a RecordBatch,
    pub campaigns: Option<&'a RecordBatch>,
    /// Released: user_id, segment_id, rank.
    pub user_segments: &'a RecordBatch,
    /// Where users are no persons: the rows each stands for. Frequency caps are then skipped.
    pub weights: Option<&'a BTreeMap<String, u64>>,
    /// Opportunities a day of each segment's primary users.
    pub supply: &'a BTreeMap<String, f64>,
    pub scores: &'a Scores,
    /// By segment, the ads that were not chosen for it; `None` where all ads are scored for all segments.
    pub by_chance: Option<&'a BTreeMap<String, BTreeSet<String>>>,
    pub outcomes: &'a Outcomes,
    /// Of the plan that served before: where the search for this one begins.
    pub prices: Option<&'a NamedPrices>,
    /// Least primary users of a segment.
    pub floor: u64,
}

#[derive(Clone, Debug)]
pub struct Targeting {
    pub segment_ads: RecordBatch,
    pub shadow_ads: RecordBatch,
    pub facts: TargetingFacts,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct TargetingFacts {
    pub objective: Objective,
    pub segments: u64,
    pub ads_live: u64,
    pub ads_left_out: BTreeMap<String, u64>,
    /// Scored pairs of a segment and a live ad; and who named them, where there are too many ads to score all of them.
    pub candidates: u64,
    #[serde(default)]
    pub candidates_from: Option<candidates::CandidateFacts>,
    /// Opportunities of the day, and what all arms plan to do with them.
    pub supply: f64,
    pub planned_impressions: u64,
    pub planned_spend: f64,
    /// Of the champion's plan; value in currency (revenue) or clicks, as the objective says.
    pub certificate: Certificate,
    pub binding: explain::Reached,
    pub campaigns: Vec<CampaignFacts>,
    pub arms: Vec<ArmFacts>,
    /// Whether users have frequency caps: not where they are no persons.
    pub frequency_caps: bool,
    /// Of the campaigns' budgets, return floors and minima, for the next night.
    pub prices: NamedPrices,
}

/// What the plan maximises.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum Objective {
    /// Expected revenue: p_click x p_conversion x value.
    Revenue,
    /// Expected clicks, where conversions have no probability or no value.
    Clicks,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct CampaignFacts {
    pub campaign_id: String,
    /// Currency a day.
    pub budget: f64,
    /// Over all arms.
    pub planned_spend: f64,
    pub planned_impressions: u64,
    /// Value of one more unit of currency.
    pub shadow_price: f64,
    /// Why the champion's plan leaves some of the budget; absent when it does not.
    pub unspent_reason: Option<String>,
    /// Impressions that the campaign's minimum lacks in the champion's plan.
    pub lacking_impressions: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct ArmFacts {
    pub arm: Arm,
    pub share: f64,
    /// Users whom the salt assigns to the arm.
    pub users: u64,
    pub supply: f64,
    pub planned_impressions: u64,
    pub planned_spend: f64,
    /// Of the arm's opportunities.
    pub no_ad_share: f64,
}

/// The plan, its arms, and the tables that serve them.
///
/// # Errors
/// `Privacy` when a segment would serve fewer users than the floor; `Contract` when an amount, a probability or a supply is none.
pub fn decide(settings: &Settings, inputs: &Inputs) -> Result<Targeting> {
    settings.check()?;
    let market = Market::open(settings, inputs)?;
    let problem = market.plan_problem();
    let plan = allocate(&problem, market.start(inputs.prices).as_ref(), 1)?;
    let champion = market.champion(&plan);
    let nothing = vec![0.0; market.candidates.len()];
    let mixed = champion.propensity.iter().map(|propensity| (1.0 - settings.epsilon) * propensity).collect::<Vec<_>>();
    let explore = market.serve(Arm::Explore, market.spread(Arm::Explore, settings.epsilon, &mixed, |_| true));
    let holdout = market.serve(Arm::Holdout, market.spread(Arm::Holdout, 1.0, &nothing, |candidate| candidate.untargeted));
    let shadow = market.serve(Arm::Holdout, champion.propensity.clone());
    let has_share = |served: &Served| settings.shares.of(served.arm) > 0.0;
    let served: Vec<Served> = [champion, explore, holdout].into_iter().filter(has_share).collect();
    let shadow = Some(shadow).filter(has_share);
    Ok(Targeting {
        segment_ads: market.table(&inputs.stamp, &served)?,
        shadow_ads: market.table(&inputs.stamp, shadow.as_slice())?,
        facts: market.facts(&problem, &plan, &served),
    })
}

// -------------------------------------------------------------------------------------------------------------------- market

/// Supply and demand of the day, indexed: segments and ads in the order of their ids, so that no input's row order matters.
struct Market<'a> {
    settings: &'a Settings,
    audiences: Vec<Audience<'a>>,
    offers: Offers,
    objective: Objective,
    /// Value of a conversion (or a click) of each offer.
    worth: Vec<f64>,
    /// Campaigns with a budget; group `campaigns.len()` is that of no budget.
    campaigns: Vec<String>,
    group: Vec<usize>,
    frequency_caps: bool,
    /// By segment, then by offer.
    candidates: Vec<Candidate>,
}

/// A segment and the users whose primary one it is.
struct Audience<'a> {
    segment_id: &'a str,
    /// Everybody in the segment, weighted: what its rows say of its size.
    members: u64,
    /// Primary users, weighted.
    users: u64,
    users_by_arm: [u64; 3],
    supply: f64,
}

struct Candidate {
    segment: usize,
    offer: usize,
    score: Score,
    /// Value of one impression, and its standard error over the segment's users.
    value: f64,
    value_error: f64,
    /// Of one impression, in micro-units.
    cost: i64,
    /// Not chosen for the segment.
    untargeted: bool,
}

/// What an arm serves: for each candidate its propensity and its planned impressions.
struct Served {
    arm: Arm,
    propensity: Vec<f64>,
    planned: Vec<u64>,
}

impl<'a> Market<'a> {
    fn open(settings: &'a Settings, inputs: &Inputs<'a>) -> Result<Self> {
        let audiences = audiences(settings, inputs)?;
        let offers = value::offers(inputs.ads, inputs.campaigns, inputs.stamp.valid_from, inputs.stamp.valid_to)?;
        let scored: Vec<(usize, usize, Score)> = (0..audiences.len())
            .flat_map(|segment| (0..offers.live.len()).map(move |offer| (segment, offer)))
            .filter_map(|(segment, offer)| {
                Some((segment, offer, inputs.scores.get(audiences[segment].segment_id, &offers.live[offer].ad_id)?))
            })
            .collect();
        let conversions = scored.iter().all(|(.., score)| score.p_conversion.is_some());
        let per_conversion = value::per_conversion(&offers, inputs.ads, inputs.outcomes)?.filter(|_| conversions);
        let objective = if per_conversion.is_some() { Objective::Revenue } else { Objective::Clicks };
        let worth = per_conversion.unwrap_or_else(|| vec![1.0; offers.live.len()]);
        let candidates = scored.into_iter().map(|(segment, offer, score)| {
            let (value, value_error) = match objective {
                Objective::Revenue => (score.p_click * score.p_conversion.unwrap_or(0.0), score.conversion_error),
                Objective::Clicks => (score.p_click, score.click_error),
            };
            let (segment_id, Offer { ad_id, bid, .. }) = (audiences[segment].segment_id, &offers.live[offer]);
            let untargeted =
                |by_chance: &BTreeMap<String, BTreeSet<String>>| by_chance.get(segment_id).is_some_and(|ads| ads.contains(ad_id));
            Candidate {
                segment,
                offer,
                score,
                value: value * worth[offer],
                value_error: value_error * worth[offer],
                cost: bid.map_or(0, |bid| bid.cost(score.p_click)),
                untargeted: inputs.by_chance.is_none_or(untargeted),
            }
        });
        let candidates = candidates.collect();
        let campaigns: Vec<String> = offers.campaigns.keys().cloned().collect();
        let place = |offer: &Offer| offer.campaign_id.as_ref().and_then(|id| campaigns.binary_search(id).ok()).unwrap_or(campaigns.len());
        let group = offers.iter().map(place).collect();
        let frequency_caps = inputs.weights.is_none();
        Ok(Self { settings, audiences, objective, worth, campaigns, group, frequency_caps, candidates, offers })
    }

    fn frequency_cap(&self, offer: usize) -> Option<u32> {
        let campaign = self.offers.campaign(&self.offers.live[offer]);
        self.frequency_caps.then(|| campaign.and_then(|campaign| campaign.frequency_cap).unwrap_or(self.settings.default_frequency_cap))
    }

    fn budget(&self, group: usize, arm: Arm) -> i64 {
        self.settings.shares.part(self.offers.campaigns[&self.campaigns[group]].daily_budget, arm)
    }

    /// An arm's share of everything.
    fn problem(&self, arm: Arm) -> Problem {
        let share = self.settings.shares.of(arm);
        let cap = |candidate: &Candidate| match self.frequency_cap(candidate.offer) {
            Some(cap) => f64::from(cap) * self.audiences[candidate.segment].users as f64 * share,
            None => f64::INFINITY,
        };
        let budgets = (0..self.campaigns.len()).map(|group| self.budget(group, arm) as f64);
        let supply = self.audiences.iter().map(|audience| audience.supply * share).collect();
        Problem {
            segment: self.candidates.iter().map(|candidate| candidate.segment).collect(),
            ad: self.candidates.iter().map(|candidate| self.group[candidate.offer]).collect(),
            value: self.candidates.iter().map(|candidate| candidate.value).collect(),
            cost: self.candidates.iter().map(|candidate| candidate.cost as f64).collect(),
            cap: self.candidates.iter().map(cap).collect(),
            ..Problem::of_budgets(supply, budgets.chain([f64::INFINITY]).collect())
        }
    }

    /// What the champion arm plans: its share of everything, and of what campaigns ask for.
    fn plan_problem(&self) -> Problem {
        let mut problem = self.problem(Arm::Champion);
        let mut dearest = vec![0.0f64; problem.budget.len()];
        let mut offered = vec![false; problem.budget.len()];
        for candidate in &self.candidates {
            let group = self.group[candidate.offer];
            dearest[group] = dearest[group].max(self.worth[candidate.offer]);
            offered[group] = true;
        }
        for (group, id) in self.campaigns.iter().enumerate().filter(|(group, _)| offered[*group]) {
            let campaign = &self.offers.campaigns[id];
            problem.minimum[group] = f64::from(campaign.min_impressions.unwrap_or(0)) * self.settings.shares.champion;
            // A plan of clicks knows no returns.
            if self.objective == Objective::Revenue {
                // Value is conversions times their worth, which is at most the dearest: so much value per cost proves the cost per conversion.
                let for_cpa = campaign.target_cpa.map_or(0.0, |cpa| dearest[group] / cpa as f64);
                let for_roi = campaign.target_roi.map_or(0.0, |roi| money::currency(roi.into()) / 1e6);
                problem.min_roi[group] = for_roi.max(for_cpa);
            }
        }
        problem.price_minima();
        problem
    }

    /// Prices of another night in the order of this one's campaigns.
    fn start(&self, prices: Option<&NamedPrices>) -> Option<Prices> {
        // The last group is that of no budget, which has no price.
        let groups: Vec<String> = self.campaigns.iter().cloned().chain([String::new()]).collect();
        prices.map(|prices| prices.in_order(&groups, &[]))
    }

    fn champion(&self, plan: &Plan) -> Served {
        let share = self.settings.shares.of(Arm::Champion);
        let propensity = |(candidate, planned): (&Candidate, &u64)| {
            if *planned > 0 { *planned as f64 / (self.audiences[candidate.segment].supply * share) } else { 0.0 }
        };
        let propensity = self.candidates.iter().zip(&plan.whole).map(propensity).collect();
        Served { arm: Arm::Champion, propensity, planned: plan.whole.clone() }
    }

    /// `base` propensities and on top of them `mass`, evenly over the ads of each segment that are `among` those meant: less of an ad
    /// whose cap, and less of all ads of a campaign whose budget, would not bear it.
    fn spread(&self, arm: Arm, mass: f64, base: &[f64], among: impl Fn(&Candidate) -> bool) -> Vec<f64> {
        let problem = self.problem(arm);
        let mut ads = vec![0u32; self.audiences.len()];
        self.candidates.iter().filter(|candidate| among(candidate)).for_each(|candidate| ads[candidate.segment] += 1);
        let mut spread = Vec::with_capacity(base.len());
        let (mut spent, mut wanted) = (vec![0.0; problem.budget.len()], vec![0.0; problem.budget.len()]);
        for (pair, candidate) in self.candidates.iter().enumerate() {
            let supply = problem.supply[candidate.segment];
            let room = if supply > 0.0 { (problem.cap[pair] / supply - base[pair]).max(0.0) } else { f64::INFINITY };
            spread.push(if among(candidate) { (mass / f64::from(ads[candidate.segment])).min(room) } else { 0.0 });
            spent[problem.ad[pair]] += problem.cost[pair] * supply * base[pair];
            wanted[problem.ad[pair]] += problem.cost[pair] * supply * spread[pair];
        }
        let bearable = |group: usize| {
            if wanted[group] > 0.0 { ((problem.budget[group] - spent[group]).max(0.0) / wanted[group]).min(1.0) } else { 1.0 }
        };
        let bearable: Vec<f64> = (0..problem.budget.len()).map(bearable).collect();
        (0..base.len()).map(|pair| base[pair] + spread[pair] * bearable[problem.ad[pair]]).collect()
    }

    /// Whole impressions for given propensities.
    fn serve(&self, arm: Arm, propensity: Vec<f64>) -> Served {
        let problem = self.problem(arm);
        let x: Vec<f64> =
            propensity.iter().zip(&problem.segment).map(|(propensity, segment)| propensity * problem.supply[*segment]).collect();
        Served { arm, planned: whole::round(&problem, &x), propensity }
    }

    /// In micro-units.
    fn spend(&self, served: &Served, of: impl Fn(&Candidate) -> bool) -> i128 {
        let pairs = self.candidates.iter().zip(&served.planned).filter(|(candidate, _)| of(candidate));
        pairs.map(|(candidate, planned)| i128::from(candidate.cost) * i128::from(*planned)).sum()
    }
}

/// The segments with their users and supply, by segment_id.
fn audiences<'a>(settings: &Settings, inputs: &Inputs<'a>) -> Result<Vec<Audience<'a>>> {
    let users = full::<StringArray>(inputs.user_segments, "user_id")?;
    let segments = full::<StringArray>(inputs.user_segments, "segment_id")?;
    let ranks = full::<Int64Array>(inputs.user_segments, "rank")?;
    let mut audiences: BTreeMap<&str, Audience> = BTreeMap::new();
    for row in 0..users.len() {
        let (user, segment_id) = (users.value(row), segments.value(row));
        let weight = inputs.weights.map_or(1, |weights| weights.get(user).copied().unwrap_or(0));
        let audience =
            audiences.entry(segment_id).or_insert(Audience { segment_id, members: 0, users: 0, users_by_arm: [0; 3], supply: 0.0 });
        audience.members += weight;
        if ranks.value(row) == 1 {
            audience.users += weight;
            audience.users_by_arm[arm_of(user, &settings.salt, &settings.shares) as usize] += weight;
        }
    }
    for audience in audiences.values_mut() {
        if audience.users < inputs.floor {
            let (id, users) = (audience.segment_id, audience.users);
            return Err(Error::privacy(format_args!("segment {id} would serve {users} users, below the floor of {}", inputs.floor)));
        }
        audience.supply = inputs.supply.get(audience.segment_id).copied().unwrap_or(0.0);
        if !(audience.supply >= 0.0 && audience.supply.is_finite()) {
            return Err(Error::contract(format_args!("segment {} has a supply of {}", audience.segment_id, audience.supply)));
        }
    }
    Ok(audiences.into_values().collect())
}

// -------------------------------------------------------------------------------------------------------------------- tables

impl Market<'_> {
    fn table(&self, stamp: &Stamp, served: &[Served]) -> Result<RecordBatch> {
        let mut rows = Vec::new();
        for served in served {
            let mut of_segment = vec![Vec::new(); self.audiences.len()];
            for (pair, candidate) in self.candidates.iter().enumerate().filter(|(pair, _)| served.propensity[*pair] > 0.0) {
                of_segment[candidate.segment].push(pair);
            }
            for (audience, mut pairs) in self.audiences.iter().zip(of_segment) {
                let likeliest = |pair: &usize| (served.propensity[*pair], self.candidates[*pair].value);
                pairs.sort_by(|a, b| {
                    let ((p_a, v_a), (p_b, v_b)) = (likeliest(a), likeliest(b));
                    p_b.total_cmp(&p_a).then(v_b.total_cmp(&v_a)).then(a.cmp(b))
                });
                rows.extend(pairs.iter().zip(1..).map(|(&pair, rank)| self.row(audience, served, pair, rank)));
                rows.push(self.rest(audience, served, &pairs));
            }
        }
        tables::segment_ads(stamp, rows)
    }

    fn row(&self, audience: &Audience, served: &Served, pair: usize, rank: i64) -> Row {
        let candidate = &self.candidates[pair];
        let offer = &self.offers.live[candidate.offer];
        let budget = self.offers.campaign(offer).map(|campaign| campaign.daily_budget as f64);
        let planned = served.planned[pair];
        Row {
            segment_id: audience.segment_id.to_owned(),
            ad_id: offer.ad_id.clone(),
            arm: served.arm,
            rank,
            p_click: Some(candidate.score.p_click),
            p_conversion: candidate.score.p_conversion,
            value: Some(self.worth[candidate.offer]),
            value_per_impression: Some(candidate.value),
            value_error: Some(candidate.value_error),
            ecpm: offer.bid.map(|bid| bid.ecpm(candidate.score.p_click)),
            // The plan is made for the bids as they are.
            bid_multiplier: Some(1.0),
            budget_share: budget.map(|budget| candidate.cost as f64 * planned as f64 / budget),
            impressions_planned: planned as i64,
            frequency_cap: self.frequency_cap(candidate.offer).map(i64::from),
            propensity: served.propensity[pair],
            audience_size: audience.members as i64,
        }
    }

    /// The row of what no ad takes.
    fn rest(&self, audience: &Audience, served: &Served, pairs: &[usize]) -> Row {
        let shown: f64 = pairs.iter().map(|&pair| served.propensity[pair]).sum();
        let planned: u64 = pairs.iter().map(|&pair| served.planned[pair]).sum();
        let supply = (audience.supply * self.settings.shares.of(served.arm)) as u64;
        Row {
            segment_id: audience.segment_id.to_owned(),
            ad_id: NO_AD.into(),
            arm: served.arm,
            rank: pairs.len() as i64 + 1,
            p_click: None,
            p_conversion: None,
            value: None,
            value_per_impression: None,
            value_error: None,
            ecpm: None,
            bid_multiplier: None,
            budget_share: None,
            impressions_planned: supply.saturating_sub(planned) as i64,
            frequency_cap: None,
            propensity: (1.0 - shown).max(0.0),
            audience_size: audience.members as i64,
        }
    }

    fn facts(&self, problem: &Problem, plan: &Plan, served: &[Served]) -> TargetingFacts {
        let (bindings, lacking) = (explain::binding(problem, plan), problem.shortfall(&plan.x));
        TargetingFacts {
            objective: self.objective,
            segments: self.audiences.len() as u64,
            ads_live: self.offers.live.len() as u64,
            ads_left_out: self.offers.left_out.iter().map(|(reason, ads)| ((*reason).to_owned(), *ads)).collect(),
            candidates: self.candidates.len() as u64,
            candidates_from: None,
            supply: self.audiences.iter().map(|audience| audience.supply).sum(),
            planned_impressions: served.iter().flat_map(|served| &served.planned).sum(),
            planned_spend: money::currency(served.iter().map(|served| self.spend(served, |_| true)).sum()),
            certificate: plan.certificate,
            binding: explain::reached(problem, plan),
            campaigns: (0..self.campaigns.len())
                .map(|group| self.campaign_facts(group, plan, bindings[group], lacking[group], served))
                .collect(),
            arms: served.iter().map(|served| self.arm_facts(served)).collect(),
            frequency_caps: self.frequency_caps,
            prices: NamedPrices::of(&self.campaigns, &[], &plan.prices),
        }
    }

    fn campaign_facts(
        &self,
        group: usize,
        plan: &Plan,
        binding: explain::Binding,
        lacking_impressions: f64,
        served: &[Served],
    ) -> CampaignFacts {
        let mine = |candidate: &Candidate| self.group[candidate.offer] == group;
        let spend: i128 = served.iter().map(|served| self.spend(served, mine)).sum();
        let planned = |served: &Served| -> u64 {
            self.candidates.iter().zip(&served.planned).filter(|(candidate, _)| mine(candidate)).map(|(_, planned)| planned).sum()
        };
        CampaignFacts {
            campaign_id: self.campaigns[group].clone(),
            budget: money::currency(self.offers.campaigns[&self.campaigns[group]].daily_budget.into()),
            planned_spend: money::currency(spend),
            planned_impressions: served.iter().map(planned).sum(),
            shadow_price: plan.prices.budget[group] * 1e6,
            unspent_reason: binding.unspent_reason().map(str::to_owned),
            lacking_impressions,
        }
    }

    fn arm_facts(&self, served: &Served) -> ArmFacts {
        let share = self.settings.shares.of(served.arm);
        let supply: f64 = self.audiences.iter().map(|audience| audience.supply * share).sum();
        let pairs = self.candidates.iter().zip(&served.propensity);
        let shown: f64 = pairs.map(|(candidate, propensity)| self.audiences[candidate.segment].supply * share * propensity).sum();
        ArmFacts {
            arm: served.arm,
            share,
            users: self.audiences.iter().map(|audience| audience.users_by_arm[served.arm as usize]).sum(),
            supply,
            planned_impressions: served.planned.iter().sum(),
            planned_spend: money::currency(self.spend(served, |_| true)),
            no_ad_share: if supply > 0.0 { (1.0 - shown / supply).max(0.0) } else { 1.0 },
        }
    }
}

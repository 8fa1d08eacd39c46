//! Worlds with a known truth, and how often the statistics are right about them. Seeds run from 1, never chosen. The tests hold small
//! numbers of worlds to the promised rates, `cargo bench --bench statistics` prints large ones.

use nightmarket::statistics::ab::{self, Measure};
use nightmarket::statistics::moments::Moments;
use nightmarket::statistics::ope::{self, Estimator, Model, Rounds};
use nightmarket::statistics::{Interval, bootstrap};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Beta, Distribution, Normal, Poisson};
use std::num::NonZero;

/// What each of the seeds 1 to `count` gives, on all cores.
pub fn for_seeds<T: Send>(count: u64, of: impl Fn(u64) -> T + Sync) -> Vec<T> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get) as u64;
    let seeds: Vec<u64> = (1..=count).collect();
    std::thread::scope(|scope| {
        let share = count.div_ceil(cores).max(1) as usize;
        let workers: Vec<_> =
            seeds.chunks(share).map(|seeds| scope.spawn(|| seeds.iter().map(|&seed| of(seed)).collect::<Vec<_>>())).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("no panic")).collect()
    })
}

pub fn share(yes: impl IntoIterator<Item = bool>) -> f64 {
    let (count, hits) = yes.into_iter().fold((0.0, 0.0), |(count, hits), yes| (count + 1.0, hits + f64::from(u8::from(yes))));
    hits / count
}

fn holds(interval: Option<Interval>, truth: f64) -> bool {
    interval.is_some_and(|interval| interval.low <= truth && truth <= interval.high)
}

// ------------------------------------------------------------------------------------------------------------------- experiments

/// Users who differ in how much they see and how much they click: clicks, impressions, and the clicks of the week before.
pub struct Users {
    pub clicks: Vec<f64>,
    pub impressions: Vec<f64>,
    pub before: Vec<f64>,
}

/// `lift` multiplies everybody's rate, so it is the true lift of the click-through rate and of clicks per user.
pub fn users(generator: &mut ChaCha8Rng, count: usize, lift: f64) -> Users {
    let (views, rates) = (Poisson::new(5.0).expect("a mean"), Beta::new(2.0, 18.0).expect("shapes"));
    let mut found = Users { clicks: Vec::new(), impressions: Vec::new(), before: Vec::new() };
    for _ in 0..count {
        let rate = rates.sample(generator);
        let seen = |generator: &mut ChaCha8Rng| 1.0 + views.sample(generator);
        let (now, then) = (seen(generator), seen(generator));
        let clicks =
            |generator: &mut ChaCha8Rng, seen: f64, rate: f64| (0..seen as usize).filter(|_| generator.random_bool(rate)).count() as f64;
        found.clicks.push(clicks(generator, now, (rate * (1.0 + lift)).min(1.0)));
        found.before.push(clicks(generator, then, rate));
        found.impressions.push(now);
    }
    found
}

fn arms(seed: u64, counts: [usize; 2], lift: f64) -> [Users; 2] {
    let mut generator = ChaCha8Rng::seed_from_u64(seed);
    [users(&mut generator, counts[0], 0.0), users(&mut generator, counts[1], lift)]
}

/// Of equal arms, the share that differ significantly: by the click-through rate over users, by its CUPED, by clicks per user, and by the
/// binomial formula, which takes every impression for a draw of its own.
pub fn false_positives(experiments: u64) -> [f64; 4] {
    let found = for_seeds(experiments, |seed| {
        let [control, treatment] = arms(seed, [400, 500], 0.0);
        let moments = |arm: &Users| Moments::of(&[&arm.clicks, &arm.impressions, &arm.before]);
        let (a, b) = (moments(&control), moments(&treatment));
        let significant = |a: &ab::Arm, b: &ab::Arm| ab::compare(a, b, 0.05).absolute.p.expect("arms vary") < 0.05;
        let by = |measure| significant(&ab::measure(measure, &a).expect("users"), &ab::measure(measure, &b).expect("users"));
        let adjusted = ab::cuped(&a, &b, Measure::Ratio(0, 1), Measure::Mean(2)).expect("users");
        let binomial = |arm: &Users| {
            let (n, p) = (arm.impressions.iter().sum::<f64>(), arm.clicks.iter().sum::<f64>() / arm.impressions.iter().sum::<f64>());
            (p, p * (1.0 - p) / n)
        };
        let ((pa, va), (pb, vb)) = (binomial(&control), binomial(&treatment));
        let naive = ((pb - pa) / (va + vb).sqrt()).abs() > 1.959_963_984_540_054;
        [by(Measure::Ratio(0, 1)), significant(&adjusted.control, &adjusted.treatment), by(Measure::Mean(0)), naive]
    });
    [0, 1, 2, 3].map(|i: usize| share(found.iter().map(|found| found[i])))
}

/// Of equal arms looked at every day for two weeks, the share that an interval ever calls different: the always-valid one, and the
/// ordinary one, which was made for one look.
pub fn peeking(experiments: u64) -> [f64; 2] {
    let found = for_seeds(experiments, |seed| {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        let mut arms = [Moments::new(2), Moments::new(2)];
        let mut ever = [false; 2];
        for _day in 0..14 {
            for arm in &mut arms {
                let more = users(&mut generator, 100, 0.0);
                arm.merge(&Moments::of(&[&more.clicks, &more.impressions]));
            }
            let [control, treatment] = [0, 1].map(|arm: usize| ab::measure(Measure::Ratio(0, 1), &arms[arm]).expect("users"));
            let effect = ab::compare(&control, &treatment, 0.05).absolute;
            let excludes = |interval: Option<Interval>| !holds(interval, 0.0);
            ever = [ever[0] | excludes(effect.always_valid_interval), ever[1] | excludes(effect.interval)];
        }
        ever
    });
    [0, 1].map(|i: usize| share(found.iter().map(|found| found[i])))
}

/// Of worlds with a lift of their own, the share whose 95 % interval of the relative lift holds it: of the click-through rate, of its
/// CUPED, of clicks per user, and by the bootstrap.
pub fn lift_coverage(worlds: u64) -> [f64; 4] {
    let found = for_seeds(worlds, |seed| {
        let lift = 0.3 * ((seed % 7) as f64 / 6.0 - 0.3);
        let [control, treatment] = arms(seed, [700, 900], lift);
        let moments = |arm: &Users| Moments::of(&[&arm.clicks, &arm.impressions, &arm.before]);
        let (a, b) = (moments(&control), moments(&treatment));
        let covers = |a: &ab::Arm, b: &ab::Arm| holds(ab::compare(a, b, 0.05).relative.and_then(|effect| effect.interval), lift);
        let by = |measure| covers(&ab::measure(measure, &a).expect("users"), &ab::measure(measure, &b).expect("users"));
        let adjusted = ab::cuped(&a, &b, Measure::Ratio(0, 1), Measure::Mean(2)).expect("users");
        let of_arm = |arm: &Users, name: u64| {
            let ids: Vec<u64> = (0..arm.clicks.len() as u64).map(|i| i * 2 + name).collect();
            let clusters = bootstrap::Clusters::new(&ids);
            let sums = clusters.sums(|row| [arm.clicks[row], arm.impressions[row]]);
            bootstrap::totals(&bootstrap::Plan { replicates: 200, alpha: 0.05, seed }, &clusters, &sums)
        };
        let lifts: Vec<Option<f64>> =
            of_arm(&control, 0).iter().zip(of_arm(&treatment, 1)).map(|(a, b)| Some((b[0] / b[1]) / (a[0] / a[1]) - 1.0)).collect();
        [
            by(Measure::Ratio(0, 1)),
            covers(&adjusted.control, &adjusted.treatment),
            by(Measure::Mean(0)),
            holds(bootstrap::percentile(&lifts, 0.05), lift),
        ]
    });
    [0, 1, 2, 3].map(|i: usize| share(found.iter().map(|found| found[i])))
}

// --------------------------------------------------------------------------------------------------------------- off-policy worlds

/// A world of decisions: what is chosen from, how contexts look, how both policies choose, and what each choice earns.
pub struct World {
    actions: usize,
    /// How a context's features and an action make up the reward's logit.
    taste: Vec<[f64; FEATURES]>,
    bias: Vec<f64>,
    /// The policies' own tastes, and how far they follow them.
    logging: Vec<[f64; FEATURES]>,
    target: Vec<[f64; FEATURES]>,
    greed: [f64; 2],
    rate: f64,
}

const FEATURES: usize = 3;

/// Logged decisions of a world, with a model of the reward.
#[derive(Default)]
pub struct Log {
    rewards: Vec<f64>,
    propensities: Vec<f64>,
    targets: Vec<f64>,
    users: Vec<u64>,
    chosen: Vec<f64>,
    under_target: Vec<f64>,
}

/// How good the model of the reward is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Q {
    /// The true expected reward, but for a user's own part.
    Exact,
    /// The truth with an error of each action.
    Informative,
    /// Twice the truth.
    Biased,
    /// Noise that knows nothing.
    Noise,
}

impl World {
    pub fn draw(seed: u64) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        let actions = generator.random_range(2..9);
        let normal = Normal::new(0.0, 1.0).expect("a deviation");
        let tastes = |generator: &mut ChaCha8Rng| -> Vec<[f64; FEATURES]> {
            (0..actions).map(|_| std::array::from_fn(|_| normal.sample(generator))).collect()
        };
        let (taste, logging, own) = (tastes(&mut generator), tastes(&mut generator), tastes(&mut generator));
        // The target leans towards what earns, more in some worlds than in others.
        let lean: f64 = generator.random_range(0.0..1.0);
        let blend = |(own, taste): (&[f64; FEATURES], &[f64; FEATURES])| std::array::from_fn(|i| (1.0 - lean) * own[i] + lean * taste[i]);
        let target = own.iter().zip(&taste).map(blend).collect();
        Self {
            actions,
            bias: (0..actions).map(|_| 0.5 * normal.sample(&mut generator)).collect(),
            greed: [generator.random_range(0.1..0.8), generator.random_range(0.2..1.6)],
            rate: generator.random_range(-2.5..-0.5),
            taste,
            logging,
            target,
        }
    }

    fn policy(&self, tastes: &[[f64; FEATURES]], greed: f64, context: &[f64; FEATURES]) -> Vec<f64> {
        let score = |taste: &[f64; FEATURES]| (greed * taste.iter().zip(context).map(|(a, b)| a * b).sum::<f64>()).exp();
        let scores: Vec<f64> = tastes.iter().map(score).collect();
        let total: f64 = scores.iter().sum();
        scores.into_iter().map(|score| score / total).collect()
    }

    fn reward(&self, context: &[f64; FEATURES], action: usize, habit: f64) -> f64 {
        let logit = self.rate + self.bias[action] + habit + 0.7 * self.taste[action].iter().zip(context).map(|(a, b)| a * b).sum::<f64>();
        1.0 / (1.0 + (-logit).exp())
    }

    fn context(generator: &mut ChaCha8Rng) -> [f64; FEATURES] {
        std::array::from_fn(|_| Normal::new(0.0, 1.0).expect("a deviation").sample(generator))
    }

    fn habit(generator: &mut ChaCha8Rng) -> f64 {
        Normal::new(0.0, 0.7).expect("a deviation").sample(generator)
    }

    /// The true value of the target policy, from contexts enough that what is left to chance does not matter.
    pub fn value(&self, seed: u64) -> f64 {
        const CONTEXTS: usize = 20_000;
        let mut generator = ChaCha8Rng::seed_from_u64(seed ^ 0xF00D);
        let one = |_| {
            let (context, habit) = (Self::context(&mut generator), Self::habit(&mut generator));
            let p = self.policy(&self.target, self.greed[1], &context);
            (0..self.actions).map(|action| p[action] * self.reward(&context, action, habit)).sum::<f64>()
        };
        (0..CONTEXTS).map(one).sum::<f64>() / CONTEXTS as f64
    }

    /// Decisions of users with habits: a user's rewards are alike.
    pub fn log(&self, seed: u64, users: u64, q: Q) -> Log {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        let mut log = Log::default();
        for user in 0..users {
            let habit = Self::habit(&mut generator);
            for _ in 0..generator.random_range(1..8) {
                let context = Self::context(&mut generator);
                let logging = self.policy(&self.logging, self.greed[0], &context);
                let target = self.policy(&self.target, self.greed[1], &context);
                let mut left = generator.random::<f64>();
                let action = logging
                    .iter()
                    .position(|p| {
                        left -= p;
                        left < 0.0
                    })
                    .unwrap_or(self.actions - 1);
                let reward = generator.random_bool(self.reward(&context, action, habit));
                let predict = |action: usize| {
                    let truth = self.reward(&context, action, 0.0);
                    let noise = ((action as f64 + 1.0) * 12.9898 + 78.233).sin();
                    match q {
                        Q::Exact => truth,
                        Q::Informative => truth * (1.0 + 0.3 * noise),
                        Q::Biased => 2.0 * truth,
                        // A number that has nothing to do with what is earned.
                        Q::Noise => 0.5 + 0.5 * (noise * 1000.0 + context[0] * 37.0).sin(),
                    }
                };
                log.rewards.push(f64::from(u8::from(reward)));
                log.propensities.push(logging[action]);
                log.targets.push(target[action]);
                log.users.push(user);
                log.chosen.push(predict(action));
                log.under_target.push((0..self.actions).map(|action| target[action] * predict(action)).sum());
            }
        }
        log
    }
}

impl Log {
    fn evaluate(&self, replicates: usize, seed: u64) -> ope::Evaluation {
        let rounds = Rounds {
            rewards: &self.rewards,
            propensities: &self.propensities,
            targets: &self.targets,
            users: &self.users,
            model: Some(Model { chosen: &self.chosen, target: &self.under_target, refitted: &[] }),
            embeddings: None,
            unsupported: Some(0.0),
        };
        ope::evaluate(&rounds, &ope::Plan { replicates, ..ope::Plan::default() }, seed).expect("a sound log")
    }
}

/// Of the estimators whose intervals promise to hold the truth.
pub const HONEST: [Estimator; 4] = [Estimator::Ips, Estimator::Snips, Estimator::Dr, Estimator::Sndr];

pub struct OpeCoverage {
    pub accepted: u64,
    pub refused: u64,
    /// Of the accepted worlds whose interval holds the true value, by [`HONEST`].
    pub covered: [f64; 4],
    /// The same without the overlap check, of the refused.
    pub covered_of_refused: [f64; 4],
}

/// Worlds until `accepted` of them pass the overlap check.
pub fn ope_coverage(accepted: u64, users: u64) -> OpeCoverage {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    let mut next = 0;
    while (good.len() as u64) < accepted {
        let first = next;
        next += (accepted / 2).max(50);
        let found = for_seeds(next - first, |offset| {
            let seed = first + offset;
            let world = World::draw(seed);
            let truth = world.value(seed);
            let evaluation = world.log(seed, users, Q::Informative).evaluate(1_000, seed);
            let interval =
                |estimator| evaluation.estimates.iter().find(|found| found.estimator == estimator).and_then(|found| found.interval);
            (evaluation.identified(), HONEST.map(|estimator| holds(interval(estimator), truth)))
        });
        for (identified, covered) in found {
            if (good.len() as u64) < accepted {
                if identified { good.push(covered) } else { bad.push(covered) }
            }
        }
    }
    let rates = |found: &[[bool; 4]]| [0, 1, 2, 3].map(|i: usize| share(found.iter().map(|covered| covered[i])));
    OpeCoverage { accepted: good.len() as u64, refused: bad.len() as u64, covered: rates(&good), covered_of_refused: rates(&bad) }
}

/// Root mean squared errors of IPS, DM and DR over logs of accepted worlds, relative to the true value.
pub fn errors(worlds: u64, q: Q) -> [f64; 3] {
    let found = for_seeds(worlds, |seed| {
        let world = World::draw(seed);
        let truth = world.value(seed);
        let evaluation = world.log(seed, 300, q).evaluate(2, seed);
        let error = |estimator| {
            let value = evaluation.estimates.iter().find(|found| found.estimator == estimator).expect("all are there").value;
            (value / truth - 1.0).powi(2)
        };
        evaluation.identified().then(|| [Estimator::Ips, Estimator::Dm, Estimator::Dr].map(error))
    });
    let found: Vec<[f64; 3]> = found.into_iter().flatten().collect();
    [0, 1, 2].map(|i: usize| (found.iter().map(|errors| errors[i]).sum::<f64>() / found.len() as f64).sqrt())
}

/// Worlds of two equally good ads, one of which serves ten times in eleven: how often the difference of always showing the other is
/// found to be a loss, with about so many users who click.
pub fn false_losses(worlds: u64, clicking_users: u64) -> f64 {
    let found = for_seeds(worlds, |seed| {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let users: Vec<u64> = (0..20 * clicking_users).map(|_| random.random()).collect();
        let common: Vec<bool> = users.iter().map(|_| random.random_bool(10.0 / 11.0)).collect();
        let rewards: Vec<f64> = users.iter().map(|_| f64::from(u8::from(random.random_bool(0.05)))).collect();
        let one_if = |yes: bool| f64::from(u8::from(yes));
        let propensities: Vec<f64> = common.iter().map(|common| if *common { 10.0 / 11.0 } else { 1.0 / 11.0 }).collect();
        let [rare, serving]: [Vec<f64>; 2] = [false, true].map(|always| common.iter().map(|common| one_if(*common == always)).collect());
        let rounds = |targets| Rounds {
            rewards: &rewards,
            propensities: &propensities,
            targets,
            users: &users,
            model: None,
            embeddings: None,
            unsupported: None,
        };
        let plan = ope::Plan { replicates: 300, ..ope::Plan::default() };
        let found = ope::difference(&rounds(&rare), &rounds(&serving), &plan, seed).expect("sound columns");
        found.and_then(|found| found.difference.interval).is_some_and(|interval| interval.high < 0.0)
    });
    share(found)
}

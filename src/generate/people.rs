//! What one user does on one day, ads apart: visits with searches, views, clicks, carts and purchases.
//!
//! Nobody shops across midnight, so that a day's logs depend on that day alone.

use super::words::CATEGORIES;
use super::world::{DAY, HOUR, SECOND, Stream, User, World, any_category, day_number, midnight};
use chrono::{Datelike, NaiveDate};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Poisson};

/// One session, as the ad server sees it.
#[derive(Clone, Debug)]
pub struct Visit {
    pub user: u32,
    /// Number of the visit within the user's day.
    pub index: u32,
    pub at: i64,
    pub hour: u8,
    /// Index into the user's devices.
    pub device: u8,
    /// Whether the user is signed in.
    pub signed_in: bool,
    /// The category that the visit is about: what its first events show.
    pub focus: u8,
    /// Pages with ads, [`SLOTS`](super::serving::SLOTS) on each.
    pub pages: u8,
}

/// One thing done in a visit.
#[derive(Clone, Debug)]
pub struct Event {
    /// Index into the visits.
    pub visit: usize,
    pub at: i64,
    pub action: Action,
    pub item: Option<usize>,
    /// What was typed, or what led to the item.
    pub query: Option<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    View,
    Search,
    Click,
    Cart,
    Purchase,
}

/// Relative traffic by local hour; the last visits begin at 23:30.
const HOURS: [f64; 24] =
    [1.5, 0.8, 0.4, 0.2, 0.2, 0.4, 1.0, 2.0, 3.0, 4.0, 4.5, 4.8, 5.5, 5.0, 4.2, 4.0, 4.0, 4.2, 5.0, 6.5, 8.0, 8.5, 6.5, 3.0];

/// Share of visits that have nothing to do with the user's interests.
const BROWSING: f64 = 0.25;

/// Adds the visits and events of a user's day.
pub fn day(world: &World, user: usize, date: NaiveDate, visits: &mut Vec<Visit>, events: &mut Vec<Event>) {
    let person = &world.users[user];
    let start = midnight(date);
    if person.registered >= start {
        return;
    }
    let mut rng = world.dice(Stream::Visits, [user as u64, day_number(date), 0]);
    let weekend = if date.weekday().number_from_monday() > 5 { 1.06 } else { 0.98 };
    let count = Poisson::new(person.sessions * weekend).expect("a positive mean").sample(&mut rng) as u32;
    for index in 0..count {
        let visit = visit(person, user, index, start, &mut rng);
        events_of(world, person, &visit, visits.len(), &mut rng, events);
        visits.push(visit);
    }
}

fn visit(person: &User, user: usize, index: u32, start: i64, rng: &mut ChaCha8Rng) -> Visit {
    let mut left = rng.random::<f64>() * HOURS.iter().sum::<f64>();
    let hour = HOURS
        .iter()
        .position(|weight| {
            left -= weight;
            left < 0.0
        })
        .unwrap_or(0);
    let at = (hour as i64 * HOUR + rng.random_range(0..HOUR)).min(DAY - HOUR / 2);
    let known: Vec<usize> = (0..person.devices.len()).filter(|&k| person.devices[k].since < start).collect();
    // The first device is the main one.
    let device = if known.len() < 2 || rng.random_bool(0.6) { 0 } else { known[rng.random_range(1..known.len())] };
    Visit {
        user: user as u32,
        index,
        at: start + at,
        hour: (at / HOUR) as u8,
        device: device as u8,
        signed_in: person.devices[device].linked && rng.random_bool(0.6),
        focus: focus(person, rng) as u8,
        pages: 1 + u8::from(rng.random_bool(0.5)) + u8::from(rng.random_bool(0.3)),
    }
}

fn focus(person: &User, rng: &mut ChaCha8Rng) -> usize {
    if rng.random_bool(BROWSING) {
        return any_category(rng);
    }
    let mut left = rng.random::<f64>();
    let found = person.interests.iter().find(|(_, weight)| {
        left -= weight;
        left < 0.0
    });
    found.unwrap_or(&person.interests[0]).0
}

fn events_of(world: &World, person: &User, visit: &Visit, number: usize, rng: &mut ChaCha8Rng, events: &mut Vec<Event>) {
    let focus = usize::from(visit.focus);
    let mut at = visit.at;
    let query = rng.random_bool(0.45).then(|| query(person, focus, rng));
    let mut add = |at: &mut i64, action, item, rng: &mut ChaCha8Rng| {
        events.push(Event { visit: number, at: *at, action, item, query });
        *at += rng.random_range(2..30) * SECOND;
    };
    if query.is_some() {
        add(&mut at, Action::Search, None, rng);
    }
    loop {
        // A result or two of every search is beside the point.
        let category = if rng.random_bool(0.06) { any_category(rng) } else { focus };
        let item = Some(world.pick_item(category, person.frugality, rng));
        add(&mut at, Action::View, item, rng);
        if rng.random_bool(0.4) {
            add(&mut at, Action::Click, item, rng);
            if rng.random_bool(0.18) {
                add(&mut at, Action::Cart, item, rng);
                if rng.random_bool(0.4) {
                    add(&mut at, Action::Purchase, item, rng);
                }
            }
        }
        if rng.random_bool(0.5) || at > visit.at + HOUR / 3 {
            break;
        }
    }
}

/// What somebody types who looks for a category: its name, its words, or first the name of the category above.
fn query(person: &User, focus: usize, rng: &mut ChaCha8Rng) -> &'static str {
    let category = match CATEGORIES[focus].parent {
        Some(parent) if rng.random_bool(0.3) => &CATEGORIES[parent],
        _ => &CATEGORIES[focus],
    };
    let english = rng.random_bool(person.english);
    let (name, words) = if english { (category.en, category.en_words) } else { (category.zh, category.zh_words) };
    if rng.random_bool(0.5) { name } else { words[rng.random_range(0..words.len())] }
}

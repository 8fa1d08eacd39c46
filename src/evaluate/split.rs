//! The split of the users among the arms, counted where chance made it: over the users of the table that served, by their salted hash.
//!
//! Impressions cannot be counted for that. The plan leaves the arms different shares of opportunities without an ad, so that a healthy
//! night has unequal numbers of users with one. Where the logs hold events, whoever was there on the day is counted, ad or none; else
//! everybody in the table is. That the arms were also served as assigned is a check of its own.

use super::incremental::Person;
use super::night::Rows;
use crate::statistics::ab::{self, Srm};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Split {
    /// Who was counted.
    pub population: String,
    /// By arm.
    pub users: BTreeMap<String, u64>,
    #[serde(flatten)]
    pub srm: Srm,
}

/// Counts the `population` by arm against the planned `shares`; of it only the users who were `active`, where that is known.
pub fn measure(
    population: &[Person],
    active: Option<&HashSet<u64>>,
    shares: &BTreeMap<String, f64>,
    skipped: &mut Vec<String>,
) -> Option<Split> {
    if population.is_empty() || shares.is_empty() {
        skipped.push("SRM: no table of ours split the users of the day".into());
        return None;
    }
    let mut users: BTreeMap<String, u64> = shares.keys().map(|arm| (arm.clone(), 0)).collect();
    let counted = population.iter().filter(|person| active.is_none_or(|active| active.contains(&person.user)));
    counted.for_each(|person| *users.entry(person.arm.clone()).or_default() += 1);
    let counts: Vec<u64> = users.values().copied().collect();
    let planned: Vec<f64> = users.keys().map(|arm| shares.get(arm).copied().unwrap_or(0.0)).collect();
    let Some(srm) = ab::srm(&counts, &planned) else {
        skipped.push("SRM: none of the table's users was there on the day".into());
        return None;
    };
    let population = match active {
        Some(_) => "users of the table with an event on the day, shown an ad or not, by the assigned arm",
        None => "all users of the table, by the assigned arm: the logs hold no events to say who was there",
    };
    Some(Split { population: population.to_owned(), users, srm })
}

/// Of the population's users with an impression, those who were served in another arm than they were assigned to, and all of them.
pub fn served_otherwise(rows: &Rows, population: &[Person]) -> (u64, u64) {
    let assigned: HashMap<u64, &str> = population.iter().map(|person| (person.user, person.arm.as_str())).collect();
    let (mut otherwise, mut all) = (BTreeSet::new(), BTreeSet::new());
    for row in 0..rows.count() {
        let (Some(assigned), Some(served)) = (assigned.get(&rows.users[row]), &rows.arms[row]) else { continue };
        all.insert(rows.users[row]);
        if served != assigned {
            otherwise.insert(rows.users[row]);
        }
    }
    (otherwise.len() as u64, all.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::super::night::small::{Seen, rows};
    use super::*;

    fn people(champion: u64, holdout: u64) -> Vec<Person> {
        let person = |user: u64| {
            let arm = if user < champion { "champion" } else { "holdout" };
            Person { user, arm: arm.to_owned(), would_be_shown: user.is_multiple_of(2) }
        };
        (0..champion + holdout).map(person).collect()
    }

    fn shares() -> BTreeMap<String, f64> {
        BTreeMap::from([("champion".to_owned(), 0.9), ("holdout".to_owned(), 0.1)])
    }

    #[test]
    fn whoever_chance_assigned_is_counted_and_not_who_was_shown_an_ad() {
        let measured = |people: &[Person], active: Option<&HashSet<u64>>| measure(people, active, &shares(), &mut Vec::new()).unwrap();
        let healthy = people(9_000, 1_000);
        let all = measured(&healthy, None);
        assert_eq!((all.srm.p, all.srm.alarm, all.users["champion"], all.users["holdout"]), (1.0, false, 9_000, 1_000));
        assert!(all.population.starts_with("all users of the table"), "{}", all.population);

        // Every third user was in the shop, and a stranger whom the table does not know.
        let there: HashSet<u64> = (0..10_000).filter(|user| user % 3 == 0).chain([77_777]).collect();
        let active = measured(&healthy, Some(&there));
        assert_eq!((active.users["champion"], active.users["holdout"], active.srm.alarm), (3_000, 334, false));
        assert!(active.population.contains("with an event on the day"), "{}", active.population);

        // Half of the holdout cannot reach the shop.
        let there: HashSet<u64> = (0..10_000).filter(|user| *user < 9_000 || user % 2 == 0).collect();
        assert!(measured(&healthy, Some(&there)).srm.alarm);
        assert!(measured(&people(9_500, 500), None).srm.alarm, "the hash itself splits wrongly");
    }

    #[test]
    fn a_split_needs_a_table_and_users_who_were_there() {
        let mut skipped = Vec::new();
        assert_eq!(measure(&[], None, &shares(), &mut skipped), None);
        assert_eq!(measure(&people(9, 1), Some(&HashSet::new()), &shares(), &mut skipped), None);
        assert_eq!(skipped.len(), 2, "{skipped:?}");
    }

    #[test]
    fn a_user_served_in_another_arm_is_found() {
        let seen = |user: u64, arm: &'static str| Seen { user, arm, ..Seen::default() };
        // User 0 twice as assigned, user 1 once otherwise, user 95 as assigned, user 500 in no table.
        let rows = rows(&[seen(0, "champion"), seen(0, "champion"), seen(1, "holdout"), seen(95, "holdout"), seen(500, "holdout")]);
        assert_eq!(served_otherwise(&rows, &people(90, 10)), (1, 3));
    }
}

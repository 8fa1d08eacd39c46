//! Who is served what: the arms of the experiment that runs every night.
//!
//! A user's arm is a hash of the pseudonym and the experiment's salt, so it needs no table, stays the same from night to night,
//! and is drawn anew by changing the salt. Each arm plans with its own share of every budget: arms that compete for the same
//! money bias their comparison upward (arXiv 2012.08724).

use crate::error::{Error, Result};
use crate::platform::pseudonym::Key;
use serde::{Deserialize, Serialize};
use std::fmt;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// The plan.
    Champion,
    /// The plan, mixed with ads drawn evenly: what off-policy evaluation learns from.
    Explore,
    /// No targeting: ads drawn evenly.
    Holdout,
}

impl Arm {
    /// In the order of their names.
    pub const ALL: [Arm; 3] = [Arm::Champion, Arm::Explore, Arm::Holdout];

    pub fn as_str(self) -> &'static str {
        match self {
            Arm::Champion => "champion",
            Arm::Explore => "explore",
            Arm::Holdout => "holdout",
        }
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Shares of users, traffic and money; they sum to 1.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Shares {
    pub champion: f64,
    /// More: off-policy estimates of other plans get narrower, and this night's earns less.
    pub explore: f64,
    /// More: the lift of targeting is known sooner, and fewer users are targeted.
    pub holdout: f64,
}

impl Default for Shares {
    fn default() -> Self {
        Self { champion: 0.85, explore: 0.10, holdout: 0.05 }
    }
}

impl Shares {
    pub fn check(&self) -> Result<()> {
        let shares = Arm::ALL.map(|arm| self.of(arm));
        if !shares.iter().all(|share| (0.0..=1.0).contains(share)) || (shares.iter().sum::<f64>() - 1.0).abs() > 1e-9 {
            return Err(Error::usage(format_args!("[targeting.shares] {shares:?} are not shares that sum to 1")));
        }
        if self.champion == 0.0 {
            return Err(Error::usage("[targeting.shares] champion = 0 would serve the plan to nobody"));
        }
        Ok(())
    }

    pub fn of(&self, arm: Arm) -> f64 {
        match arm {
            Arm::Champion => self.champion,
            Arm::Explore => self.explore,
            Arm::Holdout => self.holdout,
        }
    }

    /// An arm's part of an amount in micro-units; the parts never sum to more than the amount.
    pub fn part(&self, amount: i64, arm: Arm) -> i64 {
        // In billionths, rounded down; the thousandth of one makes up for what 0.85 lacks as a float.
        (i128::from(amount) * ((self.of(arm) * 1e9 + 1e-3) as i128) / 1_000_000_000) as i64
    }
}

/// Who is in which arm of a table: all that an ad server must know besides its rows. The tables' manifest tells it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Assignment {
    pub salt: String,
    pub shares: Shares,
    /// Of the key of the table's pseudonyms: its version, and its name without the secret.
    pub key_version: u32,
    pub key: String,
}

impl Assignment {
    pub fn of(settings: &super::Settings, key: &Key) -> Self {
        Self { salt: settings.salt.clone(), shares: settings.shares, key_version: key.version(), key: key.fingerprint() }
    }

    /// Under another key every user would be a stranger to the table.
    pub fn check_key(&self, key: &Key) -> Result<()> {
        if self.key == key.fingerprint() {
            return Ok(());
        }
        Err(Error::usage(format_args!("the table's pseudonyms come from key {}, not from {}", self.key, key.fingerprint()))
            .action("give the key with which the table was published"))
    }
}

/// The arm that serves a user.
pub fn arm_of(pseudonym: &str, salt: &str, shares: &Shares) -> Arm {
    let hash = xxh3_64_with_seed(pseudonym.as_bytes(), xxh3_64(salt.as_bytes()));
    // The upper 53 bits: an exact float in [0, 1).
    let draw = (hash >> 11) as f64 / (1u64 << 53) as f64;
    if draw < shares.holdout {
        Arm::Holdout
    } else if draw < shares.holdout + shares.explore {
        Arm::Explore
    } else {
        Arm::Champion
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arms_get_their_shares_and_a_new_salt_draws_anew() {
        let shares = Shares::default();
        let users: Vec<String> = (0..100_000).map(|user| format!("u_{user}")).collect();
        let arms = |salt: &str| users.iter().map(|user| arm_of(user, salt, &shares)).collect::<Vec<_>>();
        let (a, b) = (arms("a"), arms("b"));
        assert_eq!(a, arms("a"));
        for arm in Arm::ALL {
            let share = a.iter().filter(|of| **of == arm).count() as f64 / 1e5;
            // Five standard errors.
            assert!((share - shares.of(arm)).abs() < 5.0 * (share * (1.0 - share) / 1e5).sqrt(), "{arm} {share}");
        }
        let both = a.iter().zip(&b).filter(|(a, b)| **a == Arm::Explore && **b == Arm::Explore).count();
        assert!((800..1200).contains(&both), "{both} of 1000 expected if the draws are independent");
    }

    #[test]
    fn shares_are_checked_and_never_give_away_more_than_there_is() {
        Shares::default().check().unwrap();
        Shares { champion: 1.0, explore: 0.0, holdout: 0.0 }.check().unwrap();
        for (champion, explore, holdout) in [(0.9, 0.2, 0.1), (0.0, 0.5, 0.5), (1.1, -0.1, 0.0), (f64::NAN, 0.5, 0.5)] {
            assert!(Shares { champion, explore, holdout }.check().is_err());
        }
        for amount in [0, 1, 99, 9_000_000_000_000_000] {
            let shares = Shares { champion: 1.0 / 3.0, explore: 1.0 / 3.0, holdout: 1.0 / 3.0 };
            assert!(Arm::ALL.iter().map(|arm| shares.part(amount, *arm)).sum::<i64>() <= amount);
        }
        assert_eq!(Shares::default().part(1_000_000, Arm::Champion), 850_000);
    }
}

//! A committed table as serving stores take it: one record a user, one a segment's ad in an arm.

use crate::error::{Error, Result};
use crate::platform::storage::Store;
use crate::publish::{CommitKind, Tables, choose, history};
use crate::types::column;
use arrow::array::{Array, Float64Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq)]
pub struct Release {
    pub job: String,
    /// Names the content: the key of its folder.
    pub run: String,
    pub generation: u64,
    pub policy_version: String,
    /// Runs that a store may hold beside it: those committed since somebody was last forgotten or suppressed.
    pub may_stay: Vec<String>,
    pub users: Vec<User>,
    pub ads: Vec<Ad>,
}

/// A pseudonym's segments, the one served first.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    pub user_id: String,
    pub segments: Vec<String>,
}

/// What one arm of a segment shows, likeliest first.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Ad {
    pub segment_id: String,
    pub arm: String,
    pub rank: i64,
    pub ad_id: String,
    /// At an opportunity.
    pub propensity: f64,
    pub bid_multiplier: Option<f64>,
    /// Impressions a user a day.
    pub frequency_cap: Option<i64>,
    pub valid_from: String,
    pub valid_to: String,
}

impl Release {
    /// The table that serves, or the one of a generation or policy version.
    pub async fn read(output: &Store, wanted: Option<&str>) -> Result<Self> {
        let (commit, folder) = choose(output, wanted).await?;
        let tables = Tables::read(&folder).await?;
        let commits = history(output).await?;
        let since = commits.iter().rposition(|commit| commit.kind == CommitKind::Forget).unwrap_or(0);
        Ok(Self {
            run: commit.run().to_owned(),
            may_stay: commits[since..].iter().map(|commit| commit.run().to_owned()).collect(),
            job: commit.job,
            generation: commit.generation,
            policy_version: commit.policy_version,
            users: users(&tables.user_segments)?,
            ads: ads(&tables.segment_ads)?,
        })
    }
}

/// The table is sorted by user and rank.
fn users(rows: &RecordBatch) -> Result<Vec<User>> {
    let (ids, segments) = (column::<StringArray>(rows, "user_id")?, column::<StringArray>(rows, "segment_id")?);
    let mut users: Vec<User> = Vec::new();
    for (user, segment) in ids.iter().flatten().zip(segments.iter().flatten()) {
        match users.last_mut().filter(|last| last.user_id == user) {
            Some(last) => last.segments.push(segment.to_owned()),
            None => users.push(User { user_id: user.to_owned(), segments: vec![segment.to_owned()] }),
        }
    }
    Ok(users)
}

fn ads(rows: &RecordBatch) -> Result<Vec<Ad>> {
    let text = |name: &str| column::<StringArray>(rows, name);
    let (segments, arms, ads) = (text("segment_id")?, text("arm")?, text("ad_id")?);
    let (ranks, caps) = (column::<Int64Array>(rows, "rank")?, column::<Int64Array>(rows, "frequency_cap")?);
    let (propensities, bids) = (column::<Float64Array>(rows, "propensity")?, column::<Float64Array>(rows, "bid_multiplier")?);
    let (from, to) = (column::<TimestampMicrosecondArray>(rows, "valid_from")?, column::<TimestampMicrosecondArray>(rows, "valid_to")?);
    let time = |times: &TimestampMicrosecondArray, row: usize| {
        let time = DateTime::from_timestamp_micros(times.value(row)).ok_or_else(|| Error::contract("a validity lies outside time"))?;
        Ok::<_, Error>(time.to_rfc3339_opts(SecondsFormat::Secs, true))
    };
    let row = |row: usize| {
        Ok(Ad {
            segment_id: segments.value(row).to_owned(),
            arm: arms.value(row).to_owned(),
            rank: ranks.value(row),
            ad_id: ads.value(row).to_owned(),
            propensity: propensities.value(row),
            bid_multiplier: bids.is_valid(row).then(|| bids.value(row)),
            frequency_cap: caps.is_valid(row).then(|| caps.value(row)),
            valid_from: time(from, row)?,
            valid_to: time(to, row)?,
        })
    };
    (0..rows.num_rows()).map(row).collect()
}

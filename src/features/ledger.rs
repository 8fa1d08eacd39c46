//! Which snapshot is taken from an earlier night, which is mended for some users, which is computed anew, and why.
//!
//! A snapshot stands in a folder named by what decides its rows: the statement, the moments, and the digests of the rows it is shown of
//! each table ([`super::seen`]). Where all of that is as on an earlier night the step is finished and is reused, as on a rerun. Where
//! only some users' rows differ and the table is made user by user, the others' rows are taken from the earlier snapshot. The ledger is
//! nothing but these folders: `forget` and `gc` may take any of them away, and what is gone is computed again.

use super::seen::{Seen, Users};
use super::{Made, by_user};
use crate::error::Result;
use crate::platform::catalog::Query;
use crate::platform::run::{Done, Manifest, Run, VERSION};
use crate::types::column;
use arrow::array::{BooleanArray, RecordBatch, StringArray};
use arrow::compute::{SortColumn, concat_batches, filter_record_batch, lexsort_to_indices, take_record_batch};
use arrow::datatypes::SchemaRef;
use chrono::{DateTime, NaiveDate, Utc};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What became of one snapshot tonight.
#[derive(Clone, Debug, Serialize, PartialEq, Eq)]
pub struct Entry {
    pub table: String,
    pub day: NaiveDate,
    pub way: Way,
    /// Why it was not reused.
    pub why: Option<String>,
    /// Of a mended one: users whose rows were computed, or are no more.
    pub users: Option<u64>,
}

#[derive(Clone, Copy, Debug, Serialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    Reused,
    Mended,
    Recomputed,
}

/// What became of a night's snapshots, in words: how many were reused, and why the others were not.
pub fn summary(ledger: &[Entry]) -> String {
    let of = |way| ledger.iter().filter(move |entry| entry.way == way);
    let mut parts = vec![format!("{} reused", of(Way::Reused).count())];
    let users: u64 = of(Way::Mended).filter_map(|entry| entry.users).sum();
    if of(Way::Mended).count() > 0 {
        parts.push(format!("{} mended for {users} users", of(Way::Mended).count()));
    }
    let mut reasons: BTreeMap<&str, usize> = BTreeMap::new();
    of(Way::Recomputed).filter_map(|entry| entry.why.as_deref()).for_each(|why| *reasons.entry(why).or_default() += 1);
    if !reasons.is_empty() {
        let reasons: Vec<String> = reasons.iter().map(|(why, count)| format!("{count}: {why}")).collect();
        parts.push(format!("{} computed ({})", of(Way::Recomputed).count(), reasons.join("; ")));
    }
    parts.join(", ")
}

/// Everything that decides a snapshot's rows.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(super) struct Inputs {
    pub sql: String,
    pub as_of: DateTime<Utc>,
    pub cut_off: DateTime<Utc>,
    /// Table -> the digest of what the query is shown of it.
    pub reads: BTreeMap<String, String>,
    pub buckets: usize,
}

/// An earlier snapshot that is right but for some users.
pub(super) struct Mend {
    earlier: Done<Made>,
    /// By bucket.
    pub changed: Vec<BTreeSet<String>>,
}

/// More users of a bucket than this, or a larger share of all, and to compute everybody is no dearer than to pick.
const MOST_USERS: usize = 10_000;
const LARGEST_SHARE: f64 = 0.5;

/// Why no kept snapshot of the table and day is that of `inputs`: what the last one written was made of.
pub(super) fn why(inputs: &Inputs, kept: &[Manifest<Made>]) -> String {
    let Some(last) = kept.first() else { return "nothing of this day is kept".to_owned() };
    let old = match serde_json::from_value::<Inputs>(last.inputs.clone()) {
        Ok(old) if last.version == VERSION => old,
        _ => return format!("what is kept was made by version {}", last.version),
    };
    let mut changed = Vec::new();
    if old.sql != inputs.sql {
        changed.push("its SQL changed".to_owned());
    }
    if (old.as_of, old.cut_off) != (inputs.as_of, inputs.cut_off) {
        changed.push("the time zone or the arrival lag changed".to_owned());
    }
    if old.buckets != inputs.buckets {
        changed.push("the number of buckets changed".to_owned());
    }
    // Another statement may be shown other rows; that is not why.
    let differ = |(name, digest): &(&String, &String)| changed.is_empty() && old.reads.get(*name).is_some_and(|old| old != *digest);
    let tables: Vec<&str> = inputs.reads.iter().filter(differ).map(|(name, _)| name.as_str()).collect();
    if !tables.is_empty() {
        return format!("rows of {} changed", tables.join(" and of "));
    }
    if changed.is_empty() { "what is kept is not whole".to_owned() } else { changed.join("; ") }
}

/// The kept snapshot from which the one of `inputs` differs in few users, if there is one.
pub(super) async fn mend(
    run: &Run,
    query: &Query,
    inputs: &Inputs,
    seen: &BTreeMap<&str, Seen>,
    kept: &[Manifest<Made>],
) -> Result<Option<Mend>> {
    if query.window_days.is_none() || !by_user(&query.grain) {
        return Ok(None);
    }
    'kept: for manifest in kept.iter().filter(|manifest| manifest.version == VERSION) {
        let Ok(old) = serde_json::from_value::<Inputs>(manifest.inputs.clone()) else { continue };
        if seen.iter().any(|(name, seen)| !seen.of_users && old.reads.get(*name) != inputs.reads.get(*name)) {
            continue;
        }
        if (Inputs { reads: inputs.reads.clone(), ..old.clone() }) != *inputs {
            continue;
        }
        let mut views = Vec::new();
        for (name, now) in seen.iter().filter(|(_, seen)| seen.of_users) {
            let before = match old.reads.get(*name) {
                Some(content) => now.users(run, content).await?,
                None => None,
            };
            match before.zip(now.users(run, &now.content).await?) {
                Some(view) => views.push(view),
                None => continue 'kept,
            }
        }
        let Some(changed) = changed(&views, inputs.buckets).await? else { continue };
        if let Some(earlier) = run.earlier(manifest).await? {
            return Ok(Some(Mend { earlier, changed }));
        }
    }
    Ok(None)
}

/// The users of each bucket whose rows differ in a view; `None` when they are too many, or nobody.
async fn changed(views: &[(Users, Users)], buckets: usize) -> Result<Option<Vec<BTreeSet<String>>>> {
    let (mut changed, mut all) = (vec![BTreeSet::new(); buckets], 0);
    for (bucket, changed) in changed.iter_mut().enumerate() {
        let mut known = BTreeSet::new();
        for (before, now) in views {
            let (before, now) = (before.of(bucket).await?, now.of(bucket).await?);
            known.extend(before.keys().chain(now.keys()).cloned());
            changed.extend(before.iter().filter(|(user, digest)| now.get(*user) != Some(*digest)).map(|(user, _)| user.clone()));
            changed.extend(now.into_keys().filter(|user| !before.contains_key(user)));
        }
        all += known.len();
        if changed.len() > MOST_USERS || changed.contains("") {
            return Ok(None);
        }
    }
    let count: usize = changed.iter().map(BTreeSet::len).sum();
    Ok((count as f64 <= LARGEST_SHARE * all as f64).then_some(changed))
}

impl Mend {
    /// The rows of a bucket: those of `anew`, and the earlier ones of all users who did not change, in the order of the key.
    pub async fn with(&self, bucket: usize, file: &str, anew: RecordBatch, schema: &SchemaRef, key: &[String]) -> Result<RecordBatch> {
        let earlier = self.earlier.store.read_parquet(file).await?;
        let users = column::<StringArray>(&earlier, "user_id")?;
        let stays: BooleanArray = users.iter().map(|user| Some(!self.changed[bucket].contains(user.unwrap_or_default()))).collect();
        let earlier = filter_record_batch(&earlier, &stays)?;
        // What Parquet knows of a column beside its type is not part of a table.
        let plain = |rows: RecordBatch| RecordBatch::try_new(schema.clone(), rows.columns().to_vec());
        let rows = concat_batches(schema, &[plain(earlier)?, plain(anew)?])?;
        let by = key.iter().map(|name| SortColumn { values: rows[name.as_str()].clone(), options: None }).collect::<Vec<_>>();
        Ok(take_record_batch(&rows, &lexsort_to_indices(&by, None)?)?)
    }

    /// Users whose rows were not taken over.
    pub fn users(&self) -> u64 {
        self.changed.iter().map(|users| users.len() as u64).sum()
    }
}

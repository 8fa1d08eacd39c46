//! The shop's own segments: SQL that names users, asked of the run date's tables. They are a segment, or the seeds of one.

use crate::error::{Error, Result};
use crate::features::Snapshots;
use crate::ingest::Staged;
use crate::platform::catalog::Query;
use crate::platform::engine;
use crate::platform::run::Run;
use crate::segments::lookalikes::SeedList;
use crate::segments::{Audience, Kind};
use crate::types::column;
use arrow::array::{Array, StringArray};
use chrono::NaiveDate;
use std::collections::{BTreeMap, BTreeSet};

/// The rules that this shop has the tables for; why not the others goes to `skipped`.
pub fn applicable<'a>(run: &'a Run, staged: &Staged, snapshots: &Snapshots, skipped: &mut Vec<String>) -> Vec<&'a Query> {
    let there = |name: &String| staged.has(name) || snapshots.keys(run.date).contains_key(name.as_str());
    let applies = |query: &&Query| match query.reads.iter().find(|name| !there(name)) {
        Some(absent) => {
            skipped.push(format!("segment {}: it reads {absent}, which this shop does not have", query.name));
            false
        }
        None => true,
    };
    run.catalog.segments.iter().filter(applies).collect()
}

/// What decides who is in the rules' segments: their text and what they read.
pub fn keys<'a>(staged: &'a Staged, snapshots: &'a Snapshots, date: NaiveDate, rules: &[&'a Query]) -> BTreeMap<&'a str, Vec<&'a str>> {
    let features = snapshots.keys(date);
    let read = |name: &String| staged.key(name).or_else(|| features.get(name.as_str()).copied());
    let of = |query: &Query| query.reads.iter().filter_map(read).collect::<Vec<_>>();
    rules.iter().map(|query| (query.name.as_str(), [vec![query.sha256.as_str()], of(query)].concat())).collect()
}

/// Asks every rule for its users, and every seed list for its seeds.
///
/// # Errors
/// `Usage`, naming the file, when a rule names nobody's id or somebody twice.
pub async fn rules(run: &Run, staged: &Staged, snapshots: &Snapshots, rules: &[&Query]) -> Result<(Vec<Audience>, Vec<SeedList>)> {
    let (mut audiences, mut lists) = (Vec::new(), Vec::new());
    for query in rules {
        let users = users(run, staged, snapshots, query).await?;
        let (name, label) = (query.name.clone(), query.label.clone().unwrap_or_else(|| query.name.clone()));
        match query.seeds {
            Some(seeds) => lists.push(SeedList { name, label, leads: query.leads, users, size: seeds.size, keeps_seeds: seeds.kept }),
            None => audiences.push(Audience {
                segment_id: Kind::Rule.segment_id(name),
                label,
                kind: Kind::Rule,
                leads: query.leads,
                users: users.into_iter().map(|user| (user, 1.0)).collect(),
            }),
        }
    }
    Ok((audiences, lists))
}

/// The users whom a query names.
async fn users(run: &Run, staged: &Staged, snapshots: &Snapshots, query: &Query) -> Result<BTreeSet<String>> {
    let context = engine::session(&run.engine)?;
    for name in &query.reads {
        staged.register(&context, run, name, run.date, None)?;
    }
    snapshots.register(&context, run.date, None, |name| query.reads.contains(name))?;
    let rows = engine::answer(engine::plan(&context, query, run.as_of()).await?, query).await?;
    let users = column::<StringArray>(&rows, "user_id")?;
    let named = users.iter().flatten().map(str::to_owned).collect::<BTreeSet<_>>();
    if named.len() < users.len() {
        let (path, spare) = (query.path.display(), users.len() - named.len());
        return Err(Error::usage(format_args!("{path}: {spare} of {} rows name no user, or one that another row names", users.len()))
            .action("give one row a user: SELECT DISTINCT user_id … WHERE user_id IS NOT NULL"));
    }
    Ok(named)
}

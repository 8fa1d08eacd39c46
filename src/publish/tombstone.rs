//! Where tables went that were written again without somebody: `targeting/_tombstones/{old folder}.json`.
//!
//! A commit is never rewritten; whoever reads the history reads it through the tombstones, so that going back to an old
//! generation serves the copy without the person, and never fails for want of the old one.

use super::Commit;
use crate::error::{Error, Kind, Result};
use crate::platform::storage::{Created, Store};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

const TOMBSTONES: &str = "targeting/_tombstones";

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(super) struct Tombstone {
    /// The folder that is gone, relative to the output root.
    pub tables: String,
    /// Its copy without the rows.
    pub moved_to: String,
    /// Of the copy's `_manifest.json`.
    pub manifest_sha256: String,
    pub rows_removed: u64,
}

/// By the folder that is gone.
pub(super) type Tombstones = BTreeMap<String, Tombstone>;

pub(super) async fn all(output: &Store) -> Result<Tombstones> {
    let mut found = BTreeMap::new();
    for object in output.list(TOMBSTONES).await? {
        let bytes = output.get(&object.path).await?;
        let tombstone: Tombstone = serde_json::from_slice(&bytes)
            .map_err(|error| Error::internal(format_args!("tombstone {} is not readable: {error}", output.locate(&object.path))))?;
        found.insert(tombstone.tables.clone(), tombstone);
    }
    Ok(found)
}

/// Where a commit's tables lie now.
pub(super) fn resolve(tombstones: &Tombstones, commit: &mut Commit) {
    // A copy is named by its content and has fewer rows than what it copies: the chain ends.
    while let Some(tombstone) = tombstones.get(&commit.tables) {
        commit.tables.clone_from(&tombstone.moved_to);
        commit.manifest_sha256.clone_from(&tombstone.manifest_sha256);
    }
}

pub(super) async fn write(output: &Store, tombstone: &Tombstone) -> Result<()> {
    let path = format!("{TOMBSTONES}/{}.json", tombstone.tables.replace('/', "~"));
    match output.create(&path, serde_json::to_vec_pretty(tombstone)?.into()).await? {
        Created::Ours => Ok(()),
        Created::Theirs => {
            Err(Error::new(Kind::LostRace, format_args!("{} was written by another removal at the same time", output.locate(&path)))
                .action("run `nightmarket forget` again"))
        }
    }
}

//! What the nights before left in a job's output: the last snapshot of a table, and which files have changed since.

use crate::error::Result;
use crate::platform::catalog::{Catalog, Query};
use crate::platform::run::{Manifest, step_of};
use crate::platform::storage::{Object, Store, day_of};
use chrono::NaiveDate;
use std::collections::{BTreeMap, BTreeSet};

/// A finished step of a table.
pub struct Snapshot {
    pub day: NaiveDate,
    pub manifest: Manifest<serde_json::Value>,
    /// Its folder.
    pub store: Store,
}

impl Snapshot {
    /// Whether a query of this text made it: of a feature, comments and blanks aside.
    pub fn is_of(&self, query: &Query) -> bool {
        let sql = self.manifest.inputs.get("sql").and_then(serde_json::Value::as_str);
        sql.is_some_and(|sql| [&query.sha256, &query.statement_sha256].iter().any(|own| *own == sql))
    }
}

/// The latest snapshot of a query: of the day asked for or of the newest; of several, the one written last.
pub async fn last(output: &Store, query: &Query, day: Option<NaiveDate>) -> Result<Option<Snapshot>> {
    let objects = output.list(&format!("{}/{}", query.room(), query.name)).await?;
    read(output, newest(&objects, day)).await
}

/// The queries whose text is not that of their latest snapshot, or that have none.
pub async fn modified(output: &Store, catalog: &Catalog) -> Result<BTreeSet<String>> {
    let mut tables: BTreeMap<(String, String), Vec<Object>> = BTreeMap::new();
    for room in ["staging", "features"] {
        for object in output.list(room).await? {
            let name = object.path.split('/').nth(1).unwrap_or_default().to_owned();
            tables.entry((room.to_owned(), name)).or_default().push(object);
        }
    }
    let mut changed = BTreeSet::new();
    for query in catalog.queries() {
        let objects = tables.get(&(query.room().to_owned(), query.name.clone())).map(Vec::as_slice).unwrap_or_default();
        let found = read(output, newest(objects, None)).await?;
        if found.is_none_or(|snapshot| !snapshot.is_of(query)) {
            changed.insert(query.name.clone());
        }
    }
    Ok(changed)
}

/// `features/user__activity/dt=2026-11-22/0123456789abcdef/_manifest.json`
fn newest(objects: &[Object], day: Option<NaiveDate>) -> Option<(NaiveDate, &Object)> {
    let dated = objects.iter().filter_map(|object| Some((day_of(step_of(&object.path)?, "dt")?, object)));
    dated.filter(|(of, _)| day.is_none_or(|day| day == *of)).max_by_key(|(of, object)| (*of, object.modified, object.path.clone()))
}

async fn read(output: &Store, found: Option<(NaiveDate, &Object)>) -> Result<Option<Snapshot>> {
    let Some((day, object)) = found else { return Ok(None) };
    let folder = step_of(&object.path).unwrap_or_default();
    match serde_json::from_slice(&output.get(&object.path).await?) {
        Ok(manifest) => Ok(Some(Snapshot { day, manifest, store: output.child(folder) })),
        Err(_) => Ok(None),
    }
}

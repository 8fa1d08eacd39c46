//! The raw rows that leak: later rows are put back, half by half, until what is left makes the difference alone.

use super::world::{Other, Row, World};
use super::{Leaked, Night};
use crate::error::Result;
use crate::platform::catalog::Query;
use crate::workbench::diff;
use crate::workbench::text::cells;
use arrow::array::UInt32Array;
use arrow::compute::take_record_batch;
use std::collections::BTreeSet;

/// Rows shown.
const SHOWN: usize = 3;

/// Finds few later rows that change the table of `query`; `None` when no one raw table does it by itself.
pub async fn find(world: &World<'_>, query: &Query, other: Other) -> Result<Option<Leaked>> {
    let names = BTreeSet::from([query.name.as_str()]);
    let without = Night::run(world, &names, &[], Some(other)).await?;
    let matters = async |back: &[Row]| -> Result<bool> {
        let with = Night::run(world, &names, back, Some(other)).await?;
        let (without, with) = (&without.tables[&query.name], &with.tables[&query.name]);
        let diff = diff::compare(query, world.case.day, String::new(), without, with)?;
        Ok(diff.added + diff.removed + diff.changed > 0)
    };
    let parts = &world.logs.parts;
    let tables: BTreeSet<&str> = parts.iter().map(|part| part.table.as_str()).collect();
    for table in tables {
        let of_table = parts.iter().enumerate().filter(|(_, part)| part.table == table);
        let mut rows: Vec<Row> = of_table.flat_map(|(at, _)| world.later_of(at, other).into_iter().map(move |row| (at, row))).collect();
        if rows.is_empty() || !matters(&rows).await? {
            continue;
        }
        while rows.len() > 1 {
            let (first, second) = rows.split_at(rows.len() / 2);
            if matters(first).await? {
                rows = first.to_vec();
            } else if matters(second).await? {
                rows = second.to_vec();
            } else {
                break;
            }
        }
        let mut shown = Vec::new();
        for (at, row) in rows.iter().take(SHOWN) {
            shown.extend(cells(&take_record_batch(&parts[*at].rows, &UInt32Array::from(vec![*row]))?)?);
        }
        let schema = parts[rows[0].0].rows.schema();
        let columns = schema.fields().iter().map(|field| field.name().clone()).collect();
        return Ok(Some(Leaked { table: table.to_owned(), count: rows.len() as u64, columns, rows: shown }));
    }
    Ok(None)
}

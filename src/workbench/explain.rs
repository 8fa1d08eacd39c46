//! What the engine makes of a query.

use crate::error::Result;
use crate::platform::catalog::Query;
use crate::platform::engine;
use crate::workbench::check::{Checked, empty_tables};
use chrono::{DateTime, Utc};
use datafusion::physical_plan::displayable;
use datafusion::prelude::SessionContext;
use std::collections::BTreeMap;

/// The logical plan, optimized, over tables without rows.
pub async fn plans_without_rows(checked: &Checked, query: &Query) -> Result<BTreeMap<&'static str, String>> {
    let context = empty_tables(checked)?;
    let frame = engine::plan(&context, query, DateTime::UNIX_EPOCH).await?;
    Ok(BTreeMap::from([("logical plan", frame.into_optimized_plan()?.display_indent().to_string())]))
}

/// The logical and the physical plan, over the tables of a session.
pub async fn plans(context: &SessionContext, query: &Query, as_of: DateTime<Utc>) -> Result<BTreeMap<&'static str, String>> {
    let frame = engine::plan(context, query, as_of).await?;
    let logical = frame.clone().into_optimized_plan()?.display_indent().to_string();
    let physical = displayable(frame.create_physical_plan().await?.as_ref()).indent(false).to_string();
    Ok(BTreeMap::from([("logical plan", logical), ("physical plan", physical)]))
}

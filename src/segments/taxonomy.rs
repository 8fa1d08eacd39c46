//! The category tree, and which of its nodes may be labels: none that is sensitive, below a sensitive one, unknown, or in a ring.

use super::tables::full;
use crate::error::{Error, Result};
use crate::types::{column, optional_column};
use arrow::array::{Array, BooleanArray, RecordBatch, StringArray};
use std::collections::BTreeMap;

/// The category tree, and which of its nodes may be labels.
pub struct Taxonomy<'a> {
    nodes: BTreeMap<&'a str, Node<'a>>,
    /// Categories that may be labels, each with its ids from the root down to itself.
    pub(super) paths: BTreeMap<&'a str, Vec<&'a str>>,
}

struct Node<'a> {
    parent: Option<&'a str>,
    name: &'a str,
    sensitive: bool,
}

impl<'a> Taxonomy<'a> {
    pub fn read(categories: &'a RecordBatch) -> Result<Self> {
        let ids = full::<StringArray>(categories, "category_id")?;
        let parents = optional_column::<StringArray>(categories, "parent_id")?;
        let names = column::<StringArray>(categories, "name")?;
        let sensitive = column::<BooleanArray>(categories, "sensitive")?;
        let mut nodes = BTreeMap::new();
        for row in 0..categories.num_rows() {
            let id = ids.value(row);
            let node = Node {
                parent: parents.filter(|parents| parents.is_valid(row)).map(|parents| parents.value(row)).filter(|id| !id.is_empty()),
                name: if names.is_valid(row) { names.value(row) } else { id },
                // Not known is not harmless.
                sensitive: sensitive.is_null(row) || sensitive.value(row),
            };
            if nodes.insert(id, node).is_some() {
                return Err(Error::contract(format_args!("category {id} stands twice in the category table")));
            }
        }
        let paths = nodes.keys().filter_map(|&id| Some((id, path(&nodes, id)?))).collect();
        Ok(Self { nodes, paths })
    }

    pub fn may_be_label(&self, category: &str) -> bool {
        self.paths.contains_key(category)
    }

    /// Whether the category table has it.
    pub(super) fn knows(&self, category: &str) -> bool {
        self.nodes.contains_key(category)
    }

    pub(super) fn name(&self, category: &str) -> &'a str {
        self.nodes[category].name
    }

    pub(super) fn parent(&self, category: &str) -> Option<&'a str> {
        self.nodes[category].parent
    }
}

/// The ids from the root to a category; `None` when one on the way is sensitive, unknown, or its own ancestor.
fn path<'a>(nodes: &BTreeMap<&'a str, Node<'a>>, id: &'a str) -> Option<Vec<&'a str>> {
    let mut path = Vec::new();
    let mut next = Some(id);
    while let Some(id) = next {
        let node = nodes.get(id)?;
        if node.sensitive || path.len() > nodes.len() {
            return None;
        }
        path.push(id);
        next = node.parent;
    }
    path.reverse();
    Some(path)
}

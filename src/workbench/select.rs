//! Which tables a command is about.
//!
//! A selector is a name (`user__activity`, `user__*`), a tag (`tag:ads`), a path (`features/`, `sql/shop/features/user__activity.sql`)
//! or `modified`; a `+` before it adds everything it is made of, a `+` behind it everything made of it. Several are a union, and
//! none at all is every table.

use crate::error::{Error, Result};
use crate::platform::catalog::{Catalog, Query, nearest};
use std::collections::BTreeSet;
use std::path::Path;

/// A table as selectors see it.
#[derive(Clone, Copy)]
pub struct Node<'a> {
    pub name: &'a str,
    pub path: &'a Path,
    pub tags: &'a BTreeSet<String>,
    pub reads: &'a BTreeSet<String>,
}

impl<'a> From<&'a Query> for Node<'a> {
    fn from(query: &'a Query) -> Self {
        Self { name: &query.name, path: &query.path, tags: &query.tags, reads: &query.reads }
    }
}

/// Whether a selector asks what changed since the last run, which only a job's output knows.
pub fn asks_for_modified(selectors: &[String]) -> bool {
    selectors.iter().any(|selector| parts(selector).any(|part| part.trim_matches('+') == "modified"))
}

/// The names of the tables that are meant. `modified` is what changed since the last run, when that is known.
pub fn select(catalog: &Catalog, selectors: &[String], modified: Option<&BTreeSet<String>>) -> Result<BTreeSet<String>> {
    let nodes: Vec<Node<'_>> = catalog.queries().map(Node::from).collect();
    select_nodes(&nodes, selectors, modified)
}

pub fn select_nodes(nodes: &[Node<'_>], selectors: &[String], modified: Option<&BTreeSet<String>>) -> Result<BTreeSet<String>> {
    let mut chosen = BTreeSet::new();
    let mut asked = false;
    for part in selectors.iter().flat_map(|selector| parts(selector)) {
        asked = true;
        let core = part.trim_matches('+');
        let mut found = matching(nodes, core, modified)?;
        let (above, below) = (part.starts_with('+'), part.ends_with('+') && part.len() > 1);
        let upstream = if above { closure(nodes, &found, |of, other| of.reads.contains(other.name)) } else { BTreeSet::new() };
        let downstream = if below { closure(nodes, &found, |of, other| other.reads.contains(of.name)) } else { BTreeSet::new() };
        found.extend(upstream);
        found.extend(downstream);
        chosen.extend(found);
    }
    Ok(if asked { chosen } else { nodes.iter().map(|node| node.name.to_owned()).collect() })
}

/// The one table that is meant.
pub fn one<'a>(catalog: &'a Catalog, selector: &str) -> Result<&'a Query> {
    let names = select(catalog, &[selector.to_owned()], None)?;
    let mut found = catalog.queries().filter(|query| names.contains(&query.name));
    match (found.next(), found.next()) {
        (Some(query), None) => Ok(query),
        (None, _) => Err(Error::usage(format_args!("{selector} is no table"))),
        (Some(_), Some(_)) => Err(Error::usage(format_args!("{selector} means {} tables", names.len())).action("name one table")),
    }
}

fn parts(selector: &str) -> impl Iterator<Item = &str> {
    selector.split([',', ' ']).filter(|part| !part.is_empty())
}

fn matching(nodes: &[Node<'_>], core: &str, modified: Option<&BTreeSet<String>>) -> Result<BTreeSet<String>> {
    let names = |matches: &dyn Fn(&Node<'_>) -> bool| -> BTreeSet<String> {
        nodes.iter().filter(|node| matches(node)).map(|node| node.name.to_owned()).collect()
    };
    let found = match core.strip_prefix("tag:") {
        Some(tag) => names(&|node| node.tags.contains(tag)),
        None if core == "modified" => match modified {
            // Nothing modified is an answer, not a slip.
            Some(modified) => return Ok(names(&|node| modified.contains(node.name))),
            None => {
                return Err(Error::usage("`modified` is measured against a job's last run, and no job is known here")
                    .action("name the job: --job jobs/shop.toml"));
            }
        },
        None if core.contains(['/', '\\']) || core.ends_with(".sql") || core.ends_with(".slt") => {
            let wanted = Path::new(core).with_extension("");
            names(&|node| is_below(&node.path.with_extension(""), &wanted))
        }
        None => names(&|node| matches_glob(core, node.name)),
    };
    if !found.is_empty() {
        return Ok(found);
    }
    let tags = nodes.iter().flat_map(|node| node.tags.iter()).map(|tag| format!("tag:{tag}")).collect::<BTreeSet<_>>();
    let candidates = nodes.iter().map(|node| node.name).chain(tags.iter().map(String::as_str));
    let hint = nearest(core, candidates).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
    Err(Error::usage(format_args!("no table matches {core}{hint}")).action("see `nightmarket sql list` for the tables there are"))
}

/// Whether a path lies below another, or is it; the other may be said from the shop's folder or from the working directory.
fn is_below(path: &Path, wanted: &Path) -> bool {
    let parts: Vec<_> = path.components().collect();
    let wanted: Vec<_> = wanted.components().filter(|part| !matches!(part, std::path::Component::CurDir)).collect();
    !wanted.is_empty()
        && (path.starts_with(wanted.iter().collect::<std::path::PathBuf>()) || parts.windows(wanted.len()).any(|window| window == wanted))
}

/// `*` is any text.
fn matches_glob(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == name };
    let Some(rest) = name.strip_prefix(before) else { return false };
    (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| matches_glob(after, &rest[at..]))
}

fn closure(nodes: &[Node<'_>], start: &BTreeSet<String>, next: impl Fn(&Node<'_>, &Node<'_>) -> bool) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&Node<'_>> = nodes.iter().filter(|node| start.contains(node.name)).collect();
    while let Some(node) = open.pop() {
        for other in nodes.iter().filter(|other| next(node, other)) {
            if found.insert(other.name.to_owned()) {
                open.push(other);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(selectors: &[&str]) -> Result<Vec<String>> {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let tables = [
            ("events", "sql/shop/staging/events.sql", set(&[]), set(&["raw.events"])),
            ("user__a", "sql/shop/features/user__a.sql", set(&["growth"]), set(&["events"])),
            ("user__b", "sql/shop/features/user__b.sql", set(&[]), set(&["user__a"])),
            ("ad__c", "sql/shop/features/ad__c.sql", set(&["growth"]), set(&["events"])),
        ];
        let nodes: Vec<Node<'_>> =
            tables.iter().map(|(name, path, tags, reads)| Node { name, path: Path::new(path), tags, reads }).collect();
        let selectors: Vec<String> = selectors.iter().map(|selector| (*selector).to_owned()).collect();
        select_nodes(&nodes, &selectors, Some(&set(&["ad__c"]))).map(|names| names.into_iter().collect())
    }

    #[test]
    fn tables_are_chosen_by_name_tag_path_and_kinship() {
        let cases: [(&[&str], &[&str]); 15] = [
            (&[], &["ad__c", "events", "user__a", "user__b"]),
            (&["user__a"], &["user__a"]),
            (&["+user__a"], &["events", "user__a"]),
            (&["user__a+"], &["user__a", "user__b"]),
            (&["+user__a+"], &["events", "user__a", "user__b"]),
            (&["user__*"], &["user__a", "user__b"]),
            (&["tag:growth"], &["ad__c", "user__a"]),
            (&["tag:growth+"], &["ad__c", "user__a", "user__b"]),
            (&["features/"], &["ad__c", "user__a", "user__b"]),
            (&["sql/shop/staging"], &["events"]),
            (&["./sql/shop/features/user__b.sql"], &["user__b"]),
            (&["features/user__b.slt"], &["user__b"]),
            (&["modified"], &["ad__c"]),
            (&["+modified"], &["ad__c", "events"]),
            (&["user__b,ad__c", "events"], &["ad__c", "events", "user__b"]),
        ];
        for (selectors, expected) in cases {
            assert_eq!(chosen(selectors).expect("chosen"), expected, "{selectors:?}");
        }
    }

    #[test]
    fn a_selector_of_nothing_is_a_slip_and_its_neighbour_is_named() {
        assert!(chosen(&["user_a"]).expect_err("a slip").to_string().contains("did you mean user__a?"));
        assert!(chosen(&["tag:groth"]).expect_err("a slip").to_string().contains("did you mean tag:growth?"));
        assert!(chosen(&["a"]).is_err() && chosen(&["feature/"]).is_err());
    }
}

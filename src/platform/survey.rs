//! A shop's folder -> the catalog of what can be used of it, and everything that is wrong with the rest, short of planning.
//!
//! A broken file takes nothing else with it: whoever reads it is not to blame, and all that is wrong is found in one go.

use crate::error::{Error, Result};
use crate::platform::catalog::{Catalog, ColumnKind, Query, Seeds, Source, nearest};
use crate::platform::diagnostic::{Diagnostic, Severity};
use crate::platform::expectation::{Severity as Level, expectations};
use crate::platform::header::{Header, header_days};
use crate::platform::statement;
use crate::platform::storage::sha256;
use petgraph::algo::{tarjan_scc, toposort};
use petgraph::graphmap::DiGraphMap;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A shop's folder as it is read: what can be used of it, and what is wrong with the rest.
#[derive(Clone, Debug)]
pub struct Survey {
    pub catalog: Catalog,
    pub diagnostics: Vec<Diagnostic>,
    /// Files that are no part of the catalog, by the name their tables would have.
    pub broken: BTreeSet<String>,
}

/// The folders that hold queries.
pub const ROOMS: [&str; 4] = ["staging", "features", "segments", "checks"];

/// Reads `sql/<shop>/` and finds everything that is wrong with it short of planning the queries.
///
/// # Errors
/// `Usage` when there is no such folder.
pub fn survey(folder: &Path) -> Result<Survey> {
    let path = folder.join("sources.toml");
    let text = std::fs::read_to_string(&path).map_err(|error| Error::usage(format_args!("reading {}: {error}", path.display())))?;
    let (sources, mut diagnostics) = read_sources(&path, &text);
    let mut broken = BTreeSet::new();
    let mut queries: BTreeMap<&str, Vec<Query>> = BTreeMap::new();
    for room in ROOMS {
        for path in sql_files(&folder.join(room))? {
            let (query, found) = read_file(&path);
            match query {
                Some(query) => queries.entry(room).or_default().push(query),
                None => drop(path.file_stem().map(|stem| broken.insert(stem.to_string_lossy().into_owned()))),
            }
            diagnostics.extend(found);
        }
    }
    diagnostics.extend(stray(folder, 0));
    let mut known = Names { sources: sources.as_ref(), rooms: BTreeMap::new(), broken: broken.clone() };
    for (room, queries) in &queries {
        known.rooms.insert(room, queries.iter().map(|query| (query.name.clone(), query.path.clone())).collect());
    }
    for (room, queries) in &mut queries {
        queries.retain(|query| {
            let found = known.faults(room, query);
            let sound = found.is_empty();
            // Of two files of one name the first still makes the table.
            if !sound && found.iter().all(|found| found.rule != "same-name") {
                broken.insert(query.name.clone());
            }
            diagnostics.extend(found);
            sound
        });
    }
    let mut ordered = |room: &str| {
        let queries = queries.remove(room).unwrap_or_default();
        let mut left_out: BTreeSet<String> = queries.iter().map(|query| query.name.clone()).collect();
        let (ordered, cycles) = in_order(queries);
        left_out.retain(|name| !ordered.iter().any(|query| query.name == *name));
        broken.append(&mut left_out);
        diagnostics.extend(cycles.iter().map(|cycle| describe_cycle(cycle)));
        ordered
    };
    let [staging, features, segments, checks] = ROOMS.map(&mut ordered);
    let catalog = Catalog { sources: sources.unwrap_or_default(), staging, features, segments, checks };
    Ok(Survey { catalog, diagnostics, broken })
}

/// The contracts of the raw tables; `None` when the file cannot be read as such.
fn read_sources(path: &Path, text: &str) -> (Option<BTreeMap<String, Source>>, Vec<Diagnostic>) {
    let sources: BTreeMap<String, Source> = match crate::platform::job::parse_toml_or_fault(text) {
        Ok(sources) => sources,
        Err(fault) => return (None, vec![fault.within(path, text)]),
    };
    let undecided = sources.iter().filter(|(_, source)| {
        let ways = [source.partition.is_some(), source.day_column.is_some(), source.whole];
        ways.into_iter().filter(|way| *way).count() != 1
    });
    let fault = |name: &str, message: String, label: &str| {
        let title = format!("[{name}]");
        let at = text.find(&title).unwrap_or(0);
        Diagnostic::error("sources", message).at(at..at + title.len(), label).within(path, text)
    };
    let faults = undecided.map(|(name, _)| {
        fault(name, format!("raw table {name} needs exactly one of partition, day_column, whole"), "which rows belong to a day?")
    });
    let mut faults: Vec<Diagnostic> = faults.collect();
    for (name, source) in &sources {
        faults.extend(unfounded(source).into_iter().map(|message| fault(name, format!("raw table {name}: {message}"), "in this contract")));
    }
    (Some(sources), faults)
}

/// What a contract asks for without saying what is needed for it.
fn unfounded(source: &Source) -> Vec<String> {
    let mut found = Vec::new();
    let times = [("occurred_at", &source.occurred_at), ("arrived_at", &source.arrived_at)];
    for (field, column) in times.iter().filter_map(|(field, column)| Some((*field, column.as_ref()?))) {
        if source.columns.get(column).is_none_or(|of| of.kind != ColumnKind::Timestamp) {
            found.push(format!("{field} names {column}, which is no timestamp column of it"));
        }
    }
    if source.freshness_hours.is_some() && source.occurred_at.is_none() && source.arrived_at.is_none() {
        found.push("freshness_hours needs occurred_at or arrived_at".to_owned());
    }
    if source.unique && source.key.is_empty() {
        found.push("unique needs a key".to_owned());
    }
    if source.rows_within.is_some() && source.partition.is_none() {
        found.push("rows_within needs day folders: partition".to_owned());
    }
    found
}

fn sql_files(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut paths = std::fs::read_dir(folder)
        .map_err(|error| Error::usage(format_args!("listing {}: {error}", folder.display())))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "sql"));
    paths.sort();
    Ok(paths)
}

/// SQL files that lie where nobody reads them.
fn stray(folder: &Path, depth: usize) -> Vec<Diagnostic> {
    // A loop of links, or somebody's whole disk, is no shop.
    const DEEPEST: usize = 4;
    let mut found = Vec::new();
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let is_room = depth == 0 && path.file_name().is_some_and(|name| ROOMS.iter().any(|room| name == *room));
        if path.is_dir() && depth < DEEPEST {
            let below = stray(&path, depth + 1);
            // What lies in a room itself is read.
            found.extend(below.into_iter().filter(|found| !(is_room && found.file.parent() == Some(&path))));
        } else if path.extension().is_some_and(|extension| extension == "sql") {
            let fault =
                Diagnostic::warning("stray", "nobody reads this file").help(format!("the night reads {}/*.sql", ROOMS.join("/*.sql, ")));
            found.push(fault.within(&path, ""));
        }
    }
    found
}

/// Reads one SQL file: header and query.
pub fn load_file(path: &Path) -> Result<Query> {
    sound(read_file(path))
}

/// As [`load_file`], from a text that is not, or no longer, in the file.
pub fn load_text(path: &Path, text: String) -> Result<Query> {
    sound(read_text(path, text))
}

fn sound((query, found): (Option<Query>, Vec<Diagnostic>)) -> Result<Query> {
    match found.into_iter().find(|found| found.severity == Severity::Error) {
        Some(error) => Err(error.into()),
        None => Ok(query.expect("a file without a fault is a query")),
    }
}

/// A file as a query, when it is one, and everything wrong with it.
fn read_file(path: &Path) -> (Option<Query>, Vec<Diagnostic>) {
    let unreadable = |message: String| (None, vec![Diagnostic::error("file", message).within(path, "")]);
    match std::fs::read(path).map(String::from_utf8) {
        Ok(Ok(sql)) => read_text(path, sql),
        Ok(Err(error)) => unreadable(format!("not UTF-8 from byte {} on", error.utf8_error().valid_up_to())),
        Err(error) => unreadable(format!("not readable: {error}")),
    }
}

fn read_text(path: &Path, sql: String) -> (Option<Query>, Vec<Diagnostic>) {
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let header = Header::read(&sql);
    let mut found = header.faults();
    let (expectations, faults) = expectations(&header);
    found.extend(faults);
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_') {
        let fault = Diagnostic::error("name", format!("a file named {name}.sql makes no table name"));
        found.push(fault.help("use small letters, digits and _ alone"));
    }
    let (reads, looks_back_days) = match statement::parse(&sql) {
        Ok(select) => (select.reads.into_keys().collect(), select.looks_back_days),
        Err(fault) => {
            found.push(fault);
            (BTreeSet::new(), None)
        }
    };
    let sound = !found.iter().any(|found| found.severity == Severity::Error);
    let found = found.into_iter().map(|found| found.within(path, &sql)).collect();
    let value = |name: &str| header.field(name).map(|field| field.value.clone());
    let query = Query {
        name,
        path: path.to_owned(),
        sha256: sha256(sql.as_bytes()),
        statement_sha256: {
            let decisive = ["grain", "window"].map(|name| value(name).unwrap_or_default()).join("\n");
            sha256(format!("{decisive}\n{}", statement::bare(&sql)).as_bytes())
        },
        window_days: value("window").and_then(|window| header_days(&window)),
        grain: header.list("grain"),
        owner: value("owner"),
        tags: header.list("tags").into_iter().collect(),
        daily: value("daily"),
        description: header.description.clone(),
        label: value("label"),
        seeds: value("kind").filter(|kind| kind == "seed").map(|_| Seeds {
            size: value("size").and_then(|size| size.parse().ok()),
            kept: value("seeds").is_some_and(|seeds| seeds == "in"),
        }),
        leads: header.field("place").is_some_and(|field| field.value == "before"),
        severity: if header.field("severity").is_some_and(|field| field.value == "warn") { Level::Warn } else { Level::Error },
        expectations,
        reads,
        looks_back_days,
        sql,
    };
    (sound.then_some(query), found)
}

/// Every name of a shop, by where it stands.
struct Names<'a> {
    /// Absent when the contracts could not be read: then any raw table may exist.
    sources: Option<&'a BTreeMap<String, Source>>,
    rooms: BTreeMap<&'a str, BTreeMap<String, PathBuf>>,
    /// Broken files define tables too: who reads them is not to blame.
    broken: BTreeSet<String>,
}

impl Names<'_> {
    /// What is wrong with a query's name and with the names it uses.
    fn faults(&self, room: &str, query: &Query) -> Vec<Diagnostic> {
        let mut faults = Vec::new();
        let rooms_above = ROOMS.iter().take_while(|other| **other != room);
        if let Some(first) = rooms_above.filter_map(|other| self.rooms.get(other)?.get(&query.name)).next() {
            let fault = Diagnostic::error("same-name", format!("two files are named {}: the other is {}", query.name, first.display()));
            faults.push(fault.help("give each table a name of its own"));
        }
        if room == "segments" && query.grain != ["user_id"] {
            let at = Header::read(&query.sql).field("grain").map_or(0..0, |field| field.value_at.clone());
            faults.push(Diagnostic::error("header", "a segment is a set of users").at(at.clone(), "not user_id").suggest(at, "user_id"));
        }
        if let Some(window) = query.window_days {
            let says = match (room, query.looks_back_days) {
                ("features", Some(days)) if days == window => None,
                ("features", Some(days)) => Some(format!("the header says window: {window} days, but the query looks {days} days back")),
                ("features", None) => {
                    Some(format!("the header says window: {window} days, but the query has no $as_of - INTERVAL '{window} days'"))
                }
                _ => Some(format!("a window is of a feature, and this file is in {room}/")),
            };
            let at = Header::read(&query.sql).field("window").map_or(0..0, |field| field.value_at.clone());
            faults.extend(says.map(|says| Diagnostic::error("header", says).at(at, "not so")));
        }
        let places = statement::parse(&query.sql).map(|select| select.reads).unwrap_or_default();
        faults.extend(query.reads.iter().filter_map(|read| self.unknown(room, query, read, places.get(read).cloned().unwrap_or(0..0))));
        if let Some(daily) = &query.daily
            && !query.reads.contains(&format!("raw.{daily}"))
        {
            let header = Header::read(&query.sql);
            let at = header.field("daily").map_or(0..0, |field| field.value_at.clone());
            let read: Vec<&str> = query.sources().collect();
            let fault = Diagnostic::error("header", format!("the header says daily: {daily}, but the query does not read raw.{daily}"));
            let fault = fault.at(at.clone(), "not read");
            faults.push(match nearest(daily, read.iter().copied()) {
                Some(near) => fault.suggest(at, near),
                None => fault,
            });
        }
        faults.into_iter().map(|fault| fault.within(&query.path, &query.sql)).collect()
    }

    fn unknown(&self, room: &str, query: &Query, read: &str, at: Range<usize>) -> Option<Diagnostic> {
        let below = |names: &[&str]| {
            let names: Vec<String> = names.iter().filter_map(|name| self.rooms.get(name)).flat_map(BTreeMap::keys).cloned().collect();
            names.into_iter().filter(|name| *name != query.name).collect::<Vec<_>>()
        };
        let candidates = match (read.strip_prefix("raw."), room) {
            (Some(source), "staging") => {
                let sources = self.sources?;
                if sources.contains_key(source) {
                    return None;
                }
                sources.keys().map(|name| format!("raw.{name}")).collect()
            }
            (Some(source), _) => {
                let fault =
                    Diagnostic::error("raw", format!("reads {read}: only staging may read raw tables")).at(at.clone(), "a raw table");
                let fault = fault.help(format!("read the canonical table that staging makes of {source}"));
                return Some(match nearest(source, below(&["staging"]).iter().map(String::as_str)) {
                    Some(near) => fault.suggest(at, near),
                    None => fault,
                });
            }
            (None, "staging") => below(&["staging"]),
            (None, _) => below(&["staging", "features"]),
        };
        let known = candidates.iter().any(|name| name == read) || (room != "checks" && read == query.name) || self.broken.contains(read);
        if known {
            return None;
        }
        let fault = Diagnostic::error("unknown-table", format!("{read} is no table of this shop")).at(at.clone(), "unknown table");
        if read.contains(['/', '.', ':']) && !read.starts_with("raw.") {
            return Some(
                fault.help("a query reads tables, never files: describe the file in sources.toml and read it in staging as raw.<table>"),
            );
        }
        let raw = format!("raw.{read}");
        let meant_raw = room == "staging" && self.sources.is_some_and(|sources| sources.contains_key(read));
        let near = if meant_raw { Some(raw.as_str()) } else { nearest(read, candidates.iter().map(String::as_str)) };
        Some(match near {
            Some(near) => fault.help("a table of a similar name exists").suggest(at, near),
            None => fault.help("`nightmarket sql list` names the tables there are"),
        })
    }
}

/// Sorts queries so that each comes after those it reads, among equals by name; those that read their own output, through others
/// or not, are left out and given as cycles, each in the order in which it reads itself.
fn in_order(queries: Vec<Query>) -> (Vec<Query>, Vec<Vec<Query>>) {
    let index: BTreeMap<&str, usize> = queries.iter().enumerate().map(|(i, query)| (query.name.as_str(), i)).collect();
    let reads = |i: usize| queries[i].reads.iter().filter_map(|read| index.get(read.as_str()).copied());
    let mut graph = DiGraphMap::<usize, ()>::new();
    for i in (0..queries.len()).rev() {
        graph.add_node(i);
        for before in reads(i) {
            graph.add_edge(before, i, ());
        }
    }
    let mut cycles: Vec<Vec<usize>> = Vec::new();
    for component in tarjan_scc(&graph) {
        let first = *component.iter().min().expect("a component has a node");
        if component.len() == 1 && !graph.contains_edge(first, first) {
            continue;
        }
        for i in &component {
            graph.remove_node(*i);
        }
        // The shortest way from the first back to itself.
        let mut ways = VecDeque::from([vec![first]]);
        let mut seen = BTreeSet::new();
        while let Some(way) = ways.pop_front() {
            let last = *way.last().expect("a way has a start");
            if reads(last).any(|next| next == first) {
                cycles.push(way);
                break;
            }
            for next in reads(last).filter(|next| component.contains(next)) {
                if seen.insert(next) {
                    ways.push_back(way.iter().copied().chain([next]).collect());
                }
            }
        }
    }
    cycles.sort();
    let order = toposort(&graph, None).expect("the cycles are taken out");
    let pick = |order: &[usize]| order.iter().map(|i| queries[*i].clone()).collect();
    (pick(&order), cycles.iter().map(|cycle| pick(cycle)).collect())
}

/// `user__a reads user__b, which reads user__a`, at the place where the first names the second.
fn describe_cycle(cycle: &[Query]) -> Diagnostic {
    let first = &cycle[0];
    let next = &cycle[1 % cycle.len()].name;
    let places = statement::parse(&first.sql).map(|select| select.reads).unwrap_or_default();
    let mut fault = match cycle {
        [alone] => Diagnostic::error("cycle", format!("{} reads its own output: a cycle", alone.name)),
        _ => {
            let names: Vec<&str> = cycle.iter().chain([first]).map(|query| query.name.as_str()).collect();
            Diagnostic::error("cycle", format!("a cycle: {}", names.join(" reads ")))
        }
    };
    fault = fault.at(places.get(next).cloned().unwrap_or(0..0), "the cycle starts here");
    for query in &cycle[1.min(cycle.len())..] {
        fault = fault.note(format!("{} is {}", query.name, query.path.display()));
    }
    fault.help("take what two tables share into a third that both read").within(&first.path, &first.sql)
}

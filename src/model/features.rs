//! Table -> numbers: the feature map, learned on training rows once, and the encoding of any later table by it.
//!
//! A column's type decides its use: text columns by name, then strings, booleans and `*_id` are categories, other numbers are
//! numbers, lists of strings are sequences. Every category, token and n-gram is a row of one embedding table; id 0 pads. Columns
//! that mean the same share a space of ids by name (`category_id` and the sequence `user__sequence.categories`), so that what an
//! ad is can be matched with what a user did. Encoding is the only place where Arrow becomes numbers.

use crate::error::{Error, Result};
use arrow::array::{Array, ArrayRef, AsArray, Float64Array, ListArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_64;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// A category or token in fewer training rows counts as unknown.
    pub min_count: u64,
    /// At most so many categories or tokens a space, the most frequent ones.
    pub max_vocabulary: usize,
    /// Columns read as text: hashed words, Chinese bigrams.
    pub text: Vec<String>,
    /// Numeric columns to use as categories, and columns that are numbers although their name says id.
    pub categorical: Vec<String>,
    pub numeric: Vec<String>,
    /// Columns not to use. A user's id says nothing of tomorrow's users.
    pub exclude: Vec<String>,
    /// Numbers are also cut into so many bins of equal count, each with an embedding of its own (0: not). More: sharper steps, more to
    /// overfit and to compute. After arXiv 2203.05556.
    pub bins: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            min_count: 5,
            max_vocabulary: 50_000,
            text: vec!["ad_title".into(), "user__search_terms.queries".into()],
            categorical: Vec::new(),
            numeric: Vec::new(),
            exclude: vec!["user_id".into()],
            bins: 0,
        }
    }
}

/// The column of the ad's place on the page: an input of training only.
pub const POSITION: &str = "position";
/// What is known only at the moment of a decision; a table without them gets the most frequent training value.
const MOMENT: [&str; 2] = [POSITION, "platform"];
/// The most recent entries of a sequence that are used; more cost time and say little.
const SEQUENCE_LENGTH: usize = 30;
/// Distinct n-grams of a text that are used.
const TEXT_LENGTH: usize = 32;
/// Rows of the embedding table that n-grams share.
const TEXT_BUCKETS: usize = 4096;
const TEXT_SPACE: &str = "text";
/// A standardised number further out than this is cut: one broken row must not decide.
const CLIP: f64 = 5.0;

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct FeatureMap {
    pub columns: Vec<Column>,
    pub spaces: BTreeMap<String, Space>,
    pub matches: Vec<Match>,
    /// Column -> why it is not used.
    pub dropped: BTreeMap<String, String>,
    /// Columns of the integer and of the float matrix, and rows of the embedding table.
    pub n_ints: usize,
    pub n_floats: usize,
    pub table_rows: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Column {
    pub name: String,
    /// Which of the joined tables it is in.
    part: usize,
    pub role: Role,
}

/// How a column is encoded, and where. `float` and `int` are columns of the two matrices.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// `(f(x) - center) / scale`, cut at 5, f(x) = ln(1 + x/mean) for a long right tail; then, if training had missing values, a flag.
    Number {
        float: usize,
        tail_mean: Option<f32>,
        center: f32,
        scale: f32,
        flagged: bool,
        evidence: bool,
        #[serde(default)]
        bins: Option<Bins>,
    },
    Category {
        int: usize,
        space: String,
        usual: i32,
    },
    Sequence {
        int: usize,
        space: String,
    },
    Text {
        int: usize,
        list: bool,
    },
}

/// Bin n of a number, from 0, holds the values from knot n - 1 on; its id is that of the n-th token of `space`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Bins {
    pub int: usize,
    pub space: String,
    knots: Vec<f32>,
}

/// A space of ids: `offset` is unknown, `offset + 1` missing, then the tokens.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Space {
    offset: i32,
    pub tokens: Vec<String>,
}

/// The share of the ids of `a` that are among those of `b`, both in one space; as a float and, in the network, as products of
/// their embeddings. The ranges are columns of the integer matrix.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Match {
    pub a: Range<usize>,
    pub b: Range<usize>,
    pub float: usize,
}

/// Encoded rows, both matrices row-major.
#[derive(Clone, Debug)]
pub struct Encoded {
    pub rows: usize,
    pub n_ints: usize,
    pub n_floats: usize,
    pub ints: Vec<i32>,
    pub floats: Vec<f32>,
}

impl Encoded {
    pub fn slice(&self, rows: Range<usize>) -> Self {
        Self {
            rows: rows.len(),
            ints: self.ints[rows.start * self.n_ints..rows.end * self.n_ints].to_vec(),
            floats: self.floats[rows.start * self.n_floats..rows.end * self.n_floats].to_vec(),
            ..*self
        }
    }

    pub fn select(&self, rows: &[usize]) -> Self {
        Self {
            rows: rows.len(),
            n_ints: self.n_ints,
            n_floats: self.n_floats,
            ints: rows.iter().flat_map(|row| self.ints_of(*row)).copied().collect(),
            floats: rows.iter().flat_map(|row| self.floats_of(*row)).copied().collect(),
        }
    }

    pub fn ints_of(&self, row: usize) -> &[i32] {
        &self.ints[row * self.n_ints..][..self.n_ints]
    }

    pub fn floats_of(&self, row: usize) -> &[f32] {
        &self.floats[row * self.n_floats..][..self.n_floats]
    }
}

/// One of the joined tables: each joined row names a row of it, or none.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub table: &'a RecordBatch,
    /// One entry a joined row; absent when the joined rows are the table's.
    pub rows: Option<&'a [u32]>,
}

/// A joined row without a row of this part.
pub const NO_ROW: u32 = u32::MAX;

/// Learns the map from joined training rows. `reserved` columns are not inputs; `evidence` names counts of which more never means
/// less: a missing one is 0.
pub fn fit(parts: &[Part], settings: &Settings, reserved: &[&str], evidence: impl Fn(&str) -> bool) -> Result<FeatureMap> {
    let mut map = FeatureMap {
        columns: Vec::new(),
        spaces: BTreeMap::new(),
        matches: Vec::new(),
        dropped: BTreeMap::new(),
        n_ints: 0,
        n_floats: 0,
        table_rows: 1,
    };
    let mut counts: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
    let mut uses_text = false;
    for (part, &Part { table, rows }) in parts.iter().enumerate() {
        let weights = weights(table, rows);
        for (field, array) in table.schema().fields().iter().zip(table.columns()) {
            let name = field.name();
            if reserved.contains(&name.as_str()) || settings.exclude.contains(name) {
                continue;
            }
            let role = match usage(name, array, settings) {
                Usage::Unusable => Err(format!("a column of {} is no feature", array.data_type())),
                Usage::Number => fit_number(name, array, settings.bins, &mut map, evidence(name)),
                Usage::Category => fit_category(name, array, &weights, &mut counts, &mut map.n_ints),
                Usage::Sequence => {
                    let space = space_name(name);
                    count_sequence(array, &weights, counts.entry(space.clone()).or_default());
                    Ok(Role::Sequence { int: take(&mut map.n_ints, SEQUENCE_LENGTH), space })
                }
                Usage::Text => {
                    uses_text = true;
                    let list = matches!(array.data_type(), DataType::List(_));
                    Ok(Role::Text { int: take(&mut map.n_ints, TEXT_LENGTH), list })
                }
            };
            match role {
                Ok(role) => map.columns.push(Column { name: name.clone(), part, role }),
                Err(why) => drop(map.dropped.insert(name.clone(), why)),
            }
        }
    }
    let bins = map.columns.iter().filter_map(|column| match &column.role {
        Role::Number { bins: Some(bins), .. } => Some((bins.space.clone(), bins.knots.len() + 1)),
        _ => None,
    });
    for (name, bins) in bins.collect::<Vec<_>>() {
        let space = Space { offset: map.table_rows as i32, tokens: (0..bins).map(|bin| bin.to_string()).collect() };
        map.table_rows += space.tokens.len() + 2;
        map.spaces.insert(name, space);
    }
    for (name, counts) in counts {
        if map.columns.iter().any(|column| column.role.space() == Some(&name)) {
            let space = Space { offset: map.table_rows as i32, tokens: vocabulary(counts, settings) };
            map.table_rows += space.tokens.len() + 2;
            map.spaces.insert(name, space);
        }
    }
    if uses_text {
        map.spaces.insert(TEXT_SPACE.into(), Space { offset: map.table_rows as i32, tokens: Vec::new() });
        map.table_rows += TEXT_BUCKETS + 2;
    }
    map.set_usual(parts)?;
    map.set_matches();
    Ok(map)
}

enum Usage {
    Number,
    Category,
    Sequence,
    Text,
    Unusable,
}

fn usage(name: &str, array: &ArrayRef, settings: &Settings) -> Usage {
    let strings = matches!(array.data_type(), DataType::List(item) if *item.data_type() == DataType::Utf8);
    let text = settings.text.iter().any(|text| text == name);
    match array.data_type() {
        DataType::Utf8 if text => Usage::Text,
        DataType::List(_) if text && strings => Usage::Text,
        DataType::List(_) if strings => Usage::Sequence,
        DataType::Utf8 | DataType::Boolean => Usage::Category,
        kind if kind.is_numeric() => {
            let named = |columns: &[String]| columns.iter().any(|column| column == name);
            let category = name.ends_with("_id") || name == POSITION || named(&settings.categorical);
            if category && !named(&settings.numeric) { Usage::Category } else { Usage::Number }
        }
        _ => Usage::Unusable,
    }
}

/// `ad_category.category_id` and `user__sequence.categories` -> `category`.
fn space_name(column: &str) -> String {
    let last = column.rsplit('.').next().unwrap_or(column);
    if let Some(stem) = last.strip_suffix("_id") {
        return stem.to_owned();
    }
    match (last.strip_suffix("ies"), last.strip_suffix('s')) {
        (Some(stem), _) => format!("{stem}y"),
        (_, Some(stem)) => stem.to_owned(),
        _ => last.to_owned(),
    }
}

/// Reserves columns of a matrix.
fn take(next: &mut usize, width: usize) -> usize {
    *next += width;
    *next - width
}

/// How many joined rows name each row of a part.
fn weights(table: &RecordBatch, rows: Option<&[u32]>) -> Vec<u64> {
    let Some(rows) = rows else { return vec![1; table.num_rows()] };
    let mut weights = vec![0; table.num_rows()];
    rows.iter().filter(|row| **row != NO_ROW).for_each(|row| weights[*row as usize] += 1);
    weights
}

fn fit_number(name: &str, array: &ArrayRef, bins: usize, map: &mut FeatureMap, evidence: bool) -> Result<Role, String> {
    let values = numbers(array).map_err(|error| error.to_string())?;
    let values = |missing| values.iter().map(move |value| finite(value).or(missing));
    let missing = evidence.then_some(0.0);
    let known: Vec<f64> = values(missing).flatten().collect();
    let flagged = known.len() < array.len();
    if known.is_empty() {
        return Err("no training row has a value".into());
    }
    let n = known.len() as f64;
    let mean = known.iter().sum::<f64>() / n;
    let (min, max) = known.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(*x), high.max(*x)));
    let tail_mean = (min >= 0.0 && max > 5.0 * mean).then_some(mean as f32).filter(|mean| *mean > 0.0);
    let shaped: Vec<f64> = known.iter().map(|x| shape(*x, tail_mean)).collect();
    let center = shaped.iter().sum::<f64>() / n;
    let scale = (shaped.iter().map(|x| (x - center).powi(2)).sum::<f64>() / n).sqrt();
    let varies = max > min && scale > 1e-9 * center.abs().max(1e-30) && scale.is_finite();
    if !varies && !flagged {
        return Err("all training rows have the same value".into());
    }
    let scale = if varies { scale as f32 } else { 1.0 };
    let knots = if evidence { Vec::new() } else { knots(known, bins) };
    let bins = (!knots.is_empty()).then(|| Bins { int: take(&mut map.n_ints, 1), space: format!("{name} bins"), knots });
    let float = take(&mut map.n_floats, 1 + usize::from(flagged));
    Ok(Role::Number { float, tail_mean, center: center as f32, scale, flagged, evidence, bins })
}

/// Where the bins of equal count meet; fewer where values repeat. With two values or fewer the number itself says all.
fn knots(mut values: Vec<f64>, bins: usize) -> Vec<f32> {
    values.sort_unstable_by(f64::total_cmp);
    let mut knots: Vec<f32> = (1..bins).map(|bin| values[bin * values.len() / bins] as f32).collect();
    knots.dedup();
    knots.retain(|knot| *knot > values[0] as f32);
    if knots.len() < 2 { Vec::new() } else { knots }
}

fn shape(x: f64, tail_mean: Option<f32>) -> f64 {
    // A later value may be negative although none was in training.
    tail_mean.map_or(x, |mean| (x.max(0.0) / f64::from(mean)).ln_1p())
}

fn finite(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite())
}

fn fit_category(
    name: &str,
    array: &ArrayRef,
    weights: &[u64],
    counts: &mut BTreeMap<String, BTreeMap<String, u64>>,
    n_ints: &mut usize,
) -> Result<Role, String> {
    let values = strings(array).map_err(|error| error.to_string())?;
    let mut seen: HashMap<&str, u64> = HashMap::new();
    for (value, weight) in values.iter().zip(weights) {
        if let Some(value) = value {
            *seen.entry(value).or_default() += weight;
        }
    }
    if seen.is_empty() {
        return Err("no training row has a value".into());
    }
    if seen.len() == 1 && values.null_count() == 0 {
        return Err("all training rows have the same value".into());
    }
    let space = space_name(name);
    let all = counts.entry(space.clone()).or_default();
    for (value, weight) in seen {
        *all.entry(value.to_owned()).or_default() += weight;
    }
    Ok(Role::Category { int: take(n_ints, 1), space, usual: 0 })
}

fn count_sequence(array: &ArrayRef, weights: &[u64], counts: &mut BTreeMap<String, u64>) {
    let lists = array.as_list::<i32>();
    let tokens = lists.values().as_string::<i32>();
    for (row, weight) in weights.iter().enumerate() {
        let mut used: Vec<&str> = recent(lists, row).filter(|i| tokens.is_valid(*i)).map(|i| tokens.value(i)).collect();
        used.sort_unstable();
        used.dedup();
        for token in used {
            match counts.get_mut(token) {
                Some(count) => *count += weight,
                None => drop(counts.insert(token.to_owned(), *weight)),
            }
        }
    }
}

/// Indexes of a list's last entries, most recent first.
fn recent(lists: &ListArray, row: usize) -> impl Iterator<Item = usize> {
    let (start, end) =
        if lists.is_null(row) { (0, 0) } else { (lists.value_offsets()[row] as usize, lists.value_offsets()[row + 1] as usize) };
    (start..end).rev().take(SEQUENCE_LENGTH)
}

fn vocabulary(counts: BTreeMap<String, u64>, settings: &Settings) -> Vec<String> {
    let mut tokens: Vec<(String, u64)> = counts.into_iter().filter(|(_, count)| *count >= settings.min_count).collect();
    tokens.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    tokens.truncate(settings.max_vocabulary);
    tokens.into_iter().map(|(token, _)| token).collect()
}

impl Role {
    fn space(&self) -> Option<&String> {
        match self {
            Role::Category { space, .. } | Role::Sequence { space, .. } => Some(space),
            _ => None,
        }
    }

    /// Columns of the integer matrix.
    pub fn ints(&self) -> Range<usize> {
        match self {
            Role::Number { bins: Some(bins), .. } => bins.int..bins.int + 1,
            Role::Number { .. } => 0..0,
            Role::Category { int, .. } => *int..int + 1,
            Role::Sequence { int, .. } => *int..int + SEQUENCE_LENGTH,
            Role::Text { int, .. } => *int..int + TEXT_LENGTH,
        }
    }

    /// Columns of the float matrix.
    pub fn floats(&self) -> Range<usize> {
        match self {
            Role::Number { float, flagged, .. } => *float..float + 1 + usize::from(*flagged),
            _ => 0..0,
        }
    }
}

impl FeatureMap {
    /// Rows of the embedding table that stand for no token: padding, unknown, missing. They start at zero.
    pub fn neutral_rows(&self) -> Vec<usize> {
        let spaces = self.spaces.values().map(|space| space.offset as usize);
        std::iter::once(0).chain(spaces.flat_map(|offset| [offset, offset + 1])).collect()
    }

    /// Rows of an earlier map's embedding table, each with the row that stands for the same here. None where the columns are others
    /// or lie elsewhere, so that weights learned on them mean something else.
    pub fn kept_rows(&self, earlier: &Self) -> Option<Vec<(usize, usize)>> {
        let layout = |map: &Self| -> Vec<_> {
            map.columns.iter().map(|column| (column.name.clone(), column.part, column.role.ints(), column.role.floats())).collect()
        };
        if layout(self) != layout(earlier) || self.matches != earlier.matches {
            return None;
        }
        let mut rows = vec![(0, 0)];
        for (name, space) in &self.spaces {
            let before = earlier.spaces.get(name)?;
            let (from, to) = (before.offset as usize, space.offset as usize);
            let unnamed = if name == TEXT_SPACE { TEXT_BUCKETS + 2 } else { 2 };
            rows.extend((0..unnamed).map(|i| (from + i, to + i)));
            let known: HashMap<&str, usize> = before.tokens.iter().map(String::as_str).zip(from + 2..).collect();
            rows.extend(space.tokens.iter().zip(to + 2..).filter_map(|(token, row)| Some((*known.get(token.as_str())?, row))));
        }
        Some(rows)
    }

    /// The id of the lowest position seen: the top of the page.
    pub fn reference_position(&self) -> Option<i32> {
        let position = self.columns.iter().find(|column| column.name == POSITION)?;
        let space = &self.spaces[position.role.space()?];
        let places = space.tokens.iter().enumerate().filter_map(|(i, token)| Some((token.parse::<f64>().ok()?, i)));
        let top = places.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(0, |(_, i)| i);
        (!space.tokens.is_empty()).then_some(space.offset + 2 + top as i32)
    }

    /// Floats of which more never means less.
    pub fn evidence(&self) -> Vec<usize> {
        let counts = self.columns.iter().filter_map(|column| match column.role {
            Role::Number { float, evidence: true, .. } => Some(float),
            _ => None,
        });
        counts.chain(self.matches.iter().map(|found| found.float)).collect()
    }

    fn set_usual(&mut self, parts: &[Part]) -> Result<()> {
        let encoder = Encoder::new(self);
        let mut usual = BTreeMap::new();
        for column in &self.columns {
            if let Role::Category { space, .. } = &column.role
                && MOMENT.contains(&column.name.as_str())
            {
                let array = parts[column.part].table.column_by_name(&column.name).expect("the map was made from this table");
                let mut counts: BTreeMap<i32, u64> = BTreeMap::new();
                encoder.categories(array, space)?.into_iter().for_each(|id| *counts.entry(id).or_default() += 1);
                let most = counts.into_iter().max_by_key(|(id, count)| (*count, -id)).map_or(0, |(id, _)| id);
                usual.insert(column.name.clone(), most);
            }
        }
        for column in &mut self.columns {
            if let (Role::Category { usual: id, .. }, Some(most)) = (&mut column.role, usual.get(&column.name)) {
                *id = *most;
            }
        }
        Ok(())
    }

    /// Every pair of a bag of ids with another bag or a single id of its space.
    fn set_matches(&mut self) {
        for (i, one) in self.columns.iter().enumerate() {
            for other in &self.columns[i + 1..] {
                let (a, b) = match (&one.role, &other.role) {
                    (Role::Sequence { space: x, .. }, Role::Category { space: y, .. }) if x == y => (one, other),
                    (Role::Category { space: x, .. }, Role::Sequence { space: y, .. }) if x == y => (other, one),
                    // How much of the short text is in the long one.
                    (Role::Text { list: true, .. }, Role::Text { list: false, .. }) => (other, one),
                    (Role::Text { .. }, Role::Text { .. }) => (one, other),
                    _ => continue,
                };
                self.matches.push(Match { a: a.role.ints(), b: b.role.ints(), float: take(&mut self.n_floats, 1) });
            }
        }
    }
}

/// A map with its tokens indexed.
pub struct Encoder<'a> {
    map: &'a FeatureMap,
    ids: BTreeMap<&'a str, HashMap<&'a str, i32>>,
}

/// The encoded columns of one part, and behind its rows one more for [`NO_ROW`].
pub struct Block {
    rows: usize,
    /// Where in the full matrices the packed columns go.
    int_columns: Vec<usize>,
    float_columns: Vec<usize>,
    ints: Vec<i32>,
    floats: Vec<f32>,
}

impl Block {
    pub fn n_floats(&self) -> usize {
        self.float_columns.len()
    }

    /// The standardised numbers of a row, in the order of the columns.
    pub fn floats_of(&self, row: usize) -> &[f32] {
        &self.floats[row * self.n_floats()..][..self.n_floats()]
    }
}

impl<'a> Encoder<'a> {
    pub fn new(map: &'a FeatureMap) -> Self {
        let index = |space: &'a Space| space.tokens.iter().zip(space.offset + 2..).map(|(token, id)| (token.as_str(), id)).collect();
        Self { map, ids: map.spaces.iter().map(|(name, space)| (name.as_str(), index(space))).collect() }
    }

    /// Encodes the rows of one table that is the only part. `position` overrides that column.
    pub fn encode(&self, table: &RecordBatch, position: Option<i32>) -> Result<Encoded> {
        let block = self.block(0, table, position)?;
        Ok(self.join(&[(&block, None)], 0..table.num_rows()))
    }

    /// Encodes the columns of part `part`.
    ///
    /// # Errors
    /// `Contract`, naming the column, when one that the map needs is absent or of another kind.
    pub fn block(&self, part: usize, table: &RecordBatch, position: Option<i32>) -> Result<Block> {
        let columns: Vec<&Column> = self.map.columns.iter().filter(|column| column.part == part).collect();
        let int_columns: Vec<usize> = columns.iter().flat_map(|column| column.role.ints()).collect();
        let float_columns: Vec<usize> = columns.iter().flat_map(|column| column.role.floats()).collect();
        let rows = table.num_rows();
        let (n_ints, n_floats) = (int_columns.len(), float_columns.len());
        let (mut ints, mut floats) = (vec![0; (rows + 1) * n_ints], vec![0.0; (rows + 1) * n_floats]);
        let (mut int, mut float) = (0, 0);
        for column in columns {
            let array = table.column_by_name(&column.name);
            let put_ints = |ints: &mut [i32], row: usize, ids: &[i32]| {
                ints[row * n_ints + int..][..ids.len()].copy_from_slice(ids);
            };
            match &column.role {
                Role::Category { space, usual, .. } => {
                    let moment = MOMENT.contains(&column.name.as_str());
                    let ids = match (array, position) {
                        (_, Some(position)) if column.name == POSITION => vec![position; rows],
                        (None, _) if moment => vec![*usual; rows],
                        (None, _) => return Err(absent(&column.name)),
                        (Some(array), _) => self.categories(array, space)?,
                    };
                    ids.iter().enumerate().for_each(|(row, id)| put_ints(&mut ints, row, &[*id]));
                    put_ints(&mut ints, rows, &[self.map.spaces[space].offset + 1]);
                }
                Role::Sequence { space, .. } => {
                    let lists = lists(column, array)?;
                    let tokens = lists.values().as_string::<i32>();
                    let known = &self.ids[space.as_str()];
                    for row in 0..rows {
                        let ids = recent(lists, row).filter(|i| tokens.is_valid(*i)).filter_map(|i| known.get(tokens.value(i)).copied());
                        let ids: Vec<i32> = ids.collect();
                        put_ints(&mut ints, row, &ids);
                    }
                }
                Role::Text { list, .. } => {
                    let offset = self.map.spaces[TEXT_SPACE].offset + 2;
                    let mut grams = Grams::new(offset);
                    if *list {
                        let lists = lists(column, array)?;
                        let texts = lists.values().as_string::<i32>();
                        for row in 0..rows {
                            let texts = recent(lists, row).filter(|i| texts.is_valid(*i)).map(|i| texts.value(i));
                            put_ints(&mut ints, row, grams.of(texts));
                        }
                    } else {
                        let texts = strings(array.ok_or_else(|| absent(&column.name))?).map_err(|error| wrong(&column.name, error))?;
                        for (row, text) in texts.iter().enumerate() {
                            put_ints(&mut ints, row, grams.of(text.into_iter()));
                        }
                    }
                }
                Role::Number { tail_mean, center, scale, flagged, evidence, bins, .. } => {
                    let array = array.ok_or_else(|| absent(&column.name))?;
                    let values = numbers(array).map_err(|error| wrong(&column.name, error))?;
                    for row in 0..=rows {
                        let value = if row < rows && values.is_valid(row) { finite(Some(values.value(row))) } else { None };
                        let value = value.or(evidence.then_some(0.0));
                        let at = row * n_floats + float;
                        let standardised = |x| (shape(x, *tail_mean) - f64::from(*center)) / f64::from(*scale);
                        floats[at] = value.map_or(0.0, |x| standardised(x).clamp(-CLIP, CLIP)) as f32;
                        if *flagged {
                            floats[at + 1] = f32::from(u8::from(value.is_none()));
                        }
                        if let Some(Bins { space, knots, .. }) = bins {
                            let bin = value.map_or(-1, |x| knots.partition_point(|knot| f64::from(*knot) <= x) as i32);
                            put_ints(&mut ints, row, &[self.map.spaces[space].offset + 2 + bin]);
                        }
                    }
                }
            }
            int += column.role.ints().len();
            float += column.role.floats().len();
        }
        Ok(Block { rows, int_columns, float_columns, ints, floats })
    }

    /// The joined rows `range`; the n-th names row `rows[n]` of each part.
    pub fn join(&self, parts: &[(&Block, Option<&[u32]>)], range: Range<usize>) -> Encoded {
        let (n_ints, n_floats) = (self.map.n_ints, self.map.n_floats);
        let rows = range.len();
        let mut encoded = Encoded { rows, n_ints, n_floats, ints: vec![0; rows * n_ints], floats: vec![0.0; rows * n_floats] };
        for (block, of) in parts {
            for (row, joined) in range.clone().enumerate() {
                let from = match of.map(|of| of[joined]) {
                    Some(NO_ROW) => block.rows,
                    Some(from) => from as usize,
                    None => joined,
                };
                let ints = &block.ints[from * block.int_columns.len()..][..block.int_columns.len()];
                block.int_columns.iter().zip(ints).for_each(|(column, id)| encoded.ints[row * n_ints + column] = *id);
                let floats = &block.floats[from * block.float_columns.len()..][..block.float_columns.len()];
                block.float_columns.iter().zip(floats).for_each(|(column, x)| encoded.floats[row * n_floats + column] = *x);
            }
        }
        for found in &self.map.matches {
            for row in 0..rows {
                let ids = &encoded.ints[row * n_ints..][..n_ints];
                encoded.floats[row * n_floats + found.float] = share_in(&ids[found.a.clone()], &ids[found.b.clone()]);
            }
        }
        encoded
    }

    fn categories(&self, array: &ArrayRef, space: &str) -> Result<Vec<i32>> {
        let offset = self.map.spaces[space].offset;
        let known = &self.ids[space];
        let id = |value: Option<&str>| value.map_or(offset + 1, |value| known.get(value).copied().unwrap_or(offset));
        Ok(strings(array)?.iter().map(id).collect())
    }
}

fn absent(column: &str) -> Error {
    Error::contract(format_args!("column {column} is absent; the model was trained with it"))
}

fn wrong(column: &str, error: impl std::fmt::Display) -> Error {
    Error::contract(format_args!("column {column} is not what the model was trained with: {error}"))
}

fn lists<'a>(column: &Column, array: Option<&'a ArrayRef>) -> Result<&'a ListArray> {
    let array = array.ok_or_else(|| absent(&column.name))?;
    match array.data_type() {
        DataType::List(item) if *item.data_type() == DataType::Utf8 => Ok(array.as_list::<i32>()),
        other => Err(wrong(&column.name, other)),
    }
}

fn strings(array: &ArrayRef) -> Result<StringArray> {
    match array.data_type() {
        DataType::Utf8 | DataType::Boolean => {}
        kind if kind.is_numeric() => {}
        other => return Err(Error::contract(format_args!("{other} is no category"))),
    }
    Ok(cast(array, &DataType::Utf8)?.as_string::<i32>().clone())
}

fn numbers(array: &ArrayRef) -> Result<Float64Array> {
    if !array.data_type().is_numeric() {
        return Err(Error::contract(format_args!("{} is no number", array.data_type())));
    }
    Ok(cast(array, &DataType::Float64)?.as_primitive::<Float64Type>().clone())
}

/// The share of the ids of `a`, padding apart, that are in `b`; a place of `a` counts, not a distinct id.
fn share_in(a: &[i32], b: &[i32]) -> f32 {
    let known = a.iter().filter(|id| **id != 0);
    let (found, all) = known.fold((0, 0), |(found, all), id| (found + u32::from(b.contains(id)), all + 1));
    if all == 0 { 0.0 } else { found as f32 / all as f32 }
}

/// Hashed words and n-grams of texts.
struct Grams {
    offset: i32,
    ids: Vec<i32>,
}

impl Grams {
    fn new(offset: i32) -> Self {
        Self { offset, ids: Vec::with_capacity(TEXT_LENGTH) }
    }

    /// The first distinct n-grams: words of scripts with spaces, bigrams and short whole runs of scripts without.
    fn of<'t>(&mut self, texts: impl Iterator<Item = &'t str>) -> &[i32] {
        self.ids.clear();
        for text in texts {
            let text = text.to_lowercase();
            for run in runs(&text) {
                let starts: Vec<usize> = run.char_indices().map(|(at, _)| at).chain([run.len()]).collect();
                let chars = starts.len() - 1;
                if !run.starts_with(without_spaces) || chars <= 8 {
                    self.add(run);
                }
                if run.starts_with(without_spaces) && chars > 2 {
                    starts.windows(3).for_each(|at| self.add(&run[at[0]..at[2]]));
                }
            }
            if self.ids.len() == TEXT_LENGTH {
                break;
            }
        }
        &self.ids
    }

    fn add(&mut self, gram: &str) {
        let id = self.offset + (xxh3_64(gram.as_bytes()) % TEXT_BUCKETS as u64) as i32;
        if self.ids.len() < TEXT_LENGTH && !self.ids.contains(&id) {
            self.ids.push(id);
        }
    }
}

/// Longest stretches of letters and digits that are all of a script with, or all of one without spaces.
fn runs(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| !c.is_alphanumeric());
        let first = rest.chars().next()?;
        let same = |c: char| c.is_alphanumeric() && without_spaces(c) == without_spaces(first);
        let end = rest.find(|c| !same(c)).unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        rest = after;
        Some(run)
    })
}

/// Chinese, Japanese and their neighbours.
fn without_spaces(c: char) -> bool {
    matches!(c, '\u{2e80}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grams(texts: &[&str]) -> Vec<i32> {
        Grams::new(0).of(texts.iter().copied()).to_vec()
    }

    #[test]
    fn chinese_is_cut_into_bigrams_and_english_into_words() {
        assert_eq!(runs("iPhone15 手机配件, 新款!").collect::<Vec<_>>(), ["iPhone15", "手机配件", "新款"]);
        let name = grams(&["手机配件"]);
        assert_eq!(name.len(), 4, "the whole and three bigrams");
        assert_eq!(share_in(&grams(&["手机"]), &name), 1.0);
        assert_eq!(grams(&["Red SHOES"]), grams(&["red", "shoes"]));
    }

    #[test]
    fn a_sequence_shares_the_space_of_the_id_it_lists() {
        assert_eq!(space_name("user__sequence.categories"), space_name("category_id"));
        assert_eq!(space_name("user__sequence.items"), space_name("item_id"));
    }
}

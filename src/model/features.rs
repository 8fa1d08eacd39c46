//! Table -> numbers: the feature map, learned on training rows once, and the encoding of any later table by it.
//!
//! A column's type decides its use: text columns by name, then strings, booleans and `*_id` are categories, other numbers are
//! numbers, lists of strings are sequences, lists of a fixed number of floats are vectors. Every category, token and n-gram is a row
//! of one embedding table; id 0 pads. Columns that mean the same share a space of ids by name (`category_id` and the sequence
//! `user__sequence.categories`), so that what an ad is can be matched with what a user did. Encoding is the only place where Arrow
//! becomes numbers.

mod fit;

pub use fit::{Fitting, fit};

use crate::error::{Error, Result};
use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float64Array, ListArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float32Type, Float64Type, Schema};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
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
    /// A list of so many numbers, an image's or a text's embedding: `(x - center) / scale` of each, cut at 5; without one, zeros.
    Vector {
        float: usize,
        center: Vec<f32>,
        scale: Vec<f32>,
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

enum Usage {
    Number,
    Category,
    Sequence,
    Text,
    /// Of so many numbers.
    Vector(usize),
    Unusable,
}

fn usage(name: &str, kind: &DataType, settings: &Settings) -> Usage {
    let strings = matches!(kind, DataType::List(item) if *item.data_type() == DataType::Utf8);
    let text = settings.text.iter().any(|text| text == name);
    match kind {
        DataType::Utf8 if text => Usage::Text,
        DataType::List(_) if text && strings => Usage::Text,
        DataType::List(_) if strings => Usage::Sequence,
        DataType::FixedSizeList(item, width) if *item.data_type() == DataType::Float32 => Usage::Vector(*width as usize),
        DataType::Utf8 | DataType::Boolean => Usage::Category,
        kind if kind.is_numeric() => {
            let named = |columns: &[String]| columns.iter().any(|column| column == name);
            let category = name.ends_with("_id") || name == POSITION || named(&settings.categorical);
            if category && !named(&settings.numeric) { Usage::Category } else { Usage::Number }
        }
        _ => Usage::Unusable,
    }
}

/// Bytes that an encoded row of such a table takes at most.
pub fn encoded_bytes(schema: &Schema, settings: &Settings) -> usize {
    let numbers = |field: &Arc<Field>| match usage(field.name(), field.data_type(), settings) {
        _ if settings.exclude.contains(field.name()) => 0,
        // With a flag and a bin.
        Usage::Number => 2 + usize::from(settings.bins > 0),
        Usage::Category => 1,
        Usage::Sequence => SEQUENCE_LENGTH,
        Usage::Text => TEXT_LENGTH,
        Usage::Vector(width) => width,
        Usage::Unusable => 0,
    };
    schema.fields().iter().map(numbers).sum::<usize>() * size_of::<f32>()
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

fn shape(x: f64, tail_mean: Option<f32>) -> f64 {
    // A later value may be negative although none was in training.
    tail_mean.map_or(x, |mean| (x.max(0.0) / f64::from(mean)).ln_1p())
}

fn finite(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite())
}

/// Indexes of a list's last entries, most recent first.
fn recent(lists: &ListArray, row: usize) -> impl Iterator<Item = usize> {
    let (start, end) =
        if lists.is_null(row) { (0, 0) } else { (lists.value_offsets()[row] as usize, lists.value_offsets()[row + 1] as usize) };
    (start..end).rev().take(SEQUENCE_LENGTH)
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
            Role::Number { .. } | Role::Vector { .. } => 0..0,
            Role::Category { int, .. } => *int..int + 1,
            Role::Sequence { int, .. } => *int..int + SEQUENCE_LENGTH,
            Role::Text { int, .. } => *int..int + TEXT_LENGTH,
        }
    }

    /// Columns of the float matrix.
    pub fn floats(&self) -> Range<usize> {
        match self {
            Role::Number { float, flagged, .. } => *float..float + 1 + usize::from(*flagged),
            Role::Vector { float, center, .. } => *float..float + center.len(),
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
                Role::Vector { center, scale, .. } => {
                    let vectors = vector(&column.name, array.ok_or_else(|| absent(&column.name))?)?;
                    if vectors.width != center.len() {
                        return Err(wrong(&column.name, format_args!("{} numbers, not {}", vectors.width, center.len())));
                    }
                    for row in 0..rows {
                        let Some(values) = vectors.of(row) else { continue };
                        let standardised = values.iter().zip(center).zip(scale).map(|((x, center), scale)| (x - center) / scale);
                        let out = &mut floats[row * n_floats + float..][..center.len()];
                        out.iter_mut().zip(standardised).for_each(|(out, x)| *out = x.clamp(-CLIP as f32, CLIP as f32));
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

    /// The id of a value, or of none, in a space.
    fn id(&self, value: Option<&str>, space: &str) -> i32 {
        let offset = self.map.spaces[space].offset;
        value.map_or(offset + 1, |value| self.ids[space].get(value).copied().unwrap_or(offset))
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

/// The vectors of a column, one a row, and the width of each.
struct Vectors<'a> {
    width: usize,
    list: &'a FixedSizeListArray,
    values: &'a [f32],
}

impl Vectors<'_> {
    /// None where the row has none, or one with a number that is not finite.
    fn of(&self, row: usize) -> Option<&[f32]> {
        let values = &self.values[self.list.value_offset(row) as usize..][..self.width];
        (self.list.is_valid(row) && values.iter().all(|x| x.is_finite())).then_some(values)
    }
}

fn vector<'a>(name: &str, array: &'a ArrayRef) -> Result<Vectors<'a>> {
    match array.data_type() {
        DataType::FixedSizeList(item, width) if *item.data_type() == DataType::Float32 => {
            let list = array.as_fixed_size_list();
            Ok(Vectors { width: *width as usize, list, values: list.values().as_primitive::<Float32Type>().values() })
        }
        other => Err(wrong(name, other)),
    }
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

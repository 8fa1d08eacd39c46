//! Table -> numbers: the feature map, learned on training rows once, and the encoding of any later table by it.
//!
//! A column's type decides its use: text columns by name, then strings, booleans and `*_id` are categories, other numbers are
//! numbers, lists of strings are sequences, lists of a fixed number of floats are vectors. Every category, token and n-gram is a row
//! of one embedding table; id 0 pads. Columns that mean the same share a space of ids by name (`category_id` and the sequence
//! `user__sequence.categories`), so that what an ad is can be matched with what a user did. Encoding is the only place where Arrow
//! becomes numbers.

mod encode;
mod fit;
mod grams;

pub use encode::{Block, Encoder};
pub use fit::{Fitting, fit};

use crate::error::{Error, Result};
use crate::platform::catalog::nearest;
use arrow::array::{Array, ListArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

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

impl Settings {
    /// # Errors
    /// `Usage` for a name, none of the defaults, that is no column of the table.
    pub fn check_names(&self, table: &Schema) -> Result<()> {
        let default = Self::default();
        for (key, names, usual) in [
            ("text", &self.text, &default.text),
            ("categorical", &self.categorical, &default.categorical),
            ("numeric", &self.numeric, &default.numeric),
            ("exclude", &self.exclude, &default.exclude),
        ] {
            if let Some(absent) = names.iter().find(|name| table.field_with_name(name).is_err() && !usual.contains(name)) {
                let near = nearest(absent, table.fields().iter().map(|field| field.name().as_str()));
                let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                return Err(Error::usage(format_args!("[model.features] {key}: no column of the examples is named {absent}{near}"))
                    .action("a feature is named table.column, as in user__activity.n_views_30d"));
            }
        }
        Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_shares_the_space_of_the_id_it_lists() {
        assert_eq!(space_name("user__sequence.categories"), space_name("category_id"));
        assert_eq!(space_name("user__sequence.items"), space_name("item_id"));
    }

    #[test]
    fn a_column_that_is_not_there_is_refused_with_its_neighbour() {
        let table = Schema::new(vec![Field::new("user__activity.n_views_30d", DataType::Float64, true)]);
        let settings = Settings { exclude: vec!["user__activity.n_view_30d".into()], ..Settings::default() };
        let error = settings.check_names(&table).expect_err("no such column").to_string();
        assert!(error.contains("exclude") && error.contains("did you mean user__activity.n_views_30d?"), "{error}");
        Settings::default().check_names(&table).expect("a shop may lack what the defaults name");
    }
}

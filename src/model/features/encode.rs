//! A table's columns -> the two matrices, by a feature map: part by part, then joined.

use super::grams::Grams;
use super::{Bins, CLIP, Column, Encoded, FeatureMap, MOMENT, NO_ROW, POSITION, Role, Space, TEXT_SPACE, finite, recent, shape};
use crate::error::{Error, Result};
use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float64Array, ListArray, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float32Type, Float64Type};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

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
        self.map.compare(&mut encoded);
        encoded
    }

    fn categories(&self, array: &ArrayRef, space: &str) -> Result<Vec<i32>> {
        let offset = self.map.spaces[space].offset;
        let known = &self.ids[space];
        let id = |value: Option<&str>| value.map_or(offset + 1, |value| known.get(value).copied().unwrap_or(offset));
        Ok(strings(array)?.iter().map(id).collect())
    }

    /// The id of a value, or of none, in a space.
    pub(super) fn id(&self, value: Option<&str>, space: &str) -> i32 {
        let offset = self.map.spaces[space].offset;
        value.map_or(offset + 1, |value| self.ids[space].get(value).copied().unwrap_or(offset))
    }
}

impl FeatureMap {
    /// Fills in how columns of one space match.
    fn compare(&self, encoded: &mut Encoded) {
        for found in &self.matches {
            for row in 0..encoded.rows {
                let ids = encoded.ints_of(row);
                encoded.floats[row * encoded.n_floats + found.float] = share_in(&ids[found.a.clone()], &ids[found.b.clone()]);
            }
        }
    }

    /// The rows with the values of one column handed round: row n gets those of row `order[n]`.
    pub fn handed_round(&self, encoded: &Encoded, column: &str, order: &[usize]) -> Encoded {
        let mut changed = encoded.clone();
        for column in self.columns.iter().filter(|known| known.name == column) {
            let (ints, floats) = (column.role.ints(), column.role.floats());
            for (row, from) in order.iter().enumerate() {
                changed.ints[row * encoded.n_ints..][ints.clone()].copy_from_slice(&encoded.ints_of(*from)[ints.clone()]);
                changed.floats[row * encoded.n_floats..][floats.clone()].copy_from_slice(&encoded.floats_of(*from)[floats.clone()]);
            }
        }
        self.compare(&mut changed);
        changed
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

pub(super) fn strings(array: &ArrayRef) -> Result<StringArray> {
    match array.data_type() {
        DataType::Utf8 | DataType::Boolean => {}
        kind if kind.is_numeric() => {}
        other => return Err(Error::contract(format_args!("{other} is no category"))),
    }
    Ok(cast(array, &DataType::Utf8)?.as_string::<i32>().clone())
}

pub(super) fn numbers(array: &ArrayRef) -> Result<Float64Array> {
    if !array.data_type().is_numeric() {
        return Err(Error::contract(format_args!("{} is no number", array.data_type())));
    }
    Ok(cast(array, &DataType::Float64)?.as_primitive::<Float64Type>().clone())
}

/// The vectors of a column, one a row, and the width of each.
pub(super) struct Vectors<'a> {
    pub width: usize,
    list: &'a FixedSizeListArray,
    values: &'a [f32],
}

impl Vectors<'_> {
    /// None where the row has none, or one with a number that is not finite.
    pub fn of(&self, row: usize) -> Option<&[f32]> {
        let values = &self.values[self.list.value_offset(row) as usize..][..self.width];
        (self.list.is_valid(row) && values.iter().all(|x| x.is_finite())).then_some(values)
    }
}

pub(super) fn vector<'a>(name: &str, array: &'a ArrayRef) -> Result<Vectors<'a>> {
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

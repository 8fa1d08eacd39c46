//! Training rows -> the feature map, block by block: tokens are counted in all rows, numbers are described by a sample of them. So the
//! rows need not be in memory, and those that are take the same way.

use super::encode::{Encoder, numbers, strings, vector};
use super::{
    Bins, Column, FeatureMap, MOMENT, NO_ROW, Part, Role, SEQUENCE_LENGTH, Settings, Space, TEXT_BUCKETS, TEXT_LENGTH, TEXT_SPACE, Usage,
    finite, recent, shape, space_name, take, usage,
};
use crate::error::{Error, Result};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::DataType;
use std::collections::{BTreeMap, HashMap};
use xxhash_rust::xxh3::xxh3_64;

/// Learns the map from joined training rows. `reserved` columns are not inputs; `evidence` names counts of which more never means
/// less: a missing one is 0.
pub fn fit(parts: &[Part], settings: &Settings, reserved: &[&str], evidence: impl Fn(&str) -> bool) -> Result<FeatureMap> {
    let mut fitting = Fitting::new(settings, reserved, evidence);
    for (part, &Part { table, rows }) in parts.iter().enumerate() {
        fitting.add(part, table, &weights(table, rows))?;
    }
    Ok(fitting.finish())
}

/// What is known of the columns after some blocks of rows.
pub struct Fitting<E> {
    settings: Settings,
    reserved: Vec<String>,
    evidence: E,
    columns: Vec<Seen>,
    /// Space -> token -> rows that hold it.
    counts: BTreeMap<String, HashMap<String, u64>>,
}

struct Seen {
    name: String,
    part: usize,
    kind: DataType,
    of: Of,
}

enum Of {
    Unusable,
    Number(Numbers),
    Category(Categories),
    Sequence,
    Text,
    Vector(Vector),
}

/// Numbers of a column are described by a uniform sample of at most so many: quantiles are right to a tenth of a percent.
const SAMPLE: usize = 1 << 19;

impl<E: Fn(&str) -> bool> Fitting<E> {
    pub fn new(settings: &Settings, reserved: &[&str], evidence: E) -> Self {
        let reserved = reserved.iter().map(|name| (*name).to_owned()).collect();
        Self { settings: settings.clone(), reserved, evidence, columns: Vec::new(), counts: BTreeMap::new() }
    }

    /// Takes in rows of a part, each with the number of joined rows that name it.
    ///
    /// # Errors
    /// `Contract` when a column is of another type than in an earlier block.
    pub fn add(&mut self, part: usize, table: &RecordBatch, weights: &[u64]) -> Result<()> {
        for (field, array) in table.schema().fields().iter().zip(table.columns()) {
            let name = field.name();
            if self.reserved.contains(name) || self.settings.exclude.contains(name) {
                continue;
            }
            let place = match self.columns.iter().position(|column| column.part == part && column.name == *name) {
                Some(place) => place,
                None => {
                    self.columns.push(Seen::new(name, part, array.data_type(), &self.settings));
                    self.columns.len() - 1
                }
            };
            let column = &mut self.columns[place];
            if column.kind != *array.data_type() {
                let (before, now) = (&column.kind, array.data_type());
                return Err(Error::contract(format_args!("column {name} is {before} in some rows and {now} in others")));
            }
            match &mut column.of {
                Of::Number(numbers) => numbers.add(array, (self.evidence)(name).then_some(0.0))?,
                Of::Category(categories) => {
                    let moment = MOMENT.contains(&name.as_str());
                    categories.add(array, weights, moment, self.counts.entry(space_name(name)).or_default())?;
                }
                Of::Sequence => count_sequence(array, weights, self.counts.entry(space_name(name)).or_default()),
                Of::Vector(vector) => vector.add(name, array)?,
                Of::Text | Of::Unusable => {}
            }
        }
        Ok(())
    }

    pub fn finish(self) -> FeatureMap {
        let mut map = FeatureMap {
            columns: Vec::new(),
            spaces: BTreeMap::new(),
            matches: Vec::new(),
            dropped: BTreeMap::new(),
            n_ints: 0,
            n_floats: 0,
            table_rows: 1,
        };
        let mut of_moments = BTreeMap::new();
        for Seen { name, part, kind, of } in self.columns {
            let role = match of {
                Of::Unusable => Err(format!("a column of {kind} is no feature")),
                Of::Number(numbers) => numbers.role(&name, self.settings.bins, &mut map, (self.evidence)(&name)),
                Of::Category(categories) => categories.check().map(|values| {
                    of_moments.insert(name.clone(), values);
                    Role::Category { int: take(&mut map.n_ints, 1), space: space_name(&name), usual: 0 }
                }),
                Of::Sequence => Ok(Role::Sequence { int: take(&mut map.n_ints, SEQUENCE_LENGTH), space: space_name(&name) }),
                Of::Text => Ok(Role::Text { int: take(&mut map.n_ints, TEXT_LENGTH), list: matches!(kind, DataType::List(_)) }),
                Of::Vector(vector) => vector.role(&mut map.n_floats),
            };
            match role {
                Ok(role) => map.columns.push(Column { name, part, role }),
                Err(why) => drop(map.dropped.insert(name, why)),
            }
        }
        map.set_spaces(self.counts, &self.settings);
        map.set_usual(&of_moments);
        map.set_matches();
        map
    }
}

impl Seen {
    fn new(name: &str, part: usize, kind: &DataType, settings: &Settings) -> Self {
        let of = match usage(name, kind, settings) {
            Usage::Unusable => Of::Unusable,
            Usage::Number => Of::Number(Numbers::default()),
            Usage::Category => Of::Category(Categories::default()),
            Usage::Sequence => Of::Sequence,
            Usage::Text => Of::Text,
            Usage::Vector(width) => Of::Vector(Vector { rows: 0, sums: vec![0.0; width], squares: vec![0.0; width] }),
        };
        Self { name: name.to_owned(), part, kind: kind.clone(), of }
    }
}

/// How many joined rows name each row of a part.
fn weights(table: &RecordBatch, rows: Option<&[u32]>) -> Vec<u64> {
    let Some(rows) = rows else { return vec![1; table.num_rows()] };
    let mut weights = vec![0; table.num_rows()];
    rows.iter().filter(|row| **row != NO_ROW).for_each(|row| weights[*row as usize] += 1);
    weights
}

struct Numbers {
    missing: u64,
    known: u64,
    sum: f64,
    min: f64,
    max: f64,
    /// The known values whose place hashes to at most `threshold`, with the hash.
    sample: Vec<(u32, f64)>,
    threshold: u32,
}

impl Default for Numbers {
    fn default() -> Self {
        let (min, max) = (f64::INFINITY, f64::NEG_INFINITY);
        Self { missing: 0, known: 0, sum: 0.0, min, max, sample: Vec::new(), threshold: u32::MAX }
    }
}

impl Numbers {
    fn add(&mut self, array: &ArrayRef, missing: Option<f64>) -> Result<()> {
        for value in &numbers(array)? {
            let Some(value) = finite(value).or(missing) else {
                self.missing += 1;
                continue;
            };
            self.sum += value;
            self.min = self.min.min(value);
            self.max = self.max.max(value);
            let hash = (xxh3_64(&self.known.to_le_bytes()) >> 32) as u32;
            self.known += 1;
            if hash <= self.threshold {
                self.sample.push((hash, value));
                while self.sample.len() > SAMPLE {
                    self.threshold /= 2;
                    self.sample.retain(|(hash, _)| *hash <= self.threshold);
                }
            }
        }
        Ok(())
    }

    fn role(self, name: &str, bins: usize, map: &mut FeatureMap, evidence: bool) -> Result<Role, String> {
        let flagged = self.missing > 0;
        if self.known == 0 {
            return Err("no training row has a value".into());
        }
        let values: Vec<f64> = self.sample.into_iter().map(|(_, value)| value).collect();
        let (min, max) = (self.min, self.max);
        let mean = self.sum / self.known as f64;
        let tail_mean = (min >= 0.0 && max > 5.0 * mean).then_some(mean as f32).filter(|mean| *mean > 0.0);
        let n = values.len() as f64;
        let shaped: Vec<f64> = values.iter().map(|x| shape(*x, tail_mean)).collect();
        let center = shaped.iter().sum::<f64>() / n;
        let scale = (shaped.iter().map(|x| (x - center).powi(2)).sum::<f64>() / n).sqrt();
        let varies = max > min && scale > 1e-9 * center.abs().max(1e-30) && scale.is_finite();
        if !varies && !flagged {
            return Err("all training rows have the same value".into());
        }
        let scale = if varies { scale as f32 } else { 1.0 };
        let knots = if evidence { Vec::new() } else { knots(values, bins) };
        let bins = (!knots.is_empty()).then(|| Bins { int: take(&mut map.n_ints, 1), space: format!("{name} bins"), knots });
        let float = take(&mut map.n_floats, 1 + usize::from(flagged));
        Ok(Role::Number { float, tail_mean, center: center as f32, scale, flagged, evidence, bins })
    }
}

/// Where the bins of equal count meet; fewer where values repeat. With two values or fewer the number itself says all.
fn knots(mut values: Vec<f64>, bins: usize) -> Vec<f32> {
    values.sort_unstable_by(f64::total_cmp);
    let mut knots: Vec<f32> = (1..bins).map(|bin| values[bin * values.len() / bins] as f32).collect();
    knots.dedup();
    knots.retain(|knot| *knot > values[0] as f32);
    if knots.len() < 2 { Vec::new() } else { knots }
}

#[derive(Default)]
struct Categories {
    first: Option<String>,
    /// There is another value too.
    varies: bool,
    nulls: bool,
    /// Of what is known only at the moment of a decision: rows of each value, and of none.
    values: HashMap<Option<String>, u64>,
}

impl Categories {
    fn add(&mut self, array: &ArrayRef, weights: &[u64], moment: bool, counts: &mut HashMap<String, u64>) -> Result<()> {
        let values = strings(array)?;
        self.nulls |= values.null_count() > 0;
        // [joined rows, rows] of each value.
        let mut seen: HashMap<&str, [u64; 2]> = HashMap::new();
        for (value, weight) in values.iter().zip(weights) {
            if let Some(value) = value {
                let [joined, rows] = seen.entry(value).or_default();
                (*joined, *rows) = (*joined + weight, *rows + 1);
            }
        }
        if moment {
            *self.values.entry(None).or_default() += values.null_count() as u64;
        }
        for (value, [joined, rows]) in seen {
            match &self.first {
                None => self.first = Some(value.to_owned()),
                Some(first) => self.varies |= first != value,
            }
            match counts.get_mut(value) {
                Some(count) => *count += joined,
                None => drop(counts.insert(value.to_owned(), joined)),
            }
            if moment {
                *self.values.entry(Some(value.to_owned())).or_default() += rows;
            }
        }
        Ok(())
    }

    fn check(self) -> Result<HashMap<Option<String>, u64>, String> {
        match (&self.first, self.varies || self.nulls) {
            (None, _) => Err("no training row has a value".into()),
            (Some(_), false) => Err("all training rows have the same value".into()),
            (Some(_), true) => Ok(self.values),
        }
    }
}

fn count_sequence(array: &ArrayRef, weights: &[u64], counts: &mut HashMap<String, u64>) {
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

/// Sums of each dimension over the rows that have a vector.
struct Vector {
    rows: u64,
    sums: Vec<f64>,
    squares: Vec<f64>,
}

impl Vector {
    fn add(&mut self, name: &str, array: &ArrayRef) -> Result<()> {
        let vectors = vector(name, array)?;
        for row in 0..array.len() {
            if let Some(values) = vectors.of(row) {
                self.rows += 1;
                for ((sum, square), x) in self.sums.iter_mut().zip(&mut self.squares).zip(values) {
                    *sum += f64::from(*x);
                    *square += f64::from(*x).powi(2);
                }
            }
        }
        Ok(())
    }

    fn role(self, n_floats: &mut usize) -> Result<Role, String> {
        if self.rows == 0 {
            return Err("no training row has a value".into());
        }
        let n = self.rows as f64;
        let center: Vec<f64> = self.sums.iter().map(|sum| sum / n).collect();
        let spread = |(square, center): (&f64, &f64)| (square / n - center.powi(2)).max(0.0).sqrt();
        let spreads: Vec<f64> = self.squares.iter().zip(&center).map(spread).collect();
        if spreads.iter().all(|spread| *spread < 1e-9) {
            return Err("all training rows have the same value".into());
        }
        // A dimension that never varies is left where it is: at 0.
        let scale = spreads.iter().map(|spread| if *spread < 1e-9 { 1.0 } else { *spread as f32 }).collect();
        let center = center.into_iter().map(|x| x as f32).collect();
        Ok(Role::Vector { float: take(n_floats, self.sums.len()), center, scale })
    }
}

fn vocabulary(counts: HashMap<String, u64>, settings: &Settings) -> Vec<String> {
    let mut tokens: Vec<(String, u64)> = counts.into_iter().filter(|(_, count)| *count >= settings.min_count).collect();
    tokens.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    tokens.truncate(settings.max_vocabulary);
    tokens.into_iter().map(|(token, _)| token).collect()
}

impl FeatureMap {
    /// Gives every space its rows of the embedding table.
    fn set_spaces(&mut self, counts: BTreeMap<String, HashMap<String, u64>>, settings: &Settings) {
        let bins = self.columns.iter().filter_map(|column| match &column.role {
            Role::Number { bins: Some(bins), .. } => Some((bins.space.clone(), bins.knots.len() + 1)),
            _ => None,
        });
        for (name, bins) in bins.collect::<Vec<_>>() {
            self.add_space(name, (0..bins).map(|bin| bin.to_string()).collect(), 0);
        }
        for (name, counts) in counts {
            if self.columns.iter().any(|column| column.role.space() == Some(&name)) {
                self.add_space(name, vocabulary(counts, settings), 0);
            }
        }
        if self.columns.iter().any(|column| matches!(column.role, Role::Text { .. })) {
            self.add_space(TEXT_SPACE.into(), Vec::new(), TEXT_BUCKETS);
        }
    }

    fn add_space(&mut self, name: String, tokens: Vec<String>, unnamed: usize) {
        let offset = self.table_rows as i32;
        self.table_rows += tokens.len() + unnamed + 2;
        self.spaces.insert(name, Space { offset, tokens });
    }

    /// The most frequent id of each column of the moment.
    fn set_usual(&mut self, of_moments: &BTreeMap<String, HashMap<Option<String>, u64>>) {
        let encoder = Encoder::new(self);
        let mut usual = BTreeMap::new();
        for column in &self.columns {
            if let (Role::Category { space, .. }, Some(values)) = (&column.role, of_moments.get(&column.name))
                && MOMENT.contains(&column.name.as_str())
            {
                let mut counts: BTreeMap<i32, u64> = BTreeMap::new();
                values.iter().for_each(|(value, rows)| *counts.entry(encoder.id(value.as_deref(), space)).or_default() += rows);
                let most = counts.into_iter().max_by_key(|(id, count)| (*count, -id)).map_or(0, |(id, _)| id);
                usual.insert(column.name.clone(), most);
            }
        }
        for column in &mut self.columns {
            if let (Role::Category { usual: id, .. }, Some(most)) = (&mut column.role, usual.get(&column.name)) {
                *id = *most;
            }
        }
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
                self.matches.push(super::Match { a: a.role.ints(), b: b.role.ints(), float: take(&mut self.n_floats, 1) });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Float64Array, StringArray};
    use std::sync::Arc;

    #[test]
    fn blocks_of_rows_give_the_map_of_all_rows() {
        let ids: Vec<Option<String>> = (0..1000).map(|i| (i % 7 > 0).then(|| format!("v{}", (i * i) % 23))).collect();
        let numbers: Vec<Option<f64>> = (0..1000).map(|i| (i != 900).then(|| f64::from(i * 37 % 101).powi(2))).collect();
        let columns: [(&str, ArrayRef); 2] = [("shop", Arc::new(StringArray::from(ids))), ("price", Arc::new(Float64Array::from(numbers)))];
        let table = RecordBatch::try_from_iter_with_nullable(columns.map(|(name, array)| (name, array, true))).expect("a table");
        let settings = Settings { bins: 8, ..Settings::default() };
        let whole = fit(&[Part { table: &table, rows: None }], &settings, &[], |_| false).expect("a map");
        let mut fitting = Fitting::new(&settings, &[], |_: &str| false);
        for start in (0..1000).step_by(300) {
            let block = table.slice(start, 300.min(1000 - start));
            fitting.add(0, &block, &vec![1; block.num_rows()]).expect("added");
        }
        assert_eq!(fitting.finish(), whole);
    }

    #[test]
    fn many_numbers_are_described_by_a_sample_of_them() {
        let rows = 4 * SAMPLE;
        let values = Float64Array::from((0..rows).map(|i| (i % 1009) as f64 - 100.0).collect::<Vec<_>>());
        let mut numbers = Numbers::default();
        numbers.add(&(Arc::new(values) as ArrayRef), None).expect("numbers");
        assert!(numbers.sample.len() <= SAMPLE && numbers.sample.len() > SAMPLE / 3, "{}", numbers.sample.len());
        let mut map = fit(&[], &Settings::default(), &[], |_| false).expect("an empty map");
        let Ok(Role::Number { center, scale, bins: Some(bins), .. }) = numbers.role("x", 4, &mut map, false) else { panic!("a number") };
        assert!((f64::from(center) - 404.0).abs() < 2.0 && (f64::from(scale) - 291.3).abs() < 1.5, "{center} {scale}");
        for (knot, expected) in bins.knots.iter().zip([152.0, 404.0, 656.0]) {
            assert!((knot - expected).abs() < 4.0, "{:?}", bins.knots);
        }
    }
}

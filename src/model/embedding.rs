//! Users as points: what the interest network knows of a user, in numbers that can be compared.
//!
//! A user's taste is the mean of the categories that they showed a sign of, in the network's own space: each weighted by the odds that
//! the user engages with it over those of any user, so that a quiet user has the taste of a busy one with the same interests. What
//! only some may know of a user is left out by the caller: a category that is not named adds nothing. Habits, the standardised numbers
//! of the user features (how much, how lately), stand behind the taste.

use super::features::Encoder;
use super::interest::{CATEGORIES, Categories, Interest, USERS};
use super::logistic;
use super::network::TABLE;
use crate::error::{Error, Result};
use crate::types::column;
use arrow::array::{Float64Array, RecordBatch, StringArray};
use ndarray::{Array1, Array2, ShapeBuilder};
use std::collections::{BTreeMap, HashMap};

/// [users, width], row-major; the first `taste` numbers are the taste, the others habits. Both parts are as long as 1 on average or
/// shorter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embeddings {
    pub users: Vec<String>,
    pub taste: usize,
    pub width: usize,
    pub rows: Vec<f32>,
}

impl Embeddings {
    pub fn of(&self, row: usize) -> &[f32] {
        &self.rows[row * self.width..][..self.width]
    }

    /// The tastes alone, [users, taste].
    pub fn tastes(&self) -> Vec<f32> {
        (0..self.users.len()).flat_map(|row| &self.of(row)[..self.taste]).copied().collect()
    }

    /// The rows of chosen users.
    pub fn select(&self, keep: impl Fn(&str) -> bool) -> Self {
        let kept: Vec<usize> = (0..self.users.len()).filter(|row| keep(&self.users[*row])).collect();
        Self {
            users: kept.iter().map(|row| self.users[*row].clone()).collect(),
            rows: kept.iter().flat_map(|row| self.of(*row)).copied().collect(),
            ..*self
        }
    }

    /// Adds those of other users in the same space.
    pub fn append(&mut self, other: Self) {
        if self.users.is_empty() {
            *self = other;
            return;
        }
        assert_eq!((self.taste, self.width), (other.taste, other.width), "one space");
        self.users.extend(other.users);
        self.rows.extend(other.rows);
    }

    /// How much more each user looks like the `alike` than like the `others` (rows of both): the logits of a logistic regression on the
    /// embeddings, up to a constant.
    pub fn likeness(&self, alike: &[usize], others: &[usize]) -> Result<Vec<f64>> {
        let fitted: Vec<usize> = alike.iter().chain(others).copied().collect();
        let mut matrix = Array2::<f64>::zeros((fitted.len(), self.width).f());
        for (row, of) in fitted.iter().enumerate() {
            matrix.row_mut(row).iter_mut().zip(self.of(*of)).for_each(|(cell, x)| *cell = f64::from(*x));
        }
        let targets = Array1::from_iter((0..fitted.len()).map(|row| row < alike.len()));
        let weights = logistic::separate(matrix, targets, L2)?;
        let dot = |row: usize| self.of(row).iter().zip(&weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
        Ok((0..self.users.len()).map(dot).collect())
    }
}

/// Strength of L2 in units of one row's loss.
const L2: f64 = 1.0;

impl Interest {
    /// The users of `scores` ([`Interest::score`]'s, all of `users`) in the space of categories that `may_count`; a user who showed a
    /// sign of none of them has no place. In the order of `users`. `None` when no network was trained.
    pub fn embed(&self, users: &RecordBatch, scores: &RecordBatch, may_count: impl Fn(&str) -> bool) -> Result<Option<Embeddings>> {
        let Some(spec) = &self.at_rest.spec else { return Ok(None) };
        let encoder = Encoder::new(&self.at_rest.map);
        let taste = spec.fields.dim();
        let vectors = self.category_vectors(&encoder)?;
        let ids = column::<StringArray>(users, "user_id")?;
        let rows_of: HashMap<&str, usize> = ids.iter().flatten().zip(0..).collect();
        let mut sums = vec![(0.0, vec![0.0; taste]); users.num_rows()];
        let (of_user, of_category) = (column::<StringArray>(scores, "user_id")?, column::<StringArray>(scores, "category_id")?);
        let above = column::<Float64Array>(scores, "above_base")?;
        for row in 0..scores.num_rows() {
            let category = of_category.value(row);
            let Some(vector) = vectors.get(category).filter(|_| may_count(category)) else { continue };
            let user = rows_of.get(of_user.value(row)).ok_or_else(|| Error::internal("a score of a user who is not there"))?;
            let odds = above.value(row).clamp(-MOST_LOGITS, MOST_LOGITS).exp();
            let (weight, sum) = &mut sums[*user];
            *weight += odds;
            sum.iter_mut().zip(vector).for_each(|(sum, x)| *sum += odds * x);
        }
        let habits = encoder.block(USERS, users, None)?;
        let n_habits = habits.n_floats();
        let unit = (n_habits.max(1) as f32).sqrt().recip();
        let mut found = Embeddings { users: Vec::new(), taste, width: taste + n_habits, rows: Vec::new() };
        for (row, (weight, sum)) in sums.into_iter().enumerate().filter(|(_, (weight, _))| *weight > 0.0) {
            found.users.push(ids.value(row).to_owned());
            found.rows.extend(sum.iter().map(|sum| (sum / weight) as f32));
            found.rows.extend(habits.floats_of(row).iter().map(|x| x * unit));
        }
        Ok(Some(found))
    }

    /// The place of every category that training knew: the sum of the embeddings of its id, its parent's and its name, less that of the
    /// mean category, of length 1. What all categories have in common tells no tastes apart.
    fn category_vectors(&self, encoder: &Encoder) -> Result<BTreeMap<String, Vec<f64>>> {
        let Some(spec) = &self.at_rest.spec else { return Ok(BTreeMap::new()) };
        let categories = Categories::from_rows(self.at_rest.categories.clone());
        let block = encoder.block(CATEGORIES, &categories.table()?, None)?;
        let rows = encoder.join(&[(&block, None)], 0..categories.len());
        let (width, dim, table) = (spec.fields.width, spec.fields.dim(), &self.weights[TABLE].data);
        let mut vectors: Vec<Vec<f64>> = Vec::new();
        for row in 0..categories.len() {
            let mut vector = vec![0.0; dim];
            for bag in &spec.fields.bags {
                let ids: Vec<usize> = rows.ints_of(row)[bag.clone()].iter().filter(|id| **id > 0).map(|id| *id as usize).collect();
                for id in &ids {
                    let embedding = &table[id * width..][..dim];
                    vector.iter_mut().zip(embedding).for_each(|(sum, x)| *sum += f64::from(*x) / ids.len() as f64);
                }
            }
            vectors.push(vector);
        }
        let mean: Vec<f64> = (0..dim).map(|i| vectors.iter().map(|vector| vector[i]).sum::<f64>() / vectors.len().max(1) as f64).collect();
        for vector in &mut vectors {
            vector.iter_mut().zip(&mean).for_each(|(x, mean)| *x -= mean);
            let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
            vector.iter_mut().for_each(|x| *x /= length.max(f64::MIN_POSITIVE));
        }
        Ok(categories.ids().map(str::to_owned).zip(vectors).collect())
    }
}

/// Further above the base, or below it, no sign says more.
const MOST_LOGITS: f64 = 8.0;

//! Means and covariances of columns that are seen once, in any order, in parts that are merged.
//!
//! Sums are kept in twice the precision of a float ([`Wide`]): rounding starts at the thirty-second digit, so neither the order of the
//! rows nor the number of threads shows in a result, and a variance survives a mean a million times larger without a second pass.

/// A sum in twice the precision: the unevaluated sum of two floats (Dekker 1971).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wide {
    high: f64,
    low: f64,
}

impl Wide {
    /// As stored by [`Wide::parts`].
    pub fn from_parts(high: f64, low: f64) -> Self {
        Self { high, low }
    }

    pub fn parts(self) -> (f64, f64) {
        (self.high, self.low)
    }

    /// Rounded to a float.
    pub fn value(self) -> f64 {
        self.high + self.low
    }

    #[inline]
    pub fn add(&mut self, value: f64) {
        let (sum, error) = two_sum(self.high, value);
        (self.high, self.low) = quick_two_sum(sum, self.low + error);
    }

    /// Adds `a * b`, the product not rounded.
    #[inline]
    pub fn add_product(&mut self, a: f64, b: f64) {
        let (product, error) = two_product(a, b);
        self.merge(Self { high: product, low: error });
    }

    #[inline]
    pub fn merge(&mut self, other: Self) {
        let (sum, error) = two_sum(self.high, other.high);
        let (low, lost) = two_sum(self.low, other.low);
        let (sum, error) = quick_two_sum(sum, error + low);
        (self.high, self.low) = quick_two_sum(sum, error + lost);
    }

    fn minus(mut self, other: Self) -> Self {
        self.merge(Self { high: -other.high, low: -other.low });
        self
    }

    fn times(self, other: Self) -> Self {
        let (product, error) = two_product(self.high, other.high);
        let (high, low) = quick_two_sum(product, error + (self.high * other.low + self.low * other.high));
        Self { high, low }
    }

    fn over(self, divisor: f64) -> Self {
        let quotient = self.high / divisor;
        let (product, error) = two_product(quotient, divisor);
        let rest = self.minus(Self { high: product, low: error });
        let (high, low) = quick_two_sum(quotient, rest.value() / divisor);
        Self { high, low }
    }
}

impl FromIterator<f64> for Wide {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut sum = Self::default();
        values.into_iter().for_each(|value| sum.add(value));
        sum
    }
}

/// The rounded sum and what rounding took away (Knuth).
#[inline]
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let of_b = sum - a;
    (sum, (a - (sum - of_b)) + (b - of_b))
}

/// As [`two_sum`] where |a| >= |b| (Dekker).
#[inline]
fn quick_two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    (sum, b - (sum - a))
}

/// The rounded product and what rounding took away. By Veltkamp's halves rather than a fused multiply-add, which is a function call
/// where the processor is not known to have one.
#[inline]
fn two_product(a: f64, b: f64) -> (f64, f64) {
    let halves = |x: f64| {
        let scaled = 134_217_729.0 * x; // 2^27 + 1
        let high = scaled - (scaled - x);
        (high, x - high)
    };
    let ((a_high, a_low), (b_high, b_low)) = (halves(a), halves(b));
    let product = a * b;
    (product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low)
}

/// Row count, sums and sums of products of some columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    rows: u64,
    sums: Vec<Wide>,
    /// Of columns i <= j: row by row of the upper triangle.
    products: Vec<Wide>,
}

impl Moments {
    pub fn new(columns: usize) -> Self {
        Self { rows: 0, sums: vec![Wide::default(); columns], products: vec![Wide::default(); columns * (columns + 1) / 2] }
    }

    /// Of whole columns of one length.
    pub fn of(columns: &[&[f64]]) -> Self {
        let mut moments = Self::new(columns.len());
        let rows = columns.first().map_or(0, |column| column.len());
        assert!(columns.iter().all(|column| column.len() == rows), "columns of one table");
        let mut row = vec![0.0; columns.len()];
        for i in 0..rows {
            row.iter_mut().zip(columns).for_each(|(value, column)| *value = column[i]);
            moments.push(&row);
        }
        moments
    }

    #[inline]
    pub fn push(&mut self, row: &[f64]) {
        self.rows += 1;
        let mut products = self.products.iter_mut();
        for (i, &value) in row.iter().enumerate() {
            self.sums[i].add(value);
            for (&other, product) in row[i..].iter().zip(products.by_ref()) {
                product.add_product(value, other);
            }
        }
    }

    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.sums.len(), other.sums.len(), "moments of the same columns");
        self.rows += other.rows;
        self.sums.iter_mut().zip(&other.sums).for_each(|(sum, other)| sum.merge(*other));
        self.products.iter_mut().zip(&other.products).for_each(|(product, other)| product.merge(*other));
    }

    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn sum(&self, column: usize) -> f64 {
        self.sums[column].value()
    }

    /// NaN without rows.
    pub fn mean(&self, column: usize) -> f64 {
        self.sums[column].over(self.rows as f64).value()
    }

    /// Sum of products of two columns.
    pub fn product(&self, a: usize, b: usize) -> f64 {
        self.products[self.place(a, b)].value()
    }

    /// Sample covariance (divisor n - 1) of two columns; of one with itself its variance. NaN below two rows.
    pub fn covariance(&self, a: usize, b: usize) -> f64 {
        let rows = self.rows as f64;
        let centred = self.products[self.place(a, b)].minus(self.sums[a].times(self.sums[b]).over(rows));
        centred.over(rows - 1.0).value()
    }

    fn place(&self, a: usize, b: usize) -> usize {
        let (a, b) = (a.min(b), a.max(b));
        a * self.sums.len() - a * (a + 1) / 2 + b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variance_survives_a_large_mean_and_any_order() {
        // Of 0, 1, …, 999 the variance is 83,416.6…; moved by 1e12 a float's own squares would lose it whole.
        let column: Vec<f64> = (0..1000).map(|i| 1e12 + f64::from(i * 7 % 1000)).collect();
        let other: Vec<f64> = column.iter().map(|x| 3.0 - 2.0 * (x - 1e12)).collect();
        let moments = Moments::of(&[&column, &other]);
        let variance = 1000.0 * 1001.0 / 12.0;
        assert!((moments.covariance(0, 0) / variance - 1.0).abs() < 1e-14, "{}", moments.covariance(0, 0));
        assert!((moments.covariance(1, 0) / (-2.0 * variance) - 1.0).abs() < 1e-14);
        assert_eq!(moments.mean(0), 1e12 + 499.5);
        let (reversed, reversed_other): (Vec<f64>, Vec<f64>) = column.iter().copied().zip(other.iter().copied()).rev().unzip();
        let mut parts = Moments::of(&[&reversed[..300], &reversed_other[..300]]);
        parts.merge(&Moments::of(&[&reversed[300..], &reversed_other[300..]]));
        assert_eq!(parts.covariance(0, 1), moments.covariance(0, 1));
        assert_eq!((parts.sum(1), parts.rows()), (moments.sum(1), 1000));
    }

    #[test]
    fn what_rounding_would_lose_is_kept() {
        let mut sum = Wide::default();
        for value in [1e16, 1.0, -1e16, 1e-9] {
            sum.add(value);
        }
        assert_eq!(sum.value(), 1.0 + 1e-9);
        let mut square = Wide::default();
        square.add_product(1.0 + f64::EPSILON, 1.0 + f64::EPSILON);
        square.add(-1.0);
        assert_eq!(square.value(), 2.0 * f64::EPSILON + f64::EPSILON * f64::EPSILON);
        let third = Wide::from_parts(1.0, 0.0).over(3.0);
        assert!(third.times(Wide::from_parts(3.0, 0.0)).minus(Wide::from_parts(1.0, 0.0)).value().abs() < 1e-31);
    }
}

//! k-means: points -> the centres they gather around (Lloyd 1982), begun by k-means++ (Arthur and Vassilvitskii 2007) or where
//! others ended. One thread, sums in the order of the points: the same centres everywhere.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Points in a space of `width` numbers: [n, width], row-major.
#[derive(Clone, Copy)]
pub struct Points<'a> {
    pub rows: &'a [f32],
    pub width: usize,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Clustering {
    /// [k, width], row-major.
    pub centres: Vec<f64>,
    /// The centre of each point; of two as near the first.
    pub nearest: Vec<usize>,
    /// Sum of squared distances of the points to their centres.
    pub within: f64,
}

const ITERATIONS: usize = 100;

impl<'a> Points<'a> {
    pub fn len(&self) -> usize {
        self.rows.len() / self.width
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    pub fn of(&self, row: usize) -> &'a [f32] {
        &self.rows[row * self.width..][..self.width]
    }

    /// The mean of some points, summed in their order; zeros without any.
    pub fn mean(&self, rows: impl IntoIterator<Item = usize>) -> Vec<f64> {
        let (mut sum, mut n) = (vec![0.0; self.width], 0.0);
        for row in rows {
            sum.iter_mut().zip(self.of(row)).for_each(|(sum, x)| *sum += f64::from(*x));
            n += 1.0;
        }
        sum.iter_mut().for_each(|sum| *sum /= f64::max(n, 1.0));
        sum
    }

    /// Sum of squared distances to the mean of all.
    pub fn scatter(&self) -> f64 {
        let mean = self.mean(0..self.len());
        (0..self.len()).map(|row| distance(self.of(row), &mean)).sum()
    }
}

/// Clusters from `starts` runs of k-means++; the tightest one.
///
/// # Panics
/// When `k` is zero or more than there are points.
pub fn kmeans(points: Points, k: usize, starts: u64, seed: u64) -> Clustering {
    let runs = (0..starts).map(|run| from_centres(points, k, &[], seed.wrapping_add(run)));
    runs.min_by(|a, b| a.within.total_cmp(&b.within)).expect("at least one start")
}

/// Clusters from given centres [at most k, width]; k-means++ adds those that lack.
///
/// # Panics
/// When `k` is zero, more than there are points, or fewer than the given centres.
pub fn from_centres(points: Points, k: usize, given: &[f64], seed: u64) -> Clustering {
    assert!(k > 0 && k <= points.len() && given.len() <= k * points.width, "k lies between the given centres and the points");
    let mut centres = add_far_ones(points, k, given, &mut ChaCha8Rng::seed_from_u64(seed));
    let (mut nearest, mut distances) = assign(points, &centres);
    for _ in 0..ITERATIONS {
        centres = means(points, k, &nearest, &mut distances);
        let (next, next_distances) = assign(points, &centres);
        let settled = next == nearest;
        (nearest, distances) = (next, next_distances);
        if settled {
            break;
        }
    }
    Clustering { centres, nearest, within: distances.iter().sum() }
}

/// Each added centre is a point, drawn with a chance that is its squared distance to the nearest centre.
fn add_far_ones(points: Points, k: usize, given: &[f64], rng: &mut ChaCha8Rng) -> Vec<f64> {
    let mut centres = given.to_vec();
    let mut distances = vec![f64::INFINITY; points.len()];
    let nearer = |distances: &mut [f64], centre: &[f64]| {
        let rows = distances.iter_mut().enumerate();
        rows.for_each(|(row, least)| *least = least.min(distance(points.of(row), centre)));
    };
    given.chunks(points.width).for_each(|centre| nearer(&mut distances, centre));
    while centres.len() < k * points.width {
        let total: f64 = distances.iter().sum();
        let drawn = match centres.is_empty() || total <= 0.0 {
            true => rng.random_range(0..points.len()),
            false => {
                let mut left = rng.random::<f64>() * total;
                let passes = |distance: &f64| {
                    left -= distance;
                    left < 0.0
                };
                distances.iter().position(passes).unwrap_or(points.len() - 1)
            }
        };
        let centre: Vec<f64> = points.of(drawn).iter().map(|x| f64::from(*x)).collect();
        nearer(&mut distances, &centre);
        centres.extend(centre);
    }
    centres
}

/// The centre of each point and the squared distance to it.
fn assign(points: Points, centres: &[f64]) -> (Vec<usize>, Vec<f64>) {
    let nearest = |row: usize| {
        let of_centre = centres.chunks(points.width).map(|centre| distance(points.of(row), centre)).enumerate();
        of_centre.fold((0, f64::INFINITY), |best, next| if next.1 < best.1 { next } else { best })
    };
    (0..points.len()).map(nearest).unzip()
}

/// The mean of each centre's points. A centre that lost all its points takes over the point that lies worst, so that k stay k.
fn means(points: Points, k: usize, nearest: &[usize], distances: &mut [f64]) -> Vec<f64> {
    let width = points.width;
    let (mut sums, mut counts) = (vec![0.0; k * width], vec![0.0; k]);
    for (row, centre) in nearest.iter().enumerate() {
        sums[centre * width..][..width].iter_mut().zip(points.of(row)).for_each(|(sum, x)| *sum += f64::from(*x));
        counts[*centre] += 1.0;
    }
    for (centre, count) in counts.into_iter().enumerate() {
        let sum = &mut sums[centre * width..][..width];
        if count > 0.0 {
            sum.iter_mut().for_each(|sum| *sum /= count);
            continue;
        }
        let worst = distances.iter().enumerate().fold((0, -1.0), |worst, (row, far)| if *far > worst.1 { (row, *far) } else { worst }).0;
        distances[worst] = 0.0;
        sum.iter_mut().zip(points.of(worst)).for_each(|(sum, x)| *sum = f64::from(*x));
    }
    sums
}

fn distance(point: &[f32], centre: &[f64]) -> f64 {
    point.iter().zip(centre).map(|(x, c)| (f64::from(*x) - c).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three heaps of 50 points around (0, 0), (10, 0) and (0, 10).
    fn heaps() -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let around = [(0.0, 0.0), (10.0, 0.0), (0.0, 10.0)];
        (0..150).flat_map(|i| [around[i % 3].0 + rng.random::<f32>(), around[i % 3].1 + rng.random::<f32>()]).collect()
    }

    #[test]
    fn heaps_are_found_again_whatever_the_seed() {
        let rows = heaps();
        let points = Points { rows: &rows, width: 2 };
        for seed in 1..20 {
            let found = kmeans(points, 3, 4, seed);
            let together = |row: usize, other: usize| found.nearest[row] == found.nearest[other];
            assert!((3..150).all(|row| together(row, row % 3)) && !together(0, 1) && !together(1, 2) && !together(0, 2), "{seed}");
            assert!(found.within < 0.02 * points.scatter());
            assert_eq!(found, kmeans(points, 3, 4, seed));
        }
    }

    #[test]
    fn no_assignment_is_better_than_the_one_found() {
        let rows = heaps();
        let points = Points { rows: &rows, width: 2 };
        let found = kmeans(points, 5, 3, 1);
        let (nearest, distances) = assign(points, &found.centres);
        assert_eq!(nearest, found.nearest);
        assert_eq!(distances.iter().sum::<f64>(), found.within);
        // Each centre is the mean of its points.
        for centre in 0..5 {
            let mean = points.mean((0..points.len()).filter(|row| nearest[*row] == centre));
            assert!(mean.iter().zip(&found.centres[centre * 2..]).all(|(a, b)| (a - b).abs() < 1e-9));
        }
    }

    #[test]
    fn given_centres_keep_their_places_and_a_lost_one_is_found_a_new() {
        let rows = heaps();
        let points = Points { rows: &rows, width: 2 };
        let found = from_centres(points, 3, &[0.0, 9.0, 9.0, 0.0, 1.0, 1.0], 1);
        assert_eq!((found.nearest[2], found.nearest[1], found.nearest[0]), (0, 1, 2));
        // Nobody is near the third.
        let found = from_centres(points, 3, &[0.0, 9.0, 9.0, 0.0, 900.0, 900.0], 1);
        assert_eq!(found.nearest.iter().collect::<std::collections::BTreeSet<_>>().len(), 3);
    }

    #[test]
    fn points_in_one_place_are_one_cluster() {
        let found = kmeans(Points { rows: &[1.0; 12], width: 3 }, 2, 2, 7);
        assert_eq!((found.nearest, found.within), (vec![0; 4], 0.0));
    }
}

//! A table's probability of each logged impression, and what it would have earned in clicks: alone, and against the table that served.

use super::CHAMPION;
use super::day::is_true;
use crate::error::{Error, Result};
use crate::segments::EVERYONE;
use crate::statistics::{bootstrap, ope};
use crate::targeting::value::NO_AD;
use crate::types::{column, optional_column};
use arrow::array::{Array, AsArray, BooleanArray, Float64Array, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What a table would have done on each logged impression.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Targets {
    /// One a logged impression; none where the table shows nothing to that user, or nothing is known.
    pub probabilities: Vec<Option<f64>>,
    /// Mean predicted clicks under the table, by the predictions of [`Predicted`]; none where the probability is.
    pub values: Vec<Option<f64>>,
    /// Rows whose user has a segment in the table, is served as `everyone`, or is in neither: the latter keep their logged propensity,
    /// as if the table changed nothing for them.
    pub rows_by_segment: u64,
    pub rows_by_everyone: u64,
    pub rows_as_logged: u64,
}

/// Predicted clicks of the logged impressions, by a table's own p_click: made before the day, so the day needs no folds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Predicted {
    pub chosen: Vec<f64>,
}

/// What a target policy would have earned in clicks a row, from impressions with logged propensities; none when they have none.
///
/// Probabilities are those with which the target policy shows the logged ad to the logged user, conditional, like the logged propensity
/// (see [`given_some_ad`]), on some ad being shown; where it is none (the target shows nothing there) or no propensity was logged, the row is left out and
/// counted. With `champion`, the table that served, the difference to it is valued on the rows that both speak of.
pub fn off_policy_value(
    impressions: &RecordBatch,
    target: &Targets,
    champion: Option<&Targets>,
    predicted: Option<&Predicted>,
    plan: &ope::Plan,
    seed: u64,
) -> Result<Option<ope::Evaluation>> {
    let Some(logged) = optional_column::<Float64Array>(impressions, "propensity")? else { return Ok(None) };
    if logged.null_count() == logged.len() {
        return Ok(None);
    }
    let users = column::<StringArray>(impressions, "user_id")?;
    let clicked = column::<BooleanArray>(impressions, "clicked")?;
    let all: Vec<usize> = (0..impressions.num_rows()).filter(|&row| logged.is_valid(row)).collect();
    let users = bootstrap::clusters(users);
    let of = |rows: &[usize], targets: &Targets| Columns::of(rows, &users, clicked, logged, targets, predicted);
    let rows: Vec<usize> = all.iter().copied().filter(|&row| target.probabilities[row].is_some()).collect();
    let mut evaluation = ope::evaluate(&of(&rows, target).rounds(), plan, seed)?;
    evaluation.rows_left_out = (impressions.num_rows() - rows.len()) as u64;
    if let Some(champion) = champion {
        let both: Vec<usize> = rows.into_iter().filter(|&row| champion.probabilities[row].is_some()).collect();
        let (ours, theirs) = (of(&both, target), of(&both, champion));
        if let Some(found) = ope::difference(&ours.rounds(), &theirs.rounds(), plan, seed)? {
            (evaluation.champion, evaluation.difference) = (Some(found.other), Some(found.difference));
            evaluation.deciding_users = Some(found.deciding_users);
        }
    }
    Ok(Some(evaluation))
}

/// The impressions with propensities given that some ad was shown, which is all that a log of impressions knows of. A table's own
/// propensity is of an opportunity, and its `no_ad` row takes a part of these: the rows that it served are divided by the rest.
pub fn given_some_ad(impressions: &RecordBatch, policy_version: &str, segment_ads: &RecordBatch) -> Result<RecordBatch> {
    let of = |name: &str| optional_column::<StringArray>(impressions, name);
    let logged = optional_column::<Float64Array>(impressions, "propensity")?;
    let (Some(logged), Some(versions), Some(segments), Some(arms)) = (logged, of("policy_version")?, of("segment_id")?, of("arm")?) else {
        return Ok(impressions.clone());
    };
    let shown = shown_shares(segment_ads)?;
    let share = |row: usize| {
        let served = versions.is_valid(row) && versions.value(row) == policy_version && segments.is_valid(row) && arms.is_valid(row);
        served.then(|| shown.get(&(segments.value(row), arms.value(row))).copied()).flatten().filter(|share| *share > 0.0)
    };
    let given: Float64Array = logged.iter().enumerate().map(|(row, p)| p.map(|p| p / share(row).unwrap_or(1.0))).collect();
    let at = impressions.schema().index_of("propensity")?;
    let mut columns = impressions.columns().to_vec();
    columns[at] = Arc::new(given);
    Ok(RecordBatch::try_new(impressions.schema(), columns)?)
}

/// P(some ad is shown | segment, arm) of a segment_ads table.
fn shown_shares(segment_ads: &RecordBatch) -> Result<HashMap<(&str, &str), f64>> {
    let (segments, ads) = (column::<StringArray>(segment_ads, "segment_id")?, column::<StringArray>(segment_ads, "ad_id")?);
    let (arms, propensities) = (column::<StringArray>(segment_ads, "arm")?, column::<Float64Array>(segment_ads, "propensity")?);
    let mut shown: HashMap<(&str, &str), f64> = HashMap::new();
    for row in (0..segment_ads.num_rows()).filter(|&row| ads.value(row) != NO_AD && propensities.is_valid(row)) {
        *shown.entry((segments.value(row), arms.value(row))).or_default() += propensities.value(row);
    }
    Ok(shown)
}

/// Rows as off-policy evaluation wants them.
struct Columns {
    rewards: Vec<f64>,
    propensities: Vec<f64>,
    targets: Vec<f64>,
    users: Vec<u64>,
    model: Option<(Vec<f64>, Vec<f64>)>,
}

impl Columns {
    fn of(
        rows: &[usize],
        users: &[u64],
        clicked: &BooleanArray,
        logged: &Float64Array,
        targets: &Targets,
        predicted: Option<&Predicted>,
    ) -> Self {
        let rewards: Vec<f64> = rows.iter().map(|&row| f64::from(u8::from(is_true(clicked, row)))).collect();
        let model = predicted.map(|predicted| {
            let chosen: Vec<f64> = rows.iter().map(|&row| predicted.chosen[row]).collect();
            let target: Vec<f64> = rows.iter().map(|&row| targets.values[row].unwrap_or_default()).collect();
            // Predictions are meant at the reference position, clicks are not: one factor takes the difference out.
            let scale = rewards.iter().sum::<f64>() / chosen.iter().sum::<f64>();
            let scaled = |values: Vec<f64>| values.into_iter().map(|value| if scale.is_finite() { scale * value } else { value }).collect();
            (scaled(chosen), scaled(target))
        });
        Self {
            rewards,
            propensities: rows.iter().map(|&row| logged.value(row)).collect(),
            targets: rows.iter().map(|&row| targets.probabilities[row].unwrap_or_default()).collect(),
            users: rows.iter().map(|&row| users[row]).collect(),
            model,
        }
    }

    fn rounds(&self) -> ope::Rounds<'_> {
        ope::Rounds {
            rewards: &self.rewards,
            propensities: &self.propensities,
            targets: &self.targets,
            users: &self.users,
            model: self.model.as_ref().map(|(chosen, target)| ope::Model { chosen, target, refitted: &[] }),
            embeddings: None,
            unsupported: None,
        }
    }
}

/// The probability with which the table's champion arm would show each logged ad to the user's primary segment.
///
/// A logged impression is one in which some ad was shown. So the table's propensities, which leave the rest to `no_ad`, are divided by
/// the segment's probability of showing any ad.
pub fn champion_targets(impressions: &RecordBatch, user_segments: &RecordBatch, segment_ads: &RecordBatch) -> Result<Targets> {
    targets(impressions, user_segments, segment_ads, None)
}

/// As [`champion_targets`], with the clicks that `forecast` predicts under the table.
pub fn forecast_targets(
    impressions: &RecordBatch,
    user_segments: &RecordBatch,
    segment_ads: &RecordBatch,
    forecast: &Forecast<'_>,
) -> Result<Targets> {
    targets(impressions, user_segments, segment_ads, Some(forecast))
}

fn targets(
    impressions: &RecordBatch,
    user_segments: &RecordBatch,
    segment_ads: &RecordBatch,
    forecast: Option<&Forecast<'_>>,
) -> Result<Targets> {
    let primary = primary_segments(user_segments)?;
    let table = ChampionTable::read(segment_ads)?;
    let users = column::<StringArray>(impressions, "user_id")?;
    let ads = column::<StringArray>(impressions, "ad_id")?;
    let logged = optional_column::<Float64Array>(impressions, "propensity")?;
    let mut targets = Targets::default();
    let mut known: HashMap<(&str, Option<&str>), f64> = HashMap::new();
    for row in 0..impressions.num_rows() {
        let own = primary.get(users.value(row)).copied().filter(|segment| table.segments.contains(segment));
        let segment = own.or_else(|| table.segments.get(EVERYONE).copied());
        let rows = match (own, segment) {
            (Some(_), _) => &mut targets.rows_by_segment,
            (None, Some(_)) => &mut targets.rows_by_everyone,
            (None, None) => &mut targets.rows_as_logged,
        };
        *rows += 1;
        let probability = match segment {
            Some(segment) => table.given_any_ad(segment, ads.value(row)),
            None => logged.filter(|logged| logged.is_valid(row)).map(|logged| logged.value(row)),
        };
        targets.values.push(probability.and(forecast).map(|forecast| {
            let theirs = forecast.segment_of(users.value(row));
            match segment {
                Some(segment) => *known.entry((segment, theirs)).or_insert_with(|| table.value(segment, |ad| forecast.p_click(theirs, ad))),
                None => forecast.p_click(theirs, ads.value(row)),
            }
        }));
        targets.probabilities.push(probability);
    }
    Ok(targets)
}

/// p_click of every segment and ad of a table, for users in its segments.
pub struct Forecast<'a> {
    primary: HashMap<&'a str, &'a str>,
    p_click: HashMap<(&'a str, &'a str), f64>,
    /// Where the table has no prediction.
    mean: f64,
}

impl<'a> Forecast<'a> {
    pub fn read(user_segments: &'a RecordBatch, segment_ads: &'a RecordBatch) -> Result<Option<Self>> {
        let Some(predicted) = optional_column::<Float64Array>(segment_ads, "p_click")? else { return Ok(None) };
        let (segments, ads) = (column::<StringArray>(segment_ads, "segment_id")?, column::<StringArray>(segment_ads, "ad_id")?);
        let rows = (0..segment_ads.num_rows()).filter(|&row| predicted.is_valid(row));
        let p_click: HashMap<_, _> = rows.map(|row| ((segments.value(row), ads.value(row)), predicted.value(row))).collect();
        if p_click.is_empty() {
            return Ok(None);
        }
        // In a fixed order: a sum of floats must not depend on a hash.
        let sorted: BTreeMap<_, _> = p_click.iter().collect();
        let mean = sorted.values().copied().sum::<f64>() / p_click.len() as f64;
        Ok(Some(Self { primary: primary_segments(user_segments)?, p_click, mean }))
    }

    /// Of the logged impressions.
    pub fn predict(&self, impressions: &RecordBatch) -> Result<Predicted> {
        let (users, ads) = (column::<StringArray>(impressions, "user_id")?, column::<StringArray>(impressions, "ad_id")?);
        let of = |row: usize| self.p_click(self.segment_of(users.value(row)), ads.value(row));
        Ok(Predicted { chosen: (0..impressions.num_rows()).map(of).collect() })
    }

    fn segment_of(&self, user: &str) -> Option<&'a str> {
        self.primary.get(user).copied()
    }

    fn p_click(&self, segment: Option<&str>, ad: &str) -> f64 {
        self.p_click.get(&(segment.unwrap_or(EVERYONE), ad)).copied().unwrap_or(self.mean)
    }
}

/// User -> segment of rank 1.
fn primary_segments(user_segments: &RecordBatch) -> Result<HashMap<&str, &str>> {
    let users = column::<StringArray>(user_segments, "user_id")?;
    let segments = column::<StringArray>(user_segments, "segment_id")?;
    let ranks = user_segments.column_by_name("rank").ok_or_else(|| Error::contract("column rank is absent"))?;
    let ranks = cast(ranks, &DataType::Int64)?;
    let ranks = ranks.as_primitive::<Int64Type>();
    let first = (0..user_segments.num_rows()).filter(|&row| ranks.is_valid(row) && ranks.value(row) == 1);
    Ok(first.map(|row| (users.value(row), segments.value(row))).collect())
}

/// The champion arm of a segment_ads table.
struct ChampionTable<'a> {
    segments: BTreeSet<&'a str>,
    propensities: HashMap<(&'a str, &'a str), f64>,
    /// P(any ad) by segment.
    any_ad: HashMap<&'a str, f64>,
    /// The ads of each segment, in the order of the table.
    choices: HashMap<&'a str, Vec<(&'a str, f64)>>,
}

impl<'a> ChampionTable<'a> {
    fn read(segment_ads: &'a RecordBatch) -> Result<Self> {
        let segments = column::<StringArray>(segment_ads, "segment_id")?;
        let ads = column::<StringArray>(segment_ads, "ad_id")?;
        let arms = column::<StringArray>(segment_ads, "arm")?;
        let propensities = column::<Float64Array>(segment_ads, "propensity")?;
        let mut table = Self { segments: BTreeSet::new(), propensities: HashMap::new(), any_ad: HashMap::new(), choices: HashMap::new() };
        for row in (0..segment_ads.num_rows()).filter(|&row| arms.value(row) == CHAMPION && propensities.is_valid(row)) {
            let (segment, ad, propensity) = (segments.value(row), ads.value(row), propensities.value(row));
            table.segments.insert(segment);
            if ad != NO_AD {
                table.propensities.insert((segment, ad), propensity);
                *table.any_ad.entry(segment).or_default() += propensity;
                table.choices.entry(segment).or_default().push((ad, propensity));
            }
        }
        Ok(table)
    }

    /// Mean of `of` over the ads that the segment is shown.
    fn value(&self, segment: &str, of: impl Fn(&str) -> f64) -> f64 {
        let choices = self.choices.get(segment).into_iter().flatten();
        let (sum, any) = choices.fold((0.0, 0.0), |(sum, any), (ad, p)| (sum + p * of(ad), any + p));
        sum / any
    }

    /// P(ad | segment, some ad is shown); none where the segment is shown nothing.
    fn given_any_ad(&self, segment: &'a str, ad: &'a str) -> Option<f64> {
        let any = self.any_ad.get(segment).copied().filter(|any| *any > 0.0)?;
        Some(self.propensities.get(&(segment, ad)).copied().unwrap_or(0.0) / any)
    }
}

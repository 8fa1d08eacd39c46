//! Logged decisions -> the columns that off-policy evaluation works on: rewards, propensities, the target policy, a model of the reward.
//!
//! The target policy comes in one of three forms: a probability for every action in columns `target_p0`, `target_p1`, …, where the
//! action is the number; one column `target_p` with the probability of the logged action alone; or a table of its own, joined on the
//! columns it shares with the log. Only the first and the last say what the policy would do instead, which a model of the reward needs.

use super::checks::{Check, Status, missing_users};
use crate::error::{Error, Result};
use crate::platform::{engine, table};
use crate::statistics::bootstrap;
use arrow::array::{Array, AsArray, Float64Array, RecordBatch, StringArray};
use arrow::datatypes::Float64Type;
use datafusion::prelude::{DataFrame, Expr};
use std::collections::{BTreeMap, HashMap};

/// The names of the columns.
#[derive(Clone, Debug)]
pub struct Names {
    pub action: String,
    pub reward: String,
    pub propensity: String,
    /// Of the target probabilities: the beginning of their names, or a name.
    pub target: String,
    /// Of predicted rewards, likewise.
    pub qhat: String,
    /// Whose rows belong together; without one every row is on its own.
    pub user: Option<String>,
    /// What the reward may depend on besides the action.
    pub features: Vec<String>,
    /// What the action is an instance of: its segment or category.
    pub embedding: Option<String>,
}

/// Usable decisions, by column.
#[derive(Clone, Debug, Default)]
pub struct Decisions {
    pub rewards: Vec<f64>,
    pub propensities: Vec<f64>,
    pub targets: Vec<f64>,
    pub users: Vec<u64>,
    /// Number of the logged action, where the target policy's other choices are known; and those choices.
    pub actions: Vec<u32>,
    pub chosen_by_target: Vec<(usize, usize)>,
    pub choices: Vec<(u32, f64)>,
    /// Predictions that the table brings: q of the logged action, and its mean under the target policy.
    pub predictions: Option<(Vec<f64>, Vec<f64>)>,
    /// Cell of the features, and of the embedding within it.
    pub cells: Vec<u32>,
    pub embeddings: Option<Vec<u32>>,
    /// Share of the target policy on actions that were never logged.
    pub unsupported: Option<f64>,
    /// The target policy says nothing of these.
    pub left_out: u64,
    pub users_known: bool,
}

/// How probabilities of one row may miss their sum.
const SUM_TOLERANCE: f64 = 1e-6;
/// Cells of features, times actions: beyond it each would hold next to nothing.
const MAX_CELLS: usize = 2_000_000;

/// Reads decisions and checks them; with a failed check the decisions are not to be used.
pub async fn read(rows: &DataFrame, policy: Option<&DataFrame>, names: &Names) -> Result<(Decisions, Vec<Check>)> {
    let schema = rows.schema();
    let has = |name: &str| schema.has_column_with_unqualified_name(name);
    let (targets, qhats) = (numbered(rows, &names.target), numbered(rows, &names.qhat));
    let form = match (policy, targets.is_empty(), has(&names.target)) {
        (Some(_), ..) => Form::Table,
        (None, false, _) => Form::Wide,
        (None, true, true) => Form::Logged,
        (None, true, false) => {
            return Err(Error::usage(format_args!(
                "the table has neither {0}0, {0}1, … nor {0}: what would the target policy do?",
                names.target
            ))
            .action("name the columns by --target, or give the policy's own table by --target-policy"));
        }
    };
    if let Some(action) = targets.keys().find(|action| !qhats.is_empty() && !qhats.contains_key(action)) {
        return Err(Error::usage(format_args!("the table has {}{action}, but no {}{action}", names.target, names.qhat)));
    }
    let value = format!("{}_target", names.qhat);
    let mut numbers: Vec<&str> = vec![&names.reward, &names.propensity];
    match form {
        Form::Wide => numbers.extend(targets.values().chain(qhats.values()).map(String::as_str)),
        Form::Logged => numbers.push(&names.target),
        Form::Table => {}
    }
    if form != Form::Wide && has(&names.qhat) && has(&value) {
        numbers.extend([names.qhat.as_str(), value.as_str()]);
    }
    let wrong = table::not_numbers(rows, &numbers).await?;
    let mut checks = vec![super::experiment_checks::text_metric(&wrong)];
    if !wrong.is_empty() {
        return Ok((Decisions::default(), checks));
    }
    let shared = shared(rows, policy, names);
    let mut texts: Vec<&str> = if form == Form::Logged { Vec::new() } else { vec![&names.action] };
    let user = names.user.clone().or_else(|| has("user_id").then(|| "user_id".to_owned()));
    texts.extend(user.as_deref());
    texts.extend(names.features.iter().chain(&names.embedding).chain(&shared).map(String::as_str));
    let mut wanted: BTreeMap<String, Expr> = BTreeMap::new();
    for name in &numbers {
        wanted.insert(number_name(name), table::number(schema, name)?.alias(number_name(name)));
    }
    for name in &texts {
        wanted.insert(text_name(name), table::text(schema, name)?.alias(text_name(name)));
    }
    let read = engine::collect(rows.clone().select(wanted.into_values().collect::<Vec<_>>())?).await?;
    let read = Columns(read);

    let mut found = Decisions { users_known: user.is_some(), ..Decisions::default() };
    let count = read.0.num_rows();
    let (rewards, propensities) = (read.numbers(&names.reward), read.numbers(&names.propensity));
    let bad_rewards = rewards.iter().filter(|reward| !reward.is_finite()).count();
    checks.push(fail(
        "not_finite",
        bad_rewards,
        format!("{} is empty, NaN or infinite in {bad_rewards} of {count} rows", names.reward),
        "every reward is a number",
    ));
    let bad = propensities.iter().filter(|p| !(**p > 0.0 && **p <= 1.0)).count();
    let example = propensities.iter().find(|p| !(**p > 0.0 && **p <= 1.0)).copied().unwrap_or_default();
    checks.push(fail(
        "propensities",
        bad,
        format!("{} lies outside (0, 1] in {bad} of {count} rows, such as {example}", names.propensity),
        "every logged propensity lies in (0, 1]",
    ));
    if let Some(user) = &user {
        checks.push(missing_users(user, read.texts(user).null_count(), count));
    }
    let users: Vec<u64> = match &user {
        Some(user) => bootstrap::clusters(read.texts(user)),
        None => (0..count as u64).collect(),
    };
    let targets = match form {
        Form::Wide => wide_targets(&read, names, &targets, &qhats, &mut found, &mut checks)?,
        Form::Table => table_targets(&read, policy.expect("the form says so"), names, &shared, &mut found, &mut checks).await?,
        Form::Logged => read.numbers(&names.target).into_iter().map(Some).collect(),
    };
    let outside = targets.iter().flatten().filter(|p| !(**p >= 0.0 && **p <= 1.0 + SUM_TOLERANCE)).count();
    checks.push(fail(
        "target_probabilities",
        outside,
        format!("the target probability lies outside [0, 1] in {outside} of {count} rows"),
        "every target probability lies in [0, 1]",
    ));
    if form != Form::Wide && numbers.contains(&value.as_str()) {
        found.predictions = Some((read.numbers(&names.qhat), read.numbers(&value)));
    }
    if let Some((chosen, under_target)) = &found.predictions {
        let bad = chosen.iter().chain(under_target).filter(|q| !q.is_finite()).count();
        checks.push(fail(
            "predictions",
            bad,
            format!("predicted rewards are no numbers in {bad} places"),
            "every predicted reward is a number",
        ));
    }
    let cells = cells(&read, &names.features);
    let embeddings = names.embedding.as_ref().map(|column| combined(&cells, &levels(read.texts(column), usize::MAX)));
    let actions = found.actions.iter().max().map_or(1, |most| *most as usize + 1);
    let cell_count = cells.iter().max().map_or(1, |most| *most as usize + 1);
    if cell_count.saturating_mul(actions) > MAX_CELLS {
        return Err(Error::usage(format_args!("--features make {cell_count} cells of {actions} actions: too few rows would be in each"))
            .action("name fewer features, or ones with fewer values"));
    }
    keep(&mut found, rewards, propensities, targets, users, cells, embeddings);
    checks.push(Check::judge(
        "rows_without_target",
        (found.left_out > 0).then(|| {
            let status = if found.rewards.is_empty() { Status::Failed } else { Status::Warning };
            (status, format!("the target policy says nothing of {} of {count} rows, which are left out", found.left_out))
        }),
        "the target policy speaks of every row",
    ));
    checks.push(rewards_check(&found, names));
    Ok((found, checks))
}

/// The columns with a number after this beginning, by the number: that of the action.
fn numbered(rows: &DataFrame, beginning: &str) -> BTreeMap<u64, String> {
    let number = |name: &str| name.strip_prefix(beginning)?.parse().ok();
    rows.schema().fields().iter().filter_map(|field| Some((number(field.name())?, field.name().clone()))).collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Wide,
    Logged,
    Table,
}

fn number_name(name: &str) -> String {
    format!("number {name}")
}

fn text_name(name: &str) -> String {
    format!("text {name}")
}

/// What was read, by the table's own names.
struct Columns(RecordBatch);

impl Columns {
    /// NaN where there is nothing.
    fn numbers(&self, name: &str) -> Vec<f64> {
        let column: &Float64Array = self.0[number_name(name).as_str()].as_primitive::<Float64Type>();
        column.iter().map(|value| value.unwrap_or(f64::NAN)).collect()
    }

    fn texts(&self, name: &str) -> &StringArray {
        self.0[text_name(name).as_str()].as_string::<i32>()
    }

    /// A cell, empty where there is nothing.
    fn text(&self, name: &str, row: usize) -> String {
        let cells = self.texts(name);
        if cells.is_valid(row) { cells.value(row).trim().to_owned() } else { String::new() }
    }
}

fn fail(name: &str, bad: usize, finding: String, ok: &str) -> Check {
    Check::judge(name, (bad > 0).then_some((Status::Failed, finding)), ok)
}

/// Columns `target_p0`, `target_p1`, …: the whole distribution, and the predictions of every action.
fn wide_targets(
    read: &Columns,
    names: &Names,
    targets: &BTreeMap<u64, String>,
    qhats: &BTreeMap<u64, String>,
    found: &mut Decisions,
    checks: &mut Vec<Check>,
) -> Result<Vec<Option<f64>>> {
    let places: HashMap<u64, usize> = targets.keys().copied().zip(0..).collect();
    let actions: Vec<Option<usize>> =
        read.texts(&names.action).iter().map(|action| places.get(&action?.trim().parse().ok()?).copied()).collect();
    let count = actions.len();
    let unknown = actions.iter().filter(|action| action.is_none()).count();
    checks.push(fail(
        "actions",
        unknown,
        format!("{0} is no number that a column {1}… ends with in {unknown} of {count} rows", names.action, names.target),
        "every action is known",
    ));
    let probabilities: Vec<Vec<f64>> = targets.values().map(|name| read.numbers(name)).collect();
    let predictions: Vec<Vec<f64>> = targets.keys().filter_map(|action| Some(read.numbers(qhats.get(action)?))).collect();
    let mut off = 0;
    let mut example = 1.0;
    let mut logged = vec![false; targets.len()];
    actions.iter().flatten().for_each(|&action| logged[action] = true);
    let mut never = 0.0;
    let (mut of_chosen, mut of_target) = (Vec::new(), Vec::new());
    let mut of_logged = Vec::with_capacity(count);
    for row in 0..count {
        let action = actions[row].unwrap_or(0);
        let start = found.choices.len();
        let (mut sum, mut value) = (0.0, 0.0);
        for (choice, column) in probabilities.iter().enumerate() {
            let p = column[row];
            sum += p;
            never += if logged[choice] { 0.0 } else { p };
            value += predictions.get(choice).map_or(0.0, |q| p * q[row]);
            if p != 0.0 {
                found.choices.push((choice as u32, p));
            }
        }
        if !sums_to_one(sum) {
            off += 1;
            example = sum;
        }
        found.chosen_by_target.push((start, found.choices.len()));
        found.actions.push(action as u32);
        of_logged.push(Some(probabilities[action][row]));
        if !predictions.is_empty() {
            of_chosen.push(predictions[action][row]);
            of_target.push(value);
        }
    }
    checks.push(fail(
        "target_sums_to_one",
        off,
        format!("the target probabilities of {off} of {count} rows do not sum to one, but to {example:.6} for example"),
        "the target probabilities of every row sum to one",
    ));
    // A row may give an action a probability outside [0, 1] that the logged one does not show.
    let outside = probabilities.iter().flatten().filter(|p| !(**p >= 0.0 && **p <= 1.0 + SUM_TOLERANCE)).count();
    checks.push(fail(
        "target_distribution",
        outside,
        format!("{outside} target probabilities lie outside [0, 1]"),
        "target probabilities are probabilities",
    ));
    found.unsupported = Some(never / count.max(1) as f64);
    if !predictions.is_empty() {
        found.predictions = Some((of_chosen, of_target));
    }
    Ok(of_logged)
}

/// The columns that a policy's own table shares with the log, the action apart: its context.
fn shared(rows: &DataFrame, policy: Option<&DataFrame>, names: &Names) -> Vec<String> {
    let Some(policy) = policy else { return Vec::new() };
    let fields = policy.schema().fields().iter().map(|field| field.name().clone());
    fields.filter(|name| *name != names.action && *name != names.target && rows.schema().has_column_with_unqualified_name(name)).collect()
}

/// A policy's own table: action, probability, and the columns of the context in which they hold.
async fn table_targets(
    read: &Columns,
    policy: &DataFrame,
    names: &Names,
    shared: &[String],
    found: &mut Decisions,
    checks: &mut Vec<Check>,
) -> Result<Vec<Option<f64>>> {
    let schema = policy.schema();
    let mut wanted = vec![table::text(schema, &names.action)?.alias(text_name(&names.action))];
    wanted.push(table::number(schema, &names.target)?.alias(number_name(&names.target)));
    for name in shared {
        wanted.push(table::text(schema, name)?.alias(text_name(name)));
    }
    let table = Columns(engine::collect(policy.clone().select(wanted)?).await?);
    let context = |columns: &Columns, row: usize| -> Vec<String> { shared.iter().map(|name| columns.text(name, row)).collect() };
    let name_of = |columns: &Columns, row: usize| columns.text(&names.action, row);
    let mut ids: HashMap<String, u32> = HashMap::new();
    let mut id_of = |name: String| {
        let next = ids.len() as u32;
        *ids.entry(name).or_insert(next)
    };
    let probabilities = table.numbers(&names.target);
    let mut contexts: BTreeMap<Vec<String>, BTreeMap<u32, f64>> = BTreeMap::new();
    for (row, &p) in probabilities.iter().enumerate() {
        *contexts.entry(context(&table, row)).or_default().entry(id_of(name_of(&table, row))).or_default() += p;
    }
    let off = contexts.values().filter(|choices| !sums_to_one(choices.values().sum())).count();
    let where_ = if shared.is_empty() {
        "the policy table".to_owned()
    } else {
        format!("{off} of {} combinations of {}", contexts.len(), shared.join(", "))
    };
    checks.push(fail(
        "target_sums_to_one",
        off,
        format!("the target probabilities of {where_} do not sum to one"),
        "the target probabilities sum to one in every context",
    ));
    let mut places: BTreeMap<&Vec<String>, (usize, usize)> = BTreeMap::new();
    for (context, choices) in &contexts {
        let start = found.choices.len();
        found.choices.extend(choices.iter().map(|(action, p)| (*action, *p)));
        places.insert(context, (start, found.choices.len()));
    }
    let mut of_logged = Vec::new();
    for row in 0..read.0.num_rows() {
        let action = id_of(name_of(read, row));
        let place = places.get(&context(read, row)).copied();
        found.actions.push(action);
        found.chosen_by_target.push(place.unwrap_or((0, 0)));
        let p =
            place.map(|(start, end)| found.choices[start..end].iter().filter(|(choice, _)| *choice == action).map(|(_, p)| p).sum::<f64>());
        of_logged.push(p);
    }
    let mut logged = vec![false; ids.len()];
    found.actions.iter().for_each(|&action| logged[action as usize] = true);
    let never = |&(start, end): &(usize, usize)| -> f64 {
        found.choices[start..end].iter().filter(|(action, _)| !logged[*action as usize]).map(|(_, p)| p).sum()
    };
    let known = of_logged.iter().flatten().count().max(1) as f64;
    found.unsupported = Some(found.chosen_by_target.iter().map(never).sum::<f64>() / known);
    Ok(of_logged)
}

/// The rows of which the target policy speaks.
fn keep(
    found: &mut Decisions,
    rewards: Vec<f64>,
    propensities: Vec<f64>,
    targets: Vec<Option<f64>>,
    users: Vec<u64>,
    cells: Vec<u32>,
    embeddings: Option<Vec<u32>>,
) {
    let kept: Vec<usize> = (0..targets.len()).filter(|&row| targets[row].is_some()).collect();
    found.left_out = (targets.len() - kept.len()) as u64;
    fn of<T: Copy>(column: &[T], kept: &[usize]) -> Vec<T> {
        if column.is_empty() { Vec::new() } else { kept.iter().map(|&row| column[row]).collect() }
    }
    found.rewards = of(&rewards, &kept);
    found.propensities = of(&propensities, &kept);
    found.targets = targets.into_iter().flatten().collect();
    found.users = of(&users, &kept);
    found.actions = of(&found.actions, &kept);
    found.chosen_by_target = of(&found.chosen_by_target, &kept);
    found.cells = of(&cells, &kept);
    found.embeddings = embeddings.map(|embeddings| of(&embeddings, &kept));
    found.predictions = found.predictions.take().map(|(chosen, target)| (of(&chosen, &kept), of(&target, &kept)));
}

/// Fewer rows with a reward than this leave every value to chance.
const ENOUGH_REWARDS: usize = 25;

fn rewards_check(found: &Decisions, names: &Names) -> Check {
    let rewarded = found.rewards.iter().filter(|reward| **reward != 0.0).count();
    let worse = match rewarded {
        _ if found.rewards.is_empty() => Some((Status::Failed, "the table has no decisions".to_owned())),
        0 => Some((Status::Failed, format!("{} is 0 in all {} rows: nothing can be valued", names.reward, found.rewards.len()))),
        few if few < ENOUGH_REWARDS => Some((Status::Warning, format!("only {few} of {} rows have a reward", found.rewards.len()))),
        _ => None,
    };
    let all_zero = rewarded == 0 && !found.rewards.is_empty();
    Check::judge(if all_zero { "all_zero_metric" } else { "too_little_data" }, worse, format!("{rewarded} rows have a reward"))
}

// ------------------------------------------------------------------------------------------------------------------- features in cells

/// Values of one feature that get a level of their own; the rest share one.
const MAX_LEVELS: usize = 50;
/// Numbers with more values than levels are cut into tenths.
const BINS: usize = 10;

fn cells(read: &Columns, features: &[String]) -> Vec<u32> {
    let mut cells = vec![0; read.0.num_rows()];
    for feature in features {
        cells = combined(&cells, &levels(read.texts(feature), MAX_LEVELS));
    }
    cells
}

/// Numbers, from 0 in the order of appearance, of pairs.
fn combined(a: &[u32], b: &[u32]) -> Vec<u32> {
    let mut pairs: HashMap<(u32, u32), u32> = HashMap::new();
    a.iter()
        .zip(b)
        .map(|(&a, &b)| {
            let next = pairs.len() as u32;
            *pairs.entry((a, b)).or_insert(next)
        })
        .collect()
}

/// A column's values as numbers from 0, the most frequent first.
fn levels(column: &StringArray, most: usize) -> Vec<u32> {
    let text = |row: usize| if column.is_valid(row) { column.value(row) } else { "" };
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    (0..column.len()).for_each(|row| *counts.entry(text(row)).or_default() += 1);
    let numbers: Option<Vec<f64>> = (0..column.len()).map(|row| text(row).parse::<f64>().ok().filter(|value| value.is_finite())).collect();
    if let Some(numbers) = numbers.filter(|_| counts.len() > most) {
        let mut sorted = numbers.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        let cuts: Vec<f64> = (1..BINS).map(|bin| sorted[bin * sorted.len() / BINS]).collect();
        return numbers.iter().map(|value| cuts.partition_point(|cut| cut <= value) as u32).collect();
    }
    let mut by_count: Vec<(&str, u64)> = counts.into_iter().collect();
    by_count.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let numbers: HashMap<&str, u32> = by_count.iter().zip(0..).map(|((level, _), number)| (*level, number)).collect();
    (0..column.len()).map(|row| numbers[text(row)].min(u32::try_from(most).unwrap_or(u32::MAX))).collect()
}

/// Not so where the sum is no number.
fn sums_to_one(sum: f64) -> bool {
    (sum - 1.0).abs() <= SUM_TOLERANCE
}

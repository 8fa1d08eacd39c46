//! What a feature query is shown of a table as of a day, in brief: a digest of all its rows, and one of each user's.
//!
//! A digest is the sum of the hashes of the rows as they are shown, after the cut-off and the window: it is the same wherever the same
//! rows are shown, however they came about and on whatever night. So a late arrival changes only the days whose cut-off lies after it;
//! who is suppressed or withdraws is shown no more and changes each day on which they were; and a change of staging that changes no
//! row changes nothing. A log is read once for all days: but for an outcome that comes later, a row is the same on every day on which
//! it is shown.

use super::{Made, Snapshots, by_user, file};
use crate::error::{Error, Result};
use crate::ingest::{Known, Staged, TIMES};
use crate::platform::engine;
use crate::platform::run::{Done, Run, Step};
use crate::types::{column, optional_column};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, FixedSizeBinaryArray, FixedSizeBinaryBuilder, RecordBatch, StringArray};
use arrow::datatypes::Schema;
use arrow::row::{RowConverter, SortField};
use chrono::{DateTime, Days, NaiveDate, Utc};
use datafusion::common::runtime::SpawnedTask;
use datafusion::logical_expr::Expr;
use datafusion::prelude::{DataFrame, SessionContext, ident};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// A table with as many days of its log as a query is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct View<'a> {
    pub name: &'a str,
    pub window_days: Option<u64>,
}

/// What a query is shown of a table as of a day.
pub(super) struct Seen {
    pub content: String,
    pub of_users: bool,
    origin: Origin,
}

enum Origin {
    /// A canonical table, whose digests of a night stand together.
    Staged { view: String, columns: String, day: NaiveDate },
    /// A feature table: its snapshot says it all.
    Feature { folder: String, columns: String },
}

/// The digests of a view as of each day.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct SeenFacts {
    pub columns: String,
    pub days: BTreeMap<NaiveDate, Content>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct Content {
    /// The digest of all rows, of the columns' types and of the number of buckets.
    pub content: String,
    pub rows: u64,
}

impl View<'_> {
    /// The rows that a query is shown as of a day; with a bucket, only that bucket's where they are of users.
    pub fn rows(
        &self,
        run: &Run,
        staged: &Staged,
        snapshots: &Snapshots,
        context: &SessionContext,
        day: NaiveDate,
        bucket: Option<usize>,
    ) -> Result<DataFrame> {
        let Some(rows) = staged.known(context, run, self.name, day, bucket)? else {
            return snapshots.rows(context, self.name, day, bucket);
        };
        let within = self.within(run, day, rows.schema().as_arrow());
        Ok(within.into_iter().try_fold(rows, DataFrame::filter)?)
    }

    /// The conditions of its window.
    fn within(&self, run: &Run, day: NaiveDate, schema: &Schema) -> Vec<Expr> {
        let Some(window) = self.window_days else { return Vec::new() };
        let from = run.job.as_of(day) - Days::new(window);
        let times = TIMES.into_iter().filter(|time| schema.field_with_name(time).is_ok());
        times.map(|time| engine::before(time, from).is_false()).collect()
    }

    /// Whether its rows lie in buckets of users.
    pub fn is_of_users(&self, staged: &Staged, snapshots: &Snapshots) -> bool {
        staged.is_of_users(self.name) || snapshots.tables.get(self.name).is_some_and(|table| by_user(&table.key))
    }

    /// Reads a view of a canonical table for its digests as of each of `days`: of each user only where somebody asks for `users`.
    pub async fn digests(&self, run: &Run, staged: &Staged, days: &[NaiveDate], users: bool) -> Result<Done<SeenFacts>> {
        #[derive(Serialize)]
        struct Inputs<'a> {
            table: &'a str,
            /// Day, as of, cut-off.
            days: Vec<(NaiveDate, DateTime<Utc>, DateTime<Utc>)>,
            window_days: Option<u64>,
            buckets: usize,
            users: bool,
        }
        let of_users = staged.is_of_users(self.name);
        let users = users && of_users;
        let inputs = Inputs {
            table: staged.key(self.name).ok_or_else(|| Error::internal(format_args!("{} was not staged", self.name)))?,
            days: days.iter().map(|&day| (day, run.job.as_of(day), run.job.cut_off(day))).collect(),
            window_days: self.window_days,
            buckets: run.engine.buckets,
            users,
        };
        let buckets: Vec<Option<usize>> = if of_users { (0..run.engine.buckets).map(Some).collect() } else { vec![None] };
        run.step(&folder(&self.title(), run.date), &inputs, async |step: &Step| {
            let digest = async |bucket: Option<usize>| {
                let context = engine::session(&run.engine.of_one_bucket())?;
                let mut parts = Vec::new();
                for known in staged.known_on(&context, run, self.name, days, bucket).await? {
                    parts.push(self.part(run, known)?);
                }
                let digests = SpawnedTask::spawn(Digests::of(parts, users)).join_unwind().await.map_err(Error::internal)??;
                Ok::<_, Error>((bucket, digests))
            };
            let mut buckets = pin!(stream::iter(buckets).map(digest).buffered(run.engine.buckets_at_once()));
            let mut whole = Digests::default();
            while let Some((bucket, digests)) = buckets.try_next().await? {
                if let Some(bucket) = bucket.filter(|_| users) {
                    step.write_table(&file(bucket), &digests.table(days)?).await?;
                }
                whole.add(digests);
            }
            let content = |day: &NaiveDate| (*day, whole.content(*day, run.engine.buckets));
            Ok(SeenFacts { days: days.iter().map(content).collect(), columns: whole.columns })
        })
        .await
    }

    /// Rows and, for each day on which they may be known, whether they are shown.
    fn part(&self, run: &Run, known: Known) -> Result<Part> {
        let schema = known.rows.schema().as_arrow().clone();
        let shown = |(day, known): &(NaiveDate, Expr)| self.within(run, *day, &schema).into_iter().fold(known.clone(), Expr::and);
        let columns = schema.fields().iter().map(|field| ident(field.name()));
        let shown = known.on.iter().enumerate().map(|(i, on)| shown(on).alias(format!("shown {i}")));
        let rows = known.rows.select(columns.chain(shown).collect::<Vec<_>>())?;
        Ok(Part { rows, columns: schema.fields().len(), days: known.on.into_iter().map(|(day, _)| day).collect() })
    }

    /// The name of its folder.
    fn title(&self) -> String {
        format!("{}{}", self.name, self.window_days.map(|days| format!("_{days}d")).unwrap_or_default())
    }
}

/// Rows, and after their own columns one for each of `days`: whether a row is shown on it.
struct Part {
    rows: DataFrame,
    columns: usize,
    days: Vec<NaiveDate>,
}

/// The digests of a bucket, or of all, as of each day.
#[derive(Default)]
struct Digests {
    columns: String,
    /// User -> place in each day's list.
    users: BTreeMap<String, usize>,
    days: BTreeMap<NaiveDate, Digest>,
}

#[derive(Default)]
struct Digest {
    rows: u64,
    sum: u128,
    /// `None`: nothing of the user is shown.
    by_user: Vec<Option<u128>>,
}

impl Digests {
    async fn of(parts: Vec<Part>, by_user: bool) -> Result<Self> {
        let mut digests = Self::default();
        for Part { rows, columns, days } in parts {
            let schema = Arc::new(engine::plain_schema(rows.schema().as_arrow()));
            let own = schema.project(&(0..columns).collect::<Vec<_>>())?;
            digests.columns = titles(&own);
            let hasher = Hasher::new(&own)?;
            let mut batches = rows.execute_stream().await?;
            while let Some(batch) = batches.try_next().await? {
                let batch = engine::plain(&batch, &schema)?;
                let hashes = hasher.rows(&batch.columns()[..columns])?;
                let users = if by_user { optional_column::<StringArray>(&batch, "user_id")? } else { None };
                let places = users.map(|users| places(&mut digests.users, users));
                for (day, shown) in days.iter().zip(&batch.columns()[columns..]) {
                    digests.days.entry(*day).or_default().add(&hashes, shown.as_boolean(), places.as_deref());
                }
            }
        }
        Ok(digests)
    }

    /// Adds another bucket's rows.
    fn add(&mut self, bucket: Self) {
        self.columns = bucket.columns;
        for (day, digest) in bucket.days {
            let whole = self.days.entry(day).or_default();
            (whole.rows, whole.sum) = (whole.rows + digest.rows, whole.sum.wrapping_add(digest.sum));
        }
    }

    fn content(&self, day: NaiveDate, buckets: usize) -> Content {
        let (rows, sum) = self.days.get(&day).map_or((0, 0), |digest| (digest.rows, digest.sum));
        Content { content: content(&self.columns, buckets, rows, sum), rows }
    }

    /// user_id, sorted, and a column of digests for each day; NULL = not shown.
    fn table(&self, days: &[NaiveDate]) -> Result<RecordBatch> {
        let ids: ArrayRef = Arc::new(StringArray::from_iter_values(self.users.keys()));
        let mut columns = vec![("user_id".to_owned(), ids, false)];
        for day in days {
            let of_day = self.days.get(day).map_or(&[][..], |digest| &digest.by_user);
            let mut digests = FixedSizeBinaryBuilder::with_capacity(self.users.len(), 16);
            for place in self.users.values() {
                match of_day.get(*place).copied().flatten() {
                    Some(digest) => digests.append_value(digest.to_be_bytes())?,
                    None => digests.append_null(),
                }
            }
            columns.push((day.to_string(), Arc::new(digests.finish()), true));
        }
        Ok(RecordBatch::try_from_iter_with_nullable(columns)?)
    }
}

/// The place of each row's user; a new user gets the next one.
fn places(known: &mut BTreeMap<String, usize>, users: &StringArray) -> Vec<usize> {
    let mut before: Option<(&str, usize)> = None;
    let mut place = |user: &str| match known.get(user) {
        Some(place) => *place,
        None => {
            let next = known.len();
            known.insert(user.to_owned(), next);
            next
        }
    };
    let mut places = Vec::with_capacity(users.len());
    for user in users {
        let user = user.unwrap_or_default();
        // A user's rows lie together: one look-up is enough for them.
        let found = before.filter(|(of, _)| *of == user).map_or_else(|| place(user), |(_, place)| place);
        before = Some((user, found));
        places.push(found);
    }
    places
}

impl Digest {
    fn add(&mut self, hashes: &[u128], shown: &BooleanArray, places: Option<&[usize]>) {
        for (at, &hash) in hashes.iter().enumerate().filter(|(at, _)| shown.is_valid(*at) && shown.value(*at)) {
            (self.rows, self.sum) = (self.rows + 1, self.sum.wrapping_add(hash));
            let Some(place) = places.map(|places| places[at]) else { continue };
            if place >= self.by_user.len() {
                self.by_user.resize(place + 1, None);
            }
            self.by_user[place] = Some(self.by_user[place].unwrap_or(0).wrapping_add(hash));
        }
    }
}

struct Hasher(RowConverter);

impl Hasher {
    fn new(schema: &Schema) -> Result<Self> {
        Ok(Self(RowConverter::new(schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect())?))
    }

    fn rows(&self, columns: &[ArrayRef]) -> Result<Vec<u128>> {
        Ok(self.0.convert_columns(columns)?.iter().map(|row| xxh3_128(row.as_ref())).collect())
    }
}

/// Names and types.
pub(super) fn titles(schema: &Schema) -> String {
    schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect::<Vec<_>>().join(", ")
}

/// The digest of all rows, of the columns' types and of the number of buckets.
pub(super) fn content(columns: &str, buckets: usize, rows: u64, sum: u128) -> String {
    format!("{:032x}", xxh3_128(format!("{columns}\n{buckets}\n{rows}\n{sum:032x}").as_bytes()))
}

/// The sum of the hashes of a table's rows.
pub(super) fn sum(table: &RecordBatch) -> Result<u128> {
    let hashes = Hasher::new(&table.schema())?.rows(table.columns())?;
    Ok(hashes.into_iter().fold(0, u128::wrapping_add))
}

impl Seen {
    /// Of a canonical table.
    pub fn staged(view: &View<'_>, staged: &Staged, done: &Done<SeenFacts>, day: NaiveDate) -> Result<Self> {
        let SeenFacts { columns, days } = &done.facts;
        let of_day = days.get(&day).ok_or_else(|| Error::internal(format_args!("{} was not read for {day}", view.name)))?;
        let origin = Origin::Staged { view: view.title(), columns: columns.clone(), day };
        Ok(Self { content: of_day.content.clone(), of_users: staged.is_of_users(view.name), origin })
    }

    /// Of a feature table.
    pub fn feature(snapshots: &Snapshots, name: &str, day: NaiveDate) -> Result<Self> {
        let Made { content, columns, .. } = &snapshots.made(name, day)?.facts;
        let origin = Origin::Feature { folder: super::folder(name, day), columns: columns.clone() };
        Ok(Self { content: content.clone(), of_users: by_user(&snapshots.tables[name].key), origin })
    }

    /// Its users on a night, this or an earlier one, on which the same view was of that content; `None` when no such night is kept.
    pub async fn users(&self, run: &Run, of_content: &str) -> Result<Option<Users>> {
        match &self.origin {
            Origin::Staged { view, columns, day } => {
                for night in day.iter_days().take_while(|night| *night <= run.date).collect::<Vec<_>>().into_iter().rev() {
                    for manifest in run.kept::<SeenFacts>(&folder(view, night)).await? {
                        let facts = &manifest.facts;
                        let same = facts.columns == *columns && facts.days.get(day).is_some_and(|day| day.content == of_content);
                        if same
                            && !manifest.files.is_empty()
                            && let Some(done) = run.earlier(&manifest).await?
                        {
                            return Ok(Some(Users::Digests(done, *day)));
                        }
                    }
                }
            }
            Origin::Feature { folder, columns } => {
                for manifest in run.kept::<Made>(folder).await? {
                    let same = manifest.facts.columns == *columns && manifest.facts.content == of_content;
                    if same && let Some(done) = run.earlier(&manifest).await? {
                        return Ok(Some(Users::Rows(done)));
                    }
                }
            }
        }
        Ok(None)
    }
}

/// What tells whether a user's rows are those of another night.
pub(super) enum Users {
    Digests(Done<SeenFacts>, NaiveDate),
    Rows(Done<Made>),
}

impl Users {
    /// The digest of each user of a bucket.
    pub async fn of(&self, bucket: usize) -> Result<BTreeMap<String, u128>> {
        match self {
            Self::Digests(done, day) => {
                let rows = done.store.read_parquet(&file(bucket)).await?;
                let (users, digests) = (column::<StringArray>(&rows, "user_id")?, column::<FixedSizeBinaryArray>(&rows, &day.to_string())?);
                let digest = |row: usize| digests.value(row).try_into().map(u128::from_be_bytes);
                let shown = (0..rows.num_rows()).filter(|row| digests.is_valid(*row));
                shown
                    .map(|row| Ok((users.value(row).to_owned(), digest(row).map_err(|_| Error::internal("a digest has 16 bytes"))?)))
                    .collect()
            }
            Self::Rows(done) => {
                let rows = done.store.read_parquet(&file(bucket)).await?;
                let users = column::<StringArray>(&rows, "user_id")?.iter().map(Option::unwrap_or_default);
                let mut digests: BTreeMap<String, u128> = BTreeMap::new();
                for (user, hash) in users.zip(Hasher::new(&rows.schema())?.rows(rows.columns())?) {
                    let sum = digests.entry(user.to_owned()).or_default();
                    *sum = sum.wrapping_add(hash);
                }
                Ok(digests)
            }
        }
    }
}

fn folder(view: &str, night: NaiveDate) -> String {
    format!("features/_seen/{view}/dt={night}")
}

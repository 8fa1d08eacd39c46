//! What a feature query is shown of a table as of a day, in brief: a digest of all its rows, and one of each user's.
//!
//! A digest is the sum of the hashes of the rows as they are shown, after the cut-off and the window: it is the same wherever the same
//! rows are shown, however they came about and on whatever night. So a late arrival changes only the days whose cut-off lies after it;
//! who is suppressed or withdraws is shown no more and changes each day on which they were; and a change of staging that changes no
//! row changes nothing.

use super::{Snapshots, by_user};
use crate::error::{Error, Result};
use crate::ingest::{Staged, TIMES};
use crate::platform::engine;
use crate::platform::run::{Done, Run, Step};
use crate::types::{column, optional_column};
use arrow::array::{Array, FixedSizeBinaryArray, RecordBatch, StringArray};
use arrow::row::{RowConverter, SortField};
use chrono::{DateTime, Days, NaiveDate, Utc};
use datafusion::common::runtime::SpawnedTask;
use datafusion::prelude::{DataFrame, SessionContext};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

/// A table as of a day, with as many days of its log as a query is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct View<'a> {
    pub name: &'a str,
    pub day: NaiveDate,
    pub window_days: Option<u64>,
}

/// A view that was read for its digests.
pub(super) struct Seen {
    pub folder: String,
    pub of_users: bool,
    pub done: Done<SeenFacts>,
}

#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub(super) struct SeenFacts {
    /// The digest of all rows, of the columns' types and of the number of buckets.
    pub content: String,
    pub columns: String,
    pub rows: u64,
}

impl View<'_> {
    /// The rows that a query is shown; with a bucket, only that bucket's where they are of users.
    pub fn rows(
        &self,
        run: &Run,
        staged: &Staged,
        snapshots: &Snapshots,
        context: &SessionContext,
        bucket: Option<usize>,
    ) -> Result<DataFrame> {
        let Some(rows) = staged.known(context, run, self.name, self.day, bucket)? else {
            return snapshots.rows(context, self.name, self.day, bucket);
        };
        let Some(window) = self.window_days else { return Ok(rows) };
        let schema = rows.schema().as_arrow().clone();
        let from = run.job.as_of(self.day) - Days::new(window);
        let times = TIMES.into_iter().filter(|time| schema.field_with_name(time).is_ok());
        times.into_iter().try_fold(rows, |rows, time| Ok(rows.filter(engine::before(time, from).is_false())?))
    }

    /// Whether its rows lie in buckets of users.
    pub fn is_of_users(&self, staged: &Staged, snapshots: &Snapshots) -> bool {
        staged.is_of_users(self.name) || snapshots.tables.get(self.name).is_some_and(|table| by_user(&table.key))
    }

    /// Reads the view for its digests, unless that was done: of each user only where somebody asks for `users`.
    pub async fn seen(&self, run: &Run, staged: &Staged, snapshots: &Snapshots, users: bool) -> Result<Seen> {
        #[derive(Serialize)]
        struct Inputs<'a> {
            table: &'a str,
            as_of: DateTime<Utc>,
            cut_off: DateTime<Utc>,
            window_days: Option<u64>,
            buckets: usize,
            users: bool,
        }
        let of_users = self.is_of_users(staged, snapshots);
        let users = users && of_users;
        let table = staged.key(self.name).or_else(|| snapshots.keys(self.day).get(self.name).copied());
        let inputs = Inputs {
            table: table.ok_or_else(|| Error::internal(format_args!("{} was not made for {}", self.name, self.day)))?,
            as_of: run.job.as_of(self.day),
            cut_off: run.job.cut_off(self.day),
            window_days: self.window_days,
            buckets: run.engine.buckets,
            users,
        };
        let window = self.window_days.map(|days| format!("_{days}d")).unwrap_or_default();
        let folder = format!("features/_seen/{}{window}/dt={}", self.name, self.day);
        let buckets: Vec<Option<usize>> = if of_users { (0..run.engine.buckets).map(Some).collect() } else { vec![None] };
        let done = run
            .step(&folder, &inputs, async |step: &Step| {
                let digest = async |bucket: Option<usize>| {
                    let context = engine::session(&run.engine.of_one_bucket())?;
                    let rows = self.rows(run, staged, snapshots, &context, bucket)?;
                    let digest = SpawnedTask::spawn(Digest::of(rows, users)).join_unwind().await.map_err(Error::internal)??;
                    Ok::<_, Error>((bucket, digest))
                };
                let mut digests = pin!(stream::iter(buckets).map(digest).buffered(run.engine.buckets_at_once()));
                let (mut columns, mut rows, mut sum, mut by_bucket) = (String::new(), 0, 0_u128, BTreeMap::new());
                while let Some((bucket, digest)) = digests.try_next().await? {
                    (columns, rows, sum) = (digest.columns, rows + digest.rows, sum.wrapping_add(digest.sum));
                    by_bucket.extend(bucket.filter(|_| users).map(|bucket| (bucket, digest.users)));
                }
                let content = format!("{:032x}", xxh3_128(format!("{columns}\n{}\n{rows}\n{sum:032x}", run.engine.buckets).as_bytes()));
                // Of the same rows an earlier night has said whose they are.
                if !run.kept::<SeenFacts>(&folder).await?.iter().any(|kept| kept.facts.content == content && !kept.files.is_empty()) {
                    for (bucket, users) in by_bucket {
                        step.write_table(&file(bucket), &table_of(users)?).await?;
                    }
                }
                Ok(SeenFacts { content, columns, rows })
            })
            .await?;
        Ok(Seen { folder, of_users, done })
    }
}

/// The digests of a bucket's users, sorted.
pub(super) async fn users_of(done: &Done<SeenFacts>, bucket: usize) -> Result<BTreeMap<String, [u8; 16]>> {
    let rows = done.store.read_parquet(&file(bucket)).await?;
    let (users, digests) = (column::<StringArray>(&rows, "user_id")?, column::<FixedSizeBinaryArray>(&rows, "digest")?);
    let digest = |row: usize| digests.value(row).try_into().map_err(|_| Error::internal("a digest has 16 bytes"));
    (0..rows.num_rows()).map(|row| Ok((users.value(row).to_owned(), digest(row)?))).collect()
}

impl Seen {
    /// A view of tonight or of an earlier night that has this digest and the same columns, and whose users are known.
    pub async fn with_users(&self, run: &Run, content: &str) -> Result<Option<Done<SeenFacts>>> {
        for manifest in run.kept::<SeenFacts>(&self.folder).await? {
            let facts = &manifest.facts;
            if facts.content == content
                && facts.columns == self.done.facts.columns
                && let Some(done) = run.earlier(&manifest).await?.filter(|done| !done.files.is_empty())
            {
                return Ok(Some(done));
            }
        }
        Ok(None)
    }
}

fn file(bucket: usize) -> String {
    format!("bucket={bucket}.parquet")
}

#[derive(Default)]
struct Digest {
    columns: String,
    rows: u64,
    sum: u128,
    users: HashMap<String, u128>,
}

impl Digest {
    async fn of(rows: DataFrame, by_user: bool) -> Result<Self> {
        let schema = Arc::new(engine::plain_schema(rows.schema().as_arrow()));
        let columns = schema.fields().iter().map(|field| format!("{} {}", field.name(), field.data_type())).collect::<Vec<_>>();
        let mut digest = Self { columns: columns.join(", "), ..Self::default() };
        let converter = RowConverter::new(schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect())?;
        let mut batches = rows.execute_stream().await?;
        while let Some(batch) = batches.try_next().await? {
            let batch = engine::plain(&batch, &schema)?;
            let users = if by_user { optional_column::<StringArray>(&batch, "user_id")? } else { None };
            for (at, row) in converter.convert_columns(batch.columns())?.iter().enumerate() {
                let hash = xxh3_128(row.as_ref());
                digest.sum = digest.sum.wrapping_add(hash);
                let Some(users) = users else { continue };
                let user = if users.is_valid(at) { users.value(at) } else { "" };
                match digest.users.get_mut(user) {
                    Some(sum) => *sum = sum.wrapping_add(hash),
                    None => drop(digest.users.insert(user.to_owned(), hash)),
                }
            }
            digest.rows += batch.num_rows() as u64;
        }
        Ok(digest)
    }
}

/// user_id and digest, sorted by user.
fn table_of(users: HashMap<String, u128>) -> Result<RecordBatch> {
    let users: BTreeMap<String, u128> = users.into_iter().collect();
    let ids = StringArray::from_iter_values(users.keys());
    let digests: Vec<[u8; 16]> = users.values().map(|digest| digest.to_be_bytes()).collect();
    let mut bytes = arrow::array::FixedSizeBinaryBuilder::with_capacity(digests.len(), 16);
    for digest in &digests {
        bytes.append_value(digest)?;
    }
    Ok(RecordBatch::try_from_iter([("user_id", Arc::new(ids) as _), ("digest", Arc::new(bytes.finish()) as _)])?)
}

//! PostgreSQL, and MySQL or MariaDB: one partition a run, one row that says which run serves, two views for readers.
//!
//! ```text
//! nightmarket_serving_users   job, run, policy_version, user_id, place, segment_id            place 1 is served
//! nightmarket_serving_ads     job, run, policy_version, segment_id, arm, place, ad_id, …      place 1 is the likeliest
//! ```
//!
//! The rows are in `nightmarket_user_segments` and `nightmarket_segment_ads`. A run's are written into a partition of their own, read
//! back, counted and summed, and only then does one transaction move `nightmarket_current`. A reader that asks both views in one repeatable-read transaction gets one run; every row names its run.

use super::{Ad, Release, Shelf};
use crate::error::{Context, Error, Kind, Result};
use crate::platform::server::{PASSWORD_VARIABLE, Server, USER_VARIABLE};
use async_trait::async_trait;
use futures::TryStreamExt;
use sqlx::{AssertSqlSafe, Connection, QueryBuilder, Row};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// Rows an insert: five values each stay below the 65,535 that both protocols can bind.
const BATCH: usize = 4_000;

const USERS: &str = "nightmarket_user_segments";
const ADS: &str = "nightmarket_segment_ads";
const AD_COLUMNS: &str = "segment_id, arm, place, ad_id, propensity, bid_multiplier, frequency_cap, valid_from, valid_to";

/// Whatever the database, short names and plain types.
const PLAIN_TABLES: [&str; 2] = [
    "CREATE TABLE IF NOT EXISTS nightmarket_runs (
        job VARCHAR(128) NOT NULL, run VARCHAR(32) NOT NULL, policy_version VARCHAR(191) NOT NULL, generation BIGINT NOT NULL,
        user_rows BIGINT NOT NULL, ad_rows BIGINT NOT NULL, checksum VARCHAR(16) NOT NULL, PRIMARY KEY (job, run))",
    "CREATE TABLE IF NOT EXISTS nightmarket_current (job VARCHAR(128) NOT NULL PRIMARY KEY, run VARCHAR(32) NOT NULL)",
];

fn users_table() -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {USERS} (
            run VARCHAR(32) NOT NULL, user_id VARCHAR(64) NOT NULL, place INT NOT NULL, segment_id VARCHAR(191) NOT NULL,
            PRIMARY KEY (run, user_id, place))"
    )
}

fn ads_table() -> String {
    format!(
        "CREATE TABLE IF NOT EXISTS {ADS} (
            run VARCHAR(32) NOT NULL, segment_id VARCHAR(191) NOT NULL, arm VARCHAR(16) NOT NULL, place BIGINT NOT NULL,
            ad_id VARCHAR(191) NOT NULL, propensity DOUBLE PRECISION NOT NULL, bid_multiplier DOUBLE PRECISION, frequency_cap BIGINT,
            valid_from VARCHAR(32) NOT NULL, valid_to VARCHAR(32) NOT NULL, PRIMARY KEY (run, segment_id, arm, place))"
    )
}

fn view(name: &str, table: &str, columns: &str) -> String {
    let columns: Vec<String> = columns.split(", ").map(|column| format!("t.{column}")).collect();
    format!(
        "CREATE OR REPLACE VIEW {name} AS SELECT c.job, c.run, r.policy_version, {} FROM nightmarket_current c
         JOIN nightmarket_runs r ON r.job = c.job AND r.run = c.run JOIN {table} t ON t.run = c.run",
        columns.join(", ")
    )
}

const USER_COLUMNS: &str = "user_id, place, segment_id";

/// Name, table and columns of what readers ask.
const VIEWS: [(&str, &str, &str); 2] = [("nightmarket_serving_users", USERS, USER_COLUMNS), ("nightmarket_serving_ads", ADS, AD_COLUMNS)];

/// A run's name as part of a statement. It is the hexadecimal key of a folder, and nothing else may become one.
fn checked(run: &str) -> Result<&str> {
    match !run.is_empty() && run.len() <= 32 && run.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        true => Ok(run),
        false => Err(Error::internal(format_args!("run {run} is no hexadecimal key"))),
    }
}

/// MySQL takes no more than 64 characters.
fn lock_name(job: &str) -> String {
    format!("nightmarket:{:016x}", xxh3_64(job.as_bytes()))
}

/// How often, and how far apart, a lock is asked for.
const TURNS: usize = 60;
const BETWEEN_TURNS: Duration = Duration::from_secs(1);

/// Whether a statement gave up waiting for a lock.
fn waited(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    error.code().as_deref() == Some("55P03") || error.message().starts_with("Lock wait timeout exceeded")
}

/// SQLSTATE of a table that nobody made yet: nothing was ever loaded.
const NO_TABLE: [&str; 2] = ["42P01", "42S02"];

fn failed(error: sqlx::Error) -> Error {
    // Classes of SQLSTATE: no such database, not let in, no right; data that a column cannot hold.
    let class = match &error {
        sqlx::Error::Database(inner) => inner.code().map(|code| code[..code.len().min(2)].to_owned()),
        _ => None,
    };
    match (&error, class.as_deref()) {
        (sqlx::Error::Configuration(_), _) => Error::usage(error),
        (_, Some("28" | "3D" | "42")) => {
            Error::usage(&error).action(format_args!("see the database's name and {USER_VARIABLE} and {PASSWORD_VARIABLE}, and run again"))
        }
        (_, Some("22")) => Error::contract(error).action("see the longest ids of segments and ads: 191 characters are the most"),
        _ => Error::new(Kind::Transient, error).action("see that the store is up, and run again; what served before still serves"),
    }
}

/// Sums the rows of a table whatever their order.
#[derive(Default, PartialEq, Debug, Clone, Copy)]
struct Sum {
    rows: u64,
    hash: u64,
}

impl Sum {
    fn add(&mut self, row: std::fmt::Arguments<'_>) {
        self.rows += 1;
        self.hash = self.hash.wrapping_add(xxh3_64(row.to_string().as_bytes()));
    }

    fn user(&mut self, user: &str, place: i32, segment: &str) {
        self.add(format_args!("{user}\n{place}\n{segment}"));
    }

    fn ad(&mut self, ad: &Ad) {
        self.add(format_args!("{ad:?}"));
    }
}

fn user_rows(release: &Release) -> impl Iterator<Item = (&str, i32, &str)> {
    release
        .users
        .iter()
        .flat_map(|user| user.segments.iter().zip(1..).map(|(segment, place)| (user.user_id.as_str(), place, segment.as_str())))
}

fn sums(release: &Release) -> (Sum, Sum) {
    let (mut users, mut ads) = (Sum::default(), Sum::default());
    user_rows(release).for_each(|(user, place, segment)| users.user(user, place, segment));
    release.ads.iter().for_each(|ad| ads.ad(ad));
    (users, ads)
}

/// What the two databases say differently.
trait Dialect {
    /// Appended to the definition of a partitioned table.
    const BY_RUN: &'static str;
    /// Tries to take the lock named by the only parameter, for the session: 1 when it is ours.
    const LOCK: &'static str;
    const UNLOCK: &'static str;
    /// The schema in which tables are made.
    const SCHEMA: &'static str;
    /// A statement that waits for a lock waits so long and no longer: who waits for it waits behind it.
    const BE_BRIEF: &'static str;
    /// Whether a run, the second parameter, has a partition of a table, the first.
    const HAS_PARTITION: &'static str;
    fn add(table: &str, run: &str) -> String;
    fn drop(table: &str, run: &str) -> String;
}

impl Dialect for Postgres {
    const BY_RUN: &'static str = " PARTITION BY LIST (run)";
    const LOCK: &'static str = "SELECT CASE WHEN pg_try_advisory_lock(hashtext($1)) THEN 1 ELSE 0 END::bigint";
    const UNLOCK: &'static str = "SELECT pg_advisory_unlock(hashtext($1))";
    const SCHEMA: &'static str = "current_schema()";
    const BE_BRIEF: &'static str = "SET lock_timeout = '200ms'";
    const HAS_PARTITION: &'static str = "SELECT COUNT(*) FROM pg_class WHERE oid = to_regclass($1 || '_' || $2)";

    fn add(table: &str, run: &str) -> String {
        // CREATE TABLE … PARTITION OF would lock readers out; this does not.
        format!(
            "CREATE TABLE {table}_{run} (LIKE {table} INCLUDING ALL);
             ALTER TABLE {table} ATTACH PARTITION {table}_{run} FOR VALUES IN ('{run}')"
        )
    }

    fn drop(table: &str, run: &str) -> String {
        format!("DROP TABLE {table}_{run}")
    }
}

impl Dialect for MySql {
    const BY_RUN: &'static str =
        " CHARACTER SET utf8mb4 COLLATE utf8mb4_bin PARTITION BY LIST COLUMNS (run) (PARTITION run_none VALUES IN (''))";
    const LOCK: &'static str = "SELECT CAST(GET_LOCK(?, 0) AS SIGNED)";
    const UNLOCK: &'static str = "SELECT RELEASE_LOCK(?)";
    const SCHEMA: &'static str = "DATABASE()";
    const BE_BRIEF: &'static str = "SET SESSION lock_wait_timeout = 1";
    const HAS_PARTITION: &'static str = "SELECT COUNT(*) FROM information_schema.partitions
        WHERE table_schema = DATABASE() AND table_name = ? AND partition_name = CONCAT('run_', ?)";

    fn add(table: &str, run: &str) -> String {
        format!("ALTER TABLE {table} ADD PARTITION (PARTITION run_{run} VALUES IN ('{run}'))")
    }

    fn drop(table: &str, run: &str) -> String {
        format!("ALTER TABLE {table} DROP PARTITION run_{run}")
    }
}

/// sqlx gives each database types of its own; the statements are the same.
macro_rules! shelf {
    ($name:ident, $database:ty, $connection:ty) => {
        pub(super) struct $name {
            connection: $connection,
        }

        impl $name {
            pub async fn connect(server: &Server) -> Result<Self> {
                let connection = <$connection>::connect(server.with_credentials()?.as_str()).await.map_err(failed)?;
                Ok(Self { connection })
            }

            async fn run(&mut self, statement: String) -> Result<()> {
                sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut self.connection).await.map_err(failed)?;
                Ok(())
            }

            /// Tables and views are made once: making them anew would lock readers out.
            async fn make_tables(&mut self) -> Result<()> {
                self.run(Self::BE_BRIEF.to_owned()).await?;
                if self.has_views().await? {
                    return Ok(());
                }
                for table in PLAIN_TABLES {
                    self.run(table.to_owned()).await?;
                }
                for table in [users_table(), ads_table()] {
                    self.run(table + Self::BY_RUN).await?;
                }
                for (name, table, columns) in VIEWS {
                    self.run(view(name, table, columns)).await?;
                }
                Ok(())
            }

            /// Whether the views are there with all of their columns.
            async fn has_views(&mut self) -> Result<bool> {
                for (name, _, columns) in VIEWS {
                    let known = columns.split(", ").map(|column| format!("'{column}'")).collect::<Vec<_>>().join(", ");
                    let count = sqlx::query_scalar::<$database, i64>(AssertSqlSafe(format!(
                        "SELECT COUNT(*) FROM information_schema.columns WHERE table_schema = {} AND table_name = '{name}' AND column_name IN ({known})",
                        Self::SCHEMA
                    )));
                    if count.fetch_one(&mut self.connection).await.map_err(failed)? != columns.split(", ").count() as i64 {
                        return Ok(false);
                    }
                }
                Ok(true)
            }

            /// Gives a run its partition of a table. Readers who are long in a transaction are waited for in turns, so that nobody waits
            /// behind this.
            async fn add_partition(&mut self, table: &str, run: &str) -> Result<()> {
                for _ in 0..TURNS {
                    match sqlx::raw_sql(AssertSqlSafe(Self::add(table, run))).execute(&mut self.connection).await {
                        Err(error) if waited(&error) => tokio::time::sleep(BETWEEN_TURNS).await,
                        done => return done.map(drop).map_err(failed),
                    }
                }
                Err(Error::new(Kind::Transient, format_args!("readers hold {table} in long transactions")).action("run again when they have ended"))
            }

            /// Drops a run's partition of a table unless a reader is in it: then the next load does.
            async fn drop_partition(&mut self, table: &str, run: &str) -> Result<bool> {
                match sqlx::raw_sql(AssertSqlSafe(Self::drop(table, run))).execute(&mut self.connection).await {
                    Err(error) if waited(&error) => Ok(false),
                    done => done.map(|_| true).map_err(failed),
                }
            }

            async fn has_partition(&mut self, table: &str, run: &str) -> Result<bool> {
                let count = sqlx::query_scalar::<$database, i64>(Self::HAS_PARTITION).bind(table).bind(run);
                Ok(count.fetch_one(&mut self.connection).await.map_err(failed)? > 0)
            }

            /// What arrived.
            async fn read_back(&mut self, run: &str) -> Result<(Sum, Sum)> {
                let mut found = Sum::default();
                let mut query = QueryBuilder::<$database>::new(format!("SELECT user_id, place, segment_id FROM {USERS} WHERE run = "));
                query.push_bind(run);
                let mut rows = query.build().fetch(&mut self.connection);
                while let Some(row) = rows.try_next().await.map_err(failed)? {
                    let (user, place, segment) = (row.try_get(0), row.try_get(1), row.try_get(2));
                    found.user(user.map_err(failed)?, place.map_err(failed)?, segment.map_err(failed)?);
                }
                drop(rows);
                let mut ads = Sum::default();
                self.ads_of(run).await?.iter().for_each(|ad| ads.ad(ad));
                Ok((found, ads))
            }

            async fn ads_of(&mut self, run: &str) -> Result<Vec<Ad>> {
                let mut query = QueryBuilder::<$database>::new(format!("SELECT {AD_COLUMNS} FROM {ADS} WHERE run = "));
                query.push_bind(run).push(" ORDER BY segment_id, arm, place");
                let rows = query.build().fetch_all(&mut self.connection).await.map_err(failed)?;
                let ad = |row: &<$database as sqlx::Database>::Row| {
                    Ok::<_, sqlx::Error>(Ad {
                        segment_id: row.try_get(0)?,
                        arm: row.try_get(1)?,
                        rank: row.try_get(2)?,
                        ad_id: row.try_get(3)?,
                        propensity: row.try_get(4)?,
                        bid_multiplier: row.try_get(5)?,
                        frequency_cap: row.try_get(6)?,
                        valid_from: row.try_get(7)?,
                        valid_to: row.try_get(8)?,
                    })
                };
                rows.iter().map(|row| ad(row).map_err(failed)).collect()
            }
        }

        #[async_trait]
        impl Shelf for $name {
            async fn lock(&mut self, job: &str) -> Result<()> {
                let lock = sqlx::query_scalar::<$database, i64>(Self::LOCK).bind(lock_name(job));
                match lock.fetch_one(&mut self.connection).await.map_err(failed)? {
                    1 => self.make_tables().await,
                    _ => Err(Error::new(Kind::LostRace, format_args!("another load of {job} is going on"))
                        .action("wait for it to end, and run again")),
                }
            }

            async fn unlock(&mut self, job: &str) -> Result<()> {
                let unlock = sqlx::query::<$database>(Self::UNLOCK).bind(lock_name(job));
                unlock.execute(&mut self.connection).await.map_err(failed)?;
                Ok(())
            }

            async fn current(&mut self, job: &str) -> Result<Option<String>> {
                let mut query = QueryBuilder::<$database>::new("SELECT run FROM nightmarket_current WHERE job = ");
                query.push_bind(job);
                match query.build_query_scalar().fetch_optional(&mut self.connection).await {
                    Err(sqlx::Error::Database(error)) if error.code().is_some_and(|code| NO_TABLE.contains(&&*code)) => Ok(None),
                    found => found.map_err(failed),
                }
            }

            async fn holds(&mut self, release: &Release) -> Result<bool> {
                Ok(self.read_back(checked(&release.run)?).await? == sums(release))
            }

            async fn load(&mut self, release: &Release) -> Result<()> {
                let run = checked(&release.run)?;
                // Named before its rows come, so that what a load that died leaves behind is known and retired.
                let (users, ads) = sums(release);
                let mut query = QueryBuilder::<$database>::new("DELETE FROM nightmarket_runs WHERE job = ");
                query.push_bind(&release.job).push(" AND run = ").push_bind(&release.run);
                query.build().execute(&mut self.connection).await.map_err(failed)?;
                let columns = "job, run, policy_version, generation, user_rows, ad_rows, checksum";
                let mut query = QueryBuilder::<$database>::new(format!("INSERT INTO nightmarket_runs ({columns}) "));
                query.push_values([release], |mut values, release| {
                    values.push_bind(&release.job).push_bind(&release.run).push_bind(&release.policy_version);
                    values.push_bind(release.generation as i64).push_bind(users.rows as i64).push_bind(ads.rows as i64);
                    values.push_bind(format!("{:016x}", users.hash.wrapping_add(ads.hash)));
                });
                query.build().execute(&mut self.connection).await.map_err(failed)?;
                for table in [USERS, ADS] {
                    if !self.has_partition(table, run).await? {
                        self.add_partition(table, run).await?;
                    }
                }
                // In one transaction: the run may be the one that serves, found damaged, and its readers see the old rows or the new ones.
                self.run("BEGIN".to_owned()).await?;
                for table in [USERS, ADS] {
                    self.run(format!("DELETE FROM {table} WHERE run = '{run}'")).await?;
                }
                let rows: Vec<_> = user_rows(release).collect();
                for rows in rows.chunks(BATCH) {
                    let mut insert = QueryBuilder::<$database>::new(format!("INSERT INTO {USERS} (run, user_id, place, segment_id) "));
                    insert.push_values(rows, |mut values, (user, place, segment)| {
                        values.push_bind(run).push_bind(*user).push_bind(*place).push_bind(*segment);
                    });
                    insert.build().execute(&mut self.connection).await.map_err(failed)?;
                }
                for ads in release.ads.chunks(BATCH) {
                    let mut insert = QueryBuilder::<$database>::new(format!("INSERT INTO {ADS} (run, {AD_COLUMNS}) "));
                    insert.push_values(ads, |mut values, ad| {
                        values.push_bind(run).push_bind(&ad.segment_id).push_bind(&ad.arm).push_bind(ad.rank).push_bind(&ad.ad_id);
                        values.push_bind(ad.propensity).push_bind(ad.bid_multiplier).push_bind(ad.frequency_cap);
                        values.push_bind(&ad.valid_from).push_bind(&ad.valid_to);
                    });
                    insert.build().execute(&mut self.connection).await.map_err(failed)?;
                }
                let (sent, found) = ((users, ads), self.read_back(run).await?);
                if sent != found {
                    return Err(Error::new(Kind::Transient, format_args!("{sent:?} was sent and {found:?} arrived"))
                        .action("run again; what served before still serves"));
                }
                self.run("COMMIT".to_owned()).await
            }

            async fn flip(&mut self, release: &Release, from: Option<&str>) -> Result<bool> {
                let mut change = self.connection.begin().await.map_err(failed)?;
                let mut query = QueryBuilder::<$database>::new("SELECT run FROM nightmarket_current WHERE job = ");
                query.push_bind(&release.job).push(" FOR UPDATE");
                let current: Option<String> = query.build_query_scalar().fetch_optional(&mut *change).await.map_err(failed)?;
                if current.as_deref() != from {
                    return Ok(false);
                }
                let mut query = match from {
                    Some(_) => QueryBuilder::<$database>::new("UPDATE nightmarket_current SET run = "),
                    None => QueryBuilder::<$database>::new("INSERT INTO nightmarket_current (run, job) VALUES ("),
                };
                query.push_bind(&release.run).push(if from.is_some() { " WHERE job = " } else { ", " }).push_bind(&release.job);
                if from.is_none() {
                    query.push(")");
                }
                match query.build().execute(&mut *change).await {
                    // The first load of a job, twice at once.
                    Err(sqlx::Error::Database(error)) if error.is_unique_violation() => return Ok(false),
                    done => done.map_err(failed)?,
                };
                change.commit().await.map_err(failed)?;
                Ok(true)
            }

            async fn retire(&mut self, release: &Release, before: Option<&str>) -> Result<()> {
                let mut query = QueryBuilder::<$database>::new("SELECT run FROM nightmarket_runs WHERE job = ");
                query.push_bind(&release.job);
                let runs: Vec<String> = query.build_query_scalar().fetch_all(&mut self.connection).await.map_err(failed)?;
                for run in runs.iter().filter(|run| **run != release.run && before != Some(run.as_str())) {
                    let mut gone = true;
                    for table in [USERS, ADS] {
                        gone &= !self.has_partition(table, checked(run)?).await? || self.drop_partition(table, run).await?;
                    }
                    if !gone {
                        tracing::warn!(run, "a reader is still in an old table: the next load removes it");
                        continue;
                    }
                    let mut query = QueryBuilder::<$database>::new("DELETE FROM nightmarket_runs WHERE job = ");
                    query.push_bind(&release.job).push(" AND run = ").push_bind(run);
                    query.build().execute(&mut self.connection).await.map_err(failed)?;
                }
                Ok(())
            }

            async fn segments_of(&mut self, _job: &str, run: &str, user: &str) -> Result<Vec<String>> {
                let mut query = QueryBuilder::<$database>::new(format!("SELECT segment_id FROM {USERS} WHERE run = "));
                query.push_bind(run).push(" AND user_id = ").push_bind(user).push(" ORDER BY place");
                query.build_query_scalar().fetch_all(&mut self.connection).await.map_err(failed)
            }

            async fn ads(&mut self, _job: &str, run: &str) -> Result<Vec<Ad>> {
                self.ads_of(run).await.context("the rows of ads")
            }
        }
    };
}

shelf!(Postgres, sqlx::Postgres, sqlx::PgConnection);
shelf!(MySql, sqlx::MySql, sqlx::MySqlConnection);

//! A committed table -> a serving store that answers in a millisecond: Valkey or Redis, PostgreSQL, MySQL or MariaDB.
//!
//! Object storage stays the source of truth; a store can be emptied and loaded again. A load writes the table beside the one that
//! serves, under a name of its own, checks what arrived, and then moves one pointer, if it still stands where it stood before the
//! load. So a reader sees the old table or the new one, whole, and two loaders cannot both win.

mod answer;
mod ddl;
mod release;
mod sql;
mod valkey;

use crate::error::{Context, Error, Kind, Result};
use crate::platform::server::Server;
use crate::platform::storage::Store;
use crate::publish::{Commit, history};
pub use answer::{Answer, Question, ask_release, ask_store};
use async_trait::async_trait;
pub use ddl::{Dialect, ddl};
pub use release::{Ad, Release, User};
use serde::{Deserialize, Serialize};

/// Where the night loads its table after the commit.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// `redis://host:port` (`rediss://` over TLS), `postgres://host/database` or `mysql://host/database`, without credentials. Absent:
    /// object storage only.
    pub to: Option<String>,
    /// Hours a loaded table stays in Redis: longer than a night may be late, for then nobody is targeted.
    pub ttl_hours: u64,
}

impl Settings {
    /// What can be known before the night begins.
    pub fn check(&self) -> Result<()> {
        if self.ttl_hours == 0 {
            return Err(Error::usage("[deliver] ttl_hours is 0: a table would be gone before it serves").action("give at least 24"));
        }
        match &self.to {
            Some(to) => scheme(&Server::read(to)?).map(|_| ()),
            None => Ok(()),
        }
    }
}

enum Scheme {
    Redis,
    Postgres,
    MySql,
}

fn scheme(server: &Server) -> Result<Scheme> {
    Ok(match server.url.scheme() {
        "redis" | "rediss" => Scheme::Redis,
        "postgres" | "postgresql" => Scheme::Postgres,
        "mysql" | "mariadb" => Scheme::MySql,
        other => {
            return Err(Error::usage(format_args!("no serving store has addresses of {other}://"))
                .action("give redis://host:port, postgres://host/database or mysql://host/database"));
        }
    })
}

impl Default for Settings {
    fn default() -> Self {
        Self { to: None, ttl_hours: 72 }
    }
}

/// What a load did. The same load again finds `AlreadyServes`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub struct Delivered {
    pub store: String,
    pub state: State,
    /// The name of the table in the store.
    pub run: String,
    pub generation: u64,
    pub policy_version: String,
    /// What served before.
    pub replaced: Option<String>,
    pub users: u64,
    pub ads: u64,
    /// Why the load failed; the commit stands and the same load may be run again.
    pub error: Option<String>,
    /// How the night ends for it.
    #[serde(skip)]
    pub kind: Option<Kind>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Loaded,
    AlreadyServes,
    WouldLoad,
    Failed,
}

impl std::fmt::Display for Delivered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = match self.state {
            State::Loaded => "serves now",
            State::AlreadyServes => "serves already",
            State::WouldLoad => "would be loaded",
            State::Failed => "was not loaded",
        };
        write!(f, "{}: {} (generation {}, run {}) {what}", self.store, self.policy_version, self.generation, self.run)?;
        write!(f, ": {} users, {} rows of ads", self.users, self.ads)?;
        match &self.replaced {
            Some(replaced) if *replaced != self.run => write!(f, "; it replaces run {replaced}"),
            _ => Ok(()),
        }
    }
}

/// A serving store, as loading and support need it.
#[async_trait]
pub trait Shelf: Send {
    /// Waits for nobody: `LostRace` when another load of the job is going on.
    async fn lock(&mut self, job: &str) -> Result<()>;
    async fn unlock(&mut self, job: &str) -> Result<()>;
    /// The run that serves.
    async fn current(&mut self, job: &str) -> Result<Option<String>>;
    /// Whether all of a loaded table is still there and will stay; a store that forgets by itself says no.
    async fn holds(&mut self, release: &Release) -> Result<bool>;
    /// Writes a table beside the one that serves, and checks that all of it arrived.
    async fn load(&mut self, release: &Release) -> Result<()>;
    /// Points the readers to a loaded table if they are still pointed `from` there; whether they were.
    async fn flip(&mut self, release: &Release, from: Option<&str>) -> Result<bool>;
    /// Removes the tables of a job's other runs, but for the one that served before; a store that forgets by itself, those that may not
    /// stay.
    async fn retire(&mut self, release: &Release, before: Option<&str>) -> Result<()>;
    /// A user's segments in the table of a run, the one served first.
    async fn segments_of(&mut self, job: &str, run: &str, user: &str) -> Result<Vec<String>>;
    /// The rows of ads of a run.
    async fn ads(&mut self, job: &str, run: &str) -> Result<Vec<Ad>>;
}

/// Connects to the store of an address.
pub async fn open(server: &Server, settings: &Settings) -> Result<Box<dyn Shelf>> {
    Ok(match scheme(server)? {
        Scheme::Redis => Box::new(valkey::Valkey::connect(server, settings.ttl_hours).await?),
        Scheme::Postgres => Box::new(sql::Postgres::connect(server).await?),
        Scheme::MySql => Box::new(sql::MySql::connect(server).await?),
    })
}

/// Loads a committed table into a store and makes it the one that serves.
///
/// # Errors
/// `Transient` when the store fails in the middle: what served before still serves. `LostRace` when somebody else moved the pointer.
pub async fn deliver(server: &Server, settings: &Settings, release: &Release, dry_run: bool) -> Result<Delivered> {
    let load = async {
        let mut shelf = open(server, settings).await?;
        match dry_run {
            true => preview(shelf.as_mut(), server, release).await,
            false => load(shelf.as_mut(), server, release).await,
        }
    };
    load.await.with_context(|| format!("loading {} into {server}", release.policy_version))
}

/// Loads the table that serves by the last commit, until it is still the last when the load is done: a rollback or a removal that
/// overtakes a slow load is not undone by it.
pub async fn deliver_head(server: &Server, settings: &Settings, output: &Store) -> Result<Delivered> {
    loop {
        let release = Release::read(output, None).await?;
        let done = deliver(server, settings, &release, false).await?;
        if history(output).await?.last().is_some_and(|head| head.generation == release.generation) {
            return Ok(done);
        }
    }
}

/// What a load would replace.
async fn preview(shelf: &mut dyn Shelf, server: &Server, release: &Release) -> Result<Delivered> {
    let replaced = shelf.current(&release.job).await?;
    let state = if replaced.as_ref() == Some(&release.run) { State::AlreadyServes } else { State::WouldLoad };
    Ok(Delivered { replaced, ..Delivered::of(server, release, state) })
}

/// As [`deliver`], through an open store.
pub async fn load(shelf: &mut dyn Shelf, server: &Server, release: &Release) -> Result<Delivered> {
    shelf.lock(&release.job).await?;
    let loaded = load_alone(shelf, server, release).await;
    // A store that died lets go by itself.
    let _ = shelf.unlock(&release.job).await;
    loaded
}

async fn load_alone(shelf: &mut dyn Shelf, server: &Server, release: &Release) -> Result<Delivered> {
    let replaced = shelf.current(&release.job).await?;
    let serves = replaced.as_ref() == Some(&release.run);
    if !(serves && shelf.holds(release).await?) {
        shelf.load(release).await?;
    }
    if !serves && !shelf.flip(release, replaced.as_deref()).await? {
        return Err(Error::new(Kind::LostRace, "somebody else moved the pointer during the load, and what they chose still serves")
            .action("see who loads this store; then run `nightmarket publish` again"));
    }
    // Readers between the two still find the table before, except where somebody must not be found in it.
    let before = replaced.as_deref().filter(|before| release.may_stay.iter().any(|run| run == before));
    shelf.retire(release, before).await?;
    let state = if serves { State::AlreadyServes } else { State::Loaded };
    let done = Delivered { replaced, ..Delivered::of(server, release, state) };
    tracing::info!(store = %server, run = release.run, users = done.users, ads = done.ads, "loaded");
    Ok(done)
}

impl Delivered {
    fn of(server: &Server, release: &Release, state: State) -> Self {
        Self {
            store: server.to_string(),
            state,
            run: release.run.clone(),
            generation: release.generation,
            policy_version: release.policy_version.clone(),
            replaced: None,
            users: release.users.len() as u64,
            ads: release.ads.len() as u64,
            error: None,
            kind: None,
        }
    }

    /// A load of the last commit that failed, for the report of a night whose commit stands.
    pub fn failed(server: &Server, head: &Commit, error: &Error) -> Self {
        Self {
            store: server.to_string(),
            state: State::Failed,
            run: head.run().to_owned(),
            generation: head.generation,
            policy_version: head.policy_version.clone(),
            replaced: None,
            users: 0,
            ads: 0,
            error: Some(error.to_string()),
            kind: Some(error.kind),
        }
    }
}

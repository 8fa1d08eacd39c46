//! `nightmarket publish`, `lookup`, `forget` and `gc`: what was published, into serving stores, to support people, and out again.

use super::{JobDate, Output, Place, open, output_store, print};
use crate::deliver::{self, Dialect, Question, Release};
use crate::error::{Error, Result};
use crate::ingest;
use crate::platform::catalog::IdDomain;
use crate::platform::pseudonym::Key;
use crate::platform::server::Server;
use crate::platform::storage::Store;
use crate::publish::{self, Privacy};
use crate::spec::Spec;
use crate::targeting::arms::{Assignment, arm_of};
use clap::{Args, Subcommand};
use std::collections::HashSet;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Publish {
    #[command(subcommand)]
    instead: Option<Instead>,
    /// The job's spec.
    #[arg(env = "NIGHTMARKET_JOB", required = true)]
    job: Option<PathBuf>,
    /// `redis://host:port`, `postgres://host/database` or `mysql://host/database` instead of the spec's [deliver] to. User and password
    /// come from NIGHTMARKET_STORE_USER and NIGHTMARKET_STORE_PASSWORD.
    #[arg(long, env = "NIGHTMARKET_DELIVER_TO", value_name = "URL")]
    to: Option<String>,
    /// With --dry-run: another generation or policy version than the one that serves. To load that one, roll back to it first.
    #[arg(long, env = "NIGHTMARKET_DELIVER_RUN")]
    run: Option<String>,
    /// Only say what would be loaded and what it would replace.
    #[arg(long, env = "NIGHTMARKET_DRY_RUN")]
    dry_run: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Subcommand)]
enum Instead {
    /// A script that makes the table that serves known to DuckDB, Trino or Spark, with a query to begin with; nothing is loaded.
    Ddl {
        /// The job's spec.
        #[arg(env = "NIGHTMARKET_JOB")]
        job: PathBuf,
        /// Whose words.
        #[arg(long = "for", value_enum, default_value_t = Dialect::Duckdb, env = "NIGHTMARKET_DDL_FOR")]
        dialect: Dialect,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, Args)]
#[group(id = "question", required = true, multiple = false, args = ["user", "segment", "ad"])]
pub struct Lookup {
    /// The job's spec.
    #[arg(env = "NIGHTMARKET_JOB")]
    job: PathBuf,
    /// The shop's own id of a user: their segments and what they are shown.
    #[arg(long, env = "NIGHTMARKET_USER", hide_env_values = true)]
    user: Option<String>,
    /// A segment's id: what its users are shown.
    #[arg(long, env = "NIGHTMARKET_SEGMENT")]
    segment: Option<String>,
    /// An ad's id: who is shown it.
    #[arg(long, env = "NIGHTMARKET_AD")]
    ad: Option<String>,
    /// A serving store to ask instead of object storage, as for `publish --to`.
    #[arg(long, env = "NIGHTMARKET_LOOKUP_FROM", value_name = "URL")]
    from: Option<String>,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub struct Forget {
    /// The job's spec.
    #[arg(env = "NIGHTMARKET_JOB")]
    job: PathBuf,
    /// The shop's own id of the user; it reaches no log and no output.
    #[arg(long, env = "NIGHTMARKET_USER", hide_env_values = true)]
    user: String,
    /// Only say what exists about the user.
    #[arg(long, env = "NIGHTMARKET_DRY_RUN")]
    dry_run: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Debug, Args)]
pub struct Gc {
    /// The job's spec.
    #[arg(env = "NIGHTMARKET_JOB")]
    job: PathBuf,
    /// Nights this many days before the one that serves stay. Fewer: less space, and a feature snapshot may be made twice.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..36500), env = "NIGHTMARKET_KEEP_DAYS")]
    keep_days: u64,
    /// Only list what would be removed.
    #[arg(long, env = "NIGHTMARKET_DRY_RUN")]
    dry_run: bool,
    #[command(flatten)]
    place: Place,
}

pub async fn publish(what: Publish, output: Output) -> Result<()> {
    let job = match (what.instead, what.job) {
        (Some(Instead::Ddl { job, dialect, place }), _) => {
            let script = deliver::ddl(&output_store(&Spec::read(&job)?, &place)?, dialect).await?;
            return print(output, &script, || script.trim_end().to_owned());
        }
        (None, job) => job.ok_or_else(|| Error::usage("no job is named"))?,
    };
    let spec = Spec::read(&job)?;
    let to = what.to.as_ref().or(spec.deliver.to.as_ref());
    let to = to.ok_or_else(|| Error::usage("no serving store is named").action("give --to, or [deliver] to in the job"))?;
    let server = Server::read(to)?;
    let store = output_store(&spec, &what.place)?;
    let done = match (&what.run, what.dry_run) {
        (run, true) => deliver::deliver(&server, &spec.deliver, &Release::read(&store, run.as_deref()).await?, true).await?,
        (None, false) => deliver::deliver_head(&server, &spec.deliver, &store).await?,
        (Some(run), false) => {
            return Err(Error::usage(format_args!("{run} may name users who were suppressed since: only the table that serves is loaded"))
                .action("`nightmarket rollback` to it, which leaves them out; then publish without --run"));
        }
    };
    print(output, &done, || done.to_string())
}

pub async fn lookup(what: Lookup, output: Output) -> Result<()> {
    let spec = Spec::read(&what.job)?;
    let question = match (what.user, what.segment, what.ad) {
        (Some(user), ..) => {
            let key = Key::read(&spec.privacy)?;
            let pseudonym = key.pseudonym(IdDomain::User, user.trim());
            // What serves tells its own arms; a store that is asked alone is taken to serve the job as it stands.
            let served = match &what.from {
                Some(_) => Assignment::of(&spec.targeting, &key),
                None => served(&output_store(&spec, &what.place)?, &key).await?,
            };
            let arm = arm_of(&pseudonym, &served.salt, &served.shares);
            Question::User { pseudonym, arm }
        }
        (_, Some(segment), _) => Question::Segment(segment),
        (.., ad) => Question::Ad(ad.unwrap_or_default()),
    };
    let answer = match &what.from {
        Some(from) => {
            let server = Server::read(from)?;
            let mut shelf = deliver::open(&server, &spec.deliver).await?;
            deliver::ask_store(shelf.as_mut(), &spec.name, server.to_string(), &question).await?
        }
        None => {
            let store = output_store(&spec, &what.place)?;
            deliver::ask_release(&Release::read(&store, None).await?, store.locate("").to_string(), &question)
        }
    };
    print(output, &answer, || answer.to_string())
}

/// Who is in which arm of the table that serves, whose pseudonyms must come from `key`.
async fn served(store: &Store, key: &Key) -> Result<Assignment> {
    let assignment = publish::assignment(&publish::choose(store, None).await?.1).await?;
    assignment.check_key(key)?;
    Ok(assignment)
}

pub async fn forget(what: Forget, output: Output) -> Result<()> {
    let store = output_store(&Spec::read(&what.job)?, &what.place)?;
    let (run, spec, key) = open(&JobDate { job: what.job, date: "yesterday".to_owned(), place: what.place })?;
    let pseudonym = key.pseudonym(IdDomain::User, what.user.trim());
    if !publish::history(&store).await?.is_empty() {
        served(&store, &key).await?;
    }
    // Tables are written again, and none may serve who has been suppressed since.
    let suppressed = match what.dry_run {
        true => HashSet::new(),
        false => ingest::suppressed_at_last(&run, &spec.ingest, &key).await?,
    };
    let privacy = Privacy { suppressed: &suppressed, floor: spec.floor() };
    let forgotten = publish::forget(&store, &pseudonym, privacy, what.dry_run).await?;
    print(output, &forgotten, || forgotten.to_string())
}

pub async fn gc(what: Gc, output: Output) -> Result<()> {
    let spec = Spec::read(&what.job)?;
    let collected = publish::gc(&output_store(&spec, &what.place)?, what.keep_days, what.dry_run).await?;
    print(output, &collected, || collected.to_string())
}

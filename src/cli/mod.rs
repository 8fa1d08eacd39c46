//! The command line: results on stdout, logs on stderr, every flag also a NIGHTMARKET_* variable. Each group of commands has a file.

mod allocate;
mod bug;
mod check;
mod doctor;
mod evaluate;
mod generate;
mod night;
mod publish;
mod report;
mod shell;
mod sql;
mod train;

use crate::error::Result;
use crate::ingest;
use crate::platform::catalog::Catalog;
use crate::platform::pseudonym::Key;
use crate::platform::run::{Run, resolve_date};
use crate::platform::storage::Store;
use crate::publish::{Commit, CommitKind, Privacy, history, rollback};
use crate::spec::Spec;
use crate::telemetry::termination;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{FilterExt, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// The nightly job of an e-commerce ad shop: from raw logs to segment-to-ad targeting tables, measured honestly.
#[derive(Debug, Parser)]
#[command(name = "nightmarket", version, propagate_version = true)]
pub struct Cli {
    /// How results are printed on stdout.
    #[arg(long, global = true, value_enum, default_value_t = Output::Text, env = "NIGHTMARKET_OUTPUT")]
    pub output: Output,
    /// Log filter, as in `info` or `nightmarket=debug`; logs go to stderr, as JSON when it is not a terminal.
    #[arg(long, global = true, default_value = "nightmarket=info,warn", env = "NIGHTMARKET_LOG")]
    pub log: String,
    /// File that gets one JSON line on how the command ended: /dev/termination-log in Kubernetes.
    #[arg(long, global = true, env = "NIGHTMARKET_TERMINATION_LOG", value_name = "FILE")]
    pub termination_log: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// The night: from raw logs to published tables and the report. Resumes by itself.
    Run(night::Night),
    /// The nights of several dates, oldest first.
    Backfill(night::Backfill),
    /// What was published, oldest first; the last line serves.
    History {
        /// The job's spec.
        #[arg(env = "NIGHTMARKET_JOB")]
        job: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Serve an earlier table again, without the users on the suppression list of the date or on a newer one.
    Rollback {
        #[command(flatten)]
        at: JobDate,
        /// Generation or policy version to go back to.
        #[arg(long, env = "NIGHTMARKET_TO")]
        to: String,
    },
    /// Load a published table into Valkey or Redis, PostgreSQL, MySQL or MariaDB, and make it the one that serves there.
    Publish(publish::Publish),
    /// Who sees what: of a user, a segment or an ad, by the table that serves now.
    Lookup(publish::Lookup),
    /// What exists about a user in every output and, without --dry-run, its removal.
    Forget(publish::Forget),
    /// Remove the nights that no commit within the retention needs; the serving and the previous generation always stay.
    Gc(publish::Gc),
    /// Where the report of a night is, or a page over many nights; rendered again from the facts.
    Report(report::Report),
    /// What this machine and this job can do: stores, key, libtorch, memory.
    Doctor {
        /// The job's spec.
        #[arg(env = "NIGHTMARKET_JOB")]
        job: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// A shop with known truth: raw logs of some days, or one day more under a published table.
    Generate(generate::Generate),
    /// Train the network and the baseline on any labelled table, and measure them.
    Train(train::Train),
    /// Plan every spec and SQL file; nothing is read.
    Check {
        /// Job specs; all in jobs/ when none is named.
        jobs: Vec<PathBuf>,
    },
    /// The allocation alone, on plain tables: a plan under budgets and caps, with a bound on what any plan could reach.
    Allocate(Box<allocate::Allocate>),
    /// The statistics alone, on plain tables.
    #[command(subcommand)]
    Evaluate(Box<evaluate::Evaluate>),
    /// The analyst's tools.
    #[command(subcommand)]
    Sql(sql::Sql),
}

/// A job and the date it is run for.
#[derive(Clone, Debug, Args)]
pub struct JobDate {
    /// The job's spec.
    #[arg(env = "NIGHTMARKET_JOB")]
    pub job: PathBuf,
    /// The last complete local day: 2026-11-22, or `yesterday`.
    #[arg(long, env = "NIGHTMARKET_DATE")]
    pub date: String,
    #[command(flatten)]
    pub place: Place,
}

/// Where a job reads and writes and how much of the machine it uses, over what its spec says.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// Raw root instead of the spec's [store] raw.
    #[arg(long, env = "NIGHTMARKET_RAW")]
    pub raw: Option<String>,
    /// Output root instead of the spec's [store] output.
    #[arg(long, env = "NIGHTMARKET_OUT")]
    pub out: Option<String>,
    /// Query threads instead of the spec's; 0 = all cores. Changes no result.
    #[arg(long, env = "NIGHTMARKET_THREADS")]
    pub threads: Option<usize>,
}

/// The command line's grammar, for tests of manifests and documentation.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Sends the log to stderr.
pub fn start_logging(cli: &Cli) {
    // The finest lines of a library print what it holds: the statistics of a Parquet file are ids.
    let tells_no_rows = filter_fn(|line| line.target().starts_with("nightmarket") || *line.level() <= Level::INFO);
    let filter = EnvFilter::try_new(&cli.log).unwrap_or_else(|_| EnvFilter::new("info")).and(tells_no_rows);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false);
    let lines = match std::io::stderr().is_terminal() {
        true => lines.boxed(),
        false => lines.json().flatten_event(true).with_current_span(false).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
}

/// Runs one command.
pub fn run(cli: Cli) -> Result<()> {
    let termination_log = cli.termination_log.clone();
    // Nobody's id reaches a log, not even that of a panic.
    let doing = std::env::args().skip(1).take_while(|argument| !argument.starts_with("--user")).collect::<Vec<_>>().join(" ");
    bug::keep_quiet();
    let ended = bug::caught(&doing, || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(dispatch(cli))
    });
    if let (Some(path), Err(error)) = (termination_log, &ended)
        && let Err(unwritten) = termination::write(&path, &termination::of_failure(error))
    {
        tracing::warn!(%unwritten, "the end of the command could not be told");
    }
    ended
}

async fn dispatch(cli: Cli) -> Result<()> {
    let output = cli.output;
    match cli.command {
        Command::Run(night) => night::run(night, output, cli.termination_log.as_deref()).await,
        Command::Backfill(nights) => night::backfill(nights, output, cli.termination_log.as_deref()).await,
        Command::History { job, place } => {
            let commits = history(&output_store(&Spec::read(&job)?, &place)?).await?;
            print(output, &commits, || match commits.is_empty() {
                true => "nothing was published yet".to_owned(),
                false => commits.iter().map(describe_commit).collect::<Vec<_>>().join("\n"),
            })
        }
        Command::Rollback { at, to } => {
            let (run, spec, key) = open(&at)?;
            let suppressed = ingest::suppressed_on(&run, &spec.ingest, &key).await?;
            let commit = rollback(&run, &to, Privacy { suppressed: &suppressed, floor: spec.floor() }).await?;
            print(output, &commit, || match &spec.deliver.to {
                Some(to) => format!("{}\n{to} still serves the table before: run `nightmarket publish`", describe_commit(&commit)),
                None => describe_commit(&commit),
            })
        }
        Command::Publish(what) => publish::publish(what, output).await,
        Command::Lookup(what) => publish::lookup(what, output).await,
        Command::Forget(what) => publish::forget(what, output).await,
        Command::Gc(what) => publish::gc(what, output).await,
        Command::Report(what) => report::run(what, output).await,
        Command::Doctor { job, place } => doctor::run(&job, &place, output).await,
        Command::Generate(plan) => generate::run(plan, output).await,
        Command::Train(command) => train::run(command, output).await,
        Command::Check { jobs } => check::run(&jobs, output).await,
        Command::Allocate(command) => allocate::run(*command, output).await,
        Command::Evaluate(command) => evaluate::run(*command, output).await,
        Command::Sql(command) => sql::run(command, output).await,
    }
}

fn describe_commit(commit: &Commit) -> String {
    let kind = match commit.kind {
        CommitKind::Publish => "publish",
        CommitKind::Rollback => "rollback",
        CommitKind::Forget => "forget",
    };
    format!("{:>4}  {}  {kind:<8}  {}  {}", commit.generation, commit.run_date, commit.policy_version, commit.tables)
}

/// Where nights have written; a mistyped path is told, not made.
fn output_store(spec: &Spec, place: &Place) -> Result<Store> {
    Store::open_existing(place.out.as_deref().unwrap_or(&spec.store.output))
}

/// A run of a job on a date, with its settings and its key.
fn open(at: &JobDate) -> Result<(Run, Spec, Key)> {
    let spec = Spec::read(&at.job)?;
    let catalog = Catalog::load(Path::new(&spec.sql))?;
    open_with(at, spec, catalog)
}

/// As [`open`], with the job's spec and the SQL that are given.
fn open_with(at: &JobDate, mut spec: Spec, catalog: Catalog) -> Result<(Run, Spec, Key)> {
    let job = spec.job()?;
    let date = resolve_date(&at.date, &job)?;
    if let Some(threads) = at.place.threads {
        spec.engine.threads = threads;
    }
    let raw = Store::open_existing(at.place.raw.as_deref().unwrap_or(&spec.store.raw))?;
    let out = Store::open(at.place.out.as_deref().unwrap_or(&spec.store.output))?;
    let key = Key::read(&spec.privacy)?;
    Ok((Run::new(job, date, raw, out, catalog, spec.engine.clone()), spec, key))
}

/// One result on stdout.
fn print<T: Serialize + ?Sized>(output: Output, value: &T, text: impl FnOnce() -> String) -> Result<()> {
    let line = match output {
        Output::Text => text(),
        Output::Json => serde_json::to_string_pretty(value)?,
    };
    // A reader that went away (`| head`) is no error.
    let _ = writeln!(std::io::stdout(), "{line}");
    Ok(())
}

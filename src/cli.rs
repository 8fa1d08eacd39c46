//! The command line: results on stdout, logs on stderr, every flag also a NIGHTMARKET_* variable.

use crate::error::{Error, Result};
use crate::platform::catalog::Catalog;
use crate::platform::pseudonym::Key;
use crate::platform::run::{Run, resolve_date};
use crate::platform::storage::Store;
use crate::spec::Spec;
use crate::workbench;
use arrow::util::pretty::pretty_format_batches;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

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
    /// Plan every spec and SQL file; nothing is read.
    Check {
        /// Job specs; all in jobs/ when none is named.
        jobs: Vec<PathBuf>,
    },
    /// The analyst's tools.
    #[command(subcommand)]
    Sql(Sql),
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

#[derive(Debug, Subcommand)]
pub enum Sql {
    /// Every table with its grain, owner, columns and readers.
    List {
        /// The shop's folder.
        #[arg(long, default_value = "sql/shop", env = "NIGHTMARKET_SQL")]
        shop: PathBuf,
    },
    /// One query as it runs, with its columns.
    Show {
        table: String,
        #[arg(long, default_value = "sql/shop", env = "NIGHTMARKET_SQL")]
        shop: PathBuf,
    },
    /// The first rows of a table as of a date.
    Preview {
        table: String,
        #[command(flatten)]
        at: JobDate,
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Run the .slt files beside the queries.
    Test {
        /// Only files whose path contains this.
        #[arg(default_value = "")]
        selector: String,
        #[arg(long, default_value = "sql/shop", env = "NIGHTMARKET_SQL")]
        shop: PathBuf,
        /// Fill in the answers instead; read the diff.
        #[arg(long)]
        bless: bool,
    },
}

/// The command line's grammar, for tests of manifests and documentation.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Sends the log to stderr.
pub fn start_logging(cli: &Cli) {
    let filter = tracing_subscriber::EnvFilter::try_new(&cli.log).unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if std::io::stderr().is_terminal() {
        builder.with_target(false).init();
    } else {
        builder.json().flatten_event(true).with_target(false).with_current_span(false).init();
    }
}

/// Runs one command.
pub fn run(cli: Cli) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(dispatch(cli))
}

async fn dispatch(cli: Cli) -> Result<()> {
    let output = cli.output;
    match cli.command {
        Command::Check { jobs } => check(&jobs, output).await,
        Command::Sql(sql) => match sql {
            Sql::List { shop } => {
                let tables = workbench::check(&Catalog::load(&shop)?, chrono::DateTime::UNIX_EPOCH).await?;
                print(output, &tables, || tables.iter().map(describe).collect::<Vec<_>>().join("\n"))
            }
            Sql::Show { table, shop } => {
                let catalog = Catalog::load(&shop)?;
                let tables = workbench::check(&catalog, chrono::DateTime::UNIX_EPOCH).await?;
                let found = tables.iter().find(|found| found.name == table).ok_or_else(|| Error::usage(format_args!("no table {table} in {}", shop.display())))?;
                let query = catalog.queries().find(|query| query.name == table).expect("a planned table has a query");
                print(output, found, || format!("{}\n{}", describe(found), query.sql))
            }
            Sql::Preview { table, at, limit } => {
                let (run, spec, key) = open(&at)?;
                let rows = workbench::preview(&run, &spec.ingest, &key, &table, limit).await?;
                let text = pretty_format_batches(std::slice::from_ref(&rows))?.to_string();
                print(output, &text, || text.clone())
            }
            Sql::Test { selector, shop, bless } => {
                let tested = workbench::test(&shop, &selector, bless).await?;
                print(output, &tested, || format!("{} files, {} failed", tested.len(), tested.iter().filter(|test| test.failure.is_some()).count()))?;
                match tested.iter().find_map(|test| test.failure.as_ref().map(|failure| (test, failure))) {
                    Some((test, failure)) => Err(Error::contract(format_args!("{}: {failure}", test.file.display())).action("correct the query or its test")),
                    None => Ok(()),
                }
            }
        },
    }
}

/// A run of a job on a date, with its settings and its key.
fn open(at: &JobDate) -> Result<(Run, Spec, Key)> {
    let mut spec = Spec::read(&at.job)?;
    let job = spec.job()?;
    let date = resolve_date(&at.date, &job)?;
    if let Some(threads) = at.place.threads {
        spec.engine.threads = threads;
    }
    let raw = Store::open(at.place.raw.as_deref().unwrap_or(&spec.store.raw))?;
    let out = Store::open(at.place.out.as_deref().unwrap_or(&spec.store.output))?;
    let catalog = Catalog::load(Path::new(&spec.sql))?;
    let key = Key::read(&spec.privacy)?;
    Ok((Run::new(job, date, raw, out, catalog, spec.engine.clone()), spec, key))
}

async fn check(jobs: &[PathBuf], output: Output) -> Result<()> {
    let mut jobs = jobs.to_vec();
    if jobs.is_empty() {
        jobs = std::fs::read_dir("jobs")
            .map_err(|error| Error::usage(format_args!("reading jobs/: {error}")))?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<std::io::Result<_>>()?;
        jobs.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
        jobs.sort();
    }
    let mut tables = 0;
    for path in &jobs {
        let spec = Spec::read(path)?;
        tables += workbench::check(&Catalog::load(Path::new(&spec.sql))?, chrono::DateTime::UNIX_EPOCH).await?.len();
    }
    #[derive(Serialize)]
    struct Checked {
        jobs: usize,
        tables: usize,
    }
    let checked = Checked { jobs: jobs.len(), tables };
    print(output, &checked, || format!("{} jobs, {} tables: all plan", checked.jobs, checked.tables))
}

fn describe(table: &workbench::Planned) -> String {
    let readers = if table.read_by.is_empty() { "nobody".to_owned() } else { table.read_by.iter().cloned().collect::<Vec<_>>().join(", ") };
    format!(
        "{}  [{}]  owner: {}\n  {}\n  read by: {readers}\n  {}",
        table.name,
        table.grain.join(", "),
        table.owner.as_deref().unwrap_or("nobody"),
        table.description,
        table.columns.join("\n  ")
    )
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

//! The command line: results on stdout, logs on stderr, every flag also a NIGHTMARKET_* variable.

use crate::error::{Context, Error, Result};
use crate::pipeline::{self, Facts, Stage};
use crate::platform::catalog::{Catalog, IdDomain};
use crate::platform::pseudonym::Key;
use crate::platform::run::{Run, resolve_date};
use crate::platform::storage::Store;
use crate::publish::{self, Commit, CommitKind};
use crate::spec::Spec;
use crate::{generate, ingest, model, workbench};
use arrow::util::pretty::pretty_format_batches;
use chrono::NaiveDate;
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
    /// The night: from raw logs to published tables and the report. Resumes by itself.
    Run {
        #[command(flatten)]
        at: JobDate,
        /// Stop after this stage.
        #[arg(long, value_enum, default_value = "report", env = "NIGHTMARKET_UNTIL")]
        until: Stage,
    },
    /// The nights of several dates, oldest first.
    Backfill {
        /// The job's spec.
        #[arg(env = "NIGHTMARKET_JOB")]
        job: PathBuf,
        #[arg(long, env = "NIGHTMARKET_START")]
        start: NaiveDate,
        /// The last date, itself included.
        #[arg(long, env = "NIGHTMARKET_END")]
        end: NaiveDate,
        #[command(flatten)]
        place: Place,
    },
    /// What was published, oldest first; the last line serves.
    History {
        /// The job's spec.
        #[arg(env = "NIGHTMARKET_JOB")]
        job: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Serve an earlier table again, without the users on the date's suppression list.
    Rollback {
        #[command(flatten)]
        at: JobDate,
        /// Generation or policy version to go back to.
        #[arg(long)]
        to: String,
    },
    /// Which segments a user is in and which ads they are shown, by the table that serves now.
    Lookup {
        /// The job's spec.
        #[arg(env = "NIGHTMARKET_JOB")]
        job: PathBuf,
        /// The shop's own id of the user.
        #[arg(long)]
        user: String,
        #[command(flatten)]
        place: Place,
    },
    /// Where the report of a night is, rendered again from its facts.
    Report {
        #[command(flatten)]
        at: JobDate,
    },
    /// What this machine and this job can do: stores, key, libtorch, memory.
    Doctor {
        /// The job's spec.
        #[arg(env = "NIGHTMARKET_JOB")]
        job: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// A shop with known truth: raw logs of some days, or one day more under a published table.
    Generate(Generate),
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

#[derive(Debug, Args)]
pub struct Generate {
    /// Where the shop's raw tables go.
    #[arg(long, env = "NIGHTMARKET_OUT", required_unless_present = "continue")]
    pub out: Option<String>,
    #[arg(long, default_value_t = 3000)]
    pub users: u64,
    #[arg(long, default_value_t = 28)]
    pub days: u64,
    #[arg(long, default_value_t = 7)]
    pub seed: u64,
    /// The last day.
    #[arg(long, default_value = "2026-11-22")]
    pub until: NaiveDate,
    /// Instead: add one day to the shop at this place.
    #[arg(long, requires = "date", requires = "policy", requires = "job", conflicts_with = "out")]
    pub r#continue: Option<String>,
    /// The day to add.
    #[arg(long)]
    pub date: Option<NaiveDate>,
    /// Folder of the published tables that serve it.
    #[arg(long)]
    pub policy: Option<String>,
    /// The job that published them: its arms and its pseudonym key.
    #[arg(long)]
    pub job: Option<PathBuf>,
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
        Command::Run { at, until } => {
            let (run, spec, key) = open(&at)?;
            print_night(output, &pipeline::run(&run, &spec, &key, until).await?)
        }
        Command::Backfill { job, start, end, place } => {
            if start > end {
                return Err(Error::usage(format_args!("--start {start} lies after --end {end}")));
            }
            for date in start.iter_days().take_while(|date| *date <= end) {
                let (run, spec, key) = open(&JobDate { job: job.clone(), date: date.to_string(), place: place.clone() })?;
                print_night(output, &pipeline::run(&run, &spec, &key, Stage::Report).await.with_context(|| date.to_string())?)?;
            }
            Ok(())
        }
        Command::History { job, place } => {
            let commits = publish::history(&output_store(&Spec::read(&job)?, &place)?).await?;
            print(output, &commits, || match commits.is_empty() {
                true => "nothing was published yet".to_owned(),
                false => commits.iter().map(describe_commit).collect::<Vec<_>>().join("\n"),
            })
        }
        Command::Rollback { at, to } => {
            let (run, spec, key) = open(&at)?;
            let suppressed = ingest::suppressed_on(&run, &spec.ingest, &key).await?;
            let commit = publish::rollback(&run, &to, &suppressed, spec.segments.floor).await?;
            print(output, &commit, || describe_commit(&commit))
        }
        Command::Lookup { job, user, place } => {
            let spec = Spec::read(&job)?;
            let pseudonym = Key::read(&spec.privacy)?.pseudonym(IdDomain::User, user.trim());
            let found = publish::lookup(&output_store(&spec, &place)?, &pseudonym).await?;
            print(output, &found, || found.to_string())
        }
        Command::Report { at } => {
            let (run, _, _) = open(&at)?;
            let path = pipeline::render_again(&run).await?;
            print(output, &path, || path.clone())
        }
        Command::Doctor { job, place } => {
            let checks = doctor(&job, &place).await?;
            print(output, &checks, || {
                checks
                    .iter()
                    .map(|check| format!("{:<4} {:<12} {}", if check.ok { "ok" } else { "BAD" }, check.name, check.finding))
                    .collect::<Vec<_>>()
                    .join("\n")
            })?;
            match checks.iter().find(|check| !check.ok) {
                Some(bad) => Err(Error::usage(format_args!("{}: {}", bad.name, bad.finding)).action("mend it and run doctor again")),
                None => Ok(()),
            }
        }
        Command::Generate(plan) => generated(plan, output).await,
        Command::Check { jobs } => check(&jobs, output).await,
        Command::Sql(sql) => match sql {
            Sql::List { shop } => {
                let tables = workbench::check(&Catalog::load(&shop)?, chrono::DateTime::UNIX_EPOCH).await?;
                print(output, &tables, || tables.iter().map(describe).collect::<Vec<_>>().join("\n"))
            }
            Sql::Show { table, shop } => {
                let catalog = Catalog::load(&shop)?;
                let tables = workbench::check(&catalog, chrono::DateTime::UNIX_EPOCH).await?;
                let found = tables
                    .iter()
                    .find(|found| found.name == table)
                    .ok_or_else(|| Error::usage(format_args!("no table {table} in {}", shop.display())))?;
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
                print(output, &tested, || {
                    format!("{} files, {} failed", tested.len(), tested.iter().filter(|test| test.failure.is_some()).count())
                })?;
                match tested.iter().find_map(|test| test.failure.as_ref().map(|failure| (test, failure))) {
                    Some((test, failure)) => {
                        Err(Error::contract(format_args!("{}: {failure}", test.file.display())).action("correct the query or its test"))
                    }
                    None => Ok(()),
                }
            }
        },
    }
}

fn print_night(output: Output, facts: &Facts) -> Result<()> {
    let text = pipeline::summary(facts)?;
    print(output, facts, || text)
}

fn describe_commit(commit: &Commit) -> String {
    let kind = if commit.kind == CommitKind::Rollback { "rollback" } else { "publish" };
    format!("{:>4}  {}  {kind:<8}  {}  {}", commit.generation, commit.run_date, commit.policy_version, commit.tables)
}

fn output_store(spec: &Spec, place: &Place) -> Result<Store> {
    Store::open(place.out.as_deref().unwrap_or(&spec.store.output))
}

async fn generated(plan: Generate, output: Output) -> Result<()> {
    let summary = match (&plan.r#continue, plan.date, &plan.policy, &plan.job) {
        (Some(raw), Some(date), Some(policy), Some(job)) => {
            let spec = Spec::read(job)?;
            let plan = generate::Continue { date, salt: spec.targeting.salt.clone(), shares: spec.targeting.shares };
            generate::continue_day(&Store::open(raw)?, &plan, &Store::open(policy)?, &Key::read(&spec.privacy)?).await?
        }
        _ => {
            let out = plan.out.as_deref().ok_or_else(|| Error::usage("--out is missing"))?;
            let plan = generate::Plan { users: plan.users, days: plan.days, seed: plan.seed, until: plan.until };
            generate::generate(&Store::open(out)?, &plan).await?
        }
    };
    print(output, &summary, || {
        let rows = summary.rows.iter().map(|(table, rows)| format!("  {rows:>10} {table}")).collect::<Vec<_>>().join("\n");
        format!(
            "{} users, {} days, CTR {:.2} %, CVR {:.2} %\n{rows}",
            summary.users,
            summary.days,
            100.0 * summary.ctr,
            100.0 * summary.cvr
        )
    })
}

/// One line of `doctor`.
#[derive(Serialize)]
struct Checked {
    name: &'static str,
    ok: bool,
    finding: String,
}

async fn doctor(job: &Path, place: &Place) -> Result<Vec<Checked>> {
    let spec = Spec::read(job)?;
    let check = |name, result: Result<String>| match result {
        Ok(finding) => Checked { name, ok: true, finding },
        Err(error) => Checked { name, ok: false, finding: error.to_string() },
    };
    let listed = async |place: &str| -> Result<String> {
        let store = Store::open(place)?;
        Ok(format!("{}: {} objects", store.locate(""), store.list("").await?.len()))
    };
    let catalog = Catalog::load(Path::new(&spec.sql));
    let planned = match &catalog {
        Ok(catalog) => workbench::check(catalog, chrono::DateTime::UNIX_EPOCH).await.map(|tables| format!("{} tables plan", tables.len())),
        Err(error) => Err(Error::usage(error)),
    };
    Ok(vec![
        check("spec", Ok(format!("{}: job {}", job.display(), spec.name))),
        check("sql", planned),
        check("raw", listed(place.raw.as_deref().unwrap_or(&spec.store.raw)).await),
        check("output", listed(place.out.as_deref().unwrap_or(&spec.store.output)).await),
        check("key", Key::read(&spec.privacy).map(|key| format!("pseudonym key {}", key.fingerprint()))),
        check("libtorch", Ok(format!("training runs on {}", model::device_name()))),
        check("cores", Ok(std::thread::available_parallelism().map_or("unknown".to_owned(), |cores| cores.to_string()))),
    ])
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
    let checked = serde_json::json!({ "jobs": jobs.len(), "tables": tables });
    print(output, &checked, || format!("{} jobs, {tables} tables: all plan", jobs.len()))
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

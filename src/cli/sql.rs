//! `nightmarket sql …`: the analyst's commands.

use super::{JobDate, Output, Place, open_with, print};
use crate::error::{Error, Result};
use crate::platform::catalog::{Catalog, Query};
use crate::platform::diagnostic::{Diagnostic, Severity};
use crate::platform::run::resolve_date;
use crate::platform::storage::Store;
use crate::spec::Spec;
use crate::workbench::leak::{Case, Other};
use crate::workbench::{self, Checked, Desk, Planned, Shell, select, tables, text};
use clap::{Args, Subcommand, ValueEnum};
use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

#[derive(Debug, Subcommand)]
pub enum Sql {
    /// Every table with its grain, owner, columns and readers.
    List {
        #[command(flatten)]
        which: Which,
    },
    /// One query as it runs, with its columns and where they come from.
    Show {
        /// A table's name or its file.
        file: String,
        /// The plan instead: what the engine makes of the query. With --as-of, over that day's rows.
        #[arg(long, env = "NIGHTMARKET_PLAN")]
        plan: bool,
        #[command(flatten)]
        at: At,
    },
    /// The first rows of a table as of a date, and a profile of each column.
    Preview {
        /// A table's name or its file.
        file: String,
        #[command(flatten)]
        at: At,
        /// Rows that are shown.
        #[arg(long, default_value_t = 10, env = "NIGHTMARKET_LIMIT")]
        limit: usize,
    },
    /// Run the .slt files beside the queries.
    Test {
        #[command(flatten)]
        which: Which,
        /// Fill in the answers instead; read the diff.
        #[arg(long, env = "NIGHTMARKET_BLESS")]
        bless: bool,
    },
    /// What a change of a file does to its table: rows by key, and how far each column moved.
    Diff {
        /// A table's name or its file.
        file: String,
        /// A git revision of the file, or `run`: the snapshot that the last run left of the date.
        #[arg(long, default_value = "HEAD", env = "NIGHTMARKET_AGAINST")]
        against: String,
        #[command(flatten)]
        at: At,
    },
    /// Whether a feature knows the future: it must come out the same without what came after the date, and with that shuffled.
    Leak {
        /// As for `sql list`; all features when none is named.
        selectors: Vec<String>,
        /// The share of the devices and users that is looked at.
        #[arg(long, env = "NIGHTMARKET_LEAK_SHARE", default_value_t = 1.0)]
        share: f64,
        #[command(flatten)]
        at: At,
    },
    /// Which table is made of which.
    Graph {
        #[command(flatten)]
        which: Which,
        #[arg(long, value_enum, default_value_t = Format::Text, env = "NIGHTMARKET_FORMAT")]
        format: Format,
        /// Which column is made of which, too.
        #[arg(long, env = "NIGHTMARKET_COLUMNS")]
        columns: bool,
    },
    /// Write a commented feature file and its test, to begin with.
    New {
        /// <entity>__<group>, as in user__carts.
        name: String,
        #[command(flatten)]
        at: ShopArgs,
    },
    /// Ask the shop's tables as of a date.
    Shell {
        /// Answer this one question and end.
        #[arg(short, long, env = "NIGHTMARKET_COMMAND")]
        command: Option<String>,
        #[command(flatten)]
        at: At,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Dot,
    Svg,
}

/// Whose SQL.
#[derive(Clone, Debug, Args)]
pub struct ShopArgs {
    /// The shop's folder; that of the file or the job named, else sql/shop.
    #[arg(long, env = "NIGHTMARKET_SQL")]
    shop: Option<PathBuf>,
    /// The job's spec; the one in jobs/ that uses the shop when none is named.
    #[arg(long, env = "NIGHTMARKET_JOB")]
    job: Option<PathBuf>,
}

/// Which of a shop's tables.
#[derive(Clone, Debug, Args)]
pub struct Which {
    /// a, +a (with what it is made of), a+ (with what is made of it), user__*, tag:ads, a path, or `modified` since the last run; all
    /// tables when none is named.
    selectors: Vec<String>,
    #[command(flatten)]
    at: ShopArgs,
    #[command(flatten)]
    place: Place,
}

/// Whose data, and as of when.
#[derive(Clone, Debug, Args)]
pub struct At {
    #[command(flatten)]
    shop: ShopArgs,
    /// As of the end of this local day: 2026-11-22, or `yesterday`; the last day of the logs when none is named.
    #[arg(long, alias = "date", env = "NIGHTMARKET_DATE")]
    as_of: Option<String>,
    #[command(flatten)]
    place: Place,
}

pub async fn run(command: Sql, output: Output) -> Result<()> {
    match command {
        Sql::List { which } => list(&which, output).await,
        Sql::Show { file, plan, at } => show(&file, plan, &at, output).await,
        Sql::Preview { file, at, limit } => {
            let (desk, query, _) = desk_of(&file, &at, output).await?;
            let preview = workbench::preview(&desk, &query, limit).await?;
            let text = preview.text()?;
            print(output, &preview, || text)
        }
        Sql::Test { which, bless } => test(&which, bless, output).await,
        Sql::Diff { file, against, at } => {
            let (desk, query, _) = desk_of(&file, &at, output).await?;
            let diff = match against.as_str() {
                "run" => workbench::diff::against_run(&desk, &query).await?,
                revision => workbench::diff::against_revision(&desk, &query, revision).await?,
            };
            print(output, &diff, || diff.text())
        }
        Sql::Leak { selectors, share, at } => leak(&selectors, share, &at, output).await,
        Sql::Graph { which, format, columns } => {
            let shop = which.shop()?;
            let checked = checked(&shop).await?;
            let chosen = select::select(&checked.catalog, &which.selectors, which.modified(&shop, &checked.catalog).await?.as_ref())?;
            let graph = workbench::graph(&checked, &chosen);
            print(output, &graph, || match format {
                Format::Text => graph.text(columns),
                Format::Dot => graph.dot(columns),
                Format::Svg => graph.svg(columns),
            })
        }
        Sql::New { name, at } => {
            let shop = at.folder(None)?;
            let written = workbench::new(&shop, &checked(&shop).await?, &name)?;
            print(output, &written, || {
                let (query, test) = (written.query.display(), written.test.display());
                format!("{query}\n{test}\nnext: change them, then `nightmarket sql test {name}` and `nightmarket sql preview {name}`")
            })
        }
        Sql::Shell { command, at } => {
            let shop = at.shop.folder(None)?;
            let checked = checked(&shop).await?;
            let desk = at.desk(&shop, &checked.catalog).await?;
            super::shell::run(Shell::new(desk, checked)?, command, output).await
        }
    }
}

// --------------------------------------------------------------------------------------------------------- whose, and as of when

impl ShopArgs {
    /// The shop's folder.
    fn folder(&self, file: Option<&str>) -> Result<PathBuf> {
        if let Some(shop) = &self.shop {
            return Ok(shop.clone());
        }
        let of_file = file.filter(|file| file.contains(['/', '\\'])).map(|file| Path::new(file.trim_matches('+')));
        if let Some(shop) = of_file.and_then(|file| file.ancestors().find(|folder| folder.join("sources.toml").is_file())) {
            return Ok(shop.to_owned());
        }
        match &self.job {
            Some(job) => Ok(PathBuf::from(Spec::read(job)?.sql)),
            None => Ok(PathBuf::from("sql/shop")),
        }
    }

    /// The job whose logs are read.
    fn job(&self, shop: &Path) -> Result<PathBuf> {
        if let Some(job) = &self.job {
            return Ok(job.clone());
        }
        let same = |spec: &Spec| matches!((Path::new(&spec.sql).canonicalize(), shop.canonicalize()), (Ok(a), Ok(b)) if a == b);
        let mut found: Vec<PathBuf> = job_files()?;
        found.retain(|path| Spec::read(path).is_ok_and(|spec| same(&spec)));
        match found.as_slice() {
            [job] => Ok(job.clone()),
            [] => Err(Error::usage(format_args!("no job in jobs/ uses {}", shop.display())).action("name the job: --job jobs/shop.toml")),
            several => {
                Err(Error::usage(format_args!("{} jobs use {}", several.len(), shop.display()))
                    .action("name the job: --job jobs/shop.toml"))
            }
        }
    }
}

impl Which {
    fn shop(&self) -> Result<PathBuf> {
        self.at.folder(self.selectors.first().map(String::as_str))
    }

    /// What changed since the last run, when a selector asks for it.
    async fn modified(&self, shop: &Path, catalog: &Catalog) -> Result<Option<BTreeSet<String>>> {
        if !select::asks_for_modified(&self.selectors) {
            return Ok(None);
        }
        let spec = Spec::read(&self.at.job(shop)?)?;
        let output = Store::open(self.place.out.as_deref().unwrap_or(&spec.store.output))?;
        Ok(Some(workbench::last_run::modified(&output, catalog).await?))
    }
}

impl At {
    /// The job's data as of the date, seen through a catalog that is known to be sound.
    async fn desk(&self, shop: &Path, catalog: &Catalog) -> Result<Desk> {
        let job = self.shop.job(shop)?;
        let spec = Spec::read(&job)?;
        let date = match &self.as_of {
            Some(date) => date.clone(),
            None => {
                let raw = Store::open_existing(self.place.raw.as_deref().unwrap_or(&spec.store.raw))?;
                tables::latest_day(&raw, catalog).await?.to_string()
            }
        };
        let (run, spec, key) = open_with(&JobDate { job, date, place: self.place.clone() }, spec, catalog.clone())?;
        Ok(Desk { run, ingest: spec.ingest, key })
    }
}

/// Tests features as of a date on all the logs there are.
async fn leak(selectors: &[String], share: f64, at: &At, output: Output) -> Result<()> {
    if !(share > 0.0 && share <= 1.0) {
        return Err(Error::usage(format_args!("--share {share} is no share: more than 0, at most 1")));
    }
    let shop = at.shop.folder(selectors.first().map(String::as_str))?;
    let checked = checked(&shop).await?;
    let chosen = select::select(&checked.catalog, selectors, None)?;
    let all = At { as_of: None, ..at.clone() };
    let desk = all.desk(&shop, &checked.catalog).await?;
    let day = match &at.as_of {
        Some(date) => resolve_date(date, &desk.run.job)?,
        None => desk.run.day(1),
    };
    let others = [Other::Happened, Other::Arrived, Other::Shuffled];
    let case = Case { run: &desk.run, ingest: &desk.ingest, key: &desk.key, day, share, features: chosen, others: &others };
    let found = workbench::leak::test(&case).await?;
    print(output, &found, || found.text())?;
    found.refuse()
}

/// A shop that is good enough to work with: files that are broken are left out, and the log says so.
async fn checked(shop: &Path) -> Result<Checked> {
    let checked = workbench::check(shop).await?;
    if checked.errors() > 0 {
        tracing::warn!(errors = checked.errors(), shop = %shop.display(), "broken files are left out: see `nightmarket check`");
    }
    Ok(checked)
}

/// A table and the data to compute it from. When its own file is broken, that is printed instead.
async fn desk_of(file: &str, at: &At, output: Output) -> Result<(Desk, Query, Checked)> {
    let shop = at.shop.folder(Some(file))?;
    let checked = workbench::check(&shop).await?;
    let query = own(file, &checked, output)?;
    let desk = at.desk(&shop, &checked.catalog).await?;
    Ok((desk, query, checked))
}

/// The query of a file that plans; else what is wrong with it.
fn own(file: &str, checked: &Checked, output: Output) -> Result<Query> {
    let stem = Path::new(file).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let planned = select::one(&checked.catalog, file).ok().filter(|query| checked.table(&query.name).is_some());
    if let Some(query) = planned {
        return Ok(query.clone());
    }
    let of_file = |found: &&Diagnostic| found.file.file_stem().is_some_and(|name| name == stem.as_str());
    let wrong: Vec<Diagnostic> = checked.diagnostics.iter().filter(of_file).cloned().collect();
    if checked.unplanned.contains(&stem) {
        return Err(
            Error::usage(format_args!("{stem} reads a file that is broken")).action("see `nightmarket check` and correct that file first")
        );
    }
    match wrong.is_empty() {
        true => select::one(&checked.catalog, file).cloned(),
        false => refuse(&wrong, output),
    }
}

pub fn refuse<T>(wrong: &[Diagnostic], output: Output) -> Result<T> {
    print(output, wrong, || rendered(wrong))?;
    let errors = wrong.iter().filter(|found| found.severity == Severity::Error).count();
    Err(Error::usage(format_args!("{} to correct", plural(errors, "error"))))
}

pub fn rendered(found: &[Diagnostic]) -> String {
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    found.iter().map(|found| found.render(colour)).collect::<Vec<_>>().join("\n\n")
}

pub fn plural(n: usize, noun: &str) -> String {
    if n == 1 { format!("1 {noun}") } else { format!("{n} {noun}s") }
}

// -------------------------------------------------------------------------------------------------------------------- list, show

async fn list(which: &Which, output: Output) -> Result<()> {
    let shop = which.shop()?;
    let checked = checked(&shop).await?;
    let chosen = select::select(&checked.catalog, &which.selectors, which.modified(&shop, &checked.catalog).await?.as_ref())?;
    let tables: Vec<&Planned> = checked.tables.iter().filter(|table| chosen.contains(&table.name)).collect();
    print(output, &tables, || match tables.is_empty() {
        true => "no table is selected".to_owned(),
        false => tables.iter().map(|table| described(table)).collect::<Vec<_>>().join("\n\n"),
    })
}

fn described(table: &Planned) -> String {
    let listed = |names: &BTreeSet<String>| {
        if names.is_empty() { "nobody".to_owned() } else { names.iter().cloned().collect::<Vec<_>>().join(", ") }
    };
    let tags = if table.tags.is_empty() { String::new() } else { format!("  tags: {}", listed(&table.tags)) };
    let untested = if table.tested { "" } else { "  no test" };
    let column =
        |column: &workbench::Column| vec![format!("  {}", column.name), column.kind.clone(), column.comment.clone().unwrap_or_default()];
    let columns: Vec<Vec<String>> = table.columns.iter().map(column).collect();
    format!(
        "{}  one row a {}  owner: {}{tags}{untested}\n  {}\n  {}\n  reads {}; read by {}\n{}",
        table.name,
        table.grain.join(", "),
        table.owner.as_deref().unwrap_or("nobody"),
        table.description,
        table.path.display(),
        listed(&table.reads),
        listed(&table.read_by),
        text::aligned(&columns, &[])
    )
}

async fn show(file: &str, plan: bool, at: &At, output: Output) -> Result<()> {
    let shop = at.shop.folder(Some(file))?;
    let checked = workbench::check(&shop).await?;
    let query = own(file, &checked, output)?;
    let table = checked.table(&query.name).expect("it is planned");
    if !plan {
        #[derive(serde::Serialize)]
        struct Shown<'a> {
            #[serde(flatten)]
            table: &'a Planned,
            sql: &'a str,
        }
        return print(output, &Shown { table, sql: &query.sql }, || {
            let from = |column: &workbench::Column| {
                let listed = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
                vec![format!("  {}", column.name), format!("<- {}", listed(&column.from)), format!("-> {}", listed(&column.used_by))]
            };
            let lines: Vec<Vec<String>> = table.columns.iter().map(from).collect();
            let rows = table.rows_by.iter().cloned().collect::<Vec<_>>().join(", ");
            format!(
                "{}\n\nmade of, and used by\n{}\n  its rows: {rows}\n\n{}",
                described(table),
                text::aligned(&lines, &[]),
                query.sql.trim_end()
            )
        });
    }
    let plans = match &at.as_of {
        Some(_) => {
            let desk = at.desk(&shop, &checked.catalog).await?;
            let context = tables::open(&desk, query.reads.iter().map(String::as_str)).await?;
            workbench::plans(&context, &query, desk.run.as_of()).await?
        }
        None => workbench::plans_without_rows(&checked, &query).await?,
    };
    print(output, &plans, || plans.iter().map(|(name, plan)| format!("{name}\n{plan}")).collect::<Vec<_>>().join("\n\n"))
}

// -------------------------------------------------------------------------------------------------------------------------- test

async fn test(which: &Which, bless: bool, output: Output) -> Result<()> {
    let shop = which.shop()?;
    let modified = match select::asks_for_modified(&which.selectors) {
        true => which.modified(&shop, &workbench::check(&shop).await?.catalog).await?,
        false => None,
    };
    let tested = workbench::test(&shop, &which.selectors, modified.as_ref(), bless).await?;
    let failed: Vec<_> = tested.iter().filter_map(|test| Some((test, test.failure.as_ref()?))).collect();
    print(output, &tested, || {
        let mut text = String::new();
        for (test, failure) in &failed {
            text += &format!("{}\n{failure}\n\n", test.file.display());
        }
        for test in tested.iter().filter(|test| test.blessed) {
            text += &format!("{}: other answers written; read the diff\n", test.file.display());
        }
        text + &format!("{}, {} failed", plural(tested.len(), "file"), failed.len())
    })?;
    match failed.as_slice() {
        [] => Ok(()),
        failed => Err(Error::contract(format_args!("{} failed, the first {}", plural(failed.len(), "test"), failed[0].0.file.display()))
            .action("correct the query or its test")),
    }
}

pub fn job_files() -> Result<Vec<PathBuf>> {
    let mut jobs = std::fs::read_dir("jobs")
        .map_err(|error| {
            Error::usage(format_args!("reading jobs/: {error}")).action("run in the project's folder, or name the job's spec")
        })?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<Vec<_>>>()?;
    jobs.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    jobs.sort();
    Ok(jobs)
}

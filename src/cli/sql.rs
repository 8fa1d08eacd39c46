//! `nightmarket check` and `nightmarket sql …`: the analyst's commands.

use super::{JobDate, Output, open, print};
use crate::error::{Error, Result};
use crate::platform::catalog::Catalog;
use crate::spec::Spec;
use crate::workbench;
use arrow::util::pretty::pretty_format_batches;
use clap::Subcommand;
use std::path::{Path, PathBuf};

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

pub async fn run(command: Sql, output: Output) -> Result<()> {
    match command {
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
    }
}

/// Plans every spec and query of the jobs; of all jobs when none is named.
pub async fn check(jobs: &[PathBuf], output: Output) -> Result<()> {
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

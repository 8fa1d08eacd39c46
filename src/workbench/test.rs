//! The tests of the queries: the `.slt` file beside each `.sql`, rows in and the answer out.
//!
//! A test that passes also shows that the header's grain is the key of the answer.

use crate::error::{Context, Error, Kind, Result};
use crate::platform::catalog::Query;
use crate::platform::engine;
use crate::platform::survey::{ROOMS, load_file};
use crate::workbench::check::raw_schema;
use crate::workbench::preview::rows_of_no_key;
use crate::workbench::select::{Node, select_nodes};
use crate::workbench::text::cells;
use chrono::{DateTime, Utc};
use datafusion::prelude::SessionContext;
use serde::Serialize;
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// How one `.slt` file went.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Tested {
    pub file: PathBuf,
    pub failure: Option<String>,
    /// `--bless` wrote other answers into it.
    pub blessed: bool,
}

/// Runs the `.slt` files of the tables that are selected. With `bless`, answers are filled in instead.
pub async fn test(folder: &Path, selectors: &[String], modified: Option<&BTreeSet<String>>, bless: bool) -> Result<Vec<Tested>> {
    let mut files: Vec<TestFile> = Vec::new();
    for room in ROOMS {
        let Ok(entries) = std::fs::read_dir(folder.join(room)) else { continue };
        let mut paths = entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "slt"));
        paths.sort();
        files.extend(paths.into_iter().map(TestFile::of));
    }
    let none = BTreeSet::new();
    let nodes: Vec<Node<'_>> = files.iter().map(|file| file.node(&none)).collect();
    let chosen = select_nodes(&nodes, selectors, modified)?;
    let mut tested = Vec::new();
    for TestFile { name, path, query } in files {
        if !chosen.contains(&name) {
            continue;
        }
        let before = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let failure = match query {
            Ok(query) => run_file(&path, query, bless).await.err().map(|error| error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        let blessed = bless && std::fs::read(&path).with_context(|| path.display().to_string())? != before;
        tested.push(Tested { file: path, failure, blessed });
    }
    Ok(tested)
}

struct TestFile {
    name: String,
    path: PathBuf,
    query: Result<Query>,
}

impl TestFile {
    fn of(path: PathBuf) -> Self {
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        Self { name, query: load_file(&path.with_extension("sql")), path }
    }

    fn node<'a>(&'a self, none: &'a BTreeSet<String>) -> Node<'a> {
        let query = self.query.as_ref().ok();
        let (tags, reads) = (query.map_or(none, |query| &query.tags), query.map_or(none, |query| &query.reads));
        Node { name: &self.name, path: &self.path, tags, reads }
    }
}

async fn run_file(file: &Path, query: Query, bless: bool) -> Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let as_of = match text.lines().find_map(|line| line.strip_prefix("# as_of:")) {
        Some(date) => date.trim().parse().map_err(|error| {
            Error::usage(format_args!("{}: as_of: {error}", file.display())).action("write it as `# as_of: 2026-11-23T00:00:00Z`")
        })?,
        None => DateTime::UNIX_EPOCH,
    };
    let mut runner = Runner::new(|| {
        let query = query.clone();
        async move {
            let context = engine::session(&engine::Settings { threads: 1, ..engine::Settings::default() })?;
            raw_schema(&context);
            Ok(Bench { context, query, as_of, judged: false })
        }
    });
    if bless {
        let normalizer = sqllogictest::default_normalizer;
        let blessed =
            runner.update_test_file(file, " ", sqllogictest::default_validator, normalizer, sqllogictest::default_column_validator).await;
        return blessed.map_err(|error| Error::contract(format_args!("{}: {error}", file.display())));
    }
    runner
        .run_file_async(file)
        .await
        .map_err(|error| Error::contract(error).action("correct the query or, if the answer is right, run with --bless"))
}

/// A session in which the tested file's query stands under its own name as soon as its inputs exist.
struct Bench {
    context: SessionContext,
    query: Query,
    as_of: DateTime<Utc>,
    /// The grain was looked at since the inputs last changed.
    judged: bool,
}

#[async_trait::async_trait]
impl AsyncDB for Bench {
    type Error = Error;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>> {
        let creates = sql.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("create"));
        if creates {
            self.context.sql(sql).await?.collect().await?;
            self.judged = false;
            return Ok(DBOutput::StatementComplete(0));
        }
        // Anew for each question: an input may have been added since.
        let frame = engine::plan(&self.context, &self.query, self.as_of).await?;
        self.context.deregister_table(self.query.name.as_str())?;
        self.context.register_table(self.query.name.as_str(), frame.into_view())?;
        self.judge().await?;
        let rows = engine::collect(engine::plan_sql(&self.context, sql, self.as_of).await?).await?;
        Ok(DBOutput::Rows { types: vec![DefaultColumnType::Any; rows.num_columns()], rows: cells(&rows)? })
    }

    async fn shutdown(&mut self) {}
}

impl Bench {
    /// A grain that the answer does not have is a wrong answer, whatever the test asks.
    async fn judge(&mut self) -> Result<()> {
        if self.judged {
            return Ok(());
        }
        let grain = self.query.grain.join(", ");
        match rows_of_no_key(&self.context, &self.query.name, &self.query.grain).await? {
            0 => self.judged = true,
            rows => {
                return Err(Error::new(
                    Kind::Contract,
                    format_args!(
                        "the header of {} says one row a {grain}, but {rows} rows of the test share theirs",
                        self.query.path.display()
                    ),
                ));
            }
        }
        Ok(())
    }
}

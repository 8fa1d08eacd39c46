//! The table that serves as views of an analyst's engine: DuckDB, Trino or Spark read the published Parquet files where they lie.
//!
//! DuckDB reads the newest commit each time its script runs. Trino and Spark are told the folder of the generation that serves now: its
//! files never change, and the script is made again after a night.

use crate::error::{Error, Result};
use crate::platform::engine;
use crate::platform::storage::Store;
use crate::platform::table;
use crate::publish::{Commit, choose};
use arrow::datatypes::{DataType, Schema};
use std::fmt::Write;

/// An engine that reads Parquet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dialect {
    /// Reads whatever serves when the script runs.
    Duckdb,
    /// External tables of the Hive connector and views over them.
    Trino,
    /// Temporary views.
    Spark,
}

/// The published tables.
const TABLES: [&str; 4] = ["segments", "user_segments", "segment_ads", "shadow_ads"];

/// Reads the views in every dialect: what the champions of the widest segments are shown. `no_ad` is the share that sees nothing.
const READY: &str = "\
-- What the widest segments are shown: users counts whom a segment serves, propensity is an ad's share of their opportunities.
SELECT s.segment_id, s.label, u.users, a.ad_id, a.propensity, a.value, a.frequency_cap
FROM segment_ads AS a
JOIN segments AS s ON s.segment_id = a.segment_id
JOIN (SELECT segment_id, COUNT(*) AS users FROM user_segments WHERE rank = 1 GROUP BY segment_id) AS u ON u.segment_id = a.segment_id
WHERE a.arm = 'champion'
ORDER BY u.users DESC, s.segment_id, a.propensity DESC, a.ad_id
LIMIT 50;
";

/// A script that makes the published tables known to an engine, and a query to begin with.
///
/// # Errors
/// `Usage` when nothing was ever published; `Internal` when a file is not the one committed.
pub async fn ddl(output: &Store, dialect: Dialect) -> Result<String> {
    let (commit, tables) = choose(output, None).await?;
    let mut script = format!("-- {}, generation {}, {}\n", commit.policy_version, commit.generation, commit.run_date);
    match dialect {
        Dialect::Duckdb => script += &duckdb(&address(output, dialect)),
        Dialect::Spark => script += &spark(&address(&tables, dialect)),
        Dialect::Trino => {
            let context = engine::session(&engine::Settings::default())?;
            for name in TABLES {
                let rows = table::open(&context, tables.locate(&format!("{name}.parquet")).as_str()).await?;
                script += &trino(name, rows.schema().as_arrow(), &commit, &address(&tables, dialect))?;
            }
        }
    }
    Ok(script + "\n" + READY)
}

/// Where an engine finds a store's folder, without a slash at its end.
fn address(store: &Store, dialect: Dialect) -> String {
    let url = store.locate("");
    let text = match (url.to_file_path(), dialect) {
        (Ok(path), Dialect::Duckdb) => path.display().to_string(),
        _ => match url.as_str().strip_prefix("s3://") {
            Some(rest) if dialect == Dialect::Spark => format!("s3a://{rest}"),
            _ => url.to_string(),
        },
    };
    escaped(text.trim_end_matches('/'))
}

/// Within quotes of SQL.
fn escaped(text: &str) -> String {
    text.replace('\'', "''")
}

fn duckdb(root: &str) -> String {
    let mut script = format!(
        "-- Views of the table that serves when this runs.\n\
         SET VARIABLE served = (SELECT '{root}/' || tables FROM read_json('{root}/targeting/_commits/*.json') ORDER BY generation DESC LIMIT 1);\n"
    );
    for name in TABLES {
        let _ = writeln!(
            script,
            "CREATE OR REPLACE TEMPORARY VIEW {name} AS SELECT * FROM read_parquet(getvariable('served') || '/{name}.parquet', \
             hive_partitioning = false);"
        );
    }
    script
}

fn spark(folder: &str) -> String {
    let mut script = "-- Views of this generation: make them again after the next night.\n".to_owned();
    for name in TABLES {
        let _ = writeln!(script, "CREATE OR REPLACE TEMPORARY VIEW {name} USING parquet OPTIONS (path '{folder}/{name}.parquet');");
    }
    script
}

/// The Hive connector knows folders, not files: a table of the whole folder, and a view of the file.
fn trino(name: &str, schema: &Schema, commit: &Commit, folder: &str) -> Result<String> {
    let mut columns = Vec::new();
    for field in schema.fields() {
        columns.push((
            field.name(),
            trino_type(field.data_type()).ok_or_else(|| {
                Error::internal(format_args!("{name}.{} is a {}, which Trino's files do not have", field.name(), field.data_type()))
            })?,
        ));
    }
    let declared: Vec<String> = columns.iter().map(|(column, kind)| format!("{column} {kind}")).collect();
    let named: Vec<&str> = columns.iter().map(|(column, _)| column.as_str()).collect();
    Ok(format!(
        "-- In a schema of the Hive connector, with hive.parquet.use-column-names; generation {} until this is made again.\n\
         DROP TABLE IF EXISTS {name}_files;\n\
         CREATE TABLE {name}_files ({})\n  WITH (external_location = '{folder}', format = 'PARQUET');\n\
         CREATE OR REPLACE VIEW {name} AS SELECT {} FROM {name}_files WHERE \"$path\" LIKE '%/{name}.parquet';\n",
        commit.generation,
        declared.join(", "),
        named.join(", "),
    ))
}

fn trino_type(kind: &DataType) -> Option<&'static str> {
    Some(match kind {
        DataType::Utf8 | DataType::Utf8View | DataType::LargeUtf8 => "varchar",
        DataType::Float64 => "double",
        DataType::Int64 => "bigint",
        DataType::Int32 => "integer",
        DataType::Boolean => "boolean",
        DataType::Date32 => "date",
        DataType::Timestamp(..) => "timestamp(6)",
        _ => return None,
    })
}

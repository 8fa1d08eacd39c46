//! `nightmarket train` on rows that stay in their files: the same model as of rows in memory, within noise; the same bytes each time.

use crate::train::{MODEL, csv, folder, run, spec};
use arrow::csv::ReaderBuilder;
use arrow::csv::reader::Format;
use nightmarket::error::Kind;
use nightmarket::platform::storage::Store;
use nightmarket::train::{TrainFacts, train};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// The rows of that CSV as Parquet, in row groups much smaller than a block.
fn as_parquet(text: &str, path: &Path) {
    let schema = Arc::new(Format::default().with_header(true).infer_schema(Cursor::new(text), None).expect("a schema").0);
    let reader = ReaderBuilder::new(schema.clone()).with_header(true).build(Cursor::new(text)).expect("a reader");
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(1500)).build();
    let mut writer = ArrowWriter::try_new(File::create(path).expect("a file"), schema, Some(properties)).expect("a writer");
    reader.for_each(|rows| writer.write(&rows.expect("rows")).expect("written"));
    writer.close().expect("closed");
}

/// `train.parquet` and `train.csv` with the same rows, in the order of their days, and a test.
fn tables(rows: usize) -> TempDir {
    let text = csv(rows, 1);
    let folder = folder(&[("test.csv", csv(4000, 3))]);
    as_parquet(&text, &folder.path().join("train.parquet"));
    std::fs::write(folder.path().join("train.csv"), text).expect("written");
    folder
}

fn on(train: &str, data: &str) -> String {
    let columns = "[columns]\nlabel = \"label\"\ncategorical = [\"user\", \"item\"]\nexclude = [\"day\"]\n";
    let data = format!("[data]\ntrain = \"DIR/{train}\"\ntest = \"DIR/test.csv\"\nbuffer_rows = 6000\n{data}\n");
    format!("{data}{columns}{MODEL}").replace("epochs = 6", "epochs = 3")
}

fn logloss(facts: &TrainFacts, model: &str) -> f64 {
    let split = if model == "network" { &facts.network.mean["test"] } else { &facts.baseline["test"] };
    split.logloss.expect("a loss")
}

fn was_streamed(facts: &TrainFacts) -> bool {
    facts.notes.iter().any(|note| note.contains("streamed"))
}

#[test]
fn streamed_rows_teach_what_rows_in_memory_teach() {
    let folder = tables(20_000);
    let resident = run(&folder, &on("train.parquet", "streaming = false"), 1).expect("it trains");
    assert!(!was_streamed(&resident));
    for train in ["train.parquet", "train.csv"] {
        let streamed = run(&folder, &on(train, "streaming = true"), 1).expect("it trains");
        assert!(was_streamed(&streamed), "{:?}", streamed.notes);
        assert_eq!(streamed.rows, resident.rows, "the same tenth validates");
        assert_eq!(streamed.vocabularies, resident.vocabularies);
        assert_eq!((&streamed.features, streamed.parameters), (&resident.features, resident.parameters));
        // All rows are in the sample, so that the baseline is the same one.
        assert_eq!(logloss(&streamed, "baseline"), logloss(&resident, "baseline"));
        let (network, expected) = (logloss(&streamed, "network"), logloss(&resident, "network"));
        assert!((network - expected).abs() < 0.01, "{train}: {network}, in memory {expected}");
        assert!(network < logloss(&streamed, "baseline") - 0.05, "{network}");
        assert_eq!(streamed.network.seeds[0].curve.len(), 3);
    }
}

#[test]
fn a_repeated_run_writes_the_same_bytes_whatever_the_threads_that_read() {
    let folder = tables(12_000);
    let written = |name: &str, workers: usize| -> BTreeMap<String, Vec<u8>> {
        let out = folder.path().join(name);
        let store = Store::open(&out.display().to_string()).expect("a store");
        let spec = spec(&folder, &on("train.parquet", "streaming = true").replace("epochs = 3", "epochs = 2"));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().expect("a runtime");
        runtime.block_on(train(&spec, 1, Some(&store))).expect("it trains");
        let files = ["network/weights.safetensors", "network/model.json", "baseline/weights.safetensors", "scores_test.parquet"];
        files.map(|file| (file.to_owned(), std::fs::read(out.join(file)).expect("a file"))).into()
    };
    let first = written("first", 1);
    assert!(first == written("second", 3), "the bytes differ");
}

#[test]
fn rows_are_streamed_when_their_matrix_would_pass_the_memory() {
    let folder = tables(60_000);
    // 60,000 rows of two ids, a number, its flag and its bin.
    let once = |memory: usize| {
        let text = on("train.parquet", &format!("memory_mib = {memory}"));
        run(&folder, &text.replace("epochs = 3", "epochs = 1").replace("batch_size = 128", "batch_size = 1024"), 1).expect("it trains")
    };
    assert!(was_streamed(&once(1)) && !was_streamed(&once(2)));
}

#[test]
fn one_table_is_split_while_it_streams() {
    let folder = tables(9000);
    let table = |split: &str, streaming: bool| {
        let columns = "label = \"label\"\ncategorical = [\"user\", \"item\"]\n";
        let data = format!("[data]\ntable = \"DIR/train.parquet\"\nstreaming = {streaming}\nbuffer_rows = 2000\n[data.split]\n{split}\n");
        run(&folder, &format!("{data}[columns]\n{columns}{MODEL}").replace("epochs = 6", "epochs = 1"), 1)
    };
    for split in ["column = \"day\"\nvalid_from = \"2026-03-21\"\ntest_from = \"2026-03-26\"", "shares = [0.7, 0.15, 0.15]"] {
        let (streamed, resident) = (table(split, true).expect("it trains"), table(split, false).expect("it trains"));
        assert!(was_streamed(&streamed));
        assert_eq!(streamed.rows, resident.rows, "{split}");
        assert_eq!(streamed.baseline["test"].auc, resident.baseline["test"].auc, "{split}");
    }
    let error = table("column = \"day\"\nshares = [0.8, 0.1, 0.1]", true).expect_err("refused");
    assert!(error.kind == Kind::Usage && error.next_action().contains("valid_from"), "{error}");
}

#[test]
fn what_needs_the_rows_in_memory_is_refused_by_name() {
    let folder = tables(3000);
    let article = on("train.parquet", "streaming = true").replace("[model]\n", "[model]\narchitecture = \"article\"\n");
    let error = run(&folder, &article, 1).expect_err("refused");
    assert!(error.kind == Kind::Usage && error.to_string().contains("article") && error.next_action().contains("memory_mib"), "{error}");
    for wrong in ["buffer_rows", "memory_mib"] {
        let text = on("train.parquet", "").replace("buffer_rows = 6000", &format!("{wrong} = 0"));
        let error = run(&folder, &text, 1).expect_err("refused");
        assert!(error.kind == Kind::Usage && error.to_string().contains(wrong), "{error}");
    }
    let broken = folder.path().join("broken.parquet");
    std::fs::write(&broken, "this is no table").expect("written");
    let error = run(&folder, &on("broken.parquet", "streaming = true"), 1).expect_err("refused");
    assert!(error.kind == Kind::Contract && error.to_string().contains("broken.parquet"), "{error}");
}

#[test]
fn a_label_that_is_none_is_named_while_the_rows_stream() {
    let folder = tables(3000);
    let text = csv(3000, 1).replacen("\n1,", "\nmaybe,", 1);
    std::fs::write(folder.path().join("train.csv"), text).expect("written");
    let error = run(&folder, &on("train.csv", "streaming = true"), 1).expect_err("refused");
    assert!(error.kind == Kind::Contract && error.to_string().contains("maybe"), "{error}");
}

//! `nightmarket train` on made-up tables: what it reads, how it splits, what it prints, what it refuses.

use crate::shop::block_on;
use arrow::array::{ArrayRef, Int64Array, ListBuilder, RecordBatch, StringBuilder};
use nightmarket::error::{Error, Kind};
use nightmarket::model::{Artifact, Response};
use nightmarket::platform::storage::{Store, parquet_bytes};
use nightmarket::train::{TrainFacts, TrainSpec, train};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// `label,user,item,price,day`: a user of an odd number likes items of an odd number, others the rest, and a price near 5 helps
/// either. No line through these columns tells the classes apart.
pub fn csv(rows: usize, seed: u64) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut text = "label,user,item,price,day\n".to_owned();
    for row in 0..rows {
        let (user, item): (u32, u32) = (rng.random_range(0..40), rng.random_range(100..130));
        let price: f64 = rng.random_range(0.0..10.0);
        let logit = if user % 2 == item % 2 { 1.0 } else { -2.0 } + if (price - 5.0).abs() < 2.0 { 1.5 } else { -0.5 };
        let label = u8::from(rng.random_bool(1.0 / (1.0 + f64::exp(-logit))));
        writeln!(text, "{label},{user},{item},{price:.3},2026-03-{:02}", 1 + row * 30 / rows).expect("a string takes any text");
    }
    text
}

pub const MODEL: &str =
    "[model]\nhidden = [32, 16]\nbatch_size = 128\nlearning_rate = 0.005\nepochs = 6\nembedding_l2 = 1e-4\nthreads = 1\n";

/// A folder with files and a spec.
pub fn folder(files: &[(&str, String)]) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    files.iter().for_each(|(name, text)| std::fs::write(folder.path().join(name), text).expect("written"));
    folder
}

pub fn spec(folder: &TempDir, text: &str) -> TrainSpec {
    let path = folder.path().join("spec.toml");
    std::fs::write(&path, text.replace("DIR", &folder.path().display().to_string())).expect("written");
    TrainSpec::read(&path).unwrap_or_else(|error| panic!("{error}"))
}

pub fn run(folder: &TempDir, text: &str, seeds: u64) -> Result<TrainFacts, Error> {
    block_on(train(&spec(folder, text), seeds, None))
}

pub fn refused(folder: &TempDir, text: &str) -> Error {
    run(folder, text, 1).expect_err("it must be refused")
}

fn three_files() -> TempDir {
    folder(&[("train.csv", csv(6000, 1)), ("valid.csv", csv(2000, 2)), ("test.csv", csv(2000, 3))])
}

fn on_files(columns: &str) -> String {
    let data = "[data]\ntrain = \"DIR/train.csv\"\nvalid = \"DIR/valid.csv\"\ntest = \"DIR/test.csv\"\n";
    format!(
        "{data}[columns]\nlabel = \"label\"\ngroup = \"user\"\ncategorical = [\"user\", \"item\"]\nexclude = [\"day\"]\n{columns}{MODEL}"
    )
}

#[test]
fn the_network_beats_the_baseline_on_declared_integer_ids_and_the_facts_are_as_promised() {
    let folder = three_files();
    let out = folder.path().join("out");
    let store = Store::open(&out.display().to_string()).expect("a store");
    let facts = block_on(train(&spec(&folder, &on_files("")), 2, Some(&store))).expect("it trains");
    let json = serde_json::to_value(&facts).expect("JSON");
    let number = |path: &str| json.pointer(path).unwrap_or_else(|| panic!("{path}: {json:#}")).as_f64().expect("a number");
    for split in ["valid", "test"] {
        for metric in ["auc", "logloss", "gauc", "ne", "calibration"] {
            number(&format!("/network/mean/{split}/{metric}"));
            number(&format!("/network/spread/{split}/{metric}"));
            number(&format!("/network/seeds/1/{split}/{metric}"));
            number(&format!("/baseline/{split}/{metric}"));
        }
    }
    let (network, baseline) = (number("/network/mean/test/auc"), number("/baseline/test/auc"));
    assert!(network > 0.80 && network > baseline + 0.1, "network {network}, baseline {baseline}");
    assert!((0.9..1.1).contains(&number("/network/mean/test/calibration")));
    assert!(number("/network/epochs") >= 1.0 && number("/network/samples_per_second") > 0.0 && number("/peak_memory_mib") > 0.0);
    assert_eq!(facts.vocabularies["user"], 40, "{:?}", facts.vocabularies);
    assert_eq!(facts.rows["test"].0, 2000);

    let of = |name: &str| std::fs::read(out.join("network").join(name)).expect("a file of the artefact");
    let files = ["weights.safetensors", "model.json", "artifact.json"].map(|name| (name.to_owned(), of(name).into()));
    let artifact = Artifact::from_files(&BTreeMap::from(files)).expect("an artefact that loads");
    Response::from_artifact(&artifact).expect("a response model");
    assert!(out.join("scores_test.parquet").exists() && out.join("metrics.json").exists());
}

#[test]
fn the_same_spec_gives_the_same_metrics_and_another_seed_others() {
    let folder = three_files();
    let once = |seed: u64| {
        let facts = run(&folder, &format!("seed = {seed}\n{}", on_files("").replace("epochs = 6", "epochs = 1")), 1).expect("it trains");
        serde_json::to_string(&(facts.network.mean, facts.network.seeds[0].curve.clone())).expect("JSON")
    };
    assert_eq!(once(1), once(1));
    assert_ne!(once(1), once(2));
}

#[test]
fn every_architecture_learns_what_the_baseline_cannot() {
    let folder = three_files();
    for architecture in ["final_net", "dcn_v2", "deep"] {
        let facts = run(&folder, &on_files("").replace("[model]\n", &format!("[model]\narchitecture = \"{architecture}\"\n")), 1);
        let auc = facts.expect("it trains").network.mean["test"].auc.expect("both classes");
        assert!(auc > 0.78, "{architecture}: AUC {auc}");
    }
}

#[test]
fn a_cosine_takes_every_epoch_down_to_nothing_and_an_average_of_the_weights_learns_too() {
    let folder = three_files();
    let once = |model: &str| run(&folder, &format!("{}{model}", on_files("")), 1).expect("it trains");
    let auc = |facts: &TrainFacts| facts.network.mean["test"].auc.expect("both classes");
    let cosine = once("schedule = \"cosine\"\n");
    let rates: Vec<f64> = cosine.network.seeds[0].curve.iter().map(|epoch| epoch.learning_rate).collect();
    assert!(rates.len() == 6 && rates.windows(2).all(|two| two[1] < two[0]) && rates[5] < 1e-3 * rates[0], "{rates:?}");
    assert!(auc(&cosine) > 0.75, "AUC {}", auc(&cosine));
    let (averaged, again) = (once("ema = 0.98\n"), once("ema = 0.98\n"));
    assert!(auc(&averaged) > 0.75, "AUC {}", auc(&averaged));
    assert_eq!(auc(&averaged), auc(&again));
    assert_ne!(averaged.network.seeds[0].curve, once("").network.seeds[0].curve);
}

#[test]
fn one_table_is_split_by_date_by_shares_of_time_or_by_hash() {
    let folder = folder(&[("all.csv", csv(3000, 4))]);
    let table = |split: &str| {
        let columns = "label = \"label\"\ncategorical = [\"user\", \"item\"]\n";
        let data = format!("[data]\ntable = \"DIR/all.csv\"\n[data.split]\n{split}\n[columns]\n{columns}{MODEL}");
        run(&folder, &data.replace("epochs = 6", "epochs = 1"), 1)
    };
    let rows = |facts: &TrainFacts| ["train", "valid", "test"].map(|split| facts.rows.get(split).map_or(0, |rows| rows.0));
    let by_date = table("column = \"day\"\nvalid_from = \"2026-03-21\"\ntest_from = \"2026-03-26\"").expect("it trains");
    assert_eq!(rows(&by_date), [2000, 500, 500]);
    assert!(!by_date.features.contains(&"day".to_owned()), "the split's column is no feature");
    assert_eq!(rows(&table("column = \"day\"\nshares = [0.8, 0.1, 0.1]").expect("it trains")), [2400, 300, 300]);
    let by_hash = rows(&table("shares = [0.7, 0.15, 0.15]").expect("it trains"));
    assert!(by_hash.iter().sum::<usize>() == 3000 && by_hash[0].abs_diff(2100) < 120 && by_hash[1].abs_diff(450) < 80, "{by_hash:?}");
    assert_eq!(table("column = \"day\"").expect_err("refused").kind, Kind::Usage);
}

/// An ad is clicked when its category is among those the user saw.
fn histories(rows: usize, seed: u64) -> RecordBatch {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut seen = ListBuilder::new(StringBuilder::new());
    let (mut category, mut label) = (Vec::new(), Vec::new());
    for _ in 0..rows {
        let of: i64 = rng.random_range(0..12);
        let past: Vec<i64> = (0..5).map(|_| rng.random_range(0..12)).collect();
        label.push(i64::from(rng.random_bool(if past.contains(&of) { 0.8 } else { 0.15 })));
        seen.append_value(past.iter().map(|id| Some(id.to_string())));
        category.push(of);
    }
    let columns: [(&str, ArrayRef); 3] = [
        ("category_id", Arc::new(Int64Array::from(category))),
        ("categories", Arc::new(seen.finish())),
        ("bought", Arc::new(Int64Array::from(label))),
    ];
    RecordBatch::try_from_iter(columns).expect("columns of one length")
}

#[test]
fn parquet_with_lists_trains_with_attention_and_without() {
    let folder = TempDir::new().expect("a temporary folder");
    for (name, rows, seed) in [("train", 4000, 1), ("test", 1500, 2)] {
        let table = histories(rows, seed);
        std::fs::write(folder.path().join(format!("{name}.parquet")), parquet_bytes(table.schema(), &[table]).expect("Parquet"))
            .expect("written");
    }
    for attention in [false, true] {
        let data = "[data]\ntrain = \"DIR/train.parquet\"\ntest = \"DIR/test.parquet\"\n[columns]\nlabel = \"bought\"\n";
        let facts = run(&folder, &format!("{data}{MODEL}attention = {attention}\n"), 1).expect("it trains");
        assert_eq!(facts.rows["train"].0 + facts.rows["valid"].0, 4000, "a part of the training rows validates");
        let auc = facts.network.mean["test"].auc.expect("both classes");
        assert!(auc > 0.78, "attention = {attention}: AUC {auc}");
    }
}

/// A title names a shoe or a phone; who buys wants shoes. No other column says anything.
fn titles(rows: usize, seed: u64) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut text = "label,title,noise\n".to_owned();
    for _ in 0..rows {
        let shoe = rng.random_bool(0.5);
        let kind = if shoe { ["red shoes", "running shoe", "新鞋"] } else { ["手机", "phone (new)", "a 5.5 phone"] };
        let title = format!("{} {}", kind[rng.random_range(0..3)], rng.random_range(0..8));
        let label = u8::from(rng.random_bool(if shoe { 0.8 } else { 0.2 }));
        writeln!(text, "{label},{title},{:.3}", rng.random_range(0.0..1.0)).expect("a string takes any text");
    }
    text
}

#[test]
fn the_vectors_of_a_pretrained_encoder_are_inputs_of_both_models() {
    let folder = folder(&[("train.csv", titles(3000, 1)), ("test.csv", titles(1000, 2))]);
    let data = "[data]\ntrain = \"DIR/train.csv\"\ntest = \"DIR/test.csv\"\n";
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/text_encoder/tiny");
    let on = |encoder: &str, data: &str| {
        let columns = format!("[columns]\nlabel = \"label\"\ntext = [\"title\"]\n{encoder}");
        run(&folder, &format!("{data}{columns}{MODEL}").replace("epochs = 6", "epochs = 2"), 1)
    };
    let encoder = format!("encoder = \"{}\"\n", tiny.display());
    let auc = |facts: &TrainFacts| (facts.network.mean["test"].auc.expect("both"), facts.baseline["test"].auc.expect("both"));
    let (without, with) = (on("", data).expect("it trains"), on(&encoder, data).expect("it trains"));
    assert!(auc(&without).1 < 0.6, "the baseline reads no text: {:?}", auc(&without));
    assert!(auc(&with).1 > 0.75 && auc(&with).0 > 0.75, "{:?}", auc(&with));
    assert_eq!(with.features, ["title", "noise", "title.vector"]);
    let streamed = on(&encoder, &format!("{data}streaming = true\nbuffer_rows = 1000\n")).expect("it trains");
    assert!((auc(&streamed).0 - auc(&with).0).abs() < 0.02, "{:?} {:?}", auc(&streamed), auc(&with));

    let error = on("encoder = \"DIR/nowhere\"\n", data).expect_err("refused");
    assert!(error.kind == Kind::Usage && error.to_string().contains("nowhere"), "{error}");
    let error = refused(&folder, &format!("{data}[columns]\nlabel = \"label\"\n{encoder}{MODEL}"));
    assert!(error.kind == Kind::Usage && error.next_action().contains("text"), "{error}");
}

#[test]
fn labels_are_read_as_the_spec_says() {
    let label = |cells: [&str; 2], columns: &str| {
        let text = csv(400, 5).lines().enumerate().fold(String::new(), |text, (i, line)| {
            let (label, rest) = line.split_once(',').expect("columns");
            let label = if i == 0 { label } else { cells[usize::from(label == "1")] };
            text + label + "," + rest + "\n"
        });
        let folder = folder(&[("train.csv", text)]);
        let data = format!("[data]\ntrain = \"DIR/train.csv\"\n[columns]\nlabel = \"label\"\n{columns}{MODEL}");
        run(&folder, &data.replace("epochs = 6", "epochs = 1"), 1).map(|facts| facts.rows["train"].1)
    };
    let rate = label(["0", "1"], "").expect("it trains");
    assert!((0.3..0.7).contains(&rate));
    for (cells, columns) in [
        (["no", "yes"], ""),
        (["0.0", "1.0"], ""),
        (["2", "4"], "at_least = 3.5\n"),
        (["none", "bought"], "positive = \"bought\"\n"),
        (["-1", "1"], "positive = 1\n"),
    ] {
        assert_eq!(label(cells, columns).unwrap_or_else(|error| panic!("{cells:?}: {error}")), rate, "{cells:?}");
    }
    let error = label(["none", "bought"], "").expect_err("refused");
    assert!(error.kind == Kind::Contract && error.to_string().contains("none") && error.next_action().contains("positive"), "{error}");
}

#[test]
fn what_is_wrong_is_named() {
    let folder = three_files();
    let error = refused(&folder, &on_files("").replace("DIR/train.csv", "DIR/nothing.csv"));
    assert!(error.kind == Kind::InputMissing && error.to_string().contains("nothing.csv"), "{error}");
    let error = refused(&folder, &on_files("").replace("label = \"label\"", "label = \"clicked\""));
    assert!(error.kind == Kind::Contract && error.to_string().contains("clicked") && error.to_string().contains("price"), "{error}");
    let error = refused(&folder, &on_files("").replace("\"item\"]", "\"item\", \"shop\"]"));
    assert!(error.kind == Kind::Contract && error.to_string().contains("shop"), "{error}");
    let error = refused(&folder, &on_files("").replace("exclude = [\"day\"]", "numeric = [\"day\"]"));
    assert!(error.kind == Kind::Contract && error.to_string().contains("train.csv"), "{error}");
    let error = refused(&folder, &on_files("").replace("threads = 1", "threads = 1\ndevice = \"gpu\""));
    assert!(error.kind == Kind::Usage && error.to_string().contains("cuda:N"), "{error}");
    let error = refused(&folder, &on_files("").replace("threads = 1", "threads = 1\ndevice = \"cuda:63\""));
    assert!(error.kind == Kind::Usage && error.next_action().contains("doctor"), "{error}");
    for wrong in ["hidden = []", "hidden = [8, 0]", "rate_drop = 0.0", "ema = 1.0", "embedding_l2 = -1", "baseline_l2 = []"] {
        let key = wrong.split(' ').next().expect("a key");
        let kept = MODEL.lines().filter(|line| !line.starts_with(key)).collect::<Vec<_>>().join("\n");
        let error = refused(&folder, &on_files("").replace(MODEL, &format!("{kept}\n{wrong}\n")));
        assert_eq!(error.kind, Kind::Usage, "{wrong}: {error}");
    }
    let path = folder.path().join("spec.toml");
    std::fs::write(&path, "[data]\n[columns]\nlabel = \"y\"\n[model]\nembeding_dim = 3\n").expect("written");
    let error = TrainSpec::read(&path).expect_err("an unknown key").to_string();
    assert!(error.contains("embedding_dim"), "{error}");
    assert_eq!(TrainSpec::read(Path::new("nowhere.toml")).expect_err("no file").kind, Kind::Usage);
}

#[test]
fn rows_of_one_class_and_a_loss_that_is_no_number_are_answered() {
    let folder = three_files();
    let all = |text: &str| {
        text.lines()
            .enumerate()
            .fold(String::new(), |text, (i, line)| text + if i > 0 { "1" } else { "" } + if i > 0 { &line[1..] } else { line } + "\n")
    };
    std::fs::write(folder.path().join("train.csv"), all(&csv(500, 1))).expect("written");
    let facts = run(&folder, &on_files(""), 1).expect("a constant");
    assert_eq!(facts.network.mean["test"].auc, Some(0.5));
    std::fs::write(folder.path().join("train.csv"), csv(500, 1)).expect("written");
    let error = refused(&folder, &on_files("").replace("learning_rate = 0.005", "learning_rate = 1e30\nprecision = \"float32\""));
    assert!(error.kind == Kind::Contract && error.next_action().contains("learning_rate"), "{error}");
}

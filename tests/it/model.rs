//! The models on made-up tables with planted truths: what must be learned, what must not be believed, what must never panic.

use arrow::array::{
    Array, ArrayRef, BooleanArray, Date32Array, Float64Array, Int64Array, ListArray, ListBuilder, RecordBatch, StringArray, StringBuilder,
};
use bytes::Bytes;
use nightmarket::error::{Error, Kind};
use nightmarket::model::{
    Architecture, Artifact, Checkpoints, FeatureSettings, Interest, InterestExamples, InterestSettings, ModelSettings, Response,
    ResponseModels, Storage, interest, response,
};
use nightmarket::statistics::metrics;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A small network that is quick to train.
fn settings() -> ModelSettings {
    ModelSettings { threads: 1, batch_size: 64, learning_rate: 3e-3, hidden: vec![32, 16], epochs: 12, ..ModelSettings::default() }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn lists(rows: impl Iterator<Item = Vec<String>>) -> ListArray {
    let mut builder = ListBuilder::new(StringBuilder::new());
    rows.for_each(|row| builder.append_value(row.into_iter().map(Some)));
    builder.finish()
}

fn table(columns: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).expect("columns of one length")
}

fn with(table: &RecordBatch, name: &str, array: ArrayRef) -> RecordBatch {
    let mut columns: Vec<(String, ArrayRef)> =
        table.schema().fields().iter().map(|field| field.name().clone()).zip(table.columns().iter().cloned()).collect();
    columns.retain(|(column, _)| column != name);
    columns.push((name.to_owned(), array));
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).expect("columns of one length")
}

fn without(table: &RecordBatch, name: &str) -> RecordBatch {
    let kept: Vec<usize> = (0..table.num_columns()).filter(|i| table.schema().field(*i).name() != name).collect();
    table.project(&kept).expect("indexes of the table")
}

/// A click follows from a product of two numbers, from whether the ad's category is one the user saw, and from the position; a
/// conversion from a low price.
fn impressions(rows: usize, seed: u64) -> RecordBatch {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (mut x, mut y, mut price) = (Vec::new(), Vec::new(), Vec::new());
    let (mut category, mut seen, mut position, mut clicked, mut converted) = (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rows {
        let (a, b): (f64, f64) = (rng.random_range(-2.0..2.0), rng.random_range(-2.0..2.0));
        let of: u32 = rng.random_range(0..8);
        let categories: Vec<u32> = (0..4).map(|_| rng.random_range(0..8)).collect();
        let place: i64 = rng.random_range(1..5);
        let cost: f64 = rng.random_range(0.0..10.0);
        let match_ = f64::from(u8::from(categories.contains(&of)));
        let click = rng.random_bool(sigmoid(-2.0 + 1.5 * a * b + match_ - 0.4 * place as f64));
        x.push(a);
        y.push(b);
        price.push(cost);
        category.push(format!("c{of}"));
        seen.push(categories.iter().map(|c| format!("c{c}")).collect());
        position.push(place);
        clicked.push(click);
        converted.push(Some(click && rng.random_bool(sigmoid(1.5 - 0.6 * cost))));
    }
    let ids = |prefix: &str, modulo: usize| StringArray::from_iter_values((0..rows).map(|i| format!("{prefix}{}", i % modulo)));
    table(vec![
        ("impression_id", Arc::new(ids("i", usize::MAX))),
        ("user_id", Arc::new(ids("u", 50))),
        ("ad_id", Arc::new(ids("a", 60))),
        ("clicked", Arc::new(BooleanArray::from(clicked))),
        ("converted", Arc::new(BooleanArray::from(converted))),
        ("category_id", Arc::new(StringArray::from(category))),
        (
            "ad_title",
            Arc::new(StringArray::from_iter_values((0..rows).map(|i| if i % 3 == 0 { "秋季新款鞋子" } else { "Red shoes sale" }))),
        ),
        ("position", Arc::new(Int64Array::from(position))),
        ("platform", Arc::new(ids("p", 3))),
        ("user__activity.x", Arc::new(Float64Array::from(x))),
        ("user__activity.y", Arc::new(Float64Array::from(y))),
        ("ad__price.price", Arc::new(Float64Array::from(price))),
        ("user__sequence.categories", Arc::new(lists(seen.into_iter()))),
        ("user__search_terms.queries", Arc::new(lists((0..rows).map(|i| vec![format!("鞋子{}", i % 5), "shoes".to_owned()])))),
    ])
}

fn labels(table: &RecordBatch, name: &str) -> Vec<bool> {
    let column = table.column_by_name(name).expect("a label").as_any().downcast_ref::<BooleanArray>().expect("flags");
    column.iter().map(|flag| flag.unwrap_or(false)).collect()
}

fn learned() -> &'static ResponseModels {
    static LEARNED: std::sync::OnceLock<ResponseModels> = std::sync::OnceLock::new();
    LEARNED.get_or_init(|| response::train(&settings(), &impressions(6000, 1), &impressions(6000, 2), 7).expect("it trains"))
}

#[test]
fn the_network_learns_an_interaction_that_the_baseline_cannot() {
    let test = impressions(4000, 3);
    let clicked = labels(&test, "clicked");
    let auc = |response: &Response| metrics::auc(&clicked, &response.score_logged(&test).expect("scores").p_click).expect("both classes");
    let (network, baseline) = (auc(&learned().network), auc(&learned().baseline));
    assert!(network > 0.80 && network > baseline + 0.08, "network {network}, baseline {baseline}: {:#?}", learned().facts.epochs);
    assert!(baseline > 0.58, "the baseline sees match and position, but its AUC is {baseline}");
}

#[test]
fn probabilities_are_calibrated_on_rows_never_seen() {
    let test = impressions(4000, 3);
    let clicked = labels(&test, "clicked");
    for response in [&learned().network, &learned().baseline] {
        let p = response.score_logged(&test).expect("scores").p_click;
        let ratio = metrics::calibration_ratio(&clicked, &p).expect("clicks");
        assert!((0.9..1.1).contains(&ratio), "calibration ratio {ratio}");
    }
}

#[test]
fn conversions_that_are_still_to_come_raise_the_promise_of_conversions_alone() {
    let (train, valid) = (impressions(3_000, 21), impressions(1_500, 22));
    let mut models = response::train(&settings(), &train, &valid, 1).expect("trains");
    let before = models.network.score_logged(&valid).expect("scores");
    // Of every second row only half of the conversions have arrived.
    let arrived = |row: usize| if row.is_multiple_of(2) { 0.5 } else { 1.0 };
    models.expect_late_conversions(&valid, arrived).expect("knows conversions");
    let (clicked, converted) = (labels(&valid, "clicked"), labels(&valid, "converted"));
    let expected: f64 = (0..1_500).filter(|row| clicked[*row] && converted[*row]).map(|row| 1.0 / arrived(row)).sum();
    let late = models.facts.late_conversions.expect("said");
    assert!((late.expected - expected).abs() < 1e-6 && (late.arrived as f64) < expected, "{late:?} {expected}");
    for model in [&models.network, &models.baseline] {
        let p = model.score_logged(&valid).expect("scores").p_conversion.expect("conversions are logged");
        let promised: f64 = (0..1_500).filter(|row| clicked[*row]).map(|row| p[row]).sum();
        assert!((promised / expected - 1.0).abs() < 1e-6, "{promised} of {expected}");
    }
    let after = models.network.score_logged(&valid).expect("scores");
    assert_eq!(before.p_click, after.p_click);
    let (before, after) = (before.p_conversion.expect("before"), after.p_conversion.expect("after"));
    assert!(before.iter().zip(&after).all(|(before, after)| before < after), "each is raised");
    // The artefact keeps what was raised.
    let kept = Response::from_artifact(&models.network.to_artifact().expect("an artefact")).expect("loads");
    assert_eq!(kept.score_logged(&valid).expect("scores").p_conversion, Some(after));
}

#[test]
fn conversions_of_clicks_are_learned_and_calibrated() {
    let test = impressions(8000, 4);
    let (clicked, converted) = (labels(&test, "clicked"), labels(&test, "converted"));
    let rows: Vec<usize> = (0..clicked.len()).filter(|row| clicked[*row]).collect();
    let converted: Vec<bool> = rows.iter().map(|row| converted[*row]).collect();
    for response in [&learned().network, &learned().baseline] {
        let p = response.score_logged(&test).expect("scores").p_conversion.expect("conversions are logged");
        let p: Vec<f64> = rows.iter().map(|row| p[*row]).collect();
        let auc = metrics::auc(&converted, &p).expect("both classes");
        let ratio = metrics::calibration_ratio(&converted, &p).expect("conversions");
        assert!(auc > 0.75 && (0.8..1.25).contains(&ratio), "AUC {auc}, calibration ratio {ratio}");
    }
}

#[test]
fn candidates_are_scored_at_the_top_whatever_their_position() {
    let test = impressions(500, 5);
    let network = &learned().network;
    let scores = network.score(&test).expect("scores").p_click;
    assert_eq!(scores, network.score(&without(&test, "position")).expect("scores").p_click);
    let at =
        |place: i64| network.score_logged(&with(&test, "position", Arc::new(Int64Array::from(vec![place; 500])))).expect("scores").p_click;
    assert_eq!(scores, at(1));
    let mean = |p: Vec<f64>| p.iter().sum::<f64>() / p.len() as f64;
    assert!(mean(scores) > mean(at(4)) * 1.2, "position bias was learned");
    network.score(&without(&without(&test, "position"), "platform")).expect("a candidate has no platform yet");
}

#[test]
fn an_artefact_scores_the_same_and_a_changed_one_is_refused() {
    let test = impressions(300, 6);
    for response in [&learned().network, &learned().baseline] {
        let artifact = response.to_artifact().expect("an artefact");
        let mut files = artifact.to_files().expect("files");
        let again = Artifact::from_files(&files).expect("it reads what it wrote");
        assert_eq!(again.fingerprint().expect("a hash"), artifact.fingerprint().expect("a hash"));
        let loaded = Response::from_artifact(&again).expect("a response model");
        assert_eq!(loaded.score(&test).expect("scores"), response.score(&test).expect("scores"));
        assert_eq!(Interest::from_artifact(&again).expect_err("another kind").kind, Kind::Contract);
        let mut changed = files["weights.safetensors"].to_vec();
        *changed.last_mut().expect("weights") ^= 1;
        files.insert("weights.safetensors".into(), Bytes::from(changed));
        let error = Artifact::from_files(&files).expect_err("refused");
        assert!(error.kind == Kind::Contract && error.to_string().contains("sha256"), "{error}");
        files.remove("model.json");
        assert_eq!(Artifact::from_files(&files).expect_err("refused").kind, Kind::Contract);
    }
}

#[test]
fn the_same_rows_and_seed_give_the_same_bytes() {
    // With two threads of libtorch, whose sums must be split the same way each time.
    let settings = ModelSettings { epochs: 2, threads: 2, ..settings() };
    let files = |seed| {
        let models = response::train(&settings, &impressions(1200, 1), &impressions(400, 2), seed).expect("it trains");
        let of = |response: &Response| response.to_artifact().and_then(|artifact| artifact.to_files()).expect("files");
        (of(&models.network), of(&models.baseline), serde_json::to_string(&models.facts).expect("JSON"))
    };
    // Side by side, so that a shared generator would show.
    let (one, two) = std::thread::scope(|scope| {
        let one = scope.spawn(|| files(7));
        let two = scope.spawn(|| files(7));
        (one.join().expect("no panic"), two.join().expect("no panic"))
    });
    assert!(one == two);
    assert!(one.0 != files(8).0, "another seed, other weights");
}

#[test]
fn a_network_that_cannot_be_trained_is_replaced_by_the_baseline() {
    let settings = ModelSettings { learning_rate: 1e30, epochs: 2, ..settings() };
    let models = response::train(&settings, &impressions(800, 1), &impressions(400, 2), 7).expect("no night is lost");
    assert_eq!(models.network, models.baseline);
    assert!(models.facts.notes.iter().any(|note| note.contains("stands in")), "{:?}", models.facts.notes);
}

#[test]
fn an_interrupted_training_goes_on_to_the_same_bytes() {
    let settings = ModelSettings { epochs: 5, patience: 5, ema: 0.9, ..settings() };
    let (train, valid) = (impressions(1200, 1), impressions(400, 2));
    let run = |saved: Option<Bytes>, stop_after: usize| {
        let kept = RefCell::new(Vec::new());
        let save = |bytes: Bytes| {
            kept.borrow_mut().push(bytes);
            if kept.borrow().len() == stop_after { Err(Error::new(Kind::Transient, "stopped")) } else { Ok(()) }
        };
        let checkpoints = Checkpoints { saved, save: &save };
        let models = response::train_from(None, Some(&checkpoints), &settings, &train, &valid, 7);
        (models, kept.into_inner())
    };
    let bytes = |models: &ResponseModels| {
        let files = models.network.to_artifact().and_then(|artifact| artifact.to_files()).expect("files");
        (files, serde_json::to_string(&models.facts).expect("JSON"))
    };
    let whole = response::train(&settings, &train, &valid, 7).expect("it trains");
    let (stopped, kept) = run(None, 2);
    assert_eq!(stopped.expect_err("it was stopped").kind, Kind::Transient);
    let (resumed, later) = run(kept.last().cloned(), 99);
    assert!(bytes(&resumed.expect("it goes on")) == bytes(&whole));
    assert_eq!((kept.len(), later.len()), (2, 2), "after each epoch but the last, and none is done twice");

    // A checkpoint that is broken, or of another training, is of no use.
    let (anew, all) = run(Some(Bytes::from_static(b"nonsense")), 99);
    assert!(bytes(&anew.expect("it trains")) == bytes(&whole) && all.len() == 4);
    let checkpoints = Checkpoints { saved: kept.last().cloned(), save: &|_| Ok(()) };
    let other = response::train_from(None, Some(&checkpoints), &settings, &train, &valid, 8).expect("it trains");
    assert!(bytes(&other) == bytes(&response::train(&settings, &train, &valid, 8).expect("it trains")));
}

/// Token -> its row of the embedding table.
fn embedded(response: &Response, space: &str) -> BTreeMap<String, Vec<f32>> {
    let artifact = response.to_artifact().expect("an artefact");
    let model: serde_json::Value = serde_json::from_str(&artifact.model).expect("JSON");
    let space = &model["map"]["spaces"][space];
    let first = space["offset"].as_u64().expect("a number") as usize + 2;
    let table = &artifact.weights["embedding"];
    let row = |row: usize| table.data[row * table.shape[1]..][..table.shape[1]].to_vec();
    let tokens = space["tokens"].as_array().expect("tokens").iter().map(|token| token.as_str().expect("text").to_owned());
    tokens.zip(first..).map(|(token, at)| (token, row(at))).collect()
}

#[test]
fn a_warm_start_keeps_the_rows_of_known_ids_and_starts_new_ones_as_ever() {
    let settings = ModelSettings { epochs: 4, ..settings() };
    let ads = |rows: &RecordBatch, from: usize| {
        let ids = StringArray::from_iter_values((0..rows.num_rows()).map(|row| format!("a{}", from + row % 60)));
        with(rows, "ad_id", Arc::new(ids))
    };
    let (train, valid) = (impressions(1200, 1), impressions(400, 2));
    let last = response::train(&settings, &ads(&train, 0), &ads(&valid, 0), 7).expect("it trains").network;
    // So slow that the weights stay where they start.
    let still =
        ModelSettings { epochs: 1, learning_rate: 1e-12, embedding_l2: 0.0, weight_decay: 0.0, warm_start: true, ..settings.clone() };
    let tonight = |earlier| response::train_from(earlier, None, &still, &ads(&train, 30), &ads(&valid, 30), 7).expect("it trains");
    let (warm, cold) = (tonight(Some(&last)), tonight(None));
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
    let [last_ads, warm_ads, cold_ads] = [&last, &warm.network, &cold.network].map(|network| embedded(network, "ad"));
    assert!(close(&warm_ads["a40"], &last_ads["a40"]) && !close(&warm_ads["a40"], &cold_ads["a40"]), "a40 was known");
    assert!(close(&warm_ads["a75"], &cold_ads["a75"]), "a75 is new");
    let kept = warm.facts.warm_start.expect("it went on");
    assert_eq!((kept.new_rows, cold.facts.warm_start), (30, None));

    let bytes = |models: &ResponseModels| models.network.to_artifact().and_then(|artifact| artifact.to_files()).expect("files");
    assert!(bytes(&warm) == bytes(&tonight(Some(&last))));
    assert!(warm.facts.epochs[0].valid_auc > cold.facts.epochs[0].valid_auc, "what was learned is not lost");

    let wider = ModelSettings { hidden: vec![48, 16], ..settings };
    let other = response::train_from(Some(&last), None, &wider, &train, &valid, 7).expect("it trains");
    assert!(other.facts.warm_start.is_none() && other.facts.notes.iter().any(|note| note.contains("no warm start")), "{:?}", other.facts);
}

#[test]
fn embeddings_in_bfloat16_take_half_the_bytes_and_the_facts_tell_the_cost() {
    let settings = ModelSettings { epochs: 2, ..settings() };
    let train = |embeddings| {
        let settings = ModelSettings { embeddings, ..settings.clone() };
        response::train(&settings, &impressions(1500, 1), &impressions(800, 2), 7).expect("it trains")
    };
    let (whole, half) = (train(Storage::Float32), train(Storage::Bfloat16));
    let files = |models: &ResponseModels| models.network.to_artifact().and_then(|artifact| artifact.to_files()).expect("files");
    let size = |models: &ResponseModels| files(models)["weights.safetensors"].len();
    assert_eq!(whole.facts.compression, None);
    let facts = half.facts.compression.expect("the cost");
    let rows = embedding_numbers(&whole.network);
    assert_eq!(facts.bytes_before - facts.bytes, 2 * rows);
    assert!(size(&whole) - size(&half) > 2 * rows - 64, "{} and {} bytes", size(&whole), size(&half));
    assert!(facts.auc_change.expect("both classes").abs() < 0.005 && facts.logloss_change.expect("a loss").abs() < 0.005, "{facts:?}");

    let loaded = Response::from_artifact(&Artifact::from_files(&files(&half)).expect("it reads what it wrote")).expect("a model");
    assert_eq!(loaded, half.network);
    assert_ne!(half.network, whole.network);
}

/// Numbers in the embedding table.
fn embedding_numbers(response: &Response) -> usize {
    response.to_artifact().expect("an artefact").weights["embedding"].data.len()
}

#[test]
fn the_articles_network_trains() {
    let settings = ModelSettings { architecture: Architecture::Article, threads: 1, ..ModelSettings::default() };
    let models = response::train(&settings, &impressions(1500, 1), &impressions(1000, 2), 7).expect("it trains");
    assert_eq!(models.facts.epochs.len(), 50);
    let test = impressions(2000, 3);
    let p = models.network.score_logged(&test).expect("scores").p_click;
    let auc = metrics::auc(&labels(&test, "clicked"), &p).expect("both classes");
    assert!(auc > 0.65, "AUC {auc}");
    let artifact = models.network.to_artifact().expect("an artefact");
    assert_eq!(Response::from_artifact(&artifact).expect("loads").score_logged(&test).expect("scores").p_click, p);
}

#[test]
fn odd_tables_train_or_say_why_not() {
    let settings = ModelSettings { epochs: 1, ..settings() };
    let (train, valid) = (impressions(800, 1), impressions(300, 2));
    let train_on = |change: &dyn Fn(&RecordBatch) -> RecordBatch| response::train(&settings, &change(&train), &change(&valid), 7);
    let check = |change: &dyn Fn(&RecordBatch) -> RecordBatch| {
        let models = train_on(change).expect("it trains");
        for response in [&models.network, &models.baseline] {
            let scores = response.score(&change(&impressions(100, 3))).expect("scores");
            assert!(scores.p_click.iter().chain(scores.p_conversion.iter().flatten()).all(|p| *p > 0.0 && *p < 1.0));
            assert_eq!(scores.p_click.len(), 100);
        }
        models
    };
    let flags = |table: &RecordBatch, flag: Option<bool>| Arc::new(BooleanArray::from(vec![flag; table.num_rows()])) as ArrayRef;
    let numbers =
        |table: &RecordBatch, of: fn(usize) -> Option<f64>| Arc::new((0..table.num_rows()).map(of).collect::<Float64Array>()) as ArrayRef;

    let none = check(&|rows| with(rows, "clicked", flags(rows, Some(false))));
    assert!(none.facts.notes.iter().any(|note| note.contains("constant")), "{:?}", none.facts.notes);
    check(&|rows| with(rows, "clicked", flags(rows, Some(true))));
    let quiet = with(&valid, "clicked", flags(&valid, Some(false)));
    let models = response::train(&settings, &train, &quiet, 7).expect("a validation day without a click");
    assert!(models.facts.chosen_epoch.is_some() && models.facts.network.metrics.auc.is_none(), "{:?}", models.facts.epochs);
    let unconverted = check(&|rows| with(rows, "converted", flags(rows, None)));
    assert_eq!(unconverted.network.score(&valid).expect("scores").p_conversion, None);
    check(&|rows| without(rows, "converted"));
    check(&|rows| with(rows, "converted", flags(rows, Some(false))));
    let numeric = check(&|rows| {
        let names = ["clicked", "user__activity.x", "user__activity.y"];
        let all = rows
            .schema()
            .fields()
            .iter()
            .map(|field| field.name().clone())
            .filter(|name| !names.contains(&name.as_str()))
            .collect::<Vec<_>>();
        all.iter().fold(rows.clone(), |rows, name| without(&rows, name))
    });
    assert_eq!(numeric.facts.features.len(), 2);
    let constant = check(&|rows| {
        let rows = with(rows, "user__activity.x", numbers(rows, |_| Some(3.0)));
        let rows = with(&rows, "user__activity.y", numbers(&rows, |_| None));
        with(&rows, "platform", Arc::new(StringArray::from(vec!["web"; rows.num_rows()])))
    });
    assert_eq!(constant.facts.dropped.len(), 3, "{:?}", constant.facts.dropped);
    check(&|rows| {
        let rows = with(
            rows,
            "user__activity.x",
            numbers(rows, |i| [Some(f64::NAN), Some(f64::INFINITY), Some(1e300), None, Some(i as f64)][i % 5]),
        );
        with(&rows, "ad_title", Arc::new(StringArray::from(vec![None::<&str>; rows.num_rows()])))
    });
    check(&|rows| table(vec![("clicked", rows.column_by_name("clicked").expect("labels").clone())]));

    let models = train_on(&RecordBatch::clone).expect("it trains");
    let unknown = Arc::new(StringArray::from(vec!["never seen"; 300]));
    let scores = models.network.score(&with(&with(&valid, "category_id", unknown.clone()), "platform", unknown)).expect("scores");
    assert!(scores.p_click.iter().all(|p| p.is_finite()));

    let refused = |result: nightmarket::error::Result<ResponseModels>| result.expect_err("refused");
    assert_eq!(refused(response::train(&settings, &train.slice(0, 0), &valid, 7)).kind, Kind::Contract);
    assert!(refused(response::train(&settings, &train, &valid.slice(0, 0), 7)).to_string().contains("validation"));
    assert!(refused(train_on(&|rows| without(rows, "clicked"))).to_string().contains("clicked"));
    let error = models.network.score(&without(&valid, "user__activity.x")).expect_err("a feature is missing");
    assert!(error.kind == Kind::Contract && error.to_string().contains("user__activity.x"), "{error}");
    let error =
        models.network.score(&with(&valid, "user__activity.x", Arc::new(StringArray::from(vec!["1"; 300])))).expect_err("another type");
    assert!(error.kind == Kind::Contract && error.to_string().contains("user__activity.x"), "{error}");
    let error = response::train(&ModelSettings { dropout: 1.0, ..settings.clone() }, &train, &valid, 7).expect_err("refused");
    assert_eq!(error.kind, Kind::Usage);
}

#[test]
fn excluded_columns_and_rare_values_are_not_learned() {
    let features = FeatureSettings { exclude: vec!["user_id".into(), "ad_id".into()], min_count: 100, ..FeatureSettings::default() };
    let settings = ModelSettings { epochs: 1, features, ..settings() };
    let facts = response::train(&settings, &impressions(600, 1), &impressions(200, 2), 7).expect("it trains").facts;
    assert!(!facts.features.iter().any(|name| name == "ad_id"));
    assert_eq!(facts.vocabularies["platform"], 3);
    assert!(facts.vocabularies["category"] > 0, "the sequences make the categories frequent");
}

// The interest model: a shop of popular parents and rarer children. What users search and touch shows what they will engage with.

const CATEGORIES: [(&str, Option<&str>, &str); 8] = [
    ("10", None, "服装"),
    ("20", None, "鞋子"),
    ("21", Some("20"), "鞋子配件"),
    ("30", None, "手机"),
    ("31", Some("30"), "手机配件"),
    ("40", None, "Toys"),
    ("50", None, "Books"),
    ("60", None, "Garden"),
];
/// How often anybody engages with them.
const POPULARITY: [f64; 8] = [0.25, 0.25, 0.03, 0.2, 0.03, 0.1, 0.05, 0.02];

/// (category, views, clicks, searches, terms) of a user.
type Signs = Vec<(usize, f64, f64, f64, f64)>;

#[derive(Default)]
struct Shop {
    users: Vec<(String, i32, Vec<String>, Vec<String>)>,
    pairs: Vec<(String, i32, usize, [f64; 4])>,
    labels: Vec<(String, i32, usize)>,
}

impl Shop {
    fn add(&mut self, user: &str, day: i32, signs: &Signs, queries: &[&str]) {
        let touched = signs.iter().filter(|sign| sign.1 + sign.2 > 0.0).map(|sign| CATEGORIES[sign.0].0.to_owned()).collect();
        self.users.push((user.to_owned(), day, touched, queries.iter().map(|query| (*query).to_owned()).collect()));
        self.pairs.extend(
            signs
                .iter()
                .map(|&(category, views, clicks, searches, terms)| (user.to_owned(), day, category, [views, clicks, searches, terms])),
        );
    }

    fn examples(&self) -> InterestExamples {
        let text = |values: Vec<&str>| Arc::new(StringArray::from(values)) as ArrayRef;
        let days = |days: Vec<i32>| Arc::new(Date32Array::from(days)) as ArrayRef;
        let sign = |i: usize| Arc::new(Float64Array::from_iter_values(self.pairs.iter().map(|pair| pair.3[i]))) as ArrayRef;
        InterestExamples {
            users: table(vec![
                ("user_id", text(self.users.iter().map(|user| user.0.as_str()).collect())),
                ("day", days(self.users.iter().map(|user| user.1).collect())),
                ("user__activity.n_queries", Arc::new(Float64Array::from_iter_values(self.users.iter().map(|user| user.3.len() as f64)))),
                ("user__sequence.categories", Arc::new(lists(self.users.iter().map(|user| user.2.clone())))),
                ("user__search_terms.queries", Arc::new(lists(self.users.iter().map(|user| user.3.clone())))),
            ]),
            pairs: table(vec![
                ("user_id", text(self.pairs.iter().map(|pair| pair.0.as_str()).collect())),
                ("day", days(self.pairs.iter().map(|pair| pair.1).collect())),
                ("category_id", text(self.pairs.iter().map(|pair| CATEGORIES[pair.2].0).collect())),
                ("user_category__affinity.n_views_30d", sign(0)),
                ("user_category__affinity.n_clicks_30d", sign(1)),
                ("user_category__affinity.n_searches_30d", sign(2)),
                ("user_category__affinity.n_terms_30d", sign(3)),
            ]),
            labels: table(vec![
                ("user_id", text(self.labels.iter().map(|label| label.0.as_str()).collect())),
                ("day", days(self.labels.iter().map(|label| label.1).collect())),
                ("category_id", text(self.labels.iter().map(|label| CATEGORIES[label.2].0).collect())),
            ]),
            categories: table(vec![
                ("category_id", text(CATEGORIES.iter().map(|category| category.0).collect())),
                ("parent_id", Arc::new(CATEGORIES.iter().map(|category| category.1).collect::<StringArray>())),
                ("name", text(CATEGORIES.iter().map(|category| category.2).collect())),
                ("sensitive", Arc::new(BooleanArray::from(vec![false; CATEGORIES.len()]))),
            ]),
        }
    }
}

/// Users who touch and search what they like, and by chance what is popular.
fn shop(users: usize, seed: u64) -> InterestExamples {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut shop = Shop::default();
    for user in 0..users {
        let name = format!("u{user}");
        let (mut signs, mut queries): (Signs, Vec<&str>) = (Vec::new(), Vec::new());
        for category in 0..CATEGORIES.len() {
            let liked = rng.random_bool(POPULARITY[category]);
            let often = if liked { 2.0 } else { 2.0 * POPULARITY[category] };
            let mut count = |mean: f64| (0..6).filter(|_| rng.random_bool(mean / 6.0)).count() as f64;
            let (views, clicks, searches) = (count(often), count(often / 2.0), count(often / 2.0));
            if searches > 0.0 {
                queries.push(CATEGORIES[category].2);
            }
            if views + clicks + searches > 0.0 {
                signs.push((category, views, clicks, 0.8 * searches, 0.8 * searches.min(1.0)));
            }
            if rng.random_bool(if liked { 0.6 } else { 0.3 * POPULARITY[category] }) {
                shop.labels.push((name.clone(), 1, category));
            }
        }
        shop.add(&name, 1, &signs, &queries);
    }
    shop.examples()
}

fn interest_settings() -> InterestSettings {
    InterestSettings { threads: 1, ..InterestSettings::default() }
}

fn interested() -> &'static (Interest, interest::InterestFacts) {
    static LEARNED: std::sync::OnceLock<(Interest, interest::InterestFacts)> = std::sync::OnceLock::new();
    LEARNED.get_or_init(|| interest::train(&interest_settings(), &shop(1500, 1), &shop(600, 2), 7).expect("it trains"))
}

/// category name -> (score, above_base) of a user with these signs.
fn scores_of(signs: Signs, queries: &[&str]) -> BTreeMap<&'static str, (f64, f64)> {
    scores_by(&interested().0, signs, queries)
}

fn scores_by(interest: &Interest, signs: Signs, queries: &[&str]) -> BTreeMap<&'static str, (f64, f64)> {
    let mut shop = Shop::default();
    shop.add("someone", 9, &signs, queries);
    let examples = shop.examples();
    let scored = interest.score(&examples.users, &examples.pairs).expect("scores");
    let number =
        |name: &str| scored.column_by_name(name).expect("a score").as_any().downcast_ref::<Float64Array>().expect("numbers").clone();
    let (score, above) = (number("score"), number("above_base"));
    signs.iter().enumerate().map(|(row, sign)| (CATEGORIES[sign.0].2, (score.value(row), above.value(row)))).collect()
}

fn top(scores: &BTreeMap<&'static str, (f64, f64)>) -> &'static str {
    scores.iter().max_by(|a, b| a.1.1.total_cmp(&b.1.1)).expect("a category").0
}

#[test]
fn the_articles_users_get_their_labels() {
    let facts = &interested().1;
    assert!(facts.metrics.auc.expect("both classes") > 0.75, "{facts:#?}");
    assert_eq!(labels_of_the_article(&interested().0), ["鞋子", "鞋子配件", "手机配件"]);
}

#[test]
fn two_hundred_users_are_enough_for_the_articles_labels() {
    let (interest, facts) = interest::train(&interest_settings(), &shop(200, 11), &shop(100, 12), 7).expect("it trains");
    assert_eq!(labels_of_the_article(&interest), ["鞋子", "鞋子配件", "手机配件"], "{facts:#?}");
}

/// The top labels of the article's three users.
fn labels_of_the_article(interest: &Interest) -> [&'static str; 3] {
    // A: saw and clicked three items of 鞋子, searched 鞋子 and 服装.
    let a = scores_by(interest, vec![(1, 3.0, 3.0, 0.8, 0.8), (0, 0.0, 0.0, 0.8, 0.8)], &["鞋子", "服装"]);
    // B: searched 鞋子 and 鞋子配件: the same evidence for both, so the special one wins.
    let b = scores_by(interest, vec![(1, 0.0, 0.0, 0.8, 0.8), (2, 0.0, 0.0, 0.8, 0.8)], &["鞋子", "鞋子配件"]);
    // C: searched 手机配件, and a few who did so went to 手机.
    let c = scores_by(interest, vec![(3, 0.0, 0.0, 0.1, 0.1), (4, 0.0, 0.0, 0.8, 0.8)], &["手机配件"]);
    [top(&a), top(&b), top(&c)]
}

#[test]
fn users_of_one_taste_lie_together_and_what_may_not_count_adds_nothing() {
    let mut shop = Shop::default();
    shop.add("busy", 9, &vec![(1, 5.0, 5.0, 3.0, 2.0)], &["鞋子"]);
    shop.add("quiet", 9, &vec![(1, 1.0, 0.0, 0.0, 0.0)], &[]);
    shop.add("phones", 9, &vec![(3, 4.0, 3.0, 0.0, 0.0), (4, 3.0, 2.0, 0.0, 0.0)], &[]);
    shop.add("shoes_and_toys", 9, &vec![(1, 2.0, 1.0, 0.0, 0.0), (5, 4.0, 4.0, 0.0, 0.0)], &[]);
    shop.add("toys", 9, &vec![(5, 4.0, 4.0, 0.0, 0.0)], &[]);
    let examples = shop.examples();
    let interest = &interested().0;
    let scores = interest.score(&examples.users, &examples.pairs).expect("scores");
    let all = interest.embed(&examples.users, &scores, |_| true).expect("embeds").expect("a network");
    assert_eq!(all.users, ["busy", "quiet", "phones", "shoes_and_toys", "toys"]);
    assert_eq!(all.width, all.taste + 1, "the number of queries is a habit");
    let taste = |of: &nightmarket::model::Embeddings, user: &str| {
        let row = of.users.iter().position(|other| other == user).expect("a place");
        of.of(row)[..of.taste].to_vec()
    };
    let length = taste(&all, "busy").iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((length - 1.0).abs() < 1e-5, "of one category: {length}");
    assert_eq!(taste(&all, "busy"), taste(&all, "quiet"), "how much is no taste");
    assert_ne!(taste(&all, "busy"), taste(&all, "phones"));
    assert_ne!(taste(&all, "busy"), taste(&all, "shoes_and_toys"));
    let some = interest.embed(&examples.users, &scores, |category| category != "40").expect("embeds").expect("a network");
    assert_eq!(some.users, ["busy", "quiet", "phones", "shoes_and_toys"], "who showed a sign of nothing else has no place");
    assert_eq!(taste(&some, "shoes_and_toys"), taste(&some, "busy"));
    assert_eq!(taste(&some, "phones"), taste(&all, "phones"));
}

#[test]
fn more_evidence_never_lowers_a_score() {
    for (category, (_, _, name)) in CATEGORIES.iter().enumerate() {
        let name = *name;
        let score = |searches: f64, views: f64| scores_of(vec![(category, views, 0.0, searches, searches.min(1.0))], &[name])[name].0;
        for more in 1..6 {
            assert!(score(f64::from(more), 0.0) >= score(f64::from(more - 1), 0.0), "{name}: {more} searches");
            assert!(score(0.5, f64::from(more)) >= score(0.5, f64::from(more - 1)), "{name}: {more} views");
        }
        assert!(score(4.0, 4.0) > score(0.2, 0.0), "{name}: evidence counts");
    }
}

#[test]
fn interest_is_calibrated_reproducible_and_survives_the_artefact() {
    let test = shop(800, 3);
    let (interest, facts) = interested();
    let scored = interest.score(&test.users, &test.pairs).expect("scores");
    let p: f64 =
        scored.column_by_name("score").expect("a score").as_any().downcast_ref::<Float64Array>().expect("numbers").iter().flatten().sum();
    let keys = |table: &RecordBatch| -> Vec<(String, String)> {
        let text = |name: &str| table.column_by_name(name).expect("an id").as_any().downcast_ref::<StringArray>().expect("text").clone();
        let (users, categories) = (text("user_id"), text("category_id"));
        (0..users.len()).map(|row| (users.value(row).to_owned(), categories.value(row).to_owned())).collect()
    };
    let engaged: std::collections::BTreeSet<_> = keys(&test.labels).into_iter().collect();
    let positives = keys(&test.pairs).iter().filter(|key| engaged.contains(key)).count() as f64;
    assert!((0.85..1.15).contains(&(p / positives)), "calibration ratio {}", p / positives);
    assert_eq!(keys(&scored), keys(&test.pairs), "one row a pair, in their order");

    let artifact = interest.to_artifact().expect("an artefact");
    let files = artifact.to_files().expect("files");
    let loaded = Interest::from_artifact(&Artifact::from_files(&files).expect("reads")).expect("an interest model");
    assert_eq!(loaded.score(&test.users, &test.pairs).expect("scores"), scored);
    let (again, same) = interest::train(&interest_settings(), &shop(1500, 1), &shop(600, 2), 7).expect("it trains");
    assert!(again.to_artifact().expect("an artefact").to_files().expect("files") == files && same == *facts);
}

#[test]
fn odd_interest_tables_train_or_say_why_not() {
    let settings = InterestSettings { epochs: 1, max_rows: 500, ..interest_settings() };
    let (train, valid) = (shop(300, 1), shop(100, 2));
    // Nobody engages with anything.
    let silent = |examples: &InterestExamples| InterestExamples { labels: examples.labels.slice(0, 0), ..examples.clone() };
    let (interest, facts) = interest::train(&settings, &silent(&train), &silent(&valid), 7).expect("it trains");
    assert!(!facts.notes.is_empty());
    assert_eq!(interest.score(&valid.users, &valid.pairs).expect("scores").num_rows(), valid.pairs.num_rows());
    // The loss overflows.
    let wild = InterestSettings { learning_rate: 1e30, ..settings.clone() };
    let (interest, facts) = interest::train(&wild, &train, &valid, 7).expect("no night is lost");
    assert!(facts.notes.iter().any(|note| note.contains("base rate")), "{:?}", facts.notes);
    assert_eq!(interest.score(&valid.users, &valid.pairs).expect("scores").num_rows(), valid.pairs.num_rows());
    // The shop's categories are not known, and a new one comes.
    let unnamed = |examples: &InterestExamples| InterestExamples { categories: examples.categories.slice(0, 0), ..examples.clone() };
    let (interest, facts) = interest::train(&settings, &unnamed(&train), &unnamed(&valid), 7).expect("it trains");
    assert!(facts.train.candidates <= 500, "{:?}", facts.train);
    let new = Arc::new(StringArray::from(vec!["new"; valid.pairs.num_rows()]));
    assert_eq!(interest.score(&valid.users, &with(&valid.pairs, "category_id", new)).expect("scores").num_rows(), valid.pairs.num_rows());
    // No candidates; a pair of nobody.
    let empty = InterestExamples { pairs: train.pairs.slice(0, 0), ..train.clone() };
    assert_eq!(interest::train(&settings, &empty, &valid, 7).expect_err("refused").kind, Kind::Contract);
    let strangers = InterestExamples { users: train.users.slice(0, 5), ..train };
    let error = interest::train(&settings, &strangers, &valid, 7).expect_err("refused");
    assert!(error.to_string().contains("users lacks"), "{error}");
}

/// `cargo test --release --test it model::speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement of speed: run it by name"]
fn speed() {
    let (train, valid) = (impressions(200_000, 1), impressions(50_000, 2));
    let settings = ModelSettings { epochs: 2, patience: 0, ..ModelSettings::default() };
    let start = std::time::Instant::now();
    let models = response::train(&settings, &train, &valid, 7).expect("it trains");
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("{:.0} rows/s an epoch with all overhead; {} weights", 2.0 * 200_000.0 / seconds, models.facts.parameters);
    let start = std::time::Instant::now();
    models.network.score(&train).expect("scores");
    eprintln!("{:.0} rows/s scored", 200_000.0 / start.elapsed().as_secs_f64());
}

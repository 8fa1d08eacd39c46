//! Bad input ends in the right exit code and one clear line, or in the right result; the table of the night before still serves.

use crate::shop::{DATE, NEXT, SECRET, Shop, block_on, key};
use arrow::array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::{Field, Schema};
use nightmarket::error::{Error, Kind};
use nightmarket::pipeline::{self, Stage};
use nightmarket::platform::storage::{parquet_bytes, parquet_table};
use nightmarket::publish::State;
use nightmarket::spec::Spec;
use nightmarket::types::column;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Runs the second night of a shop whose first night serves; it must fail and leave that table serving.
fn refused(shop: &Shop) -> Error {
    let before = shop.history();
    let error = shop.night(NEXT).err().expect("the night must fail");
    assert_eq!(shop.history(), before, "the table of the night before still serves");
    let line = error.to_string();
    assert!(line.len() < 600, "one clear line: {line}");
    error
}

/// The night must publish.
fn published(shop: &Shop) -> serde_json::Value {
    let facts = shop.night(NEXT).expect("the night runs");
    assert_eq!(facts.publish.as_ref().expect("a finding").state, State::Published, "{:?}", facts.publish);
    serde_json::to_value(&facts).unwrap()
}

/// The only Parquet file of a table's day.
fn file(shop: &Shop, table: &str, day: chrono::NaiveDate) -> PathBuf {
    let folder = shop.raw(&format!("{table}/dt={day}"));
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap_or_else(|_| panic!("{}", folder.display())).map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.retain(|path| !path.ends_with("part-planted.parquet"));
    files.first().cloned().unwrap_or_else(|| panic!("no file in {}", folder.display()))
}

fn read(path: &Path) -> RecordBatch {
    parquet_table(std::fs::read(path).unwrap().into()).unwrap()
}

/// Replaces a file; never writes into one, because the shops of other tests link to it.
fn write(path: &Path, bytes: &[u8]) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
}

fn rewrite(path: &Path, change: impl FnOnce(RecordBatch) -> RecordBatch) {
    let rows = change(read(path));
    write(path, &parquet_bytes(rows.schema(), &[rows]).unwrap());
}

fn with_column(rows: &RecordBatch, old: &str, name: &str, values: ArrayRef) -> RecordBatch {
    let schema = rows.schema();
    let columns = schema.fields().iter().zip(rows.columns()).map(|(field, column)| match field.name() == old {
        true => (Arc::new(Field::new(name, values.data_type().clone(), true)), values.clone()),
        false => (field.clone(), column.clone()),
    });
    let (fields, columns): (Vec<_>, Vec<_>) = columns.unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

#[test]
fn a_missing_day_waits() {
    let shop = Shop::served();
    std::fs::remove_dir_all(shop.raw(&format!("events/dt={NEXT}"))).unwrap();
    let error = refused(&shop);
    assert_eq!(error.kind, Kind::InputMissing, "{error}");
    assert!(error.to_string().contains("events") && error.to_string().contains(&NEXT.to_string()), "{error}");
}

#[test]
fn a_hole_in_the_days_of_a_log_waits() {
    let shop = Shop::served();
    let hole = NEXT - chrono::Days::new(5);
    std::fs::remove_dir_all(shop.raw(&format!("events/dt={hole}"))).unwrap();
    let error = refused(&shop);
    assert_eq!(error.kind, Kind::InputMissing, "{error}");
    assert!(error.to_string().contains("events") && error.to_string().contains(&hole.to_string()), "{error}");
}

#[test]
fn a_raw_file_may_have_any_name() {
    let shop = Shop::served();
    let ingested = || {
        let facts = block_on(pipeline::run(&shop.run(NEXT), &shop.spec, &key(), Stage::Ingest)).expect("runs");
        serde_json::to_value(facts.ingest).unwrap()["tables"].clone()
    };
    let before = ingested();
    assert!(!before.is_null());
    for table in ["events", "suppressions"] {
        let day = shop.raw(&format!("{table}/dt={NEXT}"));
        let file = std::fs::read_dir(&day).unwrap().next().unwrap().unwrap().path();
        let ending = file.extension().unwrap().to_str().unwrap().to_owned();
        std::fs::rename(&file, day.join(format!("日志 part~0 (50%) #1?.{ending}"))).unwrap();
    }
    assert_eq!(ingested(), before);
}

#[test]
fn an_empty_partition_breaks_the_contract() {
    let shop = Shop::served();
    let folder = shop.raw(&format!("events/dt={NEXT}"));
    let planted = folder.join("part-planted.parquet");
    let _ = std::fs::remove_file(planted);
    for entry in std::fs::read_dir(&folder).unwrap() {
        rewrite(&entry.unwrap().path(), |rows| rows.slice(0, 0));
    }
    let error = refused(&shop);
    assert_eq!(error.kind, Kind::Contract, "{error}");
    assert!(error.to_string().contains("events") && error.to_string().contains("0 rows"), "{error}");
}

#[test]
fn a_truncated_file_is_named() {
    let shop = Shop::served();
    let path = file(&shop, "events", NEXT);
    let bytes = std::fs::read(&path).unwrap();
    write(&path, &bytes[..bytes.len() / 2]);
    let error = refused(&shop);
    assert_eq!(error.kind, Kind::Contract, "{error}");
    assert!(error.to_string().contains(path.file_name().unwrap().to_str().unwrap()), "{error}");
}

#[test]
fn a_renamed_column_is_named_with_its_neighbour() {
    let shop = Shop::served();
    rewrite(&file(&shop, "ad_impressions", NEXT), |rows| {
        let values = rows["ad_id"].clone();
        with_column(&rows, "ad_id", "adid", values)
    });
    let error = refused(&shop);
    assert_eq!(error.kind, Kind::Contract, "{error}");
    assert!(error.to_string().contains("ad_id is absent; it has adid"), "{error}");
}

#[test]
fn a_wrong_type_is_named() {
    let shop = Shop::served();
    rewrite(&file(&shop, "ad_impressions", NEXT), |rows| {
        let values: ArrayRef = Arc::new(Int64Array::from(vec![7; rows.num_rows()]));
        with_column(&rows, "ad_id", "ad_id", values)
    });
    let error = refused(&shop);
    assert_eq!(error.kind, Kind::Contract, "{error}");
    assert!(error.to_string().contains("column ad_id is Int64"), "{error}");
}

#[test]
fn without_the_suppression_list_nobody_is_processed() {
    let shop = Shop::served();
    std::fs::remove_dir_all(shop.raw(&format!("suppressions/dt={NEXT}"))).unwrap();
    let error = refused(&shop);
    assert_eq!(error.kind, Kind::Privacy, "{error}");
    assert_eq!(error.kind.exit_code(), 40);
}

#[test]
fn nan_and_infinite_prices_are_no_prices() {
    let shop = Shop::served();
    rewrite(&file(&shop, "events", NEXT), |rows| {
        let wild = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
        let values: ArrayRef = Arc::new(Float64Array::from_iter_values((0..rows.num_rows()).map(|row| wild[row % 3])));
        with_column(&rows, "price", "price", values)
    });
    published(&shop);
}

#[test]
fn events_delivered_twice_count_once() {
    let (plain, doubled) = (Shop::served(), Shop::served());
    let twice = file(&doubled, "events", NEXT);
    std::fs::copy(&twice, twice.with_file_name("part-again.parquet")).unwrap();
    let rows = |json: &serde_json::Value| {
        json["ingest"]["tables"].as_array().unwrap().iter().find(|table| table["name"] == "events").unwrap()["rows"].clone()
    };
    let (plain, doubled) = (published(&plain), published(&doubled));
    assert_eq!(rows(&plain), rows(&doubled));
    assert_ne!(plain["ingest"]["raw"], doubled["ingest"]["raw"], "the second delivery is counted");
}

#[test]
fn events_delivered_again_in_the_next_days_folder_count_on_their_own_day() {
    let (plain, again) = (Shop::served(), Shop::served());
    let yesterday = file(&again, "events", NEXT - chrono::Days::new(1));
    std::fs::copy(&yesterday, again.raw(&format!("events/dt={NEXT}/part-again.parquet"))).unwrap();
    assert_eq!(ingested(&plain, "events"), ingested(&again, "events"));
}

#[test]
fn rows_that_an_old_folder_delivered_are_told() {
    let shop = Shop::served();
    let old = file(&shop, "events", NEXT - chrono::Days::new(5));
    std::fs::copy(&old, shop.raw(&format!("events/dt={NEXT}/part-again.parquet"))).unwrap();
    let facts = block_on(pipeline::run(&shop.run(NEXT), &shop.spec, &key(), Stage::Ingest)).expect("the input is taken in");
    let facts = serde_json::to_value(&facts).unwrap();
    let violations = facts["checks"]["violations"].as_array().unwrap();
    let told =
        violations.iter().find(|found| found["check"].as_str().unwrap().starts_with("raw.events: delivered again after more than 2 days"));
    assert_eq!(told.expect("a warning")["rows"].as_u64().unwrap() as usize, read(&old).num_rows(), "{violations:?}");
}

#[test]
fn a_user_on_many_devices_with_100_000_events_is_one_user() {
    let (plain, shop) = (Shop::served(), Shop::served());
    let path = file(&shop, "events", NEXT);
    let rows = read(&path);
    let signed_in = (0..rows.num_rows()).find(|row| column::<StringArray>(&rows, "uid").unwrap().is_valid(*row)).unwrap();
    // So many devices that none looks like a machine.
    let text = |of: &dyn Fn(usize) -> String| Arc::new(StringArray::from_iter_values((0..100_000).map(of))) as ArrayRef;
    let storm = concat_batches(&rows.schema(), std::iter::repeat_n(&rows.slice(signed_in, 1), 100_000)).unwrap();
    let storm = with_column(&storm, "event_id", "event_id", text(&|n| format!("storm-{n}")));
    let storm = with_column(&storm, "device_id", "device_id", text(&|n| format!("device-{}", n % 300)));
    write(&path.with_file_name("part-storm.parquet"), &parquet_bytes(storm.schema(), &[storm]).unwrap());
    let rows = |shop: &Shop| ingested(shop, "events")["rows"].as_u64().unwrap();
    assert_eq!(rows(&shop), rows(&plain) + 100_000);
    published(&shop);
}

#[test]
fn a_device_with_100_000_events_is_a_machine() {
    let shop = Shop::served();
    let path = file(&shop, "events", NEXT);
    let rows = read(&path);
    // One event of somebody, a hundred thousand times under new ids.
    let ids: ArrayRef = Arc::new(StringArray::from_iter_values((0..100_000).map(|n| format!("storm-{n}"))));
    let one = rows.slice(0, 1);
    let storm = concat_batches(&rows.schema(), std::iter::repeat_n(&one, 100_000)).unwrap();
    let storm = with_column(&storm, "event_id", "event_id", ids);
    write(&path.with_file_name("part-storm.parquet"), &parquet_bytes(storm.schema(), &[storm]).unwrap());
    published(&shop);
}

#[test]
fn without_a_single_click_the_gate_says_so_and_the_night_goes_on() {
    let shop = Shop::small();
    for day in std::fs::read_dir(shop.raw("ad_clicks")).unwrap() {
        for path in std::fs::read_dir(day.unwrap().path()).unwrap() {
            rewrite(&path.unwrap().path(), |rows| rows.slice(0, 0));
        }
    }
    let facts = shop.night(DATE);
    match facts {
        Ok(facts) => {
            let json = serde_json::to_value(&facts).unwrap();
            assert_eq!(json["gate"]["kind"], "too_little_data");
            assert_eq!(json["gate"]["positives"], 0);
        }
        // A shop may demand clicks in its contract.
        Err(error) => assert_eq!(error.kind, Kind::Contract, "{error}"),
    }
}

#[test]
fn one_ad_is_enough() {
    let shop = Shop::served();
    rewrite(&file(&shop, "ads", NEXT), |rows| {
        let live = column::<StringArray>(&read(&file(&shop, "ad_impressions", NEXT)), "ad_id").unwrap().value(0).to_owned();
        let ids = column::<StringArray>(&rows, "ad_id").unwrap();
        let keep: BooleanArray = ids.iter().map(|id| Some(id == Some(live.as_str()))).collect();
        filter_record_batch(&rows, &keep).unwrap()
    });
    let facts = published(&shop);
    let campaigns = facts["targeting"]["campaigns"].as_array().expect("campaigns");
    assert!(campaigns.iter().any(|campaign| campaign["planned_impressions"].as_f64() > Some(0.0)), "{campaigns:?}");
}

#[test]
fn settings_that_cannot_be_are_refused_before_anything_is_read() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("job.toml");
    let job = std::fs::read_to_string("jobs/shop.toml").unwrap();
    let without = |section: &str| {
        job.split_once(&format!("[{section}]")).map_or(job.clone(), |(before, after)| {
            format!("{before}{}", after.split_once("\n[").map_or(String::new(), |(_, rest)| format!("[{rest}")))
        })
    };
    for (section, line, named) in [
        ("dataset", "train_days = 0", "[dataset] train_days"),
        ("dataset", "interest_train_days = 0", "[dataset] interest_train_days"),
        ("gate", "alpha = 2.0", "[gate] alpha"),
        ("gate", "replicates = 0", "[gate] replicates"),
        ("gate", "calibration = [1.1, 1.2]", "[gate] calibration"),
        ("evaluate", "replicates = 0", "[evaluate] replicates"),
        ("evaluate", "clip = -1.0", "[evaluate] clip"),
        ("model", "batch_size = 0", "[model] batch_size"),
        ("interest", "epochs = 0", "[interest] epochs"),
        ("engine", "memory_mib = 0", "[engine] memory_mib"),
    ] {
        std::fs::write(&path, format!("{}\n[{section}]\n{line}\n", without(section))).unwrap();
        let error = Spec::read(&path).err().unwrap_or_else(|| panic!("{line} is taken"));
        assert!(error.kind == Kind::Usage && error.to_string().contains(named), "{line}: {error}");
    }
    std::fs::write(&path, job.replace("arrival_lag_hours = 3", "arrival_lag_hours = 4294967295")).unwrap();
    assert!(Spec::read(&path).expect_err("refused").to_string().contains("arrival_lag_hours"));
}

#[test]
fn a_query_without_memory_is_no_reason_to_run_again() {
    let mut shop = Shop::served();
    shop.spec.engine.memory_mib = 1;
    let error = refused(&shop);
    assert!(error.kind == Kind::Usage && error.next_action().contains("memory_mib") && error.to_string().lines().count() == 1, "{error}");
}

#[test]
fn the_command_line_gives_the_code_and_one_line() {
    let shop = Shop::served();
    let text = std::fs::read_to_string(shop.spec_file()).unwrap();
    let run = |spec: &Path, date: &str| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_nightmarket"));
        let command =
            command.args(["run", &spec.display().to_string(), "--date", date, "--log", "error"]).env("NIGHTMARKET_PSEUDONYM_KEY", SECRET);
        let output = command.output().expect("starts");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };

    let spec = shop.root.join("unknown.toml");
    std::fs::write(&spec, text.replace("history_days", "histroy_days")).unwrap();
    let (code, line) = run(&spec, "2026-11-22");
    assert_eq!(code, Some(2), "{line}");
    assert!(line.contains("unknown key histroy_days; did you mean history_days?") && line.lines().count() == 1, "{line}");

    let (code, line) = run(&shop.spec_file(), "the day before yesterday");
    assert_eq!(code, Some(2), "{line}");

    std::fs::remove_dir_all(shop.raw(&format!("events/dt={NEXT}"))).unwrap();
    let (code, line) = run(&shop.spec_file(), "2026-11-22");
    assert_eq!(code, Some(20), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("next:"), "{line}");

    let command = std::process::Command::new(env!("CARGO_BIN_EXE_nightmarket"))
        .args(["run", &shop.spec_file().display().to_string(), "--date", "2026-11-22"])
        .env_remove("NIGHTMARKET_PSEUDONYM_KEY")
        .output()
        .expect("starts");
    assert_eq!(command.status.code(), Some(40), "no key, no night");
}

#[test]
fn sql_that_writes_or_reads_a_file_is_refused() {
    let sql = tempfile::TempDir::new().unwrap();
    crate::shop::copy(Path::new("sql/shop"), sql.path());
    let secret = sql.path().join("secret.csv");
    std::fs::write(&secret, "a\n1\n").unwrap();
    for (text, complaint) in [
        ("COPY (SELECT 1 AS user_id) TO '/tmp/x.csv'".to_owned(), "exactly one SELECT"),
        (format!("SELECT * FROM '{}'", secret.display()), "no table of this shop"),
        ("SELECT user_id, now() AS at FROM events".to_owned(), "now()"),
    ] {
        let mut shop = Shop::served();
        shop.spec.sql = sql.path().display().to_string();
        let path = sql.path().join("features/user__stolen.sql");
        std::fs::write(&path, format!("-- Stolen.\n-- grain: user_id\n-- owner: nobody\n{text}\n")).unwrap();
        let error = match nightmarket::platform::catalog::Catalog::load(sql.path()) {
            Err(error) => error,
            Ok(_) => refused(&shop),
        };
        assert_eq!(error.kind, Kind::Usage, "{error}");
        assert!(error.to_string().contains("user__stolen.sql") && error.to_string().contains(complaint), "{text}: {error}");
        std::fs::remove_file(path).unwrap();
    }
}

/// What the ingest of the second night finds of a table.
fn ingested(shop: &Shop, table: &str) -> serde_json::Value {
    let facts = block_on(pipeline::run(&shop.run(NEXT), &shop.spec, &key(), Stage::Ingest)).expect("the input is taken in");
    let json = serde_json::to_value(&facts).unwrap();
    json["ingest"]["tables"].as_array().unwrap().iter().find(|row| row["name"] == table).unwrap().clone()
}

#[test]
fn a_blank_beside_a_suppressed_id_protects_nobody_less() {
    let (plain, padded) = (Shop::served(), Shop::served());
    rewrite(&file(&padded, "suppressions", NEXT), |rows| {
        let ids = column::<StringArray>(&rows, "uid").unwrap();
        let values: ArrayRef = Arc::new(StringArray::from_iter_values(ids.iter().map(|id| format!(" {} ", id.unwrap_or_default()))));
        with_column(&rows, "uid", "uid", values)
    });
    let expected = ingested(&plain, "users");
    assert!(expected["dropped_suppressed"].as_u64() > Some(0), "somebody is suppressed: {expected}");
    assert_eq!(ingested(&padded, "users"), expected);
}

#[test]
fn an_item_listed_twice_multiplies_no_event() {
    let (plain, twice) = (Shop::served(), Shop::served());
    rewrite(&file(&twice, "items", NEXT), |rows| concat_batches(&rows.schema(), [&rows, &rows]).unwrap());
    assert_eq!(ingested(&plain, "events"), ingested(&twice, "events"));
}

#[test]
fn csv_files_of_one_table_with_different_headers_are_refused() {
    let shop = Shop::served();
    let list = shop.raw(&format!("suppressions/dt={NEXT}"));
    std::fs::remove_dir_all(shop.raw("suppressions")).unwrap();
    std::fs::create_dir_all(&list).unwrap();
    std::fs::write(list.join("a.csv"), "uid,reason,since\nu_0000001,erasure,2026-11-20T00:00:00Z\n").unwrap();
    std::fs::write(list.join("b.csv"), "reason,uid,since\nerasure,u_0000002,2026-11-20T00:00:00Z\n").unwrap();
    let error = refused(&shop);
    assert_eq!(error.kind, Kind::Privacy, "{error}");
    assert!(error.to_string().contains("b.csv"), "{error}");
}

#[test]
fn after_a_rollback_a_rerun_of_the_night_leaves_the_earlier_table_serving() {
    let shop = Shop::served();
    published(&shop);
    let run = shop.run(NEXT);
    let suppressed = block_on(nightmarket::ingest::suppressed_on(&run, &shop.spec.ingest, &key())).unwrap();
    let privacy = nightmarket::publish::Privacy { suppressed: &suppressed, floor: shop.spec.floor() };
    block_on(nightmarket::publish::rollback(&run, "1", privacy)).expect("rolls back");
    let facts = shop.night(NEXT).expect("runs again");
    assert_eq!(facts.publish.expect("a finding").state, State::AlreadyPublished);
    let history = shop.history();
    assert_eq!(history.len(), 3);
    assert_eq!(history[2].run_date, DATE, "the table of the first night serves");
}

#[test]
fn a_night_that_could_target_nobody_keeps_the_table() {
    let shop = Shop::served();
    rewrite(&file(&shop, "consents", NEXT), |rows| {
        let values: ArrayRef = Arc::new(StringArray::from(vec!["maybe"; rows.num_rows()]));
        with_column(&rows, "ads_ok", "ads_ok", values)
    });
    let _ = std::fs::remove_file(shop.raw(&format!("consents/dt={NEXT}/part-planted.parquet")));
    let before = shop.history();
    match shop.night(NEXT) {
        Ok(facts) => assert_eq!(facts.publish.expect("a finding").state, State::Kept),
        Err(error) => assert_eq!(error.kind, Kind::Privacy, "{error}"),
    }
    assert_eq!(shop.history(), before);
}

#[test]
fn a_night_that_plans_no_ad_keeps_the_table() {
    let shop = Shop::served();
    rewrite(&file(&shop, "campaigns", NEXT), |rows| {
        let nothing: ArrayRef = Arc::new(Float64Array::from(vec![0.0; rows.num_rows()]));
        with_column(&rows, "daily_budget", "daily_budget", nothing)
    });
    let before = shop.history();
    let facts = shop.night(NEXT).expect("the night runs");
    let kept = facts.publish.expect("a finding");
    assert_eq!(kept.state, State::Kept);
    let admission = facts.admit.expect("a finding");
    assert!(admission.objections().contains("no ad is planned for anybody"), "{}", admission.objections());
    assert_eq!(shop.history(), before);
}

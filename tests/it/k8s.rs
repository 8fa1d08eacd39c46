//! The manifests as `kubectl kustomize` renders them: every CronJob keeps the policy of the nights, starts when its job's day is
//! over, treats each exit code as `error` means it, and runs a command that the real command line accepts.

use chrono::{DateTime, Days, Duration, NaiveDate, Utc};
use clap::error::ErrorKind;
use nightmarket::error::{Error, Kind};
use nightmarket::spec::Spec;
use serde_yaml_ng::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

const KINDS: [Kind; 7] = [Kind::Usage, Kind::Transient, Kind::InputMissing, Kind::Contract, Kind::Privacy, Kind::Internal, Kind::LostRace];

/// What Kubernetes shall do with a pod that ended by an error of this kind. A new kind does not compile until it is decided here.
fn wanted(kind: Kind) -> &'static str {
    match kind {
        Kind::Transient => "Ignore",
        Kind::InputMissing => "Count",
        Kind::Usage | Kind::Contract | Kind::Privacy | Kind::Internal | Kind::LostRace => "FailJob",
    }
}

/// The documents of one overlay.
fn render(overlay: &Path) -> Vec<Value> {
    let kubectl = Command::new("sh").arg("scripts/kubectl.sh").arg("kustomize").arg(overlay).output().expect("sh runs");
    assert!(kubectl.status.success(), "{}: {}", overlay.display(), String::from_utf8_lossy(&kubectl.stderr));
    let text = String::from_utf8(kubectl.stdout).expect("UTF-8");
    let parse = |document: &str| serde_yaml_ng::from_str(document).unwrap_or_else(|error| panic!("{}: {error}", overlay.display()));
    text.split("\n---\n").map(parse).collect()
}

/// Every overlay's name and documents.
fn overlays() -> Vec<(String, Vec<Value>)> {
    let mut folders: Vec<_> = std::fs::read_dir("k8s/overlays").expect("overlays").map(|entry| entry.expect("an entry").path()).collect();
    folders.sort();
    assert!(folders.len() >= 2, "staging and production");
    folders.iter().map(|folder| (folder.file_name().expect("a name").to_string_lossy().into_owned(), render(folder))).collect()
}

/// `a/b/0/c` of a document; `Null` where there is nothing.
fn at<'a>(value: &'a Value, path: &str) -> &'a Value {
    path.split('/').fold(value, |value, key| match value {
        Value::Sequence(items) => key.parse().ok().and_then(|index: usize| items.get(index)).unwrap_or(&Value::Null),
        _ => value.get(key).unwrap_or(&Value::Null),
    })
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).as_str().unwrap_or_else(|| panic!("{path} is {:?}", at(value, path)))
}

fn number(value: &Value, path: &str) -> i64 {
    at(value, path).as_i64().unwrap_or_else(|| panic!("{path} is {:?}", at(value, path)))
}

fn items<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path).as_sequence().map_or(&[], Vec::as_slice)
}

fn strings(value: &Value, path: &str) -> Vec<String> {
    items(value, path).iter().map(|item| item.as_str().expect("a string").to_owned()).collect()
}

/// Every CronJob of every overlay, named for the messages.
fn cron_jobs() -> Vec<(String, Value)> {
    let named = |(overlay, documents): (String, Vec<Value>)| {
        documents
            .into_iter()
            .filter(|document| text(document, "kind") == "CronJob")
            .map(move |job| (format!("{overlay}: {}", text(&job, "metadata/name")), job))
    };
    overlays().into_iter().flat_map(named).collect()
}

const JOB: &str = "spec/jobTemplate/spec";
const POD: &str = "spec/jobTemplate/spec/template/spec";

#[test]
fn each_overlay_has_one_cron_job_per_job_file() {
    let files: BTreeSet<String> = std::fs::read_dir("jobs")
        .expect("jobs")
        .map(|entry| format!("jobs/{}", entry.expect("an entry").file_name().to_string_lossy()))
        .collect();
    for (overlay, documents) in overlays() {
        let run: Vec<String> = documents
            .iter()
            .filter(|document| text(document, "kind") == "CronJob")
            .map(|job| strings(job, &format!("{POD}/containers/0/args"))[1].clone())
            .collect();
        assert_eq!(run.iter().cloned().collect::<BTreeSet<_>>(), files, "{overlay}");
        assert_eq!(run.len(), files.len(), "{overlay}: a job file has two CronJobs");
    }
}

#[test]
fn every_cron_job_keeps_the_policy_of_the_nights() {
    for (name, job) in cron_jobs() {
        assert_eq!(text(&job, "spec/concurrencyPolicy"), "Forbid", "{name}");
        assert_eq!(text(&job, "spec/timeZone"), "Etc/UTC", "{name}");
        let pod = at(&job, POD);
        assert_eq!(text(pod, "restartPolicy"), "Never", "{name}");
        assert_eq!(at(pod, "automountServiceAccountToken").as_bool(), Some(false), "{name}");
        assert_eq!(at(pod, "securityContext/runAsNonRoot").as_bool(), Some(true), "{name}");
        assert!(number(pod, "securityContext/runAsUser") >= 1000, "{name}");
        assert_eq!(text(pod, "securityContext/seccompProfile/type"), "RuntimeDefault", "{name}");
        let scratch = items(pod, "volumes").iter().find(|volume| text(volume, "name") == "scratch").expect("a scratch volume");
        assert!(text(scratch, "emptyDir/sizeLimit").ends_with("Gi"), "{name}");
        assert_eq!(items(pod, "containers").len(), 1, "{name}");
        let container = at(pod, "containers/0");
        let secure = at(container, "securityContext");
        assert_eq!(at(secure, "readOnlyRootFilesystem").as_bool(), Some(true), "{name}");
        assert_eq!(at(secure, "allowPrivilegeEscalation").as_bool(), Some(false), "{name}");
        assert_eq!(strings(secure, "capabilities/drop"), ["ALL"], "{name}");
        let mounted = items(container, "volumeMounts").iter().any(|m| text(m, "name") == "scratch" && text(m, "mountPath") == "/tmp");
        assert!(mounted, "{name}: /tmp is not writable");
        for resource in ["requests/cpu", "requests/memory", "limits/memory", "limits/ephemeral-storage"] {
            assert!(!text(container, &format!("resources/{resource}")).is_empty(), "{name}: {resource}");
        }
        let (image, tag) = text(container, "image").rsplit_once(':').unwrap_or_else(|| panic!("{name}: the image has no tag"));
        assert!(image.contains('/') && tag != "latest" && tag.starts_with(env!("CARGO_PKG_VERSION")), "{name}: {image}:{tag}");
    }
}

#[test]
fn the_pseudonym_key_comes_from_a_secret_and_no_manifest_holds_one() {
    for (overlay, documents) in overlays() {
        assert!(documents.iter().all(|document| text(document, "kind") != "Secret"), "{overlay}: secrets are made by hand");
    }
    for (name, job) in cron_jobs() {
        let container = at(&job, POD).get("containers").expect("containers");
        let key = items(container, "0/env").iter().find(|variable| text(variable, "name") == "NIGHTMARKET_PSEUDONYM_KEY").expect("the key");
        assert!(!text(key, "valueFrom/secretKeyRef/name").is_empty() && at(key, "value").is_null(), "{name}");
    }
}

/// What the podFailurePolicy of a Job does with a pod whose container ended with `code`: the first matching rule, else a counted retry.
fn action(job: &Value, code: i64) -> String {
    let container = text(job, &format!("{POD}/containers/0/name"));
    let rules = items(job, &format!("{JOB}/podFailurePolicy/rules"));
    let found = rules.iter().find(|rule| {
        let codes = at(rule, "onExitCodes");
        if codes.is_null() || at(codes, "containerName").as_str().is_some_and(|name| name != container) {
            return false;
        }
        let listed = items(codes, "values").iter().any(|value| value.as_i64() == Some(code));
        match text(codes, "operator") {
            "In" => listed,
            "NotIn" => !listed,
            other => panic!("operator {other}"),
        }
    });
    found.map_or("Count", |rule| text(rule, "action")).to_owned()
}

#[test]
fn every_exit_code_is_handled_as_its_kind_means_it() {
    for (name, job) in cron_jobs() {
        for kind in KINDS {
            assert_eq!(action(&job, i64::from(kind.exit_code())), wanted(kind), "{name}: {kind:?}");
        }
        // A panic, a kill for want of memory, a crash, anything unknown: no retry would end otherwise.
        for code in [1, 101, 134, 137, 139, 255] {
            assert_eq!(action(&job, code), "FailJob", "{name}: {code}");
        }
        let first = at(&job, &format!("{JOB}/podFailurePolicy/rules/0"));
        assert_eq!(
            (text(first, "action"), text(first, "onPodConditions/0/type")),
            ("Ignore", "DisruptionTarget"),
            "{name}: a drained node"
        );
        // Late input is looked for again for hours; retries of both kinds end.
        assert!((10..=50).contains(&number(&job, &format!("{JOB}/backoffLimit"))), "{name}");
        assert!(number(&job, &format!("{JOB}/activeDeadlineSeconds")) > 0, "{name}");
    }
}

/// The values that one field of a cron line stands for; `None` where it is malformed.
fn cron_field(field: &str, low: u32, high: u32) -> Option<BTreeSet<u32>> {
    let mut values = BTreeSet::new();
    for part in field.split(',') {
        let (range, step) = part.split_once('/').map_or((part, Some(1)), |(range, step)| (range, step.parse().ok()));
        let step = step.filter(|step| *step > 0)?;
        let (first, last) = match range.split_once('-') {
            _ if range == "*" => (low, high),
            Some((first, last)) => (first.parse().ok()?, last.parse().ok()?),
            None => (range.parse().ok()?, range.parse().ok()?),
        };
        if first < low || last > high || first > last {
            return None;
        }
        values.extend((first..=last).step_by(step));
    }
    Some(values)
}

/// The one time of day at which a line of five fields fires, every day.
fn nightly(schedule: &str) -> (u32, u32) {
    let fields: Vec<&str> = schedule.split(' ').collect();
    assert_eq!(fields.len(), 5, "{schedule}");
    let limits = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 7)];
    let values: Vec<BTreeSet<u32>> = fields
        .iter()
        .zip(limits)
        .map(|(field, (low, high))| cron_field(field, low, high).unwrap_or_else(|| panic!("{schedule}: {field}")))
        .collect();
    assert_eq!((values[0].len(), values[1].len()), (1, 1), "{schedule}: once a day");
    assert_eq!((values[2].len(), values[3].len()), (31, 12), "{schedule}: every day");
    assert!((0..7).all(|day| values[4].contains(&day)), "{schedule}: every weekday");
    (values[1].first().copied().expect("an hour"), values[0].first().copied().expect("a minute"))
}

#[test]
fn the_cron_reader_refuses_what_kubernetes_would() {
    assert_eq!(nightly("5 23 * * *"), (23, 5));
    assert_eq!(cron_field("1-10/3,20", 0, 59), Some(BTreeSet::from([1, 4, 7, 10, 20])));
    for wrong in ["60", "a", "5-1", "*/0", "", "1-"] {
        assert_eq!(cron_field(wrong, 0, 59), None, "{wrong}");
    }
}

/// On every day of two years, summer time and winter time alike: the job's `yesterday` is complete and its late rows are in when
/// the night starts, and it still means the same day at the last moment at which the night may run.
#[test]
fn nights_start_after_the_local_day_and_its_arrival_lag() {
    for (name, cron) in cron_jobs() {
        let (hour, minute) = nightly(text(&cron, "spec/schedule"));
        let spec = Spec::read(Path::new(&strings(&cron, &format!("{POD}/containers/0/args"))[1])).expect("a job");
        let job = spec.job().expect("checked");
        let longest = number(&cron, "spec/startingDeadlineSeconds") + number(&cron, &format!("{JOB}/activeDeadlineSeconds"));
        assert!(longest < 24 * 3600, "{name}: a night would meet the next one");
        let local_day = |time: DateTime<Utc>| time.with_timezone(&job.timezone).date_naive();
        let first = NaiveDate::from_ymd_opt(2026, 1, 1).expect("a date");
        for day in (0..730).map(|day| first + Days::new(day)) {
            let fires = day.and_hms_opt(hour, minute, 0).expect("a time").and_utc();
            let yesterday = local_day(fires) - Days::new(1);
            assert!(
                fires >= job.cut_off(yesterday),
                "{name}: at {fires}, {yesterday} still waits for rows until {}",
                job.cut_off(yesterday)
            );
            assert_eq!(
                local_day(fires + Duration::seconds(longest)),
                local_day(fires),
                "{name}: a late night of {day} would mean another day"
            );
        }
    }
}

#[test]
fn the_real_command_line_accepts_every_containers_arguments() {
    for (name, job) in cron_jobs() {
        let args = strings(&job, &format!("{POD}/containers/0/args"));
        assert_eq!(args[0], "run", "{name}");
        for flag in ["--raw", "--out"] {
            let place =
                args.iter().position(|arg| arg == flag).unwrap_or_else(|| panic!("{name}: no {flag}; the root file system is read-only"));
            assert!(args[place + 1].contains("://"), "{name}: {flag} {}", args[place + 1]);
        }
        let line: Vec<&str> = std::iter::once("nightmarket").chain(args.iter().map(String::as_str)).collect();
        if let Err(error) = nightmarket::cli::command().try_get_matches_from(&line) {
            panic!("{name}: {error}");
        }
        // The same line with a flag that does not exist is refused, so the acceptance above says something.
        let refused = nightmarket::cli::command().try_get_matches_from(line.iter().chain(&["--no-such-flag"])).expect_err("refused");
        assert_eq!(refused.kind(), ErrorKind::UnknownArgument, "{name}");
    }
}

#[test]
fn environment_variables_of_the_manifests_are_flags_of_the_command_line() {
    let command = nightmarket::cli::command();
    let mut known: BTreeSet<String> = BTreeSet::from(["NIGHTMARKET_PSEUDONYM_KEY".to_owned()]);
    let commands = std::iter::once(&command).chain(command.get_subcommands());
    known
        .extend(commands.flat_map(|command| command.get_arguments()).filter_map(|arg| Some(arg.get_env()?.to_string_lossy().into_owned())));
    for (overlay, documents) in overlays() {
        let config = documents.iter().find(|document| text(document, "kind") == "ConfigMap").expect("the common variables");
        let names = config.get("data").and_then(Value::as_mapping).expect("data").keys();
        for name in names.map(|name| name.as_str().expect("a string")).filter(|name| name.starts_with("NIGHTMARKET_")) {
            assert!(known.contains(name), "{overlay}: {name} is no variable of the program");
        }
    }
}

/// The kubelet mounts the termination log as a file that any user may write, read-only root or not.
#[test]
fn the_end_of_a_night_is_written_where_kubernetes_looks() {
    for (name, job) in cron_jobs() {
        let container = at(&job, &format!("{POD}/containers/0"));
        assert_eq!(text(container, "terminationMessagePolicy"), "FallbackToLogsOnError", "{name}");
        let overlay = name.split(':').next().expect("an overlay");
        let documents = render(&Path::new("k8s/overlays").join(overlay));
        let config = documents.iter().find(|document| text(document, "kind") == "ConfigMap").expect("the common variables");
        assert_eq!(text(config, "data/NIGHTMARKET_TERMINATION_LOG"), text(container, "terminationMessagePath"), "{name}");
    }
}

#[test]
fn the_gpu_component_changes_the_training_pod_only() {
    let production = cron_jobs().into_iter().filter(|(name, _)| name.starts_with("production"));
    for (name, job) in production {
        let gpu = at(&job, &format!("{POD}/containers/0/resources/limits")).get("nvidia.com/gpu");
        let tolerated = items(&job, &format!("{POD}/tolerations")).iter().any(|toleration| text(toleration, "key") == "nvidia.com/gpu");
        let cuda = text(&job, &format!("{POD}/containers/0/image")).contains("cuda");
        let trains = name.ends_with(": shop");
        assert_eq!((gpu.is_some(), tolerated, cuda), (trains, trains, trains), "{name}");
    }
}

#[test]
fn the_runbook_tells_every_exit_code_as_the_program_does() {
    let runbook = std::fs::read_to_string("k8s/README.md").expect("the runbook");
    let rows: Vec<Vec<&str>> = runbook
        .lines()
        .filter(|line| line.starts_with("| ") && line[2..].starts_with(|first: char| first.is_ascii_digit()))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    let codes: Vec<String> = std::iter::once(0).chain(KINDS.map(Kind::exit_code)).map(|code| code.to_string()).collect();
    assert_eq!(rows.iter().map(|row| row[0].to_owned()).collect::<Vec<_>>(), codes, "one row a code, in order");
    for (row, kind) in rows[1..].iter().zip(KINDS) {
        let name = serde_json::to_value(kind).expect("JSON");
        assert_eq!(row[1], name.as_str().expect("a name").replace('_', " "), "the kind's name");
        assert!(row.contains(&Error::new(kind, "").next_action()), "{kind:?}: the row lacks the program's own next action: {row:?}");
        assert!(row.contains(&wanted(kind)), "{kind:?}: the row lacks what Kubernetes does: {row:?}");
    }
}

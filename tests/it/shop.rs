//! A small generated shop, made once, and nights on copies of it.

use chrono::NaiveDate;
use nightmarket::error::Result;
use nightmarket::generate;
use nightmarket::pipeline::{self, Facts, Stage};
use nightmarket::platform::catalog::Catalog;
use nightmarket::platform::pseudonym::Key;
use nightmarket::platform::run::Run;
use nightmarket::platform::storage::Store;
use nightmarket::publish::{self, Commit};
use nightmarket::spec::Spec;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;

pub const SECRET: &str = "the key of the tests";
pub const DATE: NaiveDate = NaiveDate::from_ymd_opt(2026, 11, 21).expect("a date");
pub const NEXT: NaiveDate = NaiveDate::from_ymd_opt(2026, 11, 22).expect("a date");

/// A shop's raw logs, a place for what the night writes, and the job.
pub struct Shop {
    _folder: Option<TempDir>,
    pub root: PathBuf,
    pub spec: Spec,
}

/// 400 users over 29 days up to `NEXT`, with the three planted users.
fn made() -> &'static Path {
    static MADE: OnceLock<TempDir> = OnceLock::new();
    let folder = MADE.get_or_init(|| {
        let folder = TempDir::new().expect("a temporary folder");
        let raw = Store::open(&folder.path().join("raw").display().to_string()).expect("a store");
        block_on(async {
            generate::generate(&raw, &generate::Plan { users: 400, days: 29, seed: 7, until: NEXT }).await.expect("generates");
            generate::plant_article_users(&raw, false).await.expect("plants");
        });
        folder
    });
    folder.path()
}

impl Shop {
    /// The small shop, to do with as one likes.
    pub fn small() -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        copy(&made().join("raw"), &folder.path().join("raw"));
        let root = folder.path().to_owned();
        Self { _folder: Some(folder), spec: small_spec(&root), root }
    }

    /// The small shop after its first night, whose table serves.
    pub fn served() -> Self {
        static SERVED: OnceLock<Shop> = OnceLock::new();
        let first = SERVED.get_or_init(|| {
            let shop = Shop::small();
            shop.night(DATE).expect("the first night runs");
            shop
        });
        let folder = TempDir::new().expect("a temporary folder");
        copy(&first.root, folder.path());
        let root = folder.path().to_owned();
        Self { _folder: Some(folder), spec: small_spec(&root), root }
    }

    pub fn raw(&self, path: &str) -> PathBuf {
        self.root.join("raw").join(path)
    }

    pub fn run(&self, date: NaiveDate) -> Run {
        let (raw, out) = (Store::open(&self.spec.store.raw).expect("a store"), Store::open(&self.spec.store.output).expect("a store"));
        let catalog = Catalog::load(Path::new(&self.spec.sql)).expect("the shop's SQL loads");
        Run::new(self.spec.job().expect("a job"), date, raw, out, catalog, self.spec.engine.clone())
    }

    pub fn night(&self, date: NaiveDate) -> Result<Facts> {
        block_on(pipeline::run(&self.run(date), &self.spec, &key(), Stage::Report))
    }

    pub fn history(&self) -> Vec<Commit> {
        block_on(publish::history(&self.run(DATE).output)).expect("the history reads")
    }

    /// Bytes of the four published tables of a commit.
    pub fn published(&self, commit: &Commit) -> Vec<Vec<u8>> {
        let folder = self.root.join("out").join(&commit.tables);
        ["segments", "user_segments", "segment_ads", "shadow_ads"]
            .map(|name| std::fs::read(folder.join(format!("{name}.parquet"))).expect(name))
            .to_vec()
    }

    /// The spec as a file, for runs through the command line.
    pub fn spec_file(&self) -> PathBuf {
        let path = self.root.join("job.toml");
        std::fs::write(&path, toml::to_string(&self.spec).expect("a spec is TOML")).expect("written");
        path
    }
}

/// The shop's own job, made small: few epochs, one thread of libtorch.
fn small_spec(root: &Path) -> Spec {
    let mut spec = Spec::read(Path::new("jobs/shop.toml")).expect("the shop's job reads");
    spec.store.raw = root.join("raw").display().to_string();
    spec.store.output = root.join("out").display().to_string();
    spec.model.threads = 1;
    spec.model.epochs = 2;
    spec.interest.threads = 1;
    spec.gate.replicates = 100;
    spec.evaluate.replicates = 100;
    spec.segments.floor = 50;
    spec.segments.enter = 50;
    spec.targeting.max_users_scored_per_segment = 20;
    spec.engine.buckets = 2;
    // As many days as there are. The leak test has tests of its own.
    spec.ingest.history_days = 29;
    spec.features.leak_share = 0.0;
    spec
}

pub fn key() -> Key {
    Key::new(SECRET, 1).expect("long enough")
}

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime").block_on(work)
}

/// Copies a folder; files are linked, because stores replace files and never write into one.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::hard_link(entry.path(), &target).expect("linked");
        }
    }
}

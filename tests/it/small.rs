//! A folder with a small shop that a test writes file by file: its SQL, its logs and its job. Each file of tests says what its shop is.

use crate::shop::block_on;
use chrono::NaiveDate;
use nightmarket::platform::catalog::Catalog;
use nightmarket::platform::run::Run;
use nightmarket::platform::storage::Store;
use nightmarket::spec::Spec;
use nightmarket::workbench::{self, Checked};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The contract of the suppression list, for the end of sources.toml.
pub const REMOVALS: &str = "
[removals]
location = \"removals\"
kind = \"snapshot\"
partition = \"dt\"
required = true
min_rows = 0

[removals.columns]
uid = { type = \"string\", id = \"user\" }
";

const SUPPRESSIONS: &str = "\
-- Who is not to be processed.
-- grain: user_id
-- owner: privacy
-- daily: removals
SELECT uid AS user_id FROM raw.removals
";

pub struct Small {
    pub folder: TempDir,
}

impl Small {
    /// With a suppression list's query and nothing else.
    pub fn empty() -> Self {
        let small = Self { folder: tempfile::tempdir().expect("a folder") };
        small.write("sql/staging/suppressions.sql", SUPPRESSIONS);
        small
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("written");
    }

    /// The suppression list of a day of November 2026.
    pub fn removed(&self, day: u32, user: &str) {
        self.write(&format!("raw/removals/dt=2026-11-{day}/a.csv"), &format!("uid\n{user}\n"));
    }

    pub fn job(&self, timezone: &str, arrival_lag_hours: u32) {
        let root = self.folder.path().display();
        let text = format!(
            "name = \"small\"\ntimezone = \"{timezone}\"\nsql = \"{root}/sql\"\narrival_lag_hours = {arrival_lag_hours}\nseed = 1\n\n\
             [store]\nraw = \"{root}/raw\"\noutput = \"{root}/out\"\n\n[engine]\nbuckets = 2\n\n\
             [ingest]\nhistory_days = 28\nconsent = \"not_applicable\"\nconsent_reason = \"Nobody is real here.\"\n\n\
             [dataset]\ntrain_days = 4\nlabel_window_days = 0\n"
        );
        self.write("job.toml", &text);
    }

    pub fn spec(&self) -> Spec {
        Spec::read(&self.path("job.toml")).expect("a spec")
    }

    pub fn run(&self, date: NaiveDate) -> (Run, Spec) {
        let spec = self.spec();
        (run(&spec, date), spec)
    }

    pub fn check(&self) -> Checked {
        block_on(workbench::check(&self.path("sql"))).expect("read")
    }
}

/// A run of a job, on the stores it names.
pub fn run(spec: &Spec, date: NaiveDate) -> Run {
    let open = |place: &str| Store::open(place).expect("a store");
    let catalog = Catalog::load(Path::new(&spec.sql)).unwrap_or_else(|error| panic!("{error}"));
    Run::new(spec.job().expect("a job"), date, open(&spec.store.raw), open(&spec.store.output), catalog, spec.engine.clone())
}

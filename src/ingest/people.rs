//! Who may be processed at all: the suppression list, and consents by purpose.

use super::{Consent, People, Settings, Staged, TableFacts};
use crate::error::{Error, Result};
use crate::platform::engine;
use crate::platform::run::Run;
use crate::types::{column, optional_column};
use arrow::array::{Array, BooleanArray, RecordBatch, StringArray};
use arrow::compute::filter_record_batch;
use std::collections::{BTreeSet, HashSet};
use xxhash_rust::xxh3::xxh3_128;

/// Who may be processed at all.
pub(super) enum Allowed<'a> {
    /// While the people tables themselves are staged.
    Everybody,
    Unless {
        suppressed: &'a HashSet<String>,
    },
    Consenting {
        suppressed: &'a HashSet<String>,
        profile: &'a HashSet<String>,
    },
}

impl Allowed<'_> {
    /// The rows of people who may be processed; rows of nobody (no user column) all stay, rows of an unknown user (NULL) go.
    pub fn keep(&self, rows: RecordBatch, facts: &mut TableFacts) -> Result<RecordBatch> {
        let users = optional_column::<StringArray>(&rows, "user_id")?;
        let (Some(users), true) = (users, !matches!(self, Allowed::Everybody)) else {
            facts.rows += rows.num_rows() as u64;
            return Ok(rows);
        };
        let mut keep = Vec::with_capacity(rows.num_rows());
        for user in users {
            let (suppressed, consents) = match (self, user) {
                (Allowed::Unless { suppressed }, Some(user)) => (suppressed.contains(user), true),
                (Allowed::Consenting { suppressed, profile }, Some(user)) => (suppressed.contains(user), profile.contains(user)),
                _ => (false, false),
            };
            facts.dropped_suppressed += u64::from(suppressed);
            facts.dropped_no_consent += u64::from(!suppressed && !consents);
            keep.push(!suppressed && consents);
        }
        let kept = filter_record_batch(&rows, &BooleanArray::from(keep))?;
        facts.rows += kept.num_rows() as u64;
        Ok(kept)
    }

    pub fn fingerprint(&self) -> String {
        let sorted =
            |users: &HashSet<String>| users.iter().map(String::as_str).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join("\n");
        let text = match self {
            Allowed::Everybody => String::new(),
            Allowed::Unless { suppressed } => sorted(suppressed),
            Allowed::Consenting { suppressed, profile } => format!("{}\n\n{}", sorted(suppressed), sorted(profile)),
        };
        format!("{:032x}", xxh3_128(text.as_bytes()))
    }
}

/// What the staged people tables say as of the run date.
pub(super) struct PeopleRead {
    pub suppressed: HashSet<String>,
    pub profile: HashSet<String>,
    pub target: BTreeSet<String>,
    pub measure: BTreeSet<String>,
}

impl People {
    pub(super) async fn read(run: &Run, settings: &Settings, staged: &Staged) -> Result<PeopleRead> {
        let context = engine::session(&run.engine)?;
        let mut read = PeopleRead {
            suppressed: suppressed(run, staged).await?,
            profile: HashSet::new(),
            target: BTreeSet::new(),
            measure: BTreeSet::new(),
        };
        if settings.consent == Consent::NotApplicable {
            return Ok(read);
        }
        let consents = staged.tables.get("consents").ok_or_else(|| {
            Error::privacy("this shop has no table of consents, and without consent nobody may be profiled")
                .action("write staging/consents.sql, or say consent = \"not_applicable\" with a consent_reason")
        })?;
        context.register_table("consents", consents.as_of_day(&context, run.date, None)?.into_view())?;
        let latest = "SELECT user_id, purpose, FIRST_VALUE(granted ORDER BY effective_at DESC, granted ASC) AS granted
            FROM consents WHERE effective_at < $as_of GROUP BY user_id, purpose";
        let rows = engine::collect(engine::plan_sql(&context, latest, run.as_of()).await?).await?;
        let (users, purposes) = (column::<StringArray>(&rows, "user_id")?, column::<StringArray>(&rows, "purpose")?);
        let granted = column::<BooleanArray>(&rows, "granted")?;
        for row in (0..rows.num_rows()).filter(|&row| granted.is_valid(row) && granted.value(row) && users.is_valid(row)) {
            let user = users.value(row);
            if read.suppressed.contains(user) {
                continue;
            }
            match purposes.value(row) {
                "profile" => drop(read.profile.insert(user.to_owned())),
                "target" => drop(read.target.insert(user.to_owned())),
                "measure" => drop(read.measure.insert(user.to_owned())),
                other => return Err(Error::contract(format_args!("consents: purpose {other} is none of profile, target, measure"))),
            }
        }
        if read.profile.is_empty() {
            return Err(Error::privacy(format_args!("nobody consents to profile on {}: no row may be read", run.date))
                .action("see what staging/consents.sql makes of the delivered consents; yesterday's table stays"));
        }
        Ok(read)
    }
}

/// The pseudonyms on the suppression list as of the run date; whoever is listed is suppressed, whatever the effective date says.
pub async fn suppressed(run: &Run, staged: &Staged) -> Result<HashSet<String>> {
    let table = staged.tables.get("suppressions").ok_or_else(|| Error::privacy("the suppression list was not staged"))?;
    let context = engine::session(&run.engine)?;
    let rows = engine::collect(table.as_of_day(&context, run.date, None)?).await?;
    Ok(column::<StringArray>(&rows, "user_id")?.iter().flatten().map(str::to_owned).collect())
}

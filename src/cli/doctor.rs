//! `nightmarket doctor`: what this machine and this job can do.

use super::{Output, Place, print};
use crate::error::{Error, Result};
use crate::platform::pseudonym::Key;
use crate::platform::storage::Store;
use crate::spec::Spec;
use crate::{model, workbench};
use serde::Serialize;
use std::path::Path;

pub async fn run(job: &Path, place: &Place, output: Output) -> Result<()> {
    let checks = checks(job, place).await?;
    print(output, &checks, || {
        checks
            .iter()
            .map(|check| format!("{:<4} {:<12} {}", if check.ok { "ok" } else { "BAD" }, check.name, check.finding))
            .collect::<Vec<_>>()
            .join("\n")
    })?;
    match checks.iter().find(|check| !check.ok) {
        Some(bad) => Err(Error::usage(format_args!("{}: {}", bad.name, bad.finding)).action("mend it and run doctor again")),
        None => Ok(()),
    }
}

/// One line of `doctor`.
#[derive(Serialize)]
struct Checked {
    name: &'static str,
    ok: bool,
    finding: String,
}

async fn checks(job: &Path, place: &Place) -> Result<Vec<Checked>> {
    let spec = Spec::read(job)?;
    let check = |name, result: Result<String>| match result {
        Ok(finding) => Checked { name, ok: true, finding },
        Err(error) => Checked { name, ok: false, finding: error.to_string() },
    };
    let listed = async |store: Result<Store>| -> Result<String> {
        let store = store?;
        Ok(format!("{}: {} objects", store.locate(""), store.list("").await?.len()))
    };
    let checked = workbench::check(Path::new(&spec.sql)).await.and_then(workbench::Checked::sound);
    let planned = checked.map(|checked| format!("{} tables plan", checked.tables.len()));
    Ok(vec![
        check("spec", Ok(format!("{}: job {}", job.display(), spec.name))),
        check("sql", planned),
        check("raw", listed(Store::open_existing(place.raw.as_deref().unwrap_or(&spec.store.raw))).await),
        check("output", listed(Store::open(place.out.as_deref().unwrap_or(&spec.store.output))).await),
        check("key", Key::read(&spec.privacy).map(|key| format!("pseudonym key {}", key.fingerprint()))),
        check("libtorch", libtorch(&spec)),
        check("cores", Ok(std::thread::available_parallelism().map_or("unknown".to_owned(), |cores| cores.to_string()))),
    ])
}

/// Which devices there are, that each multiplies right, and which one the job trains on.
fn libtorch(spec: &Spec) -> Result<String> {
    let probe = model::probe();
    if let Some(broken) = probe.broken {
        return Err(Error::usage(broken));
    }
    let devices = probe.devices.join(", ");
    Ok(format!("{devices}: products are right; device = {:?} of the job; {}", spec.model.device, probe.cuda_half))
}

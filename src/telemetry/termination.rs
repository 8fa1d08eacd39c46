//! How a command ended, as one JSON line for whoever started the process: Kubernetes shows it as the container's message.

use crate::error::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;

/// Kubernetes keeps no more of it.
const LONGEST: usize = 4096;

/// The end of a good night, from its facts.
pub fn of_success(facts: &Value, report: Option<&str>) -> Value {
    let at = |path: &str| facts.pointer(path).cloned().unwrap_or_default();
    json!({
        "ok": true,
        "exit": 0,
        "job": at("/run/job"),
        "date": at("/run/date"),
        "state": at("/publish/state"),
        "generation": at("/publish/generation"),
        "policy_version": at("/publish/policy_version"),
        "reason": at("/publish/reason"),
        "serving": at("/gate/serving"),
        "seconds": at("/took/seconds"),
        "report": report,
    })
}

/// The end of anything that failed.
pub fn of_failure(error: &Error) -> Value {
    json!({
        "ok": false,
        "exit": error.kind.exit_code(),
        "kind": error.kind,
        "message": error.to_string(),
        "next": error.next_action(),
    })
}

/// Writes the line; long texts are cut so that the line stays whole JSON.
pub fn write(path: &Path, line: &Value) -> Result<()> {
    let mut line = line.clone();
    let longest = |line: &Value| {
        let texts = line.as_object().into_iter().flatten().filter_map(|(key, value)| Some((value.as_str()?.len(), key.clone())));
        texts.max().map(|(_, key)| key)
    };
    while line.to_string().len() >= LONGEST {
        let Some(key) = longest(&line) else { break };
        let text = line[&key].as_str().unwrap_or_default();
        let half = text.chars().take(text.chars().count() / 2).collect::<String>();
        line[&key] = json!(format!("{}…", half.trim_end_matches('…')));
    }
    std::fs::write(path, format!("{line}\n")).map_err(|error| Error::usage(format_args!("writing {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_line_is_whole_json_however_long_its_message() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("termination-log");
        let error = Error::new(Kind::Contract, "鞋".repeat(9_000)).action("mend it");
        write(&path, &of_failure(&error)).expect("written");
        let text = std::fs::read_to_string(&path).expect("read");
        assert!(text.len() <= LONGEST && text.ends_with("}\n"), "{} bytes", text.len());
        let line: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((&line["exit"], &line["kind"], &line["next"]), (&json!(30), &json!("contract"), &json!("mend it")));
    }
}

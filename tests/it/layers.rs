//! The architecture page is true: src/lib.rs lists the modules in dependency order, each uses only those above it, and what one
//! module alone may touch, it alone touches.

use std::path::{Path, PathBuf};

#[test]
fn a_module_uses_only_modules_listed_above_it() {
    let modules = modules(&read(Path::new("src/lib.rs")));
    let complaints: Vec<String> =
        sources().iter().flat_map(|source| upward_uses(&modules, &source.module, &source.name, &source.text)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn every_source_file_belongs_to_a_listed_module() {
    let modules = modules(&read(Path::new("src/lib.rs")));
    assert!(modules.contains(&"platform".to_owned()), "the list is not understood: {modules:?}");
    for source in sources() {
        assert!(modules.contains(&source.module), "{}: src/lib.rs does not list {}", source.name, source.module);
    }
}

/// What only one place may name, as source text.
const RESERVED: [(&str, &str, &[&str]); 5] = [
    ("src/model", "learns, so it alone names the libraries of learning", &["tch::", "linfa::", "linfa_logistic::"]),
    ("src/platform/job.rs", "knows TOML", &["toml::"]),
    ("src/platform/run.rs", "reads a clock", &["Utc::now", "Local::now", "SystemTime", "Instant"]),
    ("src/main.rs", "ends the process", &["process::exit", "process::abort", "ExitCode"]),
    ("nowhere", "seeds are arguments", &["rand::rng", "thread_rng", "from_os_rng", "from_entropy", "rand::random"]),
];

#[test]
fn what_one_place_may_touch_no_other_touches() {
    let mut files = sources();
    files.extend([Source::read("src/lib.rs".into()), Source::read("src/main.rs".into())]);
    let complaints: Vec<String> = files.iter().flat_map(|source| trespasses(&source.name, &source.text)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn the_checks_see_what_they_look_for() {
    let modules = ["error", "types", "platform", "cli"].map(str::to_owned);
    let uses = |module: &str, text: &str| upward_uses(&modules, module, "src/x.rs", text);
    assert_eq!(uses("platform", "use crate::error::Result;\nuse crate::platform::engine;\nuse crate::types;\n"), [""; 0]);
    assert_eq!(uses("types", "use crate::types;\n\nuse crate::cli::Cli;"), ["src/x.rs:3: types uses cli, which is not above it"]);
    assert_eq!(uses("types", "let x = Some(crate::platform::run::VERSION);"), ["src/x.rs:1: types uses platform, which is not above it"]);
    assert_eq!(uses("platform", "use crate::{\n    error::{self, Kind},\n    types,\n};"), [""; 0]);
    assert_eq!(
        uses("types", "use crate::{error::{self, cli}, platform::{run, job}};"),
        ["src/x.rs:1: types uses platform, which is not above it"]
    );
    assert_eq!(uses("types", "use crate::*;"), ["src/x.rs:1: types uses *, which is not above it"]);
    assert_eq!(uses("forgotten", "use crate::error::Result;"), ["src/x.rs:1: forgotten uses error, which is not above it"]);
    assert_eq!(uses("types", "/// As in [`crate::cli`].\nlet y = 1; // not crate::cli\n"), [""; 0]);

    assert_eq!(trespasses("src/gate.rs", "let a = tch::Tensor::new();").len(), 1);
    assert_eq!(trespasses("src/model/deep.rs", "let a = tch::Tensor::new();").len(), 0);
    assert_eq!(trespasses("src/model.rs", "use linfa::Dataset;").len(), 0);
    assert_eq!(trespasses("src/platform/run.rs", "let started = Instant::now();").len(), 0);
    assert_eq!(trespasses("src/report/mod.rs", "use std::time::Instant;").len(), 1);
    assert_eq!(trespasses("src/gate.rs", "let a = batch::new();").len(), 0, "a name that ends alike is another name");
}

struct Source {
    /// As people write it: src/platform/run.rs.
    name: String,
    /// The top-level module it belongs to.
    module: String,
    text: String,
}

impl Source {
    fn read(path: PathBuf) -> Self {
        let name = path.to_string_lossy().replace('\\', "/");
        let module = name.split('/').nth(1).expect("below src").trim_end_matches(".rs").to_owned();
        Self { text: read(&path), name, module }
    }
}

/// Every file of the library but its page.
fn sources() -> Vec<Source> {
    let mut open = vec![PathBuf::from("src")];
    let mut found = Vec::new();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("a readable entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found.retain(|path| path != Path::new("src/lib.rs") && path != Path::new("src/main.rs"));
    found.into_iter().map(Source::read).collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The top-level modules in the order of the page.
fn modules(page: &str) -> Vec<String> {
    page.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).map(str::to_owned).collect()
}

/// Uses, in a file of `module`, of modules that do not stand above it.
fn upward_uses(modules: &[String], module: &str, file: &str, text: &str) -> Vec<String> {
    let place = |name: &str| modules.iter().position(|listed| listed == name);
    let code = without_comments(text);
    let mut complaints = Vec::new();
    for (at, rest) in mentions(&code, "crate::") {
        let number = line_of(&code, at);
        for used in first_names(rest) {
            match (place(used), place(module)) {
                (Some(used), Some(own)) if used <= own => {}
                _ => complaints.push(format!("{file}:{number}: {module} uses {used}, which is not above it")),
            }
        }
    }
    complaints
}

/// The names with which the paths after `crate::` begin: `a` of `a::b`; `a` and `b` of `{a::{c, d}, b}`.
fn first_names(rest: &str) -> Vec<&str> {
    let name = |text: &'_ str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let Some(group) = rest.strip_prefix('{') else {
        // A glob or a macro has no name here, and is no module: kept as it is, it matches none.
        return vec![&rest[..name(rest).max(1)]];
    };
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                let path = group[start..at].trim();
                found.extend((!path.is_empty()).then(|| &path[..name(path).max(1)]));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// Uses, in a file, of what another place has to itself.
fn trespasses(file: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (place, reason, names) in RESERVED {
        if file == place || file.starts_with(&format!("{place}/")) || file == format!("{place}.rs") {
            continue;
        }
        let code = without_comments(text);
        for name in names {
            let named = mentions(&code, name).into_iter().map(|(at, _)| line_of(&code, at));
            complaints.extend(named.map(|number| format!("{file}:{number}: names {name}, but only {place} {reason}")));
        }
    }
    complaints
}

/// Each mention of `name` as a whole path, not as the end of a longer name: where it stands and what follows it.
fn mentions<'a>(code: &'a str, name: &str) -> Vec<(usize, &'a str)> {
    let whole = |at: usize| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    code.match_indices(name).filter(|(at, _)| whole(*at)).map(|(at, _)| (at, &code[at + name.len()..])).collect()
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// The text, line by line, without line comments.
fn without_comments(text: &str) -> String {
    let code = |line: &'_ str| if line.trim_start().starts_with("//") { 0 } else { line.find(" // ").unwrap_or(line.len()) };
    text.lines().map(|line| &line[..code(line)]).collect::<Vec<_>>().join("\n")
}

//! Lets the binary, the tests and the benches find libtorch without LD_LIBRARY_PATH, and records the git revision for manifests.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{libtorch}/lib");
    }
    println!("cargo:rustc-env=NIGHTMARKET_GIT_SHA={}", revision());
}

/// NIGHTMARKET_GIT_SHA where it is set (an image is built without .git), else what git says, else `unknown`.
fn revision() -> String {
    println!("cargo:rerun-if-env-changed=NIGHTMARKET_GIT_SHA");
    if let Some(given) = std::env::var("NIGHTMARKET_GIT_SHA").ok().filter(|given| !given.is_empty()) {
        return given;
    }
    // HEAD changes when another branch is checked out, its log with every commit. git knows where they are, in a worktree too.
    for file in ["HEAD", "logs/HEAD"] {
        // A file that is not there would count as changed in every build.
        if let Some(path) = git(&["rev-parse", "--git-path", file]).filter(|path| Path::new(path).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned())
}

fn git(arguments: &[&str]) -> Option<String> {
    let out = Command::new("git").args(arguments).output().ok().filter(|out| out.status.success())?;
    Some(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

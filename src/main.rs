//! Parses the command line, runs the command, turns its end into an exit code and one line that says what to do next.

use clap::Parser;
use nightmarket::cli::{self, Cli};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    cli::start_logging(&cli);
    match cli::run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nightmarket: {error} -- next: {} (exit {})", error.next_action(), error.kind.exit_code());
            ExitCode::from(error.kind.exit_code())
        }
    }
}

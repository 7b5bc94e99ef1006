//! `quell-train`: see [`quell_trainer::cli`].

use std::process::ExitCode;

use clap::Parser;
use quell_trainer::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! `quell`: compiles checkpoints into `.quell` files, and looks at and runs them.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Diffusion models for microcontrollers: convert, inspect, verify and run them.
#[derive(Parser)]
#[command(version, about, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  quell convert checkpoint/ -o model.quell --weights int8
  quell inspect model.quell
  quell verify model.quell checkpoint/
  quell sample model.quell --seed 7 --steps 4 --count 16 --output grid.png
  quell bench model.quell";

#[derive(Subcommand)]
enum Command {
    Convert(commands::convert::Args),
    Inspect(commands::inspect::Args),
    Verify(commands::verify::Args),
    Run(commands::run::Args),
    Sample(Box<commands::sample::Args>),
    Bench(commands::bench::Args),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    // Without it, all that is lost is that Ctrl-C tidies up.
    quell_converter::output::clean_up_on_signals().ok();
    let result = match command {
        Command::Convert(args) => commands::convert::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Verify(args) => commands::verify::run(&args),
        Command::Run(args) => commands::run::run(&args),
        Command::Sample(args) => commands::sample::run(&args),
        Command::Bench(args) => commands::bench::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // Nobody reads on (`quell inspect … | head`): not a failure.
        Err(error) if commands::is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

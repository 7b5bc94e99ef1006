//! How far a run is: a bar in a terminal, one line per lap everywhere.
//!
//! This module owns what is printed. It must not know what is trained.

use std::io::{self, Write};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A part of an epoch, as it went.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lap {
    /// Epochs done.
    pub(crate) epoch: f64,
    /// Epochs to do, the done ones among them.
    pub(crate) epochs: usize,
    /// The mean loss while it was trained.
    pub(crate) train_loss: f64,
    /// The averaged weights' loss afterwards.
    pub(crate) valid_loss: f64,
    /// The learning rate now.
    pub(crate) learning_rate: f64,
    /// Wall time, validation included.
    pub(crate) seconds: f64,
    /// Pictures that were learnt from.
    pub(crate) pictures: usize,
}

/// Shows a run's progress.
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A bar of `steps`, of which `done` lie behind; hidden where standard error is no terminal.
    pub(crate) fn new(steps: usize, done: usize) -> Self {
        let bar = ProgressBar::with_draw_target(Some(steps as u64), ProgressDrawTarget::stderr());
        let style = "{bar:32} {pos}/{len} steps  loss {msg}  {per_sec}, {eta} to go";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        bar.set_position(done as u64);
        bar.reset_eta();
        Self { bar }
    }

    /// One more step.
    pub(crate) fn step(&mut self, loss: f64) {
        self.bar.set_message(format!("{loss:.4}"));
        self.bar.inc(1);
    }

    /// The end of a lap.
    ///
    /// # Errors
    ///
    /// As [`say`].
    pub(crate) fn lap(&mut self, lap: &Lap) -> Result<()> {
        let rate = lap.pictures as f64 / lap.seconds;
        let line = format!(
            "epoch {:.2}/{}  train loss {:.5}  valid loss {:.5}  learning rate {:.2e}  {:.1} s, \
             {rate:.0} pictures/s",
            lap.epoch, lap.epochs, lap.train_loss, lap.valid_loss, lap.learning_rate, lap.seconds,
        );
        self.bar.suspend(|| say(&line))
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// Prints a line on standard output.
///
/// # Errors
///
/// One line, where `println!` would panic: standard output may be a file on a full disk.
pub(crate) fn say(line: &str) -> Result<()> {
    writeln!(io::stdout(), "{line}").context("standard output: cannot be written")
}

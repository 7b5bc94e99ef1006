//! Progress as plain lines, for logs and pipes.
//!
//! This module owns what a run prints where there is no terminal: one line per lap. It must
//! not know what is trained. In a terminal burn's own dashboard is shown instead.

use std::io::IsTerminal;
use std::time::Instant;

use burn::train::Interrupter;
use burn::train::logger::{EvaluationProgressLogger, TrainingProgressLogger};
use burn::train::metric::{MetricDefinition, MetricId};
use burn::train::renderer::{
    EvaluationName, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, default_renderer,
};

/// burn's dashboard in a terminal, else [`Lines`].
pub fn renderer(
    interrupter: Interrupter,
    checkpoint: Option<usize>,
    pace: Pace,
) -> Box<dyn MetricsRenderer> {
    if std::io::stdout().is_terminal() {
        default_renderer(interrupter, checkpoint)
    } else {
        Box::new(Lines::new(pace))
    }
}

/// What a lap, which burn calls an epoch, is.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Laps in an epoch.
    pub parts: usize,
    /// Pictures in a lap.
    pub pictures: usize,
}

/// Prints one line per lap: losses, learning rate, speed, minutes to go.
pub struct Lines {
    pace: Pace,
    loss: Option<MetricId>,
    rate: Option<MetricId>,
    laps: usize,
    lap_began: Instant,
    train_loss: f64,
    valid_loss: f64,
    learning_rate: f64,
}

impl Lines {
    /// A renderer that has seen nothing yet.
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            loss: None,
            rate: None,
            laps: 0,
            lap_began: Instant::now(),
            train_loss: f64::NAN,
            valid_loss: f64::NAN,
            learning_rate: f64::NAN,
        }
    }
}

impl MetricsRendererTraining for Lines {
    fn update_train(&mut self, state: MetricState) {
        if let MetricState::Numeric(entry, Some(value)) = state {
            if Some(&entry.metric_id) == self.loss.as_ref() {
                self.train_loss = value.current();
            } else if Some(&entry.metric_id) == self.rate.as_ref() {
                self.learning_rate = value.current();
            }
        }
    }

    fn update_valid(&mut self, state: MetricState) {
        if let MetricState::Numeric(entry, Some(value)) = state
            && Some(&entry.metric_id) == self.loss.as_ref()
        {
            self.valid_loss = value.current();
        }
    }
}

impl TrainingProgressLogger for Lines {
    fn start(&mut self, laps: usize, _first: usize, _items: Option<usize>, _label: Option<&str>) {
        self.laps = laps;
        self.lap_began = Instant::now();
    }

    fn update_epoch(&mut self, lap: usize) {
        let parts = self.pace.parts as f64;
        let seconds = self.lap_began.elapsed().as_secs_f64();
        self.lap_began = Instant::now();
        println!(
            "epoch {:.2}/{:.0}  train loss {:.5}  valid loss {:.5}  learning rate {:.2e}  \
             {seconds:.1} s, {:.0} pictures/s  {:.0} minutes to go",
            lap as f64 / parts,
            self.laps as f64 / parts,
            self.train_loss,
            self.valid_loss,
            self.learning_rate,
            self.pace.pictures as f64 / seconds,
            self.laps.saturating_sub(lap) as f64 * seconds / 60.0,
        );
    }

    fn start_split(&mut self, _split: &str, _items: usize) {}
    fn update_split(&mut self, _items: usize) {}
    fn end_split(&mut self) {}
    fn end(&mut self) {}
    fn log_event_training(&mut self, _event: String) {}
}

impl MetricsRenderer for Lines {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        match definition.name.as_str() {
            "Loss" => self.loss = Some(definition.metric_id),
            "Learning Rate" => self.rate = Some(definition.metric_id),
            _ => {}
        }
    }
}

// burn asks every renderer for these; a training run never calls them.
impl MetricsRendererEvaluation for Lines {
    fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}
}

impl EvaluationProgressLogger for Lines {
    fn start_global_progress(&mut self, _tests: usize) {}
    fn start_test(&mut self, _name: &str, _items: usize) {}
    fn update_test_progress(&mut self, _items: usize) {}
    fn end_test(&mut self) {}
    fn end_global_progress(&mut self) {}
    fn log_event_evaluation(&mut self, _event: String) {}
}

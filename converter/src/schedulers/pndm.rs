//! PNDM (Liu et al. 2022): pseudo linear multistep steps, with DDIM's transfer and
//! the noise that a linear combination of the last calls predicts.

use anyhow::{Result, bail, ensure};
use quell::format::{Limit, Prediction};

use super::Run;
use super::sigmas::{self, Level};
use super::table::{Call, Mix, Table, clean};

/// The slot that carries the first sample to the second call; 0..3 keep outputs.
const FIRST: usize = 3;

/// Adams & Bashforth's weights, the newest first.
const WEIGHTS: [&[f64]; 4] = [
    &[1.0],
    &[1.5, -0.5],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

/// The first step is taken twice: the second call, at its end, corrects it.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    let prediction = run.schedule.prediction;
    ensure!(
        prediction != Prediction::Sample,
        "`prediction_type` is sample; expected epsilon or v_prediction"
    );
    // A file may ask for them: then devices run its other samplers.
    ensure!(
        run.options.flag("skip_prk_steps", false)? || run.probe,
        "`skip_prk_steps` is false; expected true: the Runge-Kutta calls keep five vectors, and a \
         run keeps at most four. --trajectory pndm:{},skip_prk_steps does without them",
        run.steps
    );
    let end = match run.options.flag("set_alpha_to_one", false)? {
        true => 1.0,
        false => run.alpha_cumprod(0.0)?,
    };
    let mut times = sigmas::whole(run)?;
    let stride = (run.trained() / run.steps) as f64;
    // The second call is at the end of the first step.
    if let Some(&second) = times.get(1) {
        times.insert(1, second);
    }
    let mut calls = Vec::with_capacity(times.len());
    for (i, &time) in times.iter().enumerate() {
        let (from, to) = match i {
            1 => (time + stride, time),
            _ => (time, time - stride),
        };
        let a = run.alpha_cumprod(from)?;
        let a_next = if to < 0.0 {
            end
        } else {
            run.alpha_cumprod(to)?
        };
        let sample = if i == 1 { Mix::slot(FIRST) } else { Mix::X };
        // Outputs that are kept: all but the second call's.
        let place = |i: usize| if i == 0 { 0 } else { i - 1 };
        let output = match i {
            1 => (Mix::OUTPUT + Mix::slot(0)) * 0.5,
            _ => {
                let kept = place(i);
                let weights = WEIGHTS[kept.min(3)].iter().enumerate();
                weights.fold(Mix::default(), |sum, (back, &weight)| {
                    let term = match back {
                        0 => Mix::OUTPUT,
                        _ => Mix::slot((kept - back) % 3),
                    };
                    sum + term * weight
                })
            }
        };
        let level = Level::at(run.alpha_cumprod(time)?);
        let mut saves = Vec::new();
        if i != 1 && i + 1 < times.len() {
            saves.push((place(i) % 3, Mix::OUTPUT));
        }
        if i == 0 && times.len() > 1 {
            saves.push((FIRST, Mix::X));
        }
        calls.push(Call {
            time,
            x0: clean(prediction, level.signal, level.noise),
            next: transfer(prediction, sample, output, a, a_next)?,
            noise: 0.0,
            saves,
        });
    }
    let slots = calls
        .iter()
        .flat_map(|call| &call.saves)
        .map(|(slot, _)| slot + 1)
        .max();
    Ok(Table {
        slots: slots.unwrap_or(0),
        ..Table::plain(Limit::None, calls)
    })
}

/// Equation 11: from ᾱ to ᾱ'.
fn transfer(prediction: Prediction, x: Mix, output: Mix, a: f64, a_next: f64) -> Result<Mix> {
    let noise = match prediction {
        Prediction::Epsilon => output,
        Prediction::Velocity => output * a.sqrt() + x * (1.0 - a).sqrt(),
        other => bail!("PNDM does not know {other:?}"),
    };
    let scale = a * (1.0 - a_next).sqrt() + (a * (1.0 - a) * a_next).sqrt();
    Ok(x * (a_next / a).sqrt() - noise * ((a_next - a) / scale))
}

//! Improved pseudo linear multistep steps (Liu et al. 2022, F-PNDM without its
//! Runge-Kutta start), of up to the fourth order.

use anyhow::{Result, bail, ensure};
use quell::format::{Limit, Prediction};

use super::Run;
use super::table::{Call, Mix, Table, clean, epsilon};
use super::told::{Told, angle_noise};

/// Adams & Bashforth's weights: of the newest noise first.
const WEIGHTS: [&[f64]; 4] = [
    &[1.0],
    &[3.0 / 2.0, -1.0 / 2.0],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

/// `x' = α'·(x − β·e)/α + β'·e`, where e is a sum over the noises that the last calls
/// predicted. Where there is no signal, (x − β·e)/α counts as 0, as in diffusers.
pub(super) fn table(run: &Run<'_>) -> Result<Table> {
    let Told::Angle(total) = run.schedule.told else {
        bail!(
            "{} is for models that are told the angle of signal and noise; expected the scheduler {}",
            run.sampler.name,
            run.sampler.class
        );
    };
    ensure!(
        run.schedule.prediction == Prediction::Velocity,
        "`prediction_type` is not v_prediction; expected that with {}",
        run.sampler.name
    );
    run.options.absent(&["trained_betas"])?;
    let steps = run.steps;
    let slots = WEIGHTS.len() - 1;
    let share = |i: usize| (steps - i) as f64 / steps as f64;
    let calls = (0..steps).map(|i| {
        let [now, to] = [share(i), share(i + 1)].map(angle_noise);
        let [signal, next] = [now, to].map(|noise| (1.0 - noise * noise).sqrt());
        let newest = epsilon(run.schedule.prediction, signal, now);
        let weights = WEIGHTS[slots.min(i)].iter().enumerate();
        let sum = weights.fold(Mix::default(), |sum, (back, &weight)| {
            let noise = match back {
                0 => newest,
                _ => Mix::slot((i - back) % slots),
            };
            sum + noise * weight
        });
        let estimate = match signal > 1e-7 {
            true => (Mix::X - sum * now) * (1.0 / signal),
            false => Mix::default(),
        };
        Call {
            time: share(i) * total as f64 - 1.0,
            x0: clean(run.schedule.prediction, signal, now),
            next: estimate * next + sum * to,
            noise: 0.0,
            saves: match i + 1 < steps {
                true => vec![(i % slots, newest)],
                false => Vec::new(),
            },
        }
    });
    Ok(Table {
        noise_scale: 1.0,
        limit: Limit::None,
        slots: slots.min(steps - 1),
        gap: 0.0,
        calls: calls.collect(),
    })
}

//! Timesteps and noise levels of the solvers that are stated for x itself:
//! DPM-Solver, UniPC and DEIS.

use anyhow::{Result, bail, ensure};
use quell::format::Prediction;

use super::sigmas::{self, Level};
use super::spread::{self, Spread};
use super::{Options, Run};

/// Where a run goes.
pub(super) struct Path {
    /// The timestep of every step; whole in every case.
    pub(super) times: Vec<f64>,
    /// The level of every step, and of what the last one leads to.
    pub(super) levels: Vec<Level>,
}

/// In what the solvers differ.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Kind {
    /// May leave out what lies below `lambda_min_clipped`, and has Lu's levels.
    Dpm,
    /// As [`Kind::Dpm`], but with evenly spaced timesteps alone and without Lu's
    /// levels.
    Singlestep,
    /// Ends with the last of the levels that it has chosen.
    UniPc,
    /// As [`Kind::UniPc`], and always ends at noise.
    Deis,
    /// As [`Kind::Deis`], and may leave out what lies below `lambda_min_clipped`.
    Sa,
}

/// How a chosen level's timestep becomes whole.
#[derive(Clone, Copy)]
enum Whole {
    Nearest,
    /// Cut off, as diffusers does where it casts to integers.
    Below,
}

/// The path that the options ask for.
pub(super) fn path(run: &Run<'_>, kind: Kind) -> Result<Path> {
    if run.sampler.class == "EDMDPMSolverMultistepScheduler" {
        return super::edm::path(run);
    }
    let flow = run.options.flag("use_flow_sigmas", false)?;
    let trained_on_flow = run.schedule.prediction == Prediction::Flow;
    ensure!(
        flow == trained_on_flow,
        "`use_flow_sigmas` is {flow}; expected {trained_on_flow} for a model that was {} trained \
         by flow matching (`prediction_type` flow_prediction)",
        if trained_on_flow { "" } else { "not" }
    );
    run.options.ignore(&["time_shift_type"]);
    match flow {
        true => straight(run, kind),
        false => curved(run, kind),
    }
}

/// Levels between those of training.
fn curved(run: &Run<'_>, kind: Kind) -> Result<Path> {
    run.options.absent(&["use_dynamic_shifting"])?;
    run.options.ignore(&["flow_shift", "shift_terminal"]);
    let training = sigmas::of_training(run);
    let (noisiest, cleanest) = (training[training.len() - 1], training[0]);
    let visible = visible(run, kind, &training)?;
    let mut times = match kind {
        Kind::Singlestep => sigmas::even(run.steps, visible),
        _ => sigmas::multistep(run, visible)?,
    };
    let (max, min) = (
        run.options.number_or_null("sigma_max")?,
        run.options.number_or_null("sigma_min")?,
    );
    let ends = match max.or(min) {
        Some(_) => spread::range(run.options, noisiest, cleanest),
        None => Ok((noisiest, cleanest)),
    };
    let lu = kind == Kind::Dpm && run.options.flag("use_lu_lambdas", false)?;
    let (sigmas, whole) = match Spread::of(run.options)? {
        Some(_) if lu => bail!("`use_lu_lambdas` is true; expected false with another choice"),
        Some(Spread::Karras) => {
            let (max, min) = ends?;
            let cosine = kind == Kind::Dpm && is_cosine(run.options);
            let whole = if cosine { Whole::Below } else { Whole::Nearest };
            (Spread::Karras.sigmas(max, min, run.steps), whole)
        }
        Some(spread) => {
            let (max, min) = ends?;
            (spread.sigmas(max, min, run.steps), Whole::Below)
        }
        // Lu et al. 2022a: evenly in λ, which is −ln σ.
        None if lu => {
            let even = Spread::Exponential.sigmas(noisiest, cleanest, run.steps);
            let whole = if is_cosine(run.options) {
                Whole::Below
            } else {
                Whole::Nearest
            };
            (even, whole)
        }
        None => {
            let sigmas: Result<Vec<f64>> =
                times.iter().map(|&t| sigmas::at(&training, t)).collect();
            let mut sigmas = sigmas?;
            sigmas.push(if clean(run, kind)? { 0.0 } else { cleanest });
            let levels = sigmas.into_iter().map(Level::of).collect();
            return Ok(Path { times, levels });
        }
    };
    times = sigmas
        .iter()
        .map(|&s| whole.of(sigmas::time_of(s, &training)))
        .collect();
    let own_end = matches!(kind, Kind::UniPc | Kind::Deis | Kind::Sa);
    let last = match clean(run, kind)? {
        true => 0.0,
        false if own_end => sigmas[sigmas.len() - 1],
        false => cleanest,
    };
    let levels = sigmas.into_iter().chain([last]).map(Level::of).collect();
    Ok(Path { times, levels })
}

/// How many of the training timesteps are visited: λ = −ln σ falls with time.
fn visible(run: &Run<'_>, kind: Kind, training: &[f64]) -> Result<usize> {
    if !matches!(kind, Kind::Dpm | Kind::Singlestep | Kind::Sa) {
        return Ok(training.len());
    }
    let clip = run.options.number_or_null("lambda_min_clipped")?;
    let reached = |&sigma: &f64| clip.is_none_or(|clip| -sigma.ln() >= clip);
    let visible = training.iter().filter(|sigma| reached(sigma)).count();
    let clip = clip.unwrap_or(f64::NEG_INFINITY);
    ensure!(
        visible > 0,
        "`lambda_min_clipped` is {clip}, which leaves no timestep; expected less"
    );
    Ok(visible)
}

/// Whether the run ends without noise.
fn clean(run: &Run<'_>, kind: Kind) -> Result<bool> {
    let noisy = matches!(kind, Kind::Deis | Kind::Sa);
    Ok(!noisy && sigmas::ends_clean(run.options)?)
}

/// diffusers rounds the timesteps of all schedules but this one.
fn is_cosine(options: &Options) -> bool {
    options.says("beta_schedule", "squaredcos_cap_v2")
}

impl Whole {
    fn of(self, time: f64) -> f64 {
        match self {
            Self::Nearest => time.round_ties_even(),
            // The ends are whole, but for the last digits. diffusers, in f32, cuts off a
            // whole timestep there for some schedules and not for others.
            Self::Below => (time + 1e-4).floor(),
        }
    }
}

/// The levels of a flow-matching model (Esser et al. 2024, equation 23).
fn straight(run: &Run<'_>, kind: Kind) -> Result<Path> {
    let spread = Spread::of(run.options)?;
    ensure!(
        spread.is_none(),
        "`use_flow_sigmas` is true; expected false with `use_karras_sigmas`, \
         `use_exponential_sigmas` or `use_beta_sigmas`"
    );
    let shift = Shift::of(run, "flow_shift")?;
    let total = run.trained() as f64;
    // As diffusers computes them, since timesteps are cut off.
    let step = (1.0 / total - 1.0) / run.steps as f64;
    let line = (0..run.steps).map(|i| 1.0 + i as f64 * step);
    let sigmas: Vec<f64> = match kind {
        Kind::UniPc => {
            let mut sigmas = shift.stretched(line.map(|s| shift.apply(s)).collect())?;
            // σ = 1 has no signal.
            if (sigmas[0] - 1.0).abs() < 1e-6 {
                sigmas[0] -= 1e-6;
            }
            sigmas
        }
        _ => {
            let inner = (1..run.steps).map(|i| 1.0 - (1.0 + i as f64 * step));
            let rising = inner.chain([1.0 - 1.0 / total]).map(|s| shift.apply(s));
            let mut sigmas: Vec<f64> = rising.collect();
            sigmas.reverse();
            sigmas
        }
    };
    let last = match clean(run, kind)? {
        true => 0.0,
        false => match kind {
            Kind::UniPc | Kind::Deis | Kind::Sa => sigmas[sigmas.len() - 1],
            _ => bail!("`final_sigmas_type` is `sigma_min`; expected zero with `use_flow_sigmas`"),
        },
    };
    let times = sigmas.iter().map(|s| (s * total).floor()).collect();
    let levels = sigmas.into_iter().chain([last]).map(Level::straight);
    Ok(Path {
        times,
        levels: levels.collect(),
    })
}

/// How the levels of flow matching are moved towards noise.
pub(super) struct Shift {
    factor: f64,
    dynamic: bool,
    terminal: Option<f64>,
}

impl Shift {
    /// From the options; `field` holds the factor where it is not `mu` that says it.
    pub(super) fn of(run: &Run<'_>, field: &str) -> Result<Self> {
        let options = run.options;
        let fixed = Self::fixed(run, field)?.factor;
        let mu = options.number_or_null("mu")?;
        let words = ["exponential", "linear"];
        let kind = options.word("time_shift_type", words[0], &words)?;
        let dynamic = options.flag("use_dynamic_shifting", false)?;
        let factor = match (dynamic, mu) {
            (false, None) => fixed,
            (false, Some(mu)) => {
                bail!("`mu` is {mu}; expected none without `use_dynamic_shifting`")
            }
            (true, None) if run.probe => 1.0,
            (true, None) => bail!(
                "`use_dynamic_shifting` is true; expected `mu`, which a pipeline computes from the \
                 size of the picture, as an option: {}:{},mu=1.15",
                run.sampler.name,
                run.steps
            ),
            (true, Some(mu)) if kind == "linear" => mu,
            (true, Some(mu)) => mu.exp(),
        };
        ensure!(
            factor.is_finite() && factor > 0.0,
            "`mu` shifts by a factor of {factor}; expected a finite one above 0"
        );
        let terminal = options.number_or_null("shift_terminal")?;
        let terminal = terminal.filter(|&terminal| terminal != 0.0);
        if let Some(terminal) = terminal {
            let inside = (0.0..1.0).contains(&terminal);
            ensure!(inside, "`shift_terminal` is {terminal}; expected 0 to 1");
        }
        Ok(Self {
            factor,
            dynamic,
            // A single step cannot be stretched.
            terminal: terminal.filter(|_| !run.probe),
        })
    }

    /// By the factor in `field` alone.
    pub(super) fn fixed(run: &Run<'_>, field: &str) -> Result<Self> {
        let factor = run.options.number(field, 1.0)?;
        ensure!(factor > 0.0, "`{field}` is {factor}; expected more than 0");
        Ok(Self {
            factor,
            dynamic: false,
            terminal: None,
        })
    }

    /// Whether `mu` says how far.
    pub(super) fn is_dynamic(&self) -> bool {
        self.dynamic
    }

    pub(super) fn apply(&self, sigma: f64) -> f64 {
        self.factor * sigma / (1.0 + (self.factor - 1.0) * sigma)
    }

    /// Falling levels, stretched so that they end at `shift_terminal`.
    pub(super) fn stretched(&self, sigmas: Vec<f64>) -> Result<Vec<f64>> {
        let (Some(terminal), Some(end)) = (self.terminal, sigmas.last().copied()) else {
            return Ok(sigmas);
        };
        let stretch = (1.0 - end) / (1.0 - terminal);
        ensure!(
            stretch > 0.0,
            "`shift_terminal` is {terminal}; expected none for a run of one step"
        );
        Ok(sigmas.iter().map(|s| 1.0 - (1.0 - s) / stretch).collect())
    }
}

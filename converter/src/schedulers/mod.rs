//! Samplers as tables: from a noise schedule, options and a step count to the
//! coefficients of every denoiser call.
//!
//! Owns the mathematics of all samplers but the two that devices compute
//! themselves, one file each, named as in diffusers; with DDPM and DDIM too,
//! for runs whose numbers are to come from f64. A new sampler is one such file
//! and one row in `SAMPLERS`. Knows nothing of the file or the device.

mod ddim;
mod ddim_inverse;
mod ddpm;
mod deis_multistep;
mod dpmsolver_multistep;
mod dpmsolver_singlestep;
mod edm;
mod euler_ancestral_discrete;
mod euler_discrete;
mod flow_match_euler_discrete;
mod flow_match_heun_discrete;
mod heun_discrete;
mod ipndm;
mod k_dpm_2_discrete;
mod lcm;
mod lms_discrete;
mod multistep;
mod options;
mod pndm;
mod sasolver;
mod sigmas;
mod soflow;
mod spec;
mod spread;
mod table;
mod tcd;
mod told;
mod unipc_multistep;

use anyhow::{Context, Result, bail, ensure};
use quell::format::{Limit, Prediction, Row, Save};

pub use options::Options;
pub(crate) use sigmas::spacing;
pub use spec::Spec;
use table::{Call, Table};
pub use told::{Edm, Told};

use crate::checkpoint::NoiseSchedule;
use crate::timesteps::{Timesteps, Visit};

/// A sampler that solver tables can be made for.
struct Sampler {
    /// Its name in a [`Spec`].
    name: &'static str,
    /// `_class_name` of its configuration.
    class: &'static str,
    /// What it is for.
    of: Trained,
    table: fn(&Run<'_>) -> Result<Table>,
}

/// How a model was trained that a sampler is for.
#[derive(Clone, Copy, PartialEq)]
enum Trained {
    /// By diffusion; diffusers' class knows `rescale_betas_zero_snr`.
    Diffusion,
    /// By diffusion; diffusers' class ignores `rescale_betas_zero_snr`, and so
    /// does the sampler.
    Unrescaled,
    /// By flow matching.
    Flow,
    /// By diffusion, or with `use_flow_sigmas` by flow matching.
    Either,
    /// As [`Trained::Either`], and as [`Trained::Unrescaled`].
    EitherUnrescaled,
    /// By flow matching, and for jumps whose length the network is told. No class of
    /// diffusers is for these.
    Gaps,
}

impl Trained {
    fn on_flow(self) -> bool {
        self == Self::Flow || self == Self::Gaps || self.is_either()
    }

    fn on_diffusion(self) -> bool {
        self != Self::Flow && self != Self::Gaps
    }

    fn is_either(self) -> bool {
        matches!(self, Self::Either | Self::EitherUnrescaled)
    }

    fn rescales(self) -> bool {
        matches!(self, Self::Diffusion | Self::Either)
    }
}

/// The samplers, by name.
#[rustfmt::skip]
const SAMPLERS: [Sampler; 24] = [
    Sampler { name: "ddpm", class: "DDPMScheduler", of: Trained::Diffusion, table: ddpm::table },
    Sampler { name: "ddim", class: "DDIMScheduler", of: Trained::Diffusion, table: ddim::table },
    Sampler { name: "ddim-inverse", class: "DDIMInverseScheduler", of: Trained::Diffusion, table: ddim_inverse::table },
    Sampler { name: "dpmsolver++", class: "DPMSolverMultistepScheduler", of: Trained::Either, table: dpmsolver_multistep::table },
    Sampler { name: "dpmsolver-singlestep", class: "DPMSolverSinglestepScheduler", of: Trained::EitherUnrescaled, table: dpmsolver_singlestep::table },
    Sampler { name: "unipc", class: "UniPCMultistepScheduler", of: Trained::Either, table: unipc_multistep::table },
    Sampler { name: "deis", class: "DEISMultistepScheduler", of: Trained::EitherUnrescaled, table: deis_multistep::table },
    Sampler { name: "sasolver", class: "SASolverScheduler", of: Trained::EitherUnrescaled, table: sasolver::table },
    Sampler { name: "euler", class: "EulerDiscreteScheduler", of: Trained::Diffusion, table: euler_discrete::table },
    Sampler { name: "euler-ancestral", class: "EulerAncestralDiscreteScheduler", of: Trained::Diffusion, table: euler_ancestral_discrete::table },
    Sampler { name: "heun", class: "HeunDiscreteScheduler", of: Trained::Unrescaled, table: heun_discrete::table },
    Sampler { name: "kdpm2", class: "KDPM2DiscreteScheduler", of: Trained::Unrescaled, table: k_dpm_2_discrete::table },
    Sampler { name: "kdpm2-ancestral", class: "KDPM2AncestralDiscreteScheduler", of: Trained::Unrescaled, table: k_dpm_2_discrete::ancestral },
    Sampler { name: "lms", class: "LMSDiscreteScheduler", of: Trained::Unrescaled, table: lms_discrete::table },
    Sampler { name: "pndm", class: "PNDMScheduler", of: Trained::Unrescaled, table: pndm::table },
    Sampler { name: "lcm", class: "LCMScheduler", of: Trained::Diffusion, table: lcm::table },
    Sampler { name: "tcd", class: "TCDScheduler", of: Trained::Diffusion, table: tcd::table },
    Sampler { name: "edm-euler", class: "EDMEulerScheduler", of: Trained::Unrescaled, table: edm::euler },
    Sampler { name: "edm-dpmsolver++", class: "EDMDPMSolverMultistepScheduler", of: Trained::Unrescaled, table: dpmsolver_multistep::table },
    Sampler { name: "consistency", class: "CMStochasticIterativeScheduler", of: Trained::Unrescaled, table: edm::consistency },
    Sampler { name: "ipndm", class: "IPNDMScheduler", of: Trained::Unrescaled, table: ipndm::table },
    Sampler { name: "flow-euler", class: "FlowMatchEulerDiscreteScheduler", of: Trained::Flow, table: flow_match_euler_discrete::table },
    Sampler { name: "flow-heun", class: "FlowMatchHeunDiscreteScheduler", of: Trained::Flow, table: flow_match_heun_discrete::table },
    Sampler { name: "soflow", class: "FlowMatchEulerDiscreteScheduler", of: Trained::Gaps, table: soflow::table },
];

/// Classes of diffusers that no table of rows can stand for, and why.
const REASONS: [(&str, &str); 3] = [
    (
        "DPMSolverSDEScheduler",
        "its noise is that of a Brownian tree, which devices do not have",
    ),
    (
        "RePaintScheduler",
        "inpainting is quell sample --mask with any other scheduler",
    ),
    (
        "KarrasVeScheduler",
        "its models are told the noise level of samples that are not scaled to unit variance",
    ),
];

/// Names of all samplers, as a [`Spec`] has them.
pub fn names() -> Vec<&'static str> {
    SAMPLERS.iter().map(|sampler| sampler.name).collect()
}

/// The class of the sampler `name`, in any case; or the class of that name itself.
pub(crate) fn class(name: &str) -> Result<&'static str> {
    let named = |sampler: &&Sampler| {
        sampler.name.eq_ignore_ascii_case(name) || sampler.class.eq_ignore_ascii_case(name)
    };
    let sampler = SAMPLERS.iter().find(named);
    sampler
        .map(|sampler| sampler.class)
        .with_context(|| format!("--scheduler is {name}; expected {}", names().join(", ")))
}

/// Whether a scheduler of this class is for flow-matching models; refuses classes
/// that there is no sampler for.
pub(crate) fn is_flow(class: &str, options: &Options) -> Result<bool> {
    let Some(sampler) = SAMPLERS.iter().find(|sampler| sampler.class == class) else {
        let reason = REASONS.iter().find(|(name, _)| *name == class);
        let reason = reason.map_or(String::new(), |(_, reason)| format!(" ({reason})"));
        let named = SAMPLERS
            .iter()
            .filter(|sampler| sampler.of != Trained::Gaps);
        let classes: Vec<&str> = named.map(|sampler| sampler.class).collect();
        bail!(
            "`_class_name` is `{class}`{reason}; expected {}. --scheduler NAME converts with \
             another one, for a model that was trained on its betas",
            classes.join(", ")
        );
    };
    if sampler.of.is_either() {
        let predicted = options.says("prediction_type", "flow_prediction");
        let flow = options.flag("use_flow_sigmas", false)?;
        ensure!(
            predicted == flow,
            "`use_flow_sigmas` is {flow}; expected {predicted} with this `prediction_type`: \
             flow_prediction goes with use_flow_sigmas"
        );
        return Ok(flow);
    }
    Ok(sampler.of.on_flow())
}

/// Proves that the sampler of `class` understands every field of `schedule`'s
/// options, by making a run of one step.
pub(crate) fn check(schedule: &NoiseSchedule, class: &str) -> Result<()> {
    for sampler in &SAMPLERS {
        // A configuration of DDPM or DDIM has always been one of both.
        let twin = sampler.name == "ddim" && class == "DDPMScheduler";
        let fits = sampler.of != Trained::Gaps || schedule.is_of_gaps();
        if (sampler.class == class || twin) && fits {
            (sampler.table)(&Run {
                sampler,
                schedule,
                options: &schedule.options,
                steps: 1,
                probe: true,
            })?;
        }
    }
    Ok(())
}

/// A run to tabulate.
struct Run<'a> {
    sampler: &'a Sampler,
    schedule: &'a NoiseSchedule,
    options: &'a Options,
    steps: usize,
    /// Nobody will use the table: only the options are looked at.
    probe: bool,
}

impl Run<'_> {
    /// ᾱ of all training timesteps, as the sampler's class knows them.
    fn alphas(&self) -> &[f64] {
        match &self.schedule.unrescaled {
            Some(alphas) if !self.sampler.of.rescales() => alphas,
            _ => &self.schedule.alphas_cumprod,
        }
    }

    /// Number of training timesteps.
    fn trained(&self) -> usize {
        self.alphas().len()
    }

    /// ᾱ at a whole timestep.
    fn alpha_cumprod(&self, time: f64) -> Result<f64> {
        let alphas = self.alphas();
        let found = alphas.get(time as usize).filter(|_| time >= 0.0);
        found.copied().with_context(|| {
            format!(
                "the number of steps and `steps_offset` ask for timestep {time}; expected one of 0..{}",
                alphas.len()
            )
        })
    }

    /// ᾱ before timestep 0.
    fn before_first(&self) -> Result<f64> {
        match self.options.flag("set_alpha_to_one", true)? {
            true => Ok(1.0),
            false => self.alpha_cumprod(0.0),
        }
    }
}

/// `clip_sample` and its range.
fn clip(options: &Options, default: bool) -> Result<Option<f32>> {
    let range = options.number("clip_sample_range", 1.0)? as f32;
    ensure!(
        range.is_finite() && range > 0.0,
        "`clip_sample_range` is {range}; expected more than 0"
    );
    Ok(options.flag("clip_sample", default)?.then_some(range))
}

/// `thresholding` and what belongs to it.
fn threshold(options: &Options) -> Result<Limit> {
    let ratio = options.number("dynamic_thresholding_ratio", 0.995)?;
    let max = options.number("sample_max_value", 1.0)?;
    ensure!(
        (0.0..=1.0).contains(&ratio),
        "`dynamic_thresholding_ratio` is {ratio}; expected 0 to 1"
    );
    ensure!(
        max >= 1.0 && (max as f32).is_finite(),
        "`sample_max_value` is {max}; expected 1 or more"
    );
    Ok(match options.flag("thresholding", false)? {
        true => Limit::Quantile {
            ratio: ratio as f32,
            max: max as f32,
        },
        false => Limit::None,
    })
}

/// Thresholding, or else clipping.
pub(crate) fn limit(options: &Options, clip_by_default: bool) -> Result<Limit> {
    let clip = clip(options, clip_by_default)?;
    Ok(match (threshold(options)?, clip) {
        (Limit::None, Some(range)) => Limit::Clip(range),
        (limit, _) => limit,
    })
}

/// A run, ready for the file.
#[derive(Clone, Debug, PartialEq)]
pub struct SolverTable {
    /// What was asked for.
    pub spec: Spec,
    /// Deviation of the initial noise.
    pub noise_scale: f32,
    /// What bounds x₀.
    pub limit: Limit,
    /// Slots that the rows use.
    pub slots: u32,
    /// One row for each denoiser call.
    pub rows: Vec<Row>,
}

/// The runs that a file carries if nobody asks for others: few-step networks go any number
/// of steps, but only by tables.
pub(crate) fn usual(schedule: &NoiseSchedule) -> Result<Vec<Spec>> {
    let total = schedule.alphas_cumprod.len();
    let name = match () {
        () if schedule.is_of_gaps() => "soflow",
        () if schedule.is_consistent() => "consistency",
        () => return Ok(Vec::new()),
    };
    let steps = [1, 2, 4, 8].into_iter().filter(|&steps| steps <= total);
    steps
        .map(|steps| format!("{name}:{steps}").parse())
        .collect()
}

/// Makes the run that `spec` asks for; timesteps between those of training are
/// added to `timesteps`.
pub fn tabulate(
    schedule: &NoiseSchedule,
    spec: &Spec,
    timesteps: &mut Timesteps,
) -> Result<SolverTable> {
    trajectory(schedule, spec, timesteps).with_context(|| format!("trajectory {spec}"))
}

fn trajectory(
    schedule: &NoiseSchedule,
    spec: &Spec,
    timesteps: &mut Timesteps,
) -> Result<SolverTable> {
    let sampler = SAMPLERS.iter().find(|sampler| sampler.name == spec.sampler);
    let Some(sampler) = sampler else {
        bail!(
            "the sampler is {}; expected one of {}",
            spec.sampler,
            names().join(", ")
        );
    };
    let flow = schedule.prediction == Prediction::Flow;
    let fits = match flow {
        true => sampler.of.on_flow(),
        false => sampler.of.on_diffusion(),
    };
    ensure!(
        fits,
        "{} does not sample {} models",
        sampler.name,
        if flow { "flow-matching" } else { "diffusion" }
    );
    let total = schedule.alphas_cumprod.len();
    let steps = spec.steps as usize;
    ensure!(
        (1..=total).contains(&steps),
        "the number of steps is {steps}; expected 1 to {total}: the model was trained with {total} \
         timesteps"
    );
    let options = schedule.options.overlaid(&spec.fields);
    options.check_types()?;
    let table = (sampler.table)(&Run {
        sampler,
        schedule,
        options: &options,
        steps,
        probe: false,
    })?;
    if let Some(name) = options.untaken(spec.fields.keys()) {
        bail!("`{name}` is not an option of {}", sampler.name);
    }
    let rows = table.calls.iter();
    let rows = rows.map(|call| row(call, table.gap, timesteps));
    Ok(SolverTable {
        spec: spec.clone(),
        noise_scale: table.noise_scale as f32,
        limit: table.limit,
        slots: table.slots as u32,
        rows: rows.collect::<Result<_>>()?,
    })
}

/// A call, rounded to f32.
fn row(call: &Call, gap: f64, timesteps: &mut Timesteps) -> Result<Row> {
    let saves = || {
        call.saves
            .iter()
            .map(|&(slot, value)| (slot, value.round()))
    };
    let mut kept = saves().map(|(slot, value)| Save {
        slot: slot as u32,
        value,
    });
    let visit = Visit {
        time: call.time,
        gap,
    };
    let row = Row {
        timestep: timesteps.visit(visit)?,
        time: call.time as f32,
        x0: (call.x0.0 as f32, call.x0.1 as f32),
        next: call.next.round(),
        noise: call.noise as f32,
        saves: [kept.next(), kept.next()],
    };
    let mixes = saves().map(|(_, value)| value).chain([row.next]);
    let finite = [row.x0.0, row.x0.1, row.noise]
        .into_iter()
        .chain(mixes.flat_map(|mix| mix.coefficients()))
        .all(f32::is_finite);
    ensure!(
        finite,
        "these options have no finite coefficients at timestep {}",
        call.time
    );
    Ok(row)
}

#[cfg(test)]
mod tests;

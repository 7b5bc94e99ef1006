//! A model at work in an arena: single denoiser calls.

use quell_format::{Layer, Purpose, Trajectory};
use quell_kernels::cast;
use thiserror::Error;

use crate::access::{Access, Element};
use crate::arena::{disjoint, f32s, view_f32, view_f32_mut, view_pair};
use crate::execute::Context;
use crate::generation::{Generation, Request, RequestError};
use crate::model::Model;

/// Why an arena cannot be used.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SessionError {
    /// Too few bytes.
    #[error("the arena has {available} bytes, the model needs {needed}")]
    TooSmall {
        /// Bytes that the model needs.
        needed: usize,
        /// Bytes that the buffer has.
        available: usize,
    },
    /// Not at a multiple of 16.
    #[error("the arena must start at a multiple of 16 bytes; quell::Arena does")]
    Misaligned,
}

/// Why a call is impossible.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum InputError {
    /// No such timestep.
    #[error("timestep {timestep} is outside of 0..{timesteps}")]
    Timestep {
        /// What was asked for.
        timestep: u32,
        /// Training timesteps.
        timesteps: u32,
    },
    /// No such class.
    #[error("class {class} does not exist: the model has {classes} classes")]
    Class {
        /// What was asked for.
        class: u32,
        /// Number of classes.
        classes: u32,
    },
    /// The model was not trained to run without a class.
    #[error("the model needs a class, 0..{0}")]
    ClassNeeded(u32),
    /// A plain network was asked at a timestep.
    #[error("a plain network has neither timestep nor class: use `infer`")]
    Plain,
    /// A network of this purpose was asked without a timestep.
    #[error("a {} needs a timestep: use `denoise`", .0.name())]
    Timed(Purpose),
}

/// What an operation has left in the arena, for calibration and comparison.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// f32 activations.
    F32(&'a [f32]),
    /// int8 activations.
    I8(&'a [i8]),
}

/// A model and its working memory.
pub struct Session<'m, 'a> {
    model: Model<'m>,
    arena: &'a mut [u8],
    /// What the buffer has behind the arena: where guidance keeps an output.
    spare: &'a mut [u8],
}

impl<'m, 'a> Session<'m, 'a> {
    pub(crate) fn new(model: Model<'m>, arena: &'a mut [u8]) -> Result<Self, SessionError> {
        let (needed, available) = (model.arena_bytes(), arena.len());
        if !arena
            .as_ptr()
            .addr()
            .is_multiple_of(quell_format::ARENA_ALIGN)
        {
            return Err(SessionError::Misaligned);
        }
        let parts = arena.split_at_mut_checked(needed);
        let (arena, spare) = parts.ok_or(SessionError::TooSmall { needed, available })?;
        // What a plan leaves behind must not depend on what was there before.
        arena.fill(0);
        Ok(Self {
            model,
            arena,
            spare,
        })
    }

    /// The model.
    pub fn model(&self) -> &Model<'m> {
        &self.model
    }

    /// Begins a generation; see [`Generation`].
    pub fn generate(&mut self, request: Request) -> Result<Generation<'_, 'm, 'a>, RequestError> {
        Generation::new(self, request)
    }

    /// The current sample, `[c, h, w]`: input of the next denoiser call.
    pub fn sample(&self) -> &[f32] {
        self.view(self.model.head().sample, self.elements())
    }

    /// The current sample, to write.
    pub fn sample_mut(&mut self) -> &mut [f32] {
        let range = f32s(self.model.head().sample, self.elements());
        range
            .and_then(|range| view_f32_mut(self.arena, range))
            .unwrap_or(&mut [])
    }

    /// What the last call left, of [`Model::output_shape`].
    pub fn output(&self) -> &[f32] {
        self.view(self.model.head().output, self.output_elements())
    }

    /// The second input, to write; empty where the model has none. It stays as it
    /// is from call to call, and is zero in a new session.
    pub fn context_mut(&mut self) -> &mut [f32] {
        let context = self.model.header().context;
        context
            .and_then(|context| f32s(context.offset, context.elements))
            .and_then(|range| view_f32_mut(self.arena, range))
            .unwrap_or(&mut [])
    }

    /// One call of a plain network on [`Session::sample`]; returns its output, of
    /// [`Model::output_shape`].
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let (bytes, latents): (&[u8], [f32; 16]) = (&[], [0.0; 16]);
    /// # let mut arena = quell::Arena::<16>::new();
    /// let decoder = quell::Model::open(bytes)?;
    /// let mut session = decoder.session(arena.bytes_mut())?;
    /// session.sample_mut().copy_from_slice(&latents);
    /// let pixels: &[f32] = session.infer()?;
    /// # let _ = pixels; Ok(()) }
    /// ```
    pub fn infer(&mut self) -> Result<&[f32], InputError> {
        self.infer_with(|_, _| {})
    }

    /// [`Session::infer`] that shows what each operation has left.
    pub fn infer_with(
        &mut self,
        mut observe: impl FnMut(&Layer<'m>, Values<'_>),
    ) -> Result<&[f32], InputError> {
        match self.model.purpose() {
            Purpose::Plain => self.run(0, None, &mut observe),
            timed @ (Purpose::Denoiser | Purpose::ClassifierGradient) => {
                return Err(InputError::Timed(timed));
            }
        }
        Ok(self.output())
    }

    /// One call on [`Session::sample`] at a timestep; returns its output: what a
    /// denoiser predicts, `[c, h, w]`.
    ///
    /// Without a class, a conditional model uses its "no class" embedding.
    pub fn denoise(&mut self, timestep: u32, class: Option<u32>) -> Result<&[f32], InputError> {
        self.denoise_with(timestep, class, |_, _| {})
    }

    /// [`Session::denoise`] that shows what each operation has left.
    pub fn denoise_with(
        &mut self,
        timestep: u32,
        class: Option<u32>,
        mut observe: impl FnMut(&Layer<'m>, Values<'_>),
    ) -> Result<&[f32], InputError> {
        if self.model.purpose() == Purpose::Plain {
            return Err(InputError::Plain);
        }
        let timesteps = self.model.head().schedule.timesteps;
        if timestep >= timesteps {
            return Err(InputError::Timestep {
                timestep,
                timesteps,
            });
        }
        let class = self.model.class_row(class)?;
        self.run(timestep, class, &mut observe);
        Ok(self.output())
    }

    /// Runs the plan; `class` is a row of the embedding table.
    #[inline]
    pub(crate) fn run(
        &mut self,
        timestep: u32,
        class: Option<u32>,
        observe: &mut impl FnMut(&Layer<'m>, Values<'_>),
    ) {
        let context = Context {
            file: self.model.file(),
            kernels: self.model.kernels(),
            timestep,
            class,
        };
        for layer in self.model.layers() {
            let done = context.run(&layer.op, self.arena);
            debug_assert!(done.is_some(), "{}: validation let it through", layer.name);
            if let Some(values) = self.values(&layer) {
                observe(&layer, values);
            }
        }
    }

    /// Sample (to write) and output (to read) at once.
    #[inline]
    pub(crate) fn sample_and_output(&mut self) -> (&mut [f32], &[f32]) {
        let head = self.model.head();
        let ranges = (
            f32s(head.sample, self.elements()),
            f32s(head.output, self.output_elements()),
        );
        match ranges {
            (Some(sample), Some(output)) => view_pair(self.arena, sample, output),
            _ => None,
        }
        .unwrap_or((&mut [], &[]))
    }

    /// Sample (to read) and output (to write) at once.
    pub(crate) fn sample_and_output_mut(&mut self) -> (&[f32], &mut [f32]) {
        let head = self.model.head();
        let ranges = (
            f32s(head.output, self.elements()),
            f32s(head.sample, self.elements()),
        );
        let pair = match ranges {
            (Some(output), Some(sample)) => view_pair(self.arena, output, sample),
            _ => None,
        };
        pair.map_or((&[], &mut []), |(output, sample)| (sample, output))
    }

    /// Bytes behind the arena.
    pub(crate) fn spare_bytes(&self) -> usize {
        self.spare.len()
    }

    /// Copies the output behind the arena, if there is room.
    pub(crate) fn keep_output(&mut self) {
        let output = f32s(self.model.head().output, self.elements());
        let output = output.and_then(|range| self.arena.get(range));
        if let Some(output) = output
            && let Some(spare) = self.spare.get_mut(..output.len())
        {
            spare.copy_from_slice(output);
        }
    }

    /// What [`Session::keep_output`] kept, and the output (to write).
    pub(crate) fn kept_and_output(&mut self) -> (&[f32], &mut [f32]) {
        let output = f32s(self.model.head().output, self.elements());
        let output = output.and_then(|range| view_f32_mut(self.arena, range));
        let kept = self.spare.get(..self.model.elements() * size_of::<f32>());
        let kept = kept.and_then(cast::numbers);
        (kept.unwrap_or_default(), output.unwrap_or_default())
    }

    /// Sample and history (to write) and output (to read) at once.
    #[inline]
    pub(crate) fn sampler_state(
        &mut self,
        trajectory: &Trajectory<'_>,
    ) -> (&mut [f32], &[f32], &mut [f32]) {
        if trajectory.slots == 0 {
            let (sample, output) = self.sample_and_output();
            return (sample, output, &mut []);
        }
        self.all_state(trajectory)
            .unwrap_or((&mut [], &[], &mut []))
    }

    #[inline]
    fn all_state(
        &mut self,
        trajectory: &Trajectory<'_>,
    ) -> Option<(&mut [f32], &[f32], &mut [f32])> {
        let (head, elements) = (self.model.head(), self.elements());
        let ranges = [
            f32s(head.sample, elements)?,
            f32s(head.output, self.output_elements())?,
            f32s(trajectory.history, trajectory.slots.checked_mul(elements)?)?,
        ];
        let [sample, output, history] = disjoint(self.arena, ranges)?;
        Some((
            cast::numbers_mut(sample)?,
            cast::numbers(output)?,
            cast::numbers_mut(history)?,
        ))
    }

    fn values(&self, layer: &Layer<'_>) -> Option<Values<'_>> {
        let output = Access::of(&layer.op)?.output;
        let bytes = self.arena.get(output.range()?)?;
        Some(match output.element {
            Element::F32 => Values::F32(cast::numbers(bytes)?),
            Element::I8 | Element::Scratch => Values::I8(cast::numbers(bytes)?),
        })
    }

    fn view(&self, offset: u32, elements: u32) -> &[f32] {
        let range = f32s(offset, elements);
        range
            .and_then(|range| view_f32(self.arena, range))
            .unwrap_or(&[])
    }

    fn elements(&self) -> u32 {
        self.model.elements() as u32
    }

    fn output_elements(&self) -> u32 {
        self.model.header().output_elements().unwrap_or(0) as u32
    }
}

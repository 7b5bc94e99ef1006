//! A model at work in an arena: single calls of its graphs.

use core::ops::Range;

use quell_format::{Graph, Operator, Role, SolverTable, Tensor};
use quell_kernels::{cast, math};
use thiserror::Error;

use crate::arena::{disjoint, view_f32, view_f32_mut};
use crate::generation::{Classifier, Generation, Request, RequestError};
use crate::model::{ALL, Model};
use crate::ops::{Call, range};
use crate::run::{Budget, Cursor, Program, Values};

/// Why an arena cannot be used.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
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
    /// The FPU flushes subnormal numbers to zero or does not round to nearest.
    #[error(
        "the floating-point unit must round to nearest and keep subnormal numbers \
         (on Cortex-M clear FPSCR.FZ and FPSCR.RMode, on x86 MXCSR.FTZ, DAZ and RC)"
    )]
    FloatMode,
}

/// Why a call is impossible.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
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
    /// A plain network was called with a timestep.
    #[error("a plain network has neither timestep nor class: use `infer`")]
    Plain,
    /// A network of this role was called without a timestep.
    #[error("a {} needs a timestep: use `denoise`", .0.name())]
    Timed(Role),
    /// The file has no graph of this role.
    #[error("the file has no {}", .0.name())]
    Missing(Role),
}

/// A model and its working memory.
#[derive(Debug)]
pub struct Session<'a, const OPS: u64 = ALL> {
    model: &'a Model<'a, OPS>,
    arena: &'a mut [u8],
    /// What the buffer has behind the arena: where guidance keeps an output.
    spare: &'a mut [u8],
}

impl<'a, const OPS: u64> Session<'a, OPS> {
    pub(crate) fn new(
        model: &'a Model<'a, OPS>,
        arena: &'a mut [u8],
    ) -> Result<Self, SessionError> {
        let (needed, available) = (model.arena_bytes(), arena.len());
        let align = quell_format::ARENA_ALIGN;
        if !arena.as_ptr().addr().is_multiple_of(align) {
            return Err(SessionError::Misaligned);
        }
        if !math::is_ieee_mode() {
            return Err(SessionError::FloatMode);
        }
        let parts = arena.split_at_mut_checked(needed);
        let (arena, spare) = parts.ok_or(SessionError::TooSmall { needed, available })?;
        // What a graph leaves behind must not depend on what was there before.
        arena.fill(0);
        Ok(Self {
            model,
            arena,
            spare,
        })
    }

    /// The model.
    pub fn model(&self) -> &'a Model<'a, OPS> {
        self.model
    }

    /// Begins a generation; see [`Generation`].
    ///
    /// # Errors
    /// [`RequestError`] where the model or the arena cannot do what is asked for.
    pub fn generate<'s>(
        &'s mut self,
        request: Request<'s>,
    ) -> Result<Generation<'s, 'a, OPS>, RequestError> {
        let classifier = Classifier::own(self, &request)?;
        Generation::new(self, request, classifier)
    }

    /// [`Session::generate`], guided by the classifier of another file as
    /// [`Request::classifier`] says.
    pub fn generate_with<'s, const OTHER: u64>(
        &'s mut self,
        request: Request<'s>,
        classifier: &'s mut Session<'_, OTHER>,
    ) -> Result<Generation<'s, 'a, OPS>, RequestError> {
        let classifier = Classifier::other(self, &request, classifier)?;
        Generation::new(self, request, classifier)
    }

    /// Takes up a generation that [`Generation::save`] has saved, with the same
    /// request: the next step and all after it give the same bytes.
    ///
    /// # Errors
    /// [`RequestError::Saved`] where `saved` is not from this model and request.
    pub fn restore<'s>(
        &'s mut self,
        request: Request<'s>,
        saved: &[u8],
    ) -> Result<Generation<'s, 'a, OPS>, RequestError> {
        let classifier = Classifier::own(self, &request)?;
        Generation::restore(self, request, classifier, saved)
    }

    /// [`Session::restore`] of a run of [`Session::generate_with`].
    pub fn restore_with<'s, const OTHER: u64>(
        &'s mut self,
        request: Request<'s>,
        classifier: &'s mut Session<'_, OTHER>,
        saved: &[u8],
    ) -> Result<Generation<'s, 'a, OPS>, RequestError> {
        let classifier = Classifier::other(self, &request, classifier)?;
        Generation::restore(self, request, classifier, saved)
    }

    /// The current sample, `[c, h, w]`: input of the next call.
    pub fn sample(&self) -> &[f32] {
        self.view(self.model.main(), 0)
    }

    /// The current sample, to write.
    pub fn sample_mut(&mut self) -> &mut [f32] {
        self.input_mut(0)
    }

    /// What the last call of the first graph left, of [`Model::output_shape`].
    pub fn output(&self) -> &[f32] {
        let graph = self.model.main();
        self.view(graph, graph.head().output)
    }

    /// The second input, to write; empty where the model has none. It stays as it
    /// is from call to call, and is zero in a new session.
    pub fn context_mut(&mut self) -> &mut [f32] {
        match self.model.main().head().context {
            true => self.input_mut(1),
            false => &mut [],
        }
    }

    /// One copy of the code for both inputs: flash is dear.
    #[inline(never)]
    fn input_mut(&mut self, tensor: u16) -> &mut [f32] {
        let range = tensor_range(self.model.main(), tensor);
        range
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

    /// [`Session::infer`] that shows what each operator has left.
    pub fn infer_with(
        &mut self,
        mut observe: impl FnMut(&Operator<'a>, Values<'_>),
    ) -> Result<&[f32], InputError> {
        match self.model.role() {
            Role::Network => {
                self.call(Role::Network, 0, None, &mut observe);
                Ok(self.output())
            }
            timed => Err(InputError::Timed(timed)),
        }
    }

    /// What the file's decoder makes of [`Session::sample`], of
    /// [`Model::decoded_shape`].
    pub fn decode(&mut self) -> Result<&[f32], InputError> {
        let decoder = self.model.graph(Role::Decoder);
        let decoder = decoder.ok_or(InputError::Missing(Role::Decoder))?;
        self.call(Role::Decoder, 0, None, &mut |_, _| {});
        Ok(self.view(decoder, decoder.head().output))
    }

    /// One call on [`Session::sample`] at a timestep; returns its output: what a
    /// denoiser predicts, `[c, h, w]`.
    ///
    /// Without a class, a conditional model uses its "no class" embedding.
    pub fn denoise(&mut self, timestep: u32, class: Option<u32>) -> Result<&[f32], InputError> {
        self.denoise_with(timestep, class, |_, _| {})
    }

    /// [`Session::denoise`] that shows what each operator has left.
    pub fn denoise_with(
        &mut self,
        timestep: u32,
        class: Option<u32>,
        mut observe: impl FnMut(&Operator<'a>, Values<'_>),
    ) -> Result<&[f32], InputError> {
        let role = self.model.role();
        if role == Role::Network {
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
        self.call(role, timestep, class, &mut observe);
        Ok(self.output())
    }

    /// What one call of the denoiser takes on a clock of the caller's, in its unit: what
    /// [`crate::Allowance::Time`] reckons with. The output is overwritten.
    ///
    /// The clock should tick at least a hundred times in a call.
    ///
    /// # Errors
    /// [`InputError::Missing`] where the file has no denoiser.
    pub fn time_call(&mut self, mut clock: impl FnMut() -> u64) -> Result<u64, InputError> {
        let head = self.model.head();
        let denoiser = self.model.graph(Role::Denoiser);
        denoiser.ok_or(InputError::Missing(Role::Denoiser))?;
        // Any class costs the same.
        let class = head.null_class.or((head.classes > 0).then_some(0));
        let start = clock();
        self.call(Role::Denoiser, 0, class, &mut |_, _| {});
        Ok(clock().saturating_sub(start))
    }

    /// A whole call; `class` is a row of the embedding table.
    fn call(
        &mut self,
        role: Role,
        timestep: u32,
        class: Option<u32>,
        observe: &mut impl FnMut(&Operator<'a>, Values<'_>),
    ) {
        let (mut cursor, mut budget) = (Cursor::default(), Budget::UNLIMITED);
        self.advance(role, (timestep, class), &mut cursor, &mut budget, observe);
    }

    /// A part of a call of the graph of a role: true where it is done.
    #[inline]
    pub(crate) fn advance(
        &mut self,
        role: Role,
        (timestep, class): (u32, Option<u32>),
        cursor: &mut Cursor,
        budget: &mut Budget,
        observe: &mut impl FnMut(&Operator<'a>, Values<'_>),
    ) -> bool {
        let Some(graph) = self.model.graph(role) else {
            return true;
        };
        let program = Program {
            graph,
            slabs: self.model.file().slabs(),
            call: Call {
                kernels: self.model.kernels(),
                timestep,
                class,
            },
        };
        program.advance::<OPS>(self.arena, cursor, budget, observe)
    }

    /// Adds what the graph of a role has left, times `gain`, to what
    /// [`Session::keep_output`] kept.
    pub(crate) fn add_to_kept(&mut self, role: Role, gain: f32) {
        let graph = self.model.graph(role);
        let range = graph.and_then(|graph| tensor_range(graph, graph.head().output));
        let added = range.and_then(|range| view_f32(self.arena, range));
        let len = self.model.elements() * size_of::<f32>();
        let kept = self.spare.get_mut(..len).and_then(cast::numbers_mut::<f32>);
        for (kept, &added) in kept
            .unwrap_or_default()
            .iter_mut()
            .zip(added.unwrap_or_default())
        {
            *kept += gain * added;
        }
    }

    /// Sample and the slots of `table` (to write) and output (to read) at once.
    #[inline]
    pub(crate) fn solver_state(
        &mut self,
        table: Option<&SolverTable<'_>>,
    ) -> (&mut [f32], &[f32], &mut [f32]) {
        self.all_state(table).unwrap_or((&mut [], &[], &mut []))
    }

    #[inline]
    fn all_state(
        &mut self,
        table: Option<&SolverTable<'_>>,
    ) -> Option<(&mut [f32], &[f32], &mut [f32])> {
        let graph = self.model.main();
        let sample = tensor_range(graph, 0)?;
        let history = match table {
            Some(table) => {
                let len = sample.len().checked_mul(table.slots as usize)?;
                let start = table.history as usize;
                start..start.checked_add(len)?
            }
            None => 0..0,
        };
        let output = tensor_range(graph, graph.head().output)?;
        let [sample, output, history] = disjoint(self.arena, [sample, output, history])?;
        Some((
            cast::numbers_mut(sample)?,
            cast::numbers(output)?,
            cast::numbers_mut(history)?,
        ))
    }

    /// Sample (to read) and output (to write) at once.
    pub(crate) fn sample_and_output_mut(&mut self) -> (&[f32], &mut [f32]) {
        let pair = self.pair();
        pair.unwrap_or((&[], &mut []))
    }

    fn pair(&mut self) -> Option<(&[f32], &mut [f32])> {
        let graph = self.model.main();
        let ranges = [
            tensor_range(graph, 0)?,
            tensor_range(graph, graph.head().output)?,
        ];
        let [sample, output] = disjoint(self.arena, ranges)?;
        Some((cast::numbers(sample)?, cast::numbers_mut(output)?))
    }

    /// Bytes behind the arena.
    pub(crate) fn spare_bytes(&self) -> usize {
        self.spare.len()
    }

    /// What outlives a call: the sample, the context, the solver's slots.
    pub(crate) fn persistent(&self) -> &[u8] {
        let len = self.model.header().persistent as usize;
        self.arena.get(..len).unwrap_or_default()
    }

    /// [`Session::persistent`], to write.
    pub(crate) fn persistent_mut(&mut self) -> &mut [u8] {
        let len = self.model.header().persistent as usize;
        self.arena.get_mut(..len).unwrap_or_default()
    }

    /// Copies as much of the output as a sample has behind the arena, if there is
    /// room.
    pub(crate) fn keep_output(&mut self) {
        let output = self.output_bytes().and_then(|range| self.arena.get(range));
        if let Some(output) = output
            && let Some(spare) = self.spare.get_mut(..output.len())
        {
            spare.copy_from_slice(output);
        }
    }

    /// What [`Session::keep_output`] kept, and the output (to write).
    pub(crate) fn kept_and_output(&mut self) -> (&mut [f32], &mut [f32]) {
        let output = self.output_bytes();
        let len = output.as_ref().map_or(0, ExactSizeIterator::len);
        let output = output.and_then(|range| view_f32_mut(self.arena, range));
        let kept = self.spare.get_mut(..len).and_then(cast::numbers_mut);
        (kept.unwrap_or_default(), output.unwrap_or_default())
    }

    /// The part of the output that is a prediction, as long as a sample.
    fn output_bytes(&self) -> Option<Range<usize>> {
        let graph = self.model.main();
        let start = tensor_range(graph, graph.head().output)?.start;
        Some(start..start.checked_add(self.model.elements() * size_of::<f32>())?)
    }

    fn view(&self, graph: &Graph<'_>, tensor: u16) -> &[f32] {
        let range = tensor_range(graph, tensor);
        range
            .and_then(|range| view_f32(self.arena, range))
            .unwrap_or(&[])
    }
}

fn tensor_range(graph: &Graph<'_>, tensor: u16) -> Option<Range<usize>> {
    let tensor: Tensor = graph.tensor(tensor)?;
    range(&tensor)
}

//! A model: a file that has been checked, in place.

use quell_format::{File, FormatError, Head, Header, Layer, Purpose, Trajectory};
use quell_kernels::{Kernels, cast};
use thiserror::Error;

use crate::session::{Session, SessionError};
use crate::validate::{self, PlanError, TrajectoryError};

/// Why a file cannot be run.
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[derive(Clone, Copy, Debug, PartialEq, Error)]
pub enum OpenError {
    /// Not a readable file of a version that this crate knows.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The file does not start at an address that its weights can be used at.
    #[error("the file must lie at a multiple of 16 bytes in memory; embed it with include_model!")]
    Misaligned,
    /// The plan contradicts itself.
    #[error("layer {layer}: {error}")]
    Plan {
        /// Index of the operation; the number of operations for the plan's head.
        layer: u32,
        /// What is wrong with it.
        error: PlanError,
    },
    /// A trajectory is not one that a sampler can take.
    #[error("trajectory {index}: {error}")]
    Trajectory {
        /// Its place in the file.
        index: u32,
        /// What is wrong with it.
        error: TrajectoryError,
    },
}

/// A checked model, used in place: opening copies nothing.
#[derive(Clone, Copy)]
pub struct Model<'m> {
    file: File<'m>,
    alphas_cumprod: &'m [f32],
    kernels: &'static Kernels,
}

impl<'m> Model<'m> {
    /// Checks `file` completely, once, and picks the fastest kernels.
    ///
    /// Takes time linear in the file (its checksum) and quadratic in the number
    /// of operations. No input makes it panic or read outside of `file`.
    pub fn open(file: &'m [u8]) -> Result<Self, OpenError> {
        if !file
            .as_ptr()
            .addr()
            .is_multiple_of(quell_format::ARENA_ALIGN)
        {
            return Err(OpenError::Misaligned);
        }
        let file = File::parse(file)?;
        validate::plan(&file).map_err(|(layer, error)| OpenError::Plan { layer, error })?;
        validate::trajectories(&file)
            .map_err(|(index, error)| OpenError::Trajectory { index, error })?;
        let slab = file.slab(file.head().schedule.alphas_cumprod);
        Ok(Self {
            file,
            alphas_cumprod: slab.and_then(cast::numbers).unwrap_or(&[]),
            kernels: Kernels::detect(),
        })
    }

    /// The same model on other kernels than the detected ones.
    pub fn with_kernels(self, kernels: &'static Kernels) -> Self {
        Self { kernels, ..self }
    }

    /// The kernels that it runs on.
    pub fn kernels(&self) -> &'static Kernels {
        self.kernels
    }

    /// A session that works in `arena`: at least [`Model::arena_bytes`] bytes,
    /// starting at a multiple of 16. Its contents are cleared. Guidance by the
    /// class needs [`Model::guided_arena_bytes`].
    pub fn session<'a>(&self, arena: &'a mut [u8]) -> Result<Session<'m, 'a>, SessionError> {
        Session::new(*self, arena)
    }

    /// Bytes of working memory, exactly.
    pub fn arena_bytes(&self) -> usize {
        self.file.header().arena_bytes as usize
    }

    /// Bytes of working memory with room for [`crate::Guidance`]: one more sample.
    pub fn guided_arena_bytes(&self) -> usize {
        self.arena_bytes() + self.elements() * size_of::<f32>()
    }

    /// What the network is for: what [`Session`] may be asked.
    pub fn purpose(&self) -> Purpose {
        self.file.header().purpose
    }

    /// Shape of the output: `[channels, height, width]`; the sample's, unless the
    /// network is a plain one or predicts variances as well.
    pub fn output_shape(&self) -> [u32; 3] {
        self.file.header().output_shape()
    }

    /// Number of elements of a sample.
    pub fn elements(&self) -> usize {
        self.file.header().elements().unwrap_or(0)
    }

    /// The file's header.
    pub fn header(&self) -> &Header {
        self.file.header()
    }

    /// What the plan says once: schedule, classes, self-test.
    pub fn head(&self) -> &Head<'m> {
        self.file.head()
    }

    /// The operations, in order.
    pub fn layers(&self) -> impl Iterator<Item = Layer<'m>> + use<'m> {
        self.file.layers()
    }

    /// The runs that the file carries besides DDPM and DDIM, in order; an index
    /// into them makes a [`crate::Sampler::Trajectory`].
    pub fn trajectories(&self) -> impl Iterator<Item = Trajectory<'m>> + use<'m> {
        self.file.trajectories()
    }

    /// The place of the trajectory that is called so and has so many steps, the
    /// first if there are several; see [`Trajectory::is_named`].
    pub fn find_trajectory(&self, name: &str, steps: u32) -> Option<u32> {
        let wanted = |t: &Trajectory<'_>| t.steps == steps && t.is_named(name);
        let mut numbered = (0..).zip(self.trajectories());
        numbered.find(|(_, t)| wanted(t)).map(|(index, _)| index)
    }

    /// ᾱ for every training timestep, `[T]`.
    pub fn alphas_cumprod(&self) -> &'m [f32] {
        self.alphas_cumprod
    }

    pub(crate) fn file(&self) -> File<'m> {
        self.file
    }

    /// The row of class embeddings that `class` stands for.
    pub(crate) fn class_row(&self, class: Option<u32>) -> Result<Option<u32>, crate::InputError> {
        let head = self.head();
        match class {
            None if head.classes > 0 && head.null_class.is_none() => {
                Err(crate::InputError::ClassNeeded(head.classes))
            }
            None => Ok(head.null_class),
            Some(class) if class < head.classes => Ok(Some(class)),
            Some(class) => Err(crate::InputError::Class {
                class,
                classes: head.classes,
            }),
        }
    }
}

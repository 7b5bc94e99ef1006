//! A run as bytes: what a reset must not lose.
//!
//! Between two steps a run is its sample, the solver's slots, the random numbers and
//! its place. What a step has computed so far is not saved: an interrupted step runs
//! anew, with the same numbers.
//!
//! # Layout
//!
//! Little-endian: CRC-32 of the file, a digest of the request (u64), the state of the
//! random numbers (4 × u32, then whether one is left and which), the next step, the
//! place of the jumps (2 × u32), the number of calls; a digest of all that follows and
//! precedes (u64); then the arena's persistent bytes.

use quell_format::{Header, HeaderError};

use super::{Classifier, Generation, Request, RequestError};
use crate::digest::Digest;
use crate::rng::Rng;
use crate::session::Session;

/// 32-bit words before the persistent bytes.
const WORDS: usize = 16;
/// Words before the digest, which takes two.
const STATE: usize = 13;
/// Bytes before the persistent ones.
const HEAD: usize = 4 * WORDS;

/// Bytes that [`Generation::save`] writes, at compile time.
///
/// # Panics
/// Where `file` does not begin with a valid header: in a `const`, a compile error.
pub const fn saved_bytes(file: &[u8]) -> usize {
    match Header::parse(file) {
        Ok(header) => HEAD + header.persistent as usize,
        Err(HeaderError::Version { .. }) => panic!("a .quell file of another version"),
        Err(_) => panic!("not a valid .quell file"),
    }
}

impl<'s, 'a, const OPS: u64> Generation<'s, 'a, OPS> {
    /// Writes the run as it was after its last whole step to `saved`, of
    /// [`saved_bytes`]; returns whether it had that length.
    ///
    /// May be called at any time, also within a step.
    #[must_use]
    pub fn save(&self, saved: &mut [u8]) -> bool {
        let persistent = self.session.persistent();
        if saved.len() != HEAD + persistent.len() {
            return false;
        }
        let (head, rest) = saved.split_at_mut(HEAD);
        rest.copy_from_slice(persistent);
        let request = fingerprint(&self.request);
        let [a, b, c, d] = self.rng.state();
        let (has_spare, spare) = (self.rng.spare().is_some(), self.rng.spare().unwrap_or(0));
        let state: [u32; STATE] = [
            self.session.model().header().crc32,
            request as u32,
            (request >> 32) as u32,
            a,
            b,
            c,
            d,
            u32::from(has_spare),
            spare,
            self.walk.next,
            self.walk.lowest,
            self.walk.jumps,
            self.calls,
        ];
        let sum = sum(&state, rest);
        let words = state.into_iter().chain([sum as u32, (sum >> 32) as u32, 0]);
        for (bytes, word) in head.chunks_exact_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_le_bytes());
        }
        true
    }

    pub(crate) fn restore(
        session: &'s mut Session<'a, OPS>,
        request: Request<'s>,
        classifier: Classifier<'s>,
        saved: &[u8],
    ) -> Result<Self, RequestError> {
        let (words, persistent) = parse(saved).ok_or(RequestError::Saved)?;
        let (state, sums) = words
            .split_first_chunk::<STATE>()
            .ok_or(RequestError::Saved)?;
        let stated = |at: usize| sums.get(at).copied().map_or(0, u64::from);
        let fits = sum(state, persistent) == stated(0) | stated(1) << 32
            && state[0] == session.model().header().crc32
            && u64::from(state[1]) | u64::from(state[2]) << 32 == fingerprint(&request)
            && persistent.len() == session.persistent().len();
        if !fits {
            return Err(RequestError::Saved);
        }
        let mut generation = Self::checked(session, request, classifier)?;
        let spare = (state[7] != 0).then_some(state[8]);
        generation.rng = Rng::from_state([state[3], state[4], state[5], state[6]], spare);
        generation.walk.next = state[9];
        generation.walk.lowest = state[10];
        generation.walk.jumps = state[11];
        generation.calls = state[12];
        generation
            .session
            .persistent_mut()
            .copy_from_slice(persistent);
        Ok(generation)
    }
}

fn parse(saved: &[u8]) -> Option<([u32; WORDS], &[u8])> {
    let (head, persistent) = saved.split_at_checked(HEAD)?;
    let mut words = [0; WORDS];
    for (word, bytes) in words.iter_mut().zip(head.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    Some((words, persistent))
}

fn sum(state: &[u32; STATE], persistent: &[u8]) -> u64 {
    let mut digest = Digest::default();
    for word in state {
        digest.update(&word.to_le_bytes());
    }
    digest.update(persistent);
    digest.value()
}

/// What tells requests apart, arrays by their contents.
fn fingerprint(request: &Request<'_>) -> u64 {
    use super::{Noise, Sampler, Start};
    let mut digest = Digest::default();
    let mut add = |words: &[u64]| {
        for word in words {
            digest.update(&word.to_le_bytes());
        }
    };
    let bits = |x: f32| u64::from(x.to_bits());
    let array = |values: &[f32]| crate::digest(values);
    match request.sampler {
        Sampler::Ddpm => add(&[0]),
        Sampler::Ddim { eta } => add(&[1, bits(eta)]),
        Sampler::DdimInverse => add(&[2]),
        Sampler::Table(index) => add(&[3, index.into()]),
    }
    let class = request.class.map_or(u64::MAX, u64::from);
    add(&[request.steps.into(), request.seed, class]);
    add(&[bits(request.guidance.scale), bits(request.guidance.rescale)]);
    if let Some(classifier) = request.classifier {
        add(&[classifier.class.into(), bits(classifier.scale)]);
    }
    if let Some(context) = request.context {
        add(&[array(context)]);
    }
    match request.noise {
        Noise::Seed => add(&[0]),
        Noise::Given(noise) => add(&[1, array(noise)]),
        Noise::Between { seed, fraction } => add(&[2, seed, bits(fraction)]),
    }
    match request.start {
        Start::Noise => add(&[0]),
        Start::Image { image, strength } => add(&[1, array(image), strength.to_bits()]),
        Start::Sample(sample) => add(&[2, array(sample)]),
    }
    if let Some(inpaint) = request.inpaint {
        add(&[array(inpaint.image), array(inpaint.mask)]);
        add(&[inpaint.jump_length.into(), inpaint.jump_n_sample.into()]);
    }
    digest.value()
}

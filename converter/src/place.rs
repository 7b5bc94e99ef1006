//! Which tensors of a program share which bytes.
//!
//! A pass `Program → Program` inserts the copies without which an operator that works
//! in place would destroy what is still needed, or a view would need one tensor in two
//! places. What is left is decided by liveness: an output may lie on an input that
//! nobody reads any more, where no living tensor overlaps it.
//!
//! Tensors that share bytes form a **family**: a buffer in which each has an offset.

use std::ops::Range;

use anyhow::{Result, bail};
use quell::format::{ARENA_ALIGN, Kind};

use crate::memory::{self, Buffer};
use crate::program::{Instruction, Place, Program, TensorId};

/// A program whose tensors have places.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The program, copies included.
    pub program: Program,
    /// For every tensor, bytes from the start of the arena.
    pub offsets: Vec<usize>,
    /// For every instruction, where its workspace lies.
    pub workspaces: Vec<Option<usize>>,
    /// End of the working memory, from the start of the arena.
    pub end: usize,
    /// Bytes of working memory.
    pub working: usize,
    /// Bytes of working memory that no placement of the same buffers could do without.
    pub bound: usize,
}

/// Where the caller's tensors lie, and where working memory begins.
#[derive(Clone, Copy, Debug)]
pub struct Persistent<'a> {
    /// Offsets of the caller's tensors.
    pub inputs: &'a [usize],
    /// Bytes that outlive a call; a multiple of the arena's alignment.
    pub bytes: usize,
}

/// Gives every tensor a place.
pub fn place(program: Program, persistent: Persistent<'_>) -> Result<Placed> {
    let (program, families) = legalize(program)?;
    let last = program.last_uses();
    let end = program.instructions.len();
    let mut buffers: Vec<Buffer> = families.bytes.iter().map(|&b| Buffer::new(b)).collect();
    for (i, instruction) in program.instructions.iter().enumerate() {
        let family = families.home[instruction.output].0;
        buffers[family].touch(i);
        buffers[family].touch(last[instruction.output].unwrap_or(end));
    }
    let mut workspaces = Vec::new();
    for (i, instruction) in program.instructions.iter().enumerate() {
        workspaces.push(instruction.workspace.map(|bytes| {
            let mut buffer = Buffer::new(bytes);
            buffer.touch(i);
            buffers.push(buffer);
            buffers.len() - 1
        }));
    }
    // The caller's tensors have places already, and families that are empty none.
    let given: Vec<usize> = (0..program.inputs).map(|t| families.home[t].0).collect();
    let planned: Vec<usize> = (0..buffers.len())
        .filter(|i| !given.contains(i) && buffers[*i].first != usize::MAX)
        .collect();
    let compact: Vec<Buffer> = planned.iter().map(|&i| buffers[i]).collect();
    let (at, working) = memory::plan(&compact, ARENA_ALIGN);
    let mut starts = vec![0; buffers.len()];
    for (&buffer, offset) in planned.iter().zip(at) {
        starts[buffer] = persistent.bytes + offset;
    }
    for (&family, &offset) in given.iter().zip(persistent.inputs) {
        starts[family] = offset;
    }
    let offset = |tensor: TensorId| {
        let (family, offset) = families.home[tensor];
        starts[family] + offset
    };
    let offsets = (0..program.tensors.len()).map(offset).collect();
    let start = |buffer: Option<usize>| buffer.map(|buffer| starts[buffer]);
    Ok(Placed {
        workspaces: workspaces.into_iter().map(start).collect(),
        offsets,
        end: persistent.bytes + working,
        working,
        bound: memory::lower_bound(&compact),
        program,
    })
}

/// Inserts copies until every tensor can have a place.
fn legalize(mut program: Program) -> Result<(Program, Families)> {
    // Every operand may need one.
    let operands: usize = program.instructions.iter().map(|i| i.inputs.len()).sum();
    for _ in 0..=operands {
        let last = program.last_uses();
        match Families::of(&program, &last) {
            Ok(families) => return Ok((program, families)),
            Err(Clash { instruction, input }) => program.insert_copy(instruction, input)?,
        }
    }
    bail!("no placement found; this is a bug")
}

/// An input of an instruction that must be copied.
#[derive(Clone, Copy, Debug)]
struct Clash {
    instruction: usize,
    input: usize,
}

/// Tensors that share bytes.
#[derive(Clone, Debug)]
struct Families {
    /// For every tensor, its family and its offset in it.
    home: Vec<(usize, usize)>,
    /// For every family, its bytes; 0 for one that was joined to another.
    bytes: Vec<usize>,
    members: Vec<Vec<TensorId>>,
    /// For every tensor, its bytes.
    sizes: Vec<usize>,
    /// Families that hold a tensor of the caller.
    given: Vec<bool>,
}

impl Families {
    fn of(program: &Program, last: &[Option<usize>]) -> Result<Self, Clash> {
        let mut families = Self {
            home: (0..program.tensors.len()).map(|t| (t, 0)).collect(),
            bytes: program.tensors.iter().map(|t| t.bytes()).collect(),
            members: (0..program.tensors.len()).map(|t| vec![t]).collect(),
            sizes: program.tensors.iter().map(|t| t.bytes()).collect(),
            given: (0..program.tensors.len())
                .map(|t| t < program.inputs)
                .collect(),
        };
        let defined = definitions(program);
        let steps = || program.instructions.iter().enumerate();
        for (i, instruction) in steps() {
            match (instruction.kind, instruction.place) {
                (Kind::View, _) => families.view(i, instruction)?,
                (_, Place::Must(input)) => families.must(i, instruction, input)?,
                (_, Place::Apart | Place::May(_)) => {}
            }
        }
        let time = Time {
            last,
            defined: &defined,
        };
        for (i, instruction) in steps() {
            if let Place::Must(input) = instruction.place
                && families.is_overwritten(program, &time, i, instruction, input)
            {
                return Err(Clash {
                    instruction: i,
                    input,
                });
            }
        }
        for (i, instruction) in steps() {
            if let Place::May(input) = instruction.place
                && !families.is_overwritten(program, &time, i, instruction, input)
            {
                families.may(instruction, input);
            }
        }
        Ok(families)
    }

    /// The parts of a view become slots of its buffer.
    fn view(&mut self, i: usize, instruction: &Instruction) -> Result<(), Clash> {
        let whole = instruction.output;
        if let [only] = instruction.inputs[..] {
            let (family, offset) = self.home[only];
            self.join(self.home[whole].0, family, offset);
            return Ok(());
        }
        let buffer = self.home[whole].0;
        let mut offset = 0;
        for (input, &part) in instruction.inputs.iter().enumerate() {
            let (family, at) = self.home[part];
            let bytes = self.bytes_of(part);
            let movable =
                family != buffer && !self.given[family] && at == 0 && self.bytes[family] == bytes;
            if !movable {
                return Err(Clash {
                    instruction: i,
                    input,
                });
            }
            self.join(family, buffer, offset);
            offset += bytes;
        }
        Ok(())
    }

    /// An output that must lie on an input.
    fn must(&mut self, i: usize, instruction: &Instruction, input: usize) -> Result<(), Clash> {
        let (family, offset) = self.home[instruction.inputs[input]];
        if self.given[family] {
            return Err(Clash {
                instruction: i,
                input,
            });
        }
        self.join(self.home[instruction.output].0, family, offset);
        Ok(())
    }

    /// An output that may lie on an input does, where one of the two can be moved.
    fn may(&mut self, instruction: &Instruction, input: usize) {
        let (from, to) = (instruction.output, instruction.inputs[input]);
        let movable = |tensor: TensorId| {
            let (family, at) = self.home[tensor];
            at == 0 && self.bytes[family] == self.bytes_of(tensor) && !self.given[family]
        };
        let ((family, offset), (other, at)) = (self.home[to], self.home[from]);
        if family == other || self.given[family] {
            return;
        }
        if movable(from) {
            self.join(other, family, offset);
        } else if movable(to) {
            self.join(family, other, at);
        }
    }

    /// Whether instruction `i`, in place on its input, would destroy what is still
    /// needed: that input itself, or what overlaps it.
    fn is_overwritten(
        &self,
        program: &Program,
        time: &Time<'_>,
        i: usize,
        instruction: &Instruction,
        input: usize,
    ) -> bool {
        let target = instruction.inputs[input];
        let same_size = self.bytes_of(target) == self.bytes_of(instruction.output)
            && program.tensors[target].element == program.tensors[instruction.output].element;
        let twice = instruction.inputs.iter().filter(|&&t| t == target).count() > 1;
        if !same_size || twice || time.last[target] != Some(i) {
            return true;
        }
        let (family, _) = self.home[target];
        let place = self.range(target);
        self.members[family].iter().any(|&other| {
            let ignored = other == target || other == instruction.output;
            !ignored && time.is_alive(other, i) && meet(&place, &self.range(other))
        })
    }

    /// Moves all of family `from` into family `to` at `offset`.
    fn join(&mut self, from: usize, to: usize, offset: usize) {
        let members = std::mem::take(&mut self.members[from]);
        for &member in &members {
            let (_, at) = self.home[member];
            self.home[member] = (to, at + offset);
        }
        self.members[to].extend(members);
        self.given[to] |= self.given[from];
        self.bytes[from] = 0;
    }

    fn bytes_of(&self, tensor: TensorId) -> usize {
        self.sizes[tensor]
    }

    /// Its bytes within its family.
    fn range(&self, tensor: TensorId) -> Range<usize> {
        let (_, at) = self.home[tensor];
        at..at + self.sizes[tensor]
    }
}

struct Time<'t> {
    last: &'t [Option<usize>],
    defined: &'t [Option<usize>],
}

impl Time<'_> {
    /// Whether the contents of a tensor matter when instruction `i` writes.
    fn is_alive(&self, tensor: TensorId, i: usize) -> bool {
        let begun = self.defined[tensor].is_none_or(|at| at < i);
        begun && self.last[tensor].is_none_or(|at| at >= i)
    }
}

fn definitions(program: &Program) -> Vec<Option<usize>> {
    let mut defined = vec![None; program.tensors.len()];
    for (i, instruction) in program.instructions.iter().enumerate() {
        defined[instruction.output] = Some(i);
    }
    defined
}

fn meet(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

//! Which values of a network are int8, and on which grids.
//!
//! Decides, for the int8 tier: an image between two operators that have int8 forms is an
//! int8 tensor; the rest is f32. Values whose bytes one operator moves into another's
//! share a grid. Knows operators, nothing of tensors; ranges are given.

use std::collections::HashMap;

use quell::format::Function;
use quell_kernels::{MOST_PIXELS, MOST_TOKENS};

use crate::graph::{Condition, Graph, Node, Op, ValueId};
use crate::quantize::{QuantParams, Range, Seen};

/// Most channels of an image that a convolution reads with 16 bits.
const FEW_CHANNELS: usize = 4;

/// The choice for every value of a graph.
#[derive(Clone, Debug)]
pub struct Precision {
    /// Whether its operator leaves an int8 tensor.
    pub int8: Vec<bool>,
    /// Whether it is a layer with int8 weights, which reads int8.
    pub layers: Vec<bool>,
    /// Whether it is a layer that reads 16 bits: the first convolutions, of samples, and in
    /// a network of images those of vectors.
    pub wide: Vec<bool>,
    /// Channels of the values that are images.
    pub channels: Vec<Option<usize>>,
    /// Images that are read with other channels than they are made with.
    torn: Vec<bool>,
    users: Vec<Vec<ValueId>>,
}

impl Precision {
    /// All values f32.
    pub fn floats(graph: &Graph) -> Self {
        Self {
            int8: vec![false; graph.nodes.len()],
            layers: vec![false; graph.nodes.len()],
            wide: vec![false; graph.nodes.len()],
            channels: vec![None; graph.nodes.len()],
            torn: vec![false; graph.nodes.len()],
            users: graph.users(),
        }
    }

    /// Everything int8 that can be.
    pub fn int8(graph: &Graph) -> Self {
        let mut precision = Self::floats(graph);
        precision.find_channels(graph);
        precision.find_layers(graph);
        let mut able = vec![false; graph.nodes.len()];
        for i in 0..graph.nodes.len() {
            able[i] = precision.is_able(graph, i, &able);
        }
        for i in (0..graph.nodes.len()).rev() {
            let read = |&user: &ValueId| precision.layers[user] || precision.int8[user];
            precision.int8[i] = able[i] && precision.users[i].iter().any(read);
        }
        for (i, node) in graph.nodes.iter().enumerate() {
            precision.wide[i] = match &node.op {
                Op::Conv2d(op) => {
                    let few = op.input.channels <= FEW_CHANNELS;
                    few && precision.int8[i] && !precision.int8[node.inputs[0]]
                }
                Op::Linear { .. } => !precision.layers[i],
                _ => false,
            };
        }
        precision
    }

    /// All convolutions; and linear layers, but for those of vectors in a network of
    /// images, which read 16 bits: they are few, and what they make of timestep and class
    /// is added to every pixel, where an error does not average out.
    fn find_layers(&mut self, graph: &Graph) {
        let is_image = |op: &Op| matches!(op, Op::Conv2d(_) | Op::Conv1d(_));
        let images = graph.nodes.iter().any(|node| is_image(&node.op));
        for (i, node) in graph.nodes.iter().enumerate() {
            self.layers[i] = match node.op {
                Op::Linear { .. } => !images || self.channels[node.inputs[0]].is_some(),
                _ => is_image(&node.op),
            };
        }
    }

    /// Channels of images: what their operators say, else what reads them.
    fn find_channels(&mut self, graph: &Graph) {
        for (i, node) in graph.nodes.iter().enumerate() {
            let of_input = node.inputs.first().and_then(|&input| self.channels[input]);
            self.channels[i] = match &node.op {
                Op::Conv2d(op) => Some(op.output.channels),
                Op::Conv1d(op) => Some(op.bias.len()),
                Op::GroupNorm(op) => Some(op.channels),
                Op::Attention { tokens, .. } => Some(node.len / tokens),
                Op::Upsample(size)
                | Op::ZeroInsertion(size)
                | Op::AveragePool(size)
                | Op::DepthToSpace(size) => Some(size.channels),
                Op::Add | Op::Function(_) | Op::Concat => {
                    let same = |&input: &ValueId| self.channels[input] == of_input;
                    of_input.filter(|_| node.inputs.iter().all(same))
                }
                _ => None,
            };
        }
        for i in 0..graph.nodes.len() {
            for (input, wanted) in wanted(graph, i) {
                let found = *self.channels[input].get_or_insert(wanted);
                // Pixels of another width in the same memory: as floats, then.
                if found != wanted {
                    self.channels[input] = Some(wanted);
                    self.torn[input] = true;
                }
            }
        }
    }

    /// Whether the operator of value `i` has a form whose inputs and output are int8.
    fn is_able(&self, graph: &Graph, i: ValueId, able: &[bool]) -> bool {
        let node = &graph.nodes[i];
        let all = || node.inputs.iter().all(|&input| able[input]);
        let alone = |&input: &ValueId| self.users[input] == [i];
        let whole = wanted(graph, i).all(|(input, wanted)| self.channels[input] == Some(wanted));
        if self.torn[i] || !whole {
            return false;
        }
        match &node.op {
            Op::Conv2d(_) | Op::Conv1d(_) => true,
            Op::GroupNorm(op) => {
                let condition = match op.condition {
                    Condition::None | Condition::Add => true,
                    // Without a curve every channel has a scale of its own.
                    Condition::ScaleShift => op.function.is_some(),
                    Condition::AddAfter | Condition::ScaleShiftAfter => false,
                };
                condition && node.len / op.channels <= MOST_PIXELS
            }
            // Grids of queries and keys are made for each other.
            Op::Attention { key_tokens, .. } => {
                let layer = |&input: &ValueId| {
                    matches!(graph.nodes[input].op, Op::Conv2d(_) | Op::Conv1d(_))
                };
                let [q, k, v] = node.inputs[..] else {
                    return false;
                };
                let apart = q != k && k != v && q != v;
                let made = node.inputs.iter().all(|input| alone(input) && layer(input));
                apart && made && *key_tokens <= MOST_TOKENS
            }
            Op::Upsample(_) | Op::ZeroInsertion(_) | Op::AveragePool(_) | Op::DepthToSpace(_) => {
                all()
            }
            // A view moves nothing: its parts must be free to lie side by side.
            Op::Concat => self.channels[i].is_some() && all() && node.inputs.iter().all(alone),
            Op::Add => self.channels[i].is_some() && all() && node.inputs[0] != node.inputs[1],
            Op::Function(_) => self.channels[i].is_some() && all(),
            _ => false,
        }
    }

    /// Whether value `i` is read as an int8 image, or is one.
    fn needs_grid(&self, graph: &Graph, i: ValueId) -> bool {
        let reads = |&user: &ValueId| match graph.nodes[user].op {
            _ if self.layers[user] || self.wide[user] => true,
            // A vector that conditions stays f32.
            Op::GroupNorm(ref op) => {
                let images = graph.nodes[user].inputs.len() - usize::from(op.is_conditioned());
                self.int8[user] && graph.nodes[user].inputs[..images].contains(&i)
            }
            _ => self.int8[user],
        };
        self.int8[i] || self.users[i].iter().any(reads)
    }

    /// Whether each channel of value `i` can have a zero of its own: no window with
    /// padding reads it, and what makes it has a bias for each channel.
    fn may_be_centred(&self, graph: &Graph, i: ValueId) -> bool {
        let reads = |&user: &ValueId| match &graph.nodes[user].op {
            Op::Conv2d(op) => op.padding == [0, 0] && op.is_inside(),
            Op::GroupNorm(_) | Op::Add | Op::AveragePool(_) => self.int8[user],
            Op::Upsample(_) | Op::DepthToSpace(_) | Op::Concat => self.int8[user],
            Op::Function(function) => self.int8[user] && *function != Function::Relu,
            _ => false,
        };
        let made = matches!(
            graph.nodes[i].op,
            Op::Conv2d(_)
                | Op::Conv1d(_)
                | Op::Add
                | Op::Upsample(_)
                | Op::DepthToSpace(_)
                | Op::Concat
                | Op::AveragePool(_)
        );
        self.int8[i] && made && self.users[i].iter().all(reads)
    }

    /// A grid for every value that has an int8 form, of the ranges of its elements.
    pub fn grids(
        &self,
        graph: &Graph,
        seen: &HashMap<ValueId, Vec<Seen>>,
    ) -> HashMap<ValueId, QuantParams> {
        let mut classes = Classes::of(self, graph);
        let mut ranges: HashMap<usize, Vec<Range>> = HashMap::new();
        let needed: Vec<ValueId> = (0..graph.nodes.len())
            .filter(|&i| self.needs_grid(graph, i))
            .collect();
        for &i in &needed {
            let own = seen_of(graph, i, seen);
            let own = match self.channels[i] {
                Some(channels) => by_channel(&own, channels),
                None => own,
            };
            let own: Vec<Range> = own.iter().map(Seen::range).collect();
            match ranges.entry(classes.root(i)) {
                std::collections::hash_map::Entry::Vacant(entry) => {
                    entry.insert(own);
                }
                std::collections::hash_map::Entry::Occupied(mut entry) => {
                    for (all, one) in entry.get_mut().iter_mut().zip(own) {
                        *all = (all.0.min(one.0), all.1.max(one.1));
                    }
                }
            }
        }
        let mut centred = vec![true; graph.nodes.len()];
        for &i in &needed {
            centred[classes.root(i)] &= self.may_be_centred(graph, i);
        }
        let grid = |(root, ranges): (usize, Vec<Range>)| {
            let grid = match self.channels[root] {
                None => QuantParams::covering(&ranges),
                Some(_) if centred[root] => QuantParams::centred(&ranges),
                Some(_) => QuantParams::channels(&ranges),
            };
            (root, grid)
        };
        let known: Vec<(usize, Vec<Range>)> = ranges.into_iter().collect();
        let mut grids: HashMap<usize, QuantParams> = known.iter().cloned().map(grid).collect();
        let ranges: HashMap<usize, Vec<Range>> = known.into_iter().collect();
        for (i, node) in graph.nodes.iter().enumerate() {
            if self.int8[i] {
                self.suit(node, i, &mut classes, &ranges, &mut grids);
            }
        }
        let grid = |i: ValueId| Some((i, grids.get(&classes.root(i))?.clone()));
        needed.into_iter().filter_map(grid).collect()
    }

    /// Changes the grids around one operator to what its arithmetic needs.
    fn suit(
        &self,
        node: &Node,
        i: ValueId,
        classes: &mut Classes,
        ranges: &HashMap<usize, Vec<Range>>,
        grids: &mut HashMap<usize, QuantParams>,
    ) {
        match node.op {
            Op::Attention { heads, .. } => {
                let [q, k, v] = [0, 1, 2].map(|input| classes.root(node.inputs[input]));
                let of = |root| ranges.get(&root).map_or(&[][..], |r| r);
                let [queries, keys] = QuantParams::pair(of(q), of(k), heads);
                let values = QuantParams::symmetric(of(v));
                grids.extend([(q, queries), (k, keys), (v, values)]);
            }
            // The factors of a sum's parts must stay below 2.
            Op::Add => {
                let parts = [0, 1].map(|input| grids.get(&classes.root(node.inputs[input])));
                let [Some(a), Some(b)] = parts.map(|grid| grid.map(|grid| grid.scales.clone()))
                else {
                    return;
                };
                if let Some(sum) = grids.get_mut(&classes.root(i)) {
                    for ((sum, a), b) in sum.scales.iter_mut().zip(a).zip(b) {
                        *sum = sum.max(a.max(b) / 1.99);
                    }
                }
            }
            _ => {}
        }
    }
}

/// The images that an operator reads, and with how many channels.
fn wanted(graph: &Graph, i: ValueId) -> impl Iterator<Item = (ValueId, usize)> {
    let node = &graph.nodes[i];
    let (images, pixels) = match &node.op {
        Op::Conv2d(op) => (1, op.input.pixels()),
        Op::Conv1d(op) => (1, op.length),
        Op::GroupNorm(op) => {
            let images = node.inputs.len() - usize::from(op.is_conditioned());
            (images, node.len / op.channels)
        }
        Op::Upsample(size) | Op::ZeroInsertion(size) | Op::AveragePool(size) => (1, size.pixels()),
        _ => (0, 1),
    };
    let inputs = node.inputs.iter().take(images);
    inputs.map(move |&input| (input, graph.nodes[input].len / pixels))
}

/// What a value's elements were seen to be; of values side by side, both.
fn seen_of(graph: &Graph, i: ValueId, seen: &HashMap<ValueId, Vec<Seen>>) -> Vec<Seen> {
    match graph.nodes[i].op {
        Op::Concat => {
            let parts = graph.nodes[i].inputs.iter();
            parts.flat_map(|&part| seen_of(graph, part, seen)).collect()
        }
        _ => seen.get(&i).cloned().unwrap_or_default(),
    }
}

/// Of `[pixels, channels]` elements, what each channel was seen to be.
fn by_channel(elements: &[Seen], channels: usize) -> Vec<Seen> {
    let mut all = vec![Seen::default(); channels];
    for pixel in elements.chunks_exact(channels) {
        for (all, element) in all.iter_mut().zip(pixel) {
            all.merge(element);
        }
    }
    all
}

/// Values that share a grid.
struct Classes(Vec<usize>);

impl Classes {
    fn of(precision: &Precision, graph: &Graph) -> Self {
        let mut classes = Self((0..graph.nodes.len()).collect());
        for (i, node) in graph.nodes.iter().enumerate() {
            if !precision.int8[i] {
                continue;
            }
            match node.op {
                Op::Upsample(_)
                | Op::ZeroInsertion(_)
                | Op::AveragePool(_)
                | Op::DepthToSpace(_)
                | Op::Concat => node.inputs.iter().for_each(|&input| classes.join(i, input)),
                // Results have the values' scales.
                Op::Attention { .. } => classes.join(i, node.inputs[2]),
                _ => {}
            }
        }
        classes
    }

    fn root(&self, mut i: usize) -> usize {
        while self.0[i] != i {
            i = self.0[i];
        }
        i
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }
}

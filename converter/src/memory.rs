//! The memory plan: which buffers share which bytes of the arena.
//!
//! Knows sizes and lifetimes, nothing of what the buffers hold.

/// A buffer and the operations between which its contents matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Size in bytes.
    pub bytes: usize,
    /// First operation that touches it.
    pub first: usize,
    /// Last operation that touches it.
    pub last: usize,
}

impl Buffer {
    /// A buffer that nothing touches yet.
    pub fn new(bytes: usize) -> Self {
        Self {
            bytes,
            first: usize::MAX,
            last: 0,
        }
    }

    /// Operation `op` reads or writes it.
    pub fn touch(&mut self, op: usize) {
        self.first = self.first.min(op);
        self.last = self.last.max(op);
    }

    fn meets(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Offsets of all buffers, in order, and the bytes of the whole arena; both
/// multiples of `align`.
///
/// Largest first, each at the lowest place that is free during its life: the
/// greedy-by-size strategy of Pisarchyk & Lee 2020, which is near the bound
/// on networks of this kind; [`lower_bound`] tells how near.
pub fn plan(buffers: &[Buffer], align: usize) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(buffers[i].bytes));
    let mut offsets = vec![0; buffers.len()];
    let mut placed: Vec<usize> = Vec::new();
    for i in order {
        let mut taken: Vec<(usize, usize)> = placed
            .iter()
            .filter(|&&j| buffers[j].meets(&buffers[i]))
            .map(|&j| (offsets[j], offsets[j] + buffers[j].bytes))
            .collect();
        taken.sort_unstable();
        let size = buffers[i].bytes;
        let mut offset = 0usize;
        for (start, end) in taken {
            if offset + size <= start {
                break;
            }
            offset = offset.max(end.next_multiple_of(align));
        }
        offsets[i] = offset;
        placed.push(i);
    }
    let ends = buffers.iter().zip(&offsets).map(|(b, o)| o + b.bytes);
    let arena = ends.max().unwrap_or(0).next_multiple_of(align);
    (offsets, arena)
}

/// No plan can need less: the most bytes alive at any one operation.
pub fn lower_bound(buffers: &[Buffer]) -> usize {
    let alive = |op| {
        let alive = buffers
            .iter()
            .filter(move |b| b.first <= op && op <= b.last);
        alive.map(|b| b.bytes).sum::<usize>()
    };
    let firsts = buffers.iter().map(|b| b.first);
    firsts.map(alive).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn living_buffers_never_overlap(
            sizes in prop::collection::vec((1usize..500, 0usize..20, 0usize..6), 1..30)
        ) {
            let buffers: Vec<Buffer> = sizes
                .iter()
                .map(|&(bytes, first, life)| Buffer { bytes, first, last: first + life })
                .collect();
            let (offsets, total) = plan(&buffers, 16);
            for (i, a) in buffers.iter().enumerate() {
                prop_assert!(offsets[i] % 16 == 0 && offsets[i] + a.bytes <= total);
                for (j, b) in buffers.iter().enumerate().skip(i + 1) {
                    let apart = offsets[i] + a.bytes <= offsets[j] || offsets[j] + b.bytes <= offsets[i];
                    prop_assert!(apart || !a.meets(b));
                }
            }
            prop_assert!(total >= lower_bound(&buffers));
        }
    }

    #[test]
    fn a_chain_reuses_its_memory() {
        let buffers: Vec<Buffer> = (0..6)
            .map(|i| Buffer {
                bytes: 64,
                first: i,
                last: i + 1,
            })
            .collect();
        assert_eq!(plan(&buffers, 16).1, 128);
        assert_eq!(lower_bound(&buffers), 128);
    }
}

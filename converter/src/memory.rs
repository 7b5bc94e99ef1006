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
/// greedy-by-size strategy of Pisarchyk & Lee 2020. Where that misses the bound
/// of [`lower_bound`], other orders are tried, and improved by placing earlier
/// what sticks out.
pub fn plan(buffers: &[Buffer], align: usize) -> (Vec<usize>, usize) {
    /// The larger, the earlier it is placed.
    type Rank = (usize, usize);
    /// Improvements of each order; most need a few, or never get there.
    const ROUNDS: usize = 100;
    let bound = lower_bound(buffers).next_multiple_of(align);
    let orders: [fn(&Buffer) -> Rank; 4] = [
        |b| (b.bytes, 0),
        |b| (b.last.saturating_sub(b.first), b.bytes),
        |b| (b.bytes * (1 + b.last.saturating_sub(b.first)), b.bytes),
        |b| (usize::MAX - b.first, b.bytes),
    ];
    let mut best: Option<(Vec<usize>, usize)> = None;
    for key in orders {
        let mut order: Vec<usize> = (0..buffers.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(key(&buffers[i])));
        for _ in 0..ROUNDS {
            let placed = place(buffers, &order, align);
            let end = |&i: &usize| placed.0[i] + buffers[i].bytes;
            let highest = (0..order.len()).max_by_key(|&at| end(&order[at]));
            if best.as_ref().is_none_or(|best| placed.1 < best.1) {
                best = Some(placed);
            }
            let reached = best.as_ref().is_some_and(|best| best.1 <= bound);
            match highest {
                Some(at) if at > 0 && !reached => order[..=at].rotate_right(1),
                _ => break,
            }
        }
    }
    best.unwrap_or_default()
}

/// Each buffer in turn at the lowest place that is free during its life.
fn place(buffers: &[Buffer], order: &[usize], align: usize) -> (Vec<usize>, usize) {
    let mut offsets = vec![0; buffers.len()];
    for (placed, &i) in order.iter().enumerate() {
        let mut taken: Vec<(usize, usize)> = order[..placed]
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

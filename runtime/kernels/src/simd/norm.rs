//! Group normalisation with sixteen channels side by side.

/// The kernels of [`crate::norm`] in one instruction set, whose features are
/// `$features`.
macro_rules! norm_kernels {
    ($features:literal) => {
        static NORM: norm::Loops = norm::Loops {
            sums: channel_sums,
            squares: channel_squares,
            normalise,
        };

        fn channel_sums(x: &[f32], sums: &mut [f32]) {
            #[target_feature(enable = $features)]
            fn wide(x: &[f32], sums: &mut [f32]) {
                sum_channels(x, &[], sums, |x, _| x);
            }
            // SAFETY: this function is reachable only through tables that
            // `available` hands out where the CPU has their features.
            unsafe { wide(x, sums) }
        }

        fn channel_squares(x: &[f32], centres: &[f32], sums: &mut [f32]) {
            #[target_feature(enable = $features)]
            fn wide(x: &[f32], centres: &[f32], sums: &mut [f32]) {
                sum_channels(x, centres, sums, |x, centre| {
                    let deviation = add(x, centre);
                    mul(deviation, deviation)
                });
            }
            // SAFETY: as for `channel_sums`.
            unsafe { wide(x, centres, sums) }
        }

        fn normalise(op: Normal<'_>, x: Option<&[f32]>, y: &mut [f32], stride: usize) {
            #[target_feature(enable = $features)]
            fn wide(op: Normal<'_>, x: Option<&[f32]>, y: &mut [f32], stride: usize) {
                if op.silu {
                    normalise_tiles(op, x, y, stride, |x| silu(x), |x| silu(x));
                } else {
                    normalise_tiles(op, x, y, stride, |x| x, |x| x);
                }
            }
            // SAFETY: as for `channel_sums`.
            unsafe { wide(op, x, y, stride) }
        }

        /// Sixteen channels of all pixels, then the next sixteen.
        #[target_feature(enable = $features)]
        fn sum_channels(x: &[f32], centres: &[f32], sums: &mut [f32], f: impl Fn(Row, Row) -> Row) {
            let channels = sums.len().max(1);
            let pixels = x.len() / channels;
            for (tile, sums) in sums.chunks_mut(PANEL).enumerate() {
                let (at, width) = (tile * PANEL, sums.len());
                let centre = load_some(centres.get(at..).unwrap_or_default(), width);
                let mut total = [zero(); norm::ROWS];
                let mut pixel = 0;
                if width == PANEL {
                    while pixel + norm::ROWS <= pixels {
                        for (i, total) in total.iter_mut().enumerate() {
                            // SAFETY: pixel + i < pixels and at + 16 <=
                            // channels: the row ends in x.
                            let row = unsafe { row_at(x, (pixel + i) * channels + at) };
                            *total = add(*total, f(load(row), centre));
                        }
                        pixel += norm::ROWS;
                    }
                }
                let rest = x.get(pixel * channels + at..).unwrap_or_default();
                for rows in rest.chunks(norm::ROWS * channels) {
                    for (row, total) in rows.chunks(channels).zip(&mut total) {
                        *total = add(*total, f(load_some(row, width), centre));
                    }
                }
                let [a, b, c, d] = total;
                save_some(sums, width, add(add(a, c), add(b, d)));
            }
        }

        /// Sixteen channels of all pixels, then the next sixteen.
        #[target_feature(enable = $features)]
        fn normalise_tiles(
            op: Normal<'_>,
            x: Option<&[f32]>,
            y: &mut [f32],
            stride: usize,
            many: impl Fn([Row; CHAINS]) -> [Row; CHAINS],
            one: impl Fn([Row; 1]) -> [Row; 1],
        ) {
            let channels = op.scales.len();
            for at in (0..channels).step_by(PANEL) {
                let width = PANEL.min(channels - at);
                let scale = load_some(op.scales.get(at..).unwrap_or_default(), width);
                let shift = load_some(op.shifts.get(at..).unwrap_or_default(), width);
                // Where the first row of inputs lies, and how far the next one.
                let (from, step) = match x {
                    Some(_) => (at, channels),
                    None => (at, stride),
                };
                let mut pixel = 0;
                while width == PANEL {
                    let last = pixel + CHAINS - 1;
                    let input = x.unwrap_or(y);
                    if from + last * step + PANEL > input.len()
                        || at + last * stride + PANEL > y.len()
                    {
                        break;
                    }
                    let mut rows = [zero(); CHAINS];
                    for (i, row) in rows.iter_mut().enumerate() {
                        // SAFETY: pixel + i <= last, whose row ends in the input.
                        let input = load(unsafe { row_at(input, from + (pixel + i) * step) });
                        *row = add(mul(input, scale), shift);
                    }
                    for (i, row) in many(rows).into_iter().enumerate() {
                        // SAFETY: pixel + i <= last, whose row ends in y.
                        save(unsafe { row_at_mut(y, at + (pixel + i) * stride) }, row);
                    }
                    pixel += CHAINS;
                }
                while at + pixel * stride < y.len() {
                    let input = x
                        .unwrap_or(y)
                        .get(from + pixel * step..)
                        .unwrap_or_default();
                    let [row] = one([add(mul(load_some(input, width), scale), shift)]);
                    let output = y.get_mut(at + pixel * stride..).unwrap_or_default();
                    save_some(output, width, row);
                    pixel += 1;
                }
            }
        }

        /// The first `width` values, then zeros.
        #[inline]
        #[target_feature(enable = $features)]
        fn load_some(x: &[f32], width: usize) -> Row {
            match x.first_chunk() {
                Some(row) if width == PANEL => load(row),
                _ => load(&padded(x, 0, width)),
            }
        }

        /// Saves the first `width` lanes.
        #[inline]
        #[target_feature(enable = $features)]
        fn save_some(y: &mut [f32], width: usize, row: Row) {
            if let Some(y) = y.first_chunk_mut()
                && width == PANEL
            {
                return save(y, row);
            }
            let mut stored = [0.0; PANEL];
            save(&mut stored, row);
            for (y, stored) in y.iter_mut().zip(stored).take(width) {
                *y = stored;
            }
        }
    };
}
pub(crate) use norm_kernels;

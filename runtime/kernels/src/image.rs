//! Channels-last images that are resized or laid out anew: no arithmetic but
//! the mean of four pixels.

/// Copies every pixel of `[height, width, channels]` into a square of four:
/// nearest-neighbour enlargement; `y` is `[2·height, 2·width, channels]`.
pub fn upsample<T: Copy>(x: &[T], width: usize, channels: usize, y: &mut [T]) {
    let row = (width * channels).max(1);
    for (x, y) in x.chunks_exact(row).zip(y.chunks_exact_mut(4 * row)) {
        for y in y.chunks_exact_mut(2 * row) {
            let pixels = x.chunks(channels.max(1));
            for (x, y) in pixels.zip(y.chunks_mut(2 * channels.max(1))) {
                for y in y.chunks_mut(channels.max(1)) {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = x;
                    }
                }
            }
        }
    }
}

/// The mean of every square of four pixels of `[height, width, channels]`, an
/// odd last row or column left out; `y` is `[⌊height/2⌋, ⌊width/2⌋, channels]`.
pub fn average_pool(x: &[f32], width: usize, channels: usize, y: &mut [f32]) {
    let (row, channels) = ((width * channels).max(1), channels.max(1));
    let rows = x.chunks_exact(2 * row);
    for (x, y) in rows.zip(y.chunks_exact_mut((width / 2 * channels).max(1))) {
        let (above, below) = x.split_at_checked(row).unwrap_or_default();
        let pairs = above.chunks_exact(2 * channels);
        let pairs = pairs.zip(below.chunks_exact(2 * channels));
        for ((above, below), y) in pairs.zip(y.chunks_exact_mut(channels)) {
            let (a, b) = above.split_at_checked(channels).unwrap_or_default();
            let (c, d) = below.split_at_checked(channels).unwrap_or_default();
            let four = a.iter().zip(b).zip(c.iter().zip(d));
            for (y, ((a, b), (c, d))) in y.iter_mut().zip(four) {
                *y = ((a + b) + (c + d)) * 0.25;
            }
        }
    }
}

/// Four images `[height, width, channels]`, one behind the other, become one of
/// twice the rows and columns: pixel `(2r + a, 2c + b)` is pixel `(r, c)` of image
/// `2a + b`.
pub fn depth_to_space<T: Copy>(x: &[T], width: usize, channels: usize, y: &mut [T]) {
    let (row, channels) = ((width * channels).max(1), channels.max(1));
    let mut images = x.chunks_exact((x.len() / 4).max(1));
    for a in 0..2 {
        for b in 0..2 {
            let rows = images.next().unwrap_or_default().chunks_exact(row);
            for (x, y) in rows.zip(y.chunks_exact_mut(4 * row)) {
                let y = y.chunks_exact_mut(2 * row).nth(a).unwrap_or_default();
                let pixels = y.chunks_exact_mut(channels).skip(b).step_by(2);
                for (x, y) in x.chunks_exact(channels).zip(pixels) {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = x;
                    }
                }
            }
        }
    }
}

/// Transposes `[rows, columns]` to `[columns, rows]`.
pub fn transpose(x: &[f32], rows: usize, columns: usize, y: &mut [f32]) {
    for (i, x) in x.chunks_exact(columns.max(1)).enumerate() {
        let column = y.get_mut(i..).unwrap_or_default();
        for (y, &x) in column.iter_mut().step_by(rows.max(1)).zip(x) {
            *y = x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let x = [1.0, 2.0, 3.0, 4.0];
        let mut y = [0.0; 16];
        // One row of two pixels of two channels.
        upsample(&x, 2, 2, &mut y);
        let row = [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0];
        assert_eq!([&y[..8], &y[8..]], [row, row]);
        // Enlarging and shrinking again is no change.
        let mut back = [0.0; 4];
        average_pool(&y, 4, 2, &mut back);
        assert_eq!(back, x);
        // Three rows and columns: the last ones are left out.
        let x = [1.0, 2.0, 9.0, 3.0, 6.0, 9.0, 9.0, 9.0, 9.0];
        average_pool(&x, 3, 1, &mut back[..1]);
        assert_eq!(back[0], 3.0);
        // Of one row of two pixels each.
        let x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let mut y = [0.0; 8];
        depth_to_space(&x, 2, 1, &mut y);
        assert_eq!(y, [1.0, 3.0, 2.0, 4.0, 5.0, 7.0, 6.0, 8.0]);
        let mut y = [0.0; 6];
        transpose(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2, 3, &mut y);
        assert_eq!(y, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}

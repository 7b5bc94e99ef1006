//! A sample as text, two characters per pixel.

use core::str;

use quell::format::Header;
use semihosting::println;

/// From black to white.
const SHADES: &[u8] = b" .:-=+*#%@";
/// Most pixels of a row.
const WIDTH: usize = 64;

/// Draws the first channel of a sample `[c, h, w]` of numbers in `-1..=1`.
pub(crate) fn draw(sample: &[f32], header: &Header) {
    let [_, height, width] = header.shape;
    for row in sample.chunks(width as usize).take(height as usize) {
        let mut line = [0; 2 * WIDTH];
        for (pair, &pixel) in line.chunks_mut(2).zip(row) {
            pair.fill(shade(pixel));
        }
        let line = &line[..(2 * row.len()).min(2 * WIDTH)];
        println!("{}", str::from_utf8(line).unwrap_or_default().trim_end());
    }
}

fn shade(pixel: f32) -> u8 {
    let level = (pixel * 0.5 + 0.5) * SHADES.len() as f32;
    // Casting saturates, at both ends and for NaN.
    SHADES[(level as usize).min(SHADES.len() - 1)]
}

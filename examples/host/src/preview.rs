//! A small preview for terminals: two pixels per character, in 24-bit grey.

use crate::figure::pixel;

/// Draws square pictures at half size, five side by side.
pub(crate) fn draw(pictures: &[Vec<f32>], side: usize) {
    for row in pictures.chunks(5) {
        for y in (0..side / 2).step_by(2) {
            let mut line = String::new();
            for picture in row {
                for x in 0..side / 2 {
                    let (top, bottom) = (grey(picture, side, x, y), grey(picture, side, x, y + 1));
                    // The upper half block shows its colour above, the background below.
                    line +=
                        &format!("\x1b[38;2;{top};{top};{top};48;2;{bottom};{bottom};{bottom}m▀");
                }
                line += "\x1b[0m ";
            }
            println!("{line}");
        }
        println!();
    }
}

/// Mean of a block of four pixels.
fn grey(picture: &[f32], side: usize, x: usize, y: usize) -> u8 {
    let block = [(0, 0), (0, 1), (1, 0), (1, 1)];
    let sum: f32 = block
        .iter()
        .map(|(dy, dx)| picture[(2 * y + dy) * side + 2 * x + dx])
        .sum();
    pixel(sum / 4.0)
}

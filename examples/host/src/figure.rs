//! A picture made of labelled rows of small pictures, and PNG in and out.

use std::error::Error;

use font8x8::{BASIC_FONTS, UnicodeFonts};

/// Pixels of a picture's side.
pub(crate) const SIDE: usize = 28;
const SCALE: usize = 4;
const CELL: usize = SIDE * SCALE;
const GAP: usize = 6;
const LINE: usize = 14;
const WIDTH: usize = 10 * (CELL + GAP) + GAP;
const INK: u8 = 230;
const FAINT: u8 = 150;
const PAPER: u8 = 24;

/// A grey canvas that grows downwards.
pub(crate) struct Figure(Vec<u8>);

impl Figure {
    pub(crate) fn new() -> Self {
        let mut figure = Self(Vec::new());
        figure.grow(GAP);
        figure
    }

    /// A line of text.
    pub(crate) fn heading(&mut self, text: &str) {
        self.grow(GAP);
        let top = self.grow(LINE);
        self.text(GAP, top, text, INK);
    }

    /// Up to ten pictures of `SIDE × SIDE` values in -1..=1, labels below.
    pub(crate) fn row<'p>(&mut self, cells: impl Iterator<Item = (&'p Vec<f32>, String)>) {
        let top = self.grow(CELL);
        let line = self.grow(LINE);
        for (i, (picture, label)) in cells.take(10).enumerate() {
            let left = GAP + i * (CELL + GAP);
            for y in 0..CELL {
                for x in 0..CELL {
                    let value = picture[y / SCALE * SIDE + x / SCALE];
                    self.0[(top + y) * WIDTH + left + x] = pixel(value);
                }
            }
            self.text(left, line + 3, &label, FAINT);
        }
    }

    /// The figure as a PNG file.
    pub(crate) fn png(mut self) -> Result<Vec<u8>, Box<dyn Error>> {
        self.grow(GAP);
        let mut file = Vec::new();
        let height = self.0.len() / WIDTH;
        let mut encoder = png::Encoder::new(&mut file, WIDTH as u32, height as u32);
        encoder.set_color(png::ColorType::Grayscale);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header()?.write_image_data(&self.0)?;
        Ok(file)
    }

    /// Adds `rows` at the bottom; returns where they begin.
    fn grow(&mut self, rows: usize) -> usize {
        let top = self.0.len() / WIDTH;
        self.0.resize(self.0.len() + rows * WIDTH, PAPER);
        top
    }

    fn text(&mut self, left: usize, top: usize, text: &str, ink: u8) {
        for (i, glyph) in text.chars().filter_map(|c| BASIC_FONTS.get(c)).enumerate() {
            for (y, row) in glyph.iter().enumerate() {
                for x in (0..8).filter(|x| row >> x & 1 == 1) {
                    self.0[(top + y) * WIDTH + left + i * 8 + x] = ink;
                }
            }
        }
    }
}

/// A value in -1..=1 as grey.
pub(crate) fn pixel(value: f32) -> u8 {
    ((value.clamp(-1.0, 1.0) + 1.0) * 127.5).round() as u8
}

/// The values in -1..=1 of an 8-bit grey PNG.
pub(crate) fn decode(file: &[u8]) -> Result<Vec<f32>, Box<dyn Error>> {
    let mut reader = png::Decoder::new(std::io::Cursor::new(file)).read_info()?;
    let mut pixels = vec![0; SIDE * SIDE];
    reader.next_frame(&mut pixels)?;
    let value = |&grey: &u8| f32::from(grey) / 127.5 - 1.0;
    Ok(pixels.iter().map(value).collect())
}

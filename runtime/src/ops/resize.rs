//! Images enlarged or shrunk by two, f32 or i8. A unit is a row of the small image.
//!
//! What only moves pixels moves bytes, so that there is one text for both types.

use core::ops::Range;

use quell_format::Tensor;
use quell_kernels::{cast, gradient, image, images_i8};

use super::{Call, Operands, Operation, Work, elements, images, part, require};
use crate::arena::disjoint;
use crate::validate::PlanError;

/// A small image and one of twice its rows and columns.
struct Pair {
    height: u32,
    width: u32,
    channels: u32,
    /// Numbers of a row of the large image; an odd column may be left out.
    large_width: u32,
    /// Bytes of an element.
    size: usize,
    /// The integer that means 0.
    zero_point: i8,
    small: Range<usize>,
    large: Range<usize>,
}

impl Pair {
    fn of(small: &Tensor, large: &Tensor, odd: bool) -> Result<Self, PlanError> {
        let [height, width, channels] = small.shape;
        let twice = |small: u32, large: u32| {
            let whole = small.checked_mul(2);
            whole == Some(large) || odd && whole.and_then(|n| n.checked_add(1)) == Some(large)
        };
        let [large_height, large_width, large_channels] = large.shape;
        let fits = twice(height, large_height) && twice(width, large_width);
        require(fits && channels == large_channels, PlanError::Shape)?;
        let (size, zero_point, [small, large]) = images([small, large])?;
        Ok(Self {
            height,
            width,
            channels,
            large_width,
            size,
            zero_point,
            small,
            large,
        })
    }

    /// Cost of a row of the small image: that of its four large pixels each.
    fn work(&self) -> Work {
        let row = self.width.saturating_mul(self.channels).saturating_mul(4);
        Work::alike(self.height, row)
    }

    /// Bytes of a pixel.
    fn pixel(&self) -> usize {
        self.channels as usize * self.size
    }

    /// The same rows of both images.
    fn ranges(&self, units: &Range<u32>) -> Option<(Range<usize>, Range<usize>)> {
        let (from, to) = (units.start as usize, units.end as usize);
        let small = (self.width as usize).checked_mul(self.pixel())?;
        let large = (self.large_width as usize).checked_mul(self.pixel())?;
        Some((
            part(&self.small, small, from, to)?,
            part(&self.large, large, from.checked_mul(2)?, to.checked_mul(2)?)?,
        ))
    }
}

/// Nearest-neighbour upsampling.
pub(crate) struct Upsample(Pair);

impl<'m> Operation<'m> for Upsample {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        Pair::of(&op.input(0)?, &op.output, false).map(Self)
    }

    fn work(&self) -> Work {
        self.0.work()
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, _: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let (small, large) = self.0.ranges(&units)?;
        let [x, y] = disjoint(arena, [small, large])?;
        image::upsample(x, self.0.width as usize, self.0.pixel(), y);
        Some(())
    }
}

/// Zeros between the pixels.
pub(crate) struct ZeroInsertion(Pair);

impl<'m> Operation<'m> for ZeroInsertion {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        Pair::of(&op.input(0)?, &op.output, false).map(Self)
    }

    fn work(&self) -> Work {
        self.0.work()
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, _: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let (small, large) = self.0.ranges(&units)?;
        let [x, y] = disjoint(arena, [small, large])?;
        // All bytes of a float's zero are 0, as its zero point is.
        let zero = self.0.zero_point as u8;
        gradient::zero_insertion(x, self.0.width as usize, self.0.pixel(), zero, y);
        Some(())
    }
}

/// The mean of every four pixels.
pub(crate) struct AveragePool(Pair);

impl<'m> Operation<'m> for AveragePool {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        Pair::of(&op.output, &op.input(0)?, true).map(Self)
    }

    fn work(&self) -> Work {
        self.0.work()
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, _: &Call, arena: &mut [u8], units: Range<u32>) -> Option<()> {
        let (small, large) = self.0.ranges(&units)?;
        let [x, y] = disjoint(arena, [large, small])?;
        let (width, channels) = (self.0.large_width as usize, self.0.channels as usize);
        if self.0.size == size_of::<f32>() {
            image::average_pool(cast::numbers(x)?, width, channels, cast::numbers_mut(y)?);
        } else {
            images_i8::average_pool(cast::numbers(x)?, width, channels, cast::numbers_mut(y)?);
        }
        Some(())
    }
}

/// Four images, pixel by pixel in one.
pub(crate) struct DepthToSpace {
    width: u32,
    /// Bytes of a pixel.
    pixel: usize,
    elements: u32,
    input: Range<usize>,
    output: Range<usize>,
}

impl<'m> Operation<'m> for DepthToSpace {
    #[inline(never)]
    fn resolve<const OPS: u64>(op: &Operands<'m>) -> Result<Self, PlanError> {
        let (x, y) = (op.input(0)?, &op.output);
        let [four_heights, width, channels] = x.shape;
        require(four_heights.is_multiple_of(4), PlanError::Shape)?;
        let height = four_heights / 4;
        let large = [height.checked_mul(2), width.checked_mul(2), Some(channels)];
        require(large == y.shape.map(Some), PlanError::Shape)?;
        let (size, _, [input, output]) = images([&x, y])?;
        Ok(Self {
            width,
            pixel: channels as usize * size,
            elements: elements(y)?,
            input,
            output,
        })
    }

    fn work(&self) -> Work {
        Work::whole(self.elements)
    }

    #[inline(never)]
    fn run<const OPS: u64>(&self, _: &Call, arena: &mut [u8], _: Range<u32>) -> Option<()> {
        let [x, y] = disjoint(arena, [self.input.clone(), self.output.clone()])?;
        image::depth_to_space(x, self.width as usize, self.pixel, y);
        Some(())
    }
}

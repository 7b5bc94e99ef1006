//! Kernels for Cortex-M with the DSP extension (M4, M7, M33, …).
//!
//! Owns the assembly of these cores. Knows nothing of boards or of how
//! instructions are counted. `build.rs` finds out whether the extension exists
//! and sets `quell_dsp`; a build for a core without it has the scalar table.

/// The body of a naked function. What `-C target-cpu` says does not reach its assembler, and a core
/// of Armv8-M without a name has no DSP extension.
macro_rules! naked {
    ($($assembly:tt)*) => {
        core::arch::naked_asm!(
            $crate::arm::core_name!(),
            $($assembly)*
        )
    };
}

#[cfg(quell_v8m)]
macro_rules! core_name {
    () => {
        ".cpu cortex-m33"
    };
}
#[cfg(not(quell_v8m))]
macro_rules! core_name {
    () => {
        ""
    };
}
use core_name;

mod attention_i8;
mod conv_i8;
mod dsp;
mod first;
#[cfg(target_abi = "eabihf")]
pub(crate) mod fpu;
mod images_i8;
mod strip;
mod widen;

use crate::table::{Entries, Kernels};

pub(crate) static DSP: Kernels = Kernels::new("dsp", ENTRIES);

pub(crate) const ENTRIES: Entries = Entries {
    #[cfg(target_abi = "eabihf")]
    linear_f32: fpu::linear_f32,
    #[cfg(target_abi = "eabihf")]
    linear_f16: fpu::linear_f16,
    #[cfg(not(target_abi = "eabihf"))]
    linear_f32: crate::scalar::ENTRIES.linear_f32,
    #[cfg(not(target_abi = "eabihf"))]
    linear_f16: crate::scalar::ENTRIES.linear_f16,
    conv2d_f32: crate::scalar::ENTRIES.conv2d_f32,
    conv2d_f16: crate::scalar::ENTRIES.conv2d_f16,
    linear_i8: dsp::linear_i8,
    linear_i8_f32: dsp::linear_i8_f32,
    conv2d_i8: conv_i8::conv2d_i8,
    conv2d_i8_f32: conv_i8::conv2d_i8_f32,
    attention: crate::scalar::ENTRIES.attention,
    norm: crate::scalar::ENTRIES.norm,
    images_i8: images_i8::LOOPS,
    attention_i8: attention_i8::attention_i8,
};

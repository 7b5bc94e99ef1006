//! The arithmetic of quell: slices in, slices out.
//!
//! This crate owns every SIMD instruction and every `unsafe` block of quell's
//! libraries. It knows nothing of files, plans, arenas or diffusion: a kernel
//! sees only its operands, in the layouts that [`layout`] defines.
//!
//! # Tables
//!
//! A [`Kernels`] is a table of function pointers for one instruction set.
//! [`Kernels::detect`] picks the fastest one that the CPU runs, without std;
//! [`Kernels::scalar`] is the reference that every other table is held
//! against by the `conformance` suite (a cargo feature).
//!
//! | table | target | picked |
//! |---|---|---|
//! | `scalar` | all | where nothing else is |
//! | `avx2`, `avx512`, `avx512vnni` | x86-64 | by CPUID, when it runs |
//! | `neon` | 64-bit Arm | always: every such CPU has it |
//! | `simd128` | WebAssembly | where built with `-C target-feature=+simd128` |
//! | `dsp` | Cortex-M4, M7, M33, … | where the assembler accepts it, see `build.rs` |
//!
//! All but `scalar` and `dsp` share one generic function per float kernel, over rows
//! of sixteen lanes, and per kernel of int8 images, over rows of 32 lanes of 16 bits. int8
//! convolutions and linear layers have walks of their own on x86-64 and on `dsp`; `neon`
//! and `simd128` share one, and `neon` uses SDOT where the target has it
//! (`-C target-feature=+dotprod`).
//!
//! # Speed of the int8 kernels
//!
//! Multiply-accumulates (convolutions, attention) or elements (images: pixels × channels) per
//! nanosecond, beside the fastest f32 table on the same operation, where there is one:
//!
//! | int8 kernel | f32 | scalar | avx2 | avx512 | avx512vnni |
//! |---|---:|---:|---:|---:|---:|
//! | conv 28x28 k3 s1 16-16 | 57.82 | 2.16 | 52.63 | 70.98 | 157.11 |
//! | conv 28x28 k3 s1 1-16 | 25.21 | 0.75 | 7.30 | 13.61 | 21.30 |
//! | conv 28x28 k3 s1 16-1 | 20.89 | 1.13 | 16.87 | 14.89 | 29.28 |
//! | conv 28x28 k1 s1 32-16 | 43.78 | 1.87 | 24.26 | 42.29 | 81.01 |
//! | conv 14x14 k3 s1 32-32 | 62.78 | 2.29 | 58.25 | 80.31 | 189.61 |
//! | conv 14x14 k2 s1 32-32 | 58.80 | 2.23 | 49.15 | 73.80 | 165.45 |
//! | conv 14x14 k3 s2 16-16 | 57.85 | 2.16 | 43.74 | 65.47 | 148.45 |
//! | conv 7x7 k3 s1 64-64 | 70.67 | 2.62 | 63.30 | 84.30 | 188.42 |
//! | conv 7x7 k1 s1 128-64 | 52.27 | 2.50 | 48.70 | 73.74 | 147.36 |
//! | attention 49x4x16 | 22.35 | 3.21 | 19.89 | 22.64 | 28.89 |
//! | statistics 784x16 | 12.49 | 3.95 | 13.92 | 14.52 | 21.06 |
//! | statistics 49x64 | 9.14 | 2.40 | 3.77 | 3.80 | 4.09 |
//! | affine 784x16 | 13.43 | 1.50 | 13.84 | 15.66 | 20.45 |
//! | curve 784x16 | 2.70 | 0.30 | 3.31 | 8.23 | 8.58 |
//! | curve 49x64+64 | 2.56 | 0.32 | 2.80 | 7.24 | 7.37 |
//! | curve 196x17 | 1.30 | 0.31 | 2.71 | 6.93 | 7.16 |
//! | add 784x16 |  | 1.82 | 7.85 | 9.08 | 10.27 |
//!
//! One thread of a virtual Zen 4 core at about 3.7 GHz, best of 60 rounds beside other work:
//! `cargo bench -p quell-kernels --bench int8`. Its peak is 59 f32 multiply-accumulates per
//! nanosecond; f32 kernels skip those with the padding, which count. `conv` is size of the
//! output, kernel, stride, channels in and out. A layer with one channel in or out is bound
//! by what happens per output, and with AVX2 int8 products are hardly faster than f32 ones.
//! `tests/wasm.mjs` times simd128 in Node: 17 multiply-accumulates per nanosecond for
//! 14x14 k3 32-32, with f32 21.
//!
//! # What is exact
//!
//! - Everything in [`math`], [`elementwise`], [`norm`], [`attention`], [`image`]
//!   and [`gradient`] and every `int8` kernel gives the same bits on every target and
//!   every table: integers, and f32 operations that IEEE 754 specifies to the
//!   last bit (add, sub, mul, div, sqrt), in a fixed order, never fused.
//! - The f32 and f16 linear and convolution kernels sum over inputs in the
//!   same order everywhere, with two exceptions: a table may fuse multiply and
//!   add, and with at most 4 output channels, the partial sums of a convolution
//!   may run over channels in parallel. Against the scalar table an output
//!   differs by at most `2·K·ε·(|b| + Σ|w·x|)`, where
//!   `K` is the number of inputs (of a window) and `ε = 2⁻²⁴`; where it
//!   accumulates, by `2·ε·|y|` more.
//!
//! What is exact has an error too, against exact arithmetic; [`math`],
//! [`attention`] and [`norm`] state it, in ULP.
//!
//! # Contract
//!
//! Kernels never panic in release builds and never touch memory outside their
//! slices. Where the lengths of the operands do not fit each other, a kernel
//! returns without writing; debug builds panic, because such a call is a bug of
//! the caller: the runtime proves all lengths when it opens a model.

#![no_std]

#[cfg(quell_dsp)]
mod arm;
pub mod attention;
mod attention_i8;
pub mod cast;
#[cfg(feature = "conformance")]
pub mod conformance;
mod conv_i16;
mod conv_i8;
pub mod elementwise;
pub mod gradient;
pub mod image;
pub mod images_i8;
pub mod layout;
pub mod math;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod neon;
pub mod norm;
mod norm_i8;
mod scalar;
mod sequence;
#[cfg(any(
    all(target_arch = "x86_64", target_feature = "sse2"),
    all(target_arch = "aarch64", target_feature = "neon"),
    all(target_arch = "wasm32", target_feature = "simd128"),
))]
mod simd;
mod table;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm;
// Without SSE2 (kernels of operating systems) f32 does not live in vector registers.
#[cfg(all(target_arch = "x86_64", target_feature = "sse2"))]
mod x86;

pub use attention_i8::{AttentionI8, MOST_TOKENS};
pub use conv_i8::Conv2dI8;
pub use conv_i16::Conv2dI16;
pub use norm_i8::{GroupNormI8, MOST_PIXELS};
pub use sequence::{Conv1d, Conv1dI8, Conv1dShape};
pub use table::{Conv2d, ConvShape, Epilogue, Kernels, LinearF16, LinearF32, LinearI8, Requantize};

//! x86-64: which tables this CPU runs.
//!
//! Owns detection without std. [`available`] hands out the tables whose
//! instructions the CPU and the operating system support; after that,
//! [`Isa::known`](crate::simd::Isa::known) gives values of their types.

mod attention_i8;
mod avx2;
mod avx512;
mod avx512_i8;
mod conv_i8;
mod few;
mod int8;
mod strip;
mod words;

use core::arch::x86_64::{__cpuid, __cpuid_count, _MM_HINT_T0, _mm_prefetch, _xgetbv};
use core::sync::atomic::{AtomicU8, Ordering};

use crate::layout::PANEL;
use crate::table::Kernels;

/// Slowest first, in the order of [`Level`].
static TABLES: [&Kernels; 3] = [&avx2::KERNELS, &avx512::KERNELS, &avx512::VNNI_KERNELS];

/// The tables that this CPU runs, slowest first.
pub(crate) fn available() -> &'static [&'static Kernels] {
    let tables = level() - Level::Baseline as u8;
    TABLES.get(..tables.into()).unwrap_or(&[])
}

/// What a CPU has: everything up to one of these.
#[derive(Clone, Copy)]
enum Level {
    /// What the target has.
    Baseline = 1,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
    /// AVX-512 VNNI.
    Avx512Vnni,
}

/// The [`Level`] of this CPU as a number, 0 where it is not known yet.
///
/// All accesses are relaxed: no other data depends on it, and racing threads
/// detect the same.
static LEVEL: AtomicU8 = AtomicU8::new(0);

/// The [`Level`] of this CPU as a number, detected once.
#[inline]
fn level() -> u8 {
    match LEVEL.load(Ordering::Relaxed) {
        0 => {
            let level = detect() as u8;
            LEVEL.store(level, Ordering::Relaxed);
            level
        }
        level => level,
    }
}

/// Whether this CPU is known to have everything up to `wanted`.
///
/// Does not detect it, so that a kernel's entry stays short: whoever has a table
/// has it from [`available`].
#[inline(always)]
fn known(wanted: Level) -> bool {
    LEVEL.load(Ordering::Relaxed) >= wanted as u8
}

/// Asks CPUID what the CPU has, and XCR0 which registers the system saves.
#[cold]
fn detect() -> Level {
    const FMA_OSXSAVE_AVX_F16C: u32 = 1 << 12 | 1 << 27 | 1 << 28 | 1 << 29;
    const AVX2: u32 = 1 << 5;
    const AVX512_F_DQ_BW_VL: u32 = 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31;
    const AVX512_VNNI: u32 = 1 << 11;
    const XMM_YMM: u64 = 0b110;
    const MASKS_ZMM: u64 = 0b1110_0000;

    let has = |register: u32, bits: u32| register & bits == bits;
    if __cpuid(0).eax < 7 || !has(__cpuid(1).ecx, FMA_OSXSAVE_AVX_F16C) {
        return Level::Baseline;
    }
    // SAFETY: OSXSAVE is set, so XGETBV exists, and XCR0 always does.
    let saved = unsafe { _xgetbv(0) };
    let leaf = __cpuid_count(7, 0);
    if !has(leaf.ebx, AVX2) || saved & XMM_YMM != XMM_YMM {
        return Level::Baseline;
    }
    if !has(leaf.ebx, AVX512_F_DQ_BW_VL) || saved & MASKS_ZMM != MASKS_ZMM {
        return Level::Avx2;
    }
    if has(leaf.ecx, AVX512_VNNI) {
        Level::Avx512Vnni
    } else {
        Level::Avx512
    }
}

/// Asks for the row that is needed six inputs after this one.
///
/// For weights beyond the second cache: the hardware's own prefetch stops at
/// the end of every page, and each panel lies in pages of its own.
#[inline(always)]
fn prefetch<W>(row: &[W; PANEL]) {
    const AHEAD: usize = 6;
    let ahead = core::ptr::from_ref(row).wrapping_add(AHEAD);
    // SAFETY: every x86-64 CPU has SSE, and a prefetch of any address is
    // harmless.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(ahead.cast()) }
}

/// Runs a loop compiled for the widest registers that the CPU has.
///
/// The compiler vectorises it as it would by default, only wider, and never
/// fuses operations: the bits are the same.
#[inline]
pub(crate) fn widest<O>(run: impl FnOnce(O), operands: O) {
    #[target_feature(enable = "avx2")]
    fn avx2<O>(run: impl FnOnce(O), operands: O) {
        run(operands)
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    fn avx512<O>(run: impl FnOnce(O), operands: O) {
        run(operands)
    }
    let level = level();
    if level >= Level::Avx512 as u8 {
        // SAFETY: this level has these features.
        unsafe { avx512(run, operands) }
    } else if level >= Level::Avx2 as u8 {
        // SAFETY: this level has this feature.
        unsafe { avx2(run, operands) }
    } else {
        run(operands)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use crate::simd::Isa;

    /// The standard library asks the same questions in its own way.
    #[test]
    fn detection_agrees_with_std() {
        let avx2 = std::is_x86_feature_detected!("avx2")
            && std::is_x86_feature_detected!("fma")
            && std::is_x86_feature_detected!("f16c");
        let avx512 = avx2
            && std::is_x86_feature_detected!("avx512f")
            && std::is_x86_feature_detected!("avx512bw")
            && std::is_x86_feature_detected!("avx512vl")
            && std::is_x86_feature_detected!("avx512dq");
        let vnni = avx512 && std::is_x86_feature_detected!("avx512vnni");
        let expected = usize::from(avx2) + usize::from(avx512) + usize::from(vnni);
        assert_eq!(super::available().len(), expected);
        let values = [
            super::avx2::Avx2::known().is_some(),
            super::avx512::Avx512::known().is_some(),
            super::avx512::Vnni::known().is_some(),
        ];
        assert_eq!(values, [avx2, avx512, vnni]);
    }
}

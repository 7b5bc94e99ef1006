//! f32 and f16 linear layers on the single-precision FPU.
//!
//! Owns the sixteen sums of a panel, which stay in registers while the inputs
//! pass by. Knows no layer beyond one panel's weights, bias and inputs.
//!
//! Multiplies and adds are not fused: on Cortex-M4 the pair takes two cycles
//! where VFMA takes three, and the result is the scalar kernel's to the bit.

use core::arch::asm;

use crate::layout::PANEL;
use crate::scalar;
use crate::table::{Epilogue, LinearF16, LinearF32};

pub(super) fn linear_f32(op: LinearF32<'_>, finish: Epilogue, y: &mut [f32]) {
    panels(op.weights, op.bias, op.x, finish, y, panel_f32)
}

pub(super) fn linear_f16(op: LinearF16<'_>, finish: Epilogue, y: &mut [f32]) {
    // Multiple loads need words on word boundaries; the runtime's weights are.
    if !op.weights.as_ptr().cast::<u32>().is_aligned() {
        return (scalar::ENTRIES.linear_f16)(op, finish, y);
    }
    panels(op.weights, op.bias, op.x, finish, y, panel_f16)
}

/// Adds the products of one panel to its sums.
///
/// # Safety
/// `x` is not empty. `weights` points to a row of [`PANEL`] weights for each of
/// it, on a word boundary.
type Panel<T> = unsafe fn(weights: *const T, x: &[f32], sums: &mut [f32; PANEL]);

fn panels<T>(
    weights: &[T],
    bias: &[f32],
    x: &[f32],
    finish: Epilogue,
    y: &mut [f32],
    panel: Panel<T>,
) {
    let mut rest = weights;
    for (bias, y) in bias.as_chunks::<PANEL>().0.iter().zip(y.chunks_mut(PANEL)) {
        let Some((weights, later)) = rest.split_at_checked(PANEL * x.len()) else {
            return;
        };
        rest = later;
        let mut sums = *bias;
        if !x.is_empty() {
            // SAFETY: `weights` is that long, and on a word boundary because the
            // first panel is and each is a number of words long.
            unsafe { panel(weights.as_ptr(), x, &mut sums) };
        }
        store(y, &sums, finish);
    }
}

/// Out of line, because inlined it is unrolled, and a copy per kernel is large.
#[inline(never)]
fn store(y: &mut [f32], sums: &[f32; PANEL], finish: Epilogue) {
    for (y, &sum) in y.iter_mut().zip(sums) {
        *y = finish.apply(*y, sum);
    }
}

/// Eight products with the input in s24, added to eight sums.
macro_rules! multiply_add {
    ($($sum:literal += $weight:literal),*) => { concat!(
        $("vmul.f32 ", $weight, ", ", $weight, ", s24\n",)*
        $("vadd.f32 ", $sum, ", ", $sum, ", ", $weight, "\n",)*
    ) };
}

/// Two f16 of one register as two f32; the low one may replace the pair.
macro_rules! widen {
    ($($pair:literal => $low:literal, $high:literal);*) => { concat!(
        $("vcvtt.f32.f16 ", $high, ", ", $pair, "\n",
          "vcvtb.f32.f16 ", $low, ", ", $pair, "\n",)*
    ) };
}

/// Runs `$body` for each input, at least one, with the sums in s0 to s15 and the input in s24.
macro_rules! for_each_input {
    ($weights:ident, $x:ident, $sums:ident, $($body:expr),*) => {
        asm!(
            "vldm {sums}, {{s0-s15}}",
            "2:",
            "vldm {x}!, {{s24}}",
            $($body,)*
            "cmp {x}, {end}",
            "bne 2b",
            "vstm {sums}, {{s0-s15}}",
            sums = in(reg) $sums,
            x = inout(reg) $x.as_ptr_range().start => _,
            end = in(reg) $x.as_ptr_range().end,
            weights = inout(reg) $weights => _,
            out("s0") _, out("s1") _, out("s2") _, out("s3") _,
            out("s4") _, out("s5") _, out("s6") _, out("s7") _,
            out("s8") _, out("s9") _, out("s10") _, out("s11") _,
            out("s12") _, out("s13") _, out("s14") _, out("s15") _,
            out("s16") _, out("s17") _, out("s18") _, out("s19") _,
            out("s20") _, out("s21") _, out("s22") _, out("s23") _,
            out("s24") _,
            options(nostack),
        )
    };
}

/// # Safety
/// As for [`Panel`].
unsafe fn panel_f32(weights: *const f32, x: &[f32], sums: &mut [f32; PANEL]) {
    // SAFETY: reads `PANEL` weights per input, by the caller's contract, and the
    // inputs; reads and writes the sums.
    unsafe {
        for_each_input!(
            weights,
            x,
            sums,
            "vldm {weights}!, {{s16-s23}}",
            multiply_add!(
                "s0" += "s16",
                "s1" += "s17",
                "s2" += "s18",
                "s3" += "s19",
                "s4" += "s20",
                "s5" += "s21",
                "s6" += "s22",
                "s7" += "s23"
            ),
            "vldm {weights}!, {{s16-s23}}",
            multiply_add!(
                "s8" += "s16",
                "s9" += "s17",
                "s10" += "s18",
                "s11" += "s19",
                "s12" += "s20",
                "s13" += "s21",
                "s14" += "s22",
                "s15" += "s23"
            )
        );
    }
}

/// # Safety
/// As for [`Panel`].
unsafe fn panel_f16(weights: *const u16, x: &[f32], sums: &mut [f32; PANEL]) {
    // SAFETY: reads `PANEL` weights per input, by the caller's contract, and the
    // inputs; reads and writes the sums.
    unsafe {
        for_each_input!(
            weights,
            x,
            sums,
            "vldm {weights}!, {{s16-s19}}",
            widen!("s19" => "s22", "s23"; "s18" => "s20", "s21";
                   "s17" => "s18", "s19"; "s16" => "s16", "s17"),
            multiply_add!(
                "s0" += "s16",
                "s1" += "s17",
                "s2" += "s18",
                "s3" += "s19",
                "s4" += "s20",
                "s5" += "s21",
                "s6" += "s22",
                "s7" += "s23"
            ),
            "vldm {weights}!, {{s16-s19}}",
            widen!("s19" => "s22", "s23"; "s18" => "s20", "s21";
                   "s17" => "s18", "s19"; "s16" => "s16", "s17"),
            multiply_add!(
                "s8" += "s16",
                "s9" += "s17",
                "s10" += "s18",
                "s11" += "s19",
                "s12" += "s20",
                "s13" += "s21",
                "s14" += "s22",
                "s15" += "s23"
            )
        );
    }
}

/// Square root, correctly rounded, as IEEE 754 has it.
pub(crate) fn sqrt(x: f32) -> f32 {
    let mut bits = x.to_bits();
    // By way of a core register: stable Rust passes no operand in an FPU's.
    // SAFETY: works on registers alone; every f32 is a valid operand.
    unsafe {
        asm!(
            "vmov s0, {bits}",
            "vsqrt.f32 s0, s0",
            "vmov {bits}, s0",
            bits = inout(reg) bits,
            out("s0") _,
            options(pure, nomem, nostack),
        );
    }
    f32::from_bits(bits)
}

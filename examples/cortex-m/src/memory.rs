//! How much flash and stack the firmware takes, from the linker's symbols.

use core::ptr;

/// What cortex-m-rt paints the stack with before `main`.
const PAINT: u32 = cortex_m_rt::STACK_PAINT_VALUE;

unsafe extern "C" {
    static __vector_table: u32;
    static __erodata: u32;
    static __sdata: u32;
    static __edata: u32;
    static _stack_end: u32;
    static _stack_start: u32;
}

/// Bytes of flash: code, constants and the initial values of RAM.
pub fn flash() -> usize {
    let span = |start: *const u32, end: *const u32| end.addr() - start.addr();
    span(&raw const __vector_table, &raw const __erodata)
        + span(&raw const __sdata, &raw const __edata)
}

/// The most bytes of stack that were ever in use.
pub fn stack_peak() -> usize {
    let (end, start) = (&raw const _stack_end, &raw const _stack_start);
    let mut word = end;
    // SAFETY: the words from the linker's `_stack_end` up to `_stack_start` are
    // RAM; other code writes them, so they are read as volatile.
    while word < start && unsafe { ptr::read_volatile(word) } == PAINT {
        word = word.wrapping_add(1);
    }
    start.addr() - word.addr()
}

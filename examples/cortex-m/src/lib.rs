//! What the firmware of every board shares: an instruction counter, the sizes
//! of flash and stack, and an end by exit code.
//!
//! Knows nothing of models or kernels.

#![no_std]

pub mod counter;
pub mod memory;

use core::panic::PanicInfo;

use cortex_m_rt::{ExceptionFrame, exception};
use semihosting::{println, process};

/// The board that this build is for.
pub const BOARD: &str = env!("BOARD");

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    println!("{info}");
    process::exit(101)
}

/// Ends the run: the default handler would hang.
// SAFETY: touches no state of the interrupted program.
#[exception]
unsafe fn HardFault(frame: &ExceptionFrame) -> ! {
    println!("hard fault at {:#010x}", frame.pc());
    process::exit(102)
}

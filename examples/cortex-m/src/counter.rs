//! Instructions, counted by SysTick under QEMU's `-icount`, where each takes the
//! same time. On a real chip the same code counts time instead.

use core::sync::atomic::{AtomicU32, Ordering};

use cortex_m::interrupt;
use cortex_m::peripheral::{SCB, SYST, syst::SystClkSource};
use cortex_m_rt::exception;

/// SysTick's 24 bits.
const PERIOD: u32 = 1 << 24;
/// Ticks per 1000 instructions.
const KILO_TICKS: u64 = parse(env!("KILO_TICKS"));

/// Times that SysTick reached zero.
static WRAPS: AtomicU32 = AtomicU32::new(0);

#[exception]
fn SysTick() {
    // Not `fetch_add`: cores without atomic read-modify-write run this too.
    WRAPS.store(WRAPS.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// A running SysTick.
pub struct Counter {
    /// Ticks that reading the counter takes by itself.
    overhead: u64,
}

impl Counter {
    /// Starts SysTick.
    pub fn start(mut syst: SYST) -> Self {
        syst.set_clock_source(SystClkSource::Core);
        syst.set_reload(PERIOD - 1);
        syst.clear_current();
        syst.enable_counter();
        syst.enable_interrupt();
        let mut counter = Counter { overhead: 0 };
        counter.overhead = counter.ticks(|| ()).1;
        counter
    }

    /// Runs `work` and counts its instructions.
    pub fn count<T>(&self, work: impl FnOnce() -> T) -> (T, u64) {
        let (result, ticks) = self.ticks(work);
        (result, ticks * 1000 / KILO_TICKS)
    }

    #[inline(never)]
    fn ticks<T>(&self, work: impl FnOnce() -> T) -> (T, u64) {
        let start = now();
        let result = work();
        let ticks = now() - start;
        (result, ticks.saturating_sub(self.overhead))
    }
}

fn now() -> u64 {
    interrupt::free(|_| {
        let (mut wraps, mut current) = (WRAPS.load(Ordering::Relaxed), SYST::get_current());
        if SCB::is_pendst_pending() {
            // It wrapped before or just after the reading, and is yet to be counted.
            (wraps, current) = (wraps + 1, SYST::get_current());
        }
        u64::from(wraps) * u64::from(PERIOD) + u64::from(PERIOD - 1 - current)
    })
}

const fn parse(digits: &str) -> u64 {
    match u64::from_str_radix(digits, 10) {
        Ok(number) => number,
        Err(_) => panic!("build.rs writes a number"),
    }
}

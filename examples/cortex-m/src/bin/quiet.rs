//! The smallest program that generates a picture: no text, no measuring. Its size is what
//! quell costs a firmware; its exit code says whether the digest is the file's.

#![no_std]
#![no_main]

use cortex_m_rt::entry;
use quell::{Arena, Model, Request};
use semihosting::process;

static MODEL: &[u8] = quell::include_model!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/",
    env!("QUELL_MODEL")
));
const ARENA: usize = quell::arena_bytes(MODEL);
const OPS: u64 = quell::required(MODEL);

#[entry]
fn main() -> ! {
    let arena = cortex_m::singleton!(: Arena<ARENA> = Arena::new());
    process::exit(match arena.and_then(run) {
        Some(true) => 0,
        Some(false) => 1,
        None => 2,
    })
}

/// Whether the self-test's digest comes out; `None` where the model cannot be run.
fn run(arena: &'static mut Arena<ARENA>) -> Option<bool> {
    let model = Model::<OPS>::open_for(MODEL).ok()?;
    let test = model.head().self_test;
    let request = Request {
        seed: test.map_or(0, |test| test.seed),
        steps: test.map_or(4, |test| test.steps),
        class: match test {
            Some(test) => test.class,
            None => (model.head().classes > 0).then_some(0),
        },
        ..Request::default()
    };
    let mut session = model.session(arena.bytes_mut()).ok()?;
    let mut generation = session.generate(request).ok()?;
    while generation.step().is_some() {}
    let digest = quell::digest(generation.sample());
    Some(test.is_none_or(|test| test.digest == digest))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    process::exit(3)
}

//! Generates a picture on a Cortex-M board and draws it as text.
//!
//! `cargo run` starts QEMU. What to generate is fixed at compile time by the
//! environment variables `QUELL_MODEL`, `QUELL_SEED`, `QUELL_STEPS` and
//! `QUELL_CLASS`. By default it is the model's self-test, whose digest the file
//! states: if the board computes another one, the run fails.

#![no_std]
#![no_main]

mod picture;

use core::fmt::Display;
use core::str::FromStr;

use cortex_m_rt::entry;
use quell::format::SelfTest;
use quell::{Arena, Model, Request, RequestError};
use quell_cortex_m::{BOARD, counter::Counter, memory};
use semihosting::{println, process};

const PATH: &str = env!("QUELL_MODEL");
static MODEL: &[u8] = quell::include_model!(concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/",
    env!("QUELL_MODEL")
));
/// The model says at compile time how much memory it needs.
const ARENA: usize = quell::arena_bytes(MODEL);
/// And which operators: the firmware has code for no others.
const OPS: u64 = quell::required(MODEL);

#[entry]
fn main() -> ! {
    let peripherals = cortex_m::Peripherals::take();
    let arena = cortex_m::singleton!(: Arena<ARENA> = Arena::new());
    let (Some(peripherals), Some(arena)) = (peripherals, arena) else {
        fail("main runs once")
    };
    let counter = Counter::start(peripherals.SYST);
    let (model, opening) = counter.count(|| Model::<OPS>::open_for(MODEL));
    let model = model.unwrap_or_else(|error| fail(error));

    println!("board   {BOARD}, {} kernels", model.kernels().name);
    let (tier, macs) = (model.header().tier.name(), model.header().macs);
    println!("model   {PATH}, {tier}, {macs} multiply-accumulates per step");
    println!("arena   {ARENA} bytes of RAM");
    let code = memory::flash() - MODEL.len();
    println!("flash   {} bytes of model, {code} of code", MODEL.len());
    println!("open    {opening} instructions");

    let request = request(&model);
    let digest = generate(&model, arena, request, &counter);
    println!("stack   {} bytes at most", memory::stack_peak());
    check(model.head().self_test, request, digest);
    process::exit(0)
}

/// The self-test, or what the environment variables say instead.
fn request(model: &Model<'_, OPS>) -> Request<'static> {
    let head = model.head();
    let test = head.self_test;
    let default = Request::default();
    Request {
        seed: number(option_env!("QUELL_SEED"))
            .or(test.map(|test| test.seed))
            .unwrap_or(default.seed),
        steps: number(option_env!("QUELL_STEPS"))
            .or(test.map(|test| test.steps))
            .unwrap_or(default.steps),
        class: number(option_env!("QUELL_CLASS")).or(test.and_then(|test| test.class)),
        ..default
    }
}

fn number<T: FromStr>(text: Option<&str>) -> Option<T> {
    let number = text?.parse();
    Some(number.unwrap_or_else(|_| fail("QUELL_SEED, QUELL_STEPS and QUELL_CLASS are numbers")))
}

/// Generates and draws a picture; returns its digest.
fn generate<const N: usize>(
    model: &Model<'_, OPS>,
    arena: &mut Arena<N>,
    request: Request<'_>,
    counter: &Counter,
) -> u64 {
    let session = model.session(arena.bytes_mut());
    let mut session = session.unwrap_or_else(|error| fail(error));
    let (generation, noising) = counter.count(|| session.generate(request));
    let mut generation = generation.unwrap_or_else(|error| match error {
        RequestError::Input(error) => fail(error),
        // Its text has a float in it, and formatting floats takes 14 KB of flash.
        _ => fail("the model has no such number of steps"),
    });
    println!("noise   {noising} instructions, seed {}", request.seed);
    while let (Some(step), stepping) = counter.count(|| generation.step()) {
        let (number, steps) = (step.index + 1, request.steps);
        println!(
            "step    {number} of {steps} at t = {}: {stepping} instructions",
            step.timestep
        );
    }
    picture::draw(generation.sample(), model.header());
    let digest = quell::digest(generation.sample());
    println!("digest  {digest:016x}");
    digest
}

/// Fails where the model's self-test was run and gave another digest.
fn check(test: Option<SelfTest>, request: Request<'_>, digest: u64) {
    let Some(test) = test else { return };
    let known = (test.seed, test.steps, test.class);
    if known != (request.seed, request.steps, request.class) {
        return;
    }
    if digest != test.digest {
        fail(format_args!(
            "the file's self-test says {:016x}",
            test.digest
        ))
    }
    println!("        as the file's self-test says");
}

fn fail(error: impl Display) -> ! {
    println!("error: {error}");
    process::exit(1)
}

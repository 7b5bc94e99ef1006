//! Writes the memory map of the board that `QUELL_BOARD` names, and tells the
//! firmware its name and how emulated time counts instructions.

use std::path::PathBuf;
use std::{env, fs};

struct Board {
    name: &'static str,
    title: &'static str,
    /// Origin and KiB of flash, then of RAM.
    flash: (u32, u32),
    ram: (u32, u32),
    /// Core clock, which drives SysTick.
    mhz: u32,
    /// QEMU's `-icount shift`: an instruction takes `2^shift` ns.
    shift: u32,
}

const BOARDS: [Board; 4] = [
    Board {
        name: "mps2-an386",
        title: "Arm MPS2 AN386, Cortex-M4F",
        flash: (0x0000_0000, 4096),
        ram: (0x2000_0000, 4096),
        mhz: 25,
        shift: 6,
    },
    Board {
        name: "mps2-an500",
        title: "Arm MPS2 AN500, Cortex-M7",
        flash: (0x0000_0000, 4096),
        ram: (0x2000_0000, 4096),
        mhz: 25,
        shift: 6,
    },
    Board {
        name: "mps2-an505",
        title: "Arm MPS2 AN505, Cortex-M33",
        flash: (0x1000_0000, 4096),
        ram: (0x3800_0000, 4096),
        mhz: 20,
        shift: 6,
    },
    Board {
        name: "stm32f405",
        title: "STM32F405, Cortex-M4F",
        flash: (0x0800_0000, 1024),
        ram: (0x2000_0000, 128),
        mhz: 168,
        shift: 3,
    },
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=QUELL_BOARD");
    let name = env::var("QUELL_BOARD").unwrap_or("mps2-an386".into());
    let Some(board) = BOARDS.iter().find(|board| board.name == name) else {
        let names = BOARDS.map(|board| board.name).join(", ");
        println!("cargo::error=QUELL_BOARD is {name}, not one of {names}");
        return;
    };
    println!("cargo::rustc-env=BOARD={}", board.title);
    // SysTick ticks per 1000 instructions.
    println!("cargo::rustc-env=KILO_TICKS={}", board.mhz << board.shift);

    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    let (flash, ram) = (board.flash, board.ram);
    let map = format!(
        "MEMORY\n{{\n  FLASH : ORIGIN = {:#010x}, LENGTH = {}K\n  RAM : ORIGIN = {:#010x}, LENGTH = {}K\n}}\n",
        flash.0, flash.1, ram.0, ram.1,
    );
    fs::write(out.join("memory.x"), map).unwrap();
    println!("cargo::rustc-link-search={}", out.display());
    println!("cargo::rustc-link-arg-bins=-Tlink.x");
}

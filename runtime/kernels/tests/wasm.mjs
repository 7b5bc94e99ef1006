// Runs the kernels' conformance suite in a WebAssembly engine, on every table of
// a module with simd128, and compares the speed of the tables.
//
//   RUSTFLAGS="-C target-feature=+simd128" cargo build --release -p quell-kernels \
//     --features conformance --example wasm --target wasm32-unknown-unknown
//   node runtime/kernels/tests/wasm.mjs target/wasm32-unknown-unknown/release/examples/wasm.wasm

import { readFile } from "node:fs/promises";

const KERNELS = [
  ["conv2d_f32 14x14 k3 32-32", 1806336],
  ["conv2d_f16 14x14 k3 32-32", 1806336],
  ["linear_f32 256-256", 65536],
  ["linear_f16 256-256", 65536],
  ["linear_i8_f32 256-256", 65536],
  ["attention 49x4x16", 307328],
  ["group norm, SiLU 196x32", 6272],
  ["conv2d_i8 14x14 k3 32-32", 1806336],
  ["int8 curve 196x32", 6272],
  ["int8 attention 49x4x16", 307328],
];

const [path] = process.argv.slice(2);
const { instance } = await WebAssembly.instantiate(await readFile(path));
const { tables, check, message, message_len, memory, run } = instance.exports;

for (let table = 0; table < tables(); table++) {
  const conforms = check(table);
  console.log(new TextDecoder().decode(new Uint8Array(memory.buffer, message(), message_len())));
  if (!conforms) process.exit(1);
}
if (tables() < 2) {
  console.error("the module has no simd128 table: was it built with +simd128?");
  process.exit(1);
}

// Milliseconds of the fastest of a few rounds, after the engine has optimized.
function time(table, kernel, runs) {
  let best = Infinity;
  for (let round = 0; round < 8; round++) {
    const start = performance.now();
    run(table, kernel, runs);
    best = Math.min(best, performance.now() - start);
  }
  return best;
}

for (const [kernel, [name, operations]] of KERNELS.entries()) {
  const runs = Math.ceil(2e7 / operations);
  const rates = [0, 1].map((table) => (operations * runs) / time(table, kernel, runs) / 1e6);
  const [scalar, simd] = rates.map((rate) => rate.toFixed(2));
  console.log(`${name}: ${scalar} scalar, ${simd} simd128 operations/ns, ${(rates[1] / rates[0]).toFixed(1)} times`);
}

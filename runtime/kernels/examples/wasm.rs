//! The conformance suite as a WebAssembly module, and kernels to time.
//!
//! `tests/wasm.mjs` runs it in Node; its exports take and return numbers only.

use std::sync::Mutex;

use quell_kernels::attention::Attention;
use quell_kernels::images_i8::{Curve, POINTS, PerChannel};
use quell_kernels::layout::{
    PANEL, ROWS, conv_i8_inputs, i8_len, pad, panels_len, scratch_conv_i8, scratch_i8,
};
use quell_kernels::norm::{Condition, GroupNorm};
use quell_kernels::{
    AttentionI8, Conv2d, Conv2dI8, ConvShape, Epilogue, Kernels, LinearF16, LinearF32, LinearI8,
    Requantize, conformance,
};

/// What [`check`] has to say.
static MESSAGE: Mutex<String> = Mutex::new(String::new());

/// Number of tables, the scalar one included.
// SAFETY: no other function of the module has this name; so below.
#[unsafe(no_mangle)]
pub extern "C" fn tables() -> usize {
    Kernels::available().count()
}

/// Runs the suite on a table; 1 where it conforms. The message then lists the
/// kernels and their cases, or names the first failure.
// SAFETY: see `tables`.
#[unsafe(no_mangle)]
pub extern "C" fn check(table: usize) -> u32 {
    let Some(table) = Kernels::available().nth(table) else {
        return 0;
    };
    let mut lines = Vec::new();
    let verdict = conformance::check(table, &mut |line| lines.push(line.to_string()));
    if let Err(failure) = &verdict {
        lines.push(failure.to_string());
    }
    if let Ok(mut message) = MESSAGE.lock() {
        *message = lines.join("\n");
    }
    verdict.is_ok().into()
}

/// Where the message begins.
// SAFETY: see `tables`.
#[unsafe(no_mangle)]
pub extern "C" fn message() -> *const u8 {
    MESSAGE
        .lock()
        .map_or(std::ptr::null(), |text| text.as_ptr())
}

/// Bytes of the message, UTF-8.
// SAFETY: see `tables`.
#[unsafe(no_mangle)]
pub extern "C" fn message_len() -> usize {
    MESSAGE.lock().map_or(0, |text| text.len())
}

/// Runs a kernel so many times: 0 and 1 a convolution with f32 and f16 weights,
/// 2 and 3 a linear layer, 4 one with int8 weights, 5 attention, 6 group norm
/// and SiLU, 7 to 9 see [`run_int8`]. Returns something that depends on all results.
// SAFETY: see `tables`.
#[unsafe(no_mangle)]
pub extern "C" fn run(table: usize, kernel: u32, times: usize) -> f32 {
    let Some(table) = Kernels::available().nth(table) else {
        return 0.0;
    };
    let mut sum = 0.0;
    match kernel {
        0 | 1 => {
            let shape = ConvShape {
                height: 14,
                width: 14,
                channels: 32,
                out_height: 14,
                out_width: 14,
                kernel: 3,
                stride: 1,
                pad_top: 1,
                pad_left: 1,
            };
            let (x, bias) = (vec![0.5; 14 * 14 * 32], vec![0.0; 32]);
            let mut y = vec![0.0; 14 * 14 * 32];
            let (wide, half) = weights(panels_len(32, 9 * 32));
            for _ in 0..times {
                let (x, bias) = (&x[..], &bias[..]);
                if kernel == 0 {
                    let weights = &wide;
                    let op = Conv2d {
                        shape,
                        weights,
                        bias,
                        x,
                    };
                    table.conv2d_f32(op, Epilogue::Store, &mut y);
                } else {
                    let weights = &half;
                    let op = Conv2d {
                        shape,
                        weights,
                        bias,
                        x,
                    };
                    table.conv2d_f16(op, Epilogue::Store, &mut y);
                }
                sum += y[0];
            }
        }
        2 | 3 => {
            let (x, bias) = (vec![0.5; 256], vec![0.0; pad(256, PANEL)]);
            let mut y = vec![0.0; 256];
            let (wide, half) = weights(panels_len(256, 256));
            for _ in 0..times {
                let (x, bias) = (&x[..], &bias[..]);
                if kernel == 2 {
                    let weights = &wide;
                    table.linear_f32(LinearF32 { weights, bias, x }, Epilogue::Store, &mut y);
                } else {
                    let weights = &half;
                    table.linear_f16(LinearF16 { weights, bias, x }, Epilogue::Store, &mut y);
                }
                sum += y[0];
            }
        }
        4 => {
            let (x, bias) = (vec![3; 256], vec![0; pad(256, ROWS)]);
            let (weights, scales) = (vec![7; i8_len(256, 256)], vec![0.5; pad(256, ROWS)]);
            let (mut y, mut scratch) = (vec![0.0; 256], vec![0; scratch_i8(256) / 2]);
            for _ in 0..times {
                let op = LinearI8 {
                    weights: &weights,
                    bias: &bias,
                    x: &x,
                    scratch: &mut scratch,
                };
                table.linear_i8_f32(op, &scales, Epilogue::Store, &mut y);
                sum += y[0];
            }
        }
        5 => {
            let (key, value) = (vec![0.25; 49 * 64], vec![0.5; 49 * 64]);
            let (mut query, mut scores) = (vec![0.5; 49 * 64], vec![0.0; 49]);
            for _ in 0..times {
                table.attention(Attention {
                    heads: 4,
                    query: &mut query,
                    key: &key,
                    value: &value,
                    scores: &mut scores,
                });
                sum += query[0];
            }
        }
        7.. => sum += run_int8(table, kernel, times),
        _ => {
            let (weight, bias) = (vec![1.0; 32], vec![0.5; 32]);
            let (mut table_row, mut x) = (vec![0.0; 64], vec![0.0; 196 * 32]);
            x.iter_mut()
                .enumerate()
                .for_each(|(i, x)| *x = (i % 97) as f32);
            let op = GroupNorm {
                groups: 8,
                epsilon: 1e-5,
                weight: &weight,
                bias: &bias,
                condition: Condition::None,
            };
            for _ in 0..times {
                table.group_norm_in_place(op, true, &mut table_row, &mut x);
                sum += x[0];
            }
        }
    }
    sum
}

/// Runs an int8 kernel so many times: 7 a convolution, 8 a curve, 9 attention.
fn run_int8(table: &Kernels, kernel: u32, times: usize) -> f32 {
    let mut image = vec![3; 14 * 14 * 32];
    match kernel {
        7 => {
            let shape = ConvShape {
                height: 14,
                width: 14,
                channels: 32,
                out_height: 14,
                out_width: 14,
                kernel: 3,
                stride: 1,
                pad_top: 1,
                pad_left: 1,
            };
            let weights = vec![7; i8_len(32, conv_i8_inputs(32, 3))];
            let (bias, multipliers) = (vec![100; 32], vec![1 << 20; 32]);
            let mut scratch = vec![0; scratch_conv_i8(32, 3, 1, 32) / 2];
            let mut y = vec![0; 14 * 14 * 32];
            for _ in 0..times {
                let op = Conv2dI8 {
                    shape,
                    weights: &weights,
                    bias: &bias,
                    x: &image,
                    zero_point: 3,
                    scratch: &mut scratch,
                };
                let rule = Requantize {
                    multipliers: &multipliers,
                    shift: 0,
                    zero_point: 0,
                    min: -127,
                };
                table.conv2d_i8(op, rule, &mut y);
                image[0] = y[0];
            }
        }
        8 => {
            let (factors, offsets, multipliers) = (vec![2048; 32], vec![2048; 32], vec![300; 32]);
            let points: [i16; POINTS] = core::array::from_fn(|i| (i * i * 4) as i16);
            for _ in 0..times {
                let op = PerChannel {
                    factors: &factors,
                    offsets: &offsets,
                    curve: Some(Curve {
                        points: &points,
                        multipliers: &multipliers,
                    }),
                    zero_point: 3,
                };
                table.per_channel_i8_in_place(op, &mut image);
            }
        }
        _ => {
            let (key, value) = (vec![5; 49 * 64], vec![9; 49 * 64]);
            let mut scratch = vec![0; 49 + 16];
            for _ in 0..times {
                table.attention_i8(AttentionI8 {
                    heads: 4,
                    query: &mut image[..49 * 64],
                    key: &key,
                    value: &value,
                    multipliers: &[1 << 20; 4],
                    shift: 4,
                    tokens: 49,
                    scratch: &mut scratch,
                });
            }
        }
    }
    image[0].into()
}

/// The same small weights as f32 and as f16.
fn weights(len: usize) -> (Vec<f32>, Vec<u16>) {
    let value = half::f16::from_f32(0.0625);
    (vec![value.to_f32(); len], vec![value.to_bits(); len])
}

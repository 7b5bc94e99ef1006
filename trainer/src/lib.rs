//! Trains small diffusion models with burn and writes them as checkpoint folders.
//!
//! This crate owns everything that happens before a model is compiled for a chip: reading the
//! pictures, adding the noise, the networks, the training run and the folder it leaves
//! behind. Training knows nothing of the `.quell` file or of the embedded runtime: the checkpoint
//! folder is the only thing it shares with them, besides the kernels, on which the U-Net trains.
//! [`evaluate`] measures what either of them draws. `README.md` describes data, runs and the
//! few-step checkpoint.
//!
//! The binary `quell-train` is a thin shell around this library, so that tests can build a
//! model, write it, read it back and run burn's forward pass on it.

pub mod batch;
pub mod checkpoint;
pub mod classifier;
pub mod cli;
pub mod config;
mod conv;
pub mod dataset;
pub mod diffusion;
pub mod evaluate;
pub mod guidance;
pub mod model;
mod operation;
mod optimizer;
mod params;
pub mod preview;
pub mod progress;
pub mod rng;
pub mod sample;
pub mod settings;
pub mod soflow;
pub mod state;
pub mod train;
pub mod unet2d;

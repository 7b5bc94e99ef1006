//! runtime/kernels

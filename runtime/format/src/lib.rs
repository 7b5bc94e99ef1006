//! runtime/format

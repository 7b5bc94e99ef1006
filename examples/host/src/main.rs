//! examples/host
fn main() {}

//! Compiles the `.proto` files without `protoc` (protox parses them in Rust).
fn main() {}

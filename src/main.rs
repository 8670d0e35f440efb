//! The `pflex` binary: the daemons, a whole cluster on one host, and the command line.
fn main() {}

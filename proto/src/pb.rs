//! The protobuf types and gRPC clients and servers of `proto/pflex/*.proto`, as generated.
#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated; the .proto files carry the documentation")]

tonic::include_proto!("pflex.v1");

/// For the gRPC reflection service.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/pflex.descriptors.bin"));

// Secrets and token keys never reach a log (I7): these messages print that they exist and nothing of what they hold.
macro_rules! hidden_debug {
    ($($name:ident),*) => {$(
        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($name), " { .. }"))
            }
        }
    )*};
}
hidden_debug!(SecretKey, KeysReply, IssuedToken, IssueTokensReply);

//! Compiles the `.proto` files without `protoc`: protox parses them in Rust, tonic generates clients and servers. The
//! descriptor set goes beside them for the gRPC reflection service.

use std::{env, fs, path::PathBuf};

use protox::prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=pflex");
    let descriptors = protox::compile(
        [
            "pflex/mdm.proto",
            "pflex/insight.proto",
            "pflex/recovery.proto",
            "pflex/control.proto",
            "pflex/refused.proto",
            "pflex/topology.proto",
            "pflex/vitals.proto",
            "pflex/work.proto",
        ],
        ["."],
    )?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("pflex.descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .skip_debug(["pflex.v1.SecretKey", "pflex.v1.KeysReply", "pflex.v1.IssuedToken", "pflex.v1.IssueTokensReply"])
        .compile_fds(descriptors)?;
    Ok(())
}

//! Compiles the MDM's own `.proto` files without `protoc` (protox parses them in Rust).
//!
//! These are private to the MDM: what its members send one another and what stands in its log. The client API is in
//! `pflex-proto`.

use std::path::{Path, PathBuf};

use protox::prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");

    let mut files: Vec<PathBuf> = std::fs::read_dir("proto")?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "proto"))
        .collect();
    // A stable order keeps the generated code, and so the build cache, stable.
    files.sort();

    let descriptors = protox::compile(&files, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("mdm_descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        // A map in order: the same membership always encodes to the same bytes.
        .btree_map(".")
        // Shared by the log, the peers it is sent to, and the message it came in.
        .bytes(".pflex.mdm.raft.v1.Proposal.command")
        // Secrets never reach a log (I7); `command` prints these by hand.
        .skip_debug(["pflex.mdm.log.v1.BootstrapCluster", "pflex.mdm.log.v1.RotateSecret", "pflex.mdm.rows.v1.Secret"])
        .include_file(Path::new("mdm_proto.rs"))
        .compile_fds(descriptors)?;
    Ok(())
}

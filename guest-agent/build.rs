//! Generates the ttrpc service and its messages from the contract that the host side owns.

use std::path::PathBuf;

fn main() {
    let proto_dir = PathBuf::from("../shim/agent_proto");
    let proto = proto_dir.join("agent.proto");
    println!("cargo:rerun-if-changed={}", proto.display());
    let out_dir = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    ttrpc_codegen::Codegen::new()
        .out_dir(&out_dir)
        .inputs([proto])
        .include(proto_dir)
        .rust_protobuf()
        // Without reflection descriptors: the agent never prints or parses messages as text.
        .rust_protobuf_customize(
            protobuf_codegen::Customize::default()
                .lite_runtime(true)
                .gen_mod_rs(false),
        )
        .customize(ttrpc_codegen::Customize {
            async_all: true,
            ..Default::default()
        })
        .run()
        .expect("agent.proto must compile");
    // Generated files carry inner attributes, so they have to be modules of a file beside them.
    std::fs::write(
        PathBuf::from(out_dir).join("mod.rs"),
        "pub mod agent;\npub mod agent_ttrpc;\n",
    )
    .expect("OUT_DIR is writable");
}

//! One program for all targets: STRATO_FUZZ_TARGET names the target, `list` prints the names.
#![no_main]

use std::sync::OnceLock;

use strato_proof::choices::Choices;
use strato_proof::targets;

static TARGET: OnceLock<String> = OnceLock::new();

fn target() -> &'static str {
    TARGET.get_or_init(|| {
        let name = std::env::var("STRATO_FUZZ_TARGET").unwrap_or_default();
        if !targets::names().contains(&name.as_str()) {
            println!("{}", targets::names().join("\n"));
            std::process::exit(i32::from(name != "list"));
        }
        name
    })
}

libfuzzer_sys::fuzz_target!(
    init: {
        target();
        targets::prepare_process();
    },
    |data: &[u8]| targets::run(target(), &mut Choices::Bytes(data))
);

use std::path::Path;

use super::guest::kvm;
use crate::probe::{Verdict, probe};

#[test]
fn probe_knows_kvm_that_emulates_kernel_mode() {
    let Some(kvm) = kvm() else { return };
    // Such a KVM runs the kernel mode of unmodified guests one instruction at a time.
    let emulates = Path::new("/sys/module/kvm_pvm").exists();
    match probe(kvm) {
        Verdict::Usable(text) => assert!(!emulates, "{text}"),
        Verdict::Unusable(text) => assert!(emulates, "{text}"),
    }
}

#[test]
fn probe_of_what_is_no_kvm_says_so() {
    let file = std::fs::File::open("/dev/null").unwrap();
    let Verdict::Unusable(text) = probe(file.into()) else { panic!("/dev/null is no KVM") };
    assert!(text.contains("is the descriptor one of /dev/kvm?"), "{text}");
}

use super::guest::kvm;
use crate::probe::probe;

#[test]
fn probe_says_something() {
    let Some(kvm) = kvm() else { return };
    eprintln!("{:?}", probe(kvm));
}

//! The fuzz targets of `make fuzz`, in small and from fixed seeds.
#![allow(missing_docs)]

use strato_proof::choices::Choices;
use strato_proof::targets;

#[test]
fn storms_from_fixed_seeds_are_survived() {
    for name in targets::names() {
        for seed in 0..30 {
            targets::run(name, &mut Choices::seeded(seed));
        }
    }
}

#[test]
fn inputs_as_a_fuzzer_makes_them_are_survived() {
    let choices = &mut Choices::seeded(9);
    for name in targets::names() {
        for len in 0..100 {
            let mut input = vec![0; len];
            choices.fill(&mut input);
            targets::run(name, &mut Choices::Bytes(&input));
        }
    }
}

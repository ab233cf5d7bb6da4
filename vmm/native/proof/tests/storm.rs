//! Random operations from fixed seeds: the fuzz targets of `make fuzz`, in small.
#![allow(missing_docs)]

use strato_proof::choices::Choices;
use strato_proof::storm;
use strato_proof::subject::KINDS;

#[test]
fn storms_are_survived() {
    for kind in KINDS {
        for seed in 0..60 {
            storm::run(kind, &mut Choices::seeded(seed), 300);
        }
    }
}

#[test]
fn short_inputs_of_a_fuzzer_are_survived() {
    for kind in KINDS {
        let choices = &mut Choices::seeded(9);
        for len in 0..200 {
            let mut input = vec![0; len];
            choices.fill(&mut input);
            storm::run(kind, &mut Choices::Bytes(&input), 1000);
        }
    }
}

//! Tests of the host half.

mod basics;
mod fixture;

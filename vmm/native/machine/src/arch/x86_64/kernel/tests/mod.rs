//! Kernels as they should be, kernels that lie, and kernels that are anything.
#![allow(unsafe_code, reason = "tests")]

mod bzimage;
mod elf;
mod files;
mod mutation;
mod started;

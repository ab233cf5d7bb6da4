//! `libstrato_sys.so`: descriptor, namespace and mount plumbing and the byte pump behind a C ABI.
//!
//! Loaded by the Python package `vmm.sys` into the shim, strato-vmm and the CLI. The modules are safe Rust
//! APIs; [`abi`] alone knows C pointers. Only [`pump`] and [`namespaced`] start threads, and only the pump's lives on.

pub mod abi;
pub mod namespaced;
pub mod network;
pub mod process;
pub mod pump;
pub mod tsc;

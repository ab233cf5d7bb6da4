//! The device, driven by hand: a mock driver that speaks FUSE, a folder in the host's temporary directory.

mod fuzz;
mod guest;
mod lies;
mod life;
mod mappings;
mod operations;
mod window;

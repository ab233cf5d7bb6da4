//! The operations of FUSE: each takes its fields from the request, asks the host half and puts the answer
//! into the reply.

mod attributes;
mod data;
mod directories;
mod locks;
mod mappings;
mod names;

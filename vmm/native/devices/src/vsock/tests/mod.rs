//! The socket device against the mock driver and real unix sockets.

mod behaviour;
mod guest;
mod heap;
mod lies;
mod many;
mod messages;
mod standstill;
mod streams;

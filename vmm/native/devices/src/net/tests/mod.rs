//! The network device against the mock driver, with a packet socket or a real tap as its host side.

mod control;
mod guest;
mod lies;
mod limits;
mod queue;
mod receive;
mod streams;
mod taps;
mod transmit;

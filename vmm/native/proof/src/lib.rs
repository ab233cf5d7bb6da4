//! What every device core has to stand, whatever it does: drivers that lie, moments at which it is stopped,
//! saved or reset, and random input. Nothing of this is in a product; tests and fuzz targets use it.
//!
//! A [`subject::Subject`] is one device with something behind it, a [`machine::Machine`] puts a subject between
//! a mock driver and host programs. A new device needs one file in `subjects/` and one line in
//! [`subject::KINDS`].
//!
//! Failures panic, as in any test, so the lints against that are off here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

pub mod choices;
pub mod kernels;
pub mod lies;
pub mod machine;
pub mod message_sockets;
pub mod messages;
pub mod records;
pub mod registers;
pub mod side;
pub mod storm;
pub mod subject;
mod subjects;
pub mod targets;

//! Random operations on one device.

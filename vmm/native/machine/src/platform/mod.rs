//! Devices that are not virtio: serial port, panic device, power.

//! The conversation of a device with its front end: a connected one and one that connects for itself.

use std::os::unix::net::{UnixListener, UnixStream};

use strato_devices::rng::{Rng, RngConfig};

use super::devices::{Driver, device, rng};

pub(crate) fn work() {
    rng();
    let path = std::env::temp_dir().join(format!("strato-confined-{}.sock", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let waiting = device("rng", Box::new(Rng::new(RngConfig::default()).unwrap()));
    waiting.serve(listener.into()).unwrap();
    let ours = UnixStream::connect(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let mut driver = Driver::with_connection(waiting, ours, 1, u64::MAX);
    assert_eq!(driver.ask(0, &[], 64).len(), 64);
    driver.end();
}

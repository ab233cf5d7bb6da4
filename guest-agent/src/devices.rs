//! Devices that come and go while the guest runs: checks what the host asks for and has it done by a helper
//! (`helper/slot.rs`), since binding a device waits for that device and PID 1 waits for nothing.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::errors::{AgentError, Context, ErrorKind, Result};
use crate::helper::pool::Helpers;
use crate::helper::wire::{Answer, Request};
use crate::proto::agent::BoundDevice;
use crate::sync::lock;

/// Longer than a helper waits for a device that only does not come up; for one that does not answer at all.
const PATIENCE: Duration = Duration::from_secs(20);

/// The ACPI id of a virtio-mmio device: Linux names its platform device by that and a number of two hexadecimal digits.
const HARDWARE_ID: &str = "LNRO0005:";

/// One per agent, for its whole life.
pub struct Devices {
    helpers: Arc<Helpers>,
    busy: Busy,
}

impl Devices {
    pub fn new(helpers: Arc<Helpers>) -> Self {
        Self {
            helpers,
            busy: Busy::default(),
        }
    }

    /// Has the guest's driver take the device of a slot; says what it is for the guest.
    pub async fn bind(&self, device: &str) -> Result<BoundDevice> {
        match self.ask(device, Request::Bind).await? {
            Answer::Bound(bound) => Ok(BoundDevice {
                virtio_id: bound.virtio_id,
                name: bound.name,
                mac: bound.mac,
                serial: bound.serial,
                ..Default::default()
            }),
            _ => Err(AgentError::internal("The helper did not tell the device")),
        }
    }

    /// Has the guest's driver let go of it.
    pub async fn unbind(&self, device: &str) -> Result<()> {
        self.ask(device, Request::Unbind).await.map(|_| ())
    }

    async fn ask(&self, device: &str, request: impl FnOnce(String) -> Request) -> Result<Answer> {
        check(device)?;
        let occupied = self.busy.occupy(device)?;
        let helpers = Arc::clone(&self.helpers);
        let request = request(device.to_owned());
        // Goes on when the host no longer waits: the device is occupied as long as the helper is at work on it.
        let work = tokio::spawn(async move {
            let answer = helpers.ask(&request, Vec::new()).await;
            drop(occupied);
            answer
        });
        let Ok(done) = tokio::time::timeout(PATIENCE, work).await else {
            return Err(AgentError::new(
                ErrorKind::DeadlineExceeded,
                format!("Device {device} did not answer within {PATIENCE:?}"),
            ));
        };
        match done.context("The request was not finished")?? {
            (Answer::Refused(error), _) => Err(error),
            (Answer::Failed(text), _) => Err(AgentError::internal(text)),
            (answer, _) => Ok(answer),
        }
    }
}

/// The name becomes a part of paths in sysfs.
fn check(device: &str) -> Result<()> {
    let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    match device.strip_prefix(HARDWARE_ID).map(str::as_bytes) {
        Some(&[high, low]) if is_digit(high) && is_digit(low) => Ok(()),
        _ => Err(AgentError::invalid(format!(
            "Device {:?} is not a virtio-mmio slot's ({HARDWARE_ID} and two hexadecimal digits)",
            // As much as an error needs of what may be megabytes.
            device.chars().take(40).collect::<String>()
        ))),
    }
}

/// The devices that a helper is at work on.
#[derive(Clone, Default)]
struct Busy(Arc<Mutex<HashSet<String>>>);

impl Busy {
    fn occupy(&self, device: &str) -> Result<Occupied> {
        if !lock(&self.0).insert(device.to_owned()) {
            return Err(AgentError::precondition(format!(
                "Device {device} is still being bound or unbound"
            )));
        }
        Ok(Occupied {
            busy: self.clone(),
            device: device.to_owned(),
        })
    }
}

/// Gives the device free when it is dropped.
struct Occupied {
    busy: Busy,
    device: String,
}

impl Drop for Occupied {
    fn drop(&mut self) {
        lock(&self.busy.0).remove(&self.device);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_accepts_the_names_of_slots() {
        for name in ["LNRO0005:00", "LNRO0005:0a", "LNRO0005:1f"] {
            assert!(check(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn check_refuses_other_devices_and_paths() {
        for name in [
            "",
            "LNRO0005:",
            "LNRO0005:0",
            "LNRO0005:000",
            "LNRO0005:0A",
            "LNRO0005:0\n",
            "LNRO0005:é",
            "LNRO0005:..",
            "LNRO0005:00/..",
            "../LNRO0005:00",
            "lnro0005:00",
            "PNP0501:00",
            &"x".repeat(1 << 20),
        ] {
            let error = check(name).expect_err(name);
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
            assert!(error.message.len() < 200, "{}", error.message);
        }
    }

    #[test]
    fn occupy_refuses_a_second_request_until_the_first_is_done() {
        let busy = Busy::default();
        let first = busy.occupy("LNRO0005:01").expect("free");
        let second = busy.occupy("LNRO0005:01").err().expect("a refusal");
        assert_eq!(second.kind, ErrorKind::FailedPrecondition);
        assert!(busy.occupy("LNRO0005:02").is_ok());
        drop(first);
        assert!(busy.occupy("LNRO0005:01").is_ok());
    }
}

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use strato_virtio::mock::guest_ram;
use strato_virtio::thread::spawn;
use strato_virtio::{DeviceFault, RING_FEATURES, record::RecordError};
use strato_virtio::{DeviceInfo, DeviceIo, Progress, VIRTIO_F_VERSION_1};
use strato_virtio_mmio::mock::{MockDriver, NEEDS_RESET};

use super::*;
use crate::events::{Event, LIBRARY_TAG, report_panics};

/// Panics when it is reset.
struct Faulty(DeviceInfo);

impl DeviceCore for Faulty {
    fn info(&self) -> &DeviceInfo {
        &self.0
    }

    fn process_queue(
        &mut self,
        _io: &mut DeviceIo<'_>,
        _queue: u16,
    ) -> std::result::Result<Progress, DeviceFault> {
        Ok(Progress::Idle)
    }

    fn reset(&mut self, _io: &mut DeviceIo<'_>) {
        panic!("On purpose")
    }

    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    fn restore(&mut self, _record: &[u8]) -> std::result::Result<(), RecordError> {
        Ok(())
    }
}

fn faulty() -> Parts {
    let info = DeviceInfo {
        device_type: 4,
        name: "faulty",
        features: RING_FEATURES,
        queue_sizes: vec![8],
        config_len: 8,
    };
    Parts { core: Box::new(Faulty(info)), counters: Box::new(Vec::new), control: Control::None }
}

fn wait_for_panic(ring: &EventRing, tag: u64) -> Event {
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let mut poll = libc::pollfd { fd: ring.fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one live pollfd.
        unsafe { libc::poll(&raw mut poll, 1, 1000) };
        if let Some(event) =
            ring.take(1).pop().filter(|event| event.tag == tag && event.kind == EventKind::Panicked)
        {
            return event;
        }
    }
    panic!("No panic of {tag}")
}

/// RESET_OWNER, version 1, without contents (vhost-user, "Front-end message types").
const RESET: [u8; 12] = [4, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn a_panic_of_a_device_is_an_event_and_goes_no_further() {
    let ring = Arc::new(EventRing::new().unwrap());
    report_panics(&ring);
    let device = Device::new("faulty0", faulty(), Reporter::new(Arc::clone(&ring), 5));
    let (ours, theirs) = UnixStream::pair().unwrap();
    device.serve(theirs.into()).unwrap();

    io::Write::write_all(&mut &ours, &RESET).unwrap();

    assert_eq!(wait_for_panic(&ring, 5).text, "On purpose");
    // The conversation ends as well: nobody answers for the device any more.
    assert_eq!(io::Read::read(&mut &ours, &mut [0; 1]).unwrap(), 0);
    drop(device);
}

#[test]
fn a_panic_of_a_thread_that_nobody_waits_for_is_an_event_too() {
    let ring = Arc::new(EventRing::new().unwrap());
    report_panics(&ring);

    // Tests run side by side, and each hears of the panics of all: one that waits absorbs the next.
    loop {
        spawn(None, "helper-9", || panic!("Alone")).unwrap().join().unwrap_err();
        if wait_for_panic(&ring, LIBRARY_TAG).text.starts_with("Thread helper-9 panicked at ") {
            break;
        }
    }
}

/// A listening socket, and where it listens.
fn listener(name: &str) -> (UnixListener, std::path::PathBuf) {
    let path = std::env::temp_dir().join(format!("strato-abi-{}-{name}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    (UnixListener::bind(&path).unwrap(), path)
}

#[test]
fn of_a_socket_that_listens_the_first_connection_is_served_and_no_other() {
    let (socket, path) = listener("first");
    let ring = Arc::new(EventRing::new().unwrap());
    let device = Device::new("net0", faulty(), Reporter::new(ring, 1));
    device.serve(socket.into()).unwrap();
    let ours = UnixStream::connect(&path).unwrap();
    // GET_FEATURES, version 1.
    io::Write::write_all(&mut &ours, &[1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    io::Read::read_exact(&mut &ours, &mut [0; 20]).unwrap();
    assert!(UnixStream::connect(&path).is_err(), "the listener is gone");
    std::fs::remove_file(&path).unwrap();
    drop(device);
    assert_eq!(io::Read::read(&mut &ours, &mut [0; 1]).unwrap(), 0);
}

#[test]
fn device_to_which_nobody_came_ends() {
    let (socket, path) = listener("nobody");
    std::fs::remove_file(path).unwrap();
    let ring = Arc::new(EventRing::new().unwrap());
    let device = Device::new("net0", faulty(), Reporter::new(Arc::clone(&ring), 1));
    device.serve(socket.into()).unwrap();
    drop(device);
    assert!(ring.take(9).iter().all(|event| event.kind == EventKind::FrontEndGone));
}

fn rng(ring: Arc<EventRing>) -> Device {
    let parts = crate::kinds::rng(strato_devices::rng::RngConfig::default()).unwrap();
    Device::new("rng0", parts, Reporter::new(ring, 3))
}

/// A driver gets its random bytes.
fn prove_service(device: &Arc<MmioDevice>) {
    let ram = guest_ram(1 << 20);
    device.set_memory(Arc::clone(&ram)).unwrap();
    let driver = MockDriver::new(Arc::clone(device));
    let mut queues = driver.begin(&ram, VIRTIO_F_VERSION_1);
    queues[0].offer(&[(0x8000, 64, true)]).unwrap();
    driver.kick(0);
    assert_eq!(driver.wait("random bytes", || queues[0].take_used()).1, 64);
}

#[test]
fn a_device_is_plugged_into_one_machine_after_the_other() {
    let device = rng(Arc::new(EventRing::new().unwrap()));
    let first = device.plug().unwrap();
    prove_service(&first);
    assert_eq!(device.plug().err().unwrap().errno(), libc::EBUSY);
    let (ours, theirs) = UnixStream::pair().unwrap();
    assert_eq!(device.serve(theirs.into()).unwrap_err().errno(), libc::EBUSY);
    drop(ours);

    device.unplugged();
    assert_eq!(device.plug().err().unwrap().errno(), libc::EBUSY, "the machine has it still");
    drop(first);
    let second = device.plug().unwrap();
    assert_eq!(MockDriver::new(Arc::clone(&second)).status(), 0);
    prove_service(&second);
    // A machine that ends without a word.
    drop(second);
    prove_service(&device.plug().unwrap());

    let counters = device.counters();
    assert!(counters.contains(&("bytes", 3 * 64)), "{counters:?}");
    assert!(counters.contains(&("refused_accesses", 0)), "{counters:?}");
}

#[test]
fn an_unplugged_device_lets_go_of_guest_memory() {
    let device = rng(Arc::new(EventRing::new().unwrap()));
    let plugged = device.plug().unwrap();
    let ram = guest_ram(1 << 20);
    plugged.set_memory(Arc::clone(&ram)).unwrap();
    MockDriver::new(Arc::clone(&plugged)).begin(&ram, VIRTIO_F_VERSION_1);
    assert_eq!(Arc::strong_count(&ram), 2);
    device.unplugged();
    assert_eq!(Arc::strong_count(&ram), 1);
}

#[test]
fn a_served_device_belongs_to_no_machine() {
    let device = rng(Arc::new(EventRing::new().unwrap()));
    let (ours, theirs) = UnixStream::pair().unwrap();
    device.serve(theirs.into()).unwrap();
    assert_eq!(device.plug().err().unwrap().errno(), libc::EBUSY);
    drop(ours);
    assert!(device.counters().iter().all(|(name, _)| *name != "refused_accesses"));
}

#[test]
fn a_plugged_device_outlives_its_handle_and_a_panic_of_it_is_an_event() {
    let ring = Arc::new(EventRing::new().unwrap());
    let device = Device::new("faulty0", faulty(), Reporter::new(Arc::clone(&ring), 6));
    let plugged = device.plug().unwrap();
    drop(device);
    let driver = MockDriver::new(Arc::clone(&plugged));
    driver.set_status(0);
    assert_eq!(wait_for_panic(&ring, 6).text, "On purpose");
    assert_eq!(driver.status(), NEEDS_RESET);
}

//! The serial port: a 16550 that only sends. For debugging a kernel which does not reach its virtio console.
//!
//! Each byte is an exit of the vCPU and a system call, so nobody should use it for more than that. A guest can send as
//! much as it likes; what is too much, or what the descriptor does not take at once, is dropped and counted.
#![expect(unsafe_code, reason = "writes that must not wait")]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use strato_devices::{BucketConfig, TokenBucket};
use strato_plumbing::{Result, check};
use vm_superio::serial::NoEvents;
use vm_superio::{Serial as Uart, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;

/// A kernel's whole log at once, and then five times what the fastest line of a 16550 carries.
const LIMIT: BucketConfig = BucketConfig { rate: 64 * 1024, burst: 512 * 1024 };

/// The eight ports.
pub struct Serial {
    uart: Mutex<Uart<Line, NoEvents, Output>>,
    interrupt: Arc<EventFd>,
    dropped: Arc<AtomicU64>,
}

impl Serial {
    /// Sends to `output`, which becomes non-blocking, or nowhere; `interrupt` raises the port's line.
    ///
    /// # Errors
    /// The descriptor cannot be made non-blocking.
    pub fn new(output: Option<File>, interrupt: EventFd) -> Result<Self> {
        if let Some(file) = &output {
            set_nonblocking(file)?;
        }
        let interrupt = Arc::new(interrupt);
        let dropped = Arc::new(AtomicU64::new(0));
        let output = Output {
            file: output,
            bucket: TokenBucket::new(LIMIT, Instant::now()),
            dropped: Arc::clone(&dropped),
        };
        let uart = Mutex::new(Uart::new(Line(Arc::clone(&interrupt)), output));
        Ok(Self { uart, interrupt, dropped })
    }

    /// The port's line, edge-triggered.
    pub fn interrupt(&self) -> &EventFd {
        &self.interrupt
    }

    /// Bytes that the guest has sent and nobody has got.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The guest begins anew. What it may send is counted on.
    pub fn reset(&self) {
        let mut uart = self.lock();
        let output = uart.writer_mut().take();
        *uart = Uart::new(Line(Arc::clone(&self.interrupt)), output);
    }

    /// Whoever panicked here has left nothing half-done that matters: a register at most.
    fn lock(&self) -> MutexGuard<'_, Uart<Line, NoEvents, Output>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // Registers have one byte; whoever reads more gets ones for the rest.
        if let (Ok(offset), Some(byte)) = (u8::try_from(offset), data.first_mut()) {
            *byte = self.lock().read(offset);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset), Some(byte)) = (u8::try_from(offset), data.first()) {
            // It fails when the output or the line does; the first is counted, the second cannot.
            let _ = self.lock().write(offset, *byte);
        }
    }
}

struct Line(Arc<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Where bytes go, one at a time.
struct Output {
    file: Option<File>,
    bucket: TokenBucket,
    dropped: Arc<AtomicU64>,
}

impl Output {
    /// The same output, for the port's next life; nothing is left here.
    fn take(&mut self) -> Self {
        Self { file: self.file.take(), bucket: self.bucket.clone(), dropped: Arc::clone(&self.dropped) }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(file) = &mut self.file else { return Ok(bytes.len()) };
        let sent = match self.bucket.take(bytes.len() as u64, Instant::now()) {
            Ok(()) => file.write(bytes).unwrap_or(0),
            Err(_) => 0,
        };
        self.dropped.fetch_add((bytes.len() - sent) as u64, Ordering::Relaxed);
        // The port has sent them; that nobody listens is not the guest's affair.
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn set_nonblocking(file: &File) -> Result<()> {
    // SAFETY: F_GETFL of a descriptor that `file` owns takes no pointer.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    check(flags, || "Cannot read the flags of the serial port's output".into())?;
    // SAFETY: F_SETFL of a descriptor that `file` owns takes an integer.
    let outcome = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    check(outcome, || "Cannot make the serial port's output non-blocking".into())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::*;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const LINE_STATUS: u64 = 5;
    const SCRATCH: u64 = 7;

    fn serial(output: Option<File>) -> Serial {
        Serial::new(output, EventFd::new(libc::EFD_NONBLOCK).unwrap()).unwrap()
    }

    fn connected() -> (Serial, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (serial(Some(File::from(std::os::fd::OwnedFd::from(ours)))), theirs)
    }

    fn read(serial: &Serial, offset: u64) -> u8 {
        let mut data = [0xFF];
        serial.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn bytes_come_out_in_order_and_the_port_is_ready_at_once() {
        let (serial, mut listener) = connected();
        for byte in b"panic\n" {
            assert_eq!(read(&serial, LINE_STATUS) & 0x60, 0x60);
            serial.write(DATA, &[*byte]);
        }
        let mut text = [0; 6];
        listener.read_exact(&mut text).unwrap();
        assert_eq!((&text, serial.dropped()), (b"panic\n", 0));
    }

    #[test]
    fn empty_transmitter_raises_the_line_when_the_driver_wants_it() {
        let (serial, _listener) = connected();
        serial.write(DATA, b"a");
        assert!(serial.interrupt().read().is_err());
        serial.write(INTERRUPT_ENABLE, &[2]);
        serial.write(DATA, b"b");
        assert!(serial.interrupt().read().is_ok());
    }

    #[test]
    fn listener_that_does_not_read_costs_bytes_and_never_time() {
        let (serial, mut listener) = connected();
        let sent = 400 * 1024;
        for _ in 0..sent {
            serial.write(DATA, b"x");
        }
        assert!(serial.dropped() > 0);
        listener.set_nonblocking(true).unwrap();
        let mut received = Vec::new();
        let end = listener.read_to_end(&mut received).unwrap_err();
        assert_eq!(end.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(received.len() as u64 + serial.dropped(), sent);
    }

    #[test]
    fn guest_that_sends_without_end_is_limited() {
        let file = File::from(std::os::fd::OwnedFd::from(File::create("/dev/null").unwrap()));
        let serial = serial(Some(file));
        let begin = Instant::now();
        let sent = 2 * LIMIT.burst;
        for _ in 0..sent {
            serial.write(DATA, b"x");
        }
        let refilled = begin.elapsed().as_secs() + 1;
        // On a machine that takes long enough for it, everything may go out.
        let surely_too_much = LIMIT.burst.saturating_sub(refilled * LIMIT.rate);
        assert!(serial.dropped() >= surely_too_much, "{}", serial.dropped());
    }

    #[test]
    fn port_without_output_drops_nothing_and_stays_usable() {
        let serial = serial(None);
        serial.write(DATA, b"x");
        assert_eq!(serial.dropped(), 0);
        serial.write(SCRATCH, &[0x5A]);
        assert_eq!(read(&serial, SCRATCH), 0x5A);
    }

    #[test]
    fn reset_clears_the_registers_and_keeps_the_output() {
        let (serial, mut listener) = connected();
        serial.write(SCRATCH, &[0x5A]);
        serial.reset();
        assert_eq!(read(&serial, SCRATCH), 0);
        serial.write(DATA, b"y");
        let mut text = [0];
        listener.read_exact(&mut text).unwrap();
        assert_eq!(&text, b"y");
    }

    #[test]
    fn accesses_outside_and_wider_than_the_registers_do_no_harm() {
        let serial = serial(None);
        for offset in [8, 255, 256, u64::MAX] {
            serial.write(offset, &[1, 2, 3, 4]);
            let mut data = [0xFF; 4];
            serial.read(offset, &mut data);
            assert_eq!(data[1..], [0xFF; 3]);
        }
    }
}

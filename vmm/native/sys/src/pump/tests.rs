//! What the state machine does with small pipes; tests/native/test_pump.py has the real traffic.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::AsRawFd;

use super::*;

fn start(limit: Option<u64>) -> (Pump, u64, PipeWriter, PipeReader) {
    let pump = Pump::start().unwrap();
    let (src_read, src_write) = pipe().unwrap();
    let (dst_read, dst_write) = pipe().unwrap();
    let config = StreamConfig {
        src_fd: src_read.as_raw_fd(),
        dst_fd: dst_write.as_raw_fd(),
        tag: 7,
        limit,
        keep_on_dst_error: false,
        close_dst: true,
    };
    let handle = pump.add(&config).unwrap();
    (pump, handle, src_write, dst_read)
}

fn next_event(pump: &Pump) -> Event {
    let mut poll = libc::pollfd { fd: pump.event_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live pollfd.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1, "no event in time");
    pump.take_events(1).unwrap()[0]
}

#[test]
fn end_of_source_is_reported_and_closes_the_destination() {
    let (pump, handle, mut src, mut dst) = start(None);
    src.write_all(b"hello").unwrap();
    drop(src);
    let mut text = String::new();
    dst.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hello");
    assert_eq!(next_event(&pump), Event { tag: 7, handle, bytes: 5, kind: EventKind::SrcEof, errno: 0 });
    assert_eq!(pump.stats(handle).unwrap().state, State::Finished);
}

#[test]
fn the_limit_is_exact_and_the_rest_stays_in_the_source() {
    let (pump, handle, mut src, mut dst) = start(Some(3));
    src.write_all(b"hello").unwrap();
    assert_eq!(next_event(&pump), Event { tag: 7, handle, bytes: 3, kind: EventKind::Done, errno: 0 });
    let mut text = String::new();
    dst.read_to_string(&mut text).unwrap();
    assert_eq!(text, "hel");
}

#[test]
fn removed_streams_are_unknown_and_their_events_forgotten() {
    let (pump, handle, src, _dst) = start(None);
    drop(src);
    let mut poll = libc::pollfd { fd: pump.event_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one live pollfd.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1);
    pump.remove(handle).unwrap();
    assert_eq!(pump.take_events(9).unwrap(), []);
    // SAFETY: one live pollfd.
    assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 0) }, 0);
    assert_eq!(pump.remove(handle).unwrap_err().errno(), libc::ENOENT);
    assert_eq!(pump.set_limit(handle, 1).unwrap_err().errno(), libc::ENOENT);
}

#[test]
fn a_closed_descriptor_is_refused() {
    let pump = Pump::start().unwrap();
    let null = File::open("/dev/null").unwrap();
    let config = StreamConfig {
        src_fd: -1,
        dst_fd: null.as_raw_fd(),
        tag: 0,
        limit: None,
        keep_on_dst_error: false,
        close_dst: true,
    };
    assert_eq!(pump.add(&config).unwrap_err().errno(), libc::EBADF);
}

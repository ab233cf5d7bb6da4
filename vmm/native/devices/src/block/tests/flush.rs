//! A flush is carried out exactly as the disk is configured: not at all, or by the engine, which synchronises the
//! file.

use std::io;

use super::gate::{Gate, GateKeeper};
use super::*;

const CACHES: [CacheMode; 3] = [CacheMode::None, CacheMode::Writeback, CacheMode::Direct];

fn gated(cache: CacheMode) -> (Machine, GateKeeper) {
    let file = disk_file(SECTORS);
    let (gate, keeper) = Gate::new();
    let disk = Disk::new(reopened(&file), cache).unwrap();
    let block = Block::assemble(settings(), disk, Box::new(gate)).unwrap();
    (start(block, file, VIRTIO_F_VERSION_1 | F_FLUSH), keeper)
}

fn settings() -> Settings {
    Settings { readonly: false, serial: String::new(), num_queues: 1, limits: Limits::default() }
}

#[test]
fn flush_is_the_engines_unless_the_cache_is_none() {
    for cache in CACHES {
        let (mut m, gate) = gated(cache);
        m.offer(0, 0, FLUSH, 0, &[]);
        m.host.kick(0);
        if cache == CacheMode::None {
            assert_eq!((gate.kinds().len(), m.wait(0).1, m.status(0)), (0, 1, 0));
            continue;
        }
        // Not answered before it is done.
        while m.host.turn(0).unwrap() {}
        assert_eq!((gate.kinds().as_slice(), m.drivers[0].used_idx()), (&["flush"][..], 0), "{cache:?}");
        gate.succeed(0);
        m.wait(0);
        assert_eq!(m.status(0), 0, "{cache:?}");
        m.offer(0, 0, FLUSH, 0, &[]);
        m.host.kick(0);
        gate.end(0, Err(io::Error::from_raw_os_error(libc::EIO)));
        m.wait(0);
        assert_eq!(m.status(0), 1, "{cache:?}");
    }
}

/// A file of procfs is one that cannot be synchronised (EINVAL, fsync(2)), which tells that it was tried.
#[test]
fn engines_synchronise_the_file_at_a_flush_and_never_where_the_cache_is_none() {
    for engine in ENGINES {
        for cache in CACHES {
            let path = "/proc/self/oom_score_adj";
            let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
            assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(libc::EINVAL));
            let mut disk = Disk::new(reopened(&file), CacheMode::Writeback).unwrap();
            // Not by the constructor: procfs does no direct I/O, and there is no data here.
            disk.cache = cache;
            let engine_of_disk = super::super::engine::create(engine, &disk, 8).unwrap();
            let block = Block::assemble(settings(), disk, engine_of_disk).unwrap();
            let mut m = start(block, file, VIRTIO_F_VERSION_1 | F_FLUSH);
            let (status, _) = m.ask(FLUSH, 0, &[]);
            assert_eq!(status, u8::from(cache != CacheMode::None), "{engine:?} {cache:?}");
            let synchronised = m.metric("errors") == 1;
            assert_eq!(synchronised, cache != CacheMode::None, "{engine:?} {cache:?}");
        }
    }
}

//! Normal traffic and what the disk refuses.

use strato_virtio::{Notification, VIRTIO_F_EVENT_IDX};

use super::*;

#[test]
fn sectors_are_read_and_written_through_many_buffers() {
    for engine in ENGINES {
        let mut m = machine(engine);
        assert_eq!(m.ask(IN, 5, &[(DATA, 100, true), (DATA + 4096, 924, true)]), (0, 1025));
        assert_eq!(m.drivers[0].read(DATA, 100), [6; 100]);
        assert_eq!(m.drivers[0].read(DATA + 4096 + 412, 512), [7; 512]);
        m.drivers[0].write(DATA, &[0xaa; 1024]);
        assert_eq!(m.ask(OUT, 62, &[(DATA, 1000, false), (DATA + 1000, 24, false)]), (0, 1));
        assert_eq!((m.on_disk(61), m.on_disk(62), m.on_disk(63)), ([62; 512], [0xaa; 512], [0xaa; 512]));
        assert_eq!(m.ask(FLUSH, 0, &[]).0, 0);
        let told = ["reads", "read_bytes", "writes", "written_bytes", "flushes", "errors", "requests"];
        assert_eq!(told.map(|name| m.metric(name)), [1, 1024, 1, 1024, 1, 0, 3]);
        assert_eq!(m.metric("uring"), u64::from(engine == EngineChoice::Uring));
    }
}

#[test]
fn accesses_beyond_the_end_or_of_odd_length_fail_and_change_nothing() {
    for engine in ENGINES {
        let mut m = machine(engine);
        for (sector, len) in [(64, 512), (63, 1024), (u64::MAX, 512), (u64::MAX / 512, 512), (0, 511), (0, 0)]
        {
            assert_eq!(m.ask(IN, sector, &[(DATA, len, true)]).0, 1, "{sector} {len}");
            assert_eq!(m.ask(OUT, sector, &[(DATA, len, false)]).0, 1, "{sector} {len}");
        }
        assert_eq!(m.file.metadata().unwrap().len(), SECTORS * 512);
        assert_eq!(m.on_disk(63), [64; 512]);
        assert!(m.host.fault().is_none());
    }
}

#[test]
fn read_only_disk_refuses_every_kind_of_write() {
    for engine in ENGINES {
        let file = memory_file(SECTORS);
        let config = BlockConfig { readonly: true, ..config(&file, engine) };
        let mut m = start(Block::new(config).unwrap(), file, VIRTIO_F_VERSION_1);
        assert_eq!(m.ask(OUT, 0, &[(DATA, 512, false)]).0, 1);
        assert_eq!(m.range(DISCARD, 0, 8, 0), 1);
        assert_eq!(m.range(WRITE_ZEROES, 0, 8, 0), 1);
        assert_eq!(m.ask(IN, 0, &[(DATA, 512, true)]).0, 0);
        assert_eq!(m.on_disk(0), [1; 512]);
    }
}

#[test]
fn discard_and_write_zeroes_work_within_the_disk_only() {
    // A file in memory cannot zero a range in place, one on a disk can.
    for (engine, file) in
        ENGINES.into_iter().flat_map(|engine| [(engine, memory_file(SECTORS)), (engine, disk_file(SECTORS))])
    {
        let block = Block::new(config(&file, engine)).unwrap();
        let mut m = start(block, file, VIRTIO_F_VERSION_1);
        for (operation, first, flags) in [(DISCARD, 8, 0), (WRITE_ZEROES, 16, 0), (WRITE_ZEROES, 24, 1)] {
            assert_eq!(m.range(operation, first, 8, flags), 0);
            assert_eq!((m.on_disk(first - 1)[0], m.on_disk(first + 8)[0]), (first as u8, first as u8 + 9));
            assert_eq!((m.on_disk(first), m.on_disk(first + 7)), ([0; 512], [0; 512]));
            // Restored for the neighbours' checks.
            for sector in first..first + 8 {
                m.file.write_all_at(&[sector as u8 + 1; 512], sector * 512).unwrap();
            }
            assert_eq!(m.range(operation, 60, 5, flags), 1);
            assert_eq!(m.range(operation, u64::MAX, 1, flags), 1);
            assert_eq!(m.range(operation, 0, u32::MAX, flags), 1);
            assert_eq!(m.range(operation, 0, 1, 2), 2, "unknown flags");
            assert_eq!(m.range(operation, 0, 0, 0), 0, "nothing to do");
        }
        assert_eq!(m.file.metadata().unwrap().len(), SECTORS * 512);
    }
}

#[test]
fn several_ranges_of_one_discard_are_checked_before_any_is_carried_out() {
    for engine in ENGINES {
        let mut m = machine(engine);
        let ranges = |list: &[(u64, u32)]| -> Vec<u8> {
            let raw = |&(sector, sectors): &(u64, u32)| {
                [sector.to_le_bytes().to_vec(), sectors.to_le_bytes().to_vec(), vec![0; 4]].concat()
            };
            list.iter().flat_map(raw).collect()
        };
        m.drivers[0].write(DATA, &ranges(&[(0, 8), (16, 8), (60, 5)]));
        assert_eq!(m.ask(DISCARD, 0, &[(DATA, 48, false)]).0, 1);
        assert_eq!((m.on_disk(0), m.on_disk(16)), ([1; 512], [17; 512]));
        m.drivers[0].write(DATA, &ranges(&[(0, 8), (16, 8), (56, 8)]));
        assert_eq!(m.ask(DISCARD, 0, &[(DATA, 48, false)]).0, 0);
        assert_eq!((m.on_disk(0), m.on_disk(16), m.on_disk(63)), ([0; 512], [0; 512], [0; 512]));
        assert_eq!(m.ask(DISCARD, 0, &[(DATA, 33 * 16, false)]).0, 1, "too many ranges");
        assert_eq!(m.ask(WRITE_ZEROES, 0, &[(DATA, 32, false)]).0, 1, "too many ranges");
        assert_eq!(m.ask(DISCARD, 0, &[(DATA, 17, false)]).0, 1, "half a range");
    }
}

#[test]
fn serial_is_told_and_unknown_operations_are_unsupported() {
    for engine in ENGINES {
        let mut m = machine(engine);
        assert_eq!(m.ask(GET_ID, 0, &[(DATA, 20, true)]), (0, 21));
        assert_eq!(m.drivers[0].read(DATA, 7), b"disk-1\0");
        assert_eq!(m.ask(GET_ID, 0, &[(DATA, 19, true)]).0, 1);
        assert_eq!(m.ask(77, 0, &[]).0, 2);
        // Commands for a SCSI disk behind the device: a class of overflows elsewhere.
        assert_eq!(m.ask(2, 0, &[(DATA, 96, false)]).0, 2);
        assert_eq!(m.ask(3, 0, &[(DATA, 96, true)]).0, 2);
    }
}

/// The class of a guest that writes itself the header of a format that names files of the host.
#[test]
fn header_of_another_format_is_data_like_any_other() {
    for engine in ENGINES {
        let mut m = machine(engine);
        let header = [&b"QFI\xfb\0\0\0\x03"[..], &[0x11; 504]].concat();
        m.drivers[0].write(DATA, &header);
        assert_eq!(m.ask(OUT, 0, &[(DATA, 512, false)]).0, 0);
        let again = Block::new(config(&m.file, engine)).unwrap();
        let file = m.file.try_clone().unwrap();
        let mut m = start(again, file, VIRTIO_F_VERSION_1);
        assert_eq!(m.host.config().get(0, 8), Some(&SECTORS.to_le_bytes()[..]));
        assert_eq!(m.ask(IN, 0, &[(DATA, 512, true)]).0, 0);
        assert_eq!(m.drivers[0].read(DATA, 512), header);
    }
}

#[test]
fn file_that_shrinks_gives_errors() {
    for engine in ENGINES {
        let mut m = machine(engine);
        m.file.set_len(4096).unwrap();
        assert_eq!(m.ask(IN, 7, &[(DATA, 1024, true)]).0, 1);
        assert_eq!(m.ask(IN, 7, &[(DATA, 512, true)]).0, 0);
    }
}

#[test]
fn flush_does_what_the_configuration_says() {
    for (cache, counts) in [(CacheMode::None, [0, 1]), (CacheMode::Writeback, [1, 0])] {
        let file = memory_file(SECTORS);
        let config = BlockConfig { cache, ..config(&file, EngineChoice::Auto) };
        let mut m = start(Block::new(config).unwrap(), file, VIRTIO_F_VERSION_1 | F_FLUSH);
        assert_eq!(m.ask(FLUSH, 0, &[]).0, 0);
        assert_eq!(["flushes", "flushes_ignored"].map(|name| m.metric(name)), counts);
    }
}

#[test]
fn batch_of_requests_is_announced_once() {
    for engine in ENGINES {
        for features in [VIRTIO_F_VERSION_1, VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX] {
            let file = memory_file(SECTORS);
            let mut m = start(Block::new(config(&file, engine)).unwrap(), file, features);
            m.notifier.take();
            for place in 0..16 {
                m.offer(0, place, IN, place, &[(data(place), 512, true)]);
            }
            m.host.kick(0);
            for _ in 0..16 {
                m.wait(0);
            }
            let told = m.notifier.take();
            assert!(told.iter().all(|what| *what == Notification::Queue(0)), "{told:?}");
            // Memory is read while it is submitted; threads may end at different times.
            assert!(told.len() == 1 || (engine == EngineChoice::Pool && told.len() <= 16), "{told:?}");
            for place in 0..16 {
                assert_eq!(m.drivers[0].read(data(place), 512), [place as u8 + 1; 512]);
            }
        }
    }
}

#[test]
fn all_queues_of_a_device_are_served() {
    for engine in ENGINES {
        let file = memory_file(SECTORS);
        let config = BlockConfig { num_queues: 4, ..config(&file, engine) };
        let mut m = start(Block::new(config).unwrap(), file, VIRTIO_F_VERSION_1 | (1 << 12));
        let config = m.host.config();
        assert_eq!(config.get(34, 2), Some(&[4, 0][..]));
        for queue in 0..4 {
            let place = u64::from(queue);
            m.offer(queue, place, IN, 10 + place, &[(data(place), 512, true)]);
        }
        for queue in 0..4 {
            m.host.kick(queue);
        }
        for queue in 0..4 {
            m.wait(queue);
            assert_eq!(m.drivers[0].read(data(u64::from(queue)), 1), [11 + queue as u8]);
        }
    }
}

#[test]
fn configuration_that_cannot_be_honoured_is_refused() {
    let file = memory_file(SECTORS);
    let refused = |config: BlockConfig| Block::new(config).err().unwrap().to_string();
    let serial = "x".repeat(21);
    assert!(refused(BlockConfig { serial, ..config(&file, EngineChoice::Auto) }).contains("20 bytes"));
    assert!(refused(BlockConfig { num_queues: 0, ..config(&file, EngineChoice::Auto) }).contains("queues"));
    assert!(refused(BlockConfig { num_queues: 65, ..config(&file, EngineChoice::Auto) }).contains("queues"));
    let pipe = std::io::pipe().unwrap();
    let pipe = File::from(std::os::fd::OwnedFd::from(pipe.0));
    assert!(refused(BlockConfig::new(pipe)).contains("regular file"));
}

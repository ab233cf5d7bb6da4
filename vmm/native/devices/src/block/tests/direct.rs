//! Direct I/O: alignment that the guest's buffers do not have, and sectors that are not blocks of the disk.

use super::gate::Gate;
use super::*;

fn direct(engine: EngineChoice) -> Machine {
    let file = disk_file(SECTORS);
    let config = BlockConfig { cache: CacheMode::Direct, ..config(&file, engine) };
    start(Block::new(config).unwrap(), file, VIRTIO_F_VERSION_1 | F_FLUSH)
}

/// A device that believes its disk to have blocks of 4096 bytes; the file behind it takes anything.
fn large_blocks(engine: EngineChoice) -> Machine {
    let file = disk_file(SECTORS);
    let mut disk = Disk::new(reopened(&file), CacheMode::Direct).unwrap();
    disk.geometry.logical = 4096;
    disk.geometry.memory = 4096;
    let engine = super::super::engine::create(engine, &disk, 256).unwrap();
    let settings =
        Settings { readonly: false, serial: String::new(), num_queues: 1, limits: Limits::default() };
    let block = Block::assemble(settings, disk, engine).unwrap();
    start(block, file, VIRTIO_F_VERSION_1 | F_FLUSH)
}

#[test]
fn aligned_requests_go_straight_to_the_disk() {
    for engine in ENGINES {
        let mut m = direct(engine);
        m.drivers[0].write(DATA, &[0xaa; 4096]);
        assert_eq!(m.ask(OUT, 8, &[(DATA, 4096, false)]), (0, 1));
        assert_eq!(m.ask(FLUSH, 0, &[]).0, 0);
        assert_eq!(m.ask(IN, 8, &[(DATA + 8192, 4096, true)]), (0, 4097));
        assert_eq!(m.drivers[0].read(DATA + 8192, 4096), [0xaa; 4096]);
        assert_eq!((m.metric("bounced"), m.on_disk(7), m.on_disk(16)), (0, [8; 512], [17; 512]));
    }
}

#[test]
fn unaligned_guest_buffers_go_through_a_bounce_buffer() {
    for engine in ENGINES {
        let mut m = direct(engine);
        let odd = DATA + 1;
        m.drivers[0].write(odd, &[0xbb; 1024]);
        assert_eq!(m.ask(OUT, 3, &[(odd, 100, false), (odd + 100, 924, false)]), (0, 1));
        assert_eq!((m.on_disk(2), m.on_disk(3), m.on_disk(4)), ([3; 512], [0xbb; 512], [0xbb; 512]));
        assert_eq!(m.ask(IN, 4, &[(odd + 4096, 3, true), (odd + 5000, 1021, true)]), (0, 1025));
        assert_eq!(m.drivers[0].read(odd + 4096, 3), [0xbb; 3]);
        assert_eq!(m.drivers[0].read(odd + 5000, 509), [0xbb; 509]);
        assert_eq!(m.drivers[0].read(odd + 5509, 512), [6; 512]);
        assert_eq!(m.metric("bounced"), 2);
    }
}

#[test]
fn requests_longer_than_a_bounce_buffer_go_piece_by_piece() {
    for engine in ENGINES {
        let file = disk_file(2048);
        let config = BlockConfig { cache: CacheMode::Direct, ..config(&file, engine) };
        let mut m = start(Block::new(config).unwrap(), file, VIRTIO_F_VERSION_1 | F_FLUSH);
        let len = 600 * 1024;
        let content: Vec<u8> = (0..len).map(|n| (n / 7) as u8).collect();
        m.drivers[0].write(DATA + 5, &content);
        assert_eq!(m.ask(OUT, 100, &[(DATA + 5, len, false)]).0, 0);
        let mut stored = vec![0; len as usize];
        m.file.read_exact_at(&mut stored, 100 * 512).unwrap();
        assert!(stored == content);
        m.drivers[0].write(DATA + 5, &vec![0; len as usize]);
        assert_eq!(m.ask(IN, 100, &[(DATA + 5, len, true)]), (0, len + 1));
        assert!(m.drivers[0].read(DATA + 5, len as usize) == content);
        assert_eq!((m.on_disk(99), m.on_disk(1300)), ([100; 512], [1301u16 as u8; 512]));
    }
}

#[test]
fn sectors_of_larger_blocks_are_written_without_harm_to_their_neighbours() {
    for engine in ENGINES {
        let mut m = large_blocks(engine);
        assert_eq!(m.host.config().get(20, 4), Some(&4096u32.to_le_bytes()[..]));
        // Sixteen writes of a sector each, two blocks, all at once: each reads and writes back its block.
        for place in 0..16 {
            m.drivers[0].write(data(place), &[0xc0 + place as u8; 512]);
            m.offer(0, place, OUT, 8 + place, &[(data(place), 512, false)]);
        }
        m.host.kick(0);
        for _ in 0..16 {
            m.wait(0);
        }
        for sector in 0..16 {
            assert_eq!(m.on_disk(8 + sector), [0xc0 + sector as u8; 512]);
        }
        assert_eq!((m.on_disk(7), m.on_disk(24)), ([8; 512], [25; 512]));
        // A write over parts of two blocks, and a read of the same.
        m.drivers[0].write(DATA, &[0xee; 4096]);
        assert_eq!(m.ask(OUT, 36, &[(DATA, 4096, false)]).0, 0);
        assert_eq!(m.ask(IN, 35, &[(DATA, 5120, true)]), (0, 5121));
        assert_eq!(m.drivers[0].read(DATA, 5120), [vec![36; 512], vec![0xee; 4096], vec![45; 512]].concat());
    }
}

#[test]
fn bounce_buffers_are_bounded_and_come_back() {
    let file = disk_file(SECTORS);
    let (gate, keeper) = Gate::new();
    let disk = Disk::new(reopened(&file), CacheMode::Direct).unwrap();
    let settings =
        Settings { readonly: false, serial: String::new(), num_queues: 1, limits: Limits::default() };
    let block = Block::assemble(settings, disk, Box::new(gate)).unwrap();
    let mut m = start(block, file, VIRTIO_F_VERSION_1 | F_FLUSH);
    for place in 0..20 {
        m.offer(0, place, IN, place, &[(data(place) + 1, 512, true)]);
    }
    m.host.kick(0);
    assert_eq!(keeper.waiting(), 16);
    keeper.succeed(5);
    m.host.turn(0).unwrap();
    assert_eq!(keeper.waiting(), 16);
    for _ in 0..3 {
        m.host.reset();
        m.start_driver(VIRTIO_F_VERSION_1 | F_FLUSH);
        for place in 0..20 {
            m.offer(0, place, OUT, place, &[(data(place) + 1, 512, false)]);
        }
        m.host.kick(0);
        assert_eq!(keeper.waiting(), 16);
    }
}

#[test]
fn file_system_without_direct_i_o_is_refused_or_used_directly() {
    let file = memory_file(SECTORS);
    let config = BlockConfig { cache: CacheMode::Direct, ..config(&file, EngineChoice::Auto) };
    if let Ok(block) = Block::new(config) {
        let mut m = start(block, file, VIRTIO_F_VERSION_1);
        assert_eq!(m.ask(IN, 0, &[(DATA, 4096, true)]).0, 0);
    }
}

//! Random operations on several queues, many at a time, against a model of the disk.

use std::collections::HashMap;

use strato_virtio::VIRTIO_F_EVENT_IDX;
use strato_virtio::mock::SeededRandom;

use super::*;

/// A request in flight: its place, and what it does to the model.
struct Asked {
    place: u64,
    operation: u32,
    sector: u64,
    sectors: u64,
    fill: u8,
    offset: u64,
}

fn run(seed: u64, engine: EngineChoice, cache: CacheMode) {
    let mut random = SeededRandom::new(seed);
    let sectors = 256;
    let file = disk_file(sectors);
    let config = BlockConfig { cache, num_queues: 2, ..config(&file, engine) };
    let features = VIRTIO_F_VERSION_1 | F_FLUSH | (1 << 12) | [0, VIRTIO_F_EVENT_IDX][seed as usize % 2];
    let mut m = start(Block::new(config).unwrap(), file, features);
    let mut model: Vec<u8> = (0..sectors).map(|n| (n as u8).wrapping_add(1)).collect();
    let mut asked: HashMap<(u16, u16), Asked> = HashMap::new();
    let mut places: Vec<u64> = (0..24).collect();
    for step in 0..400 {
        let queue = random.below(2) as u16;
        let (sector, count) = (random.below(sectors - 16), 1 + random.below(16));
        let overlaps = asked.values().any(|a| a.sector < sector + count && sector < a.sector + a.sectors);
        let full = m.drivers[usize::from(queue)].free_descriptors() < 4;
        if let Some(place) = if overlaps || full || step > 380 { None } else { places.pop() } {
            let operation = [IN, IN, OUT, OUT, FLUSH, DISCARD, WRITE_ZEROES][random.below(7) as usize];
            let fill = random.next_u64() as u8;
            let offset = [0, 0, 1, 100][random.below(4) as usize];
            let at = data(place) + offset;
            let len = count as u32 * 512;
            let split = 1 + random.below(u64::from(len) - 1) as u32;
            let buffers = |writable| [(at, split, writable), (at + u64::from(split), len - split, writable)];
            let head = match operation {
                IN => m.offer(queue, place, IN, sector, &buffers(true)),
                OUT => {
                    m.drivers[0].write(at, &vec![fill; len as usize]);
                    m.offer(queue, place, OUT, sector, &buffers(false))
                }
                FLUSH => m.offer(queue, place, FLUSH, 0, &[]),
                _ => {
                    let mut raw = sector.to_le_bytes().to_vec();
                    raw.extend((count as u32).to_le_bytes());
                    raw.extend(if operation == DISCARD { 0 } else { random.below(2) as u32 }.to_le_bytes());
                    m.drivers[0].write(at, &raw);
                    m.offer(queue, place, operation, 0, &[(at, 16, false)])
                }
            };
            asked.insert((queue, head), Asked { place, operation, sector, sectors: count, fill, offset });
        }
        if random.below(3) > 0 {
            m.host.kick(queue);
        }
        match random.below(40) {
            0 => m.host.pause(),
            1 => {
                let position = m.host.stop_ring(0).unwrap();
                m.start_ring(0, position);
            }
            _ => {}
        }
        m.host.unpause();
        if step == 399 {
            // What was offered without a kick since the last one.
            (0..2).for_each(|queue| m.host.kick(queue));
        }
        m.host.turn(0).unwrap();
        if step == 399 {
            m.host.pause();
        }
        for queue in 0..2u16 {
            while let Some((head, _)) = m.drivers[usize::from(queue)].take_used() {
                let a = asked.remove(&(queue, head)).unwrap();
                assert_eq!(m.status(a.place), 0, "seed {seed} step {step}");
                settle(&m, &mut model, &a, &format!("seed {seed} step {step}"));
                places.push(a.place);
            }
        }
    }
    assert!(asked.is_empty(), "seed {seed}");
    for (sector, byte) in model.iter().enumerate() {
        assert_eq!(m.on_disk(sector as u64), [*byte; 512], "seed {seed} sector {sector}");
    }
}

fn settle(m: &Machine, model: &mut [u8], a: &Asked, context: &str) {
    let range = a.sector as usize..(a.sector + a.sectors) as usize;
    match a.operation {
        IN => {
            let read = m.drivers[0].read(data(a.place) + a.offset, a.sectors as usize * 512);
            for (sector, byte) in read.chunks(512).zip(&model[range]) {
                assert_eq!(sector, [*byte; 512], "{context}");
            }
        }
        OUT => model[range].fill(a.fill),
        DISCARD | WRITE_ZEROES => model[range].fill(0),
        _ => {}
    }
}

#[test]
fn random_operations_leave_the_disk_as_the_model_says() {
    for seed in 0..12 {
        let engine = ENGINES[seed as usize % 2];
        run(seed, engine, CacheMode::Writeback);
        run(seed, engine, CacheMode::Direct);
    }
}

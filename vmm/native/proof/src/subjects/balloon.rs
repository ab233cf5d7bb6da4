//! The balloon, whose host is the kernel: what the guest gives up is gone.

use std::time::Duration;

use strato_devices::balloon::{Balloon, BalloonConfig, BalloonControl};
use strato_virtio::DeviceCore;

use crate::choices::Choices;
use crate::machine::{Machine, RAM, WRITABLE_END};
use crate::subject::{QueueUse, Request, Subject};

const PAGE: u64 = 4096;
/// VIRTIO_BALLOON_F_STATS_VQ and VIRTIO_BALLOON_F_PAGE_REPORTING.
const STATS_VQ: u64 = 1 << 1;
const REPORTING: u64 = 1 << 5;

const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATS: u16 = 2;
const REPORT: u16 = 3;

struct Host {
    control: Option<BalloonControl>,
}

pub(crate) fn make() -> Box<dyn Subject> {
    Box::new(Host { control: None })
}

/// A page that nothing lies in, or now and then one that does not exist.
fn page(choices: &mut Choices<'_>) -> u32 {
    let (first, end) = (WRITABLE_END / PAGE, RAM as u64 / PAGE);
    match choices.below(16) {
        0 => (end + choices.below(64)) as u32,
        1 => choices.number() as u32 | 1 << 31,
        _ => (first + choices.below(end - first)) as u32,
    }
}

impl Subject for Host {
    fn core(&mut self) -> Box<dyn DeviceCore> {
        let config = BalloonConfig {
            deflate_on_oom: true,
            reporting: true,
            stats_interval: Some(Duration::from_secs(3600)),
        };
        let balloon = Balloon::new(config).unwrap();
        self.control = Some(balloon.control());
        Box::new(balloon)
    }

    fn queues(&self) -> &'static [QueueUse] {
        // Reporting has two numbers.
        &[QueueUse::Requests, QueueUse::Requests, QueueUse::Buffers, QueueUse::Requests, QueueUse::Requests]
    }

    fn gives_memory_up(&self) -> bool {
        true
    }

    fn request(&self, choices: &mut Choices<'_>, queue: u16) -> Request {
        let mut readable = Vec::new();
        match queue {
            INFLATE | DEFLATE => {
                (0..choices.below(40)).for_each(|_| readable.extend(page(choices).to_le_bytes()));
            }
            STATS => {
                for _ in 0..choices.below(20) {
                    readable.extend((choices.below(20) as u16).to_le_bytes());
                    readable.extend(choices.number().to_le_bytes());
                }
            }
            _ => {
                let writable = choices.one_of(&[0, 1, 4095, 4096, 8192, 65536]);
                return Request { readable, writable };
            }
        }
        if choices.once_in(10) {
            readable.truncate(choices.below(9) as usize);
        }
        Request { readable, writable: 0 }
    }

    fn host_acts(&mut self, choices: &mut Choices<'_>) {
        let control = self.control.as_ref().unwrap();
        control.set_target(choices.below(1 << 30)).unwrap();
        let _ = control.info();
    }

    fn probe(&mut self, machine: &mut Machine) {
        let given_up = RAM as u64 - 7 * PAGE;
        machine.queues[0].write(given_up, &[0x11; PAGE as usize]);
        let list = ((given_up / PAGE) as u32).to_le_bytes();
        assert_eq!(machine.ask(INFLATE, &list, 0), []);
        assert_eq!(machine.queues[0].read(given_up, PAGE as usize), [0; PAGE as usize]);
        assert_eq!(machine.ask(DEFLATE, &list, 0), []);
        let control = self.control.clone().unwrap();
        if machine.features() & STATS_VQ != 0 {
            let stats = [&4u16.to_le_bytes()[..], &77u64.to_le_bytes()].concat();
            machine.offer(STATS, &Request { readable: stats, writable: 0 }, &mut Choices::seeded(1)).unwrap();
            machine.kick(STATS);
            let deadline = machine.deadline();
            while control.info().stats[4] != Some(77) {
                assert!(std::time::Instant::now() < deadline, "no statistics");
                machine.host.turn(1);
            }
        }
        if machine.features() & REPORTING != 0 {
            machine.ask(REPORT, &[], 3 * PAGE as u32);
        }
        control.set_target(5 * PAGE).unwrap();
        machine.settle();
        assert_eq!(machine.host.config(0, 4), 5u32.to_le_bytes());
    }
}

//! Boots a kernel on this machine's KVM, with nothing but a serial port: for looking at what a guest says before it
//! reaches a virtio console, and at what it costs.
//!
//! ```sh
//! cargo run --release --example boot -- [cpus=1] [memory=128] [threads=1] [slots=0] [entry=auto|linux64|pvh] [boots=1] \
//!     [button=MILLISECONDS] kernel=build/lib/strato/vmlinux [initrd=FILE] [cmdline="console=ttyS0 pci=off"]
//! ```
//!
//! The guest's output goes to standard output. When the guest has come to an end, how long it took and the counters
//! go to standard error. With `boots` it is booted again so many times when it resets itself; with `button` the power
//! button is pressed, and the generation changed, after that time.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use strato_machine::arch::{Boot, EntryChoice};
use strato_machine::events::{MachineEvent, MachineEvents};
use strato_machine::machine::{Machine, MachineConfig, PlatformConfig, SerialConfig};
use strato_machine::memory::{Backend, HugePages, MemoryConfig, Region};
use strato_machine::slot::SlotConfig;
use strato_plumbing::{Failure, Result};

/// The board `microvm` (vmm/boards/microvm.py).
const HOLE: u64 = 0xC000_0000;
const HIGH_RAM: u64 = 1 << 32;

struct Owner(Sender<MachineEvent>);

impl MachineEvents for Owner {
    fn happened(&self, event: MachineEvent) {
        let _ = self.0.send(event);
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(MachineEvent::Reset | MachineEvent::Shutdown) => ExitCode::SUCCESS,
        Ok(event) => {
            eprintln!("boot: {event:?}");
            ExitCode::FAILURE
        }
        Err(failure) => {
            eprintln!("boot: {failure}");
            ExitCode::FAILURE
        }
    }
}

/// Options are `name=value`.
struct Options(HashMap<String, String>);

impl Options {
    fn parse() -> Self {
        let pair =
            |argument: String| argument.split_once('=').map(|(name, value)| (name.into(), value.into()));
        Self(std::env::args().skip(1).filter_map(pair).collect())
    }

    fn text(&self, name: &str, default: &str) -> String {
        self.0.get(name).map_or(default, String::as_str).to_owned()
    }

    fn number(&self, name: &str, default: u64) -> Result<u64> {
        let Some(text) = self.0.get(name) else { return Ok(default) };
        text.parse().map_err(|_| Failure::refused(format!("Option {name}={text} is no number")))
    }

    fn file(&self, name: &str) -> Result<Option<File>> {
        self.0.get(name).map(|path| open(path, false)).transpose()
    }
}

fn run() -> Result<MachineEvent> {
    let options = Options::parse();
    let begin = Instant::now();
    let (sender, events) = channel();
    let machine = assemble(&options, Arc::new(Owner(sender)))?;
    let assembled = begin.elapsed();
    machine.load(&boot(&options)?)?;
    eprintln!("boot: assembled in {assembled:?}, loaded after {:?}", begin.elapsed());
    machine.resume()?;
    let mut boots = options.number("boots", 1)?;
    let mut button = options.0.get("button").map(|_| options.number("button", 0)).transpose()?;
    let event = loop {
        let timeout = button.map_or(Duration::from_secs(600), Duration::from_millis);
        match events.recv_timeout(timeout) {
            Ok(MachineEvent::Reset) if boots > 1 => {
                boots -= 1;
                eprintln!("boot: Reset after {:?}", begin.elapsed());
                machine.reset()?;
                machine.load(&boot(&options)?)?;
                machine.resume()?;
            }
            Ok(event @ (MachineEvent::Panicked | MachineEvent::CrashLoaded)) => eprintln!("boot: {event:?}"),
            Ok(event) => break event,
            Err(_) if button.take().is_some() => {
                machine.set_generation(&[0xA5; 16])?;
                machine.power_button()?;
            }
            Err(_) => return Err(Failure::new("The guest has not come to an end", libc::ETIMEDOUT)),
        }
    };
    eprintln!("boot: {event:?} after {:?}", begin.elapsed());
    for (name, value) in machine.metrics() {
        eprintln!("boot: {name} {value}");
    }
    Ok(event)
}

fn assemble(options: &Options, owner: Arc<dyn MachineEvents>) -> Result<Machine> {
    let config = MachineConfig {
        name: "boot".into(),
        num_cpus: options.number("cpus", 1)? as u32,
        threads_per_core: options.number("threads", 1)? as u32,
    };
    let kvm = OwnedFd::from(open("/dev/kvm", true)?);
    let machine = Machine::new(kvm, config, owner)?;
    let bytes = options.number("memory", 128)? << 20;
    let mut regions = vec![Region { guest_addr: 0, bytes: bytes.min(HOLE) }];
    if bytes > HOLE {
        regions.push(Region { guest_addr: HIGH_RAM, bytes: bytes - HOLE });
    }
    machine.add_memory(MemoryConfig {
        backend: Backend::Anonymous,
        regions,
        huge_pages: HugePages::Advised,
        prealloc: false,
    })?;
    let output = io::stdout().as_fd().try_clone_to_owned().map_err(|error| {
        Failure::new("Cannot duplicate standard output", error.raw_os_error().unwrap_or(0))
    })?;
    machine.add_platform(PlatformConfig {
        ged_gsi: 5,
        pvpanic_port: 0x505,
        power_port: 0x600,
        serial: Some(SerialConfig { port: 0x3F8, gsi: 4, output: Some(output.into()) }),
        tables_addr: 0xE_0000,
        generation_addr: 0xF_F000,
    })?;
    for index in 0..options.number("slots", 0)? as u32 {
        let guest_addr = HOLE + u64::from(index) * 0x1000;
        machine.add_slot(SlotConfig { index, guest_addr, gsi: 6 + index % 18 })?;
    }
    machine.add_cpus()?;
    Ok(machine)
}

fn boot(options: &Options) -> Result<Boot> {
    let entry = match options.text("entry", "auto").as_str() {
        "auto" => EntryChoice::Auto,
        "linux64" => EntryChoice::Linux64,
        "pvh" => EntryChoice::Pvh,
        other => return Err(Failure::refused(format!("Option entry={other} is not auto, linux64 or pvh"))),
    };
    let kernel = options.file("kernel")?.ok_or_else(|| Failure::refused("Option kernel=FILE is missing"))?;
    let cmdline = options.text("cmdline", "console=ttyS0 pci=off");
    let cmdline = CString::new(cmdline).map_err(|_| Failure::refused("The command line contains a NUL"))?;
    Ok(Boot { kernel, initrd: options.file("initrd")?, entry, cmdline })
}

fn open(path: &str, writable: bool) -> Result<File> {
    OpenOptions::new().read(true).write(writable).open(path).map_err(|error| {
        Failure::new(format!("Cannot open {path}"), error.raw_os_error().unwrap_or(libc::EIO))
    })
}

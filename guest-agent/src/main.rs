//! strato-agent: PID 1 of a Strato guest.
//!
//! The story: prepare the guest (`boot`), serve ttrpc and stdio streams over vsock (`rpc`, `stdio`), say hello to the
//! host (`hello`), then reap children (`reaper`) until the host ends the machine. One thread, one event loop; the OCI
//! library runs in re-executions of this program (`helper`).
//!
//! ttrpc and its code come from the crate `ttrpc` (the containerd project's), messages from `protobuf` without
//! reflection; tokio's current-thread runtime drives everything, because `ttrpc` needs it and it needs no threads.

mod boot;
mod cgroup;
mod clock;
mod console;
mod container;
mod descriptor;
mod device_filter;
mod devices;
mod errors;
mod events;
mod frame;
mod guard;
mod hello;
mod helper;
mod ids;
mod network;
mod oci;
mod oom;
mod paths;
mod process;
mod reaper;
mod rpc;
mod sandbox;
mod stdio;
mod sync;
mod sysinfo;
mod vsock;

/// Generated from shim/agent_proto/agent.proto.
#[allow(clippy::all, clippy::pedantic, unused)]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/mod.rs"));
}

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::descriptor::Descriptor;
use crate::devices::Devices;
use crate::errors::{Context, Result};
use crate::hello::Verdict;
use crate::helper::pool::Helpers;
use crate::oci::libcontainer::Library;
use crate::sandbox::{Exits, Sandbox};

fn main() -> ExitCode {
    if std::process::id() != 1 {
        return match std::env::args().nth(1).as_deref() {
            Some(helper::SUBCOMMAND) => helper::main(),
            Some("--version") => {
                println!("strato-agent {}", env!("CARGO_PKG_VERSION"));
                ExitCode::SUCCESS
            }
            _ => {
                eprintln!("strato-agent is PID 1 of a Strato guest and does nothing elsewhere");
                ExitCode::from(2)
            }
        };
    }
    let start_ns = clock::boot_ns();
    console::install_panic_hook();
    // The kernel panics when PID 1 ends, which is how the host learns that there is no sandbox.
    match run(start_ns) {
        Ok(()) => sysinfo::power_off(),
        Err(error) => console::line("fatal", &error.message),
    }
    ExitCode::FAILURE
}

fn run(start_ns: u64) -> Result<()> {
    boot::prepare()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("Making the event loop")?;
    runtime.block_on(serve(start_ns))
}

/// Serves until the guest is to be powered off.
async fn serve(start_ns: u64) -> Result<()> {
    let mut child_died = signal(SignalKind::child()).context("Handling SIGCHLD")?;
    let exits = Arc::new(Exits::default());
    let helpers = Arc::new(Helpers::default());
    let tickets = Arc::clone(&exits) as Arc<dyn oci::Tickets>;
    let runtime = Arc::new(Library::new(tickets, Arc::clone(&helpers)));
    let oom = oom::Watch::new()?;
    let sandbox = Arc::new(Sandbox::new(exits, runtime, oom.clone()));

    let streams = vsock::listener(vsock::STREAM_PORT).context("Listening on the stream port")?;
    let streams = Descriptor::new(streams).context("Registering the stream port")?;
    tokio::spawn(stdio::listener::run(streams, Arc::clone(&sandbox.streams)));
    let watcher = Arc::clone(&sandbox);
    tokio::spawn(oom.run(move |id| watcher.memory_events_changed(id)));
    let mut server = ttrpc_server(Arc::clone(&sandbox), Arc::clone(&helpers))?;
    server.start().await.context("Serving ttrpc")?;

    tokio::spawn(greet(start_ns, helpers));
    let powered_off = power_off_request();
    tokio::pin!(powered_off);
    loop {
        while let Some((pid, exit)) = reaper::reap_one() {
            sandbox.child_died(pid, exit);
        }
        tokio::select! {
            _ = child_died.recv() => {}
            () = &mut powered_off => break,
        }
    }
    sandbox.destroy().await
}

fn ttrpc_server(sandbox: Arc<Sandbox>, helpers: Arc<Helpers>) -> Result<ttrpc::r#async::Server> {
    let devices = Devices::new(Arc::clone(&helpers));
    let on_idle = Arc::new(move || {
        let helpers = Arc::clone(&helpers);
        tokio::spawn(async move {
            tokio::time::sleep(SPARE_DELAY).await;
            helpers.prepare_spare();
        });
    });
    let service = Arc::new(rpc::Service {
        sandbox,
        devices,
        on_idle,
    });
    let listener = vsock::listener(vsock::CONTROL_PORT).context("Listening on the control port")?;
    let listener = Descriptor::new(listener).context("Registering the control port")?;
    let incoming = ttrpc::r#async::transport::Listener::new(guard::Incoming(listener));
    Ok(ttrpc::r#async::Server::new()
        .register_service(proto::agent_ttrpc::create_agent(service))
        .add_listener(incoming))
}

/// Says hello, and again whenever the connections to the host were reset: to a clone's new host.
async fn greet(start_ns: u64, helpers: Arc<Helpers>) {
    // Requests of the host are read by this same thread, so none is served before the network is there.
    let prepare_network = || {
        if let Err(error) = boot::prepare_network() {
            die(&error.message);
        }
    };
    let mut verdict = hello::announce(start_ns, prepare_network).await;
    // The first container is not yet there: time to have a helper ready for it.
    helpers.prepare_spare();
    loop {
        match verdict {
            Verdict::Welcome(line) if line.ends_by_reset().await => {
                notice!("The connections to the host were reset");
            }
            Verdict::Welcome(_) => return,
            Verdict::Refused(reason) => return die(&reason),
        }
        verdict = hello::announce(start_ns, || {}).await;
    }
}

/// The guest cannot be used: its end is the message.
fn die(reason: &str) {
    console::line("fatal", reason);
    sysinfo::power_off();
}

/// A program that has just been started needs the guest's CPU more than the next helper does.
const SPARE_DELAY: Duration = Duration::from_millis(250);

/// What the kernel sends to PID 1 for the ACPI power button: CONFIG_ACPI_TINY_POWER_BUTTON_SIGNAL of the guest
/// kernel (rootfs/kernel/fragments/acpi.config), SIGRTMIN+4 as the C library counts.
const POWER_BUTTON_SIGNAL: i32 = 38;

/// SIGTERM from inside, the power button, or the kernel's ctrl-alt-del (which it turns into SIGINT for PID 1).
async fn power_off_request() {
    // Otherwise the kernel would restart the machine at once.
    let _ = nix::sys::reboot::set_cad_enabled(false);
    let (Ok(mut terminate), Ok(mut ctrl_alt_del), Ok(mut power_button)) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
        signal(SignalKind::from_raw(POWER_BUTTON_SIGNAL)),
    ) else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = ctrl_alt_del.recv() => {}
        _ = power_button.recv() => {}
    }
    notice!("Powering off");
}

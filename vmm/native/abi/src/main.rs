//! `strato-vhost-device`: serves one device core on one vhost-user socket.
//!
//! strato-vmm starts one per device for the tcg engine and watches it; its death ends the VM. It listens
//! before it forks nothing and prints nothing: the socket's appearance is the sign that it is ready.

mod arguments;

use std::io::Write;
use std::process::ExitCode;

use strato_devices::rng::{Rng, RngConfig};
use strato_vhost_user::Server;
use strato_virtio::DeviceCore;

use self::arguments::{Arguments, Device};

/// A wrong command line, as in sysexits.h.
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args_os().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            log(&message);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log(&chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let core: Box<dyn DeviceCore> = match &arguments.device {
        Device::Rng => Box::new(Rng::new(RngConfig::default())?),
    };
    let server = Server::new(&arguments.socket, core)?;
    let mut report = |what: &dyn std::fmt::Display| log(&format!("Refused a front-end request: {what}"));
    if arguments.once {
        server.serve_one(&mut report)?
    } else {
        server.serve(&mut report)?
    }
    Ok(())
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn log(line: &str) {
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(std::io::stderr(), "strato-vhost-device: {line}");
}

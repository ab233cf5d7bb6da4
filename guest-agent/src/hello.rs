//! The agent's one connection to the host: says that the guest is ready and hears whether the host agrees.
//!
//! It stays open. A reset of the vsock transport (a restored clone, whose host is another) breaks it, and with it all
//! connections that the host has made: then the hello is said again. The kernel tells of the reset in no other way.

use std::time::Duration;

use protobuf::Message;

use crate::console::RateLimit;
use crate::descriptor::Descriptor;
use crate::errors::{Context, Result};
use crate::proto::agent::{Hello, HelloAck};
use crate::{clock, frame, vsock};

/// Version of agent.proto that this agent serves.
pub const PROTOCOL_VERSION: u32 = 1;
/// Pauses between tries: the first is short, for a host that is about to listen.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The host has this long to answer before the agent tries again.
const ANSWER: Duration = Duration::from_secs(30);

/// What the host said.
pub enum Verdict {
    Welcome(Line),
    /// The host or the agent cannot go on, for this reason.
    Refused(String),
}

/// The connection after the host's answer. Nothing more is said on it.
pub struct Line(Descriptor);

impl Line {
    /// Waits for its end: true for a reset, false when the host has closed it.
    pub async fn ends_by_reset(&self) -> bool {
        let mut ignored = [0; 64];
        loop {
            match self.0.read(&mut ignored).await {
                Ok(0) => return false,
                Ok(_) => {}
                // ENOTCONN on a vsock socket whose transport was reset (net/vmw_vsock/af_vsock.c).
                Err(_) => return true,
            }
        }
    }
}

static SILENCE: RateLimit = RateLimit::new(5, Duration::from_secs(60));

/// Says hello until the host has answered. `meanwhile` runs once, while the host reads the first hello.
pub async fn announce(agent_start_ns: u64, meanwhile: impl FnOnce()) -> Verdict {
    let hello = make(agent_start_ns);
    let mut meanwhile = Some(meanwhile);
    let mut pause = FIRST_PAUSE;
    loop {
        match tokio::time::timeout(ANSWER, say(&hello, &mut meanwhile)).await {
            Ok(Ok((ack, connection))) => {
                return match refusal(&ack) {
                    Some(reason) => Verdict::Refused(reason),
                    None => Verdict::Welcome(Line(connection)),
                };
            }
            Ok(Err(error)) if pause >= LONGEST_PAUSE => SILENCE.warn(|| error.to_string()),
            Err(_) => crate::warning!("The host did not answer the hello"),
            Ok(Err(_)) => {}
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn make(agent_start_ns: u64) -> Hello {
    let line = |path: &str| {
        std::fs::read_to_string(path).map_or_else(|_| String::new(), |text| text.trim().to_owned())
    };
    Hello {
        protocol_version: PROTOCOL_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_uuid: line("/proc/sys/kernel/random/boot_id"),
        kernel_release: line("/proc/sys/kernel/osrelease"),
        uptime_ns: clock::boot_ns(),
        agent_start_ns,
        ..Default::default()
    }
}

async fn say(
    hello: &Hello,
    meanwhile: &mut Option<impl FnOnce()>,
) -> Result<(HelloAck, Descriptor)> {
    let connection: Descriptor = vsock::connect_host(vsock::CONTROL_PORT)
        .await
        .context("Connecting to the host")?;
    let bytes = hello.write_to_bytes().context("Encoding the hello")?;
    frame::write(&connection, &bytes)
        .await
        .context("Sending the hello")?;
    if let Some(work) = meanwhile.take() {
        work();
    }
    let answer = frame::read(&connection)
        .await
        .context("Reading the host's answer to the hello")?;
    let ack =
        HelloAck::parse_from_bytes(&answer).context("Decoding the host's answer to the hello")?;
    Ok((ack, connection))
}

/// Why the two cannot work together.
fn refusal(ack: &HelloAck) -> Option<String> {
    if !ack.refusal.is_empty() {
        return Some(format!("The host refuses this agent: {}", ack.refusal));
    }
    (ack.protocol_version != PROTOCOL_VERSION).then(|| {
        format!(
            "The host speaks protocol {}, this agent speaks {PROTOCOL_VERSION}",
            ack.protocol_version
        )
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn refusal_is_for_other_versions_and_named_reasons() {
        let ack = |protocol_version, refusal: &str| HelloAck {
            protocol_version,
            refusal: refusal.to_owned(),
            ..Default::default()
        };
        assert_eq!(refusal(&ack(1, "")), None);
        assert!(refusal(&ack(2, "")).is_some());
        assert!(refusal(&ack(1, "too old")).is_some_and(|reason| reason.contains("too old")));
    }

    #[tokio::test]
    async fn ends_by_reset_tells_a_reset_from_a_close() {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let line = Line(Descriptor::new(ours.into()).expect("a descriptor"));
        drop(theirs);
        assert!(!line.ends_by_reset().await);

        let (mut ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        // Closing a unix socket with unread bytes resets it.
        ours.write_all(b"x").expect("room for a byte");
        let line = Line(Descriptor::new(ours.into()).expect("a descriptor"));
        drop(theirs);
        assert!(line.ends_by_reset().await);
    }
}

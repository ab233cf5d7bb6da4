//! The agent's one connection to the host: says that the guest is ready and hears whether the host agrees.
//!
//! Sent once per boot, and to be sent again after a vsock transport reset (a restored clone), so it holds no state.

use std::time::Duration;

use protobuf::Message;

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
    Welcome,
    /// The host or the agent cannot go on, for this reason.
    Refused(String),
}

/// Says hello until the host has answered. `meanwhile` runs once, while the host reads the first hello.
pub async fn announce(agent_start_ns: u64, meanwhile: impl FnOnce()) -> Verdict {
    let hello = make(agent_start_ns);
    let mut meanwhile = Some(meanwhile);
    let mut pause = FIRST_PAUSE;
    loop {
        match tokio::time::timeout(ANSWER, say(&hello, &mut meanwhile)).await {
            Ok(Ok(ack)) => return judge(&ack),
            Ok(Err(error)) if pause >= LONGEST_PAUSE => crate::warning!("{error}"),
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

async fn say(hello: &Hello, meanwhile: &mut Option<impl FnOnce()>) -> Result<HelloAck> {
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
    HelloAck::parse_from_bytes(&answer).context("Decoding the host's answer to the hello")
}

fn judge(ack: &HelloAck) -> Verdict {
    if !ack.refusal.is_empty() {
        return Verdict::Refused(format!("The host refuses this agent: {}", ack.refusal));
    }
    if ack.protocol_version != PROTOCOL_VERSION {
        return Verdict::Refused(format!(
            "The host speaks protocol {}, this agent speaks {PROTOCOL_VERSION}",
            ack.protocol_version
        ));
    }
    Verdict::Welcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judge_refuses_other_versions_and_named_reasons() {
        let ack = |protocol_version, refusal: &str| HelloAck {
            protocol_version,
            refusal: refusal.to_owned(),
            ..Default::default()
        };
        assert!(matches!(judge(&ack(1, "")), Verdict::Welcome));
        assert!(matches!(judge(&ack(2, "")), Verdict::Refused(_)));
        assert!(
            matches!(judge(&ack(1, "too old")), Verdict::Refused(reason) if reason.contains("too old"))
        );
    }
}

//! Network of the sandbox by rtnetlink: NICs are found by the MAC they were booted with, moved into the sandbox's
//! network namespace under their new name, and configured there. Only interface, route and neighbour requests that
//! the host computed; the agent decides nothing.

mod link;
mod netlink;
mod route;

use std::fs::File;

use crate::errors::{AgentError, Context, Result};
use crate::paths;
use crate::proto::agent::{Interface, InterfaceStats, Neighbor, Route};
use netlink::Netlink;

/// Brings `lo` of the current network namespace up.
pub fn loopback_up() -> Result<()> {
    use std::os::fd::AsRawFd;
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Datagram,
        nix::sys::socket::SockFlag::SOCK_CLOEXEC,
        None,
    )
    .context("Opening a socket for lo")?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS (netdevice(7)) reads one ifreq from the pointer, which is valid for the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error()).context("Bringing lo up")
    }
}

/// Finds, moves, renames and configures one NIC. Addresses that it has already stay when they are wanted again.
pub fn update_interface(wanted: &Interface) -> Result<()> {
    let netns = File::open(paths::NETNS).context("Opening the sandbox's network namespace")?;
    let mut inside = Netlink::open_in(&netns)?;
    let device_mac = link::parse_mac(&wanted.device_mac)?;
    if let Some(found) = link::find_by_mac(&mut inside, &device_mac)? {
        return link::configure(&mut inside, &found, wanted);
    }
    let mut outside = Netlink::open()?;
    let spare = link::find_by_mac(&mut outside, &device_mac)?.ok_or_else(|| {
        AgentError::not_found(format!(
            "No network card has the MAC {} (interface {:?})",
            wanted.device_mac, wanted.name
        ))
    })?;
    link::move_to(&mut outside, &spare, &netns, &wanted.name)?;
    let moved = link::find_by_mac(&mut inside, &device_mac)?.ok_or_else(|| {
        AgentError::internal(format!(
            "Interface {:?} vanished while it was moved",
            wanted.name
        ))
    })?;
    link::configure(&mut inside, &moved, wanted)
}

/// Adds routes and neighbours to the sandbox; what is there already is replaced.
pub fn update_routes(routes: &[Route], neighbors: &[Neighbor]) -> Result<()> {
    let netns = File::open(paths::NETNS).context("Opening the sandbox's network namespace")?;
    let mut inside = Netlink::open_in(&netns)?;
    let links = link::list(&mut inside)?;
    // A gateway has to be reachable before a route may name it: plain routes go first.
    let (direct, via): (Vec<_>, Vec<_>) = routes.iter().partition(|route| route.gateway.is_empty());
    for route in direct.into_iter().chain(via) {
        route::add_route(&mut inside, &links, route)?;
    }
    for neighbor in neighbors {
        route::add_neighbor(&mut inside, &links, neighbor)?;
    }
    Ok(())
}

/// The sandbox's interfaces but `lo`.
pub fn list_interfaces() -> Result<Vec<Interface>> {
    let netns = File::open(paths::NETNS).context("Opening the sandbox's network namespace")?;
    let mut inside = Netlink::open_in(&netns)?;
    link::describe(&mut inside)
}

/// Counters of a process's network namespace, from /proc/PID/net/dev.
pub fn interface_stats(pid: i32) -> Vec<InterfaceStats> {
    std::fs::read_to_string(format!("/proc/{pid}/net/dev"))
        .map_or_else(|_| Vec::new(), |text| parse_net_dev(&text))
}

/// proc_pid_net(5): name, then 8 receive and 8 transmit counters.
fn parse_net_dev(text: &str) -> Vec<InterfaceStats> {
    text.lines()
        .filter_map(|line| {
            let (name, counters) = line.split_once(':')?;
            let numbers: Vec<u64> = counters
                .split_whitespace()
                .map_while(|number| number.parse().ok())
                .collect();
            let [
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                _,
                _,
                _,
                _,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
                ..,
            ] = numbers[..]
            else {
                return None;
            };
            Some(InterfaceStats {
                name: name.trim().to_owned(),
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
                ..Default::default()
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_net_dev_skips_the_heading() {
        let text = "Inter-|   Receive  | Transmit\n face |bytes packets|bytes\n  eth0: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n";
        let stats = parse_net_dev(text);
        assert_eq!(stats.len(), 1);
        assert_eq!(stats[0].name, "eth0");
        assert_eq!((stats[0].rx_dropped, stats[0].tx_dropped), (4, 8));
    }
}

//! Links and their addresses.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::netlink::Netlink;
use crate::errors::{AgentError, Context, Result};
use crate::proto::agent::{Address, Interface};

/// What is needed of an interface of the guest.
#[derive(Clone, Debug, Default)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Vec<u8>,
    /// The MAC it was booted with, where the driver tells.
    pub permanent_mac: Vec<u8>,
    pub mtu: u32,
    pub up: bool,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            up: message.header.flags.contains(LinkFlags::Up),
            ..Self::default()
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::PermAddress(mac) => link.permanent_mac = mac,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                _ => {}
            }
        }
        link
    }
}

/// `02:53:54:52:00:01` as bytes.
pub fn parse_mac(text: &str) -> Result<Vec<u8>> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| (part.len() == 2).then(|| u8::from_str_radix(part, 16).ok())?)
        .collect();
    bytes
        .filter(|bytes| bytes.len() == 6)
        .ok_or_else(|| AgentError::invalid(format!("{text:?} is not a MAC address")))
}

fn format_mac(mac: &[u8]) -> String {
    mac.iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(":")
}

pub fn list(netlink: &mut Netlink) -> Result<Vec<Link>> {
    let answers = netlink
        .dump(RouteNetlinkMessage::GetLink(LinkMessage::default()))
        .context("Listing network interfaces")?;
    Ok(answers
        .into_iter()
        .filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(message) => Some(Link::from(message)),
            _ => None,
        })
        .collect())
}

/// By the MAC of boot; by the present one where the driver does not tell.
pub fn find_by_mac(netlink: &mut Netlink, mac: &[u8]) -> Result<Option<Link>> {
    Ok(list(netlink)?.into_iter().find(|link| {
        if link.permanent_mac.is_empty() {
            link.mac == mac
        } else {
            link.permanent_mac == mac
        }
    }))
}

fn set(
    netlink: &mut Netlink,
    index: u32,
    attributes: Vec<LinkAttribute>,
    up: Option<bool>,
) -> std::io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    if let Some(up) = up {
        message.header.change_mask = LinkFlags::Up;
        message.header.flags = if up {
            LinkFlags::Up
        } else {
            LinkFlags::empty()
        };
    }
    message.attributes = attributes;
    netlink.change(RouteNetlinkMessage::SetLink(message), 0)
}

/// Into another network namespace and under its new name at once, so that no name clashes on the way.
pub fn move_to(netlink: &mut Netlink, link: &Link, netns: &File, name: &str) -> Result<()> {
    let attributes = vec![
        LinkAttribute::NetNsFd(netns.as_raw_fd()),
        LinkAttribute::IfName(name.to_owned()),
    ];
    set(netlink, link.index, attributes, None)
        .with_context(|| format!("Moving interface {} to the sandbox as {name:?}", link.name))
}

/// Name, MAC, MTU, addresses and state.
pub fn configure(netlink: &mut Netlink, link: &Link, wanted: &Interface) -> Result<()> {
    let what = |part: &str| format!("Setting {part} of interface {:?}", wanted.name);
    let mac = if wanted.mac.is_empty() {
        None
    } else {
        Some(parse_mac(&wanted.mac)?).filter(|mac| *mac != link.mac)
    };
    let rename = !wanted.name.is_empty() && wanted.name != link.name;
    // Both are refused on an interface that is up.
    if link.up && (rename || mac.is_some()) {
        set(netlink, link.index, Vec::new(), Some(false)).with_context(|| what("the state"))?;
    }
    if rename {
        let attributes = vec![LinkAttribute::IfName(wanted.name.clone())];
        set(netlink, link.index, attributes, None).with_context(|| what("the name"))?;
    }
    if let Some(mac) = mac {
        set(netlink, link.index, vec![LinkAttribute::Address(mac)], None)
            .with_context(|| what(&format!("the MAC {}", wanted.mac)))?;
    }
    if wanted.mtu != 0 && wanted.mtu != link.mtu {
        set(
            netlink,
            link.index,
            vec![LinkAttribute::Mtu(wanted.mtu)],
            None,
        )
        .with_context(|| what(&format!("the MTU {}", wanted.mtu)))?;
    }
    // Before the addresses: IPv6 ones would wait for it, and routes need it.
    set(netlink, link.index, Vec::new(), Some(wanted.up)).with_context(|| what("the state"))?;
    for address in &wanted.addresses {
        add_address(netlink, link.index, address).with_context(|| {
            what(&format!(
                "the address {}/{}",
                address.address, address.prefix
            ))
        })?;
    }
    Ok(())
}

fn add_address(netlink: &mut Netlink, index: u32, address: &Address) -> std::io::Result<()> {
    let invalid = |_| std::io::Error::from(std::io::ErrorKind::InvalidInput);
    let ip: IpAddr = address
        .address
        .parse()
        .map_err(|_| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
    let prefix = u8::try_from(address.prefix).map_err(invalid)?;
    let mut message = AddressMessage::default();
    message.header.index = index;
    message.header.prefix_len = prefix;
    message.attributes.push(AddressAttribute::Address(ip));
    match ip {
        IpAddr::V4(v4) => {
            message.header.family = AddressFamily::Inet;
            message.attributes.push(AddressAttribute::Local(ip));
            if let Some(broadcast) = broadcast(v4, prefix) {
                message
                    .attributes
                    .push(AddressAttribute::Broadcast(broadcast));
            }
        }
        IpAddr::V6(_) => {
            message.header.family = AddressFamily::Inet6;
            // The host's side has done duplicate detection for this address already.
            message.header.flags = netlink_packet_route::address::AddressHeaderFlags::Nodad;
        }
    }
    netlink.change(
        RouteNetlinkMessage::NewAddress(message),
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

fn broadcast(address: Ipv4Addr, prefix: u8) -> Option<Ipv4Addr> {
    // /31 and /32 have none (RFC 3021).
    (prefix < 31).then(|| {
        let host_bits = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        Ipv4Addr::from(u32::from(address) | host_bits)
    })
}

/// Everything but `lo`, as the host wants to see it.
pub fn describe(netlink: &mut Netlink) -> Result<Vec<Interface>> {
    let links = list(netlink)?;
    let answers = netlink
        .dump(RouteNetlinkMessage::GetAddress(AddressMessage::default()))
        .context("Listing addresses")?;
    let mut interfaces: Vec<(u32, Interface)> = links
        .into_iter()
        .filter(|link| link.name != "lo")
        .map(|link| {
            let device_mac = if link.permanent_mac.is_empty() {
                &link.mac
            } else {
                &link.permanent_mac
            };
            let interface = Interface {
                device_mac: format_mac(device_mac),
                name: link.name.clone(),
                mac: format_mac(&link.mac),
                mtu: link.mtu,
                up: link.up,
                ..Default::default()
            };
            (link.index, interface)
        })
        .collect();
    for answer in answers {
        let RouteNetlinkMessage::NewAddress(message) = answer else {
            continue;
        };
        let owner = interfaces
            .iter_mut()
            .find(|(index, _)| *index == message.header.index);
        // IPv4's own address is IFA_LOCAL; IPv6 has IFA_ADDRESS only.
        let local = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Local(ip) => Some(*ip),
                _ => None,
            });
        let any = message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
        if let (Some((_, interface)), Some(ip)) = (owner, local.or(any)) {
            interface.addresses.push(Address {
                address: ip.to_string(),
                prefix: u32::from(message.header.prefix_len),
                ..Default::default()
            });
        }
    }
    Ok(interfaces
        .into_iter()
        .map(|(_, interface)| interface)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_mac_takes_six_bytes_only() {
        assert_eq!(
            parse_mac("02:53:54:52:00:0a").expect("a MAC"),
            [2, 0x53, 0x54, 0x52, 0, 10]
        );
        for text in [
            "",
            "02:53",
            "02:53:54:52:00:0g",
            "2:53:54:52:00:01",
            "02:53:54:52:00:01:02",
        ] {
            assert!(parse_mac(text).is_err(), "{text}");
        }
    }

    #[test]
    fn broadcast_fills_the_host_part() {
        let ip = Ipv4Addr::new(10, 1, 2, 3);
        assert_eq!(broadcast(ip, 24), Some(Ipv4Addr::new(10, 1, 2, 255)));
        assert_eq!(broadcast(ip, 0), Some(Ipv4Addr::BROADCAST));
        assert_eq!(broadcast(ip, 31), None);
    }
}

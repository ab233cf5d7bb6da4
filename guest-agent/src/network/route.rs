//! Routes and neighbours.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::link::{Link, parse_mac};
use super::netlink::Netlink;
use crate::errors::{AgentError, Context, Result};
use crate::proto::agent::{Neighbor, Route};

/// A destination: address and prefix; None is a default route, whose family the gateway tells.
fn parse_destination(text: &str) -> Result<Option<(IpAddr, u8)>> {
    if text.is_empty() || text == "default" {
        return Ok(None);
    }
    let bad = || AgentError::invalid(format!("{text:?} is not a route's destination"));
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| bad())?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.unwrap_or(longest);
    if prefix > longest {
        return Err(bad());
    }
    Ok(Some((address, prefix)))
}

fn parse_ip(what: &str, text: &str) -> Result<Option<IpAddr>> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse()
        .map(Some)
        .map_err(|_| AgentError::invalid(format!("{what} {text:?} is not an IP address")))
}

fn index_of(links: &[Link], device: &str) -> Result<u32> {
    links
        .iter()
        .find(|link| link.name == device)
        .map(|link| link.index)
        .ok_or_else(|| AgentError::not_found(format!("The sandbox has no interface {device:?}")))
}

fn route_address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

pub fn add_route(netlink: &mut Netlink, links: &[Link], route: &Route) -> Result<()> {
    let destination = parse_destination(&route.destination)?;
    let gateway = parse_ip("Gateway", &route.gateway)?;
    let source = parse_ip("Source", &route.source)?;
    let mut message = RouteMessage::default();
    message.header.address_family = destination
        .map(|(ip, _)| ip)
        .or(gateway)
        .or(source)
        .map_or(AddressFamily::Inet, family);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.header.scope = RouteScope::from(u8::try_from(route.scope).unwrap_or(0));
    if let Some((ip, prefix)) = destination {
        message.header.destination_prefix_length = prefix;
        if prefix > 0 {
            message
                .attributes
                .push(RouteAttribute::Destination(route_address(ip)));
        }
    }
    if let Some(gateway) = gateway {
        message
            .attributes
            .push(RouteAttribute::Gateway(route_address(gateway)));
    }
    if let Some(source) = source {
        message
            .attributes
            .push(RouteAttribute::PrefSource(route_address(source)));
    }
    if !route.device.is_empty() {
        message
            .attributes
            .push(RouteAttribute::Oif(index_of(links, &route.device)?));
    }
    if route.metric != 0 {
        message
            .attributes
            .push(RouteAttribute::Priority(route.metric));
    }
    if route.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    netlink
        .change(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .with_context(|| {
            format!(
                "Adding the route to {:?} via {:?} on {:?}",
                route.destination, route.gateway, route.device
            )
        })
}

pub fn add_neighbor(netlink: &mut Netlink, links: &[Link], neighbor: &Neighbor) -> Result<()> {
    let ip = parse_ip("Neighbour", &neighbor.address)?
        .ok_or_else(|| AgentError::invalid("A neighbour has no address"))?;
    let mut message = NeighbourMessage::default();
    message.header.family = family(ip);
    message.header.ifindex = index_of(links, &neighbor.device)?;
    message.header.state = if neighbor.state == 0 {
        NeighbourState::Permanent
    } else {
        NeighbourState::from(u16::try_from(neighbor.state).unwrap_or(0))
    };
    let address = match ip {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    message
        .attributes
        .push(NeighbourAttribute::Destination(address));
    if !neighbor.mac.is_empty() {
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(parse_mac(
                &neighbor.mac,
            )?));
    }
    netlink
        .change(
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .with_context(|| {
            format!(
                "Adding the neighbour {} on {:?}",
                neighbor.address, neighbor.device
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_destination_knows_default_hosts_and_networks() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        assert_eq!(parse_destination("default").expect("default"), None);
        assert_eq!(
            parse_destination("10.0.0.0/8").expect("v4"),
            Some((ip("10.0.0.0"), 8))
        );
        assert_eq!(
            parse_destination("10.0.0.1").expect("host"),
            Some((ip("10.0.0.1"), 32))
        );
        assert_eq!(parse_destination("::/0").expect("v6"), Some((ip("::"), 0)));
        for text in ["10.0.0.0/33", "x/8", "10.0.0.0/x", "fe80::/129"] {
            assert!(parse_destination(text).is_err(), "{text}");
        }
    }
}

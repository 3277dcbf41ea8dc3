//! Who a request comes from, as far as an address tells. Start at [`Client`].

use std::convert::Infallible;
use std::net::IpAddr;

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use harmonia_listener::network_of;

use crate::state::AppState;

/// Name of the header in which a proxy says whose request it hands on.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// The other end of the connection, put into every request by [`crate::serve`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Whose share of what is shared a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// Somebody on this machine, who could use it up without asking us.
    ThisMachine,
    /// All who share a network ([`network_of`]).
    Network(IpAddr),
}

impl FromRequestParts<AppState> for Client {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Infallible> {
        let peer = parts.extensions.get::<Peer>().map(|peer| peer.0);
        Ok(peer.map_or(Self::ThisMachine, |peer| of(peer, &parts.headers, &state.options().trusted_proxies)))
    }
}

/// What a proxy adds stands last. Only proxies on this machine and those that are listed are believed.
fn of(peer: IpAddr, headers: &HeaderMap, trusted_proxies: &[IpAddr]) -> Client {
    let is_proxy = |address: &IpAddr| address.is_loopback() || trusted_proxies.contains(address);
    let mut address = peer.to_canonical();
    if is_proxy(&address) {
        let values = headers.get_all(FORWARDED_FOR).iter().filter_map(|value| value.to_str().ok());
        let named: Vec<&str> = values.flat_map(|value| value.split(',')).map(str::trim).collect();
        // Through several proxies of ours, the last that is none of them.
        let named = named.iter().rev().map_while(|text| text.parse::<IpAddr>().ok()).map(|named| named.to_canonical());
        for named in named {
            address = named;
            if !is_proxy(&named) {
                break;
            }
        }
    }
    if address.is_loopback() { Client::ThisMachine } else { Client::Network(network_of(address)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whom_a_proxy_names_counts_only_if_the_proxy_is_ours() {
        let proxies = ["192.0.2.9".parse().expect("address")];
        for (peer, forwarded, client) in [
            ("127.0.0.1", &[][..], None),
            ("::1", &[], None),
            ("198.51.100.1", &[], Some("198.51.100.1")),
            ("127.0.0.1", &["198.51.100.1"], Some("198.51.100.1")),
            ("127.0.0.1", &["203.0.113.7, 198.51.100.1"], Some("198.51.100.1")),
            ("127.0.0.1", &["203.0.113.7", "198.51.100.1"], Some("198.51.100.1")),
            ("192.0.2.9", &["198.51.100.1"], Some("198.51.100.1")),
            ("127.0.0.1", &["198.51.100.1, 192.0.2.9"], Some("198.51.100.1")),
            ("127.0.0.1", &["198.51.100.1, 127.0.0.1"], Some("198.51.100.1")),
            // Nobody else may choose who they are.
            ("198.51.100.1", &["203.0.113.7"], Some("198.51.100.1")),
            ("127.0.0.1", &["nonsense"], None),
            ("192.0.2.9", &["198.51.100.1, nonsense"], Some("192.0.2.9")),
            ("::ffff:198.51.100.1", &[], Some("198.51.100.1")),
            ("2001:db8::5", &[], Some("2001:db8::")),
        ] {
            let mut headers = HeaderMap::new();
            for value in forwarded {
                headers.append(FORWARDED_FOR, value.parse().expect("a value"));
            }
            let expected = client.map_or(Client::ThisMachine, |text| Client::Network(text.parse().expect("address")));
            assert_eq!(of(peer.parse().expect("address"), &headers, &proxies), expected, "{peer} {forwarded:?}");
        }
    }
}

//! How many connections each client has.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What counts as one client: an IPv4 address, or the /64 network of an IPv6 one, all of which one household has.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

/// Counts connections by client.
#[derive(Debug, Clone)]
pub(crate) struct Clients {
    counts: Arc<Mutex<HashMap<IpAddr, usize>>>,
    max: usize,
}

/// One connection that is counted.
#[derive(Debug)]
pub(crate) struct Counted {
    of: Option<(Clients, IpAddr)>,
}

impl Clients {
    pub(crate) fn new(max: usize) -> Self {
        Self { counts: Arc::default(), max: max.max(1) }
    }

    /// `None`: this client has as many as it may. This machine itself is not counted.
    pub(crate) fn enter(&self, address: IpAddr) -> Option<Counted> {
        let address = address.to_canonical();
        if address.is_loopback() {
            return Some(Counted { of: None });
        }
        let client = network_of(address);
        let mut counts = self.lock();
        let count = counts.entry(client).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(Counted { of: Some((self.clone(), client)) })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let Some((clients, client)) = &self.of else { return };
        let mut counts = clients.lock();
        if let Some(count) = counts.get_mut(client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn one_client_has_so_many_and_the_next_one_as_many() {
        let clients = Clients::new(2);
        let (first, second) = (clients.enter(ip("192.0.2.1")), clients.enter(ip("::ffff:192.0.2.1")));
        assert!(first.is_some() && second.is_some());
        assert!(clients.enter(ip("192.0.2.1")).is_none());
        assert!(clients.enter(ip("192.0.2.2")).is_some());
        drop(first);
        assert!(clients.enter(ip("192.0.2.1")).is_some());
        drop(second);
        assert!(clients.lock().is_empty(), "who left is forgotten");
    }

    #[test]
    fn this_machine_is_not_counted() {
        let clients = Clients::new(1);
        let held: Vec<_> = ["127.0.0.1", "127.0.0.2", "::1", "127.0.0.1"].map(|text| clients.enter(ip(text))).into();
        assert!(held.iter().all(Option::is_some));
    }

    #[test]
    fn what_one_client_is() {
        for (address, network) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff::", "2001:db8:1:2::"),
        ] {
            assert_eq!(network_of(ip(address)), ip(network), "{address}");
        }
    }
}

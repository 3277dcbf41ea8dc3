//! Which addresses a request may be sent to, decided after names are resolved and before anything is connected. Start at
//! [`AddressClass::of`] and [`CheckedResolver`].

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use harmonia_core::ports::PortFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// What an address is for (IANA's special-purpose address registries).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::capabilities) enum AddressClass {
    /// Anybody's.
    Public,
    /// This machine.
    Loopback,
    /// Private networks: RFC 1918, unique and site local, carrier-grade NAT, local NAT64.
    Private,
    /// This link; clouds serve credentials there.
    LinkLocal,
    /// Many.
    Multicast,
    /// All of a network.
    Broadcast,
    /// None; on Linux this machine.
    Unspecified,
    /// Examples, benchmarks, tunnels, discarded, not assigned.
    Reserved,
}

impl AddressClass {
    /// The class of an address; one that carries an IPv4 address (mapped, NAT64, 6to4) is of that one's class.
    pub(in crate::capabilities) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            [0, 0, 0, 0] => Self::Unspecified,
            [127, ..] => Self::Loopback,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Self::Private,
            [169, 254, ..] => Self::LinkLocal,
            [224..=239, ..] => Self::Multicast,
            [255, 255, 255, 255] => Self::Broadcast,
            // "This network", IETF protocols, examples, the 6to4 relays, benchmarks, examples, class E.
            [0 | 240..=255, ..]
            | [192, 0, 0 | 2, _]
            | [192, 88, 99, _]
            | [198, 18 | 19, ..]
            | [198, 51, 100, _]
            | [203, 0, 113, _] => Self::Reserved,
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        let v4 = |high: u16, low: u16| {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            Self::of_v4(Ipv4Addr::new(a, b, c, d))
        };
        match address.segments() {
            [0, 0, 0, 0, 0, 0, 0, 0] => Self::Unspecified,
            [0, 0, 0, 0, 0, 0, 0, 1] => Self::Loopback,
            // Mapped, the NAT64 prefix of RFC 6052, 6to4.
            [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
                v4(high, low)
            }
            // NAT64 within a network (RFC 8215), unique local, site local.
            [0x64, 0xff9b, 1, ..] | [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Self::Private,
            [0xfe80..=0xfebf, ..] => Self::LinkLocal,
            [0xff00..=0xffff, ..] => Self::Multicast,
            // IETF protocols (Teredo among them), examples.
            [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Self::Reserved,
            [0x2000..=0x3fff, ..] => Self::Public,
            _ => Self::Reserved,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Loopback => "this machine",
            Self::Private => "a private network",
            Self::LinkLocal => "link-local",
            Self::Multicast => "multicast",
            Self::Broadcast => "broadcast",
            Self::Unspecified => "unspecified",
            Self::Reserved => "reserved",
        }
    }
}

/// Which addresses a granted name may resolve to; later ones allow more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::capabilities) enum AddressPolicy {
    /// Public ones.
    Public,
    /// This machine (`localhost`).
    ThisMachine,
    /// Also this machine and private networks (`private:`). Never link-local ones.
    Private,
}

impl AddressPolicy {
    pub(in crate::capabilities) const fn allows(self, class: AddressClass) -> bool {
        match self {
            Self::Public => matches!(class, AddressClass::Public),
            Self::ThisMachine => matches!(class, AddressClass::Loopback),
            Self::Private => {
                matches!(class, AddressClass::Public | AddressClass::Loopback | AddressClass::Private)
            }
        }
    }
}

/// Names to addresses.
pub trait Resolver: Send + Sync + 'static {
    /// All addresses of a name.
    fn resolve(&self, name: String) -> PortFuture<'_, io::Result<Vec<IpAddr>>>;
}

/// As the operating system resolves.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&self, name: String) -> PortFuture<'_, io::Result<Vec<IpAddr>>> {
        Box::pin(
            async move { Ok(tokio::net::lookup_host((name.as_str(), 0)).await?.map(|address| address.ip()).collect()) },
        )
    }
}

/// A name has an address that its grant does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` resolves to {address} ({})", class.as_str())]
pub(in crate::capabilities) struct AddressRefused {
    pub(in crate::capabilities) name: String,
    pub(in crate::capabilities) address: IpAddr,
    pub(in crate::capabilities) class: AddressClass,
}

/// Resolves, and gives the addresses only if every one is allowed: a name with both public and private addresses is either
/// a mistake or an attack. The client connects to just these addresses, so nothing is resolved a second time.
pub(in crate::capabilities) struct CheckedResolver {
    pub(in crate::capabilities) resolver: Arc<dyn Resolver>,
    pub(in crate::capabilities) policy: AddressPolicy,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (resolver, policy, name) = (Arc::clone(&self.resolver), self.policy, name.as_str().to_owned());
        Box::pin(async move {
            let addresses = resolver.resolve(name.clone()).await?;
            for address in &addresses {
                let class = AddressClass::of(*address);
                if !policy.allows(class) {
                    return Err(AddressRefused { name, address: *address, class }.into());
                }
            }
            if addresses.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address").into());
            }
            let addresses: Addrs = Box::new(addresses.into_iter().map(|address| SocketAddr::new(address, 0)));
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn class(address: &str) -> AddressClass {
        AddressClass::of(address.parse().expect("an address"))
    }

    #[test]
    fn special_addresses_are_known() {
        let cases = [
            (
                AddressClass::Public,
                "1.1.1.1 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1",
            ),
            (AddressClass::Public, "169.253.0.1 172.15.255.255 172.32.0.0 192.167.0.1 192.169.0.1 223.255.255.255"),
            (AddressClass::Public, "2606:4700::1111 2a00:: 64:ff9b::101:101 ::ffff:8.8.8.8 2002:808:808::1"),
            (AddressClass::Loopback, "127.0.0.1 127.255.255.255 ::1 ::ffff:127.0.0.1 64:ff9b::7f00:1 2002:7f00:1::"),
            (AddressClass::Private, "10.0.0.0 10.255.255.255 172.16.0.0 172.31.255.255 192.168.0.1 100.64.0.0"),
            (AddressClass::Private, "100.127.255.255 fc00:: fd12:3456::1 fec0::1 ::ffff:10.0.0.1 ::ffff:c0a8:1"),
            (AddressClass::Private, "64:ff9b::a00:1 64:ff9b:1::1 2002:a00:1::1 2002:c0a8:101::"),
            (AddressClass::LinkLocal, "169.254.169.254 fe80::1 febf::1 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe"),
            (AddressClass::Multicast, "224.0.0.1 239.255.255.255 ff02::1 ::ffff:224.0.0.1"),
            (AddressClass::Broadcast, "255.255.255.255 ::ffff:255.255.255.255"),
            (AddressClass::Unspecified, "0.0.0.0 :: ::ffff:0.0.0.0"),
            (
                AddressClass::Reserved,
                "0.0.0.1 192.0.0.1 192.0.2.1 192.88.99.1 198.18.0.1 198.51.100.1 203.0.113.9 240.0.0.1",
            ),
            (
                AddressClass::Reserved,
                "::2 ::127.0.0.1 100:: 2001::1 2001:db8::1 3fff:0:1:: 4000:: 5f00:: 64:ff9b:0:1::",
            ),
        ];
        for (expected, addresses) in cases {
            for address in addresses.split(' ') {
                assert_eq!(class(address), expected, "{address}");
            }
        }
    }

    proptest! {
        /// The standard library's own notions, which are written independently, never contradict ours.
        #[test]
        fn nothing_special_is_public(bits: u32, prefix in 0_u8..4) {
            let v4 = Ipv4Addr::from_bits(bits);
            let special = v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_multicast()
                || v4.is_broadcast() || v4.is_unspecified() || v4.is_documentation();
            let class = AddressClass::of(IpAddr::V4(v4));
            prop_assert!(!(special && class == AddressClass::Public), "{v4}");
            let bits = u128::from(bits);
            // Whatever form an IPv4 address is wrapped in, it is judged the same.
            let wrapped = match prefix {
                0 => v4.to_ipv6_mapped(),
                1 => Ipv6Addr::from_bits((0x0064_ff9b_u128 << 96) | bits),
                2 => Ipv6Addr::from_bits((0x2002_u128 << 112) | (bits << 80)),
                _ => Ipv6Addr::from_bits((0x2002_u128 << 112) | (bits << 80) | 1),
            };
            prop_assert_eq!(AddressClass::of(IpAddr::V6(wrapped)), class, "{}", wrapped);
        }

        #[test]
        fn nothing_special_is_public_in_six(bits: u128) {
            let v6 = Ipv6Addr::from_bits(bits);
            let special = v6.is_loopback() || v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_multicast()
                || v6.is_unspecified();
            prop_assert!(!(special && AddressClass::of(IpAddr::V6(v6)) == AddressClass::Public), "{v6}");
        }
    }

    /// Answers what it is told to.
    struct Scripted(Vec<&'static str>);

    impl Resolver for Scripted {
        fn resolve(&self, _: String) -> PortFuture<'_, io::Result<Vec<IpAddr>>> {
            let addresses = self.0.iter().map(|address| address.parse().expect("an address")).collect();
            Box::pin(async move { Ok(addresses) })
        }
    }

    async fn resolve(policy: AddressPolicy, addresses: &[&'static str]) -> Result<Vec<IpAddr>, String> {
        let checked = CheckedResolver { resolver: Arc::new(Scripted(addresses.to_vec())), policy };
        let name = "evil.example".parse().map_err(|_| "no name".to_owned())?;
        match checked.resolve(name).await {
            Ok(addresses) => Ok(addresses.map(|address| address.ip()).collect()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[tokio::test]
    async fn one_bad_address_spoils_the_name() {
        use AddressPolicy::{Private, Public, ThisMachine};
        assert_eq!(resolve(Public, &["1.1.1.1", "2606:4700::1"]).await.expect("public").len(), 2);
        for bad in ["127.0.0.1", "::ffff:10.0.0.1", "169.254.169.254", "64:ff9b::7f00:1", "fd00::1", "100.64.1.1"] {
            let error = resolve(Public, &["1.1.1.1", bad]).await.expect_err(bad);
            let bad: IpAddr = bad.parse().expect("an address");
            assert!(error.contains("evil.example") && error.contains(&bad.to_string()), "{error}");
        }
        assert!(resolve(Public, &[]).await.is_err());
        assert!(resolve(ThisMachine, &["127.0.0.1", "::1"]).await.is_ok());
        assert!(resolve(ThisMachine, &["10.0.0.1"]).await.is_err());
        assert!(resolve(Private, &["10.0.0.1", "127.0.0.1", "1.1.1.1"]).await.is_ok());
        for never in ["169.254.169.254", "fe80::1", "224.0.0.1", "0.0.0.0", "255.255.255.255"] {
            assert!(resolve(Private, &[never]).await.is_err(), "{never}");
        }
    }
}

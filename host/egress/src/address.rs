//! Which addresses a request may be sent to, decided after names are resolved and before anything is connected. Start at
//! [`AddressClass::of`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What an address is for (IANA's special-purpose address registries).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressClass {
    /// Anybody's.
    Public,
    /// This machine.
    Loopback,
    /// Private networks: RFC 1918, unique and site local, carrier-grade NAT, local NAT64.
    Private,
    /// This link, and the addresses elsewhere that clouds serve credentials and settings of a machine at.
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
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::of_v4(address),
            IpAddr::V6(address) => Self::of_v6(address),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        match address.octets() {
            [0, 0, 0, 0] => Self::Unspecified,
            // The second ones: Alibaba's, Oracle's and Azure's services for their machines.
            [169, 254, ..] | [100, 100, 100, 200] | [192, 0, 0, 192] | [168, 63, 129, 16] => Self::LinkLocal,
            [127, ..] => Self::Loopback,
            [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Self::Private,
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
            // The second ones: Amazon's and Google's services for their machines.
            [0xfe80..=0xfebf, ..]
            | [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254]
            | [0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x0254] => Self::LinkLocal,
            // NAT64 within a network (RFC 8215), unique local, site local.
            [0x64, 0xff9b, 1, ..] | [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Self::Private,
            [0xff00..=0xffff, ..] => Self::Multicast,
            // IETF protocols (Teredo among them), examples.
            [0x2001, 0..=0x1ff | 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => Self::Reserved,
            [0x2000..=0x3fff, ..] => Self::Public,
            _ => Self::Reserved,
        }
    }

    /// For people.
    pub const fn as_str(self) -> &'static str {
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
pub enum AddressPolicy {
    /// Public ones.
    Public,
    /// This machine (`localhost`).
    ThisMachine,
    /// Also this machine and private networks (`private:`). Never link-local ones.
    Private,
}

impl AddressPolicy {
    /// Whether an address of this class may be called.
    pub const fn allows(self, class: AddressClass) -> bool {
        match self {
            Self::Public => matches!(class, AddressClass::Public),
            Self::ThisMachine => matches!(class, AddressClass::Loopback),
            Self::Private => {
                matches!(class, AddressClass::Public | AddressClass::Loopback | AddressClass::Private)
            }
        }
    }
}

/// A name has an address that its grant does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{name}` resolves to {address} ({})", class.as_str())]
pub struct AddressRefused {
    /// The name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// What that is for.
    pub class: AddressClass,
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
            (
                AddressClass::LinkLocal,
                "100.100.100.200 192.0.0.192 168.63.129.16 fd00:ec2::254 fd20:ce::254 ::ffff:168.63.129.16",
            ),
            (AddressClass::Private, "100.100.100.201 fd00:ec2::253"),
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
}

//! What goes out of foreign code: to public addresses, and to what an operator lists. Start at [`EgressRules::judge`].

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use crate::address::AddressClass;
use crate::grant::{HostGrant, HostGrantError, HostPattern, Target};

/// An entry of a list of what may be reached beside public addresses:
///
/// | text | allows |
/// |---|---|
/// | everything of [`HostGrant`] that is about more than public addresses | the same, with the same meaning |
/// | `10.20.0.0/16`, `fd00:1::/32` | every address of a network, at any port, whatever its name |
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub enum EgressGrant {
    /// A host.
    Host(HostGrant),
    /// A network.
    Network(Network),
}

/// All addresses that begin alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    fn parse(address: &str, bits: &str) -> Result<Self, &'static str> {
        let address: IpAddr = address.parse().map_err(|_| "what stands before `/` is no address")?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.parse::<u8>().ok().filter(|bits| *bits <= most && bits.to_string().len() <= 3);
        let network = Self { address, bits: bits.ok_or("what stands behind `/` is no number of bits of the address")? };
        let is_first = network.significant(address) == bits_of(address);
        if is_first { Ok(network) } else { Err("the address has bits behind the network's") }
    }

    fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && self.significant(address) == bits_of(self.address)
    }

    /// The bits that the network is about; the others are 0.
    fn significant(&self, address: IpAddr) -> u128 {
        let others = if address.is_ipv4() { 32 } else { 128 } - u32::from(self.bits);
        // Of a network of all addresses nothing is left.
        bits_of(address).checked_shr(others).map_or(0, |bits| bits.checked_shl(others).unwrap_or(0))
    }
}

fn bits_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl FromStr for EgressGrant {
    type Err = HostGrantError;

    fn from_str(text: &str) -> Result<Self, HostGrantError> {
        if let Some((address, bits)) = text.split_once('/').filter(|(address, _)| address.parse::<IpAddr>().is_ok()) {
            return Network::parse(address, bits)
                .map(Self::Network)
                .map_err(|reason| HostGrantError::new(text, reason));
        }
        let grant: HostGrant = text.parse()?;
        let is_local = matches!(grant.host(), HostPattern::Exactly(url::Host::Domain(name)) if name == "localhost");
        if grant.address().is_none() && !grant.is_private && !is_local {
            let reason =
                "public addresses need not be listed; for a host with a private one write `private:` before it";
            return Err(HostGrantError::new(text, reason));
        }
        Ok(Self::Host(grant))
    }
}

impl TryFrom<String> for EgressGrant {
    type Error = HostGrantError;
    fn try_from(text: String) -> Result<Self, HostGrantError> {
        text.parse()
    }
}

impl fmt::Display for EgressGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(grant) => grant.fmt(f),
            Self::Network(Network { address, bits }) => write!(f, "{address}/{bits}"),
        }
    }
}

impl Serialize for EgressGrant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl EgressGrant {
    /// What allows just this target, wherever in private networks it is.
    pub fn of_target(target: &Target) -> Self {
        let Target { scheme, host, port } = target.clone();
        Self::Host(HostGrant { scheme, host: HostPattern::Exactly(host), port, is_private: true })
    }

    fn allows(&self, target: &Target, address: IpAddr) -> bool {
        match self {
            Self::Host(grant) if !grant.matches(target) => false,
            Self::Host(grant) => match grant.address() {
                Some(granted) => granted == address,
                None => grant.address_policy().allows(AddressClass::of(address)),
            },
            // Nothing answers at these, whatever they are part of.
            Self::Network(network) => {
                let is_of_a_host = !matches!(
                    AddressClass::of(address),
                    AddressClass::Unspecified | AddressClass::Multicast | AddressClass::Broadcast
                );
                is_of_a_host && network.contains(address)
            }
        }
    }
}

/// What may be reached.
#[derive(Debug, Clone, Default)]
pub struct EgressRules {
    /// Beside public addresses.
    pub allowed: Vec<EgressGrant>,
    /// What the list is called in the configuration, for messages.
    pub setting: &'static str,
}

/// Something was not reached because it must not be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{target} may not be reached: {} ({}). If that is right, an operator can write {advice} into `{setting}`",
    describe(target, *address),
    class.as_str()
)]
pub struct Refusal {
    /// Where it was to go.
    pub target: Target,
    /// The address that is not allowed.
    pub address: IpAddr,
    /// What that is for.
    pub class: AddressClass,
    /// The entry that would allow it.
    pub advice: String,
    /// Where that would be written.
    pub setting: &'static str,
}

fn describe(target: &Target, address: IpAddr) -> String {
    match &target.host {
        url::Host::Domain(name) => format!("{name} is at {address}"),
        _ => format!("{address} is no public address"),
    }
}

impl EgressRules {
    /// Whether the target may be reached at all of these addresses: a name with both public and private ones is either a
    /// mistake or an attack.
    pub fn judge(&self, target: &Target, addresses: &[IpAddr]) -> Result<(), Refusal> {
        addresses.iter().try_for_each(|address| self.judge_as(target, *address, AddressClass::of(*address)))
    }

    /// One address, of which more is known than the address says.
    pub(crate) fn judge_as(&self, target: &Target, address: IpAddr, class: AddressClass) -> Result<(), Refusal> {
        if class == AddressClass::Public || self.allowed.iter().any(|grant| grant.allows(target, address)) {
            return Ok(());
        }
        let advice = match (&target.host, class) {
            (url::Host::Domain(name), AddressClass::Loopback) if name == "localhost" => {
                format!("\"{}\"", target.as_grant())
            }
            (url::Host::Domain(_), AddressClass::Loopback | AddressClass::Private) => {
                format!("\"private:{}\"", target.as_grant())
            }
            (url::Host::Domain(_), _) => format!("the network of {address}"),
            _ => format!("\"{}\"", target.as_grant()),
        };
        Err(Refusal { target: target.clone(), address, class, advice, setting: self.setting })
    }
}

#[cfg(test)]
mod tests;

//! Hosts that an operator names, as in `allow_hosts`. Start at [`HostGrant`].

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::Deserialize;
use url::{Host, Url};

use super::address::{AddressClass, AddressPolicy};

/// `http` or `https`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    const fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Where a request goes: the part of a URL that grants are about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Target {
    /// How.
    pub scheme: Scheme,
    /// Which host.
    pub host: Host<String>,
    /// Which port of it.
    pub port: u16,
}

impl Target {
    /// The target of a URL; the text says what is wrong with it.
    pub fn of(url: &Url) -> Result<Self, &'static str> {
        let scheme = match url.scheme() {
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            _ => return Err("its scheme is neither https nor http"),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it has a user or a password: use `auth` instead");
        }
        let host = url.host().ok_or("it has no host")?.to_owned();
        if url.port() == Some(0) {
            return Err("its port is 0");
        }
        Ok(Self { scheme, host, port: url.port().unwrap_or(scheme.default_port()) })
    }

    /// What an operator writes into `allow_hosts` to grant it.
    pub fn as_grant(&self) -> String {
        let Self { scheme, host, port } = self;
        match (scheme, *port == scheme.default_port()) {
            (Scheme::Https, true) => host.to_string(),
            (Scheme::Https, false) => format!("{host}:{port}"),
            (Scheme::Http, true) => format!("http://{host}"),
            (Scheme::Http, false) => format!("http://{host}:{port}"),
        }
    }

    /// `host:port`: what a forge counts requests by.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// A host, or all below a domain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// This one.
    Exactly(Host<String>),
    /// Without `*.`; the domain itself is not meant.
    Below(String),
}

impl HostPattern {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let Some(domain) = text.strip_prefix("*.") else {
            if text.contains('*') {
                return Err("`*` may only stand at the beginning, as `*.example.org`");
            }
            return Host::parse(text).map(Self::Exactly).map_err(|_| "it is no host name and no address");
        };
        match Host::parse(domain) {
            Ok(Host::Domain(domain)) if domain.contains('.') && !domain.contains('*') => Ok(Self::Below(domain)),
            Ok(_) => Err("what follows `*.` must be a domain of at least two labels"),
            Err(_) => Err("what follows `*.` is no host name"),
        }
    }

    /// Whether this host is meant.
    pub fn matches(&self, host: &Host<String>) -> bool {
        match (self, host) {
            (Self::Exactly(own), host) => own == host,
            (Self::Below(domain), Host::Domain(name)) => is_below(name, domain),
            (Self::Below(_), _) => false,
        }
    }

    /// Whether all that `other` matches is matched.
    pub fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Exactly(host)) => self.matches(host),
            (Self::Below(own), Self::Below(domain)) => own == domain || is_below(domain, own),
            (Self::Exactly(_), Self::Below(_)) => false,
        }
    }
}

fn is_below(name: &str, domain: &str) -> bool {
    name.strip_suffix(domain).is_some_and(|front| front.len() > 1 && front.ends_with('.'))
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(host) => host.fmt(f),
            Self::Below(domain) => write!(f, "*.{domain}"),
        }
    }
}

/// `[scheme://]host[:port]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostParts {
    /// Before `://`.
    pub scheme: Option<Scheme>,
    /// Host, or all below a domain.
    pub host: HostPattern,
    /// Behind `:`.
    pub port: Option<u16>,
}

impl HostParts {
    /// Reads it; the text says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = match text.split_once("://") {
            Some(("https", rest)) => (Some(Scheme::Https), rest),
            Some(("http", rest)) => (Some(Scheme::Http), rest),
            Some(_) => return Err("its scheme is neither https nor http"),
            None => (None, text),
        };
        if rest.contains(['/', '@', '?', '#', '\\', '%']) || rest.contains(|c: char| c.is_whitespace()) {
            return Err("only scheme, host and port can be granted, not users or paths");
        }
        let after_brackets = rest.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match rest[after_brackets..].rsplit_once(':') {
            Some((_, port)) => {
                let is_number = !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
                let number = port.parse::<u16>().ok().filter(|number| *number > 0 && is_number);
                let number = number.ok_or("its port is no number from 1 to 65535")?;
                (&rest[..rest.len() - port.len() - 1], Some(number))
            }
            None => (rest, None),
        };
        if host.contains(':') && !host.starts_with('[') {
            return Err("an IPv6 address stands in brackets: `[::1]`");
        }
        Ok(Self { scheme, host: HostPattern::parse(host)?, port })
    }
}

/// A host that may be called, as in `allow_hosts`:
///
/// | text | grants |
/// |---|---|
/// | `forge.example` | `https`, port 443, at public addresses only |
/// | `forge.example:8443` | another port |
/// | `http://forge.example:3000` | plain `http`; `https` is then not granted |
/// | `*.example.org` | all names below, not the domain itself |
/// | `10.1.2.3`, `http://127.0.0.1:3000`, `[::1]:8443` | this very address, private or not |
/// | `http://localhost:3000` | this machine |
/// | `private:forge.corp.example` | the name may resolve to addresses of this machine and of private networks (never to link-local ones, where clouds keep credentials) |
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct HostGrant {
    pub(crate) scheme: Scheme,
    pub(crate) host: HostPattern,
    pub(crate) port: u16,
    pub(crate) is_private: bool,
}

/// An entry of `allow_hosts` that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no host that can be granted: {reason}")]
pub struct HostGrantError {
    text: String,
    reason: &'static str,
}

impl HostGrantError {
    /// About this entry.
    pub fn new(text: &str, reason: &'static str) -> Self {
        Self { text: text.chars().take(200).collect(), reason }
    }
}

/// Marks entries whose name may have addresses of this machine and of private networks.
pub const PRIVATE: &str = "private:";

impl FromStr for HostGrant {
    type Err = HostGrantError;

    fn from_str(text: &str) -> Result<Self, HostGrantError> {
        let refused = |reason| HostGrantError::new(text, reason);
        let (is_private, rest) = text.strip_prefix(PRIVATE).map_or((false, text), |rest| (true, rest));
        let HostParts { scheme, host, port } = HostParts::parse(rest).map_err(refused)?;
        let scheme = scheme.unwrap_or(Scheme::Https);
        let grant = Self { scheme, host, port: port.unwrap_or(scheme.default_port()), is_private };
        if let Some(address) = grant.address()
            && matches!(
                AddressClass::of(address),
                AddressClass::Unspecified | AddressClass::Multicast | AddressClass::Broadcast
            )
        {
            return Err(refused("it is the address of no host"));
        }
        Ok(grant)
    }
}

impl TryFrom<String> for HostGrant {
    type Error = HostGrantError;
    fn try_from(text: String) -> Result<Self, HostGrantError> {
        text.parse()
    }
}

impl fmt::Display for HostGrant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_private { PRIVATE } else { "" })?;
        if self.scheme == Scheme::Http {
            f.write_str("http://")?;
        }
        self.host.fmt(f)?;
        if self.port == self.scheme.default_port() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

impl HostGrant {
    /// Whether this target is meant.
    pub fn matches(&self, target: &Target) -> bool {
        self.scheme == target.scheme && self.port == target.port && self.host.matches(&target.host)
    }

    /// How it may be called.
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Whose.
    pub const fn host(&self) -> &HostPattern {
        &self.host
    }

    /// At which port.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// The address, where the grant is one.
    pub fn address(&self) -> Option<IpAddr> {
        match &self.host {
            HostPattern::Exactly(Host::Ipv4(address)) => Some(IpAddr::V4(*address)),
            HostPattern::Exactly(Host::Ipv6(address)) => Some(IpAddr::V6(*address)),
            _ => None,
        }
    }

    /// Which addresses the granted name may have.
    pub fn address_policy(&self) -> AddressPolicy {
        match &self.host {
            _ if self.is_private => AddressPolicy::Private,
            HostPattern::Exactly(Host::Domain(name)) if name == "localhost" => AddressPolicy::ThisMachine,
            _ => AddressPolicy::Public,
        }
    }
}

/// Of several grants for one target the one that allows most addresses.
pub fn find_grant<'a>(grants: &'a [HostGrant], target: &Target) -> Option<&'a HostGrant> {
    grants.iter().filter(|grant| grant.matches(target)).max_by_key(|grant| grant.address_policy())
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme.as_str(), self.host, self.port)
    }
}

#[cfg(test)]
mod tests;

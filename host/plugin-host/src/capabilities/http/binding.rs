//! Which hosts a secret may go to. Start at [`Binding`]; which hosts a plugin may call is `harmonia_egress::HostGrant`.

use std::str::FromStr;

use harmonia_egress::{HostGrant, HostGrantError, HostParts, HostPattern, PRIVATE, Scheme, Target};

/// A host that a secret is bound to; without scheme or port any granted one of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::capabilities) struct BoundHost {
    scheme: Option<Scheme>,
    host: HostPattern,
    port: Option<u16>,
}

impl FromStr for BoundHost {
    type Err = HostGrantError;

    fn from_str(text: &str) -> Result<Self, HostGrantError> {
        // The marker is about addresses, so it says nothing here; it is taken so that an entry can be copied.
        let rest = text.strip_prefix(PRIVATE).unwrap_or(text);
        let HostParts { scheme, host, port } =
            HostParts::parse(rest).map_err(|reason| HostGrantError::new(text, reason))?;
        Ok(Self { scheme, host, port })
    }
}

impl BoundHost {
    fn matches(&self, target: &Target) -> bool {
        self.scheme.is_none_or(|scheme| scheme == target.scheme)
            && self.port.is_none_or(|port| port == target.port)
            && self.host.matches(&target.host)
    }

    /// Everything at this one host that is granted; nothing for `*.`.
    pub(in crate::capabilities) fn targets(&self, grants: &[HostGrant]) -> Vec<Target> {
        let HostPattern::Exactly(host) = &self.host else { return Vec::new() };
        let within = grants.iter().filter(|grant| self.is_within(grant));
        within.map(|grant| Target { scheme: grant.scheme(), host: host.clone(), port: grant.port() }).collect()
    }

    /// Whether the grant allows something at this host.
    pub(in crate::capabilities) fn is_within(&self, grant: &HostGrant) -> bool {
        self.scheme.is_none_or(|scheme| scheme == grant.scheme())
            && self.port.is_none_or(|port| port == grant.port())
            && grant.host().covers(&self.host)
    }
}

/// Where a secret may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::capabilities) enum Binding {
    /// Wherever the plugin may go.
    Granted,
    /// To one of these.
    Hosts(Vec<BoundHost>),
    /// Back to where it came from.
    Target(Target),
}

impl Binding {
    pub(in crate::capabilities) fn allows(&self, target: &Target) -> bool {
        match self {
            Self::Granted => true,
            Self::Hosts(hosts) => hosts.iter().any(|host| host.matches(target)),
            Self::Target(own) => own == target,
        }
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;

    fn grant(text: &str) -> HostGrant {
        text.parse().expect("a grant")
    }

    fn target(url: &str) -> Target {
        Target::of(&Url::parse(url).expect("a URL")).expect("a target")
    }

    #[test]
    fn a_binding_is_narrower_than_a_grant() {
        let bound = |text: &str| text.parse::<BoundHost>().expect("a host");
        assert!(bound("a.example").matches(&target("http://a.example:3000/")), "no scheme and port: any granted one");
        assert!(!bound("a.example:443").matches(&target("https://a.example:3000/")));
        assert!(!bound("https://a.example").matches(&target("http://a.example/")));
        assert!(bound("b.a.example").is_within(&grant("*.a.example")));
        assert!(bound("*.b.example.org").is_within(&grant("*.example.org")));
        assert!(!bound("*.example.org").is_within(&grant("a.example.org")));
        assert!(!bound("a.example:1").is_within(&grant("a.example:2")));
        assert!("a/b".parse::<BoundHost>().is_err());
    }
}

//! From a target to a connection: names are resolved here, judged here, and what was judged is what is connected to. Start
//! at [`Session::reach`].

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::TcpStream;
use url::Host;

use super::{Session, Way};
use crate::address::AddressClass;
use crate::grant::Target;
use crate::rules::Refusal;

/// Why a target was not reached.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// It must not be.
    #[error(transparent)]
    Refused(Refusal),
    /// The name has no address.
    #[error("the name {name} could not be resolved")]
    Name {
        /// Which.
        name: String,
        /// What the resolver said.
        #[source]
        cause: io::Error,
    },
    /// It takes no connection.
    #[error("{target} takes no connection")]
    Connect {
        /// Which.
        target: Target,
        /// The operating system's error, of the last address.
        #[source]
        cause: io::Error,
    },
    /// It took too long.
    #[error("{target} took no connection within {seconds} s")]
    Timeout {
        /// Which.
        target: Target,
        /// The bound.
        seconds: u64,
    },
}

impl Session {
    /// Connects to a target, if that may be.
    pub async fn reach(&self, target: &Target) -> Result<TcpStream, TargetError> {
        self.way.reach(target).await
    }

    /// Whether a target that has these addresses may be reached.
    pub fn judge(&self, target: &Target, addresses: &[IpAddr]) -> Result<(), Refusal> {
        self.way.rules.judge(target, addresses)
    }
}

impl Way {
    /// Connects; what is refused is noted.
    pub(super) async fn reach(&self, target: &Target) -> Result<TcpStream, TargetError> {
        let most = self.limits.connect_time_max;
        let outcome = tokio::time::timeout(most, self.connect(target)).await;
        let outcome =
            outcome.unwrap_or_else(|_| Err(TargetError::Timeout { target: target.clone(), seconds: most.as_secs() }));
        if let Err(TargetError::Refused(refusal)) = &outcome {
            self.note(refusal);
        }
        outcome
    }

    async fn connect(&self, target: &Target) -> Result<TcpStream, TargetError> {
        let addresses = self.addresses(target).await?;
        self.rules.judge(target, &addresses).map_err(TargetError::Refused)?;
        let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
        for address in addresses {
            match TcpStream::connect(SocketAddr::new(address, target.port)).await {
                Ok(stream) => {
                    self.check_is_elsewhere(target, &stream).map_err(TargetError::Refused)?;
                    // Small messages go back and forth (TLS); each waits for nothing.
                    drop(stream.set_nodelay(true));
                    return Ok(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(TargetError::Connect { target: target.clone(), cause: last })
    }

    async fn addresses(&self, target: &Target) -> Result<Vec<IpAddr>, TargetError> {
        match &target.host {
            Host::Ipv4(address) => Ok(vec![IpAddr::V4(*address)]),
            Host::Ipv6(address) => Ok(vec![IpAddr::V6(*address)]),
            Host::Domain(name) => {
                let failed = |cause| TargetError::Name { name: name.clone(), cause };
                let addresses = self.resolver.resolve(name.clone()).await.map_err(failed)?;
                if addresses.is_empty() {
                    return Err(failed(io::Error::new(io::ErrorKind::NotFound, "it has no address")));
                }
                Ok(addresses)
            }
        }
    }

    /// A public address may be this machine's own, behind whose firewall we are: then both ends are the same. Nothing has
    /// been sent yet.
    fn check_is_elsewhere(&self, target: &Target, stream: &TcpStream) -> Result<(), Refusal> {
        let (Ok(own), Ok(other)) = (stream.local_addr(), stream.peer_addr()) else { return Ok(()) };
        self.rules.judge_as(target, other.ip(), class_seen(own.ip(), other.ip()))
    }
}

/// What an address turned out to be for, once we are connected to it from `own`.
fn class_seen(own: IpAddr, other: IpAddr) -> AddressClass {
    match AddressClass::of(other) {
        AddressClass::Public if own == other => AddressClass::Loopback,
        class => class,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::EgressRules;

    #[test]
    fn a_public_address_of_this_machine_is_this_machine() {
        let (own, other): (IpAddr, IpAddr) = (IpAddr::from([8, 8, 8, 8]), IpAddr::from([8, 8, 4, 4]));
        let target = Target::of(&"https://ci.example/".parse().expect("a URL")).expect("a target");
        let judge = |listed: &[&str], own| {
            let allowed = listed.iter().map(|text| text.parse().expect("a grant")).collect();
            let rules = EgressRules { allowed, setting: "eval.allow_hosts" };
            rules.judge_as(&target, IpAddr::from([8, 8, 8, 8]), class_seen(own, IpAddr::from([8, 8, 8, 8])))
        };
        judge(&[], other).expect("another machine");
        let refused = judge(&[], own).expect_err("this machine");
        assert!(refused.to_string().contains("(this machine)"), "{refused}");
        judge(&["private:ci.example"], own).expect("listed");
        judge(&["8.8.8.8/32"], own).expect("listed");
    }
}

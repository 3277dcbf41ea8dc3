//! The addresses of names, as the HTTP client of plugins asks for them. Start at [`CheckedResolver`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use harmonia_egress::{AddressClass, AddressPolicy, AddressRefused, Resolver};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

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
    use std::net::IpAddr;

    use harmonia_egress::ResolverFuture;

    use super::*;

    /// Answers what it is told to.
    struct Scripted(Vec<&'static str>);

    impl Resolver for Scripted {
        fn resolve(&self, _: String) -> ResolverFuture<'_> {
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

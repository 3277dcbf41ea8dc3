//! Names to addresses. Start at [`Resolver`].

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;

/// All addresses of a name, when they are known.
pub type ResolverFuture<'a> = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send + 'a>>;

/// Names to addresses.
pub trait Resolver: Send + Sync + 'static {
    /// All addresses of a name.
    fn resolve(&self, name: String) -> ResolverFuture<'_>;
}

/// As the operating system resolves.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&self, name: String) -> ResolverFuture<'_> {
        Box::pin(
            async move { Ok(tokio::net::lookup_host((name.as_str(), 0)).await?.map(|address| address.ip()).collect()) },
        )
    }
}

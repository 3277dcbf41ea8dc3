//! The HTTP client of all plugins: no proxies, no redirects, no cookies, no decompression, and only addresses that were
//! checked. Start at [`HttpClient`].

use std::sync::Arc;
use std::time::Duration;

use harmonia_egress::{AddressPolicy, Resolver, SystemResolver};

use super::address::CheckedResolver;

/// What a client is made of.
#[derive(Clone)]
pub struct HttpClientOptions {
    /// Names to addresses.
    pub resolver: Arc<dyn Resolver>,
    /// PEM certificates of authorities that are trusted beside those of the operating system (forges with a private one).
    pub extra_roots_pem: Vec<u8>,
}

impl Default for HttpClientOptions {
    fn default() -> Self {
        Self { resolver: Arc::new(SystemResolver), extra_roots_pem: Vec::new() }
    }
}

/// There is no client.
#[derive(Debug, thiserror::Error)]
pub enum HttpClientError {
    /// The extra authorities are no PEM certificates.
    #[error("the additional certificate authorities for plugins cannot be read as PEM certificates")]
    Roots(#[source] reqwest::Error),
    /// TLS cannot be set up.
    #[error("no HTTP client for plugins can be made")]
    Client(#[source] reqwest::Error),
}

/// Sends requests to addresses that a policy allows. Cheap to clone; connections are shared.
#[derive(Clone)]
pub struct HttpClient {
    public: reqwest::Client,
    this_machine: reqwest::Client,
    private: reqwest::Client,
}

/// How long a connection waits for its next request.
const IDLE: Duration = Duration::from_mins(1);
/// Connections that wait, for each host.
const IDLE_CONNECTIONS_MAX: usize = 8;

impl HttpClient {
    /// Makes a client; reads the operating system's certificate authorities.
    pub fn new(options: &HttpClientOptions) -> Result<Self, HttpClientError> {
        let roots = reqwest::Certificate::from_pem_bundle(&options.extra_roots_pem).map_err(HttpClientError::Roots)?;
        // One client a policy, because a resolver is told the name and nothing else.
        let client = |policy| {
            let resolver = CheckedResolver { resolver: Arc::clone(&options.resolver), policy };
            reqwest::Client::builder()
                .dns_resolver(Arc::new(resolver))
                .tls_certs_merge(roots.clone())
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                .no_proxy()
                .referer(false)
                .no_gzip()
                .no_brotli()
                .no_zstd()
                .no_deflate()
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
                .build()
                .map_err(HttpClientError::Client)
        };
        Ok(Self {
            public: client(AddressPolicy::Public)?,
            this_machine: client(AddressPolicy::ThisMachine)?,
            private: client(AddressPolicy::Private)?,
        })
    }

    pub(super) fn for_policy(&self, policy: AddressPolicy) -> &reqwest::Client {
        match policy {
            AddressPolicy::Public => &self.public,
            AddressPolicy::ThisMachine => &self.this_machine,
            AddressPolicy::Private => &self.private,
        }
    }
}

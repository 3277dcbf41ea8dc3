//! The HTTP client with which this node reaches others: signers, frontends, caches.

use std::path::Path;
use std::time::Duration;

use url::Url;

use crate::config::Config;
use crate::exit::{Failure, chain};

/// Shorter than our listeners wait for the next request (`http.head_timeout`): a call must not meet a connection that is about
/// to be closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(20);

/// Trusts the system's authorities, and those in `http.ca_file`.
pub(super) fn client(config: &Config) -> Result<reqwest::Client, Failure> {
    let mut builder = reqwest::Client::builder()
        .connect_timeout(Duration::from_secs(10))
        .pool_idle_timeout(IDLE_TIMEOUT)
        .user_agent(concat!("harmonia-ci/", env!("CARGO_PKG_VERSION")));
    if let Some(path) = &config.http.ca_file {
        builder = builder.tls_certs_merge(authorities(path)?);
    }
    builder.build().map_err(|error| Failure::no_http(&error))
}

fn authorities(path: &Path) -> Result<Vec<reqwest::Certificate>, Failure> {
    let failed = |error: String| {
        Failure::usage(format!("http.ca_file ({}) cannot be used: {error}", path.display()))
            .hint("it holds certificates of authorities in PEM form, one after the other")
    };
    let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
    let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(chain(&error)))?;
    if certificates.is_empty() {
        return Err(failed("it holds no certificate".to_owned()));
    }
    Ok(certificates)
}

/// Says so when others are to send their claim tokens to this node in clear over a network.
pub(super) fn warn_of_clear_text(endpoint: &Url) {
    if is_clear_text(endpoint) {
        tracing::warn!(
            "Other nodes reach this one at {endpoint}, without TLS: claim tokens and clone credentials travel in clear. Give \
             node.endpoint an https URL (a proxy ends TLS) unless the network is your own"
        );
    }
}

/// Whether what is sent there can be read on its way, off this machine.
fn is_clear_text(endpoint: &Url) -> bool {
    let is_local = match endpoint.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name == "localhost",
        None => true,
    };
    endpoint.scheme() == "http" && !is_local
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
    use tokio_rustls::rustls::pki_types::PrivateKeyDer;

    use super::*;
    use crate::node::plugins::tests::log;

    #[test]
    fn tokens_in_clear_over_a_network_are_warned_of() {
        for (endpoint, warns) in [
            ("http://10.1.2.3:8080/", true),
            ("http://[2001:db8::1]/", true),
            ("http://ci.example.org/", true),
            ("http://localhost.example.org/", true),
            ("https://ci.example.org/", false),
            ("http://127.0.0.1:8080/", false),
            ("http://127.9.9.9/", false),
            ("http://[::1]:8080/", false),
            ("http://localhost/", false),
        ] {
            let (log, _guard) = log();
            warn_of_clear_text(&endpoint.parse().expect("a URL"));
            let log = String::from_utf8(log.lock().expect("not poisoned").clone()).expect("text");
            assert_eq!(log.contains("travel in clear"), warns, "{endpoint}: {log}");
            assert!(!warns || log.contains("WARN") && log.contains(endpoint) && log.contains("node.endpoint"), "{log}");
        }
    }

    #[tokio::test]
    async fn an_https_endpoint_is_reached_with_the_authority_that_the_operator_names() {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().expect("a key");
        let names = vec!["127.0.0.1".to_owned()];
        let own = CertificateParams::new(names).expect("parameters").signed_by(&key, &issuer).expect("signed");
        let server = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![own.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).expect("a key"))
            .expect("a certificate");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://{}/", listener.local_addr().expect("an address"));
        let serving = tokio::spawn(async move {
            let acceptor = TlsAcceptor::from(Arc::new(server));
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let _ = stream.read(&mut [0; 1024]).await;
                let answer = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        });
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, pem).expect("written");
        let mut config = Config::default();
        let unknown = client(&config).expect("a client").get(&url).send().await;
        assert!(unknown.is_err(), "nobody vouches for it");
        config.http.ca_file = Some(path.clone());
        let answer = client(&config).expect("a client").get(&url).send().await.expect("trusted");
        assert_eq!(answer.text().await.expect("text"), "hello");
        std::fs::write(&path, "nothing").expect("written");
        assert!(client(&config).is_err(), "a file without certificates is told");
        serving.abort();
    }
}

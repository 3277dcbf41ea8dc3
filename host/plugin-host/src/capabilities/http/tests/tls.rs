//! Certificates are verified: chain, name and time.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;

use crate::capabilities::HttpError;
use crate::capabilities::testing::{Plan, Server, answer, get};

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "an authority of a test");
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    fn server(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Arc<ServerConfig> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("signed");
        let chain = vec![certificate.der().clone()];
        let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate");
        Arc::new(config)
    }
}

async fn call(server: &Server, roots_pem: &str) -> Result<Vec<u8>, HttpError> {
    let mut plan =
        Plan::hosts(&[&format!("private:forge.example:{}", server.port)]).name("forge.example", &["127.0.0.1"]);
    plan.roots_pem = roots_pem.as_bytes().to_vec();
    let url = format!("https://forge.example:{}/", server.port);
    plan.world().call().http_send(get(url)).await.map(|response| response.body)
}

#[tokio::test]
async fn only_good_certificates_are_trusted() {
    let (ours, other) = (Authority::new(), Authority::new());
    let hello = |_: &_| answer(200, "", "hello");
    let good = Server::tls(ours.server("forge.example", |_| {}), hello).await;
    assert_eq!(call(&good, &ours.pem).await.expect("trusted"), b"hello");
    let wrong_name = Server::tls(ours.server("other.example", |_| {}), hello).await;
    let expired = |params: &mut CertificateParams| params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let too_late = Server::tls(ours.server("forge.example", expired), hello).await;
    for (server, roots, what) in [
        (&good, "", "an unknown authority"),
        (&good, other.pem.as_str(), "another authority"),
        (&wrong_name, ours.pem.as_str(), "another name"),
        (&too_late, ours.pem.as_str(), "expired"),
    ] {
        let count = server.received().len();
        match call(server, roots).await {
            Err(HttpError::Unavailable(text)) => assert!(text.contains("forge.example"), "{what}: {text}"),
            other => panic!("{what}: {other:?}"),
        }
        assert_eq!(server.received().len(), count, "{what}");
    }
}

#[tokio::test]
async fn a_redirect_does_not_leave_tls() {
    let plain = Server::new(|_| answer(200, "", "plain")).await;
    let (authority, location) = (Authority::new(), format!("Location: {}\r\n", plain.url("/")));
    let secure = Server::tls(authority.server("forge.example", |_| {}), move |_| answer(302, &location, "")).await;
    let grant = format!("private:forge.example:{}", secure.port);
    let mut plan = Plan::hosts(&[&grant, &plain.grant()]).name("forge.example", &["127.0.0.1"]);
    plan.roots_pem = authority.pem.into_bytes();
    let world = plan.world();
    let mut call = world.call();
    call.http_send(get(plain.url("/"))).await.expect("granted by itself");
    match call.http_send(get(format!("https://forge.example:{}/", secure.port))).await {
        Err(HttpError::Denied(text)) => assert!(text.contains("from https to http"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!((secure.received().len(), plain.received().len()), (1, 1));
}

#[test]
fn roots_that_are_none_are_refused() {
    let options = crate::capabilities::HttpClientOptions {
        extra_roots_pem: b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n".to_vec(),
        ..Default::default()
    };
    assert!(crate::capabilities::HttpClient::new(&options).is_err());
}

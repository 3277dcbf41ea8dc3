//! Secrets as handles: what a guest can do with one is here, and nothing here gives it its bytes. Start at
//! [`SecretHandle`]; the operations are those of `interface secrets` in `wit/plugin`.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::{hmac, rand, signature};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use harmonia_core::{SecretText, Timestamp};
use harmonia_egress::Target;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use super::http::{Binding, BoundHost};
use super::redact::{MARK, SECRET_BYTES_MIN};
use super::{CallState, Shared};
use crate::stamp::Stamp;

/// Longest life of a derived token.
const DERIVED_LIFETIME_S_MAX: u32 = 3600;
/// Longest time for which a secret is kept.
const KEPT_LIFETIME_S_MAX: u32 = 86_400;
/// Longest name under which a secret is kept.
pub(super) const KEPT_NAME_BYTES_MAX: usize = 256;

/// Why a secret could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SecretError {
    /// No such grant; the text names it.
    #[error("{0}")]
    NotGranted(String),
    /// It cannot be read, or is not of the kind that the operation needs.
    #[error("{0}")]
    Unusable(String),
    /// Its time is over.
    #[error("the secret has expired")]
    Expired,
    /// A bound is reached; the text names it.
    #[error("{0}")]
    Limit(String),
}

/// A secret that somebody may use. Cheap to clone; its bytes are wiped when the last clone is gone.
#[derive(Clone)]
#[expect(unreachable_pub, reason = "the bindings of the contract re-export the type behind `resource secret`")]
pub struct SecretHandle(Arc<Secret>);

struct Secret {
    origin: Origin,
    bytes: Zeroizing<Vec<u8>>,
    /// All of them must allow a target.
    bindings: Vec<Binding>,
    expires_at: Option<Timestamp>,
    key: OnceLock<Result<KeyPair, &'static str>>,
}

/// Where a secret comes from.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// The configuration, under this name.
    Granted(String),
    /// An answer.
    Captured,
    /// Another secret.
    Derived,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted(name) => write!(f, "the secret `{name}`"),
            Self::Captured => f.write_str("the captured secret"),
            Self::Derived => f.write_str("the derived secret"),
        }
    }
}

impl fmt::Debug for SecretHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MARK)
    }
}

impl SecretHandle {
    /// A secret of these bytes; the text says why they are none.
    pub(super) fn new(
        origin: Origin,
        bytes: Zeroizing<Vec<u8>>,
        bindings: Vec<Binding>,
        expires_at: Option<Timestamp>,
    ) -> Result<Self, &'static str> {
        if bytes.len() < SECRET_BYTES_MIN {
            return Err("is shorter than 4 bytes, too short to be kept secret");
        }
        // It could not be replaced by something without it.
        if MARK.as_bytes().windows(bytes.len()).any(|window| window == &**bytes) {
            return Err("is a part of `[secret]`, which stands for secrets in what is shown");
        }
        Ok(Self(Arc::new(Secret { origin, bytes, bindings, expires_at, key: OnceLock::new() })))
    }

    /// The bytes, for whoever sends or redacts them.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    pub(super) fn origin(&self) -> &Origin {
        &self.0.origin
    }

    pub(super) fn bindings(&self) -> &[Binding] {
        &self.0.bindings
    }

    /// Whether it may be sent there.
    pub(super) fn may_go_to(&self, target: &Target) -> bool {
        self.0.bindings.iter().all(|binding| binding.allows(target))
    }

    pub(super) fn is_expired(&self, now: Timestamp) -> bool {
        self.0.expires_at.is_some_and(|at| at <= now)
    }

    pub(super) fn expires_at(&self) -> Option<Timestamp> {
        self.0.expires_at
    }

    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A copy with a life of its own.
    fn until(&self, expires_at: Timestamp) -> Self {
        let expires_at = self.0.expires_at.map_or(expires_at, |own| own.min(expires_at));
        Self(Arc::new(Secret {
            origin: self.0.origin.clone(),
            bytes: self.0.bytes.clone(),
            bindings: self.0.bindings.clone(),
            expires_at: Some(expires_at),
            key: OnceLock::new(),
        }))
    }

    fn sign_rs256(&self, data: &[u8]) -> Result<Vec<u8>, SecretError> {
        let key = self.0.key.get_or_init(|| rsa_key(self.bytes())).as_ref();
        let key = key.map_err(|reason| SecretError::Unusable(format!("{} {reason}", self.0.origin)))?;
        let mut signature = vec![0; key.public_modulus_len()];
        key.sign(&signature::RSA_PKCS1_SHA256, &rand::SystemRandom::new(), data, &mut signature)
            .map_err(|_| SecretError::Unusable(format!("{} does not sign", self.0.origin)))?;
        Ok(signature)
    }
}

/// Reads a PEM of PKCS#1 (`RSA PRIVATE KEY`) or PKCS#8 (`PRIVATE KEY`).
fn rsa_key(pem: &[u8]) -> Result<KeyPair, &'static str> {
    const REJECTED: &str = "is no RSA private key of 2048 to 8192 bits";
    match PrivateKeyDer::from_pem_slice(pem) {
        Ok(PrivateKeyDer::Pkcs1(key)) => KeyPair::from_der(key.secret_pkcs1_der()).map_err(|_| REJECTED),
        Ok(PrivateKeyDer::Pkcs8(key)) => KeyPair::from_pkcs8(key.secret_pkcs8_der()).map_err(|_| REJECTED),
        Ok(_) => Err(REJECTED),
        Err(_) => Err("is no PEM private key (PKCS#1 or PKCS#8)"),
    }
}

/// Reads a secret's file; the text says why not.
fn read(path: &Path, bytes_max: u64) -> Result<Zeroizing<Vec<u8>>, String> {
    let shown = path.display();
    let failed = |cause: std::io::Error| format!("its file {shown} cannot be read: {cause}");
    // A pipe would make us wait for whoever writes to it.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(format!("{shown} is no file"));
    }
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(usize::try_from(bytes_max).unwrap_or_default().min(4096)));
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("its file {shown} is larger than {bytes_max} bytes"));
    }
    while bytes.last().is_some_and(|last| matches!(last, b'\n' | b'\r')) {
        bytes.pop();
    }
    Ok(bytes)
}

impl Shared {
    /// Why a secret of the configuration cannot be used now; `None` when it can.
    pub(crate) fn secret_problem(&self, name: &str) -> Option<String> {
        self.open_secret(name).err().map(|error| error.to_string())
    }

    /// Opens a secret of the configuration.
    fn open_secret(&self, name: &str) -> Result<SecretHandle, SecretError> {
        let grants = &self.grants;
        let Some(grant) = grants.secrets.get(name) else {
            let name: String = name.chars().take(100).collect();
            let key = grants.key(&format!("secrets.{name}"));
            return Err(SecretError::NotGranted(format!("the secret `{name}` is not granted: set {key}")));
        };
        let stamp = Stamp::of(&grant.file);
        if let Some(secret) = self.opened.fresh(name, stamp) {
            return Ok(secret);
        }
        let unusable = |reason: String| {
            let key = grants.key(&format!("secrets.{name}"));
            SecretError::Unusable(format!("the secret `{name}` cannot be used: {reason}; see {key}"))
        };
        let binding = match &grant.hosts {
            None => Binding::Granted,
            Some(hosts) => {
                let hosts: Result<Vec<BoundHost>, _> = hosts.iter().map(|host| host.parse()).collect();
                Binding::Hosts(hosts.map_err(|error| unusable(format!("in its `hosts`, {error}")))?)
            }
        };
        let bytes = read(&grant.file, grants.limits.secret_file_bytes).map_err(unusable)?;
        let origin = Origin::Granted(name.to_owned());
        let secret = SecretHandle::new(origin, bytes, vec![binding], None)
            .map_err(|reason| unusable(format!("what {} holds {reason}", grant.file.display())))?;
        Ok(self.opened.remember(name, secret, stamp))
    }
}

impl CallState {
    /// Opens a secret of the plugin's configuration.
    pub(crate) fn open_secret(&mut self, name: &str) -> Result<SecretHandle, SecretError> {
        let secret = self.shared.open_secret(name).inspect_err(|error| {
            self.unusable_secret.get_or_insert_with(|| error.to_string());
        })?;
        self.know(&secret)?;
        Ok(secret)
    }

    /// Whether `mac` is the HMAC-SHA256 of `data` under the secret. Takes as long for every wrong one.
    pub(crate) fn verify_hmac_sha256(&self, secret: &SecretHandle, data: &[u8], mac: &[u8]) -> bool {
        if secret.is_expired(self.shared.clock.now()) || mac.len() != 32 {
            return false;
        }
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.bytes());
        hmac::verify(&key, data, mac).is_ok()
    }

    /// RSASSA-PKCS1-v1_5 signature with SHA-256.
    pub(crate) fn sign_rs256(&self, secret: &SecretHandle, data: &[u8]) -> Result<Vec<u8>, SecretError> {
        self.check_alive(secret)?;
        self.check_limit("sign_bytes", "bytes to sign", data.len(), self.limits().sign_bytes)?;
        secret.sign_rs256(data)
    }

    /// A JSON Web Token as a new secret, bound like its key.
    pub(crate) fn derive_jwt_rs256(
        &mut self,
        secret: &SecretHandle,
        claims: &str,
        lifetime_s: u32,
    ) -> Result<SecretHandle, SecretError> {
        self.check_alive(secret)?;
        self.check_limit("claims_bytes", "bytes of claims", claims.len(), self.limits().claims_bytes)?;
        let expires_at = self.after(lifetime_s, DERIVED_LIFETIME_S_MAX)?;
        if serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(claims).is_err() {
            return Err(SecretError::Unusable("the claims are no JSON object".to_owned()));
        }
        let mut token = Zeroizing::new(URL_SAFE_NO_PAD.encode(br#"{"alg":"RS256","typ":"JWT"}"#));
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(claims));
        let signature = secret.sign_rs256(token.as_bytes())?;
        token.push('.');
        token.push_str(&URL_SAFE_NO_PAD.encode(signature));
        let bytes = Zeroizing::new(token.as_bytes().to_vec());
        let token = SecretHandle::new(Origin::Derived, bytes, secret.bindings().to_vec(), Some(expires_at))
            .map_err(|reason| SecretError::Unusable(format!("the token {reason}")))?;
        self.know(&token)?;
        Ok(token)
    }

    /// Keeps a captured or derived secret for later calls on this node.
    pub(crate) fn keep(&mut self, secret: &SecretHandle, name: &str, lifetime_s: u32) -> Result<(), SecretError> {
        self.check_alive(secret)?;
        if let Origin::Granted(granted) = secret.origin() {
            let text = format!("the secret `{granted}` is granted and need not be kept: open it again");
            return Err(SecretError::Unusable(text));
        }
        self.check_limit("", "bytes of a name", name.len(), KEPT_NAME_BYTES_MAX)?;
        let expires_at = self.after(lifetime_s, KEPT_LIFETIME_S_MAX)?;
        self.shared.kept.put(name, secret.until(expires_at), self.shared.clock.now(), self.limits().kept_secrets);
        self.fetching.take_if(|fetching| fetching.is_for(name));
        Ok(())
    }

    /// The secret itself, for the host's own use: a clone credential that goes to git. `Unusable`: it is no text.
    pub(crate) fn expose(&self, secret: &SecretHandle) -> Result<SecretText, SecretError> {
        self.check_alive(secret)?;
        let text = std::str::from_utf8(secret.bytes())
            .map_err(|_| SecretError::Unusable(format!("{} is no text", secret.origin())))?;
        Ok(SecretText::new(text.to_owned()))
    }

    /// Whether a secret that the host exposes may go to all of these hosts (as in a secret's `hosts`: without scheme or port,
    /// wherever `allow_hosts` has this host). An empty list is refused.
    pub(crate) fn check_hosts(&self, secret: &SecretHandle, hosts: &[String]) -> Result<(), SecretError> {
        if hosts.is_empty() {
            return Err(SecretError::Unusable("the plugin names no host for the secret".to_owned()));
        }
        for text in hosts {
            let host: BoundHost = text.parse().map_err(|error| SecretError::Unusable(format!("{error}")))?;
            let targets = host.targets(&self.shared.grants.allow_hosts);
            if targets.is_empty() {
                let key = self.shared.grants.key("allow_hosts");
                return Err(SecretError::NotGranted(format!("`{text}` is not granted: add it to {key}")));
            }
            if let Some(target) = targets.iter().find(|target| !secret.may_go_to(target)) {
                return Err(SecretError::NotGranted(self.shared.unbound(secret, target)));
            }
        }
        Ok(())
    }

    fn check_alive(&self, secret: &SecretHandle) -> Result<(), SecretError> {
        if secret.is_expired(self.shared.clock.now()) { Err(SecretError::Expired) } else { Ok(()) }
    }

    fn check_limit(&self, name: &str, what: &str, is: usize, most: usize) -> Result<(), SecretError> {
        if is <= most {
            return Ok(());
        }
        let key = if name.is_empty() { String::new() } else { format!(": {}", self.shared.grants.limit(name)) };
        Err(SecretError::Limit(format!("{is} {what}, at most {most}{key}")))
    }

    fn after(&self, lifetime_s: u32, most: u32) -> Result<Timestamp, SecretError> {
        if !(1..=most).contains(&lifetime_s) {
            return Err(SecretError::Limit(format!("a lifetime of {lifetime_s} s is not between 1 and {most} s")));
        }
        Ok(self.shared.clock.now() + Duration::from_secs(lifetime_s.into()))
    }
}

#[cfg(test)]
mod tests;

//! What a plugin may do outside its sandbox, as plain Rust: the functions of `wit/plugin`, without WebAssembly.
//!
//! Start reading at [`CallState`]: one a call, with what the call has used; behind it [`Shared`], one a plugin, with what
//! it was granted ([`Grants`]) and what lives across calls. Everything is refused unless granted, and a refusal names the
//! key of the configuration that would grant it.
//!
//! No function here gives a guest the bytes of a secret: see `secrets` (handles), `http` (which sends them) and `redact`
//! (which finds them in what comes back).

mod grants;
mod http;
mod kept;
mod kv;
mod limits;
mod log;
mod redact;
mod secrets;
#[cfg(test)]
mod testing;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use harmonia_core::Clock;
use harmonia_core::ports::PluginStore;
use zeroize::Zeroizing;

pub use grants::{Grants, SecretGrant};
pub use http::{HttpClient, HttpClientError, HttpClientOptions};
pub use limits::CapabilityLimits;

pub(crate) use http::{Auth, Capture, Header, HttpError, HttpRequest, Method, Place};
pub(crate) use log::{LAST_WORDS_BYTES_MAX, Level};
pub(crate) use secrets::SecretError;
#[expect(unreachable_pub, reason = "the bindings of the contract re-export the type behind `resource secret`")]
pub use secrets::SecretHandle;

use crate::stamp::Stamp;
use redact::Redactor;

/// What lives as long as a plugin is loaded.
pub(crate) struct Shared {
    grants: Grants,
    store: Arc<dyn PluginStore>,
    clock: Arc<dyn Clock>,
    client: HttpClient,
    /// Granted secrets as they were last read: searched for in whatever comes back to any call.
    opened: Opened,
    /// Captured and derived secrets that a call kept.
    kept: kept::Kept,
    held_back: http::HeldBack,
    line_rate: log::LineRate,
}

impl Shared {
    /// For a plugin with these grants.
    pub(crate) fn new(
        grants: Grants,
        store: Arc<dyn PluginStore>,
        clock: Arc<dyn Clock>,
        http: HttpClient,
    ) -> Arc<Self> {
        Arc::new(Self {
            grants,
            store,
            clock,
            client: http,
            opened: Opened::default(),
            kept: kept::Kept::default(),
            held_back: http::HeldBack::default(),
            line_rate: log::LineRate::default(),
        })
    }
}

/// For so long a secret's file that looks as it did is not read again.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Granted secrets by name, as a list that changes seldom, and the files that they were read from.
#[derive(Default)]
struct Opened(Mutex<OpenedSecrets>);

#[derive(Default)]
struct OpenedSecrets {
    secrets: Arc<BTreeMap<String, SecretHandle>>,
    files: HashMap<String, (Stamp, Instant)>,
}

impl Opened {
    /// A secret whose file was read a moment ago and is the same since. Not only the same: one that is written twice within
    /// the file system's measure of time may look it.
    fn fresh(&self, name: &str, stamp: Option<Stamp>) -> Option<SecretHandle> {
        let opened = self.lock();
        let (read, at) = opened.files.get(name)?;
        (Some(*read) == stamp && at.elapsed() < READ_AGAIN_AFTER).then(|| opened.secrets.get(name).cloned())?
    }

    /// Takes a secret that was read; gives the one that is there already when nothing changed.
    fn remember(&self, name: &str, secret: SecretHandle, stamp: Option<Stamp>) -> SecretHandle {
        let mut opened = self.lock();
        if let Some(stamp) = stamp {
            opened.files.insert(name.to_owned(), (stamp, Instant::now()));
        }
        if let Some(known) = opened.secrets.get(name).filter(|known| known.bytes() == secret.bytes()) {
            return known.clone();
        }
        Arc::make_mut(&mut opened.secrets).insert(name.to_owned(), secret.clone());
        secret
    }

    fn all(&self) -> Arc<BTreeMap<String, SecretHandle>> {
        Arc::clone(&self.lock().secrets)
    }

    fn lock(&self) -> MutexGuard<'_, OpenedSecrets> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one call of a plugin may still do, and the secrets that it has in hand.
pub(crate) struct CallState {
    shared: Arc<Shared>,
    network: bool,
    /// Every secret that this call opened, captured or derived.
    secrets: Vec<SecretHandle>,
    /// Texts with secrets in them that were sent as they are.
    sent: Vec<Zeroizing<String>>,
    redactor: Mutex<Option<CachedRedactor>>,
    requests: u32,
    response_bytes: usize,
    lines: u32,
    lines_dropped: u64,
    /// The last line at level error, as the guest wrote it.
    last_words: String,
    kv_operations: u32,
    /// Why a secret of the configuration could not be opened: what the guest says then is no fault of who called.
    unusable_secret: Option<String>,
    /// What this call is expected to keep.
    fetching: Option<kept::Fetching>,
}

/// A redactor, and what it was made from.
struct CachedRedactor {
    redactor: Arc<Redactor>,
    secrets: usize,
    sent: usize,
    opened: Arc<BTreeMap<String, SecretHandle>>,
}

impl CallState {
    /// At the beginning of a call. `network`: whether it may send requests.
    pub(crate) fn new(shared: Arc<Shared>, network: bool) -> Self {
        Self {
            shared,
            network,
            secrets: Vec::new(),
            sent: Vec::new(),
            redactor: Mutex::new(None),
            requests: 0,
            response_bytes: 0,
            lines: 0,
            lines_dropped: 0,
            last_words: String::new(),
            kv_operations: 0,
            unusable_secret: None,
            fetching: None,
        }
    }

    /// Milliseconds since 1970-01-01 00:00:00 UTC.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.shared.clock.now().unix_timestamp_nanos() / 1_000_000).unwrap_or_default()
    }

    /// Why a secret of the configuration could not be opened in this call.
    pub(crate) fn unusable_secret(&self) -> Option<&str> {
        self.unusable_secret.as_deref()
    }

    /// A setting of the configuration.
    pub(crate) fn setting(&self, name: &str) -> Option<String> {
        self.shared.grants.settings.get(name).cloned()
    }

    /// The text without any secret that this call has in hand or that the plugin ever opened.
    pub(crate) fn redact(&self, text: &str) -> String {
        self.redactor().text(text)
    }

    fn limits(&self) -> &CapabilityLimits {
        &self.shared.grants.limits
    }

    /// Notes a secret, so that it is searched for from now on.
    fn know(&mut self, secret: &SecretHandle) -> Result<(), SecretError> {
        if self.secrets.iter().any(|known| known.is(secret)) {
            return Ok(());
        }
        let most = self.limits().secrets_per_call;
        if self.secrets.len() >= most {
            let key = self.shared.grants.limit("secrets_per_call");
            return Err(SecretError::Limit(format!("more than {most} secrets in one call: {key}")));
        }
        self.secrets.push(secret.clone());
        Ok(())
    }

    fn redactor(&self) -> Arc<Redactor> {
        let opened = self.shared.opened.all();
        let mut cached = self.redactor.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = cached.as_ref()
            && cached.secrets == self.secrets.len()
            && cached.sent == self.sent.len()
            && Arc::ptr_eq(&cached.opened, &opened)
        {
            return Arc::clone(&cached.redactor);
        }
        let secrets = self.secrets.iter().chain(opened.values()).map(SecretHandle::bytes);
        let redactor = Arc::new(Redactor::new(secrets, self.sent.iter().map(|text| text.as_bytes())));
        *cached = Some(CachedRedactor {
            redactor: Arc::clone(&redactor),
            secrets: self.secrets.len(),
            sent: self.sent.len(),
            opened,
        });
        redactor
    }
}

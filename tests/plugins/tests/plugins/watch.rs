//! Looks for secrets wherever they must not be: what is logged, what is stored, what is answered. Start at [`Watch`].

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use harmonia_core::Clock;
use harmonia_core::ports::{PluginStore, PluginStoreError, PortFuture, StoredValue, WriteCondition};
use harmonia_plugin_host::MemoryStore;

/// Everything that this process logs, at every level.
fn log() -> &'static Arc<Mutex<Vec<u8>>> {
    static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    LOG.get_or_init(|| {
        let log = Arc::new(Mutex::new(Vec::new()));
        let writer = Writer(Arc::clone(&log));
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::set_global_default(subscriber).expect("nobody else logs in this process");
        log
    })
}

#[derive(Clone)]
struct Writer(Arc<Mutex<Vec<u8>>>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What a plugin wrote, and what came out of it.
pub(crate) struct Watch {
    store: MemoryStore,
    written: Mutex<Vec<String>>,
    said: Mutex<Vec<String>>,
}

impl Watch {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        log();
        Arc::new(Self { store: MemoryStore::new(clock), written: Mutex::default(), said: Mutex::default() })
    }

    /// Remembers an answer.
    pub(crate) fn said<T: std::fmt::Debug>(&self, answer: T) -> T {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{answer:?}"));
        answer
    }

    /// What was logged until now.
    pub(crate) fn logged() -> String {
        String::from_utf8_lossy(&log().lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Fails when one of these was anywhere, plain or as the password of basic authentication.
    pub(crate) fn assert_unseen(&self, secrets: &[String]) {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner).join("\n");
        let logged = Self::logged();
        assert!(!logged.is_empty() && !said.is_empty(), "nothing was watched");
        for secret in secrets {
            for form in [secret.clone(), STANDARD.encode(secret)] {
                for (place, text) in [("the store", &written), ("answers", &said), ("the log", &logged)] {
                    if let Some(at) = text.find(&form) {
                        let near: String =
                            text[..at].chars().rev().take(200).collect::<Vec<_>>().iter().rev().collect();
                        panic!("a secret is in {place}, behind: {near}");
                    }
                }
            }
        }
    }
}

impl PluginStore for Watch {
    fn get(&self, plugin: String, key: String) -> PortFuture<'_, Result<Option<StoredValue>, PluginStoreError>> {
        self.store.get(plugin, key)
    }

    fn set(
        &self,
        plugin: String,
        key: String,
        value: Vec<u8>,
        lifetime: Option<Duration>,
        condition: WriteCondition,
    ) -> PortFuture<'_, Result<u64, PluginStoreError>> {
        let line = format!("{plugin} {key} {}", String::from_utf8_lossy(&value));
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        self.store.set(plugin, key, value, lifetime, condition)
    }

    fn delete(&self, plugin: String, key: String) -> PortFuture<'_, Result<(), PluginStoreError>> {
        self.store.delete(plugin, key)
    }
}

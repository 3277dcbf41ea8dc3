//! Guests and the small store: conflicts, bounds, and each its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harmonia_core::forge::ForgeError;
use harmonia_core::ports::{PluginStore, PluginStoreError, PortFuture, StoredValue, WriteCondition};
use harmonia_hostile_tests::{World, ask};
use harmonia_plugin_host::{HttpClientOptions, PluginSpec, TICK_MS};

/// A store in which somebody else writes the key after the first read of it.
struct Busy {
    inner: Arc<dyn PluginStore>,
    was_read: AtomicBool,
}

impl PluginStore for Busy {
    fn get(&self, plugin: String, key: String) -> PortFuture<'_, Result<Option<StoredValue>, PluginStoreError>> {
        Box::pin(async move {
            let found = self.inner.get(plugin.clone(), key.clone()).await;
            if !self.was_read.swap(true, Ordering::SeqCst) {
                self.inner.set(plugin, key, b"41".to_vec(), None, WriteCondition::Always).await?;
            }
            found
        })
    }

    fn set(
        &self,
        plugin: String,
        key: String,
        value: Vec<u8>,
        lifetime: Option<Duration>,
        condition: WriteCondition,
    ) -> PortFuture<'_, Result<u64, PluginStoreError>> {
        self.inner.set(plugin, key, value, lifetime, condition)
    }

    fn delete(&self, plugin: String, key: String) -> PortFuture<'_, Result<(), PluginStoreError>> {
        self.inner.delete(plugin, key)
    }
}

#[tokio::test]
async fn a_write_between_read_and_write_is_noticed() {
    let world =
        World::with(HttpClientOptions::default(), |inner| Arc::new(Busy { inner, was_read: AtomicBool::new(false) }));
    world.load(vec![world.guest("stores")]).await;
    let error = world.ask("stores", "counter").await.expect_err("somebody else wrote");
    assert!(matches!(&error, ForgeError::Unavailable(text) if text.contains("wrote the same key")), "{error:?}");
    assert_eq!(world.answer("stores", "counter").await, "42", "what the other wrote is not lost");
    assert_eq!(world.status("stores").failures, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_is_lost_among_many() {
    let world = World::new();
    world.load(vec![world.guest("stores")]).await;
    let calls: Vec<_> = (0..40)
        .map(|_| {
            let forge = world.forge("stores");
            tokio::spawn(async move { ask(&*forge, "counter").await })
        })
        .collect();
    let mut written = 0;
    for call in calls {
        match call.await.expect("no panic") {
            Ok(_) => written += 1,
            Err(error) => assert!(matches!(error, ForgeError::Unavailable(_)), "{error:?}"),
        }
    }
    assert!(written > 0);
    assert_eq!(world.answer("stores", "counter").await, (written + 1).to_string());
}

#[tokio::test]
async fn instances_of_one_component_do_not_see_each_others_keys() {
    let world = World::new();
    let other = PluginSpec { name: "other".to_owned(), ..world.guest("stores") };
    world.load(vec![world.guest("stores"), other]).await;
    for count in 1..=3 {
        assert_eq!(world.answer("stores", "key").await, count.to_string());
    }
    assert_eq!(world.answer("other", "key").await, "1");
    for key in ["../stores/key", "stores/key", "stores\u{1f}key"] {
        assert_eq!(world.answer("other", key).await, "1", "{key}");
    }
}

#[tokio::test]
async fn writes_without_end_meet_their_number() {
    let world = World::new();
    let mut spec = world.guest("stores_forever");
    // The store in memory looks through its keys at every write.
    spec.limits.call.cpu_ms_max = Some(10_000);
    world.load(vec![spec]).await;
    let text = world.answer("stores_forever", "").await;
    assert!(text.starts_with("500 "), "{text}");
    assert!(text.contains("`limits.kv_operations_per_call` of the plugin `stores_forever`"), "{text}");
}

/// A store that is slower than a tick.
struct Slow(Arc<dyn PluginStore>);

impl PluginStore for Slow {
    fn get(&self, plugin: String, key: String) -> PortFuture<'_, Result<Option<StoredValue>, PluginStoreError>> {
        self.0.get(plugin, key)
    }

    fn set(
        &self,
        plugin: String,
        key: String,
        value: Vec<u8>,
        lifetime: Option<Duration>,
        condition: WriteCondition,
    ) -> PortFuture<'_, Result<u64, PluginStoreError>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(2 * TICK_MS)).await;
            self.0.set(plugin, key, value, lifetime, condition).await
        })
    }

    fn delete(&self, plugin: String, key: String) -> PortFuture<'_, Result<(), PluginStoreError>> {
        self.0.delete(plugin, key)
    }
}

#[tokio::test]
async fn waiting_for_the_store_is_no_processor_time() {
    let world = World::with(HttpClientOptions::default(), |inner| Arc::new(Slow(inner)));
    let mut spec = world.guest("stores_forever");
    spec.limits.capabilities.kv_operations_per_call = 60;
    // Less than a tick for each.
    spec.limits.call.cpu_ms_max = Some(30 * TICK_MS);
    world.load(vec![spec]).await;
    let text = world.answer("stores_forever", "").await;
    assert!(text.starts_with("60 "), "{text}");
}

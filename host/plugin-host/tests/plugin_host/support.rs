//! Makes components out of text, and a host for them.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use harmonia_core::forge::WebhookRequest;
use harmonia_core::ports::PluginStore;
use harmonia_core::reporter::{Notification, NotificationKind};
use harmonia_core::{Clock, Timestamp};
use harmonia_plugin_host::{HostOptions, HttpClient, HttpClientOptions, MemoryStore, PluginHost, PluginSpec};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// A clock that tests move.
pub(crate) struct TestClock(Mutex<Timestamp>);

impl TestClock {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(time::macros::datetime!(2026-01-01 00:00 UTC))))
    }

    pub(crate) fn advance(&self, seconds: i64) {
        *self.0.lock().expect("no test panics with it") += time::Duration::seconds(seconds);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        *self.0.lock().expect("no test panics with it")
    }
}

/// A host with a folder of its own.
pub(crate) struct World {
    pub(crate) host: PluginHost,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) folder: tempfile::TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        let clock = TestClock::new();
        Self::made_of(clock.clone(), Arc::new(MemoryStore::new(clock)))
    }

    /// With a store of the test's own.
    pub(crate) fn with_store(store: Arc<dyn PluginStore>) -> Self {
        Self::made_of(TestClock::new(), store)
    }

    fn made_of(clock: Arc<TestClock>, store: Arc<dyn PluginStore>) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let host = PluginHost::new(HostOptions {
            cache_folder: folder.path().join("cache"),
            scratch_folder: folder.path().join("scratch"),
            store,
            clock: clock.clone(),
            http: HttpClient::new(&HttpClientOptions::default()).expect("a client"),
        })
        .expect("starts");
        Self { host, clock, folder }
    }

    /// Writes a component into the folder.
    pub(crate) fn write(&self, name: &str, component: &[u8]) -> PathBuf {
        let path = self.folder.path().join(format!("{name}.wasm"));
        std::fs::write(&path, component).expect("written");
        path
    }

    /// A plugin of this component with nothing granted.
    pub(crate) fn spec(&self, name: &str, component: &[u8]) -> PluginSpec {
        PluginSpec::new(name, self.write(name, component))
    }

    /// Loads one plugin.
    pub(crate) async fn load(&self, spec: PluginSpec) {
        let report = self.host.reload(vec![spec]).await;
        assert!(report.refused.is_empty(), "{report:?}");
    }

    /// Why this plugin is refused.
    pub(crate) async fn refusal(&self, spec: PluginSpec) -> String {
        let report = self.host.reload(vec![spec]).await;
        let [(_, error)] = report.refused.as_slice() else { panic!("not refused: {report:?}") };
        harmonia_core::chain(error)
    }
}

fn wit(package: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit").join(package)
}

/// A component of a core module, in text, and the imports and exports of a world.
pub(crate) fn component(world: &str, core: &str) -> Vec<u8> {
    let mut resolve = Resolve::default();
    for package in ["plugin/0.1", "forge/0.1", "reporter/0.1", "scheduler/0.1"] {
        resolve.push_dir(wit(package)).expect("the contract parses");
    }
    resolve.push_str("cli.wit", WASI_CLI).expect("it parses");
    resolve.push_str("filesystem.wit", WASI_FILESYSTEM).expect("it parses");
    let text = format!("package test:guest; interface odd {{ f: func(); }} world guest {{ {world} }}");
    let package = resolve.push_str("guest.wit", &text).expect("the world parses");
    let world = resolve.select_world(&[package], Some("guest")).expect("there");
    let mut module = wat::parse_str(core).expect("the module parses");
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).expect("fits");
    ComponentEncoder::default()
        .validate(true)
        .module(&module)
        .expect("a module")
        .encode()
        .expect("the module has what the world says")
}

/// As much of WASI's text as the guests here import.
const WASI_CLI: &str = "package wasi:cli@0.2.3; interface environment {
    get-environment: func() -> list<tuple<string, string>>; get-arguments: func() -> list<string>; }";
const WASI_FILESYSTEM: &str = "package wasi:filesystem@0.2.3; interface types { resource descriptor; }
    interface preopens { use types.{descriptor}; get-directories: func() -> list<tuple<descriptor, string>>; }";

const DESCRIPTION: &str = "export harmonia:plugin/description@0.1.0;";

/// What every module has: memory, an allocator, and a description of nothing but empty texts (there is zero memory at 1024).
const COMMON: &str = r#"
    (memory (export "memory") 2)
    (global $next (mut i32) (i32.const 65536))
    (func (export "cabi_realloc") (param i32 i32 i32 i32) (result i32)
        (local $at i32)
        (local.set $at (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
        (global.set $next (i32.add (local.get $at) (local.get 3)))
        (block $fits
            (br_if $fits (i32.le_u (global.get $next) (i32.shl (memory.size) (i32.const 16))))
            (drop (memory.grow (i32.add (i32.const 1) (i32.shr_u (local.get 3) (i32.const 16))))))
        (local.get $at))
    (func (export "harmonia:plugin/description@0.1.0#describe") (result i32) (i32.const 1024))
"#;

/// A reporter whose `report` is `body`: at 1024 lies `ok`. `more` stands before it.
pub(crate) fn reporter(more: &str, body: &str) -> Vec<u8> {
    reporter_with("", more, body)
}

/// [`reporter`] with further imports.
pub(crate) fn reporter_with(imports: &str, more: &str, body: &str) -> Vec<u8> {
    let (functions, rest): (Vec<&str>, Vec<&str>) =
        more.lines().partition(|line| line.trim_start().starts_with("(import"));
    let module = format!(
        r#"(module {} {COMMON} {}
            (func (export "harmonia:reporter/reporter@0.1.0#report") (param i32) (result i32)
                {body}
                (i32.const 1024)))"#,
        functions.join("\n"),
        rest.join("\n")
    );
    component(&format!("{imports} {DESCRIPTION} export harmonia:reporter/reporter@0.1.0;"), &module)
}

/// A forge that takes webhooks: `body` with the parameters headers (pointer, length) and body (pointer, length).
pub(crate) fn webhooks(imports: &str, imported: &str, body: &str) -> Vec<u8> {
    let module = format!(
        r#"(module {imported} {COMMON}
            (func (export "harmonia:forge/webhooks@0.1.0#parse") (param i32 i32 i32 i32) (result i32)
                {body}
                (i32.const 1024)))"#
    );
    component(&format!("{imports} {DESCRIPTION} export harmonia:forge/webhooks@0.1.0;"), &module)
}

/// A policy: bodies of `rank` (result pointer at 1024; parameters 0..8, candidates at 6 and 7), `charge` and `decay`.
pub(crate) fn policy(rank: &str, charge: &str, decay: &str) -> Vec<u8> {
    let module = format!(
        r#"(module {COMMON}
            (func (export "harmonia:scheduler/policy@0.1.0#rank")
                (param i32 i32 i32 f64 i32 i32 i32 i32) (result i32) (local $i i32)
                {rank}
                (i32.const 1024))
            (func (export "harmonia:scheduler/policy@0.1.0#charge") (param i64 i32 f64 i32 f64) (result f64) {charge})
            (func (export "harmonia:scheduler/policy@0.1.0#decay") (param f64 f64) (result f64) {decay}))"#
    );
    component(&format!("{DESCRIPTION} export harmonia:scheduler/policy@0.1.0;"), &module)
}

pub(crate) fn notification(key: &str) -> Notification {
    Notification {
        key: key.to_owned(),
        kind: NotificationKind::BuildsFailed,
        project: "p".into(),
        branch: "main".into(),
        pull_request: None,
        commit: String::new(),
        title: String::new(),
        author: String::new(),
        url: "https://ci.example/1".into(),
        succeeded: 0,
        failed: 1,
        failures: Vec::new(),
        failed_before: None,
        at: time::macros::datetime!(2026-01-01 00:00 UTC),
    }
}

pub(crate) fn delivery(body: &[u8]) -> WebhookRequest {
    WebhookRequest { headers: vec![("x-event".into(), "push".into())], body: body.to_vec() }
}

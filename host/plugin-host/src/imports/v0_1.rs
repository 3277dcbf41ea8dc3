//! Track 0.1 of `wit/plugin`: converts between the guest's words and [`crate::capabilities`], and nothing else.

use std::time::Instant;

use harmonia_core::ports::{PluginStoreError, WriteCondition};
use wasmtime::component::{HasData, Linker, Resource};

use self::bindings::Secret;
use self::bindings::harmonia::plugin::{clock, http, kv, log, secrets, settings};
use crate::capabilities::{self, CallState, Level, SecretHandle};
use crate::state::State;

/// What `bindgen!` makes of the track.
#[expect(unreachable_pub, reason = "bindgen demands a public type")]
pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: "../../wit/plugin/0.1",
        world: "harmonia:plugin/connected",
        imports: {
            "harmonia:plugin/http": async | trappable,
            "harmonia:plugin/kv": async | trappable,
            "harmonia:plugin/secrets.kept": async | trappable,
            default: trappable,
        },
        with: { "harmonia:plugin/secrets.secret": crate::imports::v0_1::bindings::Secret },
    });

    /// What stands behind a guest's handle.
    pub struct Secret(pub(crate) crate::capabilities::SecretHandle);
}

struct Ours;

impl HasData for Ours {
    type Data<'a> = &'a mut State;
}

/// For plugins that talk to the world.
pub(crate) fn add_connected(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    add_pure(linker)?;
    clock::add_to_linker::<State, Ours>(linker, |state| state)?;
    secrets::add_to_linker::<State, Ours>(linker, |state| state)?;
    http::add_to_linker::<State, Ours>(linker, |state| state)?;
    kv::add_to_linker::<State, Ours>(linker, |state| state)
}

/// For policies.
pub(crate) fn add_pure(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    log::add_to_linker::<State, Ours>(linker, |state| state)?;
    settings::add_to_linker::<State, Ours>(linker, |state| state)
}

impl State {
    /// Hands a secret to the guest.
    fn lend(&mut self, secret: SecretHandle) -> wasmtime::Result<Resource<Secret>> {
        Ok(self.table.push(Secret(secret))?)
    }

    fn secret(&self, handle: &Resource<Secret>) -> wasmtime::Result<SecretHandle> {
        Ok(self.table.get(handle)?.0.clone())
    }

    /// Takes back a secret that the guest returned.
    pub(crate) fn take(&mut self, handle: Resource<Secret>) -> wasmtime::Result<SecretHandle> {
        Ok(self.table.delete(handle)?.0)
    }

    fn lend_result(
        &mut self,
        secret: Result<SecretHandle, capabilities::SecretError>,
    ) -> wasmtime::Result<Result<Resource<Secret>, secrets::SecretError>> {
        match secret {
            Ok(secret) => Ok(Ok(self.lend(secret)?)),
            Err(error) => Ok(Err(error.into())),
        }
    }
}

impl log::Host for State {
    fn write(&mut self, level: log::Level, message: String) -> wasmtime::Result<()> {
        let level = match level {
            log::Level::Debug => Level::Debug,
            log::Level::Info => Level::Info,
            log::Level::Warn => Level::Warn,
            log::Level::Error => Level::Error,
        };
        self.capabilities.log(level, &message);
        Ok(())
    }
}

impl clock::Host for State {
    fn now_ms(&mut self) -> wasmtime::Result<u64> {
        Ok(self.capabilities.now_ms())
    }
}

impl settings::Host for State {
    fn get(&mut self, name: String) -> wasmtime::Result<Option<String>> {
        Ok(self.capabilities.setting(&name))
    }
}

impl From<capabilities::SecretError> for secrets::SecretError {
    fn from(error: capabilities::SecretError) -> Self {
        use capabilities::SecretError as From;
        match error {
            From::NotGranted(text) => Self::NotGranted(text),
            From::Unusable(text) => Self::Unusable(text),
            From::Expired => Self::Expired,
            From::Limit(text) => Self::Limit(text),
        }
    }
}

impl secrets::Host for State {
    fn open(&mut self, name: String) -> wasmtime::Result<Result<Resource<Secret>, secrets::SecretError>> {
        let secret = self.capabilities.open_secret(&name);
        self.lend_result(secret)
    }

    async fn kept(&mut self, name: String) -> wasmtime::Result<Option<Resource<Secret>>> {
        let since = Instant::now();
        let secret = self.capabilities.kept_secret(&name).await;
        self.waited(since);
        secret.map(|secret| self.lend(secret)).transpose()
    }
}

impl secrets::HostSecret for State {
    fn verify_hmac_sha256(&mut self, secret: Resource<Secret>, data: Vec<u8>, mac: Vec<u8>) -> wasmtime::Result<bool> {
        let secret = self.secret(&secret)?;
        Ok(self.capabilities.verify_hmac_sha256(&secret, &data, &mac))
    }

    fn sign_rs256(
        &mut self,
        secret: Resource<Secret>,
        data: Vec<u8>,
    ) -> wasmtime::Result<Result<Vec<u8>, secrets::SecretError>> {
        let secret = self.secret(&secret)?;
        Ok(self.capabilities.sign_rs256(&secret, &data).map_err(Into::into))
    }

    fn derive_jwt_rs256(
        &mut self,
        secret: Resource<Secret>,
        claims: String,
        lifetime_s: u32,
    ) -> wasmtime::Result<Result<Resource<Secret>, secrets::SecretError>> {
        let secret = self.secret(&secret)?;
        let token = self.capabilities.derive_jwt_rs256(&secret, &claims, lifetime_s);
        self.lend_result(token)
    }

    fn keep(
        &mut self,
        secret: Resource<Secret>,
        name: String,
        lifetime_s: u32,
    ) -> wasmtime::Result<Result<(), secrets::SecretError>> {
        let secret = self.secret(&secret)?;
        Ok(self.capabilities.keep(&secret, &name, lifetime_s).map_err(Into::into))
    }

    fn drop(&mut self, secret: Resource<Secret>) -> wasmtime::Result<()> {
        self.table.delete(secret)?;
        Ok(())
    }
}

impl http::Host for State {
    async fn send(&mut self, request: http::Request) -> wasmtime::Result<Result<http::Response, http::HttpError>> {
        let auth = request
            .auth
            .into_iter()
            .map(|auth| {
                let secret = self.secret(&auth.secret)?;
                Ok(capabilities::Auth { secret, place: place(auth.place) })
            })
            .collect::<wasmtime::Result<Vec<_>>>()?;
        let request = capabilities::HttpRequest {
            method: method(request.method),
            url: request.url,
            headers: request.headers.into_iter().map(header).collect(),
            body: request.body,
            auth,
            capture: request
                .capture
                .into_iter()
                .map(|capture| capabilities::Capture { pointer: capture.pointer, hosts: capture.hosts })
                .collect(),
        };
        let since = Instant::now();
        let response = self.capabilities.http_send(request).await;
        self.waited(since);
        let response = match response {
            Ok(response) => response,
            Err(error) => return Ok(Err(error.into())),
        };
        let captured = response
            .captured
            .into_iter()
            .map(|secret| secret.map(|secret| self.lend(secret)).transpose())
            .collect::<wasmtime::Result<Vec<_>>>()?;
        Ok(Ok(http::Response {
            status: response.status,
            headers: response
                .headers
                .into_iter()
                .map(|header| http::Header { name: header.name, value: header.value })
                .collect(),
            body: response.body,
            captured,
        }))
    }
}

fn method(method: http::Method) -> capabilities::Method {
    match method {
        http::Method::Get => capabilities::Method::Get,
        http::Method::Head => capabilities::Method::Head,
        http::Method::Post => capabilities::Method::Post,
        http::Method::Put => capabilities::Method::Put,
        http::Method::Patch => capabilities::Method::Patch,
        http::Method::Delete => capabilities::Method::Delete,
    }
}

fn header(header: http::Header) -> capabilities::Header {
    capabilities::Header { name: header.name, value: header.value }
}

fn place(place: http::Place) -> capabilities::Place {
    match place {
        http::Place::Header(at) => capabilities::Place::Header(header(at)),
        http::Place::Basic(user) => capabilities::Place::Basic(user),
        http::Place::Body(placeholder) => capabilities::Place::Body(placeholder),
    }
}

impl From<capabilities::HttpError> for http::HttpError {
    fn from(error: capabilities::HttpError) -> Self {
        use capabilities::HttpError as From;
        match error {
            From::Denied(text) => Self::Denied(text),
            From::Invalid(text) => Self::Invalid(text),
            From::RetryAfter(seconds) => Self::RetryAfter(seconds),
            From::Unavailable(text) => Self::Unavailable(text),
            From::Timeout => Self::Timeout,
            From::Limit(text) => Self::Limit(text),
        }
    }
}

impl From<PluginStoreError> for kv::KvError {
    fn from(error: PluginStoreError) -> Self {
        match error {
            PluginStoreError::Conflict => Self::Conflict,
            PluginStoreError::Limit(text) => Self::Limit(text),
            PluginStoreError::Unavailable(text) => Self::Unavailable(text),
        }
    }
}

impl kv::Host for State {
    async fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<kv::Entry>, kv::KvError>> {
        let since = Instant::now();
        let found = CallState::kv_get(&mut self.capabilities, &key).await;
        self.waited(since);
        Ok(found
            .map(|found| found.map(|found| kv::Entry { value: found.value, version: found.version }))
            .map_err(Into::into))
    }

    async fn set(
        &mut self,
        key: String,
        value: Vec<u8>,
        lifetime_s: Option<u32>,
        condition: kv::Condition,
    ) -> wasmtime::Result<Result<u64, kv::KvError>> {
        let condition = match condition {
            kv::Condition::Always => WriteCondition::Always,
            kv::Condition::Absent => WriteCondition::Absent,
            kv::Condition::Version(version) => WriteCondition::Version(version),
        };
        let since = Instant::now();
        let written = self.capabilities.kv_set(&key, value, lifetime_s, condition).await;
        self.waited(since);
        Ok(written.map_err(Into::into))
    }

    async fn delete(&mut self, key: String) -> wasmtime::Result<Result<(), kv::KvError>> {
        let since = Instant::now();
        let deleted = self.capabilities.kv_delete(&key).await;
        self.waited(since);
        Ok(deleted.map_err(Into::into))
    }
}

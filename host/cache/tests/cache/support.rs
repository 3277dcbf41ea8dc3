//! What the tests have in common: an object store that runs, and PUTs as a worker does them.

use std::sync::Arc;

use harmonia_cache::{ObjectStore, ObjectStoreOptions};
use harmonia_core::SystemClock;
use harmonia_embedded::s3::{S3Endpoint, S3Options};
use tempfile::TempDir;

pub(crate) const BUCKET: &str = "cache";
pub(crate) const ACCESS_KEY: &str = "test-access";
pub(crate) const SECRET_KEY: &str = "test-secret-key";

/// A running S3 endpoint over a folder that goes away with it.
pub(crate) struct Bucket {
    pub(crate) endpoint: S3Endpoint,
    pub(crate) store: ObjectStore,
    pub(crate) folder: TempDir,
}

impl Bucket {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let endpoint = start_endpoint(&folder, "127.0.0.1:0", &[BUCKET]).await;
        let store = ObjectStore::new(options(&endpoint.url()));
        Self { endpoint, store, folder }
    }
}

pub(crate) async fn start_endpoint(folder: &TempDir, listen: &str, buckets: &[&str]) -> S3Endpoint {
    let options = S3Options {
        folder: folder.path().to_owned(),
        listen: listen.parse().expect("address"),
        access_key: ACCESS_KEY.to_owned(),
        secret_key: SECRET_KEY.to_owned(),
        buckets: buckets.iter().map(|name| (*name).to_owned()).collect(),
        durable: false,
    };
    S3Endpoint::start(options, Arc::new(SystemClock)).await.expect("the endpoint starts")
}

pub(crate) fn options(url: &str) -> ObjectStoreOptions {
    ObjectStoreOptions {
        endpoint: Some(url.parse().expect("URL")),
        region: String::new(),
        bucket: BUCKET.to_owned(),
        access_key: ACCESS_KEY.to_owned(),
        secret_key: SECRET_KEY.to_owned(),
        path_style: true,
    }
}

/// PUTs as a worker does: with exactly the headers of the slot. Answers the HTTP status.
pub(crate) async fn put(url: &str, headers: &[(String, String)], body: Vec<u8>) -> u16 {
    let mut request = reqwest::Client::new().put(url).body(body);
    for (name, value) in headers {
        if name != "content-length" {
            request = request.header(name, value);
        }
    }
    request.send().await.expect("the store answers").status().as_u16()
}

//! An S3 endpoint over a folder. Start at [`S3Endpoint::start`], then `backend` for what it answers.
//!
//! Signatures, presigned expiry, length, checksums and write-once are enforced before an object can be seen: a body
//! goes into a temporary file, is verified, written out to disk, and then takes its name in one step.

mod access;
mod backend;
mod copy;
mod errors;
mod folder;
mod journal;
mod keys;
mod layout;
mod list;
mod multipart;
mod object_file;
mod page;
mod receive;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use harmonia_core::Clock;
use harmonia_listener::Limits;
use s3s::auth::SecretKey;
use s3s::service::S3ServiceBuilder;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// More connections than this wait to be accepted: its clients are signers and builders, and whoever has a presigned URL.
const CONNECTIONS_MAX: usize = 512;
/// What is under way when we stop may take as long to end.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// What to serve and where.
#[derive(Debug, Clone)]
pub struct S3Options {
    /// Holds all objects; created when missing, used by one process at a time.
    pub folder: PathBuf,
    /// Port 0 takes a free one: see [`S3Endpoint::address`].
    pub listen: SocketAddr,
    /// Names the one key pair that may do everything.
    pub access_key: String,
    /// Never sent; requests are signed with it.
    pub secret_key: String,
    /// Created when missing.
    pub buckets: Vec<String>,
    /// `false` gives up safety against power loss for speed: only for objects that may be thrown away.
    pub durable: bool,
}

/// Why there is no endpoint.
#[derive(Debug, thiserror::Error)]
pub enum S3Error {
    /// Another process of ours serves the folder.
    #[error("the object store in {folder} is in use by another process: stop that one first")]
    InUse {
        /// The shared folder.
        folder: PathBuf,
    },
    /// Its objects lie where this version does not look.
    #[error(
        "the object store in {folder} was written by a newer version: start that one, or give this one another folder"
    )]
    Layout {
        /// The folder.
        folder: PathBuf,
    },
    /// Not a name that S3 allows.
    #[error("{name:?} is no usable bucket name: take 3 to 63 lower-case letters, digits and hyphens")]
    BucketName {
        /// The name given.
        name: String,
    },
    /// The address cannot be had.
    #[error("could not listen on {address}: free the port or choose another one")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
    /// A file operation failed.
    #[error("could not {doing} {path}")]
    Io {
        /// The verb.
        doing: &'static str,
        /// Its object.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: std::io::Error,
    },
}

/// A running endpoint. Dropping it closes it without waiting; [`S3Endpoint::stop`] lets requests end.
#[derive(Debug)]
pub struct S3Endpoint {
    address: SocketAddr,
    /// Until it stops.
    folder: Option<Arc<folder::Folder>>,
    stop: CancellationToken,
    server: JoinHandle<usize>,
}

impl S3Endpoint {
    /// Opens the folder, removes what interrupted uploads left, creates the buckets and listens.
    ///
    /// Presigned requests expire by `clock` (and by the machine's clock as well, so it cannot be made later).
    pub async fn start(options: S3Options, clock: Arc<dyn Clock>) -> Result<Self, S3Error> {
        for name in &options.buckets {
            if !s3s::path::check_bucket_name(name) {
                return Err(S3Error::BucketName { name: name.clone() });
            }
        }
        let (root, durable, buckets) = (options.folder.clone(), options.durable, options.buckets);
        let folder = tokio::task::spawn_blocking(move || {
            let folder = folder::Folder::open(&root, durable)?;
            for name in buckets {
                match folder.create_bucket(&name) {
                    Err(cause) if cause.kind() != std::io::ErrorKind::AlreadyExists => {
                        return Err(S3Error::Io { doing: "create", path: folder.bucket(&name), cause });
                    }
                    _ => {}
                }
            }
            Ok(folder)
        })
        .await
        .map_err(|cause| S3Error::Io { doing: "open", path: options.folder, cause: cause.into() })??;
        let listener = TcpListener::bind(options.listen)
            .await
            .map_err(|cause| S3Error::Listen { address: options.listen, cause })?;
        let address = listener.local_addr().map_err(|cause| S3Error::Listen { address: options.listen, cause })?;

        let folder = Arc::new(folder);
        let mut service =
            S3ServiceBuilder::new(backend::Backend { folder: Arc::clone(&folder), clock: Arc::clone(&clock) });
        service.set_auth(access::OneKeyPair {
            access_key: options.access_key,
            secret_key: SecretKey::from(options.secret_key),
        });
        service.set_access(access::Gate { clock });
        let (service, stop) = (service.build(), CancellationToken::new());
        let limits = Limits { connections_max: CONNECTIONS_MAX, drain: STOP_PATIENCE, ..Limits::default() };
        let serving =
            harmonia_listener::serve("the object store", listener, limits, stop.clone(), move |_| service.clone());
        let server = tokio::spawn(serving);
        tracing::info!("The object store answers at http://{address}");
        Ok(Self { address, folder: Some(folder), stop, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How often it was waited for the disk since the start, for whatever object.
    pub fn syncs(&self) -> u64 {
        self.folder.as_ref().map_or(0, |folder| folder.syncs())
    }

    /// The endpoint URL for clients, who have to use path style.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Accepts nothing more, lets requests end for some seconds, and lets go of the folder.
    pub async fn stop(mut self) {
        self.stop.cancel();
        if let Err(error) = (&mut self.server).await {
            tracing::error!(%error, "The object store did not end in order");
        }
        // What nobody waits for (tidying, the work of requests that were broken off) may still be under way.
        let Some(released) = self.folder.take().map(|folder| folder.released()) else { return };
        if tokio::time::timeout(STOP_PATIENCE, released.cancelled()).await.is_err() {
            tracing::warn!("The folder of the object store is still in use after {STOP_PATIENCE:?}");
        }
    }
}

impl Drop for S3Endpoint {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[cfg(test)]
mod tests;

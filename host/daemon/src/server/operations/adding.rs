//! Requests that bring data along. Start at [`add`].

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead};
use std::path::PathBuf;

use bzip2::Compression;
use bzip2::write::BzEncoder;
use harmonia_nix::content_address::ContentAddressMethod;
use harmonia_nix::store_path::StorePath;
use harmonia_nix::worker_protocol::{Request, ValidPathInfo, wire};
use tokio::io::BufReader;

use super::{Client, Failure};
use crate::server::bulk::{Bulk, OneArchive, Part};
use crate::server::connection::Reader;
use crate::store::{AddOptions, PathLocks, StoreError};

/// Paths of one `AddMultipleToStore` that are registered together, at most: each holds a lock, and so an open file.
const BATCH_PATHS: usize = 512;

/// Paths of one `AddMultipleToStore` that are registered together, at most, by the size of their archives.
const BATCH_BYTES: u64 = 256 << 20;

/// Works on a request with bulk data, which is read to its end in any case.
pub(super) fn add(
    client: &Client,
    request: Request,
    mut bulk: Bulk,
) -> (Result<Vec<u8>, Failure>, io::Result<BufReader<Reader>>) {
    let result = match request {
        Request::AddToStore { name, method, algorithm, references, repair } => {
            let kind = (method, algorithm);
            let options = options(client, repair, true);
            let added = if client.version.minor >= 25 {
                client.daemon.store.add_content(&client.roots, &name, kind, &references, &mut bulk, options)
            } else {
                let part = if method == ContentAddressMethod::Recursive { Part::Archive } else { Part::Contents };
                let mut archive = OneArchive::new(&mut bulk, part);
                let added =
                    client.daemon.store.add_content(&client.roots, &name, kind, &references, &mut archive, options);
                match archive.finish() {
                    Ok(()) => added,
                    Err(error) => return (Err(error.into()), Err(io::ErrorKind::InvalidData.into())),
                }
            };
            added.map(|valid| added_answer(client, &valid)).map_err(Failure::from)
        }
        Request::AddToStoreNar { mut valid, repair, dont_check_signatures } => {
            let options = options(client, repair, dont_check_signatures);
            valid.info.ultimate &= client.is_trusted;
            let archive = OneArchive::new(&mut bulk, Part::Archive);
            let added = client.daemon.store.add_nar(&client.roots, &valid, archive, options);
            added.map(|()| Vec::new()).map_err(Failure::from)
        }
        Request::AddMultipleToStore { repair, dont_check_signatures } => {
            let options = options(client, repair, dont_check_signatures);
            add_multiple(client, &mut bulk, options).map(|()| Vec::new())
        }
        Request::AddBuildLog(path) => add_build_log(client, &path, &mut bulk).map(|()| number(1)),
        _ => Err(Failure::new("this request brings no data along")),
    };
    (result, bulk.finish())
}

/// What the client asks for, as far as it may.
fn options(client: &Client, repair: bool, unsigned: bool) -> AddOptions {
    AddOptions {
        repair: repair && client.is_trusted,
        unsigned: unsigned && client.is_trusted,
        optimise: client.settings.auto_optimise_store,
    }
}

fn number(number: u64) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

fn added_answer(client: &Client, valid: &ValidPathInfo) -> Vec<u8> {
    let mut bytes = Vec::new();
    if client.version.minor >= 25 {
        valid.put(&mut bytes);
    } else {
        wire::put_store_path(&mut bytes, &valid.path);
    }
    bytes
}

/// Paths come after those that they refer to. What is complete is registered together, now and then.
fn add_multiple(client: &Client, bulk: &mut Bulk, options: AddOptions) -> Result<(), Failure> {
    let store = &client.daemon.store;
    let count = read_now(bulk, |mut reader| async move { wire::read_u64(&mut reader).await })?;
    let mut batch = Batch::default();
    for _ in 0..count {
        let mut valid = read_now(bulk, |mut reader| async move { ValidPathInfo::read(&mut reader).await })?;
        valid.info.ultimate &= client.is_trusted;
        let wanted = BTreeSet::from([valid.path.clone()]);
        let locks = if let Some(locks) = store.try_lock_paths(&client.roots, &wanted)? {
            locks
        } else {
            // Somebody with the same paths in another order must not wait for ours while we wait for theirs.
            batch.register(client)?;
            store.lock_paths(&client.roots, &wanted)?
        };
        let mut archive = OneArchive::new(&mut *bulk, Part::Archive);
        let locks = store.unpack_nar(&client.roots, &valid, &mut archive, options, locks)?;
        archive.finish()?;
        if let Some(locks) = locks {
            batch.bytes += valid.info.nar_size_bytes;
            batch.locks.push(locks);
            batch.paths.push(valid);
        }
        if batch.paths.len() >= BATCH_PATHS || batch.bytes >= BATCH_BYTES {
            batch.register(client)?;
        }
    }
    batch.register(client)?;
    Ok(())
}

/// What is in place and waits to be registered.
#[derive(Default)]
struct Batch {
    paths: Vec<ValidPathInfo>,
    locks: Vec<PathLocks>,
    bytes: u64,
}

impl Batch {
    fn register(&mut self, client: &Client) -> Result<(), StoreError> {
        if !self.paths.is_empty() {
            client.daemon.store.register(&self.paths)?;
        }
        *self = Self::default();
        Ok(())
    }
}

fn add_build_log(client: &Client, path: &StorePath, bulk: &mut Bulk) -> Result<(), Failure> {
    client.must_be_trusted("add logs")?;
    // Compressed, whatever the settings say, as stock Nix does with logs from elsewhere.
    let mut target = client.daemon.store.layout().build_log(path.base_name()).into_os_string();
    target.push(".bz2");
    let target = PathBuf::from(target);
    if fs::symlink_metadata(&target).is_ok() {
        return Ok(());
    }
    let failed = |error: io::Error| Failure::new(format!("could not write the log {}: {error}", target.display()));
    fs::create_dir_all(target.parent().unwrap_or(&target)).map_err(failed)?;
    let mut temporary = target.clone().into_os_string();
    temporary.push(format!(".tmp.{}", std::process::id()));
    let mut file = BzEncoder::new(fs::File::create(&temporary).map_err(failed)?, Compression::default());
    io::copy(bulk, &mut file).map_err(failed)?;
    file.finish().map_err(failed)?;
    fs::rename(&temporary, &target).map_err(failed)
}

/// Reads with the functions of the protocol, which are for asynchronous streams, from one that blocks.
fn read_now<'a, T, F>(bulk: &'a mut Bulk, read: impl FnOnce(Now<'a>) -> F) -> Result<T, Failure>
where
    F: Future<Output = Result<T, wire::WireError>>,
{
    let mut reading = std::pin::pin!(read(Now(bulk)));
    match reading.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(result) => result.map_err(|error| Failure::new(super::chain(&error))),
        // `Now` is always ready.
        std::task::Poll::Pending => Err(Failure::new("the data could not be read")),
    }
}

/// A stream that is always ready, since reading it blocks.
struct Now<'a>(&'a mut Bulk);

impl tokio::io::AsyncRead for Now<'_> {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        let available = self.0.fill_buf()?;
        let length = available.len().min(buffer.remaining());
        buffer.put_slice(&available[..length]);
        self.0.consume(length);
        std::task::Poll::Ready(Ok(()))
    }
}

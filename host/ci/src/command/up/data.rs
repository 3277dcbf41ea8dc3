//! The data directory of `up`: what is where, who may read it, and one process at a time.
//!
//! | entry | is |
//! |---|---|
//! | `postgres/` | the private database cluster (owned by the server's account) |
//! | `objects/` | the object store |
//! | `root/` | the store of the private Nix daemon: its `/nix` |
//! | `nix/` | that daemon's configuration and socket |
//! | `keys/` | signing key, object-store keys, API token (mode 0600) |
//! | `state/` | spools, git mirrors |
//! | `config.toml` | the configuration that the node runs with |
//! | `server.json` | while it runs: where the CLI finds it |

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use url::Url;

use crate::client::{SERVER_FILE, ServerFile};
use crate::command::keygen;
use crate::config::Config;
use crate::exit::Failure;

/// An opened data directory; nobody else runs with it while this value lives.
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// Keys and tokens, made at the first start.
pub(crate) struct Secrets {
    pub(crate) access_key: String,
    pub(crate) access_key_file: PathBuf,
    pub(crate) secret_key: String,
    pub(crate) secret_key_file: PathBuf,
    pub(crate) signing_key_file: PathBuf,
    pub(crate) public_key: String,
    pub(crate) api_token: String,
}

impl DataDir {
    /// Makes the folder when it is missing, and locks it.
    pub(crate) fn open(path: PathBuf) -> Result<Self, Failure> {
        let failed = |what: &str, error: &dyn std::fmt::Display| {
            Failure::usage(format!("could not {what} {}: {error}", path.display()))
                .hint("name another folder with --data-dir")
        };
        let path = std::path::absolute(&path).map_err(|error| failed("use", &error))?;
        // The database's account must get through, so this folder is open and what is in it is not.
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&path).map_err(|error| failed("make", &error))?;
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .read(true)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(|error| failed("write into", &error))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let holder = std::io::read_to_string(&lock).unwrap_or_default();
            let message =
                format!("another `harmonia-ci up` (process {}) runs with data in {}", holder.trim(), path.display());
            return Err(Failure::failed(message).hint("use that one, end it, or name another folder with --data-dir"));
        }
        lock.set_len(0)
            .and_then(|()| write!(lock, "{}", std::process::id()))
            .map_err(|error| failed("write into", &error))?;
        for name in ["keys", "state", "nix", "objects"] {
            let folder = path.join(name);
            if !folder.is_dir() {
                std::fs::DirBuilder::new().mode(0o700).create(&folder).map_err(|error| failed("write into", &error))?;
            }
        }
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn postgres(&self) -> PathBuf {
        self.path.join("postgres")
    }

    pub(crate) fn objects(&self) -> PathBuf {
        self.path.join("objects")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path.join("root")
    }

    pub(crate) fn nix_state(&self) -> PathBuf {
        self.path.join("nix")
    }

    pub(crate) fn daemon_socket(&self) -> PathBuf {
        self.path.join("nix/daemon.sock")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.path.join("state")
    }

    pub(crate) fn demo(&self) -> PathBuf {
        self.path.join("demo")
    }

    /// Reads keys and tokens, making those that are missing.
    pub(crate) fn secrets(&self) -> Result<Secrets, Failure> {
        let keys = self.path.join("keys");
        let signing_key_file = keys.join("signing.key");
        if !signing_key_file.exists() {
            keygen::generate("harmonia-ci-1", &signing_key_file)?;
        }
        let secret = std::fs::read_to_string(&signing_key_file)
            .map_err(|error| Failure::usage(format!("could not read {}: {error}", signing_key_file.display())))?;
        let secret = harmonia_nix::SecretKey::parse(secret.trim())
            .map_err(|error| Failure::usage(format!("{} is no signing key: {error}", signing_key_file.display())))?;
        let access_key_file = keys.join("object-store-access-key");
        let secret_key_file = keys.join("object-store-secret-key");
        Ok(Secrets {
            access_key: random_once(&access_key_file, 10)?,
            access_key_file,
            secret_key: random_once(&secret_key_file, 20)?,
            secret_key_file,
            signing_key_file,
            public_key: secret.public_key().to_string(),
            api_token: random_once(&keys.join("api-token"), 32)?,
        })
    }

    /// Writes the effective configuration, so that it can be read and taken to another machine.
    pub(crate) fn write_config(&self, config: &Config) -> Result<(), Failure> {
        let text = toml::to_string(config)
            .map_err(|error| Failure::failed(format!("could not write the configuration: {error}")))?;
        let text = format!(
            "# Written by `harmonia-ci up` at every start: what its one node runs with, without passwords of URLs.\n{text}"
        );
        self.write("config.toml", text.as_bytes())
    }

    /// Tells the CLI of this machine where the server is.
    pub(crate) fn write_server_file(&self, url: &Url, token: &str) -> Result<(), Failure> {
        let file = ServerFile { url: url.clone(), token: token.to_owned() };
        let text = serde_json::to_vec(&file).map_err(|error| Failure::failed(error.to_string()))?;
        self.write(SERVER_FILE, &text)
    }

    /// The server is gone.
    pub(crate) fn remove_server_file(&self) {
        match std::fs::remove_file(self.path.join(SERVER_FILE)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, "Could not remove {SERVER_FILE}");
            }
            _ => {}
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        replace(&self.path.join(name), bytes)
            .map_err(|error| Failure::failed(format!("could not write {}: {error}", self.path.join(name).display())))
    }
}

/// Writes a file of mode 0600 as a whole or not at all.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(path);
    let mut file = tempfile::Builder::new().tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// The secret in `path`; made from `bytes` random bytes when it is missing.
fn random_once(path: &Path, bytes: usize) -> Result<String, Failure> {
    use std::fmt::Write as _;
    let failed =
        |error: std::io::Error| Failure::failed(format!("could not keep a secret in {}: {error}", path.display()));
    if !path.exists() {
        let mut text = String::new();
        for _ in 0..bytes {
            let _ = write!(text, "{:02x}", rand::random::<u8>());
        }
        replace(path, text.as_bytes()).map_err(failed)?;
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn secrets_are_made_once_and_are_private() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let data = DataDir::open(folder.path().join("d")).expect("opens");
        let first = data.secrets().expect("made");
        let second = data.secrets().expect("read");
        assert_eq!((&first.api_token, &first.public_key), (&second.api_token, &second.public_key));
        assert_eq!(first.api_token.len(), 64);
        for entry in std::fs::read_dir(data.path().join("keys")).expect("listed") {
            let mode = entry.expect("entry").metadata().expect("metadata").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn two_processes_never_share_a_folder() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let data = DataDir::open(folder.path().to_owned()).expect("opens");
        assert!(DataDir::open(folder.path().to_owned()).is_err());
        drop(data);
        assert!(DataDir::open(folder.path().to_owned()).is_ok());
    }
}

//! The socket: the one that systemd hands over, or one of our own at the configured path. Start at [`listen`].

use std::env;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Where systemd leaves the first socket.
const ACTIVATED: i32 = 3;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The operating system refused.
    #[error("could not {action} the socket {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// Which socket.
        path: PathBuf,
        /// Its reason.
        #[source]
        cause: io::Error,
    },
    /// The environment does not say what systemd says.
    #[error("LISTEN_PID and LISTEN_FDS are not those of a service with one socket")]
    Activation,
    /// Another daemon serves here.
    #[error("another daemon listens on {}", .0.display())]
    Taken(PathBuf),
    /// The path is too long for a socket.
    #[error("the path {} is too long for a socket: at most 107 bytes are possible", .0.display())]
    TooLong(PathBuf),
}

/// The socket to accept connections from, without blocking.
pub fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |action| {
        let path = path.to_owned();
        move |cause| ListenError::Io { action, path, cause }
    };
    let listener = match activated()? {
        Some(listener) => listener,
        None => bind(path)?,
    };
    listener.set_nonblocking(true).map_err(failed("set up"))?;
    Ok(listener)
}

/// The one socket of systemd's socket activation: file descriptor 3.
fn activated() -> Result<Option<UnixListener>, ListenError> {
    let Some(count) = env::var_os("LISTEN_FDS") else { return Ok(None) };
    let is_ours = env::var("LISTEN_PID").is_ok_and(|pid| pid.parse() == Ok(std::process::id()));
    if !is_ours || count != "1" {
        return Err(ListenError::Activation);
    }
    // A copy of it, since only unsafe code may take the number for what it is.
    let copy = || {
        let ourselves = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())?;
        rustix::process::pidfd_getfd(ourselves, ACTIVATED, rustix::process::PidfdGetfdFlags::empty())
    };
    let socket = copy().map_err(|_| ListenError::Activation)?;
    match rustix::net::sockopt::socket_acceptconn(&socket) {
        Ok(true) => Ok(Some(socket.into())),
        _ => Err(ListenError::Activation),
    }
}

fn bind(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |action| move |cause| ListenError::Io { action, path: path.to_owned(), cause };
    if path.as_os_str().len() > 107 {
        return Err(ListenError::TooLong(path.to_owned()));
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("make the directory of"))?;
    }
    // One that nobody answers at was left by a daemon that ended; one that is answered at stays its owner's.
    if fs::symlink_metadata(path).is_ok() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ListenError::Taken(path.to_owned()));
        }
        fs::remove_file(path).map_err(failed("remove"))?;
    }
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    );
    let socket = socket.map_err(|errno| failed("make")(errno.into()))?;
    let address = rustix::net::SocketAddrUnix::new(path).map_err(|errno| failed("bind")(errno.into()))?;
    rustix::net::bind(&socket, &address).map_err(|errno| failed("bind")(errno.into()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).map_err(failed("set the mode of"))?;
    rustix::net::listen(&socket, BACKLOG).map_err(|errno| failed("listen on")(errno.into()))?;
    Ok(socket.into())
}

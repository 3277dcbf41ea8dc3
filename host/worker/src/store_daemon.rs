//! Connections to the store daemon of this node. Start at [`StoreDaemon::connect`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use harmonia_nix::worker_protocol::types::ClientOptions;
use harmonia_nix::worker_protocol::{Client, ClientError};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// A daemon forks for each connection, which takes a while on a loaded machine; longer than this it is stuck.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// A conversation with the daemon. Dropping it stops what the daemon does for it.
pub type Connection = Client<OwnedReadHalf, OwnedWriteHalf>;

/// Where the store daemon listens.
#[derive(Debug, Clone)]
pub struct StoreDaemon {
    socket: PathBuf,
}

/// Why there is no connection to the store daemon.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens there, or we may not connect.
    #[error("could not connect to the store daemon at {socket}: is it running?")]
    Socket {
        /// The socket.
        socket: PathBuf,
        /// The error of the operating system.
        #[source]
        cause: std::io::Error,
    },
    /// It accepted and did not answer.
    #[error("the store daemon at {socket} did not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Silent {
        /// The socket.
        socket: PathBuf,
    },
    /// It answered, but no conversation came about.
    #[error("the store daemon at {socket} refused the conversation")]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        cause: ClientError,
    },
}

impl StoreDaemon {
    /// The daemon that listens at `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A new conversation, in which the daemon substitutes nothing by itself: what comes from where is decided here.
    pub async fn connect(&self) -> Result<Connection, ConnectError> {
        self.connect_with(&ClientOptions { use_substitutes: false, ..ClientOptions::default() }).await
    }

    /// A new conversation with these options.
    pub async fn connect_with(&self, options: &ClientOptions) -> Result<Connection, ConnectError> {
        let socket = || self.socket.clone();
        let connect = async {
            let stream = UnixStream::connect(&self.socket)
                .await
                .map_err(|cause| ConnectError::Socket { socket: socket(), cause })?;
            let (reader, writer) = stream.into_split();
            let refused = |cause| ConnectError::Refused { socket: socket(), cause };
            let mut client = Client::connect(reader, writer).await.map_err(refused)?;
            client.set_options(options).await.map_err(refused)?;
            Ok(client)
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(result) => result,
            Err(_) => Err(ConnectError::Silent { socket: socket() }),
        }
    }
}

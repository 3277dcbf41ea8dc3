//! A way to PostgreSQL on which things go wrong: a socket in between that loses answers, falls silent, or forgets its
//! connections without a word. Start at [`Way`].

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::postgres::PgPoolOptions;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use super::TestDatabase;
use crate::connection::{Db, Patience};

/// Answers that are lost: the first so many to statements with this in their text.
#[derive(Debug, Clone, Copy)]
struct Loss {
    marker: &'static str,
    count: u32,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    silent: bool,
    /// Connections made so far.
    made: u32,
    /// So many of them, the oldest, give nothing on any more.
    forgotten: u32,
}

/// A way to a database. Dropping it closes the way.
#[derive(Debug)]
pub struct Way {
    /// The database, reached this way.
    pub db: Db,
    lost: Arc<AtomicU32>,
    state: watch::Sender<State>,
    task: tokio::task::JoinHandle<()>,
    folder: PathBuf,
}

impl Way {
    /// One that is sound for now, taken by so many connections at once.
    ///
    /// # Panics
    /// When the cluster of the tests does not answer, or has no socket.
    pub async fn new(database: &TestDatabase, patience: Patience, max_connections: u32) -> Self {
        Self::with(database, patience, max_connections, None).await
    }

    /// Hangs up after the server carried out a statement with `marker` in its text and before the client hears of it, `count`
    /// times.
    ///
    /// # Panics
    /// As [`Self::new`].
    pub async fn losing_answers(database: &TestDatabase, marker: &'static str, count: u32) -> Self {
        Self::with(database, Patience::default(), 4, Some(Loss { marker, count })).await
    }

    async fn with(database: &TestDatabase, patience: Patience, max_connections: u32, loss: Option<Loss>) -> Self {
        let options = database.admin.clone().database(&database.name);
        let name = format!(".s.PGSQL.{}", options.get_port());
        let server = options.get_socket().expect("the cluster of the tests has a socket").join(&name);
        let folder = std::env::temp_dir().join(format!("harmonia-way-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&folder).expect("a folder");
        let listener = UnixListener::bind(folder.join(&name)).expect("a socket");
        let (lost, state) = (Arc::new(AtomicU32::new(0)), watch::Sender::new(State::default()));
        let (counter, states) = (Arc::clone(&lost), state.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(&server).await.expect("the server answers");
                states.send_modify(|state| state.made += 1);
                let open = Open { state: states.subscribe(), number: states.borrow().made };
                connections.spawn(relay(client, server, open, loss, Arc::clone(&counter)));
            }
        });
        let pool = PgPoolOptions::new().max_connections(max_connections);
        let db = Db::connect_with(options.socket(&folder), pool, patience).await.expect("connects");
        Self { db, lost, state, task, folder }
    }

    /// Answers lost so far.
    pub fn lost(&self) -> u32 {
        self.lost.load(Ordering::Acquire)
    }

    /// From now on nothing comes through, in neither direction; connections are made, and stay.
    pub fn fall_silent(&self) {
        self.state.send_modify(|state| state.silent = true);
    }

    /// Everything comes through again, what was held back too.
    pub fn speak(&self) {
        self.state.send_modify(|state| state.silent = false);
    }

    /// Nothing comes through any more on the connections that there are; new ones are sound. So it is when the server's machine
    /// was replaced, or a firewall in between began anew.
    pub fn forget(&self) {
        self.state.send_modify(|state| state.forgotten = state.made);
    }

    /// Waits until somebody makes another connection.
    ///
    /// # Panics
    /// Never: the way is there as long as this is.
    pub async fn connected_again(&self) {
        let made = self.state.borrow().made;
        self.state.subscribe().wait_for(|state| state.made > made).await.expect("the way is there");
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.task.abort();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// When a connection gives on what it gets.
struct Open {
    state: watch::Receiver<State>,
    number: u32,
}

impl Open {
    async fn wait(&mut self) {
        let number = self.number;
        let _ = self.state.wait_for(|state| !state.silent && number > state.forgotten).await;
    }
}

/// Bytes both ways. The client prepares a statement, whose text tells it, and executes it with its next message (`B`).
async fn relay(client: UnixStream, server: UnixStream, mut open: Open, loss: Option<Loss>, lost: Arc<AtomicU32>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let (mut sent, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let (mut is_prepared, mut is_executed) = (false, false);
    loop {
        tokio::select! {
            length = from_client.read(&mut sent) => {
                let Ok(length @ 1..) = length else { return };
                let bytes = &sent[..length];
                is_executed = is_prepared && bytes[0] == b'B';
                let is_meant = |loss: Loss| bytes.windows(loss.marker.len()).any(|window| window == loss.marker.as_bytes());
                is_prepared = loss.is_some_and(is_meant);
                open.wait().await;
                if to_server.write_all(bytes).await.is_err() {
                    return;
                }
            }
            length = from_server.read(&mut answered) => {
                let Ok(length @ 1..) = length else { return };
                // The server answers when it has committed.
                let counted = |lost: u32| loss.filter(|loss| lost < loss.count).map(|_| lost + 1);
                if is_executed && lost.fetch_update(Ordering::AcqRel, Ordering::Acquire, counted).is_ok() {
                    return;
                }
                open.wait().await;
                if to_client.write_all(&answered[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

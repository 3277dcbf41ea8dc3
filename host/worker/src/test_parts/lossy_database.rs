//! A way to PostgreSQL that loses an answer: a socket in between, which hangs up after the server carried out a statement
//! and before the client hears of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use harmonia_db::testing::TestDatabase;
use harmonia_db::{Db, DbOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use url::Url;

/// Answers to one statement are lost. Dropping it closes the way.
pub(crate) struct LossyDatabase {
    /// The database, reached this way.
    pub(crate) db: Db,
    lost: Arc<AtomicU32>,
    task: tokio::task::JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl LossyDatabase {
    /// Loses the first `count` answers to statements with `marker` in their text.
    pub(crate) async fn new(database: &TestDatabase, marker: &'static str, count: u32) -> Self {
        let mut url = Url::parse(&database.url).expect("a URL");
        let server = url.query_pairs().find(|(key, _)| key == "host").expect("the test cluster has a socket").1;
        let name = format!(".s.PGSQL.{}", url.port().unwrap_or(5432));
        let server = PathBuf::from(&*server).join(&name);
        let folder = tempfile::tempdir().expect("folder");
        let listener = UnixListener::bind(folder.path().join(&name)).expect("socket");
        url.set_query(Some(&format!("host={}", folder.path().display())));
        let lost = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&lost);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let server = UnixStream::connect(&server).await.expect("the server answers");
                connections.spawn(relay(client, server, marker, count, Arc::clone(&counter)));
            }
        });
        let db = Db::connect(&DbOptions { url: url.into(), max_connections: 4 }).await.expect("connects");
        Self { db, lost, task, _folder: folder }
    }

    /// Answers lost so far.
    pub(crate) fn lost(&self) -> u32 {
        self.lost.load(Ordering::Acquire)
    }
}

impl Drop for LossyDatabase {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Bytes both ways. The client prepares a statement, whose text tells it, and executes it with its next message (`B`).
async fn relay(client: UnixStream, server: UnixStream, marker: &'static str, count: u32, lost: Arc<AtomicU32>) {
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
                is_prepared = bytes.windows(marker.len()).any(|window| window == marker.as_bytes());
                if to_server.write_all(bytes).await.is_err() {
                    return;
                }
            }
            length = from_server.read(&mut answered) => {
                let Ok(length @ 1..) = length else { return };
                // The server answers when it has committed.
                let counted = |lost: u32| (lost < count).then_some(lost + 1);
                if is_executed && lost.fetch_update(Ordering::AcqRel, Ordering::Acquire, counted).is_ok() {
                    return;
                }
                if to_client.write_all(&answered[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

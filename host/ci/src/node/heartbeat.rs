//! Says that this node lives, and notices when another process took its name.

use std::time::Duration;

use harmonia_core::{Incarnation, NodeId};
use harmonia_db::Db;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Identity;
use crate::exit::chain;

/// Starts the heartbeat. The token it gives is cancelled when this process is no longer the node it says it is.
pub(super) fn start(
    tasks: &mut JoinSet<()>,
    db: Db,
    identity: &Identity,
    every: Duration,
    paused: Option<watch::Receiver<Option<String>>>,
    stop: CancellationToken,
) -> CancellationToken {
    let lost = CancellationToken::new();
    let beat = Beat { db, node: identity.node.clone(), incarnation: identity.incarnation, every };
    tasks.spawn(beat.run(paused, stop, lost.clone()));
    lost
}

struct Beat {
    db: Db,
    node: NodeId,
    incarnation: Incarnation,
    every: Duration,
}

impl Beat {
    async fn run(
        self,
        mut paused: Option<watch::Receiver<Option<String>>>,
        stop: CancellationToken,
        lost: CancellationToken,
    ) {
        let mut away = false;
        loop {
            let reason = paused.as_mut().and_then(|paused| paused.borrow_and_update().clone());
            match self.db.heartbeat(&self.node, self.incarnation, reason.as_deref()).await {
                Ok(answer) if !answer.current => return lost.cancel(),
                Ok(_) => {
                    if std::mem::take(&mut away) {
                        tracing::info!("The database answers again");
                    }
                }
                // Said once: what is held goes on, and everybody else notices by themselves.
                Err(error) if !away => {
                    away = true;
                    tracing::warn!(error = %chain(&error), "No heartbeat: the database does not answer");
                }
                Err(_) => {}
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(self.every) => {}
                () = changed(&mut paused) => {}
            }
        }
    }
}

/// Ends when the reason for not claiming changes; never when there is none to watch.
async fn changed(paused: &mut Option<watch::Receiver<Option<String>>>) {
    if let Some(receiver) = paused
        && receiver.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

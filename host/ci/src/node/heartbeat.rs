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
    db: &Db,
    identity: &Identity,
    every: Duration,
    paused: Option<watch::Receiver<Option<String>>>,
    drain: &CancellationToken,
    stop: &CancellationToken,
) -> CancellationToken {
    let lost = CancellationToken::new();
    let beat = Beat { db: db.clone(), node: identity.node.clone(), incarnation: identity.incarnation, every };
    tasks.spawn(beat.run(paused, drain.clone(), stop.clone(), lost.clone()));
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
        drain: CancellationToken,
        stop: CancellationToken,
        lost: CancellationToken,
    ) {
        let mut away = false;
        let mut said = false;
        loop {
            // Said with each beat until it is heard, so that the pages and `why` show why nothing starts here.
            let drains = drain.is_cancelled();
            if drains && !said {
                said = self.db.set_draining(&self.node, self.incarnation, true).await.is_ok();
            }
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
                () = drain.cancelled(), if !drains => {}
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

#[cfg(test)]
mod tests {
    use harmonia_core::Capability;
    use harmonia_db::NodeRegistration;
    use harmonia_db::testing::TestDatabase;

    use super::*;

    #[tokio::test]
    async fn a_node_that_is_told_to_end_is_shown_draining_at_once() {
        let test = TestDatabase::new().await;
        let identity = Identity { node: NodeId("n".to_owned()), incarnation: Incarnation(1) };
        let registration = NodeRegistration {
            id: identity.node.clone(),
            incarnation: identity.incarnation,
            capabilities: vec![Capability::Builder],
            endpoint: None,
            systems: vec!["x86_64-linux".to_owned()],
            features: Vec::new(),
            max_jobs: 1,
            max_evals: 0,
            version: "0".to_owned(),
            secret: harmonia_core::NodeSecret([0; 32]),
        };
        test.db.register_node(&registration).await.expect("register");
        let (drain, stop, mut tasks) = (CancellationToken::new(), CancellationToken::new(), JoinSet::new());
        // The next beat is an hour away.
        let lost = start(&mut tasks, &test.db, &identity, Duration::from_hours(1), None, &drain, &stop);
        let is_draining = async || {
            let nodes = test.db.nodes(Duration::from_hours(1)).await.expect("nodes");
            nodes.iter().any(|node| node.draining)
        };
        assert!(!is_draining().await);
        drain.cancel();
        let shown = tokio::time::timeout(Duration::from_secs(20), async { while !is_draining().await {} });
        shown.await.expect("it is shown within seconds");
        stop.cancel();
        while tasks.join_next().await.is_some() {}
        assert!(!lost.is_cancelled());
    }
}

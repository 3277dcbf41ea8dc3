//! Connections to the store daemon that outlive jobs, with a real daemon.

use harmonia_db::JobLimits;
use harmonia_nix::StorePath;

use super::super::connections::Lent;
use super::super::replace::delete;
use super::super::{Builder, Node, build::options};
use super::whole::Running;
use super::world::{World, claimed};
use super::*;

const LIMITS: JobLimits =
    JobLimits { timeout_s: 600, max_silent_s: 600, output_bytes_max: 1 << 30, log_bytes_max: 1 << 20 };

/// Any store path will do for what the daemon is told of a job.
async fn take<'a>(node: &'a Node, drv: &StorePath) -> Lent<'a> {
    node.connections.take(&options(&claimed(drv, LIMITS), 1)).await.expect("a connection")
}

async fn is_valid(connection: &mut Lent<'_>, path: &StorePath) -> bool {
    connection.query_path_info(path).await.expect("an answer").is_some()
}

#[tokio::test]
async fn a_slot_needs_one_connection_however_many_jobs_it_has() {
    let world = World::new().await;
    let drvs: Vec<StorePath> = (0..6)
        .map(|index| world.daemon.store.instantiate(&derivation(&format!("job-{index}"), "echo $name > $out")))
        .collect();
    world.queue(&drvs.iter().collect::<Vec<_>>()).await;
    let before = world.daemon.connections();
    let running = Running::start_with(&world, |options| options.max_jobs = 2).await;
    until("all are complete", || world.recorded().completed.len() == drvs.len()).await;
    running.drain().await.expect("drains");
    let connections = world.daemon.connections() - before;
    assert!((1..=2).contains(&connections), "{connections} connections for {} jobs on two slots", drvs.len());
}

/// A process of the daemon remembers what it was asked.
#[tokio::test]
async fn a_kept_connection_sees_what_others_build_and_delete() {
    let world = World::new().await;
    let Builder { node, .. } = world.builder();
    let expression = derivation("elsewhere", "echo > $out");
    let drv = world.daemon.store.instantiate(&expression);
    let path = world.read_derivation(&drv).output_paths().next().and_then(|(_, path)| path.cloned()).expect("a path");
    let mut first = take(&node, &drv).await;
    let mut second = take(&node, &drv).await;
    assert!(!is_valid(&mut first, &path).await);
    assert_eq!(world.daemon.store.build(&expression), path);
    assert!(is_valid(&mut first, &path).await && is_valid(&mut second, &path).await);
    world.daemon.store.run("nix-store", &["--delete", path.as_str()]);
    for (which, mut connection) in [("first", first), ("second", second)] {
        assert!(!is_valid(&mut connection, &path).await, "{which}");
        connection.give_back();
    }
    let mut again = take(&node, &drv).await;
    assert!(!is_valid(&mut again, &path).await);
}

#[tokio::test]
async fn what_was_built_over_a_kept_connection_can_be_deleted() {
    let world = World::new().await;
    let Builder { node, .. } = world.builder();
    let drv = world.daemon.store.instantiate(&derivation("doomed", "echo > $out"));
    let basic = world.read_derivation(&drv).resolve(|_, _| None).expect("no inputs");
    let path = basic.outputs.values().find_map(|output| output.path()).expect("a path").clone();
    let job = claimed(&drv, LIMITS);
    let log = node.spool.start(job.attempt, LIMITS.log_bytes_max).expect("a log");
    let connection = take(&node, &drv).await;
    let (_, mut connection) =
        super::super::build::build(&node, &job, &basic, connection, log.shared()).await.expect("built");
    assert!(is_valid(&mut connection, &path).await);
    connection.give_back();
    let in_use = delete(&node, std::collections::BTreeSet::from([path.clone()])).await.expect("answered");
    assert!(in_use.is_none(), "{in_use:?}");
    assert!(!is_valid(&mut take(&node, &drv).await, &path).await);
}

#[tokio::test]
async fn a_connection_that_broke_while_nobody_used_it_is_replaced() {
    let world = World::new().await;
    let Builder { node, .. } = world.builder();
    let drv = world.daemon.store.instantiate(&derivation("any", "echo > $out"));
    take(&node, &drv).await.give_back();
    world.daemon.kill_connections();
    let mut connection = take(&node, &drv).await;
    assert!(is_valid(&mut connection, &drv).await);
}
